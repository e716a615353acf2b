"""A collector for one caller, with the time that he has."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from exporter.metrics.exposition import describe, families

if TYPE_CHECKING:  # handed in
    from exporter.metrics.collector import RunsCollector


class BoundCollector(Collector):
    """The collector for one caller who waits `timeout` seconds (None: the default timeout)."""

    def __init__(self, collector: "RunsCollector", timeout: float | None) -> None:
        self._collector = collector
        self._timeout = timeout

    def describe(self) -> Iterable[Metric]:
        """The families without samples."""
        return describe()

    def collect(self) -> Iterable[Metric]:
        """The families of a scrape within that time; what follows it is timed for the next scrapes."""
        scrape, began = self._collector.read(self._timeout), time.monotonic()
        snapshot = self._collector.snapshot(scrape)
        yield from families(snapshot)
        self._collector.note_tail(time.monotonic() - began, len(snapshot.agents))
