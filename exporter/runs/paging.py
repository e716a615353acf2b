"""Which pages of an agent's runs list to read so that no run is missed.

Pure: no HTTP and no SQL. It is given a way to ask for a page and yields every page it read, each
with the watermark that holds from then on, so that a walk may be cut at any page and go on later.

The list is said to be ordered by start, newest first; that is checked on every page, and where it does
not hold a walk goes by the ends. The list is served from an index that lags: a run may appear up to
two minutes late, somewhere below the top, and pages may shift while they are walked, so that a run is
met twice. Hence a walk goes on until `MARGIN` seconds before the newest start that the last one saw: what
was missing then started later than that. Once the newest run has been known for that long, a walk ends
right there. Only the API's times are compared, and only with each other. What comes later still, the
counts and the reconciling of `reader` find.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from exporter.modus.errors import ApiError
from exporter.modus.model import OPEN_STATUSES, Run, RunsPage
from exporter.modus.pages import pages
from exporter.runs.state import Backlog, SeenClock, Watermark

MARGIN = 120.0  # seconds; twice the usual delay of the index
TAIL = 3  # runs in a row that must lie below the floor: one with an odd start ends no walk
MAX_BACKLOGS = 8
REPEATS = 10  # times `max_pages` that each walk may cost when tokens shift or expire and pages repeat
PAGE_SIZES = (5, 10, 25, 50)  # below the configured one
NOT_THE_TOKEN = (
    "deadline",
    "timeout",
    "connection",
    "rate_limited",
)  # errors that do not refuse a page token

NO_CLOCK = SeenClock()

Ask = Callable[[str | None, int], RunsPage]  # page token, page size -> page; raises ApiError


def read_newest(
    mark: Watermark,
    ask: Ask,
    *,
    size: int,
    full_size: int,
    lookback: float,
    is_unread: Callable[[str], bool] = lambda _: True,
    clock: SeenClock = NO_CLOCK,
) -> tuple[RunsPage, Watermark]:
    """Read the first page, asking for `size` runs, or `full_size` when those do not suffice.

    Where the page does not reach what is known, the watermark gets a backlog for `catch_up`. At the
    first sight of an agent what started in the last `lookback` seconds is to be read, and while it has
    shown no run also what started since it was read. `is_unread` tells
    whether a malformed item was not met before: one that was hides nothing below it. `clock` is the
    API's as it was seen before. Raises ApiError.
    """

    def suffices(page: RunsPage, floor: float, by_start: bool | None) -> bool:
        if by_start is False:  # an open one stays on top of what ends later
            return reaches(page, floor, by_start)
        known = len([key for key in page.malformed if not is_unread(key)])
        # nothing but open runs tells no order; were it that of ends, the counts or the comparison would tell
        return reaches(page, floor, by_start or mark.floor is not None, known=known)

    by_start = mark.by_start
    for asked in (size, full_size) if size < full_size else (size,):
        page = ask(None, asked)
        mark = _by_clock_of(page, mark, clock)  # at the second answer a step may be believed
        floor = _first_floor(page, lookback, clock) if mark.floor is None else mark.floor
        # where the starts descend and something is known, only a walk has to know more; it finds out itself
        if by_start is False or mark.floor is None or not _descends(page.starts):
            by_start = order(page, by_start)
        if suffices(page, floor, by_start):
            backlogs = mark.backlogs
            break
    else:
        read = Backlog(floor, asked, page.next_page_token, pages=1, below=below(page, floor, by_start))
        backlogs = _few((read, *mark.backlogs))
    # a start in the future would hide later ones
    newest = min(max(page.starts), page.now) if page.starts else mark.newest
    if newest is None:
        return page, replace(mark, by_start=by_start, backlogs=backlogs)
    if mark.newest is None or newest > mark.newest:
        known, first_seen = newest - MARGIN, page.now
    else:
        newest, first_seen = mark.newest, min(mark.first_seen, page.now)
        settled = page.now - first_seen >= MARGIN
        known = math.nextafter(newest, math.inf) if settled else newest - MARGIN
    known = known if mark.floor is None else max(mark.floor, known)
    return page, Watermark(newest, first_seen, known, by_start, backlogs)


def catch_up(
    mark: Watermark, ask: Ask, *, max_pages: int, is_known: Callable[[Run], bool]
) -> Iterator[tuple[RunsPage, Watermark]]:
    """Read what the backlogs name, newest and oldest in turn; yield each page with the watermark after it.

    At most `max_pages` pages are read that bring a run that is not known. A search for open runs gets what
    the others leave of them, at least one: neither puts off the other for good. Pages that only repeat what
    is known, since a page token shifted or was refused, must not use up what progress needs: besides what
    was read before, `REPEATS` times as many. Raises ApiError: that of a request, or `bad_response` for a
    list that never ends.
    """
    walks, turn = [_Walk(backlog, ask) for backlog in mark.backlogs], 0
    for searching in (False, True):
        max_pages = max(max_pages, 1)
        most = sum(max_pages * REPEATS + each.backlog.pages for each in walks if each.is_search is searching)
        while max_pages > 0 and most > 0:
            at_work = [each for each in walks if each.is_search is searching]
            if not at_work:
                break
            walk = at_work[-(turn % 2)]
            turn += 1
            page = walk.read()
            if walk.restarted and not searching:
                walks = walk.join(walks)
            most -= 1
            walk.useful = not all(map(is_known, page.runs))
            max_pages -= walk.useful or (searching and not walk.repeats)
            by_start = order(page, mark.by_start)
            if reaches(page, walk.backlog.floor, by_start, before=walk.backlog.below):
                walks = walk.end(walks)
            else:
                walk.advance(page, by_start)
            mark = replace(mark, by_start=by_start, backlogs=tuple(each.backlog for each in walks))
            yield page, mark


class _Walk:
    """One backlog that is being read."""

    def __init__(self, backlog: Backlog, ask: Ask) -> None:
        self.backlog = backlog
        self.useful = backlog.token is not None  # whether the newest page brought something
        self.repeats = 0  # pages that an earlier walk had read before its token was refused
        self.restarted = False  # its newest page is the first one of the list, since its token was refused
        self.is_search = backlog.is_search
        self._ask = ask
        self._pages = self._from(backlog.token)

    def _from(self, token: str | None) -> Iterator[RunsPage]:
        ask, size = self._ask, self.backlog.size  # not `self`: a circle would keep all pages for long
        return pages(lambda token: ask(token, size), token)

    def read(self) -> RunsPage:
        """The next page; from the top again when the API refuses the token, while that brings progress."""
        self.restarted = False
        try:
            return next(self._pages)
        except ApiError as error:
            if error.reason in NOT_THE_TOKEN or not self.useful:
                raise
        self.repeats, self.restarted = self.backlog.pages, True
        self.backlog = replace(self.backlog, token=None, pages=0, below=0)
        self._pages = self._from(None)
        return next(self._pages)

    def join(self, walks: list["_Walk"]) -> list["_Walk"]:
        """The walks without those whose stretches this one, from the top again, comes past anyway."""
        stretches = [each for each in walks if not each.is_search]
        self.backlog = replace(self.backlog, floor=min(each.backlog.floor for each in stretches))
        return [self, *(each for each in walks if each not in stretches)]

    def end(self, walks: list["_Walk"]) -> list["_Walk"]:
        """The walks that are left when this one has come to its floor.

        What lies behind it, down to the same floor, was read with it; a search may be newer.
        """
        at, floor = walks.index(self), self.backlog.floor
        return walks[:at] + [each for each in walks[at + 1 :] if each.backlog.floor < floor or each.is_search]

    def advance(self, page: RunsPage, by_start: bool | None) -> None:
        read = self.backlog
        row = below(page, read.floor, by_start, read.below)
        self.backlog = replace(read, token=page.next_page_token, pages=read.pages + 1, below=row)
        self.repeats = max(self.repeats - 1, 0)


def _first_floor(page: RunsPage, lookback: float, clock: SeenClock) -> float:
    """From when on runs are to be read of an agent that has shown none so far."""
    floor = page.now - lookback
    return floor if clock.skew is None else min(floor, clock.oldest(page.now, page.skew) - MARGIN)


def _by_clock_of(page: RunsPage, mark: Watermark, clock: SeenClock) -> Watermark:
    """The watermark as it holds after a step back of the API's clock: new runs start below older ones."""
    since = clock.unread_since(page.now, page.skew)
    if mark.searching:
        earlier = (replace(each, since=each.since and min(each.since, since)) for each in mark.backlogs)
        mark = replace(mark, backlogs=tuple(earlier))
    if mark.newest is None or mark.floor is None or mark.newest <= since:
        return mark
    floor = min(mark.floor, since - MARGIN)
    return replace(mark, newest=since, first_seen=page.now, floor=floor)


