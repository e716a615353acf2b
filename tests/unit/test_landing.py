"""The landing page: what the exporter sees, and where the links lead."""

import html
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import urljoin

import pytest

from exporter import __version__
from exporter.histogram import Histogram
from exporter.metrics.status import Pass, Status
from exporter.modus.contact import Contact
from exporter.modus.discovery import Target
from exporter.modus.errors import ApiError
from exporter.runs.state import AgentState, Totals
from exporter.web import landing
from exporter.web.site import Site
from tests.webserver import STATUS, running

ROOT = Path(__file__).parents[2]
NOW = STATUS.now
REFUSED = ApiError("unauthorized", "GET /: 401 Invalid.", status=401)
ODD = "<script>alert(1)</script> & \"Zürich\" '東京'"


def known(name: str, ago: float) -> AgentState:
    totals = Totals(NOW, Histogram([0], NOW))
    return AgentState(totals, 0.0, 0.0, name=name, last_read=NOW - ago)


def newest(*targets: Target, unlisted: str = "", **errors: ApiError) -> Pass:
    by_id = {int(key.removeprefix("of_")): error for key, error in errors.items()}
    return Pass(NOW - 12, 0.84, targets, by_id, unlisted)


def facts(status: Status) -> dict[str, str]:
    """The rows above the agents, as people read them; what is marked as bad begins with !."""
    text = landing.page(status, Site()).decode()
    rows = re.findall(r'<tr><th>([\w ]+)</th><td( class="bad"| class="good")?>(.*?)</td></tr>', text)
    return {name: ("! " if "bad" in kind else "") + html.unescape(said) for name, kind, said in rows}


def agents(status: Status) -> list[list[str]]:
    """The cells of the table of agents."""
    text = landing.page(status, Site()).decode().partition("<h2>Agents</h2>")[2]
    rows = re.findall("<tr>(<td.*?)</tr>", text)
    return [[html.unescape(cell) for cell in re.findall("<td[^>]*>(.*?)</td>", row)] for row in rows]


def test_before_the_first_scrape_it_says_so_and_shows_no_agents() -> None:
    assert facts(STATUS) == {
        "API": "https://api.example: The API has not been asked yet.",
        "Last scrape": "none yet: Prometheus makes one, and so does a look at the metrics",
        "State": "/var/lib/state.db: written",
        "Configuration": "loaded 0 s ago",
    }
    assert agents(STATUS) == []


def test_agents_are_shown_with_their_names_and_those_that_cannot_be_read_come_first_with_the_reason() -> None:
    status = replace(
        STATUS,
        contact=Contact(NOW - 3),
        newest=newest(Target(1, "as listed"), Target(2), Target(30), of_30=REFUSED),
        known={1: known("as in its runs", 12), 2: known(ODD, 7200)},
    )
    assert agents(status) == [
        ["30", "", "never", "unauthorized: " + REFUSED.line],
        ["1", "as in its runs", "12 s ago", "read"],
        ["2", ODD, "2 h ago", "read"],
    ]
    assert facts(status)["API"] == "https://api.example: The API answered 3 s ago."
    assert facts(status)["Last scrape"] == "12 s ago, took 0.84 s"
    assert facts(status)["Agents"] == "! 3, 1 of them could not be read"
    assert facts(replace(status, newest=newest(Target(1))))["Agents"] == "1, all read"


def test_of_agents_without_end_the_first_ones_are_shown() -> None:
    many = newest(*(Target(n) for n in range(1, landing.ROWS + 51)), of_240=REFUSED)
    shown = agents(replace(STATUS, newest=many))
    assert (len(shown), shown[0][0]) == (landing.ROWS, "240")
    assert b"<p>50 more are not shown here" in landing.page(replace(STATUS, newest=many), Site())


@pytest.mark.parametrize(
    ("change", "row", "says"),
    [
        ({"contact": Contact(None, "no")}, "API", "! https://api.example: The API has not answered yet: no."),
        ({"newest": newest()}, "Agents", "! none: see agents and discovery in the configuration"),
        ({"newest": newest(unlisted="403: no")}, "Agents", "! 0; they cannot be listed: 403: no"),
        ({"state_path": None}, "State", "in memory: counting begins anew at each start"),
        (
            {"state_up": False},
            "State",
            "! /var/lib/state.db: cannot be written, counting goes on in memory",
        ),
        (
            {"reload_successful": False, "reloaded": NOW - 86_400},
            "Configuration",
            "! loaded 24 h ago; a newer one could not be used: see the log",
        ),
    ],
)
def test_what_is_wrong_is_said_and_marked(change: dict[str, object], row: str, says: str) -> None:
    assert facts(replace(STATUS, **change))[row] == says  # type: ignore[arg-type]


def test_whatever_a_name_holds_it_is_text() -> None:
    status = replace(STATUS, newest=newest(Target(1, ODD + "\ud800")), api="https://<b>")
    text = landing.page(status, Site()).decode()
    assert "<script" not in text
    assert "<b>" not in text


def test_the_links_lead_to_the_pages_and_to_what_belongs_to_this_version() -> None:
    with running(path="/some/metrics") as site:
        answer = site.get("/")
        links = re.findall('href="([^"]*)"', answer.data.decode())
        ours = [link for link in links if ":" not in link]
        assert [site.get(urljoin("/", link)).status for link in ours] == [200, 200, 200]
    assert ours == ["./some/metrics", "./-/healthy", "./-/ready"]  # relative: right behind any proxy
    for link, kind, path in (*zip(links[3:], ("blob", "tree"), ("README.md", "grafana"), strict=True),):
        assert link == f"{landing.PROJECT}/{kind}/v{__version__}/{path}"
        assert (ROOT / path).exists()
    assert f"Version {__version__}." in answer.data.decode()


def test_it_loads_nothing_and_its_own_style_alone_is_allowed() -> None:
    with running() as site:
        answer = site.get("/")
    assert not re.search(rb"<(script|img|link)|src=|url\(|style=", answer.data)
    assert f"style-src 'sha256-{landing.STYLE_HASH}'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_a_page_that_cannot_be_written_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    with running(status=None) as site:
        assert site.get("/").status == 500
    assert [record.message for record in caplog.records] == ["request failed"]
