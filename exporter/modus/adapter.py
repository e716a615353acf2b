"""Connections to the API: each call keeps to one deadline, whatever the server does meanwhile.

The pool is that of urllib3, below `requests`, whose own layer would cost a fifth of the CPU of a call
(benchmarks/RESULTS.md). `requests` reads proxies and CA bundle from the environment, once.
"""

import http.client
import io
import os
import socket
import ssl
import threading
from typing import Any

import certifi
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.ssl_ import create_urllib3_context

from exporter.modus.model import ApiError

# Of this thread's call: `until`, its deadline on the clock `monotonic`; `limit`, the caller's word for that;
# `reused`, whether it goes over a connection that was there before.
call = threading.local()


def time_left() -> float:
    """Seconds that the running call still has. Raises TimeoutError when there are none."""
    left: float = call.until - call.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _TimedReads(io.RawIOBase):
    """A socket's reads, each allowed the time that the call has left: a trickle cannot stretch it."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._sock, self._raw = sock, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(time_left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReads(sock, self.fp.detach()))

    def begin(self) -> None:
        super().begin()
        if self.msg.defects:  # urllib3 would log the headers, whatever is in them, and go on without some
            raise http.client.HTTPException("malformed headers")


class _TimedTls(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        self.settimeout(time_left())  # the handshake as a whole keeps to it
        super().do_handshake(block)


def _connect(conn: urllib3.connection.HTTPConnection) -> socket.socket:
    """Connect to the first address that answers; each gets its share of the time that is left."""
    call.reused = False
    addresses = socket.getaddrinfo(conn.host.strip("[]"), conn.port, type=socket.SOCK_STREAM)
    for n, (family, kind, protocol, _, address) in enumerate(addresses, 1):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(time_left() / (len(addresses) - n + 1))
            for option in conn.socket_options or ():
                sock.setsockopt(*option)
            sock.connect(address)
        except OSError:
            sock.close()
            if n == len(addresses):
                raise
        else:
            return sock
    raise socket.gaierror(socket.EAI_NONAME, "no address")


class _Http(urllib3.connection.HTTPConnection):
    response_class = _TimedResponse
    _new_conn = _connect


class _Https(urllib3.connection.HTTPSConnection):
    response_class = _TimedResponse
    _new_conn = _connect


def pool(base_url: str, connections: int) -> tuple[Any, str]:
    """One pool of timed connections, sharing one TLS context, and what precedes a path in a request's line.

    Proxies and CA bundle are those of the environment, as `requests` reads it.
    """
    with requests.Session() as session:
        settings = session.merge_environment_settings(base_url, {}, None, None, None)
    proxies = dict(settings["proxies"])
    proxy = requests.utils.select_proxy(base_url, proxies)
    if proxy and proxy.lower().startswith("socks"):
        raise ApiError("connection", "SOCKS proxies are not supported")
    adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections)
    request = requests.Request("GET", base_url).prepare()
    made: Any = adapter.get_connection_with_tls_context(request, True, proxies)
    made.ConnectionCls = _Https if made.scheme == "https" else _Http
    if made.scheme == "https":
        bundle = settings["verify"]
        made.conn_kw["ssl_context"] = _tls(certifi.where() if bundle is True else str(bundle))
    return made, adapter.request_url(request, proxies)


def _tls(bundle: str) -> ssl.SSLContext:
    context = create_urllib3_context()
    context.sslsocket_class = _TimedTls
    try:
        context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
    except OSError as exc:
        raise ApiError("connection", f"cannot read the CA bundle {bundle}: {exc.strerror or exc}") from None
    return context


def cause(exc: BaseException) -> BaseException:
    """The system's or the parser's own error below the libraries' wrappings."""
    telling = (http.client.HTTPException, urllib3.exceptions.DecodeError)
    while isinstance(exc, urllib3.exceptions.HTTPError) and not isinstance(exc, telling) and exc.__context__:
        exc = exc.__context__
    return exc
