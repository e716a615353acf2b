"""The landing page in a real browser, and behind a real proxy with a prefix."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exporter.demo.simulator import SimulatedModus
from tests.e2e.browser import Browser, browser
from tests.e2e.harness import config, exporter, get
from tests.simulation import ILL, WELL

pytestmark = pytest.mark.servers
PREFIX = "/modus"


@contextmanager
def proxy(upstream: str, *, strips: bool) -> Iterator[str]:
    """The URL of a reverse proxy that has the exporter below PREFIX, and takes that off, or not."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            inside = self.path.startswith(f"{PREFIX}/")
            path = self.path.removeprefix(PREFIX) if strips else self.path
            body = get(upstream + path).encode() if inside else b"outside of the prefix"
            self.send_response(200 if inside else 404)
            kind = "text/html" if path.endswith("/") else "text/plain"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def follow_all(page: Browser, home: str) -> None:
    """Each link to a page of ours leads there."""
    for name, shows in (
        ("Metrics", "modus_exporter_build_info{"),
        ("Health", "modus-exporter is healthy."),
        ("Ready", "modus-exporter is ready.\nThe API answered "),
    ):
        page.open(home)
        assert shows in page.click(name)
        assert page.evaluate("location.href").startswith(home)


def test_the_page_shows_what_is_seen_fits_a_phone_and_is_refused_nothing(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    modus.fault = lambda request: modus.error(403) if request.agent_id == ILL else None
    modus.rename(WELL, "Invoices <b>& more</b>")
    modus.start_run(WELL, lasts=0.0)
    file = config(tmp_path, modus.url, ILL, WELL)
    with browser(tmp_path) as page, exporter(tmp_path, "--config.file", str(file)) as running:
        page.open(f"{running.url}/")
        assert "none yet" in page.evaluate("document.body.innerText")
        running.scrape()
        for width in (1366, 390):
            page.open(f"{running.url}/", width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        rows = page.evaluate("[...document.querySelectorAll('tbody tr')].map(row => row.innerText)")
        ill, well = (row for row in rows if row.startswith((f"{ILL}\t", f"{WELL}\t")))
        assert "forbidden: GET " in ill
        assert "give the token the missing scope" in ill
        assert "Invoices <b>& more</b>" in well
        assert "2, 1 of them could not be read" in page.evaluate("document.body.innerText")
        bad = "getComputedStyle(document.querySelector('td.bad')).color"
        assert page.evaluate(bad) != page.evaluate(
            "getComputedStyle(document.body).color"
        )  # its style is in force
        follow_all(page, f"{running.url}/")
        assert page.console == []


@pytest.mark.parametrize(
    ("strips", "flags"),
    [
        (True, []),
        (True, ["--web.external-url={outside}", "--web.route-prefix=/"]),
        (False, ["--web.external-url={outside}"]),
        (False, [f"--web.route-prefix={PREFIX}"]),
    ],
    ids=["a proxy that nobody told us of", "told of", "one that keeps the prefix", "a prefix alone"],
)
def test_links_stay_behind_a_prefix(
    modus: SimulatedModus, tmp_path: Path, strips: bool, flags: list[str]
) -> None:
    file = config(tmp_path, modus.url, WELL)
    flags = [flag.format(outside=f"https://proxy.example{PREFIX}") for flag in flags]
    with (
        browser(tmp_path) as page,
        exporter(tmp_path, "--config.file", str(file), *flags) as running,
        proxy(running.url, strips=strips) as outside,
    ):
        follow_all(page, f"{outside}{PREFIX}/")
