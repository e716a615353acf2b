"""Whatever is exposed, the official runtime of protobuf reads it as it was meant."""

from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
    SummaryMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.samples import Exemplar, Sample

from exporter.histogram import NativeBuckets
from exporter.metrics import exposition
from exporter.metrics.exposition import families
from exporter.metrics.protobuf import write
from exporter.metrics.snapshot import Snapshot
from exporter.metrics.table import TABLE, Row
from tests import metricsproto
from tests.oracle import add
from tests.property.test_exposition import PER_PIECE, SNAPSHOTS

KINDS = ("counter", "gauge", "summary", "unknown", "histogram", "gaugehistogram")
TYPES = {kind: number for number, kind in enumerate(KINDS)} | {"info": 1, "stateset": 1}
LABEL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9)
VALUES = st.floats(allow_nan=False)
INSTANTS = st.floats(-1e9, 1e11)
COUNTS = st.lists(st.integers(0, 2**53), min_size=3, max_size=3).map(sorted)
EXEMPLARS = st.none() | st.builds(
    Exemplar, st.dictionaries(LABEL, LABEL, max_size=2), VALUES, st.none() | INSTANTS
)


def message(metric: Metric) -> Any:
    """The library's family as the official runtime builds it, sample by sample."""
    suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
    built = metricsproto.MetricFamily(
        name=metric.name + suffix, help=metric.documentation, type=TYPES[metric.type]
    )
    if metric.unit:
        built.unit = metric.unit
    by_labels: dict[tuple[tuple[str, str], ...], Any] = {}
    for sample in metric.samples:
        special = {"summary": "quantile", "histogram": "le", "gaugehistogram": "le"}.get(metric.type)
        labels = tuple(sorted(item for item in sample.labels.items() if item[0] != special))
        if labels not in by_labels:
            by_labels[labels] = built.metric.add()
            for name, value in labels:
                by_labels[labels].label.add(name=name, value=value)
        put(metric, sample, by_labels[labels])
    return built


