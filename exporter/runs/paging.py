"""Which pages of an agent's runs list to read so that no run is missed.

Pure: no HTTP and no SQL. It is given a way to ask for a page and yields every page it read, each
with the cursor that holds from then on, so that a walk may be cut at any page and go on later.

The list is ordered by start, newest first. It is served from an index that lags: a run may appear
up to a minute late, somewhere below the top, and pages may shift while they are walked, so that a
run is met twice. Hence a walk goes on until `MARGIN` seconds before the newest start that the last
one saw: what was missing then started later than that. Once the newest run has been known for that
long, nothing can be missing below it, and a walk ends right there. Only the API's times are
compared, and only with each other: the clock of this machine does not matter.
"""

import math
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from exporter.modus.errors import ApiError
from exporter.modus.model import OPEN_STATUSES, Cursor, Gap, Run, RunsPage

MARGIN = 120.0  # seconds; twice the longest delay of the index
MAX_GAPS = 8
MAX_FRUITLESS = 10  # pages; shifting pages repeat a few, a list that never ends repeats all
PAGE_SIZES = (5, 10, 25, 50)  # below the configured one

Ask = Callable[[str | None, int], RunsPage]  # page token, page size -> page; raises ApiError


def read_newest(
    cursor: Cursor, ask: Ask, *, size: int, full_size: int, lookback: float
) -> tuple[RunsPage, Cursor]:
    """Read the first page, asking for `size` runs, or `full_size` when those do not suffice.

    Where the page does not reach what is known, the cursor gets a gap for `catch_up`. At the first
    sight of an agent what started in the last `lookback` seconds is to be read. Raises ApiError.
    """
    page = ask(None, size)
    floor = page.now - lookback if cursor.floor is None else max(cursor.floor, page.now - lookback)
    if size < full_size and _goes_on(page, floor):
        size, page = full_size, ask(None, full_size)
    gaps = cursor.gaps
    if _goes_on(page, floor):
        gaps = (Gap(floor, size, page.next_page_token, pages=1), *gaps)
        if len(gaps) > MAX_GAPS:
            gaps = (*gaps[:-2], _merged(*gaps[-2:]))
    # a start in the future would hide later ones
    newest = max((min(start, page.now) for start in _starts(page)), default=cursor.newest)
    if newest is None:
        return page, replace(cursor, gaps=gaps)
    if cursor.newest is None or newest > cursor.newest:
        known, first_seen = newest - MARGIN, page.now
    else:
        newest, first_seen = cursor.newest, cursor.first_seen
        settled = page.now - first_seen >= MARGIN
        known = math.nextafter(newest, math.inf) if settled else newest - MARGIN
    # the lookback is not kept in it: a clock that was wrong once must not hide runs for good
    return page, Cursor(newest, first_seen, known if cursor.floor is None else max(cursor.floor, known), gaps)


def catch_up(cursor: Cursor, ask: Ask, *, max_pages: int) -> Iterator[tuple[RunsPage, Cursor]]:
    """Read what the gaps name, at most `max_pages` pages; yield each with the cursor after it.

    A token from an earlier walk that the API refuses is replaced by a walk from the top. Raises
    ApiError: that of a request, or `bad_response` when a token repeats or pages bring nothing new.
    """
    met: set[str] = set()
    tokens: set[str | None] = set()
    while cursor.gaps and max_pages > 0:
        gap, *later = cursor.gaps
        try:
            page = ask(gap.token, gap.size)
        except ApiError as error:
            if error.reason != "bad_response" or gap.token is None or gap.token in tokens:
                raise
            max_pages += gap.pages
            cursor = replace(cursor, gaps=(Gap(gap.floor, gap.size, since=gap.since), *later))
            continue
        max_pages -= 1
        if page.next_page_token in tokens:
            raise ApiError("bad_response", "the page token repeats: the list of runs never ends")
        ids = {run.id for run in page.runs}
        fruitless = gap.fruitless + 1 if ids <= met else 0
        if _goes_on(page, gap.floor):
            met |= ids
            tokens.add(page.next_page_token)
            further = Gap(gap.floor, gap.size, page.next_page_token, gap.pages + 1, fruitless, gap.since)
            later.insert(0, further)
        else:
            met, tokens = set(), set()
        cursor = replace(cursor, gaps=tuple(later))
        yield page, cursor
        if fruitless >= MAX_FRUITLESS:
            raise ApiError(
                "bad_response", f"{fruitless} pages in a row brought no new run: the list never ends"
            )


def list_open(ask: Callable[[str, str | None], RunsPage], *, max_pages: int) -> dict[str, Run]:
    """Read the filtered lists of the runs that are running or wait for a human, by id.

    `ask` takes status and page token; of each list at most `max_pages` pages are read. A run that is
    not listed may still be open: one that leaves a list while it is read can hide another behind a
    page border. Raises ApiError.
    """
    found: dict[str, Run] = {}
    for status in OPEN_STATUSES:
        token = None
        for _ in range(max_pages):
            page = ask(status, token)
            found |= {run.id: run for run in page.runs if not run.ended}
            token = page.next_page_token
            if token is None:
                break
    return found


def next_page_size(page: RunsPage, before: Cursor, after: Cursor, full_size: int) -> int:
    """The smallest page that should reach what is known at the next scrape, if as much happens again."""
    if before.newest is None or after.floor is None:
        return full_size
    starts = _starts(page)
    unsettled = sum(start >= after.floor for start in starts)
    new = sum(start > before.newest for start in starts)
    needed = unsettled + new + 3
    return next((size for size in PAGE_SIZES if needed <= size < full_size), full_size)


def _merged(newer: Gap, older: Gap) -> Gap:
    """One walk that covers both, for when more comes than is read."""
    floor = min(newer.floor, older.floor)
    since = older.since if newer.since is None else newer.since
    if older.token is None:
        return Gap(floor, older.size, since=since)
    return Gap(floor, newer.size, newer.token, newer.pages, since=since)


def _goes_on(page: RunsPage, floor: float) -> bool:
    oldest = next((start for run in reversed(page.runs) if (start := run.start) is not None), floor)
    return page.next_page_token is not None and oldest >= floor


def _starts(page: RunsPage) -> list[float]:
    return [start for run in page.runs if (start := run.start) is not None]
