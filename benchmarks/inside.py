"""The parts of one scrape, each by its CPU, and what many of them leave in memory; JSON on standard output.

    python -m benchmarks.inside AGENTS SCRAPES

All of the exporter but its web server, in this process, over HTTP to a static upstream without
latency. `render`, `commit` and `count` are shares of the CPU of a scrape; `commit` with every agent's account
changed, as at its worst, `steady` as it is when nothing happened.
"""

import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from benchmarks.run import api
from exporter.config import Config
from exporter.metrics.collector import RunsCollector, Settings
from exporter.metrics.exposition import families, write
from exporter.modus.client import ModusClient
from exporter.modus.discovery import Target
from exporter.modus.requeststats import REQUEST_BUCKETS
from exporter.runs.ledger import Ledger
from exporter.runs.reader import Limits

SETTLED = 50  # scrapes after which memory is taken for the first time


def resident_mib() -> float:
    """Memory in use, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Parts:
    """CPU seconds of this process by part."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def timed(self, name: str, work: Callable[..., object]) -> Callable[..., object]:
        """The same function, its CPU added to `name`."""

        def measured(*args: object, **kwargs: object) -> object:
            begin = time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.process_time() - begin

        return measured


def render(collector: RunsCollector) -> int:
    """One scrape as the web server does it: the bytes of the compressed exposition."""
    snapshot = collector.scrape(120.0)
    return shown(snapshot)


def shown(snapshot: object) -> int:
    """Text and compression."""
    packer = zlib.compressobj(level=1, wbits=31)
    pieces = write(families(snapshot), True)  # type: ignore[arg-type]
    return sum(len(packer.compress(piece)) for piece in pieces) + len(packer.flush())


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
            targets=[Target(n) for n in range(1, agents + 1)],
            discovery=None,
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
        write, record = ledger.commit, collector._record
        collector._record = parts.timed("count", record)  # type: ignore[method-assign,assignment]
        scrape = parts.timed("scrape", collector.scrape)
        text = parts.timed("render", shown)
        for n in range(scrapes):
            half = n >= scrapes // 2  # from here on every account is written anew
            if half and scrapes < SETTLED:
                ledger._changed.update(ledger.accounts)
            ledger.commit = parts.timed("worst" if half else "steady", write)  # type: ignore[method-assign]
            text(scrape(120.0))
            if n + 1 == SETTLED:
                early = resident_mib()
        late = resident_mib()
        collector.close()
        ledger.commit = write  # type: ignore[method-assign]
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
    }


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1]), int(sys.argv[2])), sys.stdout)
