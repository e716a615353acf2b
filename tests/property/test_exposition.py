"""Whatever the API lists, the exposition is one that Prometheus can trust."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from unittest.mock import patch

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.histogram import Exemplar, Histogram, NativeBuckets
from exporter.metrics import exposition
from exporter.metrics.exposition import families, write
from exporter.metrics.kept import Kept
from exporter.metrics.snapshot import AgentSnapshot, Snapshot
from exporter.modus.model import Run
from exporter.runs.ledger import Ledger
from exporter.runs.reader import Memory, Reading
from exporter.runs.state import Totals, Watermark
from tests.oracle import expected, exposed, rendered
from tests.simulation import BOUNDS, START

TEXT = st.text(st.characters(), max_size=12)
STATUSES = st.sampled_from(["running", "awaiting_human", "completed", "error", "cancelled", "paused"])
TIMES = st.sampled_from(
    [None, "", "yesterday", "2026-09-21T13:00:00Z", "2026-09-21T14:13:20.5+01:00", "9999-12-31"]
)
RUNS = st.builds(
    Run,
    # no quote: prometheus_client's parser cannot read one in an exemplar, not even from its own renderer
    id=st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"'), min_size=1, max_size=130),
    workflow_id=TEXT,
    status=STATUSES,
    agent_name=TEXT,
    agent_type=TEXT,
    trigger_type=st.none() | TEXT,
    started_at=TIMES,
    ended_at=TIMES,
    duration_ms=st.none() | st.floats(allow_nan=True, allow_infinity=True),
)
COUNTS = st.dictionaries(TEXT, st.integers(0, 2**53), max_size=30)
INSTANTS = st.floats(0, 1e11)
FINITE = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)  # none is -0.0


RUN_IDS = TEXT | st.integers(121, 124).map(lambda length: "x" * length)  # the longest exemplar has 122
NEWEST = st.none() | st.builds(Exemplar, RUN_IDS, FINITE, INSTANTS)


NATIVE = st.builds(
    NativeBuckets,
    schema=st.integers(-4, 3),
    zero=st.integers(0, 2**53),
    first=st.integers(-200, 400),
    observed=st.lists(st.sampled_from([0, 0, 1, 70]) | st.integers(0, 2**53), max_size=40),
)


def histograms(bounds: int, exemplars: st.SearchStrategy[Exemplar | None]) -> st.SearchStrategy[Histogram]:
    buckets = bounds + 1
    return st.builds(
        Histogram,
        buckets=st.lists(st.integers(0, 2**50), min_size=buckets, max_size=buckets),
        created=INSTANTS,
        sum=FINITE,
        exemplars=st.just([]) | st.lists(exemplars, min_size=buckets, max_size=buckets),
        native=NATIVE,
    )


TOTALS = st.builds(
    Totals,
    created=INSTANTS,
    durations=histograms(len(BOUNDS), NEWEST),
    missed=st.dictionaries(st.sampled_from(["malformed", "unheard of"]), st.integers(0, 9)),
    finished=st.dictionaries(TEXT, st.dictionaries(TEXT, st.integers(0, 2**53), max_size=3), max_size=3),
    newest=st.dictionaries(TEXT, st.dictionaries(TEXT, st.builds(Exemplar, RUN_IDS, FINITE, INSTANTS))),
)
AGENTS = st.builds(
    AgentSnapshot,
    id=st.integers(0, 2**63 - 1),
    name=TEXT,
    up=st.booleans(),
    errors=st.dictionaries(st.sampled_from(["timeout", "forbidden"]), st.integers(0, 9)),
    created=INSTANTS,
    read_duration=st.none() | FINITE,
    type=TEXT,
    enabled=st.none() | st.booleans(),
    counts=st.none() | COUNTS,
    open_starts=st.none() | st.dictionaries(STATUSES, INSTANTS),
    totals=st.none() | TOTALS,
    consecutive_failures=st.none() | st.integers(0, 9),
    last_end=st.dictionaries(TEXT, INSTANTS, max_size=3),
    last_start=st.none() | FINITE,
    last_read=st.none() | INSTANTS,
    last_reconciled=st.none() | INSTANTS,
    backlog=st.booleans(),
    expected_interval=st.none() | st.floats(1, 1e6),
    expected_duration=st.none() | st.floats(1, 1e6),
)
PER_PIECE = st.sampled_from([1, 2, exposition.TEXTS_PER_PIECE])
SNAPSHOTS = st.builds(
    Snapshot,
    agents=st.lists(AGENTS, max_size=3, unique_by=lambda agent: agent.id),
    bounds=st.just(BOUNDS),
    complete=st.booleans(),
    duration=FINITE,
    ledger_up=st.booleans(),
    version=TEXT,
    created=INSTANTS,
    requests=st.dictionaries(st.tuples(TEXT, TEXT), st.integers(0, 2**53), max_size=3),
    request_bounds=st.just((0.1, 2.0)),
    request_durations=st.dictionaries(TEXT, histograms(2, st.none()), max_size=3),
    up=st.booleans(),
    show_created=st.booleans(),
)


@settings(max_examples=150)
@given(snapshot=SNAPSHOTS, openmetrics=st.booleans(), texts=PER_PIECE)
def test_any_snapshot_is_written_as_prometheus_client_writes_it(
    snapshot: Snapshot, openmetrics: bool, texts: int
) -> None:
    kept = Kept()
    with patch.object(exposition, "TEXTS_PER_PIECE", texts):
        shown = [b"".join(write(families(snapshot), openmetrics, kept)) for _ in range(2)]
    assert shown == [expected(snapshot, openmetrics)] * 2


@settings(max_examples=150)
@given(snapshot=SNAPSHOTS, openmetrics=st.booleans())
def test_the_library_reads_the_same_from_our_families(snapshot: Snapshot, openmetrics: bool) -> None:
    openmetrics |= snapshot.show_created  # in the text format the library makes families of them
    assert rendered(families(snapshot), openmetrics) == exposed(snapshot, openmetrics)


def without_exemplars(agents: Iterable[AgentSnapshot]) -> list[AgentSnapshot]:
    """The library's parser cannot read an exemplar with a quote in it, not even one that it wrote."""

    def without(totals: Totals) -> Totals:
        durations = Histogram(totals.durations.buckets, START, totals.durations.sum)
        return msgspec.structs.replace(totals, durations=durations, newest={})

    return [msgspec.structs.replace(agent, totals=without(agent.totals)) for agent in agents if agent.totals]


