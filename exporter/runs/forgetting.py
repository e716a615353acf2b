"""What an account may forget: ids that cannot come back as uncounted, open runs that are gone."""

from msgspec.structs import replace

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


def vanished(state: AgentState, search: Backlog, reading: Reading, lookback: float) -> list[str]:
    """The open runs that two searches of the whole lookback should have met: they are gone.

    One alone may have met replicas that lag and pages that shift. And what is unread further down than a
    search went may hold them.
    """
    since = min(search.since or 0.0, reading.now)
    if search.floor > since - lookback or min(_unread(reading), default=search.floor) < search.floor:
        return []
    oldest, gone = since - LATEST_INDEX, []  # a replica may lag, the clock may step back
    for id_, run in list(state.open.items()):
        if run.seen >= oldest or (run.start is not None and run.start < search.floor):
            continue
        if run.sought is None or run.sought > since:
            state.open[id_] = replace(run, sought=since)  # by itself it is no reason to write
        elif since - run.sought >= LATEST_INDEX:
            gone.append(id_)
    return gone


def lost_sight_of(state: AgentState, reading: Reading, lookback: float) -> list[str]:
    """The open runs not seen for a lookback in a status that has no list: nothing tells where they end."""
    oldest = min([reading.now - lookback, *_unread(reading)])
    return [id_ for id_, run in state.open.items() if run.status not in OPEN_STATUSES and run.seen < oldest]


def _unread(reading: Reading) -> list[float]:
    """Down to when older pages are still to be read."""
    return [each.floor for each in reading.watermark.backlogs if not each.is_search]
