"""Carries the calls: an adapter of `requests` whose connections keep to one deadline, whatever happens.

`HTTPAdapter.send` stays that of `requests`; what it would find out anew for every call is known here once:
one pool, one TLS context, one proxy. The deadline travels as the `timeout` of the call.
"""

import http.client
import select
import socket
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from exporter.deadline import Deadline
from exporter.modus.errors import ApiError
from exporter.modus.exchange import Exchange, PatientSocket, PatientTlsSocket, connect
from exporter.modus.response import Response
from exporter.modus.tls import Trust, bundle
from exporter.turn import TURN

KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, probes


class _Connection:
    """What both kinds of connection do in their own way: connect, ask, and take an exchange for a timeout."""

    authority: str  # of the API: what `Host` says
    sock: Any
    arrived: Any  # polls for what comes over the socket
    exchange: Any = None  # the one of the moment, or the last one
    _idle_since = 0.0  # on the clock of its deadlines: when the last answer ended

    @property
    def is_connected(self) -> bool:
        """Whether it can be used again: neither end nor bytes have come behind the last answer."""
        return self.sock is not None and not self.arrived.poll(0)

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
                value.reuse(self.sock, self._idle_since)

    def rest(self) -> None:
        """The answer has ended: from now on it is idle."""
        self._idle_since = self.exchange.deadline.monotonic()

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **_: Any) -> None:
        """Send a request without a body, at once."""
        lines = [f"{method} {url} HTTP/1.1", f"Host: {self.authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if not (text := "".join(lines)).isascii() or not text.isprintable():
            raise requests.exceptions.InvalidHeader("characters that no line of a request can have")
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
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
            sock = PatientSocket(*kind)
            try:
                for option in conn.socket_options or ():
                    sock.setsockopt(*option)
                connect(sock, address, deadline.within(deadline.left() / left) if left > 1 else deadline)
            except OSError as exc:
                sock.close()
                failure = exc
            else:
                sock.connection = conn
                self.arrived = select.poll()
                self.arrived.register(sock, select.POLLIN)
                return sock
        raise failure


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

    def _tunnel(self) -> None:
        """Ask the proxy for the way to the API; what goes wrong in that is the proxy's."""
        try:
            super()._tunnel()
        except (OSError, http.client.HTTPException) as exc:
            raise urllib3.exceptions.ProxyError("no tunnel", exc) from exc


class _Pool:
    """The pool of urllib3, as `requests` asks it; over a connection that is there without all its questions.

    They cost as much as the exchange itself, and are about what is settled: retries, redirects, the host.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def urlopen(self, method: str, url: str, headers: Any, timeout: Exchange, **options: Any) -> Any:
        """The answer, as far as its headers. Raises OSError, HTTPException, and what urllib3 raises."""
        pool = self._pool
        conn = pool._get_conn()
        if not pool.proxy:
            conn.timeout = timeout
        if pool.proxy or conn.sock is None:
            pool._put_conn(conn)
            return pool.urlopen(method=method, url=url, headers=headers, timeout=timeout, **options)
        try:
            conn.request(method, url, headers=headers)
            response = conn.getresponse()
        except BaseException:
            conn.close()
            pool._put_conn(conn)
            raise
        response._pool, response._connection = pool, conn
        return response


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
            pool.conn_kw["trust"] = Trust(bundle(ca_file), PatientTlsSocket)
        self.proxy = f"{pool.proxy.host}:{pool.proxy.port}" if pool.proxy else ""
        self._pool, self._asked = pool, _Pool(pool)
        self._base_length = len(base_url)
        self._target = super().request_url(request, proxies)

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> Any:
        """The one pool."""
        return self._asked

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
