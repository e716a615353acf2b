"""One agent's account: which of its runs count, and what they add up to."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from exporter.histogram import Exemplar, Histogram
from exporter.log import fields
from exporter.modus.model import TERMINAL_STATUSES, Run, RunDetails, label
from exporter.runs.eligibility import counts, duration_of, end_of, was_over
from exporter.runs.forgetting import KEEP, forgotten_before, lost_sight_of, vanished
from exporter.runs.ids import MALFORMED, TIMELESS, CountedIds, add_checksum
from exporter.runs.reader import Known, Reading
from exporter.runs.runlog import RunLog
from exporter.runs.state import AgentState, OpenRun, RunLine, Totals
from exporter.runs.why import APPROVAL_TIMEOUT

TRIGGER_TYPES = ("schedule", "webhook", "api", "slack", "manual")
MAX_TRIGGER_TYPES = 20
MAX_STATUSES = 20
NO_DURATION = "a run has no usable duration: it counts as finished and stays out of the histogram"
NOT_LISTED = "runs that the API counts are not in its list: they are counted as missed"
GONE = "an open run is gone from the API: it is counted as missed"
MAX_LINES = 10  # log lines about single runs, of one kind and one scrape
MAX_OPEN = 10_000  # open runs of one agent that are followed; more of them end unseen unless the list tells
MAX_MALFORMED = 10_000  # items of one agent that are remembered: one without an id may never be the same

log = logging.getLogger(__name__)


class Account:
    """The state of one agent, and what of it is not yet written.

    `counted` holds the ids of the runs that were counted and when they were over. `shown` are the totals
    that a scrape may show; `own` gives a copy of them before they are changed. Not safe to share: the
    ledger's lock guards it.
    """

    told: frozenset[tuple[str, str]] = frozenset()  # new series, that were shown at 0
    _warned: frozenset[str] = frozenset()

    def __init__(self, agent_id: int, state: AgentState, counted: CountedIds, epoch: int = 0) -> None:
        self.agent_id = agent_id
        self.state = state
        self.counted = counted
        self.epoch = epoch  # of the lease under which it was loaded
        self.shown = state.totals if state.base_read else None  # the first sample is the whole base
        self.changed = False
        self.new: list[str] = []  # ids to be written
        self.gone: list[str] = []  # ids to be deleted
        self.run_log = RunLog()
        self.moved = False  # it came from another shard, and was not read since
        self._kept: Totals | None = state.totals  # must not be changed: shown, or about to be
        self._pruned: float | None = None
        self._malformed: int | None = None  # of `counted`; None: not known

    @classmethod
    def open(
        cls, agent_id: int, now: float, lookback: float, ended_after: float | None, bounds: Sequence[float]
    ) -> "Account":
        """An account at the agent's first sight; instants by the API's clock."""
        created = now - lookback if ended_after is None else ended_after
        totals = Totals(created, Histogram.empty(bounds, created, exemplars=True))
        totals.finished = {status: dict.fromkeys(TRIGGER_TYPES, 0) for status in TERMINAL_STATUSES}
        return cls(agent_id, AgentState(totals, now - lookback, now, ended_after=ended_after), CountedIds())

    def known(self) -> Known:
        """What a reading of the agent starts from; it says nothing of the lease."""
        state, counted = self.state, self.counted

        def is_new(run: Run) -> bool:
            if run.id in counted or run.id in state.open:
                return False
            return not run.ended or counts(state, run, run.start, run.end, was_open=False)

        def is_unread(key: str) -> bool:
            return MALFORMED + key not in counted

        return Known(
            state.watermark,
            dict(state.open),
            counted,
            state.opens_listed,
            state.last_reconciled,
            is_new,
            is_unread,
            clock=state.clock,
        )

    def own(self) -> Totals:
        """Totals that may be changed."""
        self.changed = True
        if self.state.totals is self._kept:
            self.state.totals = self.state.totals.copied()
        return self.state.totals

    @property
    def unsaid(self) -> list[RunLine]:
        """Lines for the log that nobody has said yet."""
        return self.state.unsaid

    def keep(self) -> Totals | None:
        """The totals as of now, which nothing will change any more; None while they are not to be shown."""
        self._kept = self.state.totals
        return self._kept if self.state.base_read else None

    def record(
        self,
        reading: Reading,
        bounds: Sequence[float],
        lookback: float,
        clock: Callable[[], float],
        lines: dict[str, int],
        *,
        reconciles: bool,
    ) -> None:
        """Count what ended, follow what is open; `clock` is ours, `lines` the scrape's log lines by text.

        `reconciles`: the lists are compared with what was counted now and then.
        """
        self.changed |= self.state.follow_clock(reading.now, reading.skew)
        for run in reading.runs:
            if run.id not in self.counted:  # also when the index still shows it as open
                if run.ended:
                    self._end(run, reading.now, bounds, clock, lines)
                else:
                    self._follow(run, reading.now)
        for key in reading.malformed:
            self._miss("malformed", "a run cannot be read: it is counted as missed", key, reading.now, lines)
        for search in reading.searched:
            self._give_up(vanished(self.state, search, reading, lookback), reading.now, lines)
        if reading.unreachable:
            self.own().missed["unreachable"] += reading.unreachable
            self._say(lines, NOT_LISTED, number=reading.unreachable)
        self._note(reading, clock)
        if self._pruned is None:
            self._pruned = reading.now
        elif abs(reading.now - self._pruned) > KEEP:
            self._pruned = reading.now
            self._prune(forgotten_before(self.state, reading, lookback, reconciles=reconciles))
            self._give_up(lost_sight_of(self.state, reading, lookback), reading.now, lines)

    def mark_unread(self) -> None:
        """Note that the newest attempt to read the agent failed, or that it is no longer in use."""
        if not self.state.unread:
            self.changed = self.state.unread = True

    def _note(self, reading: Reading, clock: Callable[[], float]) -> None:
        """Take over what a reading found besides runs."""
        state, newest = self.state, reading.newest
        news: dict[str, object] = {"watermark": reading.watermark, "unread": reading.error is not None}
        known = state.last_start or 0.0
        if known > reading.now:  # the API's clock stepped back
            known = 0.0
        if newest and (newest.start is None or newest.start >= known):
            news["name"] = newest.agent_name or state.name
            news["type"] = newest.agent_type or state.type
            news["last_start"] = state.last_start if newest.start is None else newest.start
        if reading.opens_listed:
            news["opens_listed"] = True
        if reading.reconciled is not None:
            news["last_reconciled"] = reading.reconciled
        if not state.base_read and not reading.watermark.unread:
            news |= {"base_read": True, "last_reconciled": reading.now}
        if reading.error is None:
            state.last_read = clock()  # by itself it is no reason to write
        for name, value in news.items():
            if getattr(state, name) != value:
                setattr(state, name, value)
                self.changed = True

    def _end(
        self, run: Run, now: float, bounds: Sequence[float], clock: Callable[[], float], lines: dict[str, int]
    ) -> None:
        state = self.state
        was_open = state.open.pop(run.id, None)
        if was_open is not None:
            self.changed = True
        start = run.start if run.start is not None or was_open is None else was_open.start
        duration = duration_of(run, start)
        end = end_of(run, start, duration, max(now, clock()))
        if not counts(state, run, start, end, was_open=was_open is not None):
            known = state.totals.last_end
            self._note_end(self._bounded("statuses", label(run.status), known, MAX_STATUSES), end)
            return
        self._add_id(run.id, was_over(run, now + TIMELESS))
        totals = self.own()
        status, trigger = self._series(run)
        totals.finished[status][trigger] += 1
        totals.approval_timeouts += isinstance(run, RunDetails) and run.status_reason == APPROVAL_TIMEOUT
        totals.note_newest(status, trigger, run.id, end)
        if state.base_read:
            state.unsaid += self.run_log.lines(run, status, trigger, duration)
        self._note_end(status, end)
        if end is not None:
            totals.failures.add(end, failed=run.status == "error")
        if run.status == "completed" and duration is not None:
            newest = None if end is None else Exemplar(run.id, duration, end)
            totals.durations.observe(bounds, duration, newest)
        elif run.status == "completed":
            self._say(lines, NO_DURATION, run_id=label(run.id), duration_ms=run.duration_ms)

    def _note_end(self, status: str, end: float | None) -> None:
        if end is not None and end > self.state.totals.last_end.get(status, -math.inf):
            self.own().last_end[status] = end

    def _series(self, run: Run) -> tuple[str, str]:
        """Status and trigger type as label values; what is new is there at 0 for one scrape."""
        totals = self.state.totals
        finished = totals.finished
        triggers = next(iter(finished.values()))
        status = self._bounded("statuses", label(run.status), finished, MAX_STATUSES)
        trigger = self._bounded(
            "trigger types", label(run.trigger_type or "unknown"), triggers, MAX_TRIGGER_TYPES
        )
        if status not in finished or trigger not in triggers:
            before = _pairs(finished)
            finished.setdefault(status, dict.fromkeys(triggers, 0))
            for by_trigger in finished.values():
                by_trigger.setdefault(trigger, 0)
            totals.unshown |= _pairs(finished) - before if self.state.base_read else frozenset()
        return status, trigger

    def _bounded(self, kind: str, value: str, known: Mapping[str, object], most: int) -> str:
        """The value, or `other` once there are `most` of them, which is said once."""
        if value in known or len(known) < most:
            return value
        self._warn_once(kind, most, "count as other")
        return "other"

    def _warn_once(self, kind: str, most: int, what: str) -> None:
        if kind not in self._warned:
            self._warned |= {kind}
            message = f"more {kind} than one agent can have: further ones {what}"
            log.warning(message, extra=fields(agent_id=self.agent_id, limit=most))

    def _follow(self, run: Run, now: float) -> None:
        known = self.state.open.get(run.id)
        if known is None and len(self.state.open) >= MAX_OPEN:
            self._warn_once("open runs", MAX_OPEN, "are not followed")
            return
        if known is None or known.status != run.status:
            self.changed = True
        self.state.open[run.id] = OpenRun.of(run, now)

    def _miss(self, reason: str, message: str, key: str, now: float, lines: dict[str, int]) -> None:
        """Count what `key` names as missed, once however often it comes back."""
        id_ = MALFORMED + key
        if id_ in self.counted:
            return
        if self._malformed is None:
            self._malformed = sum(each.startswith(MALFORMED) for each in self.counted)
        if self._malformed >= MAX_MALFORMED:
            self._warn_once("missed runs", MAX_MALFORMED, "are not counted")
            return
        self._malformed += 1
        self._add_id(id_, now + TIMELESS)
        self.own().missed[reason] += 1
        self._say(lines, message, run_id=label(key))

    def _give_up(self, ids: Sequence[str], now: float, lines: dict[str, int]) -> None:
        """Follow these open runs no more."""
        for id_ in ids:
            del self.state.open[id_]
            self.changed = True
            self._miss("vanished", GONE, id_, now, lines)

    def _say(self, lines: dict[str, int], message: str, **details: object) -> None:
        """A line about a single run; of many alike in one scrape the first ones."""
        lines[message] = lines.get(message, 0) + 1
        if lines[message] <= MAX_LINES:
            log.warning(message, extra=fields(agent_id=self.agent_id, **details))
        elif lines[message] == MAX_LINES + 1:
            log.warning(f"{message}; and more like it, of any agent")

    def _add_id(self, id_: str, over: float) -> None:
        state = self.state
        self.counted.add(id_, over)
        self.new.append(id_)
        state.ids_number, state.ids_sum = state.ids_number + 1, add_checksum(state.ids_sum, id_, over)

    def _prune(self, instant: float) -> None:
        """Forget ids of runs that were over before it."""
        state = self.state
        for id_, over in self.counted.remove_older(instant):
            self.changed = True
            self.gone.append(id_)
            self._malformed = None  # to be counted again
            state.horizon = max(state.horizon, over)
            state.forgotten += not id_.startswith(MALFORMED)
            state.ids_number, state.ids_sum = state.ids_number - 1, add_checksum(state.ids_sum, id_, over, -1)


def _pairs(finished: Mapping[str, Mapping[str, int]]) -> set[tuple[str, str]]:
    return {(status, trigger) for status, triggers in finished.items() for trigger in triggers}
