"""The web server: /metrics, a landing page, health and reload, behind a door that strangers cannot block.

Starlette answers, uvicorn speaks HTTP/1.1. What uvicorn lacks is here: limits for slow clients and for
the number of connections, TLS settings read per connection, and a stop that ends with exit code 0.
"""

import asyncio
import base64
import contextlib
import errno
import functools
import hashlib
import html
import http
import logging
import math
import re
import signal
import socket
import sys
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from exporter import __version__
from exporter.webconfig import BasicAuth, WebConfigFile, WebError

log = logging.getLogger("exporter.web")
T = TypeVar("T")
Reload = Callable[[], Awaitable[str | None]]  # answers with the one line of what went wrong
Scrape = Callable[[float | None, bool], Iterable[bytes]]  # timeout, OpenMetrics or text -> the exposition

MAX_CONNECTIONS = 256  # one more takes the place of the one that is idle longest
MAX_UNREAD = 16  # answers that wait for a slow reader; likewise
MAX_HEADER_BYTES = 16 * 1024
CHUNK_BYTES = 64 * 1024
REQUEST_SECONDS = 10.0  # from connecting, or from the first byte, to a whole request; also the TLS handshake
ANSWER_SECONDS = 30.0  # for the client to take its answer
IDLE_SECONDS = 75  # between requests: longer than the usual scrape interval of a minute
STOP_SECONDS = 3  # at the end, for requests that are being answered

DOCS_URL = "https://prometheus.io/docs/prometheus/latest/querying/basics/"
_STYLE = "body{font-family:sans-serif;margin:3em auto;max-width:40em}"
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_SECURITY_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "deny",
}


# --- the exposition ---


def _preferences(header: str) -> list[tuple[float, str, dict[str, str]]]:
    """(weight, name, parameters) of an Accept header, best first; a nonsensical weight counts as 1."""
    parts = []
    for part in header.lower().split(","):
        name, *rest = (piece.strip() for piece in part.split(";"))
        parameters = {
            key.strip(): value.strip() for key, _, value in (piece.partition("=") for piece in rest)
        }
        weight = parameters.get("q", "1")
        parts.append((float(weight) if re.fullmatch(r"[01](\.\d{0,3})?", weight) else 1.0, name, parameters))
    return sorted(parts, key=lambda part: -part[0])


def negotiate(accept: str) -> tuple[bool, str]:
    """Whether to answer in OpenMetrics, and the content type; what is not understood gets text 0.0.4.

    The names of our metrics need no escaping, so every version and escaping scheme that Prometheus
    asks for reads the same.
    """
    for weight, media, parameters in _preferences(accept):
        openmetrics = media == "application/openmetrics-text"
        known = ("1.0.0", "0.0.1") if openmetrics else ("0.0.4", "1.0.0")
        version = parameters.get("version", known[0])
        if weight and version in known and (openmetrics or media in ("text/plain", "text/*", "*/*")):
            escaping = parameters.get("escaping")
            named = version == "1.0.0" and escaping in ("allow-utf-8", "underscores", "dots", "values")
            kind = "application/openmetrics-text" if openmetrics else "text/plain"
            suffix = f"; escaping={escaping}" if named else ""
            return openmetrics, f"{kind}; version={version}; charset=utf-8{suffix}"
    return False, "text/plain; version=0.0.4; charset=utf-8"


def gzip_accepted(accept_encoding: str) -> bool:
    """Whether gzip may be used: named, or covered by *, with a weight above 0."""
    weights = {name: weight for weight, name, _ in _preferences(accept_encoding)}
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def _gzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces compressed one by one: the whole of a large exposition is never in memory."""
    packer = zlib.compressobj(level=1, wbits=31)  # 31: in gzip's format
    yield from map(packer.compress, pieces)
    yield packer.flush()


def scrape_timeout(header: str | None) -> float | None:
    """Seconds of X-Prometheus-Scrape-Timeout-Seconds; None when missing, nonsense or not positive."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if seconds > 0 and math.isfinite(seconds) else None


# --- the application ---


class Workers:
    """Blocking calls in at most `threads` threads; one more than `waiting` callers gets a 503.

    The threads are kept: a new one for each scrape would leave memory of its own behind.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self._threads = ThreadPoolExecutor(threads, "web")
        self._free = threads + waiting

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work()`, or what it raises."""
        if not self._free:
            raise HTTPException(503, "too many requests at once")
        self._free -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._free += 1


