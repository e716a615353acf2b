"""The first scrapes of many agents, with a scraper's real timeout: is every answer there in time?

    python -m benchmarks.first [AGENTS RUNS_A_DAY IN_FLIGHT LATENCY TIMEOUT]

Ten scrapes of a new exporter, one right behind the other, by a client that says its timeout and takes gzip
as Prometheus does. Its time counts from the request to the last byte of the answer. Meanwhile another client
asks for `/-/healthy` all the time. Without arguments: all of the scenarios.
"""

import gzip
import http.client
import re
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Exporter, Tls, api, certificate, peak_mib, started

SCRAPES = 10
HEALTHY_EVERY = 0.05  # seconds
READ = re.compile(rb'^modus_agent_up\{agent_id="\d+"\} 1\.0$', re.MULTILINE)
COUNTED = re.compile(rb"^modus_agent_run_duration_seconds_count\{", re.MULTILINE)  # all of its lookback
Scenario = tuple[int, int, int, float, float]  # agents, runs a day, in flight, latency, timeout
FLEETS = [(1_000, 2_000, 32), (10_000, 144, 256)]
SCENARIOS: list[Scenario] = [
    (*fleet, latency, timeout) for fleet in FLEETS for latency in (0.05, 0.2) for timeout in (10.0, 25.0)
]
TELLING = [SCENARIOS[0], SCENARIOS[4]]  # those that `make bench` has time for


@dataclass(frozen=True)
class Found:
    """What became of the scrapes of one scenario."""

    cells: tuple[str, ...]  # of its row in the table
    slowest: float  # its share of the timeout


class Health:
    """Asks for `/-/healthy` all the time; `slowest` is the longest that it took, in seconds."""

    def __init__(self, port: int) -> None:
        self.slowest = 0.0
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._over.wait(HEALTHY_EVERY):
            began = time.perf_counter()
            connection.request("GET", "/-/healthy")
            connection.getresponse().read()
            self.slowest = max(self.slowest, time.perf_counter() - began)
        connection.close()

    def close(self) -> float:
        """End it; returns `slowest`."""
        self._over.set()
        self._thread.join()
        return self.slowest


def timed_scrape(running: Exporter, timeout: float) -> tuple[float, float, int, int]:
    """Seconds of a scrape and of the slowest `/-/healthy` meanwhile, agents read, agents counted."""
    health = Health(running.port)
    try:
        began = time.perf_counter()
        body = running.scrape(timeout)
        wall = time.perf_counter() - began
    finally:
        slowest = health.close()
    text = gzip.decompress(body)
    if not text.endswith(b"# EOF\n"):
        raise RuntimeError(f"the answer is not whole: {text[-100:]!r}")
    return wall, slowest, len(READ.findall(text)), len(COUNTED.findall(text))


def first_scrapes(
    tls: Tls, agents: int, runs_a_day: int, in_flight: int, latency: float, timeout: float
) -> Found:
    """The first ten scrapes of one scenario."""
    with (
        api(latency, tls, True, runs_a_day) as upstream,
        started(upstream.url, agents, in_flight, tls[0]) as running,
    ):
        scrapes = [timed_scrape(running, timeout) for _ in range(SCRAPES)]
        peak = peak_mib(running.pid)
    walls, healthy, read, counted = zip(*scrapes, strict=True)
    in_time = sum(wall < timeout for wall in walls)
    whole = next((n for n, number in enumerate(counted, 1) if number == agents), None)
    cells = (
        f"{agents:,}", f"{runs_a_day:,}", f"{in_flight}", f"{latency * 1000:.0f} ms", f"{timeout:.0f} s",
        f"{in_time} of {SCRAPES}", f"{max(walls):.2f} s", " ".join(f"{wall:.1f}" for wall in walls),
        " ".join(map(str, read)), f"{whole or f'{counted[-1]} agents'}",
        f"{max(healthy) * 1000:.0f} ms", f"{peak:.0f} MiB",
    )  # fmt: skip
    return Found(cells, max(walls) / timeout)


def main() -> None:
    """Print the rows."""
    given = [float(each) for each in sys.argv[1:]]
    chosen = [(int(given[0]), int(given[1]), int(given[2]), given[3], given[4])] if given else SCENARIOS
    with tempfile.TemporaryDirectory() as directory:
        tls = certificate(Path(directory))
        for scenario in chosen:
            sys.stdout.write(" | ".join(first_scrapes(tls, *scenario).cells) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