@settings(max_examples=150)
@given(runs=st.lists(RUNS, max_size=40), counts=COUNTS, name=TEXT, openmetrics=st.booleans())
def test_any_list_of_runs_gives_a_sound_exposition(
    runs: list[Run], counts: dict[str, int], name: str, openmetrics: bool
) -> None:
    ledger = Ledger(None, BOUNDS, lookback=86400.0, clock=lambda: 0.0)
    agents = []
    for agent_id in (1, 2):  # two agents with one name
        ledger.record(agent_id, Reading(Watermark(), Memory(), runs=runs, now=START))
        totals = ledger.agents()[agent_id].totals
        agents.append(
            AgentSnapshot(
                id=agent_id,
                name=name,
                up=True,
                errors={},
                created=START,
                counts=counts,
                totals=totals,
            )
        )
    snapshot = Snapshot(agents, BOUNDS, True, 0.5, True, "1.0", START)
    assert exposed(snapshot, openmetrics) == expected(snapshot, openmetrics)
    text = exposed(replace(snapshot, agents=without_exemplars(agents)), openmetrics).decode()
    parse = parse_openmetrics if openmetrics else parse_text
    samples = [sample for family in parse(text) for sample in family.samples]

    series = Counter((sample.name, *sorted(sample.labels.items())) for sample in samples)
    assert [key for key, times in series.items() if times > 1] == []
    for agent_id in ("1", "2"):
        mine = [sample for sample in samples if sample.labels.get("agent_id") == agent_id]
        buckets = [s.value for s in mine if s.name == "modus_agent_run_duration_seconds_bucket"]
        assert buckets == sorted(buckets)
        (count,) = [s.value for s in mine if s.name == "modus_agent_run_duration_seconds_count"]
        assert buckets[-1] == count
        (total,) = [s.value for s in mine if s.name == "modus_agent_run_duration_seconds_sum"]
        assert 0 <= total < float("inf")
        assert "all_executions" not in [sample.labels.get("status") for sample in mine]
        assert len([s for s in mine if s.name == "modus_agent_runs"]) <= 21
