"""Requests and bytes per agent and scrape, in a simulated day: exact numbers, the same on every machine."""

import gzip
from dataclasses import replace

from exporter.demo.simulator import SimulatedModus
from exporter.metrics.collector import RunsCollector
from exporter.runs.ledger import Ledger
from tests.simulation import BOUNDS, DAY, Clock, DirectApi, settings

INTERVAL = 60.0  # seconds between scrapes
SCRAPES = 180  # three hours
AGENTS = {
    110: "silent: no runs",
    101: "quiet: a run every 5 minutes",
    102: "busy: 400 runs an hour, 1 to 20 s each",
    106: "waiting: a run awaits a human since 26 h, three more an hour",
}


def costs(agent_id: int, servers: int = 1, min_interval: float = 0.0) -> tuple[float, float, float]:
    """Mean requests, bytes and gzipped bytes of an agent per interval, without the first two scrapes."""
    clock = Clock()
    modus = SimulatedModus(clock=clock)
    bodies: list[bytes] = []
    answer = modus.answer

    def counted(*request: object) -> object:
        given = answer(*request)  # type: ignore[arg-type]
        bodies.append(given.body)
        return given

    modus.answer = counted  # type: ignore[method-assign,assignment]
    collector = RunsCollector(
        DirectApi(modus),  # type: ignore[arg-type]
        Ledger(None, BOUNDS, lookback=DAY, clock=clock),
        replace(settings(agent_id), min_interval=min_interval),
        reload_state=lambda: (True, 0.0),
        clock=clock,
        monotonic=clock,
    )
    for scrape in range(SCRAPES + 2):
        if scrape == 2:
            bodies.clear()
        for _ in range(servers):
            clock.advance(INTERVAL / servers)
            collector.scrape(None)
    collector.close()
    plain, zipped = (sum(map(len, each)) / SCRAPES for each in (bodies, map(gzip.compress, bodies)))
    return len(bodies) / SCRAPES, plain, zipped


def frugal_table() -> str:
    """The costs as a Markdown table."""
    rows = [
        "| agent | requests | bytes of JSON | gzipped |",
        "| --- | ---: | ---: | ---: |",
    ]
    cases = [(text, costs(agent_id)) for agent_id, text in AGENTS.items()]
    cases.append(("quiet, two servers, `min_interval: 0s`", costs(101, servers=2)))
    cases.append(("quiet, two servers, `min_interval: 45s`", costs(101, servers=2, min_interval=45)))
    rows += [
        f"| {text} | {requests:.2f} | {plain:,.0f} | {zipped:,.0f} |"
        for text, (requests, plain, zipped) in cases
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    print(frugal_table())  # noqa: T201
