"""How the simulated API is served: HTTP on a port, with answers that may be cut short."""

import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR
from socketserver import TCPServer
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl


class Answer(NamedTuple):
    """An answer to send; status 0 hangs up instead, and so does the end of a body in chunks."""

    status: int
    headers: dict[str, str]  # a Content-Length of its own is kept: give it `Connection: close` beside it
    body: bytes | Iterable[bytes]


class Api(Protocol):
    """What is served."""

    latency: float  # seconds before each answer

    def answer(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Answer:
        """Answer one request; `path` is as on the wire, without the query."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet
    server: "Server"

    def do_GET(self) -> None:
        api, (path, _, query) = self.server.api, self.path.partition("?")
        time.sleep(api.latency)
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        status, headers, body = api.answer("GET", path, parameters, dict(self.headers.items()))
        if not status:
            self.close_connection = True
            return
        length = {"Content-Length": str(len(body))} if isinstance(body, bytes) else {"Connection": "close"}
        self.send_response_only(status)
        for name, value in (length | headers).items():
            self.send_header(name, value)
        self.end_headers()
        for chunk in (body,) if isinstance(body, bytes) else body:
            self.wfile.write(chunk)
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in http.server
        """Log nothing: there is `SimulatedModus.requests`."""


class Server(ThreadingHTTPServer):
    """Serves an API on a port (0: a free one) of this host; `start` it, then `stop` it."""

    daemon_threads = True
    request_queue_size = 256
    server_bind = TCPServer.server_bind  # HTTPServer's asks the DNS for the machine's name

    def __init__(self, api: Api, port: int, host: str = "127.0.0.1") -> None:
        self.api, self.connections = api, set[Any]()
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def start(self) -> None:
        """Serve in threads that end with the process."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stop serving, free the port and cut the connections."""
        self.shutdown()
        self.server_close()
        for connection in tuple(self.connections):
            with suppress(OSError):  # the client was quicker
                connection.shutdown(SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, to cut it at the end."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong with a connection, on our side."""
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave when it likes
            super().handle_error(request, client_address)
