"""The shipped rules, alerts and dashboards with a real Prometheus and Alertmanager over the demo fleet."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from tests import dashboards
from tests.e2e.harness import Process, Prometheus, Webhook, exporter, free_port, get, program, wait_for

ROOT = Path(__file__).parents[2] / "prometheus"
EXPECTED = {
    ("ModusAgentLastRunFailed", "104"),
    ("ModusAgentRunStuck", "105"),
    ("ModusAgentApprovalWaiting", "106"),
    ("ModusAgentNotRunLately", "107"),
}
# empty is right for a selection of agents of which none is in that state, or has ended a run within the range
MAY_BE_EMPTY = {
    "all": {"Firing alerts"},
    "one": {"Firing alerts", "Stuck: who", "Waiting: who", "Silent: who", "Oldest open run", "Open runs"}
    | {"Run duration percentiles", "Agents", "Stuck", "Waiting for a human", "Silent"},
    "several": {"Firing alerts", "Failing: who", "Waiting: who", "Silent: who"},
}
SELECTIONS = {"all": dashboards.ALL, "one": "104", "several": "(102|105)"}


class Stack(NamedTuple):
    prometheus: Prometheus
    webhook: Webhook

    def paged(self) -> Counter[tuple[str, str]]:
        """Notifications of firing alerts, by alert and agent."""
        return Counter(
            (alert["labels"]["alertname"], alert["labels"].get("agent_id", ""))
            for message in list(self.webhook.received)
            for alert in message["alerts"]
            if alert["status"] == "firing"
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    program("prometheus")
    alertmanager = program("prometheus-alertmanager", "alertmanager")
    directory = tmp_path_factory.mktemp("stack")
    webhook = Webhook()
    port = free_port()
    routes = directory / "alertmanager.yml"
    routes.write_text((ROOT / "alertmanager.yml").read_text().replace("http://127.0.0.1:9099", webhook.url))
    alerts = Process(
        [
            alertmanager,
            f"--config.file={routes}",
            f"--storage.path={directory / 'alerts'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ],
        directory,
    )
    with exporter(directory, "--demo") as running:
        shipped = (ROOT / "prometheus.yml").read_text()
        for before, after in (
            ("localhost:10371", running.url.removeprefix("http://")),
            ("localhost:9093", f"127.0.0.1:{port}"),
            ("rules/*.yml", f"{ROOT}/rules/*.yml"),
            ("scrape_interval: 30s", "scrape_interval: 1s"),
            ("scrape_timeout: 25s", "scrape_timeout: 1s"),
            ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ):
            assert before in shipped
            shipped = shipped.replace(before, after)
        config = directory / "prometheus.yml"
        config.write_text(shipped)
        wait_for("Alertmanager is ready", lambda: get(f"http://127.0.0.1:{port}/-/ready"))
        prometheus = Prometheus(directory, config)
        try:
            yield Stack(prometheus, webhook)
        finally:
            prometheus.stop()
            alerts.stop()
            webhook.close()


def test_each_agent_that_needs_somebody_pages_once_and_no_other_does(stack: Stack) -> None:
    wait_for("the pages arrive", lambda: stack.paged().keys() >= EXPECTED, seconds=120)
    assert stack.paged() == Counter(EXPECTED)


def test_a_page_names_the_agent_and_links_to_what_to_do(stack: Stack) -> None:
    wait_for("a page arrives", lambda: stack.paged().keys() >= EXPECTED, seconds=120)
    for message in stack.webhook.received:
        for alert in message["alerts"]:
            annotations = alert["annotations"]
            assert alert["labels"]["agent_name"] in annotations["description"]
            assert f"var-agent={alert['labels']['agent_id']}" in annotations["dashboard_url"]
            page = re.search(r"docs/runbooks/\w+\.md$", annotations["runbook_url"])
            assert page
            assert (ROOT.parent / page[0]).exists()


def test_no_rule_fails(stack: Stack) -> None:
    wait_for("the rules ran", lambda: stack.prometheus.number("modus:objective:ratio or vector(1)"))
    groups = stack.prometheus.ask("rules")["groups"]
    assert groups
    assert [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")] == []


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("name", ["fleet", "agent", "exporter"])
def test_every_panel_shows_what_the_demo_has(stack: Stack, name: str, selection: str) -> None:
    dashboard = dashboards.load(name)
    wait_for("enough samples", lambda: (stack.prometheus.number("count_over_time(modus_up[5m])") or 0) > 20)
    empty, full = set(), set()
    for title, query in dashboards.queries(dashboard, agent=SELECTIONS[selection], time_range="5m"):
        answer = stack.prometheus.query(query)
        assert len(answer) <= 400, f"{title} draws {len(answer)} series"
        (full if answer else empty).add(title)
    assert empty - full <= MAY_BE_EMPTY[selection]


@pytest.mark.parametrize("name", ["fleet", "agent", "exporter"])
def test_every_variable_offers_what_there_is(stack: Stack, name: str) -> None:
    dashboard = dashboards.load(name)
    wait_for("a scrape", lambda: stack.prometheus.number("modus_up") == 1)
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    for variable, query, label in dashboards.variable_queries(dashboard):
        if label:
            url = f"{stack.prometheus.url}/api/v1/label/{label}/values"
            values = requests.get(url, params={"match[]": query, "end": time.time()}, timeout=10).json()[
                "data"
            ]
            assert values == ["modus"]
        else:
            found = [series["metric"] for series in stack.prometheus.query(query)]
            offered = dashboards.choices(variables[variable], found)
            assert offered.keys() == {str(number) for number in range(101, 111)}
            assert offered["104"] == "CRM sync"