def _log_failure(message: str, exc: BaseException) -> None:
    text = " ".join(f"{type(exc).__name__}: {exc}".split())
    log.error(message, extra={"fields": {"error": text}})


def application(
    *,
    scrape: Scrape,
    ready: Callable[[], bool],
    reload: Reload,
    telemetry_path: str,
    enable_lifecycle: bool,
    web_config: WebConfigFile,
) -> ASGIApp:
    """The pages as an ASGI application, arguments as for `serve`; WebError for a path it cannot take."""
    scrapes = Workers(threads=8, waiting=32)

    async def metrics(request: Request) -> Response:
        openmetrics, content_type = negotiate(request.headers.get("accept", ""))
        zipped = gzip_accepted(request.headers.get("accept-encoding", ""))
        timeout = scrape_timeout(request.headers.get("x-prometheus-scrape-timeout-seconds"))

        def answer() -> bytes:
            pieces = scrape(timeout, openmetrics)
            return b"".join(_gzip(pieces) if zipped else pieces)

        try:
            body = await scrapes.run(answer)
        except HTTPException:
            raise
        except Exception as exc:
            _log_failure("scrape failed", exc)
            return PlainTextResponse("the scrape failed: see the log of the exporter\n", 500)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        return Response(body, headers=headers | ({"Content-Encoding": "gzip"} if zipped else {}))

    async def reload_config(request: Request) -> Response:
        if not enable_lifecycle:
            return PlainTextResponse("Lifecycle API is not enabled: start with --web.enable-lifecycle\n", 403)
        failure = await reload()
        return PlainTextResponse(
            f"failed to reload config: {failure}\n" if failure else "", 500 if failure else 200
        )

    async def healthy(request: Request) -> Response:
        return PlainTextResponse("modus-exporter is healthy.\n")

    async def is_ready(request: Request) -> Response:
        good = ready()
        return PlainTextResponse(f"modus-exporter is {'' if good else 'not '}ready.\n", 200 if good else 503)

    async def landing(request: Request) -> Response:
        return HTMLResponse(_landing_page(telemetry_path))

    if not re.fullmatch(r"/[\w.~/-]*", telemetry_path, re.ASCII):
        raise WebError(f"--web.telemetry-path: expected a path like /metrics, got {telemetry_path!r}")
    routes = [
        Route(telemetry_path, metrics),  # first: a telemetry path of / takes the landing page's place
        Route("/", landing),
        Route("/-/healthy", healthy),
        Route("/-/ready", is_ready),
        Route("/-/reload", reload_config, methods=["POST", "PUT"]),
    ]
    pages = Starlette(routes=routes)
    pages.router.redirect_slashes = False
    return Guard(pages, web_config)


def _landing_page(telemetry_path: str) -> str:
    links = [(telemetry_path, "Metrics"), ("/-/healthy", "Healthy?"), ("/-/ready", "Ready?")]
    links.append((DOCS_URL, "Documentation: querying with PromQL"))
    items = "".join(f'<li><a href="{html.escape(url)}">{html.escape(text)}</a></li>\n' for url, text in links)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Modus exporter</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>Modus exporter</h1>\n"
        "<p>Metrics of Modus AI agents for Prometheus: every run is counted exactly once.</p>\n"
        f"<ul>\n{items}</ul>\n<p>Version {html.escape(__version__)}</p>\n</body>\n</html>\n"
    )


