"""Who asks an exporter for things all at once: `python -m tests.crowd callers|health HOST:PORT...`.

A process of its own, so that what it measures is the exporter's time and not its own. It ends when its
standard input does, and then writes a report in JSON. An exporter that is named as `HOST:PORT/mortal` may be
away at times.
"""

import argparse
import gzip
import http.client
import json
import random
import select
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

BEGAN = time.monotonic()
PATIENCE = 330.0  # seconds after which a client gives up in any case
MOST = 300.0  # seconds that an exporter takes a timeout to be at most
DEFAULT = 10.0  # seconds that a scrape may take when its caller does not say
SPARE = 1.0  # seconds: the machine may be busy with other things
PROBE = 0.05  # seconds between two looks at the health
SLOW_READERS = 30
TIMEOUTS = ("0.001", "0.05", "0.5", "1", "2", "2.5", "3e0", "10", "30", "300", "1e5")
NONSENSE = ("1e10000", "nan", "inf", "-5", "0", "0x10", "abc", "", "1_0", "\xb2", "2,2", "9" * 500)
ACCEPTS = (
    "application/openmetrics-text; version=1.0.0", "text/plain", "*/*;q=0", "", ",;,=;q", "a" * 2000,
    "application/openmetrics-text; version=\"1.0.0\"; q=0.5, text/plain;version=0.0.4;q=0.3",
)  # fmt: skip
RAW = (
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"\r\n\r\n\0\0\0", b"GET\r\n\r\n", b"GET /metrics HTTP/1.1\r\nHos",
    b"GET http://else.invalid/../etc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
)  # fmt: skip
DURABLE = b"modus_agent_runs_finished_total{", b"modus_agent_runs_missed_total{", b"modus_agent_run_duration_"
ASKED = ("POST", "/metrics"), ("GET", "/x"), ("BREW", "/"), ("HEAD", "/metrics")
Answered = tuple[int, http.client.HTTPResponse, bytes]


@dataclass
class Report:
    """What was seen; lists are only added to, so that threads may share it."""

    problems: list[str] = field(default_factory=list)
    answers: "Counter[str]" = field(default_factory=Counter)
    shares: list[float] = field(default_factory=list)  # of its timeout that an answer took
    beyond: list[float] = field(default_factory=list)  # seconds that answers came after their timeout
    late: list[str] = field(default_factory=list)  # which of these came more than SPARE after it
    health: list[float] = field(default_factory=list)  # seconds
    lag: list[float] = field(default_factory=list)  # seconds by which we ourselves were late at the same time


class Caller(threading.Thread):
    """A scraper with an address of its own, that says all kinds of things about itself."""

    def __init__(self, target: str, number: int, over: threading.Event, report: Report) -> None:
        super().__init__(daemon=True)
        address, _, self.mortal = target.partition("/")
        host, _, port = address.rpartition(":")
        self.host, self.port, self.source = host, int(port), f"127.0.0.{number + 2}"
        self.over, self.report = over, report
        self.rng = random.Random(number)  # noqa: S311
        self.shown: dict[bytes, float] = {}

    def run(self) -> None:
        while not self.over.wait(self.rng.random() * 0.3):
            try:
                self.call()
            except (OSError, http.client.HTTPException) as error:
                self.report.answers[f"{type(error).__name__}{' mortal' * bool(self.mortal)}"] += 1
                if not self.mortal:
                    self.problem(f"no answer: {type(error).__name__}: {error}")

    def call(self) -> None:
        if self.rng.random() < 0.1:
            self.nonsense()
            return
        told = self.rng.choice(TIMEOUTS if self.rng.random() < 0.7 else NONSENSE)
        allowed = min(float(told), MOST) if told in TIMEOUTS else DEFAULT
        headers = {"X-Prometheus-Scrape-Timeout-Seconds": told, "Accept": self.rng.choice(ACCEPTS)}
        headers["Accept-Encoding"] = self.rng.choice(["gzip", "identity", "gzip;q=0, *"])
        began = time.monotonic()
        status, answer, body = self.ask("GET", "/metrics", headers)
        took = time.monotonic() - began
        self.report.answers[str(status)] += 1
        self.report.shares.append(took / allowed)
        if took > allowed:
            self.report.beyond.append(took - allowed)
        if took > allowed + SPARE:
            self.report.late.append(
                f"{self.port}, {time.monotonic() - BEGAN:.1f} s: timeout {told}: {status} after {took:.2f} s"
            )
        if status == 503 and answer.getheader("Retry-After"):
            return
        if status != 200:
            self.problem(f"timeout {told}: {status}: {body[:100]!r}")
            return
        self.check(gzip.decompress(body) if answer.getheader("Content-Encoding") == "gzip" else body)

    def check(self, text: bytes) -> None:
        """Compare with what this caller was shown before: what is durable never steps back."""
        for line in text.splitlines():
            if line.startswith(DURABLE) and b"_created" not in line:
                key, _, value = line.partition(b" # ")[0].rpartition(b" ")
                number = float(value)
                if number < self.shown.get(key, 0.0):
                    self.problem(f"stepped back: {key.decode()} from {self.shown[key]} to {number}")
                self.shown[key] = number
        if not text.endswith(b"\n"):
            self.problem("an answer is not whole")

    def nonsense(self) -> None:
        """What is no request that a scraper makes."""
        if self.rng.random() < 0.5:
            status, _, _ = self.ask(*self.rng.choice(ASKED), {})
        else:
            with socket.create_connection((self.host, self.port), 30, (self.source, 0)) as sock:
                sock.sendall(self.rng.choice(RAW))
                sock.shutdown(socket.SHUT_WR)
                first = sock.recv(100)
            status = int(first.split()[1]) if first else 0
        self.report.answers[f"nonsense: {status}"] += 1
        if status == 500:
            self.problem("nonsense is answered with 500")

    def ask(self, method: str, path: str, headers: dict[str, str]) -> Answered:
        connection = http.client.HTTPConnection(self.host, self.port, PATIENCE, (self.source, 0))
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer, answer.read()
        finally:
            connection.close()

    def problem(self, text: str) -> None:
        self.report.problems.append(f"{self.port}: {text}")


