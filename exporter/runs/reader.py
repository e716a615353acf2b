"""What one scrape reads of one agent: its newest runs, what is still missing, which runs are open.

A reading gets the agent's state in and gives the new one out; one that is thrown away leaves no trace.
The API's counts are a checksum: when they grow by more than the new runs that were met, something was
indexed late, and the whole lookback is read again. Besides that is done for every agent now and then.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from exporter.deadline import Deadline
from exporter.modus.errors import ApiError
from exporter.modus.model import Run, RunDetails, RunsPage
from exporter.runs import opens, paging
from exporter.runs.opens import OpensMemory, SingleRunRoute
from exporter.runs.reconcile import Checksum, Walk, check_sum, reconcile
from exporter.runs.state import Backlog, OpenRun, SeenClock, Watermark
from exporter.runs.why import BURST, INTERVAL, ask_why
from exporter.tokenbucket import TokenBucket

if TYPE_CHECKING:  # handed in
    from exporter.modus.client import ModusClient

SMALL_PAGES = 3600.0  # seconds for which pages stay small after one was too large


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reading may cost: the `runs` section of the configuration; times in seconds."""

    page_size: int
    max_pages: int
    lookback: float
    timeframe: str | None = None


class Known(msgspec.Struct, frozen=True):
    """What the ledger knows of an agent; the default is an agent at its first sight."""

    watermark: Watermark = Watermark()
    open: Mapping[str, OpenRun] = {}
    counted: Container[str] = frozenset()  # ids
    opens_listed: bool = False
    last_reconciled: float | None = None
    is_new: Callable[[Run], bool] = lambda _: True  # whether it is neither counted, nor open, nor from before
    is_unread: Callable[[str], bool] = lambda _: True  # whether this malformed item was not met before
    epoch: int | None = 0  # of the lease of an agent that several exporters share; None: not ours
    clock: SeenClock = SeenClock()


class Memory(msgspec.Struct, gc=False):
    """What one reading leaves for the next, which changes a copy; nothing of it must survive a restart."""

    attempted: float = 0.0  # monotonic seconds; 0 before the first attempt
    epoch: int | None = 0  # of the lease under which it was read: all else is worth nothing under another
    page_size: int | None = None  # to ask for first
    largest: int | None = None  # page size beyond which this agent's pages are too large to take
    largest_until: float = 0.0  # monotonic seconds; from then on it is tried again
    opens: OpensMemory = OpensMemory()
    checksum: Checksum = Checksum()
    walk: Walk | None = None
    retry_in: float = 0.0  # seconds between two walks for the same debt
    retry_at: float = 0.0  # the API's clock


class Reading(msgspec.Struct):
    """What was read of one agent, also when an error cut it short. Instants are of the API's clock."""

    watermark: Watermark
    memory: Memory
    met: list[Run] = []  # in the order of the answers
    runs: list[Run] = []  # of them those that were not counted before
    malformed: list[str] = []  # what names items that could not be decoded
    counts: Mapping[str, int] | None = None
    newest: Run | None = None  # by start
    now: float = 0.0  # at the first answer; 0 when there was none
    skew: float = 0.0  # by how much it is ahead of ours, seconds
    searched: list[Backlog] = []  # searches for open runs that came to their end
    opens_listed: bool = False
    reconciled: float | None = None  # the whole lookback was compared, as of then
    unreachable: int = 0  # runs that the counts name and the whole lookback does not hold
    error: ApiError | None = None
    duration: float = 0.0  # seconds

    def take(self, page: RunsPage, watermark: Watermark, known: Known) -> None:
        """Add a page and the watermark that holds after it."""
        self.add(page, known)
        newest = page.newest
        if newest and (self.newest is None or (newest.start or 0.0) > (self.newest.start or 0.0)):
            self.newest = newest
        if not watermark.searching:
            self.searched += [each for each in self.watermark.backlogs if each.is_search]
        self.watermark = watermark

    def new(self, known: Known) -> set[str]:
        """The runs that were met first in this reading, those that cannot be read included."""
        new = {run.id for run in self.runs if known.is_new(run)}
        new.update(filter(known.is_unread, self.malformed))
        return new

    def add(self, page: RunsPage, known: Known) -> None:
        """Add what a page holds."""
        self.met += page.runs
        self.runs += [run for run in page.runs if run.id not in known.counted]
        self.malformed += page.malformed


