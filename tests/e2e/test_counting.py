"""The real process against an API over HTTP: what it counts is what the API lists, whatever happens to it."""

import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import requests

from exporter.demo.simulator import Request, SimulatedModus, SimulatedRun
from tests.e2e.harness import (
    Exporter,
    Prometheus,
    Scrape,
    audit,
    config,
    exporter,
    free_port,
    program,
    wait_for,
)

pytestmark = pytest.mark.servers
AGENT = 7
KILLS = 20
TERMINAL = ("completed", "error", "cancelled")


@pytest.fixture
def modus() -> Iterator[SimulatedModus]:
    modus = SimulatedModus(fleet={}).start()
    modus.add_agent(AGENT, "Any agent")
    yield modus
    modus.close()


def ended(modus: SimulatedModus) -> Counter[str]:
    runs = [run.listed for run in modus.runs(AGENT)]
    return Counter(status for status in runs if status in TERMINAL)


def counted(scrape: Scrape) -> Counter[str]:
    return +Counter(scrape.finished(AGENT))


def test_no_run_is_lost_or_repeated_over_many_kills(modus: SimulatedModus, tmp_path: Path) -> None:
    rng = random.Random(1)  # noqa: S311
    file = config(tmp_path, modus.url, AGENT)
    shown, gone, durations = Counter[str](), Counter[str](), Counter[float]()
    for _ in range(KILLS):
        for _ in range(rng.randrange(1, 6)):
            now = modus.clock()
            modus.start_run(
                AGENT,
                at=now - rng.random(),
                lasts=rng.random() * 2,
                outcome=rng.choice(["completed", "error"]),
            )
        running = Exporter(tmp_path, "--config.file", str(file))
        death = threading.Timer(rng.random() * 0.3, running.popen.kill)  # in a scrape as well as between two
        death.start()
        while death.is_alive():
            over = [run for run in modus.runs(AGENT) if run.listed in TERMINAL]
            with suppress(requests.RequestException):
                now_shown = counted(running.scrape())
                assert now_shown >= shown, "a counter stepped back"
                shown = now_shown
                native = Counter(running.native(AGENT))
                assert native >= durations, "a native bucket stepped back"
                durations = native
                for run in over:
                    if rng.random() < 0.1:  # the platform forgets it: only the ledger still knows
                        gone[run.outcome] += 1
                        modus.change(run, hidden=True)
        running.kill()
    with exporter(tmp_path, "--config.file", str(file)) as running:
        wait_for("all runs ended", lambda: not [run for run in modus.runs(AGENT) if run.listed == "running"])
        scrape = running.scrape()
        native = running.native(AGENT)
    everything = gone + ended(modus)
    assert gone
    assert counted(scrape) == everything
    assert scrape.value("modus_agent_run_duration_seconds_count") == everything["completed"]
    assert sum(native.values()) == everything["completed"]


def shift_pages(modus: SimulatedModus, started: list[SimulatedRun]) -> None:
    """While the next four pages are read, new runs push old ones over each page border."""
    left = iter(range(4))

    def shift(_: Request) -> None:
        if next(left, None) is not None:
            started.extend(modus.start_run(AGENT) for _ in range(2))

    modus.fault = shift


@pytest.mark.parametrize("single_run", [True, False])
@pytest.mark.parametrize("page_tokens", ["offset", "key"])
def test_after_every_step_the_counters_are_those_of_the_list(
    modus: SimulatedModus, tmp_path: Path, single_run: bool, page_tokens: str
) -> None:
    rng = random.Random(2)  # noqa: S311
    modus.single_run, modus.page_tokens = single_run, page_tokens
    file = config(tmp_path, modus.url, AGENT, runs="{page_size: 10, max_pages: 50}")
    open_runs = [modus.start_run(AGENT, at=modus.clock() - 3 * 86400, waits_from=0.0)]
    with exporter(tmp_path, "--config.file", str(file)) as running:
        running.scrape()
        for step in range(60):
            match rng.randrange(6):
                case 0:
                    open_runs += [modus.start_run(AGENT) for _ in range(rng.randrange(1, 15))]
                case 1:
                    modus.start_run(AGENT, at=modus.clock() - rng.random() * 50, lasts=0.0)  # indexed late
                case 2 if open_runs:  # often pages deep
                    modus.end_run(open_runs.pop(0), rng.choice(["completed", "error", "cancelled"]))
                case 3 if open_runs:
                    failed = open_runs.pop(rng.randrange(len(open_runs)))
                    modus.end_run(failed, "error")
                    open_runs.append(modus.start_run(AGENT, workflow_id=failed.workflow_id))
                case 4 if open_runs:
                    modus.change(rng.choice(open_runs), waits_from=modus.clock())
                case 5:
                    shift_pages(modus, open_runs)
            scrape = running.scrape()
            modus.fault = None
            assert counted(scrape) == ended(modus), f"step {step}"
            assert scrape.value("modus_agent_run_duration_seconds_count") == ended(modus)["completed"]
            assert scrape.value("modus_agent_backlog") == 0


