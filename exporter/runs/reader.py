"""What one scrape reads of one agent: its newest runs, what is still missing, and which runs are open.

Open runs are followed without reading the whole history: the API counts those that are running or
wait for a human. While its counts differ from the ledger's by the same numbers as at the last check,
no open run has ended out of sight. When they change, the lists of open runs tell which one is gone,
and the single-run route (or, without it, a walk down to its start) how it ended.
"""

import time
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from exporter.deadline import Deadline
from exporter.modus.errors import ApiError
from exporter.modus.model import OPEN_STATUSES, Cursor, Gap, OpenRun, Run, RunsPage
from exporter.runs import paging as history

if TYPE_CHECKING:  # handed in
    from exporter.modus.client import ModusClient

CHECK_INTERVAL = 600.0  # seconds after which what did not change, or did not work, is looked at again
MAX_SINGLE_RUNS = 5  # runs asked for one by one; for more of them a walk costs less


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reading may cost: the `runs` section of the configuration; lookback in seconds."""

    page_size: int
    max_pages: int
    lookback: float
    timeframe: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows of an agent; the default is an agent at its first sight."""

    cursor: Cursor = field(default_factory=Cursor)
    open: Mapping[str, OpenRun] = field(default_factory=dict)
    counted: Container[str] = ()
    opens_listed: bool = False


@dataclass(slots=True)
class Reading:
    """What was read of one agent, also when an error cut it short."""

    cursor: Cursor
    runs: list[Run] = field(default_factory=list)  # in the order of the answers
    counts: Mapping[str, int] | None = None
    newest: Run | None = None
    now: float = 0.0  # the API's clock at the first answer, Unix seconds
    skew: float = 0.0  # by how much it is ahead of ours, seconds
    searched: list[Gap] = field(default_factory=list)  # searches for open runs that came to their end
    opens_listed: bool = False
    error: ApiError | None = None
    duration: float = 0.0  # seconds

    def take(self, page: RunsPage, cursor: Cursor) -> None:
        """Add a page and the cursor that holds after it."""
        self.runs += page.runs
        searching = {gap.since for gap in cursor.gaps}
        self.searched += [gap for gap in self.cursor.gaps if gap.since and gap.since not in searching]
        self.cursor = cursor


@dataclass(slots=True)
class SingleRunRoute:
    """Whether the API has the route for one run: a 404 before it ever worked closes it for a while."""

    worked: bool = False
    closed_until: float = 0.0  # monotonic seconds


