"""Native histograms in a real Prometheus: percentiles that are true, over restarts and changes of format."""

import math
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from exporter.config import Config
from exporter.demo.fleet import FLEET
from exporter.demo.simulator import SimulatedModus
from tests import dashboards
from tests.e2e.harness import Exporter, Prometheus, config, free_port, native_histograms, shipped, wait_for

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("native")]
DURATION = "modus_agent_run_duration_seconds"
WIDTH = 2 ** (1 / 8)  # of a native bucket: its upper bound to its lower one
QUANTILES = (0.5, 0.9, 0.95, 0.99)
AGENT, BUSY = 7, 102  # of the demo fleet a run ends every nine seconds


def scraping(directory: Path, exporter: Exporter, name: str, *, native: bool) -> Prometheus:
    """A Prometheus that asks for native histograms, or for text as it does by itself."""
    features, setting = native_histograms() if native else ((), "")
    file = directory / f"{name}.yml"
    rules = directory / "rules.yml"
    rules.write_text(shipped("rules/modus.yml", {"interval: 1m\n": "interval: 1s\n"}))
    file.write_text(
        f"{{global: {{evaluation_interval: 1s}}, rule_files: ['{rules}'], scrape_configs: ["
        f"{{job_name: modus, scrape_interval: 1s, scrape_timeout: 1s, {setting}"
        f" static_configs: [{{targets: ['{exporter.url.removeprefix('http://')}']}}]}}]}}\n"
    )
    (directory / name).mkdir(exist_ok=True)
    return Prometheus(directory / name, file, *features)


class World:
    """The demo fleet's day, read by one exporter, and by two Prometheus servers of different tastes."""

    def __init__(self, directory: Path, cleanup: ExitStack) -> None:
        self.modus = SimulatedModus().start()
        cleanup.callback(self.modus.close)
        agents = [{"id": each, "expected_duration": "15s"} if each == BUSY else each for each in FLEET]
        file = config(directory, self.modus.url, *agents)
        self.exporter = Exporter(directory, "--config.file", str(file))
        cleanup.callback(self.exporter.stop)
        wait_for("no backlog", lambda: self.exporter.scrape().value("modus_agent_backlog") == 0)
        self.native, self.classic = (
            scraping(directory, self.exporter, name, native=name == "native")
            for name in ("native", "classic")
        )
        for prometheus in (self.native, self.classic):
            cleanup.callback(prometheus.stop)
        wait_for("the native one", lambda: self.native.query(f"histogram_count({DURATION}) > 0"))
        wait_for("the classic one", lambda: self.classic.query(f"{DURATION}_count > 0"))
        self.at = self.modus.clock()

    def durations(self, agent_id: int) -> list[float]:
        """Seconds that the completed runs took of which both know."""
        runs = [run for run in self.modus.runs(agent_id) if run.listed == "completed" and run.end < self.at]
        return sorted(run.end - run.start for run in runs if run.start >= self.at - 86400)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as cleanup:
        yield World(tmp_path_factory.mktemp("native"), cleanup)


def exact(durations: list[float], q: float) -> tuple[float, float]:
    """The percentile, with one run more or less: one may have ended, or fallen out of the day, meanwhile."""
    rank = math.ceil(q * len(durations)) - 1
    return durations[max(rank - 1, 0)], durations[min(rank + 1, len(durations) - 1)]


@pytest.mark.parametrize("agent_id", [101, 103, 105, 106, 109])
def test_percentiles_of_the_demo_fleet_are_right_within_the_width_of_a_native_bucket(
    world: World, agent_id: int
) -> None:
    selector = f'agent_id="{agent_id}"'
    durations = world.durations(agent_id)
    assert len(durations) > 15
    for q in QUANTILES:
        least, most = exact(durations, q)
        native = world.native.number(f"histogram_quantile({q}, {DURATION}{{{selector}}})")
        classic = world.classic.number(f"histogram_quantile({q}, {DURATION}_bucket{{{selector}}})")
        assert native is not None
        assert classic is not None
        assert least / WIDTH <= native <= most * WIDTH
        bounds = (0, *Config().histogram.buckets)
        assert max(b for b in bounds if b < least) <= classic <= min(b for b in bounds if b >= most)


def test_both_kinds_agree_about_the_number_and_the_sum(world: World) -> None:
    for agent_id in (101, 103, 109):
        selector = f'{{agent_id="{agent_id}"}}'
        count = world.native.number(f"histogram_count({DURATION}{selector})")
        total = world.native.number(f"histogram_sum({DURATION}{selector})")
        assert count == world.classic.number(f"{DURATION}_count{selector}")
        assert total == world.classic.number(f"{DURATION}_sum{selector}")


def test_the_share_within_a_limit_is_the_true_one(world: World) -> None:
    durations = world.durations(101)
    share = world.native.number(f'histogram_fraction(0, 40, {DURATION}{{agent_id="101"}})')
    assert share is not None
    at_least, at_most = (
        sum(each <= limit for each in durations) / len(durations) for limit in (40 / WIDTH, 40 * WIDTH)
    )
    assert at_least <= share <= at_most


def test_requests_to_the_api_have_native_buckets_too(world: World) -> None:
    query = 'histogram_quantile(0.5, modus_api_request_duration_seconds{operation="list_runs"})'
    median = world.native.number(query)
    assert median is not None
    assert 0 < median < 10


def test_exemplars_lead_from_native_buckets_to_runs(world: World) -> None:
    found = world.native.ask(
        "query_exemplars",
        query=f'{DURATION}{{agent_id="101"}}',
        start=world.at - 90000,
        end=world.at + 60,
    )
    assert found
    for each in found[0]["exemplars"]:
        assert each["labels"]["run_id"].startswith("wf_101_")


