"""The shipped rules, alerts and dashboards with a real Prometheus and Alertmanager over the demo fleet."""

import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest

from exporter.demo.simulator import SimulatedModus
from exporter.metrics.exposition import families, write
from exporter.modus.discovery import Selection, Target
from tests import dashboards
from tests.e2e.harness import SHIPPED, Prometheus, Webhook, exporter, program, shipped, wait_for
from tests.e2e.test_alertmanager import Alertmanager
from tests.simulation import Clock, settings
from tests.simulation import Exporter as Simulation

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("stack")]
EXPECTED = {
    ("ModusAgentLastRunFailed", "104"),
    ("ModusAgentRunStuck", "105"),
    ("ModusAgentApprovalWaiting", "106"),
}
# One of the two, and the second silences the first: a schedule due once an hour is late ten minutes after it.
SILENT = {("ModusAgentNotRunLately", "107"), ("ModusAgentStartMissed", "107")}
COMPLETED = 'increase(modus_agent_runs_finished_total{agent_id="102",status="completed"}'
SELECTIONS = {"all": dashboards.ALL, "one": "102", "several": "(102|104|105|106|107)"}
# two queries, and one of them is enough: of enough runs or of few; of native histograms or of classic ones
ONE_OF_TWO = {"Failure ratio", "Budget left", "Run durations"}
TOO_EARLY = {("Agents", "G")}  # a ratio needs ten runs, and the first sample holds all those of before
FINE = {
    ("Read errors by reason", "A"),  # nothing is wrong with the demo's API
    ("Agents that changed hands", "A"),  # it has them all to itself
    ("Credits an hour, and a week ago", "B"),  # it has not been there for a week
}
SCHEDULE = {"Last due", "Next due", "Started since", "Start missed for"}  # of agents that have one
MAY_BE_EMPTY: dict[str, set[tuple[str, str]]] = {
    "all": set(),
    "several": set(),
    # 102 runs all the time and well: nobody has to act, and there may just be no open run
    "one": {(f"{state}: who", "A") for state in ("Failing", "Stuck", "Waiting", "Silent")}
    | {("Failing: who", "B"), ("Open run age", "A"), ("Open runs", "A"), ("Open runs", "B"), ("Agents", "D")}
    | {(panel, "A") for panel in SCHEDULE}
    | {("Firing alerts", "")},
}


class Stack(NamedTuple):
    prometheus: Prometheus
    alertmanager: Alertmanager

    def paged(self) -> Counter[tuple[str, str]]:
        """Notifications of firing alerts, by alert and agent."""
        return Counter(
            named(alert["labels"])
            for message in list(self.alertmanager.webhook.received)
            for alert in message["alerts"]
            if alert["status"] == "firing"
        )

    def over_time(self, expression: str) -> list[dict[str, Any]]:
        """The answer to a range query over the last minutes."""
        now = time.time()
        found: list[dict[str, Any]] = self.prometheus.ask(
            "query_range", query=expression, start=now - 300, end=now, step=15
        )["result"]
        return found

    def to_be_paged(self) -> Counter[tuple[str, str]]:
        """The alerts that Alertmanager holds and nothing silences: paged, or about to be."""
        return Counter(named(labels) for labels in self.alertmanager.alerts("active"))


def all_paged(stack: Stack) -> bool:
    paged = stack.paged().keys()
    return paged >= EXPECTED and bool(paged & SILENT)


def named(labels: dict[str, str]) -> tuple[str, str]:
    return labels["alertname"], labels.get("agent_id", "")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    program("prometheus")
    program("prometheus-alertmanager", "alertmanager")
    directory = tmp_path_factory.mktemp("stack")
    with ExitStack() as cleanup:
        webhook = Webhook()
        cleanup.callback(webhook.close)
        alertmanager = Alertmanager(directory, webhook)
        cleanup.callback(alertmanager.stop)
        running = cleanup.enter_context(exporter(directory, "--demo"))
        changes = {
            "localhost:10371": running.url.removeprefix("http://"),
            "localhost:9093": alertmanager.address,
            "rules/*.yml": f"{SHIPPED}/rules/*.yml",
            "scrape_interval: 30s": "scrape_interval: 1s",
            "scrape_timeout: 25s": "scrape_timeout: 1s",
            "evaluation_interval: 15s": "evaluation_interval: 1s",
        }
        config = directory / "prometheus.yml"
        config.write_text(shipped("prometheus.yml", changes))
        prometheus = Prometheus(directory, config)
        cleanup.callback(prometheus.stop)
        yield Stack(prometheus, alertmanager)