class AgentReader:
    """Reads one agent, scrape after scrape, and remembers what makes the next reading cheap."""

    def __init__(
        self,
        agent_id: int,
        api: "ModusClient",
        limits: Limits,
        route: SingleRunRoute,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.attempted = 0.0  # monotonic seconds; 0 before the first attempt
        self._agent_id = agent_id
        self._api = api
        self._limits = limits
        self._route = route
        self._monotonic = monotonic
        self._size = limits.page_size
        self._explained: tuple[int, ...] | None = (0,) * len(OPEN_STATUSES)  # None: not settled
        self._explained_since = 0.0  # by the API's clock
        self._checked = monotonic()

    def read(self, known: Known, deadline: Deadline) -> Reading:
        """Read until all is known, an error, or `deadline`; raises nothing.

        Once the newest page is there, a deadline only leaves a backlog.
        """
        began = self._monotonic()
        reading = Reading(known.cursor)
        try:
            if deadline.passed():
                raise ApiError("deadline", "the scrape's time was over before this agent's turn")
            self.attempted = began
            hints = self._read_runs(reading, deadline)
            self._check_open_runs(reading, hints, known, deadline)
        except ApiError as error:
            if error.reason != "deadline" or reading.counts is None:
                reading.error = error
        reading.duration = self._monotonic() - began
        return reading

    def _read_runs(self, reading: Reading, deadline: Deadline) -> Mapping[str, int]:
        limits = self._limits
        ask = self._ask(deadline)
        before = reading.cursor
        page, cursor = history.read_newest(
            before, ask, size=self._size, full_size=limits.page_size, lookback=limits.lookback
        )
        self._size = history.next_page_size(page, before, cursor, limits.page_size)
        reading.now, reading.skew = page.now, page.skew
        reading.newest = page.runs[0] if page.runs else None
        reading.take(page, cursor)
        reading.counts = page.counts
        if limits.timeframe:
            reading.counts = None
            reading.counts = self._api.runs(
                self._agent_id, deadline=deadline, page_size=1, timeframe=limits.timeframe
            ).counts
        for further in history.catch_up(cursor, ask, max_pages=max(limits.max_pages - 1, 1)):
            reading.take(*further)
        return page.counts

    def _check_open_runs(
        self, reading: Reading, hints: Mapping[str, int], known: Known, deadline: Deadline
    ) -> None:
        """Read the open lists when there may be an open run that is unknown, or one that has ended."""
        opens = _still_open(reading, known)
        shown = {run.id for run in reading.runs}
        difference = _difference(hints, opens, reading.now)
        overdue = self._monotonic() - self._checked >= CHECK_INTERVAL
        hidden = any(id_ not in shown for id_ in opens) or any(difference)
        if _searching(reading.cursor):
            return
        settled = not any(difference) if self._explained is None else difference == self._explained
        if any(difference) and reading.now - self._explained_since < history.MARGIN:
            settled = False  # the lists may lag behind the counts
        if known.opens_listed and settled and not (overdue and hidden):
            self._explained = difference
            return
        before, self._explained = self._explained, None
        listed = history.list_open(
            lambda status, token: self._api.runs(
                self._agent_id,
                deadline=deadline,
                page_size=self._limits.page_size,
                page_token=token,
                status=status,
                approval_scope="all" if status == "awaiting_human" else None,
            ),
            max_pages=self._limits.max_pages,
        )
        reading.runs += listed.values()
        reading.opens_listed = True
        missing = {id_: run for id_, run in opens.items() if id_ not in listed and id_ not in shown}
        self._settle(reading, missing, deadline)
        self._checked = self._monotonic()
        if not _searching(reading.cursor):
            self._explained = _difference(hints, _still_open(reading, known), reading.now)
            if self._explained != before:
                self._explained_since = reading.now

    def _settle(self, reading: Reading, missing: Mapping[str, OpenRun], deadline: Deadline) -> None:
        """Find out what became of open runs that are in no open list."""
        unsettled = dict(missing)
        if len(missing) <= MAX_SINGLE_RUNS:
            for id_, run in missing.items():
                answer = self._single_run(run, deadline)
                if answer is not None and answer.id == id_:
                    reading.runs.append(answer)
                    del unsettled[id_]
        if not unsettled:
            return
        oldest = reading.now - self._limits.lookback
        floor = min(oldest if run.start is None else run.start for run in unsettled.values())
        search = Gap(floor, self._limits.page_size, since=reading.now)
        reading.cursor = replace(reading.cursor, gaps=(*reading.cursor.gaps, search))
        walk = history.catch_up(reading.cursor, self._ask(deadline), max_pages=self._limits.max_pages)
        for page, cursor in walk:
            reading.take(page, cursor)

    def _single_run(self, run: OpenRun, deadline: Deadline) -> Run | None:
        if self._monotonic() < self._route.closed_until:
            return None
        try:
            answer = self._api.run(self._agent_id, run.workflow_id, run.temporal_run_id, deadline=deadline)
        except ApiError as error:
            if error.reason not in ("not_found", "bad_response"):
                raise
            if not self._route.worked:
                self._route.closed_until = self._monotonic() + CHECK_INTERVAL
            return None
        self._route.worked = True
        return answer

    def _ask(self, deadline: Deadline) -> history.Ask:
        runs = partial(self._api.runs, self._agent_id, deadline=deadline)
        return lambda token, size: runs(page_token=token, page_size=size)


def _still_open(reading: Reading, known: Known) -> dict[str, OpenRun]:
    opens = dict(known.open)
    for run in reading.runs:
        if run.ended:
            opens.pop(run.id, None)
        elif run.id not in known.counted:
            opens[run.id] = OpenRun.of(run, reading.now)
    return opens


def _searching(cursor: Cursor) -> bool:
    return any(gap.since is not None for gap in cursor.gaps)


def _difference(hints: Mapping[str, int], opens: Mapping[str, OpenRun], now: float) -> tuple[int, ...]:
    """By how much the API's counts of open runs exceed the known ones that had started by `now`."""
    known = Counter(run.status for run in opens.values() if run.start is None or run.start <= now)
    return tuple(hints.get(status, 0) - known[status] for status in OPEN_STATUSES)
