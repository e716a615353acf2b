"""The parts of one scrape, each by its CPU, and what many of them leave in memory; JSON on standard output.

    python -m benchmarks.inside AGENTS SCRAPES

All of the exporter but its web server, in this process, over HTTP to a static upstream without
latency. `render`, `commit` and `count` are shares of the CPU of a scrape; `commit` with every agent's account
changed, as at its worst, `steady` as it is when nothing happened. `registry` is what it costs to go through a
registry made for one request, with the library's two collectors in it, in seconds; `library` what the
library's own text of a snapshot costs, and `own` what ours does, in seconds per agent.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from benchmarks.processes import api
from exporter.config import Config
from exporter.metrics.collector import RunsCollector, Settings
from exporter.metrics.exposition import describe, families, write
from exporter.metrics.table import Snapshot
from exporter.modus.client import ModusClient
from exporter.modus.discovery import Selection, Target
from exporter.modus.requeststats import REQUEST_BUCKETS
from exporter.runs.ledger import Ledger
from exporter.runs.reader import Limits

SETTLED = 50  # scrapes after which memory is taken for the first time
LIBRARY_AGENTS = 200  # whose text the library writes: it is slow


def resident_mib() -> float:
    """Memory in use, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Parts:
    """CPU seconds by part."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._lock = threading.Lock()

    def timed(
        self, name: str, work: Callable[..., object], clock: Callable[[], float] = time.thread_time
    ) -> Callable[..., object]:
        """The same function, the CPU of its thread (or what `clock` tells) added to `name`."""

        def measured(*args: object, **kwargs: object) -> object:
            begin = clock()
            try:
                return work(*args, **kwargs)
            finally:
                with self._lock:
                    self.spent[name] = self.spent.get(name, 0.0) + clock() - begin

        return measured


def render(collector: RunsCollector) -> int:
    """One scrape as the web server does it: the bytes of the compressed exposition."""
    snapshot = collector.scrape(120.0)
    return shown(snapshot)


def shown(snapshot: Snapshot) -> int:
    """Text and compression."""
    packer = zlib.compressobj(level=1, wbits=31)
    pieces = write(families(snapshot), True)
    return sum(len(packer.compress(piece)) for piece in pieces) + len(packer.flush())


class Shown(Collector):
    """A collector of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """The families without samples, as RunsCollector has them."""
        return describe()

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return families(self._snapshot)


def cpu_of(work: Callable[[], object], times: int = 7) -> float:
    """CPU seconds of `work()`, the median."""
    spent = []
    for _ in range(times):
        begin = time.thread_time()
        work()
        spent.append(time.thread_time() - begin)
    return statistics.median(spent)


def text_costs(snapshot: Snapshot) -> dict[str, float]:
    """What a registry, the library's text and ours cost."""
    few = replace(snapshot, agents=snapshot.agents[:LIBRARY_AGENTS])
    others = ProcessCollector(registry=None), PlatformCollector(registry=None)

    def fresh() -> CollectorRegistry:
        registry = CollectorRegistry()
        for collector in (Shown(few), *others):
            registry.register(collector)
        return registry

    own = cpu_of(lambda: list(write(families(few), True)))
    return {
        "own": own / len(few.agents),
        "library": cpu_of(lambda: generate_latest(fresh()), 3) / len(few.agents),
        "registry": cpu_of(lambda: list(write(fresh().collect(), True))) - own,
    }


def measure(agents: int, scrapes: int) -> dict[str, float]:
    """Shares of the CPU, and memory after 50 scrapes and after all."""
    config = Config()
    with (
        tempfile.TemporaryDirectory() as directory,
        api(0.0, None, False) as upstream,
    ):
        client = ModusClient(upstream.url, lambda: "bench", concurrency=config.modus.concurrency)
        ledger = Ledger(f"{directory}/state.db", config.histogram.buckets, lookback=config.runs.lookback)
        settings = Settings(
            selection=Selection([Target(n) for n in range(1, agents + 1)]),
            limits=Limits(config.runs.page_size, config.runs.max_pages, config.runs.lookback),
            concurrency=config.modus.concurrency,
            timeout_offset=0.5,
            default_timeout=120.0,
            min_interval=0.0,
            request_bounds=REQUEST_BUCKETS,
        )
        collector = RunsCollector(client, ledger, settings, reload_state=lambda: (True, 0.0))
        for _ in range(2):
            render(collector)
        early = 0.0
        parts = Parts()
        commit_piece = ledger.commit_piece
        ledger.record = parts.timed("count", ledger.record)  # type: ignore[method-assign,assignment]
        scrape = parts.timed("scrape", collector.scrape, time.process_time)
        text = parts.timed("render", shown)
        for n in range(scrapes):
            half = n >= scrapes // 2  # from here on every account is written anew
            if half and scrapes < SETTLED:
                for account in ledger._accounts.values():
                    account.changed = True
            part = parts.timed("worst" if half else "steady", commit_piece)
            ledger.commit_piece = part  # type: ignore[method-assign,assignment]
            text(scrape(120.0))
            if n + 1 == SETTLED:
                early = resident_mib()
        late = resident_mib()
        costs = text_costs(collector.scrape(120.0))
        collector.close()
        ledger.close()
        client.close()
    spent = parts.spent
    whole = spent["scrape"] + spent["render"]
    steady, worst = spent["steady"] / (scrapes // 2), spent["worst"] / (scrapes - scrapes // 2)
    return {
        "render": spent["render"] / whole,
        "count": spent["count"] / whole,
        "commit": worst / (whole / scrapes),
        "steady": steady / (whole / scrapes),
        "early": early,
        "late": late,
        "growth": late / early if early else 0.0,
        **costs,
    }


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1]), int(sys.argv[2])), sys.stdout)