class AgentApi:
    """One agent's lists, within one deadline; what is too large a page is asked for in smaller ones."""

    def __init__(self, api: "ModusClient", agent_id: int, deadline: Deadline, largest: int | None) -> None:
        self.deadline = deadline
        self.largest = largest
        self._api = api
        self._agent_id = agent_id

    def runs(
        self, token: str | None, size: int, *, status: str | None = None, timeframe: str | None = None
    ) -> RunsPage:
        """A page of the list, or of the runs in one status. Raises ApiError."""
        while True:
            size = min(size, self.largest or size)
            try:
                return self._api.runs(
                    self._agent_id,
                    deadline=self.deadline,
                    page_size=size,
                    page_token=token,
                    status=status,
                    approval_scope="all" if status == "awaiting_human" else None,
                    timeframe=timeframe,
                )
            except ApiError as error:
                if not error.too_large or size == 1:
                    raise
                self.largest = max(
                    size // 4, 1
                )  # a page number as token then repeats some runs, and skips none

    def run(self, run: OpenRun, deadline: Deadline) -> RunDetails:
        """One run by itself. Raises ApiError."""
        return self._api.run(self._agent_id, run.workflow_id, run.temporal_run_id, deadline=deadline)


class AgentReader:
    """Reads agents by one client; it remembers whether the API has the route of one run, and its budget."""

    def __init__(self, api: "ModusClient", limits: Limits, *, asks_why: bool = False) -> None:
        self._api = api
        self._budget = TokenBucket(BURST, INTERVAL) if asks_why else None
        self._limits = limits
        self._route = SingleRunRoute()

    def read(
        self, agent_id: int, known: Known, memory: Memory, deadline: Deadline, *, compare: bool = False
    ) -> Reading:
        """Read until all is known, an error, or the deadline; raises nothing.

        Once the newest page is there, a deadline only leaves a backlog. With `compare` one page of
        the comparison of the whole lookback is read besides.
        """
        began = deadline.monotonic()
        reading = Reading(known.watermark, replace(memory))
        largest = memory.largest if began < memory.largest_until else None
        api = AgentApi(self._api, agent_id, deadline, largest)
        try:
            if deadline.passed():
                raise ApiError("deadline", "the scrape's time was over before this agent's turn")
            reading.memory.attempted = began
            checked = memory.checksum
            counts = self._read_runs(api, known, reading)
            opens.check(api, known, reading, counts, self._route, self._limits)
            check_sum(known, reading, counts, checked)
            reconcile(api, known, reading, self._limits, wanted=compare)
            ask_why(api, known, reading, self._route, self._budget)
        except ApiError as error:
            if error.reason != "deadline" or reading.counts is None:
                reading.error = error
        except Exception as error:  # one agent's odd answer is one agent's error
            reading.error = ApiError.internal(error)
        if reading.error:
            reading.error.with_traceback(None)  # it would keep the answer, and the reading itself, alive
        if api.largest != largest:
            reading.memory.largest, reading.memory.largest_until = api.largest, began + SMALL_PAGES
        reading.duration = deadline.monotonic() - began
        return reading

    def _read_runs(self, api: AgentApi, known: Known, reading: Reading) -> Mapping[str, int]:
        """The newest page and what the backlogs name; returns the counts that belong to the page."""
        limits, before, memory = self._limits, reading.watermark, reading.memory
        page, watermark = paging.read_newest(
            before,
            api.runs,
            size=memory.page_size or limits.page_size,
            full_size=limits.page_size,
            lookback=limits.lookback,
            is_unread=known.is_unread,
            clock=known.clock,
        )
        if memory.walk:
            began = min(memory.walk.began, known.clock.unread_since(page.now, page.skew))
            memory.walk = replace(memory.walk, began=began)
        memory.page_size = paging.next_page_size(page, before, watermark, limits.page_size)
        reading.now, reading.skew = page.now, page.skew
        reading.take(page, watermark, known)
        # an error may cut this reading short: what it counts, the next one will not see as new
        memory.checksum = Checksum()
        if limits.timeframe:
            reading.counts = api.runs(None, 1, timeframe=limits.timeframe).counts
        else:
            reading.counts = page.counts
        if not watermark.backlogs:
            return page.counts
        met: set[str] = set()
        further = paging.catch_up(
            watermark,
            api.runs,
            max_pages=max(limits.max_pages - 1, 1),
            is_known=lambda run: run.id in met or not known.is_new(run),
        )
        for page, watermark in further:
            reading.take(page, watermark, known)
            met.update(run.id for run in page.runs)
        return page.counts