class Guard:
    """What every request passes: header limit, basic auth, security headers, no exception gets out."""

    def __init__(self, pages: ASGIApp, web_config: WebConfigFile) -> None:
        self._pages = pages
        self._web_config = web_config
        self._bcrypt = Workers(threads=1, waiting=32)  # costly by design: one at a time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        config, request = self._web_config.current(), Headers(scope=scope)
        length, started = request.get("content-length", "0"), False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started, headers = True, MutableHeaders(scope=message)
                headers.update({k: v for k, v in (_SECURITY_HEADERS | dict(config.headers)).items() if v})
                if length != "0" or "transfer-encoding" in request:  # no page reads a body: nor do we
                    headers["Connection"] = "close"
            body, end = message.get("body", b""), 0
            while len(body) - end > CHUNK_BYTES:  # in pieces, each of which waits for the reader
                await send({**message, "body": body[end : end + CHUNK_BYTES], "more_body": True})
                end += CHUNK_BYTES
            await send({**message, "body": body[end:]} if end else message)

        try:
            page = self._pages
            if sum(len(part) for header in scope["headers"] for part in header) > MAX_HEADER_BYTES:
                page = PlainTextResponse("request headers too large\n", 431)
            elif config.auth and not await self._authenticated(config.auth, request):
                page = PlainTextResponse("Unauthorized\n", 401, {"WWW-Authenticate": 'Basic charset="UTF-8"'})
            elif not scope["path"].isprintable():  # a route would match /metrics and a line feed
                page = PlainTextResponse("Not Found", 404)
            await page(scope, receive, guarded)
        except HTTPException as exc:
            await PlainTextResponse(exc.detail, exc.status_code)(scope, receive, guarded)
        except Exception as exc:
            _log_failure("request failed", exc)
            if not started:
                await PlainTextResponse("internal error\n", 500)(scope, receive, guarded)

    async def _authenticated(self, auth: BasicAuth, request: Headers) -> bool:
        scheme, _, encoded = request.get("authorization", "").partition(" ")
        try:
            credentials = base64.b64decode(encoded.strip(), validate=True)
        except ValueError:
            return False
        if scheme.lower() != "basic" or b":" not in credentials:
            return False
        return auth.known(credentials) or await self._bcrypt.run(lambda: auth.check(credentials))


# --- the door ---


class Door(H11Protocol):
    """One connection; uvicorn's protocol with the moment since which it waits for the client."""

    def __init__(self, web_config: WebConfigFile, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config, state, {})
        self.since = 0.0
        self._web_config = web_config
        self._receiving = True  # part of a request is here or due; else idle between two
        self._taking = False  # the client has begun to hold up its answer
        self._refused = False

    @property
    def answering(self) -> bool:
        """Whether it is our turn: a request is being answered and the client takes what we write."""
        return bool(self.cycle and not self.cycle.response_complete and not self.flow.write_paused)

    def overdue(self) -> bool:
        """Whether the client had its time: for its request, for taking the answer, or between requests."""
        if self.answering and not self._taking:
            return False  # the scrape has its own deadline
        if self._taking or self.transport.is_closing() or self.transport.get_write_buffer_size():
            limit = ANSWER_SECONDS
        else:
            limit = REQUEST_SECONDS if self._receiving else IDLE_SECONDS
        return self.loop.time() - self.since > limit

    def abort(self) -> None:
        """Drop the connection at once, with what is still to be written."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there, after its TLS handshake if there is one."""
        self.since = self.loop.time()
        super().connection_made(transport)
        if not self._web_config.current().admits(transport.get_extra_info("peercert")):
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; the first ones after a pause start its time."""
        if self._refused:
            return
        if not self._receiving and not self.answering:
            self._receiving, self.since = True, self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """The answer is written, if not taken yet."""
        self._receiving, self._taking, self.since = False, False, self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client is slow to take its answer."""
        super().pause_writing()
        if not self._taking:  # its time runs from the first pause: a trickle does not renew it
            self._taking, self.since = True, self.loop.time()
        slow = [c for c in self.connections if isinstance(c, Door) and c.flow.write_paused]
        if len(slow) > MAX_UNREAD:
            min(slow, key=lambda door: door.since).abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP (400) or has too large headers (431); h11's error is being handled."""
        if self.cycle and self.conn.our_state is not h11.IDLE:
            self.abort()  # an answer is under way or done: no place for another
            return
        status = getattr(sys.exception(), "error_status_hint", 400)
        lines = [
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
            "Connection: close",
            "Content-Length: 0",
        ]
        lines += [f"{name}: {value}" for name, value in _SECURITY_HEADERS.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode())
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()  # the client may still be sending: a reset would destroy the answer
        else:
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server with bounded connections, TLS settings as of now, and signals that just end it."""

    def __init__(self, app: ASGIApp, web_config: WebConfigFile, reload: Reload) -> None:
        config = uvicorn.Config(
            app,
            http=Door,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",  # our own logger says what matters
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        super().__init__(config)
        self._web_config = web_config
        self._reload = reload
        self._reloading: asyncio.Future[str | None] | None = None
        self._opening: dict[socket.socket, float] = {}  # since when; until the TLS handshake is done
        self._accepting: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()  # kept: the loop holds tasks weakly

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        self.servers = []
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in sockets or ()]
        self.started = True
        for listener in sockets or ():  # said now that signals are handled
            host, port = listener.getsockname()[:2]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            fields = {"address": address, "tls": self._web_config.current().tls is not None}
            log.info("listening", extra={"fields": fields})

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; once a second overdue connections are dropped."""
        if counter % 10 == 0:
            for door in self._doors():
                if door.overdue():
                    door.abort()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting; uvicorn waits for the answers under way, then cancels them."""
        for task in self._accepting:
            task.cancel()
        for client in list(self._opening):
            self._give_up(client)
        await super().shutdown(sockets)

    def _doors(self) -> list[Door]:
        return [door for door in self.server_state.connections if isinstance(door, Door)]

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as exc:  # out of file descriptors: those of others may come free
                _log_failure("cannot accept a connection", exc)
                await asyncio.sleep(1)
                continue
            if not self._make_room():
                client.close()
                continue
            self._opening[client] = loop.time()
            task = loop.create_task(self._open(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)  # a full backlog must not keep the others waiting

    def _make_room(self) -> bool:
        doors = self._doors()
        if len(self._opening) + len(doors) < MAX_CONNECTIONS:
            return True
        waiting = [(since, functools.partial(self._give_up, sock)) for sock, since in self._opening.items()]
        waiting += [(door.since, functools.partial(Door.abort, door)) for door in doors if not door.answering]
        if waiting:
            min(waiting, key=lambda each: each[0])[1]()
        return bool(waiting)

    def _give_up(self, client: socket.socket) -> None:
        self._opening.pop(client, None)
        with contextlib.suppress(OSError):  # the client may be gone already
            client.shutdown(socket.SHUT_RDWR)  # the handshake fails: asyncio ignores a close before it begins

    async def _open(self, client: socket.socket) -> None:
        tls = self._web_config.current().tls
        limits = {"ssl_handshake_timeout": REQUEST_SECONDS, "ssl_shutdown_timeout": 2.0} if tls else {}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Door(self._web_config, self.config, self.server_state), client, ssl=tls, **limits
            )
        except OSError:
            pass  # a failed handshake is the client's affair
        finally:
            self._opening.pop(client, None)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the server, SIGHUP reloads; uvicorn's own would end in an exit code."""
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop, number)
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        yield

    def _stop(self, number: signal.Signals) -> None:
        log.info("stopping", extra={"fields": {"signal": number.name}})
        self.should_exit = True

    def _hang_up(self) -> None:
        self._reloading = asyncio.ensure_future(self._reload())


