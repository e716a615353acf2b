"""What `--config.check` and `--audit` share: agents asked side by side, and a table of what came of it."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from exporter.deadline import Deadline
from exporter.modus.discovery import Selection, Target, list_agents
from exporter.modus.model import AgentsPage, printable
from exporter.modus.pages import PageSize

if TYPE_CHECKING:  # handed in
    from exporter.modus.client import ModusClient

T = TypeVar("T")
R = TypeVar("R")


def find_targets(client: "ModusClient", selection: Selection, deadline: Deadline) -> list[Target]:
    """The agents that a scrape would read, all pages of the list awaited. Raises ApiError."""
    if not selection.discovers:
        return selection.choose([])

    def ask(token: str | None, size: int) -> AgentsPage:
        return client.agents(deadline=deadline, page_token=token, page_size=size)

    return selection.choose(list_agents(partial(PageSize().ask, ask)))


def side_by_side(work: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """`work` of each item, in their order; who leaves early, as on a signal, waits for no request."""
    pool = ThreadPoolExecutor(threads)
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
