"""Why runs failed: what the log says of each run that ended, once, and approvals that timed out."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.demo.simulator import Answer, SimulatedModus
from exporter.runs.runlog import RunLog
from exporter.runs.why import BURST, INTERVAL
from exporter.tokenbucket import TokenBucket
from tests.simulation import Clock, Exporter, finished, settings

Start = Callable[..., Exporter]
KILLED: Any = object()


def kill(exporter: Exporter) -> None:
    """What is in memory is gone."""
    store, exporter.ledger._store = exporter.ledger._store, KILLED
    assert store
    store.close()


@pytest.fixture
def modus() -> SimulatedModus:
    modus = SimulatedModus(fleet={}, clock=Clock())
    modus.add_agent(7, "Seven")
    return modus


@pytest.fixture
def start(modus: SimulatedModus, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Start]:
    caplog.set_level(logging.INFO)
    started: list[Exporter] = []

    def start(which: str = "failed", *, path: str | None = "state.db", **more: Any) -> Exporter:
        chosen = replace(settings(7), run_log=RunLog(which, **more))
        exporter = Exporter(modus, path and str(tmp_path / path), chosen)
        started.append(exporter)
        exporter.scrape()
        return exporter

    yield start
    for exporter in started:
        if exporter.ledger._store is not KILLED:
            exporter.close()


def said(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    lines = [record for record in caplog.records if record.message == "run ended"]
    return [record.__dict__["fields"] for record in lines]


def ended(modus: SimulatedModus, status: str = "error", **more: Any) -> str:
    run = modus.start_run(7, at=modus.clock() - 30, lasts=20.0, outcome=status, **more)
    return run.id


def get_run(modus: SimulatedModus) -> int:
    return sum(request.operation == "get_run" for request in modus.requests)


def test_a_failed_run_is_one_line_with_all_that_is_known(
    start: Start, modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = start()
    run_id = ended(modus, trigger="slack")
    ended(modus, "completed")
    for _ in range(3):
        exporter.scrape()
    expected = {
        "agent_id": 7,
        "run_id": run_id,
        "status": "error",
        "duration_seconds": 20.0,
        "trigger_type": "slack",
    }
    assert said(caplog) == [expected]


def test_all_runs_get_a_line_when_all_are_wanted_and_none_when_none_is(
    start: Start, modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = start("all")
    ids = {ended(modus, status) for status in ("completed", "error", "cancelled", "timed_out")}
    exporter.scrape()
    assert {line["run_id"] for line in said(caplog)} == ids
    exporter.collector.reload(lambda: exporter.api, settings(7))  # type: ignore[arg-type,return-value]
    ended(modus)
    exporter.scrape()
    assert len(said(caplog)) == 4


def test_what_the_task_said_is_there_only_when_asked_for_and_cut(
    start: Start, modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = start(with_task_error=True)
    error = "Anna Muster\n" + "x" * 1000
    fault = (
        b'{"id":"%s","workflowId":"w","status":"error","taskError":"' + error.replace("\n", "\\n").encode()
    )
    run_id = ended(modus)
    modus.fault = lambda request: (
        Answer(200, {}, fault.replace(b"%s", run_id.encode()) + b'"}')
        if request.operation == "get_run"
        else None
    )
    exporter.scrape()
    (line,) = said(caplog)
    assert line["task_error"] == "Anna Muster " + "x" * 288


def test_the_past_of_an_agent_that_is_seen_first_is_no_news(
    start: Start, modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    ended(modus)
    exporter = start("all")
    assert finished(exporter.scrape()[7])["error"] == 1
    assert said(caplog) == []
    assert get_run(modus) == 0


def test_an_approval_that_timed_out_is_told_apart_and_the_status_stays(
    start: Start, modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = start()
    clock = modus.clock
    for status in ("error", "cancelled"):
        modus.start_run(
            7, at=clock() - 30, lasts=90.0, waits_from=clock() - 20, outcome=status, reason="approval_timeout"
        )
    modus.start_run(7, at=clock() - 30, lasts=90.0, waits_from=clock() - 20, outcome="error")
    exporter.scrape()
    clock.advance(120)  # type: ignore[attr-defined]
    agent = exporter.scrape()[7]
    assert agent.totals is not None
    assert agent.totals.approval_timeouts == 2
    assert (finished(agent)["error"], finished(agent)["cancelled"]) == (2, 1)
    assert [line.get("status_reason") for line in said(caplog)].count("approval_timeout") == 1


def test_runs_that_waited_are_asked_about_also_when_nothing_is_logged(
    start: Start, modus: SimulatedModus
) -> None:
    exporter = start("off")
    clock = modus.clock
    waited = {"waits_from": clock() - 20, "reason": "approval_timeout"}
    modus.start_run(7, at=clock() - 30, lasts=90.0, outcome="error", **waited)
    exporter.scrape()
    clock.advance(120)  # type: ignore[attr-defined]
    ended(modus)
    totals = exporter.scrape()[7].totals
    assert totals is not None
    assert totals.approval_timeouts == 1
    assert get_run(modus) == 1


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_run_that_nobody_explains_counts_all_the_same(
    start: Start, modus: SimulatedModus, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    exporter = start()
    modus.single_run = status
    run_id = ended(modus)
    agent = exporter.scrape()[7]
    assert agent.up
    assert finished(agent)["error"] == 1
    assert [line["run_id"] for line in said(caplog)] == [run_id]


def test_no_more_is_asked_than_the_budget_allows(
    start: Start, modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = start()
    ids = {ended(modus) for _ in range(20)}
    assert finished(exporter.scrape()[7])["error"] == 20
    assert get_run(modus) == 5  # of one agent in one scrape
    assert {line["run_id"] for line in said(caplog)} == ids


def test_a_budget_is_used_up_and_fills_again() -> None:
    budget = TokenBucket(BURST, INTERVAL)
    assert sum(budget.take(100.0) for _ in range(1000)) == BURST
    assert sum(budget.take(110.0) for _ in range(1000)) == 5
    assert sum(budget.take(10_000.0) for _ in range(1000)) == BURST


def test_a_budget_is_sixty_requests_in_any_minute() -> None:
    budget = TokenBucket(BURST, INTERVAL)
    taken = [now for now in range(600) for _ in range(100) if budget.take(float(now))]
    assert max(sum(begin <= now < begin + 60 for now in taken) for begin in range(600)) <= 60


def test_a_line_that_was_committed_and_not_said_is_said_after_a_restart(
    start: Start, modus: SimulatedModus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = start()
    run_id = ended(modus)
    with monkeypatch.context() as killed:  # between the commit and the line
        killed.setattr("exporter.runs.runlog.Outbox.say", lambda self, store: None)
        exporter.scrape()
        assert said(caplog) == []
        kill(exporter)
    again = start()
    assert [line["run_id"] for line in said(caplog)] == [run_id]
    again.close()
    start().scrape()
    assert len(said(caplog)) == 1


def test_a_line_that_was_said_is_not_said_again_after_a_kill(
    start: Start, modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = start()
    ended(modus)
    exporter.scrape()
    assert len(said(caplog)) == 1
    kill(exporter)
    assert finished(start().scrape()[7])["error"] == 1
    assert len(said(caplog)) == 1


def test_without_a_state_file_lines_are_said_too(
    start: Start, modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = start(path=None)
    modus.clock.advance(60)  # type: ignore[attr-defined]
    run_id = ended(modus)
    exporter.scrape()
    exporter.scrape()
    assert [line["run_id"] for line in said(caplog)] == [run_id]


def test_the_counter_of_failed_runs_names_the_newest(start: Start, modus: SimulatedModus) -> None:
    exporter = start("off")
    ended(modus, trigger="api")
    modus.clock.advance(5)  # type: ignore[attr-defined]
    newest = ended(modus, trigger="api")
    exporter.scrape()
    totals = exporter.scrape()[7].totals
    assert totals is not None
    exemplar = totals.newest["error"]["api"]
    assert (exemplar.run_id, exemplar.at) == (newest, modus.clock() - 10)
