"""Every metric in one table, and the step from a scrape's snapshot to its text. Pure.

Names, types and help texts follow OpenMetrics and Prometheus' guide for writing exporters: base
units, `_total` on counters, `_created` on what counts from a known instant.
"""

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice, repeat
from typing import Literal

import msgspec
from prometheus_client.utils import floatToGoString

from exporter.modus.errors import REASONS
from exporter.modus.model import OPEN_STATUSES, TOTAL_COUNT, Exemplar, Totals, label, printable

AGENT_LABELS = ("agent_id", "agent_name")
MAX_STATUSES = 20  # of one agent; the API names five
LONGEST_EXEMPLAR = 128  # characters of names and values together, OpenMetrics 1.0
POINTS_PER_PIECE = 1000

_number: Callable[[float], str] = lru_cache(maxsize=4096)(floatToGoString)  # most values are small counts


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram: runs or requests per bucket, not cumulative, with the sum in seconds."""

    buckets: Sequence[int]
    sum: float
    created: float
    exemplars: Sequence[Exemplar | None] = ()


@dataclass(frozen=True, slots=True)
class AgentSnapshot:
    """One agent as of one scrape. Times are Unix seconds; None is what is not known or not set."""

    id: int
    name: str
    up: bool
    errors: Mapping[str, int]  # by reason
    created: float  # of the errors
    read_duration: float | None = None  # seconds
    type: str | None = None
    counts: Mapping[str, int] | None = None  # None when the agent could not be read
    open_starts: Mapping[str, float] | None = None  # oldest start by status; None likewise
    totals: Totals | None = None  # None before the first sight
    last_start: float | None = None
    last_read: float | None = None
    backlog: bool = False
    expected_interval: float | None = None  # seconds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one scrape shows."""

    agents: Sequence[AgentSnapshot]
    bounds: Sequence[float]  # of the run durations' buckets, seconds
    complete: bool  # every agent was read
    duration: float  # of the scrape, seconds
    ledger_up: bool
    version: str
    created: float  # start of the process, Unix seconds
    requests: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (operation, code)
    request_bounds: Sequence[float] = ()
    request_durations: Mapping[str, tuple[Sequence[int], float]] = field(default_factory=dict)  # by operation
    reload_successful: bool = True
    reloaded: float = 0.0


class Point(msgspec.Struct, frozen=True, gc=False):
    """A value with the row's own label values."""

    labels: tuple[str, ...]
    value: float | Distribution
    created: float | None = None


Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True, slots=True)
class Row:
    """A metric: its name as exposed, its own labels, its help text, and where its values come from."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    per_agent: Callable[[AgentSnapshot], Iterable[Point]] | None = None
    overall: Callable[[Snapshot], Iterable[Point]] | None = None

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels of a sample, those of the agent first."""
        return AGENT_LABELS + self.labels if self.per_agent else self.labels


def _maybe(value: float | None, *labels: str) -> list[Point]:
    return [] if value is None else [Point(labels, value)]


def _runs(agent: AgentSnapshot) -> list[Point]:
    by_status: dict[str, int] = {}
    for name, n in (agent.counts or {}).items():
        if name == TOTAL_COUNT:
            continue
        status = label(name)  # two names may become one
        if status not in by_status and len(by_status) >= MAX_STATUSES:
            status = "other"
        by_status[status] = by_status.get(status, 0) + n
    return [Point((status,), n) for status, n in by_status.items()]


def _durations(agent: AgentSnapshot) -> list[Point]:
    totals = agent.totals
    if totals is None:
        return []
    distribution = Distribution(
        totals.buckets, totals.duration_sum, totals.durations_created, totals.exemplars
    )
    return [Point((), distribution)]


def _finished(agent: AgentSnapshot) -> list[Point]:
    totals = agent.totals
    if totals is None:
        return []
    return [
        Point((status, trigger), n, totals.created)
        for status, by_trigger in totals.finished.items()
        for trigger, n in by_trigger.items()
    ]


def _last_end(agent: AgentSnapshot) -> list[Point]:
    ends = agent.totals.last_end if agent.totals else {}
    return [Point((status,), end) for status, end in ends.items()]


def _oldest_open(agent: AgentSnapshot) -> list[Point]:
    starts = agent.open_starts or {}
    return [Point((status,), starts[status]) for status in OPEN_STATUSES if status in starts]


def _errors(agent: AgentSnapshot) -> list[Point]:
    return [Point((reason,), agent.errors.get(reason, 0), agent.created) for reason in REASONS]


