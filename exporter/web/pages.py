"""The web application: /metrics, a landing page, health and reload, guarded by basic auth."""

import asyncio
import base64
import hashlib
import html
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exporter import __version__
from exporter.web.server import (
    CONTENT_POLICY,
    MAX_HEADER_BYTES,
    SECURITY_HEADERS,
    Reload,
    Server,
    listen,
    log_failure,
)
from exporter.web.webconfig import BasicAuth, WebConfigFile, WebError

T = TypeVar("T")
Scrape = Callable[[float | None, bool], Iterable[bytes]]  # timeout, OpenMetrics or text -> the exposition

CHUNK_BYTES = 64 * 1024

DOCS_URL = "https://prometheus.io/docs/prometheus/latest/querying/basics/"
_STYLE = "body{font-family:sans-serif;margin:3em auto;max-width:40em}"
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = SECURITY_HEADERS | {
    "Content-Security-Policy": f"{CONTENT_POLICY}; style-src 'sha256-{_STYLE_HASH}'"
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
            log_failure("scrape failed", exc)
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
                headers.update({k: v for k, v in (_HEADERS | dict(config.headers)).items() if v})
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
            log_failure("request failed", exc)
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
            log_failure("reload failed", exc)
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
