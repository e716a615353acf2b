"""The exposition as prometheus_client writes it: what the exporter's own must equal byte for byte."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as SampleExemplar
from prometheus_client.utils import floatToGoString

from exporter.histogram import Exemplar, Histogram
from exporter.metrics.exposition import families, write
from exporter.metrics.snapshot import Snapshot
from exporter.metrics.table import TABLE, Point, Row
from exporter.modus.model import printable


class Given(Collector):
    """A registry of these families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def rendered(families: Iterable[Metric], openmetrics: bool) -> bytes:
    return (exposition.generate_latest if openmetrics else generate_latest)(Given(families))


def exposed(snapshot: Snapshot, openmetrics: bool) -> bytes:
    """What the exporter writes of a snapshot."""
    return b"".join(write(families(snapshot), openmetrics))


def expected(snapshot: Snapshot, openmetrics: bool) -> bytes:
    """What the library writes of it; `_created` in OpenMetrics only, and only when it is to be shown."""
    shown = []
    for row in TABLE:
        metric = Metric(row.name.removesuffix("_total"), row.help, row.kind)
        for agent in snapshot.agents if row.per_agent else ():
            for point in row.per_agent(agent):
                add(metric, row, (str(agent.id), *point.labels), point, snapshot.bounds)
        for point in row.overall(snapshot) if row.overall else ():
            add(metric, row, point.labels, point, snapshot.request_bounds)
        if not (openmetrics and snapshot.show_created):
            metric.samples = [s for s in metric.samples if s.name != f"{metric.name}_created"]
        if metric.samples:
            shown.append(metric)
    return rendered(shown, openmetrics)


def add(metric: Metric, row: Row, values: Sequence[str], point: Point, bounds: Sequence[float]) -> None:
    labels = dict(zip(row.all_labels, map(printable, values), strict=True))
    if isinstance(point.value, Histogram):
        cumulative = list(accumulate(point.value.buckets))
        exemplars = point.value.exemplars or [None] * len(cumulative)
        for bound, count, newest in zip((*bounds, float("inf")), cumulative, exemplars, strict=True):
            le = {**labels, "le": floatToGoString(bound)}
            metric.add_sample(f"{metric.name}_bucket", le, float(count), exemplar=exemplar(newest))
        metric.add_sample(f"{metric.name}_count", labels, float(cumulative[-1]))
        metric.add_sample(f"{metric.name}_sum", labels, point.value.sum)
    else:
        metric.add_sample(row.name, labels, float(point.value), exemplar=exemplar(point.exemplar))
    if point.created is not None:
        metric.add_sample(f"{metric.name}_created", labels, point.created)


def exemplar(newest: Exemplar | None) -> SampleExemplar | None:
    if newest is None or len("run_id" + newest.run_id) > 128:
        return None
    return SampleExemplar({"run_id": printable(newest.run_id)}, newest.value, newest.at)
