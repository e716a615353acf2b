"""What an account may forget: ids that cannot come back as uncounted, open runs that are gone. Pure."""

from exporter.modus.model import OPEN_STATUSES
from exporter.runs.reader import Reading
from exporter.runs.reconcile import LATEST_INDEX
from exporter.runs.state import AgentState, Backlog

KEEP = 3600.0  # seconds an id is kept at least: an index may show a stale status for a while


def forgotten_before(state: AgentState, reading: Reading, lookback: float, *, reconciles: bool) -> float:
    """The instant before which a run must have been over for its id to be forgotten.

    It is before all that is still to be read, or to be compared where that is done (`reconciles`).
    """
    walk = reading.memory.walk
    unread = state.watermark.backlogs + ((walk.backlog,) if walk else ())
    oldest = [state.clock.oldest(reading.now, reading.skew) - lookback, *(each.floor for each in unread)]
    if reconciles and state.last_reconciled is not None:
        oldest.append(state.last_reconciled - LATEST_INDEX)
    return min(oldest) - KEEP


def vanished(state: AgentState, search: Backlog, now: float, lookback: float) -> list[str]:
    """The open runs that a search of the whole lookback should have met: they are gone."""
    since = min(search.since or 0.0, now)
    if search.floor > since - lookback:
        return []
    oldest = since - LATEST_INDEX  # a replica may lag, the clock may step back
    return [
        id_
        for id_, run in state.open.items()
        if run.seen < oldest and (run.start is None or run.start >= search.floor)
    ]


def lost_sight_of(state: AgentState, oldest: float) -> list[str]:
    """The open runs not seen since `oldest` in a status that has no list: nothing tells where they end."""
    return [id_ for id_, run in state.open.items() if run.status not in OPEN_STATUSES and run.seen < oldest]
