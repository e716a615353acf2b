"""The exposition in protobuf, the only format that has native histograms. Pure.

A family is a message `io.prometheus.client.MetricFamily` with its length before it, as metrics.proto says in
https://github.com/prometheus/client_model. Histograms have classic and native buckets, and what counts has
the instant from which it counts. What stands before a value is its key: number of the field * 8 + kind.

Bytes are put together as texts in Latin-1, a character for each byte: Python does that twice as fast.
"""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain, islice, pairwise
from operator import add, sub

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from exporter.histogram import ZERO_THRESHOLD, Exemplar, Histogram, NativeBuckets
from exporter.metrics.exposition import LONGEST_RUN_ID, POINTS_PER_PIECE, Family
from exporter.metrics.table import AGENT_LABEL, Snapshot
from exporter.modus.model import printable

OF_BUCKET, OF_COUNTER = "\x1a", "\x12"  # the field of an exemplar
BYTES = "latin-1"
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
FEW = 2  # empty native buckets in a row: they are cheaper to send as zeros than as a gap between two spans


# the text of a histogram, and whether with native buckets; by identity, as what is shown does not change
_Kept = dict[tuple[int, bool], tuple[Histogram, str]]


class Writer:
    """Writes families, and keeps the text of histograms: few of them change from one scrape to the next."""

    def __init__(self) -> None:
        self._kept: _Kept = {}

    def write(self, families: Iterable[Metric]) -> Iterator[bytes]:
        """The families in pieces; of no more than one at a time all pieces are in memory."""
        kept: _Kept = {}
        agents: tuple[Snapshot | None, list[str]] = (None, [])
        for family in families:
            if isinstance(family, Family):
                snapshot = family.snapshot
                if agents[0] is not snapshot:
                    agents = snapshot, [_pairs([(AGENT_LABEL, str(agent.id))]) for agent in snapshot.agents]
                metrics = list(self._points(family, agents[1] if family.row.per_agent else [""], kept))
            else:
                metrics = list(_grouped(family))
            yield from _delimited(family, metrics)
        self._kept = kept

    def _points(self, family: Family, agents: Sequence[str], kept: _Kept) -> Iterator[str]:
        """The row's points, a message `Metric` each; `agents` are the labels of what they are points of."""
        row, kind = family.row, family.row.kind
        native = not family.snapshot.show_created  # who needs this may drop native histograms: see the README
        bounds = ["\x11" + _double(bound) for bound in family.bounds] if kind == "histogram" else []
        own: dict[tuple[str, ...], str] = {}  # label values -> as labels
        since, created, counter = None, "", "\x1a\x09\x09"  # of the last one
        for agent, points in zip(agents, family.points(), strict=True):
            for point in points:
                labels = own.get(point.labels)
                if labels is None:
                    labels = own[point.labels] = _pairs(sorted(zip(row.labels, point.labels, strict=True)))
                value = point.value
                if kind == "gauge":
                    content = f"\x12\x09\x09{_number(value)}"
                elif isinstance(value, Histogram):
                    key = id(value), native
                    known = self._kept.get(key) or (value, _histogram(value, bounds, native=native))
                    content = known[1]
                    kept[key] = known
                else:
                    if point.created != since:
                        since = point.created
                        created = "" if since is None else _timestamp("\x1a", since)
                        counter = f"\x1a{_varint(9 + len(created))}\x09"
                    content = f"{counter}{_number(value)}{created}"
                    if (newest := point.exemplar) and len(newest.run_id) <= LONGEST_RUN_ID:
                        amount = f"\x09{_number(value)}{_exemplar(newest, OF_COUNTER)}"
                        content = _field("\x1a", amount + created)
                size = len(agent) + len(labels) + len(content)
                yield f'"{_varint(size)}{agent}{labels}{content}'


def _delimited(family: Metric, metrics: Sequence[str]) -> Iterator[bytes]:
    head = _field("\x0a", _encoded(family.name + SUFFIXES.get(family.type, "")))
    head += _field("\x12", _encoded(family.documentation))
    head += "\x18" + _varint(TYPES.get(family.type, UNTYPED))
    unit = _field("\x2a", _encoded(family.unit)) if family.unit else ""
    yield (_varint(len(head) + len(unit) + sum(map(len, metrics))) + head).encode(BYTES)
    pieces = chain(metrics, (unit,))
    while piece := "".join(islice(pieces, POINTS_PER_PIECE)):
        yield piece.encode(BYTES)


# --- ours ---


def _histogram(histogram: Histogram, bounds: Sequence[str], *, native: bool) -> str:
    """A message `Histogram`; `bounds` are the fields of the classic buckets' upper bounds."""
    cumulative = list(accumulate(histogram.buckets))
    buckets = list(map(add, map(_bucket, cumulative), bounds))
    for n, newest in enumerate(histogram.exemplars):
        if newest is not None and len(newest.run_id) <= LONGEST_RUN_ID:
            buckets[n] = _field(
                "\x1a", f"\x08{_varint(cumulative[n])}{bounds[n]}{_exemplar(newest, OF_BUCKET)}"
            )
    totals = f"\x08{_varint(cumulative[-1])}\x11{_double(histogram.sum)}"
    created = _timestamp("\x7a", histogram.created)
    return _field("\x3a", "".join((totals, *buckets, _native(histogram.native) if native else "", created)))


@lru_cache(maxsize=4096)
def _bucket(count: int) -> str:
    """A classic bucket without an exemplar, up to its bound."""
    content = "\x08" + _varint(count)
    return "\x1a" + _varint(len(content) + 9) + content


