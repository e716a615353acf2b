"""Leave for so many at once, and for one more after each interval."""

import math
import threading


class TokenBucket:
    """Holds `burst` tokens at first and at most; gains one every `interval` seconds. Safe to share."""

    def __init__(self, burst: int, interval: float) -> None:
        self._burst, self._interval = burst, interval
        self._left, self._at = float(burst), -math.inf
        self._lock = threading.Lock()

    def take(self, now: float) -> bool:
        """Take a token, if there is one; `now` is monotonic seconds."""
        with self._lock:
            self._left = min(self._burst, self._left + (now - self._at) / self._interval)
            self._at = now
            if self._left < 1:
                return False
            self._left -= 1
            return True
