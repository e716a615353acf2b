"""The parts of one scrape, each by its CPU, and what many of them leave in memory; JSON on standard output.

    python -m benchmarks.inside AGENTS [SCRAPES]

All of the exporter but its web server, in this process, over HTTP to an upstream without latency. Without
SCRAPES the shares of the CPU: `steady` is the ledger's commit when a tenth of the agents had a run that
ended, `commit` the same with every agent's account changed, as at its worst; `own` and `library` are what our
text of an agent costs, and the library's, in seconds. With SCRAPES the memory after so many, in which no run
ends.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from benchmarks.processes import api
from exporter.config import Config
from exporter.metrics.collector import RunsCollector
from exporter.metrics.exposition import families, write
from exporter.metrics.kept import Kept
from exporter.metrics.settings import Settings
from exporter.metrics.snapshot import Snapshot
from exporter.modus.client import ModusClient
from exporter.modus.discovery import Selection, Target
from exporter.runs.ledger import Ledger
from exporter.runs.reader import Limits

SHARED = 4  # scrapes for the shares, of which half change every account
SETTLED = 50  # scrapes after which memory is taken for the first time
LIBRARY_AGENTS = 200  # whose text the library writes: it is slow
KEPT = Kept()  # text from one scrape to the next


def resident_mib() -> float:
    """Memory in use, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Parts:
    """CPU seconds by part."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._lock = threading.Lock()

    def timed(self, name: str, work: Callable[..., Any], clock: Callable[[], float]) -> Callable[..., Any]:
        """The same function, what `clock` tells added to `name`."""

        def measured(*args: object, **kwargs: object) -> Any:
            begin = clock()
            try:
                return work(*args, **kwargs)
            finally:
                with self._lock:
                    self.spent[name] = self.spent.get(name, 0.0) + clock() - begin

        return measured


def shown(snapshot: Snapshot) -> int:
    """Text and compression: the bytes of the compressed exposition."""
    packer = zlib.compressobj(level=1, wbits=31)
    pieces = write(families(snapshot), True, KEPT)
    return sum(len(packer.compress(piece)) for piece in pieces) + len(packer.flush())


class Shown(Collector):
    """A registry of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """The families."""
        return families(self._snapshot)


def cpu_of(work: Callable[[], object], times: int) -> float:
    """CPU seconds of `work()`, the median."""
    spent = []
    for _ in range(times):
        begin = time.thread_time()
        work()
        spent.append(time.thread_time() - begin)
    return statistics.median(spent)


def text_costs(snapshot: Snapshot) -> dict[str, float]:
    """What the library's text and ours cost."""
    few = replace(snapshot, agents=snapshot.agents[:LIBRARY_AGENTS])
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Shown(few))
    return {
        "own": cpu_of(lambda: list(write(families(few), True)), 7) / len(few.agents),
        "library": cpu_of(lambda: generate_latest(registry), 3) / len(few.agents),
    }


@contextmanager
def running(agents: int, *, still: bool) -> Iterator[tuple[Ledger, RunsCollector]]:
    """An exporter that has made its first two scrapes."""
    config = Config()
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        upstream = stack.enter_context(api(0.0, None, True, still=still))
        client = ModusClient(upstream.url, lambda: "bench", concurrency=config.modus.concurrency)
        stack.callback(client.close)
        ledger = Ledger(f"{directory}/state.db", config.histogram.buckets, lookback=config.runs.lookback)
        stack.callback(ledger.close)
        settings = Settings(
            selection=Selection([Target(n) for n in range(1, agents + 1)]),
            limits=Limits(config.runs.page_size, config.runs.max_pages, config.runs.lookback),
            concurrency=config.modus.concurrency,
            timeout_offset=0.5,
            default_timeout=120.0,
            min_interval=0.0,
        )
        collector = RunsCollector(client, ledger, settings, reload_state=lambda: (True, 0.0))
        stack.callback(collector.close)
        for _ in range(2):
            shown(collector.scrape(120.0))
        yield ledger, collector


def shares(agents: int) -> dict[str, float]:
    """Shares of the CPU of a scrape."""
    parts = Parts()
    with running(agents, still=False) as (ledger, collector):
        scrape = parts.timed("scrape", collector.scrape, time.process_time)
        text = parts.timed("render", shown, time.thread_time)
        commit_piece = ledger.commit_piece
        ledger.record = parts.timed("count", ledger.record, time.thread_time)  # type: ignore[method-assign]
        for n in range(SHARED):
            if worst := n >= SHARED // 2:
                for account in ledger._accounts.values():
                    account.changed = True
            timed = parts.timed("commit" if worst else "steady", commit_piece, time.thread_time)
            ledger.commit_piece = timed  # type: ignore[method-assign]
            text(scrape(120.0))
        costs = text_costs(collector.scrape(120.0))
    spent = parts.spent
    whole = spent["scrape"] + spent["render"]
    of_half = {name: 2 * spent[name] / whole for name in ("commit", "steady")}
    return {name: spent[name] / whole for name in ("render", "count")} | of_half | costs


def memory(agents: int, scrapes: int) -> dict[str, float]:
    """MiB after 50 scrapes and after all."""
    early = 0.0
    with running(agents, still=True) as (_, collector):
        for n in range(scrapes):
            shown(collector.scrape(120.0))
            if n + 1 == SETTLED:
                early = resident_mib()
        return {"early": early, "late": resident_mib(), "growth": resident_mib() / early}


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:]]
    json.dump(memory(*given) if len(given) > 1 else shares(*given), sys.stdout)