def test_each_agent_that_needs_somebody_pages_once_and_no_other_does(stack: Stack) -> None:
    wait_for("the pages arrive", lambda: all_paged(stack), seconds=120)
    wait_for("one alert silences another", lambda: len(stack.to_be_paged().keys() & SILENT) == 1)
    for told in (stack.paged(), stack.to_be_paged()):
        assert EXPECTED <= told.keys() <= EXPECTED | SILENT
        assert set(told.values()) == {1}


def test_a_page_names_the_agent_and_links_to_what_to_do(stack: Stack) -> None:
    wait_for("the pages arrive", lambda: all_paged(stack), seconds=120)
    for message in stack.alertmanager.webhook.received:
        for alert in message["alerts"]:
            annotations = alert["annotations"]
            assert alert["labels"]["agent_name"] in annotations["summary"]
            assert alert["labels"]["agent_name"] in annotations["description"]
            assert f"var-agent={alert['labels']['agent_id']}" in annotations["dashboard_url"]
            page = re.search(r"docs/runbooks/\w+\.md$", annotations["runbook_url"])
            assert page
            assert (SHIPPED.parent / page[0]).exists()


def test_no_rule_fails(stack: Stack) -> None:
    wait_for("the rules ran", lambda: stack.prometheus.number("count(modus:agent_name:info)"))
    groups = stack.prometheus.ask("rules")["groups"]
    assert groups
    assert [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")] == []


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("name", dashboards.NAMES)
def test_every_panel_shows_what_the_demo_has(stack: Stack, name: str, selection: str) -> None:
    number = stack.prometheus.number
    wait_for("alerts fire", lambda: number('count(ALERTS{alertstate="firing"}) >= 4'))
    wait_for("a run ends", lambda: number(f"{COMPLETED}[5m]) > 0"))
    empty, shown = set(), set()
    for query in dashboards.queries(dashboards.load(name), agent=SELECTIONS[selection], time_range="5m"):
        answer = stack.prometheus.query(query.expr) if query.instant else stack.over_time(query.expr)
        if answer:
            shown.add(query.panel)
        else:
            empty.add((query.panel, query.ref))
    missing = {(panel, ref) for panel, ref in empty if panel not in ONE_OF_TWO & shown}
    assert missing - TOO_EARLY - FINE <= MAY_BE_EMPTY[selection]


@pytest.mark.parametrize("name", dashboards.NAMES)
def test_every_variable_offers_what_there_is(stack: Stack, name: str) -> None:
    dashboard = dashboards.load(name)
    wait_for("a scrape", lambda: stack.prometheus.number("modus_up") == 1)
    agent = stack.prometheus.query("modus_agent_up")[0]["metric"]
    assert agent["instance"] == "modus-exporter"  # not the address
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    for variable, query, label in dashboards.variable_queries(dashboard):
        if label:
            there = stack.prometheus.ask(f"label/{label}/values", **{"match[]": query})
            assert there == (["modus"] if label == "job" else [])  # no clusters and no namespaces
        else:
            found = [series["metric"] for series in stack.prometheus.query(query)]
            offered = dashboards.choices(variables[variable], found)
            assert offered.keys() == {str(number) for number in range(101, 111)}
            assert offered["104"] == "CRM sync"


# Two replicas show the same agents, two shards share them, two installations have agents of the same ids: the
# numbers of agents, runs and alerts stay.


def labelled(line: str, labels: str) -> str:
    """A line of the text format with more labels."""
    name, value = line.rsplit(" ", 1)
    return f"{name[:-1]},{labels}}} {value}" if name.endswith("}") else f"{name}{{{labels}}} {value}"


def last_hours(until: float) -> Iterator[str]:
    """Two hours of the demo fleet as the exporter shows it, under the jobs one, replicas and shards."""
    clock = Clock(until)
    modus = SimulatedModus(clock=clock)
    clock.now -= 7200  # back, into what the fleet has lived through already
    targets = [
        Target(agent_id, expected_interval=3600.0, expected_duration=60.0) for agent_id in modus.agents
    ]
    instances = [
        (
            Simulation(
                modus, None, replace(settings(), selection=Selection(chosen), reconcile_interval=3600.0)
            ),
            names,
        )
        for chosen, names in (
            (targets, ["one a", "replicas a", "replicas b"]),
            (targets[::2], ["shards a"]),
            (targets[1::2], ["shards b"]),
            (targets, ["installations east", "installations west"]),
        )
    ]
    while clock.now <= until:
        for exporter_, names in instances:
            text = b"".join(write(families(exporter_.collector.scrape(None)), openmetrics=False)).decode()
            samples = [line for line in text.splitlines() if not line.startswith("#")]
            for job, instance in map(str.split, names):
                labels = f'job="{job}",instance="{instance}"'
                if job == "installations":  # of different clusters, alike in all the rest
                    labels = f'cluster="{instance}",job="{job}",instance="a"'
                yield from (f"{labelled(sample, labels)} {clock.now}\n" for sample in samples)
        clock.advance(120)
    yield "# EOF\n"
    for exporter_, _ in instances:
        exporter_.close()


class Backfilled(NamedTuple):
    prometheus: Prometheus
    end: float  # Unix seconds

    def values(self, expression: str) -> dict[frozenset[tuple[str, str]], float]:
        """By labels, those of the target left out: without them they must still be different."""
        found = self.prometheus.ask("query", query=expression, time=self.end)["result"]
        own = [{**each["metric"], "job": "", "instance": "", "cluster": ""} for each in found]
        assert len(found) == len({frozenset(labels.items()) for labels in own})
        return {
            frozenset(labels.items()): float(each["value"][1])
            for labels, each in zip(own, found, strict=True)
        }


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backfilled]:
    program("prometheus")
    directory = tmp_path_factory.mktemp("backfilled")
    end = int(time.time())
    (directory / "samples").write_text("".join(last_hours(end)))
    command = [program("promtool"), "tsdb", "create-blocks-from", "openmetrics", "samples", "data"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=60)
    rules = shipped("rules/modus.yml", {"interval: 1m\n": "interval: 1s\n"})
    (directory / "rules.yml").write_text(rules)
    config = directory / "prometheus.yml"
    config.write_text("{global: {evaluation_interval: 1s}, rule_files: [rules.yml]}\n")
    prometheus = Prometheus(directory, config)
    try:
        yield Backfilled(prometheus, end)
    finally:
        prometheus.stop()


