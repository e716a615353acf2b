"""One line in the log for each run that ended: kept in the commit that counts it, and said right after.

How far lines were said is marked behind each. A process that is killed between the two says that one line
again when it starts: what was written to a pipe cannot be asked for.
"""

import logging
import threading
import time

from exporter.log import fields
from exporter.modus.model import Run, RunDetails, label, printable
from exporter.runs.state import RunLine
from exporter.runs.store import Store

LONGEST_ERROR = 300  # characters of a task's error

log = logging.getLogger(__name__)


class RunLog:
    """Which runs get a line: `which` is off, failed or all."""

    def __init__(self, which: str = "off", *, with_task_error: bool = False) -> None:
        self.which = which
        self._with_task_error = with_task_error

    def lines(self, run: Run, status: str, trigger: str, duration: float | None) -> list[RunLine]:
        """The line for a run that ended; none where it gets none."""
        failed = status not in ("completed", "cancelled")
        if self.which == "off" or (self.which == "failed" and not failed):
            return []
        line = RunLine(label(run.id), status, trigger, duration)
        if isinstance(run, RunDetails):
            line.status_reason = label(run.status_reason) if run.status_reason else None
            if self._with_task_error and run.task_error:
                line.task_error = " ".join(printable(run.task_error[:LONGEST_ERROR]).split())
        return [line]


class Outbox:
    """Lines on their way into the log: taken when they are written to the store, said when that is durable.

    Each has a number above all that were given before, also before a restart. `unsaid` are always an
    account's lines that nobody has said yet. One thread at a time uses it, but `take_up` may come from
    another one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0
        self._taken: dict[int, tuple[list[RunLine], int]] = {}  # agent -> its unsaid lines, how many of them

    def take(self, agent_id: int, unsaid: list[RunLine]) -> None:
        """Number an agent's lines, which are about to be written."""
        for line in unsaid:
            line.number = self._last = max(time.time_ns(), self._last + 1)
        self._take(agent_id, unsaid)

    def take_up(self, agent_id: int, unsaid: list[RunLine], marked: int) -> None:
        """Take an agent's lines of before a restart, but for those that were said: up to `marked`."""
        self._last = max(self._last, marked)
        unsaid[:] = [line for line in unsaid if line.number > marked]
        self._take(agent_id, unsaid)

    def _take(self, agent_id: int, unsaid: list[RunLine]) -> None:
        if unsaid:
            with self._lock:
                self._taken[agent_id] = unsaid, len(unsaid)

    def forget(self, agent_id: int) -> None:
        """Leave the agent's lines where they are: they were not written."""
        with self._lock:
            self._taken.pop(agent_id, None)

    def say(self, store: Store | None) -> None:
        """Write the lines that were taken into the log, and mark each."""
        with self._lock:
            taken, self._taken = self._taken, {}
        lines = [(agent_id, line) for agent_id, (unsaid, number) in taken.items() for line in unsaid[:number]]
        for agent_id, line in sorted(lines, key=lambda each: each[1].number):
            _say(agent_id, line)
            if store:
                store.mark(agent_id, line.number)
        for unsaid, number in taken.values():
            del unsaid[:number]


def _say(agent_id: int, line: RunLine) -> None:
    known = {
        "agent_id": agent_id,
        "run_id": line.run_id,
        "status": line.status,
        "duration_seconds": line.duration,
        "trigger_type": line.trigger_type,
        "status_reason": line.status_reason,
        "task_error": line.task_error,
    }
    details = fields(**{name: value for name, value in known.items() if value is not None})
    log.log(logging.INFO if line.status == "completed" else logging.WARNING, "run ended", extra=details)
