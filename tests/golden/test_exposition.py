"""The exposition, byte for byte. After a change that is meant: UPDATE_GOLDEN=1 pytest tests/golden."""

import dataclasses
import os
import platform
import re
from pathlib import Path

import msgspec
import pytest

from exporter.histogram import Exemplar, Histogram
from exporter.metrics.snapshot import AgentSnapshot, Snapshot
from exporter.modus.errors import REASONS
from exporter.runs.state import MISSED, Totals
from tests.oracle import expected, exposed

HERE = Path(__file__).parent
BOUNDS = (1.0, 60.0)
START = 1_790_000_000.0


def totals(**missed: int) -> Totals:
    return Totals(
        created=START - 86400,
        durations=durations(),
        finished={"completed": {"schedule": 3, "api": 1}, "error": {"schedule": 0, "api": 2}},
        newest={"error": {"api": Exemplar("wf_7:b", 1.0, START - 60)}},
        missed=missed,
        approval_timeouts=1,
    )


def durations() -> Histogram:
    newest = [Exemplar("wf_1:a", 0.5, START - 30), None, Exemplar("wf_9:z", 75.25, START - 600)]
    return Histogram([2, 1, 1], START - 86400, 100.25, newest)


def healthy(name: str = "Invoice triage", agent_id: int = 42) -> AgentSnapshot:
    return AgentSnapshot(
        id=agent_id,
        name=name,
        up=True,
        errors={},
        created=START,
        read_duration=0.0625,
        type="task",
        enabled=True,
        counts={"all_executions": 6, "running": 1, "awaiting_human": 0, "error": 2, "completed": 3},
        open_starts={"running": START - 120},
        totals=totals(vanished=1),
        consecutive_failures=0,
        last_end={"completed": START - 30, "error": START - 90},
        last_start=START - 120,
        last_read=START,
        last_reconciled=START - 1800,
        expected_interval=3600.0,
        expected_duration=90.0,
    )


def failed() -> AgentSnapshot:
    return AgentSnapshot(
        id=42,
        name="Invoice triage",
        up=False,
        errors={"forbidden": 2},
        created=START,
        read_duration=0.0625,
        type="task",
        totals=totals(),
        consecutive_failures=2,
        last_end={"completed": START - 90, "error": START - 30},
        last_start=START - 120,
        last_read=START - 60,
        backlog=True,
    )


def first_seen() -> AgentSnapshot:
    """Its counters are not shown yet: older pages are still to be read."""
    return msgspec.structs.replace(healthy(), totals=None, backlog=True)


def snapshot(*agents: AgentSnapshot) -> Snapshot:
    return Snapshot(
        agents=agents,
        bounds=BOUNDS,
        complete=bool(agents) and all(agent.up for agent in agents),
        duration=0.125,
        ledger_up=True,
        version="1.2.3",
        created=START,
        requests={("list_runs", "200"): 3, ("list_runs", "403"): 2} if agents else {},
        request_bounds=(0.1, 1.0),
        request_durations={"list_runs": Histogram([4, 1, 0], START, 0.75)} if agents else {},
        reloaded=START,
        up=bool(agents),
    )


CASES = {
    "empty": snapshot(),
    "one-agent": snapshot(healthy()),
    "escaping": snapshot(
        healthy('Quote " backslash \\ newline \n tab \t bell \x07 lone \ud800 Zürich 東京 🦉'),
        healthy("", 43),
    ),
    "failure": snapshot(failed()),
    "first-sight": snapshot(first_seen()),
    "created": dataclasses.replace(snapshot(healthy()), show_created=True),
}


@pytest.mark.parametrize("openmetrics", [False, True], ids=["text", "openmetrics"])
@pytest.mark.parametrize("case", CASES)
def test_the_exposition_is_this_byte_for_byte(case: str, openmetrics: bool) -> None:
    path = HERE / f"{case}.{'openmetrics' if openmetrics else 'txt'}"
    shown = exposed(CASES[case], openmetrics)
    assert shown == expected(CASES[case], openmetrics)
    shown = shown.replace(platform.python_version().encode(), b"X.Y.Z")
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(shown)
    assert shown.decode() == path.read_bytes().decode()


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ({"error": 3}, {"running": 0, "awaiting_human": 0, "error": 3, "completed": 0}),
        ({"paused": 1}, {"running": 0, "awaiting_human": 0, "error": 0, "completed": 0, "paused": 1}),
        ({"all_executions": 3}, {}),
        ({}, {}),
        (None, {}),
    ],
)
def test_a_documented_status_is_there_at_0_when_the_api_names_only_others(
    counts: dict[str, int] | None, shown: dict[str, int]
) -> None:
    text = exposed(snapshot(msgspec.structs.replace(healthy(), counts=counts)), openmetrics=False).decode()
    found = re.findall(r'^modus_agent_runs\{agent_id="42",status="(\w+)"\} (.*)$', text, re.M)
    assert {status: float(n) for status, n in found} == shown


def test_every_read_error_and_every_reason_of_a_missed_run_is_there_at_0_from_the_start() -> None:
    text = exposed(snapshot(msgspec.structs.replace(healthy(), totals=totals())), openmetrics=False).decode()
    for name, reasons in (("read_errors", REASONS), ("runs_missed", MISSED)):
        found = re.findall(rf'^modus_agent_{name}_total\{{agent_id="42",reason="(\w+)"\}} 0\.0$', text, re.M)
        assert tuple(found) == reasons


def test_an_agent_keeps_its_info_when_it_cannot_be_read() -> None:
    text = exposed(snapshot(failed()), openmetrics=False).decode()
    assert 'modus_agent_info{agent_id="42",agent_name="Invoice triage",agent_type="task"} 1.0\n' in text


def test_a_rename_changes_the_info_series_and_no_other() -> None:
    before, after = (exposed(snapshot(healthy(name)), openmetrics=True).decode() for name in ("old", "new"))
    changed = set(before.splitlines()) ^ set(after.splitlines())
    assert {line.partition("{")[0] for line in changed} == {"modus_agent_info"}


def test_statuses_without_end_and_texts_without_end_become_few_and_short() -> None:
    counts = {"s" * 10_000: 5} | {f"status {n}": 1 for n in range(300)}
    shown = exposed(snapshot(msgspec.structs.replace(healthy(), counts=counts)), openmetrics=True).decode()
    lines = [line for line in shown.splitlines() if line.startswith("modus_agent_runs{")]
    assert len(lines) == 21
    assert sum(float(line.rpartition(" ")[2]) for line in lines) == 305
    assert max(map(len, lines)) < 300