@lru_cache
def _resolution(schema: int) -> str:
    return "\x28" + _signed(schema) + "\x31" + _double(ZERO_THRESHOLD)


def _native(native: NativeBuckets) -> str:
    """The native buckets: zero, spans of others, and by how much each of these has more than its left one."""
    zero = f"{_resolution(native.schema)}\x38{_varint(native.zero)}"
    filled = [n for n, count in enumerate(native.observed) if count]
    if not filled:
        return zero
    spans, dense = [], list[int]()
    behind = -native.first  # the bucket behind the span before
    far = [n for n, gap in enumerate(map(sub, filled[1:], filled), 1) if gap > FEW + 1]
    for begin, end in pairwise((0, *far, len(filled))):
        first, after = filled[begin], filled[end - 1] + 1
        spans.append(_span(first - behind, after - first))
        dense += native.observed[first:after]
        behind = after
    deltas = "".join(map(_signed, map(sub, dense, chain((0,), dense))))
    return f"{zero}{''.join(spans)}\x6a{_varint(len(deltas))}{deltas}"


@lru_cache(maxsize=4096)
def _span(offset: int, length: int) -> str:
    """So many buckets, so far behind the span before them; the first one from bucket 0."""
    return _field("\x62", "\x08" + _signed(offset) + "\x10" + _varint(length))


def _exemplar(newest: Exemplar, key: str) -> str:
    run_id = _encoded(newest.run_id)
    label = f"\x0a\x06run_id\x12{_varint(len(run_id))}{run_id}"
    at = _timestamp("\x1a", newest.at)
    return _field(key, f"\x0a{_varint(len(label))}{label}\x11{_double(newest.value)}{at}")


# --- those of prometheus_client ---


def _grouped(family: Metric) -> Iterator[str]:
    """The family's samples, those with the same labels together as a message `Metric`."""
    groups: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    special = "quantile" if family.type == "summary" else "le" if "histogram" in family.type else ""
    for sample in family.samples:
        labels = sorted((name, value) for name, value in sample.labels.items() if name != special)
        groups.setdefault(tuple(labels), []).append(sample)
    for pairs, samples in groups.items():
        when = samples[0].timestamp
        at = "" if when is None else "\x30" + _varint(math.floor(float(when) * 1000))
        yield _field("\x22", _pairs(pairs) + _value(family, samples) + at)


def _value(family: Metric, samples: Sequence[Sample]) -> str:
    """The value of a metric: a message of the family's type."""
    type_ = TYPES.get(family.type, UNTYPED)
    key, created_key = _KEYS[type_]
    content = ""
    for sample in samples:
        value = float(sample.value)
        match sample.name.removeprefix(family.name):
            case "_created" if created_key:
                content += _timestamp(created_key, value)
            case "_count" | "_gcount" if created_key:
                content += _count(value)
            case "_sum" | "_gsum" if created_key:
                content += "\x11" + _double(value)
            case "_bucket":
                bucket = _count(value) + "\x11" + _double(float(sample.labels["le"]))
                content += _field("\x1a", bucket + _exemplar_of(sample, "\x1a"))
            case "" if type_ == SUMMARY:
                quantile = _double(float(sample.labels["quantile"]))
                content += _field("\x1a", "\x09" + quantile + "\x11" + _double(value))
            case _:
                content += "\x09" + _double(value) + _exemplar_of(sample, "\x12")
    return _field(key, content)


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
    return "\x08" + _varint(int(value)) if value.is_integer() and value >= 0 else "\x21" + _double(value)


def _exemplar_of(sample: Sample, key: str) -> str:
    if sample.exemplar is None:
        return ""
    labels, value, when = sample.exemplar.labels, sample.exemplar.value, sample.exemplar.timestamp
    at = "" if when is None else _timestamp("\x1a", float(when))
    return _field(key, _pairs(labels.items()) + "\x11" + _double(value) + at)


# --- fields ---


@lru_cache(maxsize=4096)
def _varint(number: int) -> str:
    """A whole number, a negative one as in 64 bits."""
    number %= 2**64
    octets = ""
    while number > 127:
        octets += chr(number & 127 | 128)
        number >>= 7
    return octets + chr(number)


@lru_cache(maxsize=4096)
def _signed(number: int) -> str:
    """A whole number in the encoding that keeps small negative ones short."""
    return _varint(2 * number if number >= 0 else -2 * number - 1)


def _double(number: float) -> str:
    return struct.pack("<d", number).decode(BYTES)


_number = lru_cache(maxsize=4096)(_double)  # most values are small counts; -0.0 becomes 0.0


def _field(key: str, content: str) -> str:
    """A message, or a text."""
    return f"{key}{_varint(len(content))}{content}"


def _encoded(text: str) -> str:
    """Any text as its bytes in UTF-8."""
    return text if text.isascii() and text.isprintable() else printable(text).encode().decode(BYTES)


def _pairs(labels: Iterable[tuple[str, str]]) -> str:
    """Labels, by name and value."""
    return "".join(
        _field("\x0a", _field("\x0a", _encoded(name)) + _field("\x12", _encoded(value)))
        for name, value in labels
    )


def _timestamp(key: str, instant: float) -> str:
    """Unix seconds as a message of whole ones and nanoseconds, to the millisecond."""
    seconds, milliseconds = divmod(round(instant * 1000), 1000)
    return _field(key, f"\x08{_varint(seconds)}\x10{_varint(milliseconds * 1_000_000)}")
