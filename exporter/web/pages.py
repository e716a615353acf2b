"""The pages: /metrics, a landing page, health and reload."""

import asyncio
import base64
import hashlib
import html
import os
import re
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from exporter import __version__
from exporter.web.connection import CONTENT_POLICY, SECURITY_HEADERS
from exporter.web.listeners import listen_on, passed_by_systemd
from exporter.web.log import log_failure
from exporter.web.messages import Handler, HTTPError, Request, Response, text
from exporter.web.middleware import Middleware
from exporter.web.negotiation import gzip_accepted, negotiate, scrape_timeout
from exporter.web.places import Places
from exporter.web.reload import Reloads
from exporter.web.scrapes import Kind, Scrape, Scrapes
from exporter.web.server import Server
from exporter.web.webconfig import WebConfigFile, WebError

DOCS_URL = "https://prometheus.io/docs/prometheus/latest/querying/basics/"
_STYLE = "body{font-family:sans-serif;margin:3em auto;max-width:40em}"
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    **SECURITY_HEADERS,
    "Content-Security-Policy": f"{CONTENT_POLICY}; style-src 'sha256-{_STYLE_HASH}'",
}
_READ = ("GET", "HEAD")
_CHANGE = ("POST", "PUT")


def application(
    *,
    scrape: Scrape,
    reloads: Reloads,
    places: Places,
    telemetry_path: str,
    enable_lifecycle: bool,
    web_config: WebConfigFile,
    external_url: str | None = None,
    route_prefix: str | None = None,
) -> Handler:
    """All pages behind the middleware, arguments as for `serve`; WebError for a path it cannot take."""
    if not re.fullmatch(r"/[\w.~/-]*", telemetry_path, re.ASCII):
        raise WebError(f"--web.telemetry-path: expected a path like /metrics, got {telemetry_path!r}")
    outside = _path_of(external_url) if external_url else None
    prefix = outside or "" if route_prefix is None else _prefix(route_prefix)
    landing = _page(_landing_page(telemetry_path, outside))
    pages: dict[str, tuple[Sequence[str], Handler]] = {
        f"{prefix}/": (_READ, landing),
        f"{prefix}/-/healthy": (_READ, _page(text("modus-exporter is healthy.\n"))),
        f"{prefix}/-/ready": (_READ, _page(text("modus-exporter is ready.\n"))),
        f"{prefix}/-/reload": (_CHANGE, _reloading(reloads, enable_lifecycle)),
        f"{prefix}{telemetry_path}": (
            _READ,
            _metrics(Scrapes(scrape, places.room_for_an_answer)),
        ),  # last: / takes the landing page's place
    }
    if prefix:
        there = text("", 302, Location=f"{prefix if outside is None else outside}/")
        pages |= {path: (_READ, _page(there)) for path in ("/", prefix)}
    return Middleware(_routed(pages), web_config, _HEADERS)


def _path_of(external_url: str) -> str:
    """The path of the URL under which the world sees us, without the / at its end."""
    try:
        url = urlsplit(external_url)
        good = url.scheme in ("http", "https") and url.hostname and not (url.query or url.fragment)
    except ValueError:
        good = False
    if not good or not re.fullmatch(r"[\w.~/-]*", url.path, re.ASCII):
        example = "https://proxy.example/modus"
        raise WebError(f"--web.external-url: expected a URL like {example}, got {external_url!r}")
    return _stripped(url.path)


def _prefix(path: str) -> str:
    if not re.fullmatch(r"[\w.~/-]*", path, re.ASCII):
        raise WebError(f"--web.route-prefix: expected a path like /modus, got {path!r}")
    return _stripped(path)


def _stripped(path: str) -> str:
    return f"/{path.strip('/')}" if path.strip("/") else ""


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


def _landing_page(telemetry_path: str, outside: str | None) -> Response:
    """Links are relative, right behind any proxy, unless the path that the world sees is known."""
    base = "." if outside is None else outside
    links = [(f"{base}{telemetry_path}", "Metrics"), (f"{base}/-/healthy", "Healthy?")]
    links += [(f"{base}/-/ready", "Ready?"), (DOCS_URL, "Documentation: querying with PromQL")]
    items = "".join(f'<li><a href="{html.escape(url)}">{html.escape(text)}</a></li>\n' for url, text in links)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Modus exporter</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>Modus exporter</h1>\n"
        "<p>Metrics of Modus AI agents for Prometheus: every run is counted exactly once.</p>\n"
        f"<ul>\n{items}</ul>\n<p>Version {html.escape(__version__)}</p>\n</body>\n</html>\n"
    )
    return Response(page.encode(), headers={"Content-Type": "text/html; charset=utf-8"})


def serve(
    listen_addresses: Sequence[str],
    *,
    scrape: Scrape,
    reload: Callable[[], None],
    telemetry_path: str = "/metrics",
    web_config_file: str | None = None,
    enable_lifecycle: bool = False,
    systemd_socket: bool = False,
    external_url: str | None = None,
    route_prefix: str | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then return within five seconds; call it in the main thread.

    A scrape may be at work still, in a thread that only `os._exit` does not wait for.

    `scrape` gets the scraper's timeout in seconds, 300 at most, or None, and the format to answer in; it
    gives the exposition in pieces, and is called in several threads at once. The first piece is awaited in
    one thread, all others are taken in another. `reload` (SIGHUP, and POST /-/reload with
    `enable_lifecycle`) raises with a one-line message when it fails, and is called by one thread at a time.
    `systemd_socket` takes the sockets of the socket unit in place of the addresses. `external_url` is where
    the world sees us; its path is the prefix of all pages, unless `route_prefix` says otherwise.

    Raises WebError, one line, when it cannot start.
    """
    web_config = WebConfigFile(web_config_file)
    reloads, places = Reloads(reload), Places()
    handler = application(
        scrape=scrape,
        reloads=reloads,
        places=places,
        telemetry_path=telemetry_path,
        enable_lifecycle=enable_lifecycle,
        web_config=web_config,
        external_url=external_url,
        route_prefix=route_prefix,
    )
    passed = passed_by_systemd(os.environ, os.getpid()) if systemd_socket else None
    Server(handler, web_config, reloads, places).run(passed or listen_on(listen_addresses))
