"""What was asked of the API so far, for the exporter's own metrics."""

import threading
from copy import deepcopy

import msgspec

from exporter.histogram import Histogram

REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class ApiStats(msgspec.Struct, frozen=True):
    """What was asked since the start.

    `requests`: (operation, code) -> number; the code is the HTTP status, or the ApiError's reason
    where no whole answer came. `durations`: operation -> histogram with REQUEST_BUCKETS.
    """

    requests: dict[tuple[str, str], int]
    durations: dict[str, Histogram]


class RequestStats:
    """Counts requests. Safe to share between threads, and by a client and the one that replaces it."""

    def __init__(self, created: float) -> None:
        self._created = created  # Unix seconds
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str], int] = {}
        self._durations: dict[str, Histogram] = {}
        self._shown: set[tuple[str, str] | str] = set()

    def count(self, operation: str, code: str, seconds: float) -> None:
        """Add a request that took so long."""
        with self._lock:
            self._requests[operation, code] = self._requests.get((operation, code), 0) + 1
            durations = self._durations.get(operation)
            if durations is None:
                durations = self._durations[operation] = self._none()
            durations.observe(REQUEST_BUCKETS, seconds)

    def shown(self) -> ApiStats:
        """A consistent copy, to be shown: what it shows for the first time it shows at 0.

        A counter that is born at 1 is invisible to `increase()`: so a new code is 0 in one scrape, and has
        its number in the next. The same for the histogram of a new operation.
        """
        with self._lock:
            requests = {key: n if key in self._shown else 0 for key, n in self._requests.items()}
            durations = {
                name: deepcopy(each) if name in self._shown else self._none()
                for name, each in self._durations.items()
            }
            self._shown.update(requests, durations)
        return ApiStats(requests, durations)

    def _none(self) -> Histogram:
        return Histogram.empty(REQUEST_BUCKETS, self._created)