def _requests(snapshot: Snapshot) -> list[Point]:
    return [Point(labels, n, snapshot.created) for labels, n in sorted(snapshot.requests.items())]


def _request_durations(snapshot: Snapshot) -> list[Point]:
    return [
        Point((operation,), Distribution(buckets, total, snapshot.created))
        for operation, (buckets, total) in sorted(snapshot.request_durations.items())
    ]


# fmt: off
TABLE = (
    Row("modus_up", "gauge", "Whether every agent was read in this scrape.",
        overall=lambda s: [Point((), s.complete)]),
    Row("modus_agent_up", "gauge", "Whether this agent was read in this scrape.",
        per_agent=lambda a: [Point((), a.up)]),
    Row("modus_agent_info", "gauge", "The agent and its type; always 1.", ("agent_type",),
        per_agent=lambda a: [] if a.type is None else [Point((a.type,), 1)]),
    Row("modus_agent_runs", "gauge", "Runs per status as the API counts them.", ("status",), per_agent=_runs),
    Row("modus_agent_executions", "gauge", "Runs in all statuses as the API counts them.",
        per_agent=lambda a: _maybe((a.counts or {}).get(TOTAL_COUNT))),
    Row("modus_agent_run_duration_seconds", "histogram", "Durations of the completed runs, each run once.",
        per_agent=_durations),
    Row("modus_agent_runs_finished_total", "counter",
        "Ended runs, each run once.", ("status", "trigger_type"), per_agent=_finished),
    Row("modus_agent_last_run_start_timestamp_seconds", "gauge", "Start of the newest run.",
        per_agent=lambda a: _maybe(a.last_start)),
    Row("modus_agent_last_run_end_timestamp_seconds", "gauge",
        "Newest end of a run per terminal status.", ("status",), per_agent=_last_end),
    Row("modus_agent_oldest_open_run_start_timestamp_seconds", "gauge",
        "Start of the oldest run that has not ended; absent while there is none.", ("status",),
        per_agent=_oldest_open),
    Row("modus_agent_expected_interval_seconds", "gauge",
        "A run should start at least this often, says the configuration; absent when it does not say.",
        per_agent=lambda a: _maybe(a.expected_interval)),
    Row("modus_agent_last_read_timestamp_seconds", "gauge", "The last successful read of the agent.",
        per_agent=lambda a: _maybe(a.last_read)),
    Row("modus_agent_read_duration_seconds", "gauge", "How long reading the agent took in this scrape.",
        per_agent=lambda a: _maybe(a.read_duration)),
    Row("modus_agent_backlog", "gauge", "Whether older pages of the agent's runs are still to be read.",
        per_agent=lambda a: [Point((), a.backlog)]),
    Row("modus_agent_read_errors_total", "counter",
        "Scrapes in which the agent could not be read, by reason.", ("reason",), per_agent=_errors),
    Row("modus_api_requests_total", "counter",
        "Requests to the API by operation and HTTP status, or by what went wrong without one.",
        ("operation", "code"), overall=_requests),
    Row("modus_api_request_duration_seconds", "histogram",
        "How long requests to the API took.", ("operation",), overall=_request_durations),
    Row("modus_exporter_agents", "gauge", "Agents in use.", overall=lambda s: [Point((), len(s.agents))]),
    Row("modus_exporter_scrape_duration_seconds", "gauge", "How long reading all agents took in this scrape.",
        overall=lambda s: [Point((), s.duration)]),
    Row("modus_exporter_ledger_up", "gauge", "Whether the state can be written.",
        overall=lambda s: [Point((), s.ledger_up)]),
    Row("modus_exporter_config_last_reload_successful", "gauge",
        "Whether the last attempt to load the configuration succeeded.",
        overall=lambda s: [Point((), s.reload_successful)]),
    Row("modus_exporter_config_last_reload_success_timestamp_seconds", "gauge",
        "When the configuration in force was loaded.", overall=lambda s: [Point((), s.reloaded)]),
    Row("modus_exporter_build_info", "gauge",
        "The exporter's version and the Python it runs on; always 1.", ("version", "pythonversion"),
        overall=lambda s: [Point((s.version, platform.python_version()), 1)]),
)
# fmt: on