def put(metric: Metric, sample: Sample, into: Any) -> None:
    kind = {"info": "gauge", "stateset": "gauge", "unknown": "untyped", "gaugehistogram": "histogram"}
    value = getattr(into, kind.get(metric.type, metric.type))
    if sample.timestamp is not None:
        into.timestamp_ms = int(float(sample.timestamp) * 1000 // 1)
    part = sample.name.removeprefix(metric.name)
    if part == "_created":
        stamp(value.created_timestamp, sample.value)
    elif part in ("_count", "_gcount"):
        value.sample_count = int(sample.value)
    elif part in ("_sum", "_gsum"):
        value.sample_sum = sample.value
    elif part == "_bucket":
        bucket = value.bucket.add(cumulative_count=int(sample.value), upper_bound=float(sample.labels["le"]))
        attach(bucket, sample.exemplar)
    elif metric.type == "summary":
        value.quantile.add(quantile=float(sample.labels["quantile"]), value=sample.value)
    else:
        value.value = sample.value
        attach(value, sample.exemplar)


def attach(to: Any, exemplar: Exemplar | None) -> None:
    if exemplar:
        to.exemplar.value = exemplar.value
        for name, value in exemplar.labels.items():
            to.exemplar.label.add(name=name, value=value)
        if exemplar.timestamp is not None:
            stamp(to.exemplar.timestamp, float(exemplar.timestamp))


def stamp(to: Timestamp, instant: float) -> None:
    to.FromMilliseconds(round(instant * 1000))


Native = tuple[int, int, dict[int, int]]  # schema, zero bucket, other buckets


def of(native: NativeBuckets) -> Native:
    filled = {bucket: n for bucket, n in enumerate(native.observed, native.first) if n}
    return native.schema, native.zero, filled


def messages(snapshot: Snapshot) -> tuple[list[Any], dict[str, list[Native]]]:
    """All families as they should be, and of the histograms the native buckets by family."""
    shown, native = list[Any](), dict[str, list[Native]]()
    for row in TABLE:
        metric = Metric(row.name.removesuffix("_total"), row.help, row.kind)
        for values, point, bounds in points(row, snapshot):
            add(metric, row, values, point, bounds)
            if row.kind == "histogram" and not snapshot.show_created:
                native.setdefault(row.name, []).append(of(point.value.native))
        if metric.samples:
            shown.append(message(metric))
    return shown, native


def points(row: Row, snapshot: Snapshot) -> Iterable[tuple[tuple[str, ...], Any, Any]]:
    for agent in snapshot.agents if row.per_agent else ():
        for point in row.per_agent(agent):  # type: ignore[misc]
            yield (str(agent.id), *point.labels), point, snapshot.bounds
    for point in row.overall(snapshot) if row.overall else ():
        yield point.labels, point, snapshot.request_bounds


def without_native(family: Any) -> tuple[Any, list[Native]]:
    """The family with its classic buckets only, and the native ones of each of its metrics."""
    native = []
    for metric in family.metric if family.type == TYPES["histogram"] else ():
        histogram = metric.histogram
        if not histogram.zero_threshold:
            continue
        assert histogram.zero_threshold == 2.0**-20
        counts = metricsproto.native_buckets(histogram)
        native.append((histogram.schema, histogram.zero_count, counts))
        assert all(span.length for span in histogram.positive_span)
        assert all(span.offset > 2 for span in histogram.positive_span[1:])
        for name in ("schema", "zero_threshold", "zero_count", "positive_span", "positive_delta"):
            histogram.ClearField(name)
    return family, native


@settings(max_examples=150)
@given(snapshot=SNAPSHOTS, texts=PER_PIECE)
def test_any_snapshot_is_read_as_it_was_meant(snapshot: Snapshot, texts: int) -> None:
    expected, native = messages(snapshot)
    with patch.object(exposition, "TEXTS_PER_PIECE", texts):
        read = list(metricsproto.families(b"".join(write(families(snapshot)))))
    found = [without_native(family) for family in read]
    assert [family for family, _ in found] == expected
    assert {family.name: buckets for family, buckets in found if buckets} == native


@st.composite
def library_families(draw: st.DrawFn) -> Metric:
    labels = draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=2, unique=True))
    kind = draw(st.sampled_from([*TYPES]))
    name, help_, unit = "some_seconds", draw(LABEL), draw(st.sampled_from(["", "seconds"]))
    values = [
        tuple(each)
        for each in draw(
            st.lists(st.lists(LABEL, min_size=len(labels), max_size=len(labels)), max_size=3, unique_by=tuple)
        )
    ]
    when = draw(st.none() | INSTANTS)
    created = draw(st.none() | INSTANTS)
    if kind == "info":
        family: Metric = InfoMetricFamily("some", help_, labels=labels)
        for each in values:
            family.add_metric(each, draw(st.fixed_dictionaries({"version": LABEL})), when)
    elif kind == "stateset":
        family = StateSetMetricFamily("some", help_, labels=labels)
        for each in values:
            family.add_metric(each, {"on": draw(st.booleans()), "off": draw(st.booleans())}, when)
    elif kind == "counter":
        family = CounterMetricFamily(name, help_, labels=labels, unit=unit)
        for each in values:
            family.add_metric(each, draw(VALUES), created, when, draw(EXEMPLARS))
    elif kind == "gauge":
        family = GaugeMetricFamily(name, help_, labels=labels, unit=unit)
        for each in values:
            family.add_metric(each, draw(VALUES), when)
    elif kind == "unknown":
        family = UnknownMetricFamily(name, help_, labels=labels, unit=unit)
        for each in values:
            family.add_metric(each, draw(VALUES), when)
    elif kind == "summary":
        family = SummaryMetricFamily(name, help_, labels=labels, unit=unit)
        for each in values:
            family.add_metric(each, draw(st.integers(0, 2**53)), draw(VALUES), when)
            at = dict(zip(labels, each, strict=True))
            family.add_sample(name, {**at, "quantile": "0.5"}, draw(VALUES), when)
            if created is not None:
                family.add_sample(f"{name}_created", at, created, when)
    elif kind == "histogram":
        family = HistogramMetricFamily(name, help_, labels=labels, unit=unit)
        for each in values:
            buckets = zip(
                ("0.1", "1.0", "+Inf"), draw(COUNTS), [draw(EXEMPLARS) for _ in range(3)], strict=True
            )
            family.add_metric(each, list(buckets), draw(VALUES), when)
            if created is not None:
                family.add_sample(f"{name}_created", dict(zip(labels, each, strict=True)), created, when)
    else:
        family = GaugeHistogramMetricFamily(name, help_, labels=labels, unit=unit)
        for each in values:
            buckets = zip(("0.1", "1.0", "+Inf"), draw(COUNTS), strict=True)
            family.add_metric(each, list(buckets), draw(VALUES), when)
    return family


@settings(max_examples=300)
@given(given_families=st.lists(library_families(), max_size=3))
def test_any_family_of_the_library_is_read_as_it_was_meant(given_families: list[Metric]) -> None:
    read = list(metricsproto.families(b"".join(write(given_families))))
    assert read == [message(family) for family in given_families]