def listen(address: str) -> socket.socket:
    """A listening socket for `host:port`; no host is every address of the machine, IPv6 too if it has it.

    Raises WebError, one line.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise WebError(f"--web.listen-address: expected host:port or :port, got {address!r}")
    try:
        if not host and socket.has_dualstack_ipv6():
            try:
                return socket.create_server(
                    ("", int(port)), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
                )
            except OSError as exc:
                if exc.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # no IPv6 here
                    raise
        found = socket.getaddrinfo(host or "0.0.0.0", int(port), type=socket.SOCK_STREAM)  # noqa: S104
        family, _, _, _, target = min(found)  # IPv4 first, as in Go
        return socket.create_server(target, family=family, backlog=1024)
    except (OSError, UnicodeError) as exc:
        raise WebError(f"cannot listen on {address}: {getattr(exc, 'strerror', exc)}", exit_code=1) from None


def serve(
    *,
    listen_address: str,
    scrape: Scrape,
    ready: Callable[[], bool],
    reload: Callable[[], None],
    telemetry_path: str = "/metrics",
    web_config_file: str | None = None,
    enable_lifecycle: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then return within five seconds; call it in the main thread.

    A scrape may be at work still, in a thread that only `os._exit` does not wait for.

    `scrape` gets the scraper's timeout in seconds, or None, and whether to answer in OpenMetrics; it gives
    the exposition in pieces, and is called in several threads at once;
    `reload` (SIGHUP, and POST /-/reload with `enable_lifecycle`) raises with a one-line message when it
    fails, and is called by one thread at a time. Raises WebError, one line, when it cannot start.
    """
    web_config = WebConfigFile(web_config_file)
    reloads = Workers(threads=1, waiting=1)

    async def reload_once() -> str | None:
        try:
            return await reloads.run(reload)
        except Exception as exc:
            _log_failure("reload failed", exc)
            return " ".join(str(exc).split())

    app = application(
        scrape=scrape,
        ready=ready,
        reload=reload_once,
        telemetry_path=telemetry_path,
        enable_lifecycle=enable_lifecycle,
        web_config=web_config,
    )
    Server(app, web_config, reload_once).run(sockets=[listen(listen_address)])
