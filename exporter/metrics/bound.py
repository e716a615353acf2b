"""A collector for one caller, with the time that he has."""

import time
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from exporter.metrics.exposition import describe, families
from exporter.metrics.snapshot import Snapshot
from exporter.runs.state import USAGE_ID
from exporter.waits import Waits, waited

if TYPE_CHECKING:  # handed in
    from exporter.metrics.collector import RunsCollector
    from exporter.runs.scrape import Scrape


class BoundCollector(Collector):
    """The collector for one caller who waits `timeout` seconds (None: the default timeout)."""

    def __init__(self, collector: "RunsCollector", timeout: float | None) -> None:
        self._collector = collector
        self._timeout = timeout
        self._shown: Snapshot | None = None
        self._scrape: Scrape | None = None

    def holds(self) -> bool:
        """Whether all that was collected is still this exporter's to show; text of it takes a while."""
        holds, shown = self._collector.leases.holds, self._shown
        usage = shown is None or shown.usage.up is None or holds(USAGE_ID)
        return usage and (shown is None or all(holds(agent.id) for agent in shown.agents))

    def reading(self) -> Waits[Hashable]:
        """Wait for the scrape that `collect` shows; equal for all who may share what one of them is shown."""
        scrape = self._scrape = yield from self._collector.reading(self._timeout)
        return scrape if scrape.finished.done() and scrape.committed else self

    def describe(self) -> Iterable[Metric]:
        """The families without samples."""
        return describe()

    def collect(self) -> Iterable[Metric]:
        """The families of a scrape within that time; what follows it is timed for the next scrapes."""
        scrape, self._scrape = self._scrape or waited(self._collector.reading(self._timeout)), None
        began = time.monotonic()
        snapshot = self._shown = self._collector.snapshot(scrape)
        yield from families(snapshot)
        self._collector.tail.note(time.monotonic() - began, len(snapshot.agents))
