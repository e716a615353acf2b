"""Native buckets hold each value where Prometheus looks for it, in a bounded number of buckets."""

import math
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.histogram import MAX_BUCKETS, SCHEMA, ZERO_THRESHOLD, Histogram, NativeBuckets
from tests.simulation import BOUNDS

YEAR = 366 * 86400.0  # seconds: no duration that counts is longer
VALUES = st.floats(0, YEAR) | st.floats(0, 1) | st.integers(0, 10**6).map(lambda ms: ms / 1000)


def holds(schema: int, bucket: int, value: float) -> bool:
    """Whether 2 ** ((bucket - 1) / 2 ** schema) < value <= 2 ** (bucket / 2 ** schema), without rounding."""
    exact, steps = Fraction(value), 2 ** abs(schema)
    power, factor = (steps, 1) if schema >= 0 else (1, steps)
    return Fraction(2) ** ((bucket - 1) * factor) < exact**power <= Fraction(2) ** (bucket * factor)


def buckets(native: NativeBuckets) -> dict[int, int]:
    """Those that are not empty."""
    return {bucket: n for bucket, n in enumerate(native.observed, native.first) if n}


def of(*values: float) -> NativeBuckets:
    native = NativeBuckets()
    for value in values:
        native.observe(value)
    return native


def test_a_power_of_two_is_the_last_of_its_bucket_and_the_next_number_the_first_of_the_next() -> None:
    for exponent in range(-19, 26):
        bound = 2.0**exponent
        assert buckets(of(bound)) == {8 * exponent: 1}
        assert buckets(of(math.nextafter(bound, math.inf))) == {8 * exponent + 1: 1}


@pytest.mark.parametrize("eighth", range(8))
@pytest.mark.parametrize("exponent", [-19, -1, 0, 1, 6, 24])
def test_the_numbers_around_a_bound_are_on_their_sides_of_it(eighth: int, exponent: int) -> None:
    near = 2.0 ** (exponent + eighth / 8)
    for value in (math.nextafter(near, 0), near, math.nextafter(near, math.inf)):
        ((bucket, n),) = buckets(of(value)).items()
        assert (n, holds(SCHEMA, bucket, value)) == (1, True)


@given(value=VALUES)
def test_any_duration_is_in_the_bucket_that_holds_it(value: float) -> None:
    native = of(value)
    assert native.count == 1
    assert native.zero == (value <= ZERO_THRESHOLD)
    assert all(holds(SCHEMA, bucket, value) for bucket in buckets(native))


def test_no_time_at_all_is_in_the_zero_bucket() -> None:
    native = of(0.0, ZERO_THRESHOLD, 5e-324, math.nextafter(ZERO_THRESHOLD, 1))
    assert (native.zero, len(buckets(native))) == (3, 1)


def test_too_many_buckets_become_half_as_many_of_twice_the_width() -> None:
    values = [2.0 ** (n / 8 + 1 / 16) for n in range(-80, MAX_BUCKETS - 79)]
    native = of(*values[:-1])
    assert (native.schema, len(buckets(native))) == (SCHEMA, MAX_BUCKETS)
    native.observe(values[-1])
    assert (native.schema, len(buckets(native))) == (SCHEMA - 1, MAX_BUCKETS // 2 + 1)
    assert native.count == len(values)
    for bucket, n in buckets(native).items():
        assert n == sum(holds(SCHEMA - 1, bucket, value) for value in values)


@given(values=st.lists(st.floats(0, 1e300), min_size=1) | st.integers(-1074, 900).map(lambda e: [2.0**e]))
def test_values_however_far_apart_are_all_in_a_bounded_number_of_buckets(values: list[float]) -> None:
    native = NativeBuckets()
    for exponent in range(-1074, 1023):
        native.observe(2.0**exponent * 1.1)
    for value in values:
        native.observe(value)
        assert len(buckets(native)) <= MAX_BUCKETS
    assert native.schema >= -4  # the lowest that Prometheus knows
    assert native.count == 2097 + len(values)
    expected = sum(value > ZERO_THRESHOLD for value in values) + sum(
        2.0**exponent * 1.1 > ZERO_THRESHOLD for exponent in range(-1074, 1023)
    )
    assert sum(native.observed) == expected


@given(values=st.lists(VALUES))
def test_classic_and_native_buckets_hold_the_same_observations(values: list[float]) -> None:
    histogram = Histogram.empty(BOUNDS, 0.0)
    for value in values:
        histogram.observe(BOUNDS, value)
    assert histogram.native.count == sum(histogram.buckets) == len(values)
    for number, bound in enumerate(BOUNDS, 1):  # within the width of one native bucket
        below = sum(value <= bound for value in values)
        assert sum(histogram.buckets[:number]) == below
        index = 8 * math.log2(bound)
        native = [(bucket, n) for bucket, n in buckets(histogram.native).items()]
        assert histogram.native.zero + sum(n for bucket, n in native if bucket <= math.floor(index)) <= below
        assert histogram.native.zero + sum(n for bucket, n in native if bucket <= math.ceil(index)) >= below


def test_what_was_counted_without_native_buckets_lies_where_its_classic_bucket_ends() -> None:
    histogram = Histogram([2, 1, 0, 0, 4], 0.0, 500.0)
    assert len(BOUNDS) == 4
    histogram.complete_native(BOUNDS)
    bounds = BOUNDS[0], BOUNDS[1], math.nextafter(BOUNDS[3], math.inf)
    first, second, last = (next(iter(buckets(of(bound)))) for bound in bounds)
    assert buckets(histogram.native) == {first: 2, second: 1, last: 4}
    before = msgspec.json.encode(histogram)
    histogram.complete_native(BOUNDS)
    assert msgspec.json.encode(histogram) == before
    histogram.observe(BOUNDS, 0.0)
    assert histogram.native.count == sum(histogram.buckets) == 8
