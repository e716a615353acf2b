"""The one value for histograms: of run durations, of requests, and in the state file."""

from bisect import bisect_left
from collections.abc import Sequence

import msgspec


class Exemplar(msgspec.Struct, frozen=True, gc=False):
    """The newest observation of a bucket: the run, its value in seconds and its end in Unix seconds."""

    run_id: str
    value: float
    at: float


class Histogram(msgspec.Struct, gc=False):
    """Observations per bucket and their sum, in seconds, since the instant `created` (Unix seconds).

    `buckets` are not cumulative; the last one is +Inf. `exemplars` are one per bucket, or none at all.
    """

    buckets: list[int]
    created: float
    sum: float = 0.0
    exemplars: list[Exemplar | None] = msgspec.field(default_factory=list)

    @classmethod
    def empty(cls, bounds: Sequence[float], created: float, *, exemplars: bool = False) -> "Histogram":
        """One without observations, for buckets with these upper bounds, without +Inf."""
        size = len(bounds) + 1
        return cls([0] * size, created, exemplars=[None] * size if exemplars else [])

    def observe(self, bounds: Sequence[float], value: float, exemplar: Exemplar | None = None) -> None:
        """Add an observation; its exemplar takes the place of an older one in the same bucket."""
        bucket = bisect_left(bounds, value)
        self.buckets[bucket] += 1
        self.sum += value
        if exemplar is not None:
            newest = self.exemplars[bucket]
            if newest is None or exemplar.at >= newest.at:
                self.exemplars[bucket] = exemplar
