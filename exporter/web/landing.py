"""The landing page: what the exporter sees, for people, without a script."""

import base64
import hashlib
import html
from collections.abc import Iterator
from datetime import UTC, datetime

from exporter import __version__
from exporter.metrics.status import Pass, Status
from exporter.modus.contact import age
from exporter.modus.discovery import Target
from exporter.modus.model import label
from exporter.web.site import HEALTHY, READY, Site

PROJECT = "https://github.com/modus-exporter/modus-exporter"
ROWS = 200  # agents at most; those that cannot be read come first

_STYLE = """
:root{color-scheme:light dark;--line:#8885;--bad:#c62828;--good:#2e7d32}
@media(prefers-color-scheme:dark){:root{--bad:#ff8a80;--good:#81c784}}
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem}
h1{margin:0}
nav{margin:1rem 0;display:flex;flex-wrap:wrap;gap:.4rem 1.4rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line)}
td{overflow-wrap:anywhere}
th{font-weight:600;white-space:nowrap}
.facts th{width:9rem}
.n{font-variant-numeric:tabular-nums;white-space:nowrap}
.bad{color:var(--bad)}
.good{color:var(--good)}
footer{margin:1rem 0;opacity:.7}
"""
STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


def page(status: Status, site: Site) -> bytes:
    """The page as of `status`, in UTF-8."""
    when = datetime.fromtimestamp(status.now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Modus exporter</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        "<h1>Modus exporter</h1>\n"
        "<div>Metrics of Modus AI agents for Prometheus: every run is counted exactly once.</div>\n"
        f"<nav>{''.join(_links(site))}</nav>\n"
        f'<table class="facts">\n{"".join(_facts(status))}</table>\n'
        f"{''.join(_agents(status, status.newest)) if status.newest else ''}"
        f"<footer>Version {_text(__version__)}. As of {when}; load the page again for newer.</footer>\n"
        "</body>\n</html>\n"
    ).encode("utf-8", "replace")


def _links(site: Site) -> Iterator[str]:
    for url, name in (
        (site.link(site.telemetry_path), "Metrics"),
        (site.link(HEALTHY), "Health"),
        (site.link(READY), "Ready"),
        (f"{PROJECT}/blob/v{__version__}/README.md", "README"),
        (f"{PROJECT}/tree/v{__version__}/grafana", "Dashboards"),
    ):
        yield f'<a href="{_text(url)}">{name}</a>\n'


def _facts(status: Status) -> Iterator[str]:
    contact, newest, now = status.contact, status.newest, status.now
    good = False if contact.problem else contact.answered is not None or None
    yield _fact("API", f"{status.api}: {contact.said(now)}", good)
    if newest is None:
        yield _fact("Last scrape", "none yet: Prometheus makes one, and so does a look at the metrics", None)
    else:
        took = f"{newest.duration:.2g} s" if newest.duration < 10 else f"{newest.duration:.0f} s"
        yield _fact("Last scrape", f"{age(now - newest.ended)} ago, took {took}", None)
        yield _fact("Agents", *_in_short(newest))
    if status.state_path is None:
        yield _fact("State", "in memory: counting begins anew at each start", None)
    elif status.state_up:
        yield _fact("State", f"{status.state_path}: written", True)
    else:
        yield _fact("State", f"{status.state_path}: cannot be written, counting goes on in memory", False)
    loaded = f"loaded {age(now - status.reloaded)} ago"
    failed = f"{loaded}; a newer one could not be used: see the log"
    yield _fact("Configuration", loaded if status.reload_successful else failed, status.reload_successful)


def _in_short(newest: Pass) -> tuple[str, bool]:
    number, unread = len(newest.targets), len(newest.errors)
    if newest.unlisted:
        return f"{number}; they cannot be listed: {newest.unlisted}", False
    if not number:
        return "none: see agents and discovery in the configuration", False
    return (
        f"{number}, {unread} of them could not be read" if unread else f"{number}, all read",
        not unread,
    )


def _agents(status: Status, newest: Pass) -> Iterator[str]:
    targets = sorted(newest.targets, key=lambda target: (target.id not in newest.errors, target.id))
    if not targets:
        return
    yield "<h2>Agents</h2>\n<table>\n"
    yield "<thead><tr><th>Id</th><th>Name</th><th>Last read</th><th>State</th></tr></thead>\n<tbody>\n"
    yield from (_agent(target, status, newest) for target in targets[:ROWS])
    yield "</tbody>\n</table>\n"
    if len(targets) > ROWS:
        yield f"<p>{len(targets) - ROWS} more are not shown here; the metrics have them all.</p>\n"


def _agent(target: Target, status: Status, newest: Pass) -> str:
    known, error = status.known.get(target.id), newest.errors.get(target.id)
    name = label((known.name if known else "") or target.name)
    read = f"{age(status.now - known.last_read)} ago" if known and known.last_read else "never"
    cells = f'<td class="n">{target.id}</td><td>{_text(name)}</td><td class="n">{read}</td>'
    state = f'<td class="bad">{_text(f"{error.reason}: {error.line}")}</td>' if error else "<td>read</td>"
    return f"<tr>{cells}{state}</tr>\n"


def _fact(name: str, said: str, good: bool | None) -> str:
    """A row; `good` None is neither good nor bad."""
    kind = {True: ' class="good"', False: ' class="bad"', None: ""}[good]
    return f"<tr><th>{name}</th><td{kind}>{_text(said)}</td></tr>\n"


def _text(text: str) -> str:
    return html.escape(text)
