"""The pages: /metrics, a landing page, health and reload."""

import asyncio
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from exporter.metrics.status import Status
from exporter.modus.contact import Contact
from exporter.web import landing
from exporter.web.connection import CONTENT_POLICY, SECURITY_HEADERS
from exporter.web.executor import BoundedExecutor
from exporter.web.log import log_failure
from exporter.web.messages import Handler, HTTPError, Request, Response, text
from exporter.web.middleware import Middleware
from exporter.web.negotiation import gzip_accepted, negotiate, scrape_timeout
from exporter.web.places import Places
from exporter.web.reload import Reloads
from exporter.web.scrapes import Kind, ReadScrape, Scrapes
from exporter.web.server import Server
from exporter.web.site import HEALTHY, READY, RELOAD, Site
from exporter.web.webconfig import WebConfigFile

PAGES_WAITING = 8  # people who look at the landing page at the same moment; one page is written at a time
_HEADERS = {
    **SECURITY_HEADERS,
    "Content-Security-Policy": f"{CONTENT_POLICY}; style-src 'sha256-{landing.STYLE_HASH}'",
}
_READ = ("GET", "HEAD")
_CHANGE = ("POST", "PUT")


def application(
    *,
    site: Site,
    scrape: ReadScrape,
    default_timeout: Callable[[], float],
    contact: Callable[[], Contact],
    status: Callable[[], Status],
    reloads: Reloads,
    places: Places,
    enable_lifecycle: bool,
    web_config: WebConfigFile,
) -> Handler:
    """All pages behind the middleware, arguments as for `serve`."""
    handlers: dict[str, tuple[Sequence[str], Handler]] = {
        "/": (_READ, _landing(status, site)),
        HEALTHY: (_READ, _page(text("modus-exporter is healthy.\n"))),
        READY: (_READ, _ready(contact)),
        RELOAD: (_CHANGE, _reloading(reloads, enable_lifecycle)),
        site.telemetry_path: (
            _READ,
            _metrics(Scrapes(scrape, default_timeout, places.room_for_an_answer)),
        ),  # last: / takes the landing page's place
    }
    pages = {f"{site.prefix}{path}": page for path, page in handlers.items()}
    if site.prefix:
        there = text("", 302, Location=f"{site.prefix if site.outside is None else site.outside}/")
        pages |= {path: (_READ, _page(there)) for path in ("/", site.prefix)}
    return Middleware(_routed(pages), web_config, _HEADERS)


def _routed(pages: Mapping[str, tuple[Sequence[str], Handler]]) -> Handler:
    async def routed(request: Request) -> Response:
        if request.path not in pages:
            return text("Not Found", 404)
        methods, handler = pages[request.path]
        if request.method not in methods:
            return text("Method Not Allowed", 405, Allow=", ".join(methods))
        return await handler(request)

    return routed


def _page(response: Response) -> Handler:
    async def page(request: Request) -> Response:
        return response

    return page


def _landing(status: Callable[[], Status], site: Site) -> Handler:
    writer = BoundedExecutor("page", 1, waiting=PAGES_WAITING)

    async def home(request: Request) -> Response:
        body = await writer.run(lambda: landing.page(status(), site))
        return Response(
            body, headers={"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"}
        )

    return home


def _ready(contact: Callable[[], Contact]) -> Handler:
    """Always 200, for metrics are served also while the API is away: that has to reach Prometheus."""

    async def ready(request: Request) -> Response:
        return text(f"modus-exporter is ready.\n{contact().said(time.time())}\n")

    return ready


def _metrics(scrapes: Scrapes) -> Handler:
    async def metrics(request: Request) -> Response:
        form, content_type = negotiate(request.headers.get("accept", ""))
        zipped = gzip_accepted(request.headers.get("accept-encoding", ""))
        timeout = scrape_timeout(request.headers.get("x-prometheus-scrape-timeout-seconds"))
        try:
            body = await scrapes.body(Kind(timeout, form, zipped), request.client)
        except HTTPError:
            raise
        except Exception as exc:
            log_failure("scrape failed", exc)
            return text("the scrape failed: see the log of the exporter\n", 500)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        return Response(body, headers=headers | ({"Content-Encoding": "gzip"} if zipped else {}))

    return metrics


def _reloading(reloads: Reloads, enabled: bool) -> Handler:
    async def reload(request: Request) -> Response:
        if not enabled:
            return text("Lifecycle API is not enabled: start with --web.enable-lifecycle\n", 403)
        failure = await asyncio.shield(reloads.ask())
        return text(f"failed to reload config: {failure}\n", 500) if failure else text("")

    return reload


def serve(
    listeners: Sequence[socket.socket],
    *,
    site: Site,
    scrape: ReadScrape,
    default_timeout: Callable[[], float],
    reload: Callable[[], None],
    contact: Callable[[], Contact],
    status: Callable[[], Status],
    web_config: WebConfigFile,
    enable_lifecycle: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then return within five seconds; call it in the main thread.

    A scrape may be at work still, in a thread that only `os._exit` does not wait for.

    `scrape` gets the scraper's timeout in seconds, 300 at most, or what is left of `default_timeout()`, and
    the format to answer in; it gives a key, equal for scrapes that may share their bytes, and the exposition
    in pieces, which are taken in another thread; while it waits for what it yields it has none. `reload`
    (SIGHUP, and POST /-/reload with `enable_lifecycle`) raises with a one-line message when it fails, and is
    called by one thread at a time.
    `contact` tells whether the API answers, at once; `status` what there is to see, in another thread.
    """
    reloads, places = Reloads(reload), Places()
    handler = application(
        site=site,
        scrape=scrape,
        default_timeout=default_timeout,
        contact=contact,
        status=status,
        reloads=reloads,
        places=places,
        enable_lifecycle=enable_lifecycle,
        web_config=web_config,
    )
    Server(handler, web_config, reloads, places, site.home).run(listeners)