def next_page_size(page: RunsPage, before: Watermark, after: Watermark, full_size: int) -> int:
    """The smallest page that should reach what is known at the next scrape, if as much happens again."""
    if before.newest is None or after.floor is None:
        return full_size
    unsettled = [key for key in _keys(page, after.by_start is not False) if key >= after.floor]
    new = [start for start in page.starts if start > before.newest]
    needed = len(unsettled) + len(new) + TAIL
    return next((size for size in PAGE_SIZES if needed <= size < full_size), full_size)


def order(page: RunsPage, by_start: bool | None) -> bool | None:
    """Whether the list is ordered by start; None: unknown. `by_start` is what was known before.

    A page may well keep to the order of starts and to that of ends at once, or, with an odd item, to
    neither: then it tells nothing. Nor does one of which a few odd ends may be all that is out of order: who
    takes the order of ends for that of starts misses runs, the other way round it costs some requests.
    """
    keys = _keys(page, False)
    starts, ends = _descends(page.starts), _descends(keys)
    if starts == ends or (starts and _out_of_order(keys) < TAIL):
        return by_start
    return starts


def _descends(keys: list[float]) -> bool:
    return keys == sorted(keys, reverse=True)


def _out_of_order(keys: list[float]) -> int:
    """How many of the keys have to go for the others to descend."""
    lowest: list[float] = []  # of the rows of each length that descend, the last key at best; negated
    for key in keys:
        at = bisect_right(lowest, -key)
        lowest[at : at + 1] = [-key]
    return len(keys) - len(lowest)


