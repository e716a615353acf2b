"""What one scrape reads of one agent: its newest runs, what is still missing, which runs are open.

A reading gets the agent's state in and gives the new one out; one that is thrown away leaves no trace.
The API's counts are a checksum: when they grow by more than the new runs that were met, something was
indexed late, and the whole lookback is read again. Besides that is done for every agent now and then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from exporter.deadline import Deadline
from exporter.modus.errors import ApiError
from exporter.modus.model import TOTAL_COUNT, Run, RunsPage
from exporter.runs import opens, paging
from exporter.runs.opens import OpensMemory, SingleRunRoute
from exporter.runs.state import Backlog, OpenRun, Watermark

if TYPE_CHECKING:  # handed in
    from exporter.modus.client import ModusClient

LATEST_INDEX = 600.0  # seconds after which a run that the counts name is in the list, or never will be
FIRST_RETRY = (
    120.0  # seconds until the lookback is read once more for a run that was not found; doubled each time
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reading may cost: the `runs` section of the configuration; times in seconds."""

    page_size: int
    max_pages: int
    lookback: float
    timeframe: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows of an agent; the default is an agent at its first sight."""

    watermark: Watermark = field(default_factory=Watermark)
    open: Mapping[str, OpenRun] = field(default_factory=dict)
    opens_listed: bool = False
    last_reconciled: float | None = None
    is_new: Callable[[Run], bool] = lambda _: True  # whether it is neither counted, nor open, nor from before


@dataclass(frozen=True, slots=True)
class Checksum:
    """The API's count of all runs, held against the runs that were met.

    `owed` runs were counted by the API and not met; it may be below 0 by those that were met within
    `LATEST_INDEX` and that a lagging count may still name.
    """

    executions: int | None = None
    met: tuple[tuple[float, int], ...] = ()  # (instant, runs met first at it), newest last
    owed: int = 0
    since: float = 0.0  # when the debt arose

    def after(self, executions: int | None, new: int, now: float) -> "Checksum":
        """The checksum after an answer at `now` (API's clock) that names `executions` and `new` runs met."""
        met = tuple(
            entry for entry in (*self.met, (now, new)) if entry[1] and abs(now - entry[0]) < LATEST_INDEX
        )
        if executions is None or self.executions is None:
            return Checksum(executions, met)
        owed = max(self.owed + executions - self.executions - new, -sum(number for _, number in met))
        return Checksum(executions, met, owed, self.since if self.owed > 0 else now)


@dataclass(frozen=True, slots=True)
class Walk:
    """A comparison of the whole lookback with the list, over as many scrapes as it takes."""

    backlog: Backlog
    began: float  # the API's clock
    by_start: bool | None = None  # what its pages so far tell of the order


@dataclass(frozen=True, slots=True)
class Memory:
    """What one reading leaves for the next; nothing of it must survive a restart."""

    attempted: float = 0.0  # monotonic seconds; 0 before the first attempt
    page_size: int | None = None  # to ask for first
    largest: int | None = None  # page size beyond which this agent's pages are too large to take
    opens: OpensMemory = field(default_factory=OpensMemory)
    checksum: Checksum = Checksum()
    walk: Walk | None = None
    retry_in: float = 0.0  # seconds between two walks for the same debt
    retry_at: float = 0.0  # the API's clock


@dataclass(slots=True)
class Reading:
    """What was read of one agent, also when an error cut it short. Instants are of the API's clock."""

    watermark: Watermark
    memory: Memory
    runs: list[Run] = field(default_factory=list)  # in the order of the answers
    malformed: list[str] = field(default_factory=list)  # what names items that could not be decoded
    counts: Mapping[str, int] | None = None
    newest: Run | None = None
    now: float = 0.0  # at the first answer; 0 when there was none
    skew: float = 0.0  # by how much it is ahead of ours, seconds
    searched: list[Backlog] = field(default_factory=list)  # searches for open runs that came to their end
    opens_listed: bool = False
    reconciled: float | None = None  # the whole lookback was compared, as of then
    unreachable: int = 0  # runs that the counts name and the whole lookback does not hold
    error: ApiError | None = None
    duration: float = 0.0  # seconds

    def take(self, page: RunsPage, watermark: Watermark) -> None:
        """Add a page and the watermark that holds after it."""
        self.add(page)
        searching = {backlog.since for backlog in watermark.backlogs}
        ended = [each for each in self.watermark.backlogs if each.since and each.since not in searching]
        self.searched += ended
        self.watermark = watermark

    def add(self, page: RunsPage) -> None:
        """Add what a page holds."""
        self.runs += page.runs
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

    def run(self, run: OpenRun, deadline: Deadline) -> Run:
        """One run by itself. Raises ApiError."""
        return self._api.run(self._agent_id, run.workflow_id, run.temporal_run_id, deadline=deadline)


class AgentReader:
    """Reads agents by one client; it remembers nothing but whether the API has the route of one run."""

    def __init__(self, api: "ModusClient", limits: Limits) -> None:
        self._api = api
        self._limits = limits
        self._route = SingleRunRoute()

    def read(
        self, agent_id: int, known: Known, memory: Memory, deadline: Deadline, *, reconcile: bool = False
    ) -> Reading:
        """Read until all is known, an error, or the deadline; raises nothing.

        Once the newest page is there, a deadline only leaves a backlog. With `reconcile` one page of
        the comparison of the whole lookback is read besides.
        """
        began = deadline.monotonic()
        reading = Reading(known.watermark, memory)
        api = AgentApi(self._api, agent_id, deadline, memory.largest)
        try:
            if deadline.passed():
                raise ApiError("deadline", "the scrape's time was over before this agent's turn")
            reading.memory = replace(memory, attempted=began)
            counts = self._read_runs(api, known, reading)
            opens.check(api, known, reading, counts, self._route, self._limits)
            self._check_sum(known, reading, counts)
            self._reconcile(api, reading, wanted=reconcile)
        except ApiError as error:
            if error.reason != "deadline" or reading.counts is None:
                reading.error = error
        except Exception as error:  # one agent's odd answer is one agent's error
            reading.error = ApiError.internal(error)
        reading.memory = replace(reading.memory, largest=api.largest)
        reading.duration = deadline.monotonic() - began
        return reading

    def _read_runs(self, api: AgentApi, known: Known, reading: Reading) -> Mapping[str, int]:
        """The newest page and what the backlogs name; returns the counts that belong to the page."""
        limits, before = self._limits, reading.watermark
        size = reading.memory.page_size or limits.page_size
        page, watermark = paging.read_newest(
            before, api.runs, size=size, full_size=limits.page_size, lookback=limits.lookback
        )
        size = paging.next_page_size(page, before, watermark, limits.page_size)
        reading.memory = replace(reading.memory, page_size=size)
        reading.now, reading.skew = page.now, page.skew
        reading.newest = page.runs[0] if page.runs else None
        reading.take(page, watermark)
        if limits.timeframe:
            reading.counts = api.runs(None, 1, timeframe=limits.timeframe).counts
        else:
            reading.counts = page.counts
        met: set[str] = set()
        further = paging.catch_up(
            watermark,
            api.runs,
            max_pages=max(limits.max_pages - 1, 1),
            is_known=lambda run: run.id in met or not known.is_new(run),
        )
        for page, watermark in further:
            reading.take(page, watermark)
            met.update(run.id for run in page.runs)
        return page.counts

    def _check_sum(self, known: Known, reading: Reading, counts: Mapping[str, int]) -> None:
        """Hold the new runs against the growth of the API's own count."""
        if reading.watermark.backlogs or known.watermark.floor is None:
            reading.memory = replace(reading.memory, checksum=Checksum(counts.get(TOTAL_COUNT)))
            return
        new = len({run.id for run in reading.runs if known.is_new(run)} | set(reading.malformed))
        checksum = reading.memory.checksum.after(counts.get(TOTAL_COUNT), new, reading.now)
        reading.memory = replace(reading.memory, checksum=checksum)
        if checksum.owed <= 0:
            reading.memory = replace(reading.memory, retry_in=0.0, retry_at=0.0)

    def _reconcile(self, api: AgentApi, reading: Reading, *, wanted: bool) -> None:
        """Read on in the comparison of the whole lookback, or begin one where it is due."""
        memory, limits, now = reading.memory, self._limits, reading.now
        owing = memory.checksum.owed > 0 and not reading.watermark.backlogs
        urgent = owing and (memory.walk is not None or now >= memory.retry_at)
        if reading.watermark.backlogs or not (wanted or urgent):
            return
        walk = memory.walk or Walk(Backlog(now - limits.lookback, limits.page_size, since=now), now)
        mark = Watermark(by_start=reading.watermark.by_start, backlogs=(walk.backlog,))
        pages = limits.max_pages if urgent else 1
        read_on = paging.catch_up(mark, api.runs, max_pages=pages, is_known=lambda _: True)
        for page, mark in read_on:  # noqa: B007 - its last value is what counts
            reading.add(page)
            walk = replace(walk, by_start=paging.order(page, walk.by_start))
        if mark.backlogs:
            walk = replace(walk, backlog=mark.backlogs[0])
            reading.memory = replace(memory, walk=walk)
            return
        self._end_walk(reading, walk)

    @staticmethod
    def _end_walk(reading: Reading, walk: Walk) -> None:
        """Note that the whole lookback was compared; what is still owed then comes late, or never."""
        memory, checksum = reading.memory, reading.memory.checksum
        reading.reconciled = walk.began
        reading.watermark = _with_order(reading.watermark, by_start=walk.by_start)
        retry_in = (memory.retry_in * 2 or FIRST_RETRY) if checksum.owed > 0 else 0.0
        if checksum.owed > 0 and walk.began - checksum.since >= LATEST_INDEX:
            reading.unreachable = checksum.owed
            checksum, retry_in = replace(checksum, owed=0), 0.0
        reading.memory = replace(
            memory, walk=None, checksum=checksum, retry_in=retry_in, retry_at=reading.now + retry_in
        )


def _with_order(mark: Watermark, *, by_start: bool | None) -> Watermark:
    return Watermark(mark.newest, mark.first_seen, mark.floor, by_start, mark.backlogs)
