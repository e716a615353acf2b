"""Carries the calls: an adapter of `requests` whose connections keep to one deadline, whatever happens.

`HTTPAdapter.send` stays that of `requests`; what it would find out anew for every call is known here once:
one pool, one TLS context, one proxy. The deadline travels as the `timeout` of the call.
"""

import contextlib
import errno
import math
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util.wait import wait_for_write

from exporter.deadline import Deadline
from exporter.modus.errors import ApiError, SilentConnectionError
from exporter.modus.pacing import SLICE
from exporter.modus.response import Response
from exporter.modus.tls import Trust, bundle
from exporter.turn import TURN

KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, probes


class Exchange(urllib3.Timeout):
    """The time of one request and its answer, handed to `requests` as its timeout.

    urllib3 sets both parts of a timeout as the `timeout` of its connection: here both are this object, so
    that the connection, and its socket, ask the deadline itself, which may move while they wait.
    A connection that was there before has `patience` seconds for its first byte; `fresh` refuses such a one.
    """

    def __init__(self, deadline: Deadline, *, patience: float = math.inf, fresh: bool = False) -> None:
        super().__init__()
        self.deadline, self.fresh, self.reused = deadline, fresh, False
        self._patience = patience
        self._first_byte_by = math.inf  # on the deadline's clock; infinite once it has come

    def clone(self) -> "Exchange":
        """This one: it serves one request only."""
        return self

    @property
    def connect_timeout(self) -> Any:
        """This object, for the connection."""
        return self

    @property
    def read_timeout(self) -> Any:
        """This object, for the connection."""
        return self

    def reuse(self) -> None:
        """It goes over a connection that was there before."""
        self.reused = True
        self._first_byte_by = self.deadline.monotonic() + self._patience

    def answered(self) -> None:
        """The first byte has come: the connection lives."""
        self._first_byte_by = math.inf

    def wait(self) -> float:
        """Seconds to wait before asking again. Raises TimeoutError and SilentConnectionError."""
        left = self.deadline.left()
        if left <= 0.0:
            raise TimeoutError
        if self._first_byte_by < math.inf:
            left = min(left, self._first_byte_by - self.deadline.monotonic())
            if left <= 0.0:
                raise SilentConnectionError
        return left if left < SLICE else SLICE


class _Patient:
    """A socket whose waits end with the exchange of its connection; also when that is cut short meanwhile."""

    connection: Any  # the one that the socket is of: it knows the exchange of the moment

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        size: int = self._patiently(super().recv_into, buffer, nbytes or 0)  # type: ignore[misc]
        return size

    def recv(self, bufsize: int = 1024, flags: int = 0) -> bytes:
        data: bytes = self._patiently(super().recv, bufsize)  # type: ignore[misc]
        return data

    def _patiently(self, receive: Callable[..., Any], *args: Any) -> Any:
        exchange = self.connection.exchange
        while True:
            self.settimeout(exchange.wait())  # type: ignore[attr-defined]
            try:
                received = TURN.wait(receive, *args)
            except TimeoutError:
                continue
            exchange.answered()
            return received


class _Socket(_Patient, socket.socket):
    pass


