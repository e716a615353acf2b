"""The values of a scrape that are shown, made of what the ledger holds and what the scrape read. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from exporter.histogram import Histogram
from exporter.metrics.usage import UsageSnapshot
from exporter.modus.discovery import Target
from exporter.modus.model import OPEN_STATUSES, label
from exporter.runs.scrape import Outcome
from exporter.runs.state import AgentState, Totals


class AgentSnapshot(msgspec.Struct, frozen=True, gc=False):
    """One agent as of one scrape. Times are Unix seconds; None is what is not known or not set."""

    id: int
    name: str
    up: bool
    errors: Mapping[str, int]  # by reason
    created: float  # of the errors
    read_duration: float | None = None  # seconds
    type: str = ""  # empty before it is known
    enabled: bool | None = None  # None when the agents list does not have it
    counts: Mapping[str, int] | None = None  # None when the agent could not be read
    open_starts: Mapping[str, float] | None = None  # oldest start by status; None likewise
    totals: Totals | None = None  # None until all runs of the first sight have been read
    consecutive_failures: int | None = None
    last_end: Mapping[str, float] = {}  # newest end by terminal status
    last_start: float | None = None
    last_read: float | None = None
    last_reconciled: float | None = None
    backlog: bool = False
    expected_interval: float | None = None  # seconds
    expected_duration: float | None = None  # seconds
    last_due: float | None = None  # by its schedule, while that was in force and on
    next_due: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one scrape shows."""

    agents: Sequence[AgentSnapshot]
    bounds: Sequence[float]  # of the run durations' buckets, seconds
    complete: bool  # every agent was read
    duration: float  # of the scrape, seconds
    ledger_up: bool
    version: str
    created: float  # start of the process, Unix seconds
    requests: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (operation, code)
    request_bounds: Sequence[float] = ()
    request_durations: Mapping[str, Histogram] = field(default_factory=dict)  # by operation
    reload_successful: bool = True
    reloaded: float = 0.0
    up: bool = False  # the API answered at all
    usage: UsageSnapshot = field(default_factory=UsageSnapshot)
    lease_changes: int | None = None  # None where all agents are this exporter's own
    show_created: bool = False  # the instants from which is counted, as series of their own


def agent_snapshot(
    target: Target,
    outcome: Outcome | None,
    known: tuple[AgentState, Totals | None] | None,
    errors: Mapping[str, int],
    *,
    created: float,
    now: float,
    skew: float,
    reconciles: bool,
) -> AgentSnapshot:
    """One agent as of one scrape; an `outcome` is missing while that has not come to the agent.

    `errors` are counted by reason since `created`. `now` is our clock, `skew` by how much the API's is ahead:
    its instants are shown by our clock, and never in its future, since no age may be negative. `reconciles`:
    whether lookbacks are compared at all.
    """
    state, totals = known or (None, None)
    up = outcome is not None and outcome.error is None

    planned = target.planned
    is_on = target.enabled and planned and planned.enabled  # of two lists: one of them may be older
    last_due, next_due = planned.due(now + skew) if planned and is_on else (None, None)

    def ours(instant: float | None) -> float | None:
        return None if instant is None else min(instant - skew, now)

    return AgentSnapshot(
        id=target.id,
        name=label((state.name if state else "") or target.name or str(target.id)),
        type=label((state.type if state else "") or target.type),
        enabled=target.enabled,
        up=up,
        errors=dict(errors),
        created=created,
        read_duration=outcome.duration if outcome else None,
        counts=outcome.counts if up and outcome else None,
        open_starts=_open_starts(state, now, skew) if up and state and state.opens_listed else None,
        totals=totals,
        consecutive_failures=len(state.totals.failures) if state and totals else None,
        last_end={status: min(end - skew, now) for status, end in state.totals.last_end.items()}
        if state
        else {},
        last_start=ours(state.last_start) if state else None,
        last_read=min(state.last_read, now) if state and state.last_read is not None else None,
        last_reconciled=ours(state.last_reconciled) if state and reconciles else None,
        backlog=bool(state and (state.watermark.backlogs or not state.base_read)),
        expected_interval=target.expected_interval,
        expected_duration=target.expected_duration,
        last_due=ours(last_due),
        next_due=None if next_due is None else next_due - skew,
    )


def _open_starts(state: AgentState, now: float, skew: float) -> dict[str, float]:
    """The oldest start of an open run by status."""
    starts: dict[str, float] = {}
    for run in state.open.values():
        if run.status in OPEN_STATUSES and run.start is not None:
            start = min(run.start - skew, now)
            starts[run.status] = min(start, starts.get(run.status, start))
    return starts
