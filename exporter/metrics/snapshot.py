"""From what the ledger holds and a scrape read to the values that are shown. Pure."""

from collections.abc import Mapping

from exporter.metrics.table import AgentSnapshot
from exporter.modus.discovery import Target
from exporter.modus.model import OPEN_STATUSES, label
from exporter.runs.reader import Reading
from exporter.runs.state import AgentState, Totals


def agent_snapshot(
    target: Target,
    reading: Reading | None,
    known: tuple[AgentState, Totals | None] | None,
    errors: Mapping[str, int],
    *,
    created: float,
    now: float,
    skew: float,
    reconciles: bool,
) -> AgentSnapshot:
    """One agent as of one scrape; a `reading` is missing while that has not come to the agent.

    `errors` are counted by reason since `created`. `now` is our clock, `skew` by how much the API's is ahead:
    its instants are shown by our clock, and never in its future, since no age may be negative. `reconciles`:
    whether lookbacks are compared at all.
    """
    state, totals = known or (None, None)
    up = reading is not None and reading.error is None

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
        read_duration=reading.duration if reading else None,
        counts=reading.counts if up and reading else None,
        open_starts=_open_starts(state, now, skew) if up and state and state.opens_listed else None,
        totals=totals,
        durations=totals.durations if totals else None,
        missed=totals.missed if totals else {},
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
