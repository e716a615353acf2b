"""Work that no scrape waits for: now and then, one at a time, with a deadline of its own."""

import math
import threading
from collections.abc import Callable
from functools import partial

from exporter.deadline import Deadline
from exporter.runs.threads import KeptThreads

PATIENCE = 60.0  # seconds that it may take


class PeriodicWork:
    """Work on `threads`, begun `interval` seconds after it was begun last, or later. Safe to share."""

    def __init__(self, threads: KeptThreads, monotonic: Callable[[], float], interval: float) -> None:
        self.closed = False
        self._threads = threads
        self._interval = interval
        self._monotonic = monotonic
        self._next = -math.inf  # monotonic seconds
        self._deadline = Deadline(0.0, monotonic)
        self._busy = threading.Lock()

    @property
    def is_due(self) -> bool:
        """Whether it is time to begin."""
        return self._monotonic() >= self._next and not self.closed

    @property
    def is_busy(self) -> bool:
        """Whether the work is under way."""
        return self._busy.locked()

    def begin(self, work: Callable[[Deadline], None]) -> None:
        """Have `work` done if it is due and not under way; it must not raise."""
        if not self.is_due or not self._busy.acquire(blocking=False):
            return
        self._next = self._monotonic() + self._interval
        if not self._threads.submit(partial(self._run, work)):
            self._busy.release()

    def put_off(self, seconds: float) -> None:
        """Begin no sooner than in so many seconds."""
        self._next = max(self._next, self._monotonic() + seconds)

    def close(self) -> None:
        """Begin no more, and cut off what is under way."""
        self.closed = True
        self._deadline.end()

    def _run(self, work: Callable[[Deadline], None]) -> None:
        try:
            self._deadline = Deadline(PATIENCE, self._monotonic)
            if self.closed:  # since it was begun
                self._deadline.end()
            work(self._deadline)
        finally:
            self._busy.release()
