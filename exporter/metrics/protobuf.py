"""The exposition in protobuf, the only format that has native histograms. Pure.

A family is a message `io.prometheus.client.MetricFamily` with its length before it, as metrics.proto says in
https://github.com/prometheus/client_model. Histograms have classic and native buckets, and what counts has
the instant from which it counts.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import accumulate, chain
from operator import add, sub
from struct import Struct
from typing import cast

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from exporter.histogram import ZERO_THRESHOLD, Exemplar, Histogram, NativeBuckets
from exporter.metrics.exposition import LONGEST_RUN_ID, Family, in_pieces
from exporter.metrics.kept import Kept, TextOf
from exporter.metrics.snapshot import Snapshot
from exporter.metrics.table import AGENT_LABEL
from exporter.metrics.wire import (
    BYTES,
    INSTANTS,
    NUMBERS,
    SIGNED,
    VARINTS,
    Cache,
    double,
    encoded,
    field,
    pairs,
    timestamp,
)

COUNTER, GAUGE, SUMMARY, UNTYPED, HISTOGRAM, GAUGE_HISTOGRAM = range(6)  # the enum MetricType
TYPES = {
    "counter": COUNTER,
    "gauge": GAUGE,
    "info": GAUGE,
    "stateset": GAUGE,
    "summary": SUMMARY,
    "histogram": HISTOGRAM,
    "gaugehistogram": GAUGE_HISTOGRAM,
}
SUFFIXES = {"counter": "_total", "info": "_info"}  # of the samples, where the family's name has none
GAP = bytes(3)  # empty native buckets in a row are a gap between spans; fewer are cheaper as zeros


def write(families: Iterable[Metric], kept: Kept | None = None) -> Iterator[bytes]:
    """The families in pieces; of no more than one at a time all pieces are in memory.

    Histograms that `kept` has are not written anew.
    """
    agents: tuple[Snapshot | None, list[str]] = (None, [])
    with (kept or Kept()).texts() as text_of:
        for family in families:
            if isinstance(family, Family):
                snapshot = family.snapshot
                if agents[0] is not snapshot:
                    agents = snapshot, [pairs([(AGENT_LABEL, str(agent.id))]) for agent in snapshot.agents]
                of = agents[1] if family.row.per_agent else [""]
                histograms = family.type == "histogram"
                metrics = _histograms(family, of, text_of) if histograms else _numbers(family, of)
            else:
                metrics = _grouped(family)
            yield from _delimited(family, metrics)


def _delimited(family: Metric, metrics: Iterator[str]) -> Iterator[bytes]:
    head = field("\x0a", encoded(family.name + SUFFIXES.get(family.type, "")))
    head += field("\x12", encoded(family.documentation))
    head += "\x18" + VARINTS[TYPES.get(family.type, UNTYPED)]
    unit = field("\x2a", encoded(family.unit)) if family.unit else ""
    rest = chain(metrics, (unit,))
    pieces = [piece.encode(BYTES) for piece in in_pieces(rest)]
    yield (VARINTS[len(head) + sum(map(len, pieces))] + head).encode(BYTES)
    yield from pieces


# --- ours ---


def _own_labels(family: Family) -> Cache:
    """The row's own labels by their values."""
    names = family.row.labels
    return Cache(lambda values: pairs(sorted(zip(names, values, strict=True))))


def _histograms(family: Family, agents: Sequence[str], text_of: TextOf) -> Iterator[str]:
    """The row's points, a message `Metric` each; `agents` are the labels of what they are points of."""
    native = not family.snapshot.show_created  # who needs this may drop native histograms: see the README
    bounds = ["\x11" + double(bound) for bound in family.bounds]
    own = _own_labels(family)
    for agent, points in zip(agents, family.points(), strict=True):
        for point in points:
            histogram, labels = cast(Histogram, point.value), own[point.labels]
            text = text_of(histogram, native, partial(_histogram, histogram, bounds, native))
            yield f'"{VARINTS[len(agent) + len(labels) + len(text)]}{agent}{labels}'
            yield text


def _numbers(family: Family, agents: Sequence[str]) -> Iterator[str]:
    """The points of a counter or a gauge, likewise."""
    own = _own_labels(family)
    since, after = None, ""  # from when the last one counts
    before = "\x12\x09\x09" if family.type == "gauge" else "\x1a\x09\x09"
    for agent, points in zip(agents, family.points(), strict=True):
        size = len(agent) + len(before) + 8 + len(after)  # without the labels
        for point in points:
            labels, value, newest = own[point.labels], point.value, point.exemplar
            if point.created != since:
                since = point.created
                after = "" if since is None else f"\x1a{INSTANTS[since]}"
                before = f"\x1a{VARINTS[9 + len(after)]}\x09"
                size = len(agent) + len(before) + 8 + len(after)
            if newest and len(newest.run_id) <= LONGEST_RUN_ID:
                amount = f"\x09{NUMBERS[value]}\x12{_exemplar(newest)}{after}"
                yield field('"', agent + labels + field("\x1a", amount))
            else:
                yield f'"{VARINTS[size + len(labels)]}{agent}{labels}{before}{NUMBERS[value]}{after}'


