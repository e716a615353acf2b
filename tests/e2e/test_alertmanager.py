"""The shipped Alertmanager configuration in a real Alertmanager: who is told what, and who is silenced."""

import contextlib
import json
import os
import queue
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

CONFIG = Path(__file__).parents[2] / "prometheus" / "alertmanager.yml"
WEBHOOKS = "http://127.0.0.1:9099"  # what the shipped configuration sends to
PATIENCE = 60  # seconds until a notification must be there; group_wait is 10

DOWN = {"alertname": "ModusExporterDown", "severity": "critical", "job": "modus"}
ONE_DOWN = {"alertname": "ModusExporterDown", "severity": "warning", "job": "modus", "instance": "b"}
UNREACHABLE = {"alertname": "ModusApiUnreachable", "severity": "critical", "job": "modus"}
TOKEN = {"alertname": "ModusTokenRejected", "severity": "critical", "job": "modus"}
AGENT = {"severity": "warning", "job": "modus", "agent_id": "105", "agent_name": "Contract review"}
STALE = {**AGENT, "alertname": "ModusDataStale"}
STUCK = {**AGENT, "alertname": "ModusAgentRunStuck"}
FAILED = {**AGENT, "alertname": "ModusAgentLastRunFailed"}
RATIO = {**AGENT, "alertname": "ModusAgentFailureRatioHigh"}
BURN_SLOW = {**AGENT, "alertname": "ModusErrorBudgetBurnSlow"}
BURN_FAST = {**AGENT, "alertname": "ModusErrorBudgetBurnFast", "severity": "critical"}
OTHER_AGENT = {**STUCK, "agent_id": "108", "agent_name": "Report builder"}
OTHER_FAILED, OTHER_RATIO, OTHER_BURN_SLOW = (
    {**OTHER_AGENT, "alertname": alert["alertname"]} for alert in (FAILED, RATIO, BURN_SLOW)
)
OTHER_JOB = {**STUCK, "job": "modus-staging"}


class Notification(NamedTuple):
    receiver: str
    alerts: list[dict[str, str]]  # labels


class Alertmanager(NamedTuple):
    url: str
    received: "queue.Queue[Notification]"

    def post(self, *alerts: dict[str, str]) -> None:
        body = [{"labels": labels} for labels in alerts]
        requests.post(f"{self.url}/api/v2/alerts", json=body, timeout=10).raise_for_status()

    def suppressed(self) -> list[dict[str, str]]:
        alerts = requests.get(f"{self.url}/api/v2/alerts", timeout=10).json()
        return [alert["labels"] for alert in alerts if alert["status"]["state"] == "suppressed"]


class Webhook(BaseHTTPRequestHandler):
    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received.put(
            Notification(self.path.removeprefix("/"), [alert["labels"] for alert in sent["alerts"]])
        )
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        """Nothing: pytest shows what failed."""


@contextlib.contextmanager
def webhook_receiver() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        server.received = queue.Queue()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(20)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def program() -> str:
    if path := shutil.which("prometheus-alertmanager") or shutil.which("alertmanager"):
        return path
    reason = "Alertmanager is not installed (Debian: prometheus-alertmanager)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def await_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{url}/-/ready", timeout=5).ok:
                return
        time.sleep(0.05)
    pytest.fail(log.read_text())


@pytest.fixture
def alertmanager(tmp_path):
    executable = program()
    with webhook_receiver() as receiver:
        config = tmp_path / "alertmanager.yml"
        shipped = CONFIG.read_text(encoding="utf-8")
        assert WEBHOOKS in shipped
        config.write_text(shipped.replace(WEBHOOKS, f"http://127.0.0.1:{receiver.server_port}"))
        address = f"127.0.0.1:{free_port()}"
        log = tmp_path / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    executable,
                    f"--config.file={config}",
                    f"--storage.path={tmp_path / 'data'}",
                    f"--web.listen-address={address}",
                    "--cluster.listen-address=",
                ],
                stdout=output,
                stderr=output,
            )
            try:
                await_ready(process, f"http://{address}", log)
                yield Alertmanager(f"http://{address}", receiver.received)
            finally:
                process.terminate()
                process.wait(20)


def by_name(alerts):
    return sorted(alerts, key=lambda labels: sorted(labels.items()))


@pytest.mark.parametrize(
    ("posted", "silenced"),
    [
        pytest.param([STUCK, STALE, UNREACHABLE, DOWN], [STUCK, STALE, UNREACHABLE], id="exporter down"),
        pytest.param([STUCK, STALE, BURN_FAST, UNREACHABLE], [STUCK, STALE, BURN_FAST], id="API unreachable"),
        pytest.param([STUCK, OTHER_AGENT, STALE], [STUCK], id="stale data of one agent"),
        pytest.param(
            [STUCK, OTHER_AGENT, STALE, TOKEN], [STUCK, STALE], id="token rejected for one agent's data"
        ),
        pytest.param([STUCK, ONE_DOWN], [], id="one of several exporters down"),
        pytest.param(
            [BURN_SLOW, RATIO, FAILED, BURN_FAST, OTHER_FAILED], [BURN_SLOW, RATIO, FAILED], id="fast burn"
        ),
        pytest.param([BURN_SLOW, RATIO, FAILED, OTHER_RATIO], [BURN_SLOW, RATIO], id="last run failed"),
        pytest.param([BURN_SLOW, RATIO, OTHER_BURN_SLOW], [BURN_SLOW], id="high failure ratio"),
    ],
)
def test_an_alert_is_silenced_by_its_cause_and_by_nothing_else(alertmanager, posted, silenced):
    alertmanager.post(*posted, OTHER_JOB)
    assert by_name(alertmanager.suppressed()) == by_name(silenced)


def test_the_exporters_alert_is_delivered_and_the_agents_alerts_are_not(alertmanager):
    alertmanager.post(STUCK, FAILED, DOWN, OTHER_JOB)
    first, second = (alertmanager.received.get(timeout=PATIENCE) for _ in range(2))
    assert sorted([first, second]) == [Notification("pager", [DOWN]), Notification("tickets", [OTHER_JOB])]
    assert by_name(alertmanager.suppressed()) == by_name([STUCK, FAILED])


def test_each_agent_is_told_once_under_each_cause(alertmanager):
    alertmanager.post(STUCK, OTHER_AGENT, RATIO)
    notifications = [alertmanager.received.get(timeout=PATIENCE) for _ in range(3)]
    assert {note.receiver for note in notifications} == {"tickets"}
    assert [len(note.alerts) for note in notifications] == [1, 1, 1]
    assert by_name(note.alerts[0] for note in notifications) == by_name([STUCK, OTHER_AGENT, RATIO])
