"""The first thing a new user does: the demo fleet, looked at by hand and by a real Prometheus."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.metrics.table import TABLE
from tests.e2e.harness import Exporter, Process, Prometheus, config, exporter, get, program, wait_for

ROOT = str(Path(__file__).parents[2])

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("demo")]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    with exporter(tmp_path_factory.mktemp("demo"), "--demo") as running:
        wait_for("no backlog", lambda: running.scrape().value("modus_agent_backlog") == 0)
        yield running


def test_every_metric_of_the_table_is_there(demo: Exporter) -> None:
    shown = {line.split()[2] for line in get(f"{demo.url}/metrics").splitlines() if line.startswith("# TYPE")}
    assert {row.name for row in TABLE} - shown == {"modus_exporter_lease_changes_total"}  # of shared state


def test_it_shows_who_fails_hangs_waits_and_went_silent(demo: Exporter) -> None:
    scrape = demo.scrape()
    end = "modus_agent_last_run_end_timestamp_seconds"
    open_since = "modus_agent_oldest_open_run_start_timestamp_seconds"
    assert (scrape.value("modus_up"), scrape.value("modus_exporter_scrape_complete")) == (1, 1)
    assert scrape.value(end, agent_id="104", status="error") > scrape.value(
        end, agent_id="104", status="completed"
    )
    now = scrape.value("modus_agent_last_read_timestamp_seconds", agent_id="105")
    assert now - scrape.value(open_since, agent_id="105", status="running") > 6 * 3600
    assert now - scrape.value(open_since, agent_id="106", status="awaiting_human") > 25 * 3600
    silent = now - scrape.value("modus_agent_last_run_start_timestamp_seconds", agent_id="107")
    assert silent > scrape.value("modus_agent_expected_interval_seconds", agent_id="107")


def test_the_histogram_holds_the_completed_runs_of_the_last_day(demo: Exporter) -> None:
    scrape = demo.scrape()
    completed = scrape.finished(101)["completed"]
    assert completed > 200
    assert scrape.value("modus_agent_run_duration_seconds_count", agent_id="101") == completed


def test_an_exemplar_is_the_newest_run_of_its_bucket(demo: Exporter) -> None:
    samples = demo.scrape().all("modus_agent_run_duration_seconds_bucket", agent_id="101")
    exemplars = [sample.exemplar for sample in samples if sample.exemplar]
    assert exemplars
    assert all(exemplar.labels["run_id"].startswith("wf_101_") for exemplar in exemplars)


def test_promtool_has_nothing_to_say(demo: Exporter) -> None:
    promtool = program("promtool")
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=get(f"{demo.url}/metrics"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_a_real_prometheus_reads_all_of_it(demo: Exporter, tmp_path: Path) -> None:
    config = tmp_path / "prometheus.yml"
    target = demo.url.removeprefix("http://")
    config.write_text(
        "scrape_configs: [{job_name: modus, scrape_interval: 1s, scrape_timeout: 1s,"
        f" static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    prometheus = Prometheus(tmp_path, config)
    try:
        wait_for("the first scrape", lambda: prometheus.number('up{job="modus"}') == 1)
        scrape = demo.scrape()
        for agent_id in ("101", "104", "109"):
            stored = prometheus.query(f'modus_agent_run_duration_seconds_count{{agent_id="{agent_id}"}}')
            assert len(stored) == 1
            shown = scrape.value("modus_agent_run_duration_seconds_count", agent_id=agent_id)
            assert float(stored[0]["value"][1]) == shown
        names = {series["metric"]["agent_name"] for series in prometheus.query("modus_agent_info")}
        assert 'Support digest "EU" \\ Zürich 東京' in names
        exemplars = prometheus.ask(
            "query_exemplars", query="modus_agent_run_duration_seconds_bucket", start=0, end=4e9
        )
        assert exemplars
    finally:
        prometheus.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_seconds(tmp_path: Path, number: signal.Signals) -> None:
    running = Exporter(tmp_path, "--demo")
    running.scrape()
    assert running.stop(number, within=5) == 0
    assert "Traceback" not in running.said()


def test_the_simulated_api_serves_several_exporters(tmp_path: Path) -> None:
    api = Process([sys.executable, "-m", "exporter.demo", "127.0.0.1:0"], tmp_path, {"PYTHONPATH": ROOT})
    address = wait_for("it serves", lambda: re.search(r"serves on (\S+)", api.said()))[1]
    for name in ("one", "other"):
        directory = tmp_path / name
        directory.mkdir()
        with exporter(
            directory, "--config.file", str(config(directory, f"http://{address}", 104))
        ) as running:
            assert running.scrape().value("modus_agent_up", agent_id="104") == 1
    assert api.stop() == 0
