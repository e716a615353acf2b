"""Which runs count, and what is to be made of the times that they name. Pure."""

import math

from exporter.modus.model import Run
from exporter.runs.state import AgentState

LONGEST_DURATION = 366 * 86400.0  # seconds; what is beyond is no duration
AHEAD = 86400.0  # seconds that an end may lie in the future; what is beyond is no end


def counts(state: AgentState, run: Run, start: float | None, end: float | None, *, was_open: bool) -> bool:
    """Whether a run that just turned out to have ended is one to count."""
    if state.ended_after is not None:
        if end is not None and end <= state.ended_after:
            return False
        if end is None and not was_open and (start is None or start <= state.ended_after):
            return False  # it may have ended and been counted before
    if was_open:
        return True
    if was_over(run, math.inf) <= state.horizon:
        return False  # its id may be forgotten
    return start is None or start >= state.base or (end is not None and end > state.watched_since)


def was_over(run: Run, otherwise: float) -> float:
    """The latest time that a run names: it was over by then. It is the same at every sight of the run."""
    return max((time for time in (run.start, run.end) if time is not None), default=otherwise)


def duration_of(run: Run, start: float | None) -> float | None:
    """Seconds from the API's durationMs, else from end and start; None when that is no usable number."""
    if run.duration_ms is not None:
        duration = run.duration_ms / 1000
    elif start is not None and run.end is not None:
        duration = run.end - start
    else:
        return None
    return duration if 0 <= duration <= LONGEST_DURATION else None


def end_of(run: Run, start: float | None, duration: float | None, now: float) -> float | None:
    """The end that the API names, else start and duration; None when that is no usable instant."""
    end = run.end
    if end is None and start is not None and duration is not None:
        end = start + duration
    return None if end is not None and end > now + AHEAD else end
