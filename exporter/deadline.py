"""One deadline for a scrape and for everything that is done on its behalf."""

import math
import time
from collections.abc import Callable


class Deadline:
    """An instant by which work must be done; all who work on it ask the same object.

    It may be moved while they do: `extend` gives them more time, `end` takes what is left. Whoever waits
    on its behalf asks `left` again when a wait is over. Safe to share between threads.
    """

    def __init__(
        self,
        seconds: float = math.inf,
        monotonic: Callable[[], float] = time.monotonic,
        parent: "Deadline | None" = None,
    ) -> None:
        self.monotonic = monotonic
        self._parent = parent
        self._at = monotonic() + seconds
        self._ended = False

    def left(self) -> float:
        """Seconds that are left, 0.0 when it has passed."""
        own = 0.0 if self._ended else max(0.0, self._at - self.monotonic())
        return own if self._parent is None else min(own, self._parent.left())

    def passed(self) -> bool:
        """Whether nothing is left."""
        return self.left() <= 0.0

    def within(self, seconds: float) -> "Deadline":
        """A deadline of its own, `seconds` from now, that never outlasts this one."""
        return Deadline(seconds, self.monotonic, self)

    def extend(self, seconds: float) -> None:
        """Leave at least `seconds` from now, but for one that has ended."""
        self._at = max(self._at, self.monotonic() + seconds)

    def shorten(self, seconds: float) -> None:
        """Leave that much less."""
        self._at -= seconds

    def end(self) -> None:
        """Let it pass now and for good."""
        self._ended = True
