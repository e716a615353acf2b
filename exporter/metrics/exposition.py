"""From a snapshot to metric families, and from families to the text that a scraper reads. Pure.

Our families go into any of prometheus_client's registries. They write their own text, because the library
takes twenty times as long, more than all the rest of a scrape; all others are written by the library.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from itertools import accumulate, chain, islice, repeat

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics_format
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as SampleExemplar
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from exporter.histogram import Exemplar, Histogram
from exporter.metrics.kept import Kept, TextOf
from exporter.metrics.snapshot import AgentSnapshot, Snapshot
from exporter.metrics.table import AGENT_LABEL, TABLE, Point, Row
from exporter.modus.model import printable

END = b"# EOF\n"  # of OpenMetrics
LONGEST_RUN_ID = 128 - len("run_id")  # of an exemplar: names and values together, OpenMetrics 1.0
NAME, AGENT = "\0\1"  # stand for these in text that is kept, which is shorter then; `printable` leaves none
TEXTS_PER_PIECE = 250  # each of a point, or of all points of an agent

_number = lru_cache(maxsize=4096)(floatToGoString)  # most values are small counts


def describe() -> list[Metric]:
    """Names and types of all our families, without samples."""
    return [Metric(row.family, row.help, row.kind) for row in TABLE]


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """The snapshot's families in the table's order; those without a sample are left out."""
    agents = [f'{{{AGENT_LABEL}="{agent.id}"' for agent in snapshot.agents]
    for row in TABLE:
        family = Family(row, snapshot, agents if row.per_agent else [""])
        if any(family.points()):
            yield family


def write(families: Iterable[Metric], openmetrics: bool, kept: Kept | None = None) -> Iterator[bytes]:
    """The families as OpenMetrics 1.0 with its final `# EOF`, or as Prometheus' text format 0.0.4.

    It comes in pieces, because that of 10,000 agents has 50 MB. What `kept` has is not written anew.
    """
    with (kept or Kept()).texts() as text_of:
        texts = chain.from_iterable(_text(family, openmetrics, text_of) for family in families)
        for piece in in_pieces(texts):
            yield piece.encode()
    if openmetrics:
        yield END


def in_pieces(texts: Iterator[str]) -> Iterator[str]:
    """All of the texts, some at a time; there may be empty ones."""
    while some := list(islice(texts, TEXTS_PER_PIECE)):
        yield "".join(some)


def _text(family: Metric, openmetrics: bool, text_of: TextOf) -> Iterable[str]:
    if isinstance(family, Family):
        return family.text(openmetrics, text_of)
    encode = openmetrics_format.generate_latest if openmetrics else generate_latest
    return [encode(_One(family)).removesuffix(END if openmetrics else b"").decode()]


class _One(Collector):
    """A registry of one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


