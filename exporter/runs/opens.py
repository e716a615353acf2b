"""Following open runs without reading the whole list.

The API counts the runs that are running or wait for a human. While its counts differ from the ledger's by
the same numbers as at the last check, no open run has ended out of sight. When they change, the lists of
open runs tell which one is gone, and the single-run route (or, without it, a walk down to its start) how it
ended.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from exporter.modus.errors import ApiError
from exporter.modus.model import OPEN_STATUSES, Run, RunDetails
from exporter.runs import paging
from exporter.runs.state import Backlog, OpenRun, Watermark

if TYPE_CHECKING:  # `reader` calls this module
    from exporter.runs.reader import AgentApi, Known, Limits, Reading

CHECK_INTERVAL = 600.0  # seconds after which what did not change, or did not work, is looked at again
MAX_SINGLE_RUNS = 5  # runs asked for one by one; for more of them a walk costs less
SINGLE_RUN_SHARE = 4  # a run asked for by itself gets this part of the time that is left

Counts = tuple[int, ...]  # by OPEN_STATUSES


@dataclass(frozen=True, slots=True)
class Listing:
    """The lists of open runs while they are read, over as many scrapes as it takes."""

    lists: tuple[tuple[str, Backlog], ...]  # status and what is still to be read of its list
    unmet: frozenset[str]  # ids of open runs that no page has shown since the beginning

    @classmethod
    def of(cls, opens: Iterable[str], size: int) -> "Listing":
        """All lists, from their newest run on, in pages of `size`."""
        lists = tuple((status, Backlog(-math.inf, size)) for status in OPEN_STATUSES)
        return cls(lists, frozenset(opens))


class OpensMemory(msgspec.Struct, frozen=True, gc=False):
    """What the last check leaves for the next."""

    explained: Counts | None = (0,) * len(
        OPEN_STATUSES
    )  # the difference that was looked into; None: not settled
    since: float = 0.0  # when it arose, by the API's clock
    checked: float | None = None  # monotonic seconds of the newest listing that came to its end
    listing: Listing | None = None
    sought: frozenset[str] = frozenset()  # ids of which a walk down to their starts has told nothing so far


class SingleRunRoute:
    """Whether the API has the route for one run: what fails before it ever worked closes it for a while."""

    def __init__(self) -> None:
        self.worked = False
        self.closed_until = 0.0  # monotonic seconds


def check(
    api: "AgentApi",
    known: "Known",
    reading: "Reading",
    counts: Mapping[str, int],
    route: SingleRunRoute,
    limits: "Limits",
) -> None:
    """Read the open lists when there may be an open run that is unknown, or one that has ended.

    An error of these lists alone is the reading's, which goes on: the list of all serves. Raises ApiError.
    """
    memory, now = reading.memory.opens, api.deadline.monotonic()
    if reading.watermark.searching and memory.listing is None:
        return
    difference = _difference(counts, known, reading)
    listing = memory.listing
    if listing is None:
        if memory.checked is None:
            memory = replace(memory, checked=now)
        if _is_settled(difference, known, reading, memory, now):
            if memory.explained != difference:
                memory = replace(memory, explained=difference)
            reading.memory.opens = memory
            return
        listing = Listing.of(known.open, limits.page_size)
    before = memory.explained
    reading.memory.opens = replace(memory, explained=None, listing=listing)
    try:
        unmet = _read_lists(api, known, reading, listing, limits.max_pages)
    except ApiError as error:
        if error.reason in paging.NOT_THE_TOKEN:  # it is not these lists'
            raise
        reading.error = error
        _look_elsewhere(api, known, reading, route, limits)
        return
    if unmet is None:
        return
    reading.opens_listed = True
    if reading.watermark.searching:  # of what these lists did not tell before
        reading.memory.opens = replace(reading.memory.opens, listing=None)
        return
    gone = {id_: run for id_, run in known.open.items() if id_ in unmet}
    sought = _settle(api, reading, gone, route, limits, known)
    memory = OpensMemory(None, memory.since, now, sought=sought)
    if not reading.watermark.searching:
        explained = _difference(counts, known, reading)
        since = memory.since if explained == before else reading.now
        memory = replace(memory, explained=explained, since=since)
    reading.memory.opens = memory


def _is_settled(
    difference: Counts, known: "Known", reading: "Reading", memory: OpensMemory, now: float
) -> bool:
    """Whether there is nothing to look into."""
    if not known.opens_listed:
        return False
    if now - (memory.checked or now) >= CHECK_INTERVAL:
        shown = {run.id for run in reading.met}
        if any(difference) or not known.open.keys() <= shown:
            return False
    if any(difference) and 0 <= reading.now - memory.since < paging.MARGIN:
        return False  # the lists may lag behind the counts
    return memory.explained in (None, difference)  # None: a search has just ended, and left this


def _read_lists(
    api: "AgentApi", known: "Known", reading: "Reading", listing: Listing, max_pages: int
) -> frozenset[str] | None:
    """Read on in the filtered lists; once they came to their ends, the ids of open runs they do not have.

    A run that is not listed may still be open: one that leaves a list while it is read can hide another
    behind a page border.
    """
    while listing.lists:
        (status, backlog), *later = listing.lists
        unmet = set(listing.unmet).difference(run.id for run in reading.met)
        mark = Watermark(backlogs=(backlog,))
        ask = partial(api.runs, status=status)
        was_met = partial(_was_met, known, unmet)
        read_on = paging.catch_up(mark, ask, max_pages=max_pages, is_known=was_met)
        for page, mark in read_on:  # noqa: B007 - its last value is what counts
            reading.add(page, known)
            unmet.difference_update(run.id for run in page.runs)
        left = tuple((status, each) for each in mark.backlogs)
        listing = Listing((*left, *later), frozenset(unmet))
        reading.memory.opens = replace(reading.memory.opens, listing=listing)
        if left:
            return None
    return listing.unmet


def _was_met(known: "Known", unmet: set[str], run: Run) -> bool:
    return run.id in known.open and run.id not in unmet


def _settle(
    api: "AgentApi",
    reading: "Reading",
    gone: Mapping[str, OpenRun],
    route: SingleRunRoute,
    limits: "Limits",
    known: "Known",
) -> frozenset[str]:
    """Find out what became of open runs that are in no open list; returns the ids of which a walk may tell.

    A run that is not where its start says is looked for in the whole lookback the next time.
    """
    unsettled = dict(gone)
    if len(gone) <= MAX_SINGLE_RUNS:
        for id_, run in gone.items():
            answer = single_run(api, run, route)
            if answer is not None and answer.id == id_:
                reading.met.append(answer)
                reading.runs.append(answer)
                del unsettled[id_]
    if not unsettled:
        return frozenset()
    oldest, sought = reading.now - limits.lookback, reading.memory.opens.sought
    floor = min(min(oldest, run.seen) if run.start is None else run.start for run in unsettled.values())
    if not sought.isdisjoint(unsettled):
        floor = min(floor, oldest)
    search = Backlog(floor, limits.page_size, since=reading.now)
    mark = replace(reading.watermark, backlogs=(*reading.watermark.backlogs, search))
    reading.watermark = mark
    walk = paging.catch_up(
        mark, api.runs, max_pages=limits.max_pages, is_known=lambda run: not known.is_new(run)
    )
    for page, watermark in walk:
        reading.take(page, watermark, known)
    return frozenset(unsettled)


def _look_elsewhere(
    api: "AgentApi", known: "Known", reading: "Reading", route: SingleRunRoute, limits: "Limits"
) -> None:
    """Now and then look for the known open runs without the open lists, which fail."""
    memory, now = reading.memory.opens, api.deadline.monotonic()
    if reading.watermark.searching or now - (memory.checked or now) < CHECK_INTERVAL:
        return
    reading.memory.opens = replace(memory, checked=now)
    met = {run.id for run in reading.met}
    unmet = {id_: run for id_, run in known.open.items() if id_ not in met}
    if unmet:
        _settle(api, reading, unmet, route, limits, known)


def single_run(api: "AgentApi", run: OpenRun, route: SingleRunRoute) -> RunDetails | None:
    """The run as its own route shows it; None when that fails: the list serves then.

    Raises ApiError `deadline`.
    """
    deadline = api.deadline
    if not run.workflow_id or deadline.monotonic() < route.closed_until:
        return None
    try:
        answer = api.run(run, deadline.within(deadline.left() / SINGLE_RUN_SHARE))
    except ApiError as error:
        if deadline.passed():
            raise
        if error.reason != "not_found" or not route.worked:
            route.closed_until = deadline.monotonic() + CHECK_INTERVAL
        return None
    route.worked = True
    return answer


def _difference(counts: Mapping[str, int], known: "Known", reading: "Reading") -> Counts:
    """By how much the API's counts of open runs exceed the known ones that had started by then."""
    runs: dict[str, OpenRun | Run] = {**known.open, **{run.id: run for run in reading.met}}
    still_open = [run for run in runs.values() if run.status in OPEN_STATUSES]
    started = [run.status for run in still_open if run.start is None or run.start <= reading.now]
    return tuple(counts.get(status, 0) - started.count(status) for status in OPEN_STATUSES)