def _histogram(histogram: Histogram, bounds: Sequence[str], native: bool) -> str:
    """A message `Histogram`; `bounds` are the fields of the classic buckets' upper bounds."""
    cumulative = list(accumulate(histogram.buckets))
    buckets = list(map(add, map(_BUCKETS.__getitem__, cumulative), bounds))
    for n, newest in enumerate(histogram.exemplars):
        if newest is not None and len(newest.run_id) <= LONGEST_RUN_ID:
            content = f"\x08{VARINTS[cumulative[n]]}{bounds[n]}\x1a{_exemplar(newest)}"
            buckets[n] = f"\x1a{VARINTS[len(content)]}{content}"
    totals = f"\x08{VARINTS[cumulative[-1]]}\x11{double(histogram.sum)}"
    created = f"\x7a{INSTANTS[histogram.created]}"
    return field("\x3a", "".join((totals, *buckets, _native(histogram.native) if native else "", created)))


@lru_cache(maxsize=512)
def _flags(size: int) -> Callable[..., bytes]:
    """Makes so many numbers bytes: 0 of 0, 1 of any other."""
    return Struct(f"{size}?").pack


@lru_cache
def _resolution(schema: int) -> str:
    return "\x28" + SIGNED[schema] + "\x31" + double(ZERO_THRESHOLD)


def _native(native: NativeBuckets) -> str:
    """The native buckets: zero, spans of others, and by how much each of these has more than its left one."""
    zero = f"{_resolution(native.schema)}\x38{VARINTS[native.zero]}"
    filled = _flags(len(native.observed))(*native.observed)
    spans, dense = "", [0]
    begin, behind = 0, -native.first  # of what comes next, and of the bucket behind the span before
    for stretch in filled.split(GAP):
        end = begin + len(stretch)
        if length := len(stretch.lstrip(b"\0")):
            spans += _span(end - length - behind, length)
            dense += native.observed[end - length : end]
            behind = end
        begin = end + len(GAP)
    deltas = "".join(map(SIGNED.__getitem__, map(sub, dense[1:], dense)))
    return f"{zero}{spans}\x6a{VARINTS[len(deltas)]}{deltas}" if spans else zero


@lru_cache(maxsize=4096)
def _span(offset: int, length: int) -> str:
    """So many buckets, so far behind the span before them; the first one from bucket 0."""
    return field("\x62", "\x08" + SIGNED[offset] + "\x10" + VARINTS[length])


def _exemplar(newest: Exemplar) -> str:
    """A message `Exemplar`, its length before it."""
    run_id = encoded(newest.run_id)
    content = f"{_RUN_IDS[len(run_id)]}{run_id}\x11{double(newest.value)}\x1a{timestamp(newest.at)}"
    return f"{VARINTS[len(content)]}{content}"


def _bucket(count: int) -> str:
    """A classic bucket without an exemplar, up to its bound."""
    content = "\x08" + VARINTS[count]
    return "\x1a" + VARINTS[len(content) + 9] + content


def _run_id(length: int) -> str:
    """The label of an exemplar, up to the ID itself."""
    name = "\x0a\x06run_id\x12" + VARINTS[length]
    return "\x0a" + VARINTS[len(name) + length] + name


_BUCKETS, _RUN_IDS = map(Cache, (_bucket, _run_id))


# --- those of prometheus_client ---


def _grouped(family: Metric) -> Iterator[str]:
    """The family's samples, those with the same labels together as a message `Metric`."""
    groups: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    special = "quantile" if family.type == "summary" else "le" if "histogram" in family.type else ""
    for sample in family.samples:
        own = sorted((name, value) for name, value in sample.labels.items() if name != special)
        groups.setdefault(tuple(own), []).append(sample)
    for labels, samples in groups.items():
        when = samples[0].timestamp
        at = "" if when is None else "\x30" + VARINTS[math.floor(float(when) * 1000)]
        yield field("\x22", pairs(labels) + _value(family, samples) + at)


def _value(family: Metric, samples: Sequence[Sample]) -> str:
    """The value of a metric: a message of the family's type."""
    type_ = TYPES.get(family.type, UNTYPED)
    key, created_key = _KEYS[type_]
    content = ""
    for sample in samples:
        value = float(sample.value)
        match sample.name.removeprefix(family.name):
            case "_created" if created_key:
                content += created_key + timestamp(value)
            case "_count" | "_gcount" if created_key:
                content += _count(value)
            case "_sum" | "_gsum" if created_key:
                content += "\x11" + double(value)
            case "_bucket":
                bucket = _count(value) + "\x11" + double(float(sample.labels["le"]))
                content += field("\x1a", bucket + _exemplar_of(sample, "\x1a"))
            case "" if type_ == SUMMARY:
                quantile = double(float(sample.labels["quantile"]))
                content += field("\x1a", "\x09" + quantile + "\x11" + double(value))
            case _:
                content += "\x09" + double(value) + _exemplar_of(sample, "\x12")
    return field(key, content)


# of the value in a metric, and of the instant from which it counts, where there is one
_KEYS = {
    COUNTER: ("\x1a", "\x1a"),
    GAUGE: ("\x12", ""),
    SUMMARY: ("\x22", "\x22"),
    UNTYPED: ("\x2a", ""),
    HISTOGRAM: ("\x3a", "\x7a"),
    GAUGE_HISTOGRAM: ("\x3a", "\x7a"),
}


def _count(value: float) -> str:
    """A whole number of observations, or, in a field of its own, any other number of them."""
    return "\x08" + VARINTS[int(value)] if value.is_integer() and value >= 0 else "\x21" + double(value)


def _exemplar_of(sample: Sample, key: str) -> str:
    if sample.exemplar is None:
        return ""
    labels, value, when = sample.exemplar.labels, sample.exemplar.value, sample.exemplar.timestamp
    at = "" if when is None else "\x1a" + timestamp(float(when))
    return field(key, pairs(labels.items()) + "\x11" + double(value) + at)
