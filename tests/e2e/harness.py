"""The real command, a real Prometheus and a real Alertmanager, each on a free port of loopback."""

import http.server
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests
from prometheus_client.openmetrics.parser import text_fd_to_metric_families
from prometheus_client.samples import Sample

from exporter.demo.simulator import Request

T = TypeVar("T")
SHIPPED = Path(__file__).parents[2] / "prometheus"
PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
FIRST = "1"  # the page size of the request that an exporter makes at its start, and of no other


def of_a_scrape(request: Request) -> bool:
    """Whether a scrape asks: neither the start does, nor who reads usage."""
    return request.operation in ("list_runs", "list_agents") and request.query["pageSize"] != FIRST


def wait_for(what: str, ask: Callable[[], T], seconds: float = 60.0) -> T:
    """What `ask` returns as soon as that is true; it may raise OSError until then."""
    deadline = time.monotonic() + seconds
    problem: object = None
    while time.monotonic() < deadline:
        try:
            if answer := ask():
                return answer
        except OSError as error:
            problem = error
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what} ({problem})")


def get(
    url: str, headers: dict[str, str] | None = None, data: bytes | None = None, timeout: float = 30
) -> str:
    """The body of an answer in the 200s; RequestException, which is an OSError, for any other."""
    with requests.Session() as session:
        session.trust_env = False
        answer = session.request(
            "GET" if data is None else "POST", url, headers=headers, data=data, timeout=timeout
        )
        answer.raise_for_status()
        return answer.content.decode()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, for what listens there later, or never.

    Linux gives away ports from 32768 on, macOS from 49152 on, to who connects or listens on any: one of
    those may be gone by then.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)  # hypothesis seeds random
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def ended(popen: "subprocess.Popen[Any]") -> Iterator["subprocess.Popen[Any]"]:
    """A program that is ended by its process id, whatever happens to the test; its pipes are closed."""
    with popen:
        try:
            yield popen
        finally:
            popen.kill()


class Process:
    """A program that is ended by its process id, whatever happens to the test."""

    url = ""

    def __init__(self, command: list[str], directory: Path, env: dict[str, str] | None = None) -> None:
        self.log = directory / f"{Path(command[0]).name}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **(env or {})}, cwd=directory
            )

    def said(self) -> str:
        return self.log.read_text()

    def is_up(self, name: str) -> None:
        """Wait until it says that it is ready, at its `url`."""
        try:
            wait_for(f"{name} is ready", lambda: self.popen.poll() is not None or get(f"{self.url}/-/ready"))
            assert self.popen.poll() is None
        except BaseException as error:
            self.kill()
            raise AssertionError(self.said()) from error

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(10)

    def stop(self, number: int = signal.SIGTERM, within: float = 10.0) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            return self.popen.wait(within)
        except BaseException:
            self.kill()
            raise


