"""The API's clock, as its answers tell it: one wrong `Date` header, or one odd agent's, moves nothing."""

import email.utils
import functools
import statistics
import threading
from collections import OrderedDict, deque
from collections.abc import Hashable
from datetime import UTC

RESOLUTION = 2.0  # seconds: a Date header nearer than this says nothing about the clock
SOURCES = 15  # agents whose latest answers are remembered
ANSWERS = 3  # of each
STALE = 600.0  # seconds after which who was silent has no voice: an agent that is gone outvotes nobody
ALONE = 86400.0  # seconds a single answer may be off and be believed, while there is no other
NONSENSE = 100 * 365 * 86400.0  # seconds: no clock of a server is off by a hundred years


@functools.lru_cache(maxsize=16)
def _parsed(text: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def http_date(text: str) -> float | None:
    """Unix seconds of a date as HTTP writes it; None for none or nonsense."""
    return _parsed(text) if len(text) <= 64 else None


class ApiClock:
    """By how much the API's clock is ahead of ours: the median of what it lately said. Safe to share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: OrderedDict[Hashable, deque[tuple[float, float]]] = OrderedDict()  # (read at, skew)
        self._skew = 0.0

    def skew(self, date: str, ours: float, source: Hashable) -> float:
        """Seconds that it is ahead, with the answer of `source` dated `date` and read at `ours` taken in.

        0.0 while it is nearer than a header can tell. Every source has a few voices and no more.
        """
        at = http_date(date)
        if at is None or abs(at - ours) > NONSENSE:
            return self._skew
        with self._lock:
            said = self._said.setdefault(source, deque(maxlen=ANSWERS))
            self._said.move_to_end(source)
            said.append((ours, at - ours))
            if len(self._said) > SOURCES:
                self._said.popitem(last=False)
            if abs(at - ours - self._skew) > RESOLUTION:
                self._skew = self._median(ours)
            return self._skew

    def _median(self, now: float) -> float:
        fresh = [said for said in self._said.values() if abs(now - said[-1][0]) < STALE]
        skews = [skew for said in fresh for _, skew in said]
        if len(skews) == 1 and abs(skews[0]) > ALONE:
            return 0.0
        # of two in the middle that which is nearer to our own clock
        middle = min(statistics.median_low(skews), statistics.median_high(skews), key=abs)
        return 0.0 if abs(middle) < RESOLUTION else middle