class SlowReaders(threading.Thread):
    """Clients that ask for the metrics, take next to nothing, and come again when they are dropped."""

    def __init__(self, target: str, over: threading.Event, report: Report) -> None:
        super().__init__(daemon=True)
        host, _, port = target.partition("/")[0].rpartition(":")
        self.address, self.over, self.report = (host, int(port)), over, report
        self.rng = random.Random(port)  # noqa: S311

    def run(self) -> None:
        socks: list[socket.socket | None] = [None] * SLOW_READERS
        while not self.over.wait(0.1):
            for index, sock in enumerate(socks):
                if sock is None or _was_dropped(sock) or self.rng.random() < 0.002:
                    if sock:
                        sock.close()
                    socks[index] = self.ask()

    def ask(self) -> socket.socket | None:
        sock = socket.socket()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.bind(("127.0.1.1", 0))
            sock.connect(self.address)
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        except OSError:
            sock.close()
            return None
        self.report.answers["slow readers"] += 1
        return sock


def _was_dropped(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)  # errors and hang-ups are told in any case
    return bool(poll.poll(0))


class Prober(threading.Thread):
    """Looks at `/-/healthy` all the time; who waits for a processor at that moment is seen by the lag."""

    def __init__(self, target: str, over: threading.Event, report: Report) -> None:
        super().__init__(daemon=True)
        host, _, port = target.rpartition(":")
        self.connection = http.client.HTTPConnection(host, int(port), 30, ("127.0.2.1", 0))
        self.over, self.report = over, report

    def run(self) -> None:
        while not self.over.is_set():
            slept = time.monotonic()
            self.over.wait(PROBE)
            began = time.monotonic()
            try:
                self.connection.request("GET", "/-/healthy")
                healthy = self.connection.getresponse().read() == b"modus-exporter is healthy.\n"
            except (OSError, http.client.HTTPException) as error:
                self.report.problems.append(f"health: {type(error).__name__}: {error}")
                self.connection.close()
                continue
            if not healthy:
                self.report.problems.append("it says that it is not healthy")
            self.report.health.append(time.monotonic() - began)
            self.report.lag.append(began - slept - PROBE)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.crowd", description=__doc__)
    parser.add_argument("what", choices=["callers", "health"])
    parser.add_argument("targets", nargs="+")
    args = parser.parse_args()
    over, report = threading.Event(), Report()
    threads: list[threading.Thread] = []
    for number, target in enumerate(args.targets):
        if args.what == "health":
            threads.append(Prober(target, over, report))
            continue
        threads += [Caller(target, 4 * number + n, over, report) for n in range(4)]
        threads.append(SlowReaders(target, over, report))
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join(60)
    json.dump(vars(report), sys.stdout)


if __name__ == "__main__":
    main()