class Exporter(Process):
    """`python -m exporter` with these flags, from the moment it listens; `prefix` is what starts it."""

    def __init__(
        self,
        directory: Path,
        *flags: str,
        port: int = 0,
        env: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        root = str(Path(__file__).parents[2])
        address = "--web.listen-address", f"127.0.0.1:{port}"
        command = [*prefix, sys.executable, "-m", "exporter", *address, *flags]
        super().__init__(command, directory, {"PYTHONPATH": root, **(env or {})})
        try:
            listening = wait_for("the exporter listens", self._address)
        except BaseException:
            self.kill()
            raise
        self.url = f"http://{listening}"

    def _address(self) -> str | None:
        if self.popen.poll() is not None:
            raise AssertionError(f"the exporter ended: {self.said()}")
        found = re.search(r"msg=listening address=(\S+)", self.said())
        return found[1] if found else None

    def exposition(self, timeout: float = 30) -> str:
        return get(f"{self.url}/metrics", {"Accept": OPENMETRICS}, timeout=timeout)

    def scrape(self) -> "Scrape":
        return Scrape(self.exposition())

    def native(self, agent_id: int) -> dict[float, int]:
        """The agent's durations as protobuf has them: the native buckets by their upper bounds, 0 for zero.

        They and the classic ones are of the same runs; none before the agent's first sample.
        """
        from tests import metricsproto  # most tests do without protobuf's runtime

        headers = {"Accept": PROTOBUF}
        with requests.get(f"{self.url}/metrics", headers=headers, timeout=30) as answer:
            answer.raise_for_status()
            assert answer.headers["Content-Type"] == PROTOBUF
        for family in metricsproto.families(answer.content):
            for metric in family.metric if family.name == "modus_agent_run_duration_seconds" else ():
                if metric.label[0].value == str(agent_id):
                    histogram, buckets = metric.histogram, metricsproto.native_buckets(metric.histogram)
                    counted = histogram.zero_count + sum(buckets.values())
                    assert counted == histogram.sample_count == histogram.bucket[-1].cumulative_count
                    bounds = {2 ** (n / 2**histogram.schema): count for n, count in buckets.items()}
                    return {0.0: histogram.zero_count, **bounds}
        return {}


class Scrape:
    """The samples of one exposition."""

    def __init__(self, text: str) -> None:
        self.samples: list[Sample] = [
            sample
            for family in text_fd_to_metric_families(iter(text.splitlines(keepends=True)))
            for sample in family.samples
        ]

    def all(self, name: str, **labels: str) -> list[Sample]:
        return [s for s in self.samples if s.name == name and labels.items() <= s.labels.items()]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that match."""
        found = self.all(name, **labels)
        assert found, f"no sample of {name} {labels}"
        return sum(sample.value for sample in found)

    def finished(self, agent_id: int) -> dict[str, int]:
        counts: dict[str, int] = {}
        for sample in self.all("modus_agent_runs_finished_total", agent_id=str(agent_id)):
            status = sample.labels["status"]
            counts[status] = counts.get(status, 0) + int(sample.value)
        return counts


@contextmanager
def exporter(
    directory: Path, *flags: str, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> Iterator[Exporter]:
    running = Exporter(directory, *flags, env=env, prefix=prefix)
    try:
        yield running
    finally:
        running.stop()


def config(directory: Path, url: str, *agents: int, **sections: str) -> Path:
    """A configuration file for these agents; `sections` are further lines by top-level key."""
    path = directory / "config.yaml"
    lines = [f"modus: {{base_url: '{url}', token: demo}}", f"agents: {list(agents)}"]
    lines += [f"state: {{path: '{directory}/state/state.db'}}"] if "state" not in sections else []
    path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in sections.items())]) + "\n")
    return path


def audit(file: Path) -> tuple[int, str]:
    """Exit code and table of `--audit`, or the line that came in its place."""
    command = [sys.executable, "-m", "exporter", "--config.file", str(file), "--audit"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=root)
    return done.returncode, done.stdout or done.stderr


def shipped(name: str, changes: Mapping[str, str]) -> str:
    """The text of a file in prometheus/ with these changes, each of which must have something to change."""
    text = (SHIPPED / name).read_text()
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    return text


def program(*names: str) -> str:
    """The first of these programs that is installed; without one the test is skipped, but not in CI."""
    for name in names:
        if found := shutil.which(name):
            return found
    message = f"{names[0]} is not installed: apt-get install prometheus prometheus-alertmanager"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def native_histograms() -> tuple[tuple[str, ...], str]:
    """How the installed Prometheus is told to ask for them: its features, and a setting of a scrape."""
    said = subprocess.run([program("prometheus"), "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"version (\d+)\.(\d+)", said.stdout + said.stderr)
    assert version
    stable = (int(version[1]), int(version[2])) >= (3, 8)
    return ((), "scrape_native_histograms: true,") if stable else (("native-histograms",), "")


class Prometheus(Process):
    """A Prometheus with this configuration and these features, from the moment it is ready."""

    def __init__(self, directory: Path, config_file: Path, *features: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        super().__init__(
            [
                program("prometheus"),
                f"--config.file={config_file}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                f"--enable-feature={','.join(('exemplar-storage', *features))}",
            ],
            directory,
        )
        self.is_up("Prometheus")

    def ask(self, path: str, **query: Any) -> Any:
        answer = json.loads(get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query, doseq=True)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result

    def number(self, expression: str) -> float | None:
        result = self.query(expression)
        return float(result[0]["value"][1]) if result else None


class Webhook:
    """Receives what an Alertmanager sends, on a free port of loopback."""

    def __init__(self) -> None:
        received: list[dict[str, Any]] = []
        self.received = received

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                received.append({"path": self.path, **body})
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
