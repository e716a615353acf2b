"""The shipped Alertmanager configuration in a real Alertmanager: who is told what, and who is silenced."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
import yaml

from tests.e2e.harness import Process, Webhook, free_port, get, program, wait_for

pytestmark = pytest.mark.servers
CONFIG = Path(__file__).parents[2] / "prometheus" / "alertmanager.yml"
RECEIVERS = ("pager", "tickets", "log", "nobody")  # empty as shipped

DOWN = {"alertname": "ModusExporterDown", "severity": "critical", "job": "modus"}
ONE_DOWN = {"alertname": "ModusExporterDown", "severity": "warning", "job": "modus", "instance": "b"}
NOTHING = {"alertname": "ModusNothingToRead", "severity": "critical", "job": "modus"}
USAGE = {"alertname": "ModusUsageUnreadable", "severity": "warning", "job": "modus"}
UNREACHABLE = {"alertname": "ModusApiUnreachable", "severity": "critical", "job": "modus"}
TOKEN = {"alertname": "ModusTokenRejected", "severity": "critical", "job": "modus"}
AGENT = {"severity": "warning", "job": "modus", "agent_id": "105", "agent_name": "Contract review"}
STALE = {**AGENT, "alertname": "ModusDataStale"}
STUCK = {**AGENT, "alertname": "ModusAgentRunStuck"}
FAILED = {**AGENT, "alertname": "ModusAgentLastRunFailed"}
RATIO = {**AGENT, "alertname": "ModusAgentFailureRatioHigh"}
START_MISSED = {**AGENT, "alertname": "ModusAgentStartMissed"}
SILENT = {**AGENT, "alertname": "ModusAgentNotRunLately"}
BURN_SLOW = {**AGENT, "alertname": "ModusErrorBudgetBurnSlow"}
BURN_FAST = {**AGENT, "alertname": "ModusErrorBudgetBurnFast", "severity": "critical"}
OTHER_AGENT = {**STUCK, "agent_id": "108", "agent_name": "Report builder"}
OTHER_FAILED, OTHER_RATIO, OTHER_BURN_SLOW, OTHER_SILENT = (
    {**OTHER_AGENT, "alertname": alert["alertname"]} for alert in (FAILED, RATIO, BURN_SLOW, SILENT)
)
OTHER_JOB = {**STUCK, "job": "modus-staging"}
OTHER_NAMESPACE = {**STUCK, "namespace": "staging"}  # agent 105 there is another one
OTHERS = (OTHER_JOB, OTHER_NAMESPACE)


def command(config: Path, directory: Path, address: str) -> list[str]:
    """What starts an Alertmanager with this configuration."""
    return [
        program("prometheus-alertmanager", "alertmanager"),
        f"--config.file={config}",
        f"--storage.path={directory / 'alerts'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]


class Alertmanager(Process):
    """One with the shipped configuration, its receivers filled in; from the moment it is ready."""

    def __init__(self, directory: Path, webhook: Webhook) -> None:
        shipped = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        assert sorted(each["name"] for each in shipped["receivers"]) == sorted(RECEIVERS)
        for each in shipped["receivers"]:
            each["webhook_configs"] = [{"url": f"{webhook.url}/{each['name']}"}]
        config = directory / "alertmanager.yml"
        shipped["route"]["group_wait"] = "1s"  # nobody here has to read them
        config.write_text(yaml.safe_dump(shipped))
        self.webhook = webhook
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        super().__init__(command(config, directory, self.address), directory)
        self.is_up("Alertmanager")

    def post(self, *alerts: dict[str, str]) -> None:
        body = [{"labels": labels} for labels in alerts]
        requests.post(f"{self.url}/api/v2/alerts", json=body, timeout=10).raise_for_status()

    def alerts(self, state: str) -> list[dict[str, str]]:
        """The labels of the alerts in this state: active ones are notified, suppressed ones are not."""
        alerts = json.loads(get(f"{self.url}/api/v2/alerts"))
        return [alert["labels"] for alert in alerts if alert["status"]["state"] == state]

    def notifications(self, count: int) -> list[tuple[str, list[dict[str, str]]]]:
        """(receiver, labels of its alerts) of each, as soon as there are `count`; sorted."""
        received = self.webhook.received
        wait_for(f"{count} notifications", lambda: len(received) >= count)
        told = [(sent["receiver"], by_name(alert["labels"] for alert in sent["alerts"])) for sent in received]
        return sorted(told, key=lambda each: (each[0], sorted(each[1][0].items())))


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Alertmanager]:
    program("prometheus-alertmanager", "alertmanager")
    with ExitStack() as stack:
        webhook = Webhook()
        stack.callback(webhook.close)
        running = Alertmanager(tmp_path, webhook)
        stack.callback(running.stop)
        yield running


def by_name(alerts):
    return sorted(alerts, key=lambda labels: sorted(labels.items()))


@pytest.mark.parametrize(
    ("posted", "silenced"),
    [
        pytest.param(
            [STUCK, STALE, UNREACHABLE, NOTHING, USAGE, DOWN],
            [STUCK, STALE, UNREACHABLE, NOTHING, USAGE],
            id="exporter down",
        ),
        pytest.param(
            [STUCK, STALE, BURN_FAST, NOTHING, USAGE, UNREACHABLE],
            [STUCK, STALE, BURN_FAST, NOTHING, USAGE],
            id="API unreachable",
        ),
        pytest.param([STUCK, OTHER_AGENT, STALE], [STUCK], id="stale data of one agent"),
        pytest.param(
            [STUCK, OTHER_AGENT, STALE, NOTHING, USAGE, TOKEN],
            [STUCK, STALE, NOTHING, USAGE],
            id="token rejected for one agent's data",
        ),
        pytest.param([STUCK, ONE_DOWN], [], id="one of several exporters down"),
        pytest.param(
            [BURN_SLOW, RATIO, FAILED, BURN_FAST, OTHER_FAILED], [BURN_SLOW, RATIO, FAILED], id="fast burn"
        ),
        pytest.param([BURN_SLOW, RATIO, FAILED, OTHER_RATIO], [BURN_SLOW, RATIO], id="last run failed"),
        pytest.param([BURN_SLOW, RATIO, OTHER_BURN_SLOW], [BURN_SLOW], id="high failure ratio"),
        pytest.param([SILENT, START_MISSED, OTHER_SILENT], [SILENT], id="scheduled run did not start"),
    ],
)
def test_an_alert_is_silenced_by_its_cause_and_by_nothing_else(alertmanager, posted, silenced):
    alertmanager.post(*posted, *OTHERS)
    alertmanager.notifications(1)  # before that it may not know all causes
    assert by_name(alertmanager.alerts("suppressed")) == by_name(silenced)


def test_the_exporters_alert_is_delivered_and_the_agents_alerts_are_not(alertmanager):
    alertmanager.post(STUCK, FAILED, DOWN, OTHER_JOB)
    assert alertmanager.notifications(2) == [("pager", [DOWN]), ("tickets", [OTHER_JOB])]
    assert by_name(alertmanager.alerts("suppressed")) == by_name([STUCK, FAILED])


def test_each_agent_is_told_once_under_each_cause(alertmanager):
    alertmanager.post(STUCK, OTHER_AGENT, RATIO)
    told = [("tickets", [alert]) for alert in by_name([STUCK, OTHER_AGENT, RATIO])]
    assert alertmanager.notifications(3) == told


def test_the_shipped_configuration_starts_without_a_warning_and_its_default_receiver_does_nothing(tmp_path):
    shipped = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert {"name": shipped["route"]["receiver"]} in shipped["receivers"]
    address = f"127.0.0.1:{free_port()}"
    running = Process(command(CONFIG, tmp_path, address), tmp_path)
    try:
        wait_for("Alertmanager is ready", lambda: get(f"http://{address}/-/ready"))
    finally:
        running.stop()
    assert "Starting Alertmanager" in running.said()
    assert [line for line in running.said().splitlines() if "level=warn" in line.lower()] == []