def reaches(page: RunsPage, floor: float, by_start: bool | None, *, known: int = 0, before: int = 0) -> bool:
    """Whether all beyond this page is from before `floor`: by start, or by end where that is no order.

    Items without times tell nothing, but for the `known` ones. At the end of the pages `before` this one so
    many runs in a row are from before the floor.
    """
    if page.next_page_token is None:
        return True
    items = max(len(page.runs) + len(page.malformed), TAIL)
    return below(page, floor, by_start, before) >= min(TAIL, items - known)


def below(page: RunsPage, floor: float, by_start: bool | None, before: int = 0) -> int:
    """How many runs in a row are from before `floor` at the end of the page; `before` of those before it."""
    tail = _keys(page, by_start)[-TAIL:]
    above = [n for n, key in enumerate(reversed(tail)) if key >= floor]
    return above[0] if above else min(before + len(tail), TAIL)


def _keys(page: RunsPage, by_start: bool | None) -> list[float]:
    """What the list descends by: the starts, or the ends; that of an open run is still to come.

    A run that names no end, in a status that nobody documented, has no known place.
    """
    if by_start:
        return page.starts
    ends = [
        math.inf if run.status in OPEN_STATUSES else run.end or (run.start if run.ended else None)
        for run in page.runs
    ]
    return [end for end in ends if end is not None]


def _few(backlogs: tuple[Backlog, ...]) -> tuple[Backlog, ...]:
    """At most MAX_BACKLOGS of them: the two neighbours of which least is read again become one walk.

    A search for open runs, of which there is one at most, has no neighbours: it began at the top.
    """
    search = tuple(each for each in backlogs if each.is_search)
    stretches = tuple(each for each in backlogs if not each.is_search)
    if len(backlogs) <= MAX_BACKLOGS:
        return backlogs
    n = min(range(1, len(stretches)), key=lambda n: stretches[n].pages)
    newer, older = stretches[n - 1 : n + 1]
    joined = replace(newer, floor=min(newer.floor, older.floor), below=0)
    return (*stretches[: n - 1], joined, *stretches[n + 1 :], *search)
