"""What is known of one agent: values only, as the ledger keeps them and the state file holds them.

Instants are Unix seconds of the API's clock, durations seconds.
"""

from copy import copy

import msgspec

from exporter.histogram import Exemplar, Histogram
from exporter.modus.model import LONGEST_RUN_ID, Run
from exporter.modus.usage import Used
from exporter.runs.ids import CountedIds

SCHEMA_VERSION = 2  # of the stores
USAGE_ID = -1  # in place of an agent's id: all usage is one account, kept as an agent's is
MISSED = ("malformed", "vanished", "unreachable")  # why a run could not be counted
UNBELIEVED = 2  # readings of an agent at most, after a step of the API's clock, that go by the time before
MAX_FAILURES = 100  # ends of failed runs that are kept, to tell a row of failures that a late success breaks


class Backlog(msgspec.Struct, frozen=True, gc=False):
    """A stretch of the list still to be read: from `token` on, down to runs from before `floor`."""

    floor: float
    size: int  # page size; one walk keeps it, because a token may be a page number
    token: str | None = None  # None: from the newest run on
    pages: int = 0  # read so far, and to be read again for nothing should the token be refused
    since: float | None = None  # a search for open runs that left the open lists, begun at this instant
    below: int = 0  # runs in a row from before `floor`, at the end of what was read

    @property
    def is_search(self) -> bool:
        """Whether it was read before, and is read again to look for open runs."""
        return self.since is not None


class SeenClock(msgspec.Struct, frozen=True, gc=False):
    """The API's clock as an agent's last readings saw it. A step is believed after some answers only."""

    skew: float | None = None  # by how much it was ahead of ours at the newest of them, seconds
    read: tuple[float, ...] = ()  # when they were, by our clock; a step may have come after the oldest

    def after(self, now: float, skew: float) -> "SeenClock":
        """What holds after one more reading at `now` by the API's clock, which is ahead of ours by `skew`."""
        return SeenClock(skew, (*self.read, now - skew)[-UNBELIEVED - 1 :])

    def oldest(self, now: float, skew: float) -> float:
        """The oldest of the last readings, by the API's clock as it is now."""
        return min([now, *(read + skew for read in self.read)])

    def unread_since(self, now: float, skew: float) -> float:
        """The instant from which on runs that nobody read may have started; after a step back not `now`."""
        return now if self.skew is None or skew >= self.skew else self.oldest(now, skew)


class Watermark(msgspec.Struct, frozen=True, gc=False):
    """How far the list is known: all that started before `floor`, but for the backlogs."""

    newest: float | None = None  # start of the newest run that was seen
    first_seen: float = 0.0  # when it was seen first
    floor: float | None = None  # None before the first run
    by_start: bool | None = None  # whether the list is in the order of starts; None: unknown
    backlogs: tuple[Backlog, ...] = ()  # newest stretch first

    @property
    def unread(self) -> bool:
        """Whether there are older pages that nobody has read yet; those of a search were."""
        return bool(self.backlogs) and any(not backlog.is_search for backlog in self.backlogs)

    @property
    def searching(self) -> bool:
        """Whether a search for open runs is under way; there is one at most."""
        return bool(self.backlogs) and any(backlog.is_search for backlog in self.backlogs)


class OpenRun(msgspec.Struct, gc=False, omit_defaults=True):
    """A run that had not ended when it was last seen."""

    workflow_id: str  # empty: too long to be kept for each; such a run is not asked for by itself
    temporal_run_id: str | None
    start: float | None
    status: str
    seen: float  # the newest answer that showed it
    sought: float | None = None  # begin of the first search of the whole lookback since then

    @classmethod
    def of(cls, run: Run, seen: float) -> "OpenRun":
        """The run as it was shown at `seen`."""
        asked_for = run.workflow_id, run.temporal_run_id
        if len("".join(filter(None, asked_for))) > LONGEST_RUN_ID:
            asked_for = "", None
        return cls(*asked_for, run.start, run.status, seen)


class FailureRow(msgspec.Struct, gc=False):
    """The failed runs since the newest end of another kind: the agent's consecutive failures, by end."""

    ends: list[float] = msgspec.field(default_factory=list)  # ascending, the newest MAX_FAILURES
    older: int = 0  # failures before those
    broken: float = 0.0  # the newest end of a run that did not fail

    def __len__(self) -> int:  # noqa: D105 - the class says it
        return self.older + len(self.ends)

    def add(self, end: float, *, failed: bool) -> None:
        """Note a run that ended at `end`, in whatever order the ends come."""
        if not failed:
            self.broken = max(self.broken, end)
            if self.ends and self.ends[0] <= self.broken:
                self.older = 0
            self.ends = [failure for failure in self.ends if failure > self.broken]
        elif end > self.broken:
            self.ends = sorted([*self.ends, end])
            if len(self.ends) > MAX_FAILURES:
                del self.ends[0]
                self.older += 1


class RunLine(msgspec.Struct, gc=False):
    """What the log is to say of a run that ended."""

    run_id: str
    status: str
    trigger_type: str
    duration: float | None = None  # seconds
    status_reason: str | None = None
    task_error: str | None = None
    number: int = 0  # given at the commit; lines are said in the order of their numbers