@pytest.mark.parametrize("job", ["replicas", "shards"])
@pytest.mark.parametrize("name", ["fleet", "agent"])
def test_several_exporters_double_nothing_on_a_dashboard(backfilled: Backfilled, name: str, job: str) -> None:
    dashboard = dashboards.load(name)
    of_one = dashboards.queries(dashboard, job="one")
    of_several = dashboards.queries(dashboard, job=job)
    empty, full = set(), set()
    for one, several in zip(of_one, of_several, strict=True):
        if "modus_agent_" in one.expr:
            shown = backfilled.values(one.expr)
            (full if shown else empty).add(one.panel)
            assert backfilled.values(several.expr) == pytest.approx(shown, nan_ok=True), one.panel
    assert empty <= ONE_OF_TWO & full | SCHEDULE


@pytest.mark.parametrize("job", ["replicas", "shards"])
def test_several_exporters_double_nothing_in_the_rules(backfilled: Backfilled, job: str) -> None:
    each = "modus:agent_(ended|backlog):.+"  # of each exporter by itself
    everything = f'{{__name__=~"modus:agent_.+|ALERTS",__name__!~"{each}",job="%s"}}'
    some_of_each_group = (
        "modus:agent_open:seconds",
        "modus:agent_judged:increase1h",
        "modus:agent_run_duration:objective_quantile6h",  # NaN where no run ended
    )
    for rule in some_of_each_group:
        often = f'count_over_time({rule}{{job="one"}}[5m]) > 4'
        wait_for("the rules ran several times", partial(backfilled.prometheus.query, often))
    now = backfilled._replace(end=time.time() - 2)  # when all of the rules had run
    shown = now.values(everything % "one")
    assert {dict(labels)["__name__"] for labels in shown} >= {*some_of_each_group, "ALERTS"}
    assert now.values(everything % job) == pytest.approx(shown, nan_ok=True)


@pytest.mark.parametrize("name", ["fleet", "agent"])
def test_an_installation_is_shown_as_if_it_were_alone(backfilled: Backfilled, name: str) -> None:
    dashboard = dashboards.load(name)
    of_one = dashboards.queries(dashboard, job="one")
    of_east = dashboards.queries(dashboard, job="installations", cluster="east")
    for one, east in zip(of_one, of_east, strict=True):
        if "modus_agent_" in one.expr:
            assert backfilled.values(east.expr) == pytest.approx(backfilled.values(one.expr), nan_ok=True)


def test_agents_of_the_same_id_in_two_clusters_are_two(backfilled: Backfilled) -> None:
    agents = 'count(count by (cluster, namespace, job, agent_id) (modus:agent_judged:increase1h{job="%s"}))'
    wait_for("the rules ran", lambda: backfilled.prometheus.query(agents % "one"))
    for query in (agents, 'sum(modus:agent_judged:increase1h{job="%s"})'):
        alone = backfilled.prometheus.number(query % "one")
        assert alone
        assert backfilled.prometheus.number(query % "installations") == pytest.approx(2 * alone)