def expose(snapshot: Snapshot, openmetrics: bool) -> Iterator[bytes]:
    """The snapshot as OpenMetrics 1.0 without its final `# EOF`, or as Prometheus' text format 0.0.4.

    It comes in pieces, because that of 10,000 agents has 100 MB. Families are in the table's order;
    those without a sample are left out. The text format has neither exemplars nor `_created`. Written
    by hand: prometheus_client takes twenty times as long, more than all the rest of a scrape.
    """
    agents = [(agent, "{" + _pairs(AGENT_LABELS, (str(agent.id), agent.name))) for agent in snapshot.agents]
    texts = chain.from_iterable(_family(row, snapshot, agents, openmetrics) for row in TABLE)
    while piece := "".join(islice(texts, POINTS_PER_PIECE)):
        yield piece.encode()


def _family(
    row: Row, snapshot: Snapshot, agents: Sequence[tuple[AgentSnapshot, str]], openmetrics: bool
) -> Iterator[str]:
    """The family's text, a point at a time, its head with the first one."""
    name, base = row.name, row.name.removesuffix("_total")
    head = f"# HELP {base if openmetrics else name} {row.help}\n"
    head += f"# TYPE {base if openmetrics else name} {row.kind}\n"
    bounds = tuple(snapshot.bounds if row.per_agent else snapshot.request_bounds)
    own: dict[tuple[str, ...], str] = {}  # label values -> text
    for agent, points in _points(row, snapshot, agents):
        for point in points:
            if point.labels not in own:
                own[point.labels] = _own_labels(row.labels, point.labels, not agent)
            labels, value, created = agent + own[point.labels], point.value, point.created
            if isinstance(value, Distribution):
                buckets = _bucket_labels(row.labels, point.labels, bounds, not agent)
                yield head + _distribution(name, agent, labels, value, buckets, openmetrics)
            elif openmetrics and created is not None:
                yield f"{head}{name}{labels}{_number(value)}\n{base}_created{labels}{_number(created)}\n"
            else:
                yield f"{head}{name}{labels}{_number(value)}\n"
            head = ""


def _points(
    row: Row, snapshot: Snapshot, agents: Sequence[tuple[AgentSnapshot, str]]
) -> Iterable[tuple[str, Iterable[Point]]]:
    """The row's points of each agent, behind its labels with the brace before them; or those of no agent."""
    if row.per_agent:
        return ((labels, row.per_agent(agent)) for agent, labels in agents)
    return [("", row.overall(snapshot))] if row.overall else []


def _distribution(
    name: str,
    agent: str,
    labels: str,
    distribution: Distribution,
    bucket_labels: Sequence[str],
    openmetrics: bool,
) -> str:
    exemplars = (distribution.exemplars if openmetrics else ()) or repeat(None, len(bucket_labels))
    bucket = f"{name}_bucket{agent}"
    lines = []
    total, text = 0, _number(0)
    for own, n, newest in zip(bucket_labels, distribution.buckets, exemplars, strict=True):
        if n:
            total += n
            text = _number(total)
        lines.append(f"{bucket}{own}{text}{_exemplar(newest) if newest else ''}\n")
    lines.append(f"{name}_count{labels}{text}\n{name}_sum{labels}{_number(distribution.sum)}\n")
    if openmetrics:  # right behind the samples: Prometheus 3 looks for it from there on
        lines.append(f"{name}_created{labels}{_number(distribution.created)}\n")
    return "".join(lines)


def _exemplar(newest: Exemplar) -> str:
    if len("run_id") + len(newest.run_id) > LONGEST_EXEMPLAR:
        return ""
    return f' # {{run_id="{_escaped(newest.run_id)}"}} {_number(newest.duration)} {newest.end}'


def _own_labels(names: tuple[str, ...], values: tuple[str, ...], alone: bool) -> str:
    """The row's own labels up to the value; but for those that stand `alone`, the agent's are before them."""
    pairs = _pairs(names, values)
    if alone:
        return f"{{{pairs}}} " if pairs else " "
    return f",{pairs}}} " if pairs else "} "


@lru_cache(maxsize=64)
def _bucket_labels(
    names: tuple[str, ...], values: tuple[str, ...], bounds: tuple[float, ...], alone: bool
) -> list[str]:
    """Likewise those of each bucket."""
    return [_own_labels((*names, "le"), (*values, _number(bound)), alone) for bound in (*bounds, math.inf)]


def _pairs(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Labels as text, in the order of their names."""
    pairs = sorted(zip(names, values, strict=True))
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)


def _escaped(text: str) -> str:
    if text.isprintable() and '"' not in text and "\\" not in text:  # nearly always
        return text
    return printable(text).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
