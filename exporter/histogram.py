"""The one value for histograms: of run durations, of requests, and in the state file."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import zip_longest

import msgspec

SCHEMA = 3  # of native buckets: eight to each power of two, so that a bucket is 9 % wide
MAX_BUCKETS = 160  # native ones of one histogram that are not empty; a lower schema when there are more
ZERO_THRESHOLD = 2.0**-20  # seconds, about a microsecond: what is not above it is in the zero bucket

# the largest numbers that are not above 2 ** (n / 8 - 1), n from 0 to 7
_BOUNDS = (
    0.5,
    0.5452538663326287,
    0.5946035575013605,
    0.6484197773255048,
    0.7071067811865475,
    0.7711054127039704,
    0.8408964152537145,
    0.9170040432046712,
)


class Exemplar(msgspec.Struct, frozen=True, gc=False):
    """The newest observation of a bucket: the run, its value in seconds and its end in Unix seconds."""

    run_id: str
    value: float
    at: float


class NativeBuckets(msgspec.Struct, gc=False):
    """Observations in the buckets of Prometheus' native histograms.

    With `base = 2 ** 2 ** -schema`, bucket `i` holds what is above `base ** (i - 1)` and not above
    `base ** i`. `observed` has the numbers from bucket `first` on, up to the last that is not empty.
    `zero` is the number of those that are not above ZERO_THRESHOLD.
    """

    schema: int = SCHEMA
    zero: int = 0
    first: int = 0
    observed: list[int] = msgspec.field(default_factory=list)

    @property
    def count(self) -> int:
        """How many observations there are."""
        return self.zero + sum(self.observed)

    def observe(self, value: float, times: int = 1) -> None:
        """Add an observation, which is not negative, so many times."""
        if value <= ZERO_THRESHOLD:
            self.zero += times
            return
        fraction, exponent = math.frexp(value)
        finest = bisect_left(_BOUNDS, fraction) + 8 * (exponent - 1)
        bucket = -(-finest >> SCHEMA - self.schema)
        if not self.observed:
            self.first = bucket
        if bucket < self.first:
            self.observed[:0] = [0] * (self.first - bucket)
            self.first = bucket
        self.observed += [0] * (bucket - self.first - len(self.observed) + 1)
        self.observed[bucket - self.first] += times
        while len(self.observed) - self.observed.count(0) > MAX_BUCKETS:
            self._merge_pairs()

    def _merge_pairs(self) -> None:
        """Halve the resolution: each new bucket is the sum of two old ones, to Prometheus no reset."""
        if self.first % 2 == 0:  # the second of a pair
            self.observed.insert(0, 0)
            self.first -= 1
        pairs = self.observed[::2], self.observed[1::2]
        self.observed = [sum(pair) for pair in zip_longest(*pairs, fillvalue=0)]
        self.first = (self.first + 1) // 2
        self.schema -= 1


class Histogram(msgspec.Struct, gc=False):
    """Observations per bucket and their sum, in seconds, since the instant `created` (Unix seconds).

    `buckets` are the classic ones: not cumulative, the last one is +Inf. `exemplars` are one for each of
    them, or none at all. `native` holds the same observations.
    """

    buckets: list[int]
    created: float
    sum: float = 0.0
    exemplars: list[Exemplar | None] = msgspec.field(default_factory=list)
    native: NativeBuckets = msgspec.field(default_factory=NativeBuckets)

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
        self.native.observe(value)
        if exemplar is not None:
            newest = self.exemplars[bucket]
            if newest is None or exemplar.at >= newest.at:
                self.exemplars[bucket] = exemplar

    def complete_native(self, bounds: Sequence[float]) -> None:
        """Give observations that were counted without native buckets their place in these.

        All that is known of one is its classic bucket: it goes where that ends, and from the last one, which
        has no end, right behind its beginning. To `rate()` it is part of the first sample, wherever it lies.
        """
        if self.native.count != sum(self.buckets):
            self.native = NativeBuckets()
            for bound, n in zip((*bounds, math.nextafter(bounds[-1], math.inf)), self.buckets, strict=True):
                if n:
                    self.native.observe(bound, n)