def test_the_rules_record_the_same_from_native_histograms_as_from_classic_ones(world: World) -> None:
    count = f'modus:agent_run_duration_count:increase6h{{agent_id="{BUSY}"}}'
    total = f'modus:agent_run_duration_sum:increase6h{{agent_id="{BUSY}"}}'
    quantile = f'modus:agent_run_duration:objective_quantile6h{{agent_id="{BUSY}"}}'
    for prometheus in (world.native, world.classic):
        wait_for("a run ends", lambda p=prometheus: p.query(f"{count} > 0"))
        wait_for("the objective is looked at", lambda p=prometheus: p.query(f"{quantile} > 0"))
        assert not prometheus.query(f'{quantile.split("{")[0]}{{agent_id!="{BUSY}"}}')
        groups = prometheus.ask("rules")["groups"]
        assert [rule["lastError"] for each in groups for rule in each["rules"] if rule.get("lastError")] == []
        longest = (prometheus.number(total) or 0) / (prometheus.number(count) or 1)
        assert 0 < longest <= 20


@pytest.mark.parametrize("name", dashboards.NAMES)
def test_a_panel_is_empty_with_native_histograms_only_where_it_is_with_classic_ones(
    world: World, name: str
) -> None:
    count = f'modus:agent_run_duration_count:increase6h{{agent_id="{BUSY}"}} > 0'
    for prometheus in (world.native, world.classic):
        wait_for("a run ends", lambda p=prometheus: p.query(count))

    def shown(prometheus: Prometheus) -> set[str]:
        asked = dashboards.queries(dashboards.load(name), agent=str(BUSY), time_range="5m")
        return {query.panel for query in asked if prometheus.query(query.expr)}

    both = shown(world.native), shown(world.classic)
    assert both[0] == both[1]
    if name == "agent":
        assert both[0] >= {"Run durations", "Run duration percentiles", "Runs within expected duration"}


# --- restarts, kills and changes of format ---


class Life:
    """One agent whose runs take 2.5 s each, an exporter that is restarted, and a Prometheus that is too."""

    def __init__(self, directory: Path, cleanup: ExitStack) -> None:
        self.directory, self.port = directory, free_port()
        self.modus = SimulatedModus(fleet={}).start()
        cleanup.callback(self.modus.close)
        self.modus.add_agent(AGENT, "Any agent")
        self.number = 0
        self.file = config(directory, self.modus.url, AGENT)
        self.start_exporter()
        cleanup.callback(lambda: self.exporter.stop())
        self.start_prometheus(native=True)
        cleanup.callback(lambda: self.prometheus.stop())

    def start_exporter(self) -> None:
        self.exporter = Exporter(self.directory, "--config.file", str(self.file), port=self.port)

    def start_prometheus(self, *, native: bool) -> None:
        self.prometheus = scraping(self.directory, self.exporter, "prometheus", native=native)

    def end(self, number: int) -> None:
        for _ in range(number):
            self.modus.start_run(AGENT, at=self.modus.clock() - 2.5, lasts=2.5)
        self.number += number

    def seen(self, metric: str) -> None:
        wait_for(f"{metric} is {self.number}", lambda: self.prometheus.number(metric) == self.number)

    def stored(self) -> list[dict[str, Any]]:
        """The native histograms as they were stored, oldest first."""
        (series,) = self.prometheus.query(f"{DURATION}[10m]")
        return [histogram for _, histogram in series["histograms"]]


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    with ExitStack() as cleanup:
        yield Life(tmp_path, cleanup)


NATIVE, CLASSIC = f"histogram_count({DURATION})", f"{DURATION}_count"


def test_no_bucket_steps_back_over_restarts_and_kills_and_the_increase_is_what_ended(life: Life) -> None:
    life.end(1)
    life.seen(NATIVE)
    for number in range(4):
        life.end(3)
        if number % 2:
            life.seen(NATIVE)
        life.exporter.stop(signal.SIGKILL if number % 2 else signal.SIGTERM)
        life.end(2)
        life.start_exporter()
        life.seen(NATIVE)
    stored = life.stored()
    counts = [int(each["count"]) for each in stored]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, 21)
    for each in stored:
        ((_, lower, upper, n),) = each["buckets"]
        assert float(lower) < 2.5 <= float(upper)
        assert n == each["count"]
    increase = life.prometheus.number(f"histogram_count(increase({DURATION}[10m]))")
    assert increase is not None
    assert 20 <= increase <= 20 * 1.5  # extrapolated to the borders of the window


def test_a_prometheus_that_changes_between_protobuf_and_text_finds_the_same_numbers(life: Life) -> None:
    life.end(5)
    life.seen(NATIVE)
    for native in (False, True, False, True):
        life.prometheus.stop()
        life.start_prometheus(native=native)
        life.seen(NATIVE if native else CLASSIC)
        life.end(2)
        life.seen(NATIVE if native else CLASSIC)
    counts = [int(each["count"]) for each in life.stored()]
    assert counts == sorted(counts)
    assert counts[-1] == life.number == 13
    q = life.prometheus.number(f"histogram_quantile(0.9, increase({DURATION}[10m]))")
    assert q is not None
    assert 2.5 / WIDTH < q < 2.5 * WIDTH


def test_two_who_ask_for_different_formats_in_turn_get_the_same_totals(life: Life) -> None:
    for _ in range(5):
        life.end(2)
        assert sum(life.exporter.native(AGENT).values()) == life.number
        assert life.exporter.scrape().value(CLASSIC) == life.number
        life.end(1)
        assert life.exporter.scrape().value(CLASSIC) == life.number
        assert sum(life.exporter.native(AGENT).values()) == life.number