class _TlsSocket(_Patient, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        while True:
            self.settimeout(self.connection.exchange.wait())
            with contextlib.suppress(TimeoutError):
                return TURN.wait(super().do_handshake, block)


class _Connection:
    """What both kinds of connection do in their own way: connect, ask, and take an exchange for a timeout."""

    authority: str  # of the API: what `Host` says
    sock: Any
    exchange: Exchange | None = None

    @property
    def timeout(self) -> Any:
        """Seconds that the exchange still has, for sending."""
        return self.exchange and self.exchange.deadline.left()

    @timeout.setter
    def timeout(self, value: Any) -> None:
        if isinstance(value, Exchange) and value is not self.exchange:
            self.exchange = value
            if self.sock is not None and value.fresh:
                self.close()  # type: ignore[attr-defined]
            elif self.sock is not None:
                value.reuse()

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **_: Any) -> None:
        """Send a request without a body, at once."""
        lines = [f"{method} {url} HTTP/1.1", f"Host: {self.authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if not (text := "".join(lines)).isascii() or not text.isprintable():
            raise requests.exceptions.InvalidHeader("characters that no line of a request can have")
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
        self.sock.settimeout(self.timeout)
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())

    def getresponse(self) -> Any:
        """The answer, as far as its headers."""
        return Response(self.sock.recv)

    def _new_conn(self) -> socket.socket:
        """Connect to the first address that answers; each gets its share of the time that is left."""
        conn: Any = self
        host = conn.host.strip("[]")
        addresses = TURN.wait(socket.getaddrinfo, host, conn.port, type=socket.SOCK_STREAM)
        failure: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
        for left, (*kind, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
            deadline: Deadline = conn.exchange.deadline
            sock = _Socket(*kind)
            try:
                for option in conn.socket_options or ():
                    sock.setsockopt(*option)
                _connect(sock, address, deadline.within(deadline.left() / left) if left > 1 else deadline)
            except OSError as exc:
                sock.close()
                failure = exc
            else:
                sock.connection = conn
                return sock
        raise failure


def _connect(sock: socket.socket, address: Any, deadline: Deadline) -> None:
    sock.setblocking(False)
    error = sock.connect_ex(address)
    while error == errno.EINPROGRESS:
        if deadline.passed():
            raise TimeoutError
        if TURN.wait(wait_for_write, sock, min(deadline.left(), SLICE)):
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
    sock.settimeout(deadline.left())


class _Http(_Connection, urllib3.connection.HTTPConnection):
    def __init__(self, *args: Any, authority: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.authority = authority


class _Https(_Connection, urllib3.connection.HTTPSConnection):
    def __init__(self, *args: Any, authority: str, trust: Trust, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.authority, self._trust = authority, trust

    def connect(self) -> None:
        """Connect with the CA certificates of now, to the proxy too."""
        self.ssl_context = self._trust.context()
        if self.proxy_config:
            self.proxy_config = self.proxy_config._replace(ssl_context=self.ssl_context)
        super().connect()


class _Answer(requests.Response):
    _content: Any = False
    _content_consumed = False

    def __init__(self) -> None:
        """Nothing: a jar for cookies would cost as much as decoding a page of five runs."""


class ModusAdapter(HTTPAdapter):
    """Sends to URLs below `base_url`, over one pool of as many `connections` as are in use at a time.

    Proxies are those of the environment, as `requests` reads it, once; CA certificates those of `ca_file`,
    or of the environment. `proxy` is host and port of the one in use. Raises ApiError, and the libraries'
    errors for a URL or a proxy that is none.
    """

    def __init__(self, base_url: str, connections: int, ca_file: str | None = None) -> None:
        super().__init__(pool_connections=1, pool_maxsize=connections, max_retries=urllib3.Retry(total=False))
        with requests.Session() as session:
            settings = session.merge_environment_settings(base_url, {}, None, None, None)
        proxies = dict(settings["proxies"])
        proxy = requests.utils.select_proxy(base_url, proxies)
        if proxy and proxy.lower().startswith("socks"):
            raise ApiError(
                "connection", "SOCKS proxies are not supported", hint="name an HTTP proxy in https_proxy"
            )
        request = requests.Request("GET", base_url).prepare()
        pool: Any = super().get_connection_with_tls_context(request, True, proxies)
        pool.ConnectionCls = _Https if pool.scheme == "https" else _Http
        pool.conn_kw["socket_options"] = _socket_options()
        pool.conn_kw["authority"] = urlsplit(base_url).netloc.rpartition("@")[2]
        if pool.scheme == "https":
            pool.conn_kw["trust"] = Trust(bundle(ca_file), _TlsSocket)
        self.proxy = f"{pool.proxy.host}:{pool.proxy.port}" if pool.proxy else ""
        self._pool = pool
        self._base_length = len(base_url)
        self._target = super().request_url(request, proxies)

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> Any:
        """The one pool."""
        return self._pool

    def cert_verify(self, *_: Any) -> None:
        """Nothing: the pool's TLS context verifies."""

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        """What the line of the request names: a path, or to a proxy without a tunnel the whole URL."""
        return self._target + str(request.url)[self._base_length :]

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        """The answer, without what nobody asks it for: cookies, encoding."""
        response = _Answer()
        response.status_code, response.headers = resp.status, resp.headers
        response.raw, response.reason = resp, resp.reason
        response.request, response.url = req, str(req.url)
        return response

    def close(self) -> None:
        """Close the connections that are idle, now, and those in use when they are."""
        self._pool.close()
        super().close()


def _socket_options() -> list[Any]:
    """No delay, and probes that notice a peer that went away and keep what is between from forgetting it."""
    options: list[Any] = [
        *urllib3.connection.HTTPConnection.default_socket_options,
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):  # not every system has all of them
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