class Family(Metric):
    """A row of the table with the values of one snapshot; its samples are made when somebody asks.

    `before` is what comes before the row's own labels: of each agent the brace and its labels.
    """

    def __init__(self, row: Row, snapshot: Snapshot, before: Sequence[str]) -> None:
        super().__init__(row.family, row.help, row.kind)
        del self.samples  # an empty list, which would stand before the property
        self.row = row
        self.snapshot = snapshot
        self._before = before
        self._own: dict[tuple[str, ...], tuple[str, list[str]]] = {}  # label values -> as text
        self.bounds = (*(snapshot.bounds if row.per_agent else snapshot.request_bounds), math.inf)

    @cached_property
    def samples(self) -> list[Sample]:  # type: ignore[override]
        """What `text` writes, as the library has it."""
        agents = [(str(agent.id),) for agent in self.snapshot.agents] if self.row.per_agent else [()]
        return [
            sample
            for agent, points in zip(agents, self.points(), strict=True)
            for point in points
            for sample in self._samples(agent, point)
        ]

    def points(self) -> Iterable[Sequence[Point]]:
        """The row's points of each agent; or those of no agent."""
        if self.row.per_agent:
            return map(self.row.per_agent, self.snapshot.agents)
        return self._overall

    @cached_property
    def _overall(self) -> list[Sequence[Point]]:
        """The points of no agent: there may be many, and they are looked at twice."""
        return [self.row.overall(self.snapshot)] if self.row.overall else []

    def text(self, openmetrics: bool, text_of: TextOf) -> Iterable[str]:
        """The family as the library writes it, in pieces of one point, or of one agent's.

        The text format has neither exemplars nor `_created`, for which the library makes further families.
        """
        name = self.name if openmetrics else self.row.name
        head = f"# HELP {name} {self.documentation}\n# TYPE {name} {self.type}\n"
        return chain([head], self._texts(openmetrics, text_of))

    def _texts(self, openmetrics: bool, text_of: TextOf) -> Iterable[str]:
        per_agent, source = self.row.per_agent, self.row.source
        if not (per_agent and source):
            return self._lines(openmetrics, self.row.name, self._before, self.points())
        kind = self.row.name, openmetrics, self.snapshot.show_created

        def written(agent: AgentSnapshot) -> str:
            return "".join(self._lines(openmetrics, NAME, [AGENT], [per_agent(agent)]))

        return (
            text_of(source(agent), kind, partial(written, agent))
            .replace(NAME, self.row.name)
            .replace(AGENT, before)
            for agent, before in zip(self.snapshot.agents, self._before, strict=True)
        )

    def _lines(
        self, openmetrics: bool, name: str, agents: Iterable[str], points_of_each: Iterable[Sequence[Point]]
    ) -> Iterator[str]:
        created_name, own = f"{self.name}_created", self._own
        show_created = openmetrics and self.snapshot.show_created
        for before, points in zip(agents, points_of_each, strict=True):
            for point in points:
                texts = own.get(point.labels)
                if texts is None:
                    texts = own[point.labels] = self._own_labels(point.labels)
                (after, buckets), value = texts, point.value
                created = point.created if show_created else None
                if isinstance(value, Histogram):
                    yield _buckets(f"{name}_bucket{before}", buckets, value, openmetrics)
                    count, total = _number(sum(value.buckets)), _number(value.sum)
                    yield f"{name}_count{before}{after}{count}\n{name}_sum{before}{after}{total}\n"
                    if created is not None:
                        yield f"{created_name}{before}{after}{_number(created)}\n"
                    continue
                newest = _exemplar(point.exemplar) if openmetrics and point.exemplar else ""
                yield f"{name}{before}{after}{_number(value)}{newest}\n"
                if created is not None:
                    yield f"{created_name}{before}{after}{_number(created)}\n"

    def _own_labels(self, values: tuple[str, ...]) -> tuple[str, list[str]]:
        """The row's own labels as text up to the value: of a point, and of each bucket of a histogram."""
        names = self.row.labels
        start, alone = (",", "} ") if self.row.per_agent else ("{", " ")
        les = map(_number, self.bounds if self.type == "histogram" else ())
        buckets = [f"{start}{_pairs((*names, 'le'), (*values, le))}}} " for le in les]
        return f"{start}{_pairs(names, values)}}} " if names else alone, buckets

    def _samples(self, agent: tuple[str, ...], point: Point) -> Iterator[Sample]:
        values = map(printable, (*agent, *point.labels))
        labels = dict(zip(self.row.all_labels, values, strict=True))
        value = point.value
        if isinstance(value, Histogram):
            cumulative = list(accumulate(value.buckets))
            exemplars = value.exemplars or repeat(None, len(cumulative))
            for bound, count, newest in zip(self.bounds, cumulative, exemplars, strict=True):
                le = labels | {"le": _number(bound)}
                yield Sample(f"{self.name}_bucket", le, count, None, _sample_exemplar(newest))
            yield Sample(f"{self.name}_count", labels, cumulative[-1])
            yield Sample(f"{self.name}_sum", labels, value.sum)
        else:
            yield Sample(self.row.name, labels, value, None, _sample_exemplar(point.exemplar))
        if point.created is not None and self.snapshot.show_created:
            yield Sample(f"{self.name}_created", labels, point.created)


def _buckets(start: str, labels: Sequence[str], histogram: Histogram, openmetrics: bool) -> str:
    """The lines of all buckets; `start` is their name with what is before the row's own labels."""
    exemplars = (histogram.exemplars if openmetrics else ()) or repeat(None, len(histogram.buckets))
    lines = []
    total, text = 0, _number(0)
    for own, n, newest in zip(labels, histogram.buckets, exemplars, strict=True):
        if n:
            total += n
            text = _number(total)
        lines.append(f"{start}{own}{text}{_exemplar(newest) if newest else ''}\n")
    return "".join(lines)


def _exemplar(newest: Exemplar) -> str:
    if len(newest.run_id) > LONGEST_RUN_ID:
        return ""
    return f' # {{run_id="{_escaped(newest.run_id)}"}} {_number(newest.value)} {newest.at}'


def _sample_exemplar(newest: Exemplar | None) -> SampleExemplar | None:
    if newest is None or len(newest.run_id) > LONGEST_RUN_ID:
        return None
    return SampleExemplar({"run_id": printable(newest.run_id)}, newest.value, newest.at)


def _pairs(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Labels as text, in the order of their names."""
    if len(names) == 1:  # nearly always
        return f'{names[0]}="{_escaped(values[0])}"'
    pairs = sorted(zip(names, values, strict=True))
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)


def _escaped(text: str) -> str:
    if text.isprintable() and '"' not in text and "\\" not in text:  # nearly always
        return text
    return printable(text).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
