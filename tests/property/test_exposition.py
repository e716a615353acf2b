"""Whatever the API lists, the exposition is one that Prometheus can trust."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.metrics.table import AgentSnapshot, Snapshot
from exporter.modus.model import Cursor, Run
from exporter.runs.ledger import Ledger
from tests.oracle import expected, exposed
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


@settings(max_examples=150, deadline=None)
@given(runs=st.lists(RUNS, max_size=40), counts=COUNTS, name=TEXT, openmetrics=st.booleans())
def test_any_list_of_runs_gives_a_sound_exposition(
    runs: list[Run], counts: dict[str, int], name: str, openmetrics: bool
) -> None:
    ledger = Ledger(None, BOUNDS, lookback=86400.0, clock=lambda: 0.0)
    agents = []
    for agent_id in (1, 2):  # two agents with one name
        account = ledger.account(agent_id, START)
        ledger.record(agent_id, runs, Cursor(), START)
        agents.append(
            AgentSnapshot(
                id=agent_id,
                name=name,
                up=True,
                errors={},
                created=START,
                counts=counts,
                totals=account.totals,
            )
        )
    snapshot = Snapshot(agents, BOUNDS, True, 0.5, True, "1.0", START)
    assert exposed(snapshot, openmetrics) == expected(snapshot, openmetrics)
    text = exposed(snapshot, openmetrics).decode()
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