def test_in_the_steady_state_an_agent_costs_one_request(modus: SimulatedModus, tmp_path: Path) -> None:
    modus.start_run(AGENT, at=modus.clock() - 86400 / 2)  # open, and soon pages deep
    for n in range(250):
        modus.start_run(AGENT, at=modus.clock() - 30_000 + 100 * n, lasts=1.0)
    file = config(tmp_path, modus.url, AGENT)
    with exporter(tmp_path, "--config.file", str(file)) as running:
        for _ in range(3):
            running.scrape()
        modus.requests.clear()
        for _ in range(10):
            running.scrape()
        assert [request.operation for request in modus.requests] == ["list_runs"] * 10
        assert {request.query["pageSize"] for request in modus.requests} == {"5"}


def test_the_increase_in_prometheus_is_the_number_of_runs_that_ended(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    program("prometheus")
    modus.start_run(AGENT, at=modus.clock() - 3600, lasts=60.0)  # before the window
    file = config(tmp_path, modus.url, AGENT)
    port = free_port()
    running = Exporter(tmp_path, "--config.file", str(file), port=port)
    prometheus_file = tmp_path / "prometheus.yml"
    prometheus_file.write_text(
        "scrape_configs: [{job_name: modus, scrape_interval: 1s, scrape_timeout: 1s,"
        f" static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )
    prometheus = Prometheus(tmp_path, prometheus_file)
    total = "sum(modus_agent_runs_finished_total)"
    number = 1
    try:
        wait_for("a first sample", lambda: prometheus.number(total) == number)
        for _ in range(4):
            for _ in range(5):
                modus.start_run(AGENT, lasts=0.2)
            number += 5
            wait_for("they are counted", lambda number=number: prometheus.number(total) == number)
            for run in modus.runs(AGENT):  # the platform forgets them: only the ledger still knows
                modus.change(run, hidden=True)
            modus.start_run(AGENT, lasts=0.0)  # ends unseen
            number += 1
            running.kill()
            running = Exporter(tmp_path, "--config.file", str(file), port=port)
        wait_for("the last is counted", lambda: prometheus.number(total) == number == 25)
        # the exact increase: the last sample less the first, with what a reset would have added
        assert prometheus.number("sum(resets(modus_agent_runs_finished_total[5m]))") == 0
        first = prometheus.number("sum(min_over_time(modus_agent_runs_finished_total[5m]))")
        assert first == 1
        assert (prometheus.number(total) or 0) - first == 24
        increase = prometheus.number("sum(increase(modus_agent_runs_finished_total[5m]))")
        assert increase is not None
        assert 24 <= increase <= 24 * 1.5  # extrapolated to the borders of the window
    finally:
        prometheus.stop()
        running.stop()


def test_the_audit_agrees_with_a_running_exporter_and_finds_what_was_tampered_with(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    for n in range(120):
        modus.start_run(AGENT, at=modus.clock() - 3600 + 10 * n, lasts=5.0)
    file = config(tmp_path, modus.url, AGENT, runs="{page_size: 25}")
    with exporter(tmp_path, "--config.file", str(file)) as running:
        running.scrape()
        code, table = audit(file)
    agent, _, *numbers = table.splitlines()[1].split()
    assert (code, agent, numbers) == (0, str(AGENT), ["120", "120", "0", "0"])

    with closing(sqlite3.connect(tmp_path / "state" / "state.db")) as db, db:
        db.execute("DELETE FROM counted WHERE run_id IN (SELECT run_id FROM counted LIMIT 2)")
    code, said = audit(file)
    assert code == 1
    assert f"the counted runs of agent {AGENT} are not those that were written" in said


def test_to_the_audit_runs_that_the_platform_removed_are_not_made_up(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    for ago in range(1, 11):
        modus.start_run(AGENT, at=modus.clock() - 600 * ago, lasts=5.0)
    file = config(tmp_path, modus.url, AGENT)
    with exporter(tmp_path, "--config.file", str(file)) as running:
        running.scrape()
    for run in modus.runs(AGENT)[-4:]:
        modus.change(run, hidden=True)
    code, table = audit(file)
    agent, _, *numbers = table.splitlines()[1].split()
    assert (code, agent, numbers[:4]) == (0, str(AGENT), ["6", "10", "0", "0"])
    assert "4 counted are older than all that the API still lists" in table
