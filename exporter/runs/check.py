"""`--config.check`: one request per agent, and a table of what came of it."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TextIO, TypeVar

from exporter.deadline import Deadline
from exporter.modus.discovery import Target, list_agents
from exporter.modus.errors import ApiError
from exporter.modus.model import TOTAL_COUNT, printable

if TYPE_CHECKING:  # handed in
    from exporter.metrics.collector import Settings
    from exporter.modus.client import ModusClient

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = 30.0  # seconds for all of it
MEND = {
    "unauthorized": "check the token: MODUS_API_KEY, modus.token or modus.token_file",
    "forbidden": "give the token the missing scope",
    "not_found": "check agents and modus.resource",
    "rate_limited": "the API limits this token: try again later",
    "server_error": "the API failed: try again later",
    "timeout": "the API did not answer in time: check the network, or raise modus.timeout",
    "deadline": "the API did not answer in time: check the network",
    "connection": "check modus.base_url, the network and the proxy",
    "bad_response": "this does not look like the Modus API: check modus.base_url",
    "internal": "a fault of the exporter: please report it",
}


def run(client: "ModusClient", settings: "Settings", out: TextIO) -> int:
    """Print a line per agent to `out`; returns 0 when all could be read, else 1."""
    deadline = Deadline(PATIENCE)
    try:
        targets = find_targets(client, settings, deadline)
    except ApiError as error:
        out.write(f"the agents cannot be listed: {error}; {MEND[error.reason]}\n")
        return 1

    def ask(target: Target) -> tuple[str, ...]:
        try:
            page = client.runs(target.id, deadline=deadline, page_size=1)
        except ApiError as error:
            missing = f" ({', '.join(error.missing)})" if error.missing else ""
            return str(target.id), target.name, "no", "", f"{error}: {MEND[error.reason]}{missing}"
        name = page.runs[0].agent_name if page.runs else target.name
        return str(target.id), name, "yes", str(page.counts.get(TOTAL_COUNT, len(page.runs))), ""

    rows = side_by_side(ask, targets, settings.concurrency)
    out.write(table(("agent", "name", "reachable", "runs seen", "what is wrong and how to mend it"), rows))
    bad = sum(row[2] == "no" for row in rows)
    out.write(f"{len(rows)} agents, {bad} cannot be read\n" if rows else "no agents: nothing to read\n")
    return 1 if bad or not rows else 0


def side_by_side(work: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """`work` of each item, in their order; who leaves early, as on a signal, waits for no request."""
    pool = ThreadPoolExecutor(threads)
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def find_targets(client: "ModusClient", settings: "Settings", deadline: Deadline) -> list[Target]:
    """The agents that a scrape would read, all pages of the list awaited. Raises ApiError."""
    found = []
    if settings.discovery:
        found = settings.discovery.choose(
            list_agents(lambda token: client.agents(deadline=deadline, page_token=token))
        )
    return settings.choose(found)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns under a heading, one line per row whatever the cells hold."""
    cells = ([name.upper() for name in head], *rows)
    lines = [[" ".join(printable(cell).split()) for cell in row] for row in cells]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    padded = (
        [cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)]
        for line in lines
    )
    return "".join("  ".join(line).rstrip() + "\n" for line in padded)


def _width(text: str) -> int:
    """Columns of a terminal: East Asian characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
