"""When to ask: not while the API wants silence, not more often than allowed, and again after a failure."""

import threading
from collections.abc import Callable
from typing import TypeVar

from exporter.deadline import Deadline
from exporter.modus.apiclock import http_date
from exporter.modus.errors import ApiError, Reason, TransientError

RETRIES = 2  # of a 5xx or a reset, besides the first try
BACKOFF = 0.2  # seconds: full jitter over this, doubled at each retry
DEFAULT_PAUSE = 30.0  # seconds after a 429 that names no time
LONGEST_PAUSE = 300.0  # seconds an answer may close the client for
LATELY = 900.0  # seconds for which it is remembered at least how slow an answer was, twice that at most
SLICE = 0.5  # seconds: the longest wait before a deadline is asked again, which may have moved

T = TypeVar("T")


class Pause:
    """The silence that the API asked for with 429, or with 503 and `Retry-After`, whoever wants to ask."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._until = -float("inf")
        self._reason: Reason = "rate_limited"

    def check(self, where: str) -> None:
        """Raise ApiError while the API wants silence; `where` is what would be asked."""
        left = self._until - self._monotonic()
        if left > 0:
            raise ApiError(self._reason, f"{where}: not asked, the API wants {left:.0f} s more of silence")

    def note(self, status: int, retry_after: str, now: float) -> bool:
        """Take in an answer; `now` is the API's clock at it. Returns whether it asked for silence."""
        if retry_after.isdecimal():
            seconds = LONGEST_PAUSE if len(retry_after) > 9 else float(retry_after)
        elif (date := http_date(retry_after)) is not None:
            seconds = date - now
        else:
            seconds = DEFAULT_PAUSE if status == 429 else 0.0
        if seconds <= 0:
            return False
        until = self._monotonic() + min(seconds, LONGEST_PAUSE)
        with self._lock:
            if until > self._until:
                self._until = until
                self._reason = "rate_limited" if status == 429 else "server_error"
        return True


class RateLimit:
    """At most so many requests a second over all threads, evenly spaced; None: as many as are wanted."""

    def __init__(
        self, per_second: float | None, monotonic: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._monotonic, self._sleep = monotonic, sleep
        self._lock = threading.Lock()
        self._next = -float("inf")

    def wait(self, deadline: Deadline) -> None:
        """Wait for one's turn. Raises ApiError, of reason `deadline`, when it would come too late."""
        if not self._interval:
            return
        with self._lock:
            now = self._monotonic()
            turn = max(now, self._next)
            if turn - now > deadline.left():
                raise ApiError("deadline", "not asked, modus.max_requests_per_second leaves no time for it")
            self._next = turn + self._interval
        while (left := turn - self._monotonic()) > 0:
            self._sleep(min(left, SLICE))
            if deadline.passed():
                raise ApiError("deadline", "not asked, no time left")


class Slowest:
    """How long the slowest answer took of late. Threads share it: the next answer mends what they mix up."""

    def __init__(self) -> None:
        self._now = self._before = 0.0  # seconds; of this period and of the one before it
        self._until = -float("inf")  # this period

    def note(self, seconds: float, now: float) -> None:
        """Take in an answer that took so long and ended now."""
        if now >= self._until:
            self._before = self._now if now < self._until + LATELY else 0.0
            self._now, self._until = 0.0, now + LATELY
        if seconds > self._now:
            self._now = seconds

    @property
    def seconds(self) -> float:
        """What it took."""
        return max(self._now, self._before)


class Retries:
    """Asks again after resets and 5xx, with full jitter, as far as the time allows."""

    def __init__(
        self, rate_limit: RateLimit, sleep: Callable[[float], None], jitter: Callable[[], float]
    ) -> None:
        self._rate_limit, self._sleep, self._jitter = rate_limit, sleep, jitter

    def ask(self, once: Callable[[bool], T], until: Deadline) -> T:
        """What `once` brings; it is told whether to use a fresh connection. Raises its last ApiError.

        One try is free: that after a connection which was there before, and had died while it was idle.
        """
        attempt, fresh = 0, False
        while True:
            try:
                return once(fresh)
            except TransientError as exc:
                error = exc
            if error.idle and not fresh:
                fresh = True
                self._rate_limit.wait(until)
                continue
            pause = self._jitter() * BACKOFF * 2**attempt
            attempt += 1
            if attempt > RETRIES or pause >= until.left():
                raise error
            self._sleep(pause)
            self._rate_limit.wait(until)
