"""A scripted server on a free loopback port: each connection is played byte for byte by a test."""

import contextlib
import itertools
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable
from email.utils import formatdate


class Peer:
    """The server's side of one connection."""

    def __init__(self, wire: "Wire", sock: socket.socket, number: int) -> None:
        self.wire, self.sock, self.number = wire, sock, number  # number: 0 for the first connection

    def request(self) -> str | None:
        """The next request's head, or None when the client has gone."""
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.sock.recv(65536)
            if not piece:
                return None
            head += piece
        text = head.decode("latin-1")
        self.wire.requests.append(text)
        return text

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def trickle(self, pieces: Iterable[bytes]) -> None:
        """A piece every hundredth of a second, as long as the test runs, but not for ever."""
        for piece in itertools.islice(pieces, 1000):
            if self.wire.closing.wait(0.01):
                return
            self.send(piece)

    def reset(self) -> None:
        """Close with a reset instead of an end of the stream."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Wire:
    """Plays `script(peer)` in a thread for every connection; keeps the requests' heads."""

    def __init__(self, script: Callable[[Peer], None], tls: ssl.SSLContext | None = None) -> None:
        self.script, self.tls = script, tls
        self.requests: list[str] = []
        self.connections = 0
        self.closing = threading.Event()
        self._socks: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def paths(self) -> list[str]:
        return [head.split(" ")[1] for head in self.requests]

    def close(self) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socks.append(sock)
            thread = threading.Thread(target=self._play, args=(sock, self.connections))
            self.connections += 1
            self._threads.append(thread)
            thread.start()

    def _play(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), contextlib.closing(sock):  # the client may leave at any time
            if self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True)
            with contextlib.closing(sock):
                self.script(Peer(self, sock, number))


def answering(answer: Callable[[str], bytes]) -> Callable[[Peer], None]:
    """A script that keeps connections alive and answers every request's head."""

    def script(peer: Peer) -> None:
        while head := peer.request():
            peer.send(answer(head))

    return script


def response(body: object = b"", status: int = 200, **headers: str) -> bytes:
    """An answer's bytes: a body that is no bytes is sent as JSON; header names take _ for -."""
    kind = "text/plain"
    if not isinstance(body, bytes):
        kind, body = "application/json", json.dumps(body).encode()
    fields = {"Content-Type": kind, "Content-Length": str(len(body)), "Date": formatdate(usegmt=True)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Any", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def failure(status: int, message: str = "No.", request_id: str = "req_1", **headers: str) -> bytes:
    """The API's error envelope."""
    return response(envelope(message, request_id), status, **headers)


def envelope(message: str = "No.", request_id: str = "req_1") -> dict[str, object]:
    """What the API answers when it refuses."""
    return {"error": {"code": "ANY", "status": "ANY", "message": message, "requestId": request_id}}


def page(*runs: dict[str, object], following: str | None = None, **counts: int) -> dict[str, object]:
    """A runs page as the API writes it."""
    return {"runs": list(runs), "counts": {"all_executions": len(runs), **counts}, "nextPageToken": following}


def run(name: str = "wf-1:r1", **fields: object) -> dict[str, object]:
    """A run as the API lists it."""
    workflow_id, _, temporal_run_id = name.partition(":")
    return {
        "id": name,
        "workflowId": workflow_id,
        "temporalRunId": temporal_run_id,
        "agentId": 42,
        "agentName": "Invoice triage",
        "agentType": "task",
        "status": "completed",
        "triggerType": "schedule",
        "startedAt": "2026-07-01T10:00:00.000Z",
        "endedAt": "2026-07-01T10:00:20.500Z",
        "durationMs": 20500,
        **fields,
    }


def counted(client) -> dict[tuple[str, str], int]:
    """How often what was asked: what is new is shown at 0 first."""
    client.stats()
    return client.stats().requests


def forget_environment(monkeypatch) -> None:
    """No proxy and no CA bundle of the environment that the tests run in."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
