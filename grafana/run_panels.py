"""Graphs of runs that more than one dashboard shows."""

import queries as q
from looks import NONE_ENDED, STATUS_COLOURS
from panels import BLUE, At, Json, colours, graph, over_time


def durations(key: int, at: At) -> Json:
    """Percentiles of the run durations, of all selected agents together."""
    return graph(
        (key, "Run duration percentiles", "s", at),
        "Median and 95th percentile of the runs that completed in the hour before each point, all selected "
        "agents together. Diamonds are single runs: hover over one for its run id.",
        over_time(q.quantile(0.5, q.durations(q.HOUR)), "p50", exemplar=False),
        over_time(q.quantile(0.95, q.durations(q.HOUR)), "p95", exemplar=True),
        noValue=NONE_ENDED,
        overrides=colours({"p50": "super-light-blue", "p95": BLUE}),
    )


def ended_runs(key: int, at: At) -> Json:
    """Ended runs per hour, by status."""
    return graph(
        (key, "Ended runs by status", "short", at),
        "Runs that ended in the hour before each point, each counted once: green completed, red error, grey "
        "cancelled.",
        over_time(f"sum by (status) ({q.ended(q.HOUR, 'status')})", "{{status}}"),
        bars=True,
        decimals=0,
        overrides=colours(STATUS_COLOURS),
    )