class Totals(msgspec.Struct, gc=False):
    """What the ended runs of one agent add up to, each run once. Counted from `created` on."""

    created: float
    durations: Histogram
    finished: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)  # by status, then trigger type
    unshown: frozenset[tuple[str, str]] = frozenset()  # of `finished`: no scrape showed it yet
    missed: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(MISSED, 0))
    last_end: dict[str, float] = msgspec.field(default_factory=dict)  # by status
    failures: FailureRow = msgspec.field(default_factory=FailureRow)
    approval_timeouts: int = 0
    newest: dict[str, dict[str, Exemplar]] = msgspec.field(default_factory=dict)  # runs, as in `finished`

    def copied(self) -> "Totals":
        """The same once more: nothing that can be changed is shared."""
        durations, failures = copy(self.durations), copy(self.failures)
        durations.buckets, durations.exemplars = durations.buckets[:], durations.exemplars[:]
        durations.native = copy(durations.native)
        durations.native.observed = durations.native.observed[:]
        failures.ends = failures.ends[:]
        totals = copy(self)
        totals.durations, totals.failures = durations, failures
        totals.finished = {status: dict(known) for status, known in self.finished.items()}
        totals.newest = {status: dict(known) for status, known in self.newest.items()}
        totals.missed, totals.last_end = {**self.missed}, {**self.last_end}
        return totals

    def note_newest(self, status: str, trigger_type: str, run_id: str, end: float | None) -> None:
        """Keep the run if it is the newest of its kind, by end."""
        newest = self.newest.setdefault(status, {})
        if end is not None and (trigger_type not in newest or end >= newest[trigger_type].at):
            newest[trigger_type] = Exemplar(run_id, 1.0, end)

    def born_at_zero(self) -> "Totals":
        """The totals with the series that no scrape has shown yet at 0; neither may be changed then."""
        if not self.unshown:
            return self
        totals = copy(self)
        totals.newest = {
            status: {trigger: run for trigger, run in known.items() if (status, trigger) not in self.unshown}
            for status, known in self.newest.items()
        }
        totals.finished = {
            status: {trigger: 0 if (status, trigger) in self.unshown else n for trigger, n in known.items()}
            for status, known in self.finished.items()
        }
        return totals


class AgentState(msgspec.Struct, gc=False):
    """What the ledger knows of one agent."""

    totals: Totals
    base: float  # runs that started before it count only when they ended after `watched_since`
    watched_since: float  # its first sight
    name: str = ""
    type: str = ""
    watermark: Watermark = Watermark()
    open: dict[str, OpenRun] = msgspec.field(default_factory=dict)
    opens_listed: bool = False  # the lists of open runs have been read once, to their ends
    base_read: bool = False  # all of the first sight has been read: from then on the totals are shown
    ended_after: float | None = None  # count only runs that ended later
    horizon: float = 0.0  # ids of runs that were over up to here may be forgotten: such a run is not counted
    ids_number: int = 0  # of the counted runs whose ids are kept; with the next, a checksum over their rows
    ids_sum: int = 0
    forgotten: int = 0  # counted runs whose ids were forgotten
    last_start: float | None = None
    last_read: float | None = None  # by our clock
    clock: SeenClock = SeenClock()
    last_reconciled: float | None = None
    unread: bool = False  # the newest attempt failed
    unused_since: float | None = None  # by our clock; None: it is in use
    unsaid: list[RunLine] = msgspec.field(default_factory=list)  # lines for the log that nobody has written

    def follow_clock(self, now: float, skew: float) -> bool:
        """Note a reading at `now` by the API's clock, which is ahead of ours by `skew`.

        Where that clock stepped back before an instant, what is unread is from after the step: then True.
        """
        since, stepped = self.clock.unread_since(now, skew), False
        for name in ("base", "watched_since", "last_reconciled"):
            instant = getattr(self, name)
            if instant is not None and instant > since:
                setattr(self, name, since)
                stepped = True
        self.clock = self.clock.after(now, skew)  # by itself it is no reason to write
        return stepped


class GroupUse(msgspec.Struct, gc=False):
    """What one agent or model used. Hours are their starts in Unix seconds."""

    total: Used = Used()
    hours: dict[int, Used] = {}  # of those that may still be revised: the highest that was counted
    horizon: int = -1  # hours up to here are final
    told: bool = True  # a scrape has shown it, if only at 0
    month: int = 0  # the newest month in which it was used (UTC)
    month_credits: float = 0.0


class UsageState(msgspec.Struct):
    """What the ledger knows of all usage, by grouping."""

    created: float  # instant from which is counted
    groups: dict[str, dict[str, GroupUse]] = {}  # by agent id, by what the API calls others, or by model
    aliases: dict[str, str] = {}  # what the API calls an agent -> under what it is counted
    read_until: dict[str, int] = {}  # all hours before it were read after their ends
    based: list[str] = []  # groupings of which all of the first report has been read


class Meta(msgspec.Struct, frozen=True):
    """What a store says of itself."""

    bounds: tuple[float, ...]  # upper bounds of the histogram's buckets, seconds
    written: float  # instant of the newest commit, by our clock
    shard: tuple[int, int] = (0, 1)  # index and total of the shards that wrote it
    version: int = 1  # of the schema


class State(msgspec.Struct):
    """All that a store holds."""

    meta: Meta
    agents: dict[int, AgentState]
    counted: dict[int, CountedIds]  # agent -> run id -> when the run was over
    usage: UsageState | None = None
    # of a shared store's agents: up to when their owners have read all of theirs, by our clock; 0: unknown
    read: dict[int, float] = {}


class Corruption(Exception):  # noqa: N818 - what is found, not what went wrong
    """A store does not hold what was written to it."""
