"""Modus / Exporter: whether the numbers of the other dashboards can be trusted."""

import queries as q
from looks import (
    CODE_COLOURS,
    COMPARED_AGE,
    NEUTRAL,
    NONE_IS_FINE,
    NUMBER,
    READ_AGE,
    REASON_COLOURS,
    SECONDS,
    SOON,
    YES_NO,
    in_colour,
)
from panels import (
    BLUE,
    COLOURED_TEXT,
    HIDDEN,
    NO_DATA,
    ORANGE,
    PURPLE,
    RED,
    At,
    Json,
    colours,
    graph,
    now,
    over_time,
    stacked,
    stat,
    table,
    thresholds,
    wide,
)

TITLE = "Modus / Exporter"
DESCRIPTION = "Whether modus-exporter reads everything in time, and what the Modus API answers."


def panels() -> list[Json]:
    """Health, what the API answers, then exporters and agents one by one."""
    return stacked(
        health(1),
        [latency(12, (0, 0, 8, 6)), rate_limited(13, (8, 0, 8, 6)), read_errors(9, (16, 0, 8, 6))],
        [exporters(10, (0, 0, 14, 6)), oldest_data(11, (14, 0, 10, 6))],
        shared_state(14),
    )


def health(key: int) -> list[Json]:
    """Whether the exporter reads everything in time: on its own dashboard, and folded away on the fleet's."""
    rate = f"rate(modus_api_requests_total{{{q.JOB}}}[$__rate_interval])"
    return [
        stat(
            (key + 6, "API answers", "none", (0, 0, 4, 3)),
            "Whether the API answered every exporter at all in the last scrape.",
            now(f"min(modus_up{{{q.JOB}}})", "answers"),
            steps=NEUTRAL,
            mappings=YES_NO,
        ),
        stat(
            (key, "Scrapes complete", "none", (4, 0, 4, 3)),
            "Whether every exporter read all of its agents in the last scrape.",
            now(f"min(modus_exporter_scrape_complete{{{q.JOB}}})", "complete"),
            steps=NEUTRAL,
            mappings=YES_NO,
        ),
        stat(
            (key + 1, "Agents not read", "short", (8, 0, 4, 3)),
            "Agents that no exporter could read in the last scrape.",
            now(q.count(q.NOT_READ)),
            steps=NONE_IS_FINE,
        ),
        stat(
            (key + 2, "Backlog", "short", (12, 0, 4, 3)),
            "Agents whose older pages are still to be read: their totals lag, no run is lost.",
            now(q.count(f"{q.BACKLOG} == 1")),
            steps=SOON,
        ),
        stat(
            (key + 7, "Runs missed", "short", (16, 0, 4, 3)),
            "Runs of the selected agents in the time range that are known to be missing in the counts.",
            now(f"round(sum({q.MISSED}))", "runs"),
            steps=SOON,
            decimals=0,
        ),
        stat(
            (key + 3, "Ledger writable", "none", (20, 0, 4, 3)),
            "Whether every exporter can write its state; one that cannot counts on in memory, and a restart "
            "would set its counters back.",
            now(f"min(modus_exporter_ledger_up{{{q.JOB}}})", "writable"),
            steps=NEUTRAL,
            mappings=YES_NO,
        ),
        graph(
            (key + 4, "Scrape duration", "s", (0, 3, 12, 6)),
            f"How long exporters took to read their agents, the {q.TOP} slowest at each point. Dashed: the "
            f"scrape timeout of prometheus.yml, {q.SCRAPE_TIMEOUT} s.",
            over_time(f"topk({q.TOP}, modus_exporter_scrape_duration_seconds{{{q.JOB}}})", "{{instance}}"),
            limits=thresholds((None, "transparent"), (q.SCRAPE_TIMEOUT, RED)),
            interval="1m",
        ),
        graph(
            (key + 5, "API requests a second by code", "short", (12, 3, 12, 6)),
            "By HTTP status, or by what went wrong before there was one: green answered, "
            "orange refused, red failed.",
            over_time(f"sum by (code) ({rate})", "{{code}}"),
            interval="1m",
            overrides=colours(CODE_COLOURS),
        ),
    ]


def latency(key: int, at: At) -> Json:
    """Percentiles of the API's answers."""
    return graph(
        (key, "API latency", "s", at),
        "How long the API took to answer in the 15 minutes before each point: the 95th percentile per "
        "operation, and the median of all requests.",
        over_time(q.latency(0.5), "p50"),
        over_time(q.latency(0.95, "operation"), "p95 {{operation}}"),
        interval="1m",
        overrides=colours(
            {
                "p50": "super-light-blue",
                "p95 list_runs": BLUE,
                "p95 get_run": PURPLE,
                "p95 list_agents": "light-purple",
                "p95 get_usage": ORANGE,
            }
        ),
    )


def rate_limited(key: int, at: At) -> Json:
    """The share of refused requests."""
    requests = f"rate(modus_api_requests_total{{{q.JOB}}}[$__rate_interval])"
    refused = f'rate(modus_api_requests_total{{{q.JOB},code="429"}}[$__rate_interval])'
    return graph(
        (key, "Rate limited", "percentunit", at),
        "Share of the requests that the API refused with 429. Near 100 % nothing is read any more.",
        over_time(f"(sum({refused}) or 0 * sum({requests})) / (sum({requests}) > 0)", "refused"),
        interval="1m",
        max=1,
        overrides=colours({"refused": ORANGE}),
    )


def read_errors(key: int, at: At) -> Json:
    """Failed reads per hour."""
    errors = q.increase("modus_agent_read_errors_total", q.HOUR, "reason")
    return graph(
        (key, "Read errors by reason", "short", at),
        "Failed reads of the selected agents in the hour before each point. unauthorized and forbidden "
        "need a person: the token is wrong or lacks a scope.",
        over_time(f"sum by (reason) ({errors}) > 0", "{{reason}}"),
        bars=True,
        decimals=0,
        noValue="No read is known to have failed",
        overrides=colours(REASON_COLOURS),
    )


def exporters(key: int, at: At) -> Json:
    """The table with a row per exporter."""
    rows = 2 * q.TOP

    def each(expr: str, also: str = "instance") -> str:
        return f"topk({rows}, max by ({q.INSTALLATION}, {also}) ({expr}))"

    yes_no: Json = {"mappings": YES_NO, "custom__cellOptions": COLOURED_TEXT}
    return table(
        (key, "Exporters", "short", at),
        f"The exporters of the selected jobs, the first {rows}. Config: whether the file was loaded when it "
        "last changed. CPU: cores used over the last hour.",
        {
            "Up": (each(f"up{{{q.JOB}}}"), wide(56, **yes_no)),
            "Build": (
                each(f"modus_exporter_build_info{{{q.JOB}}}", "instance, version"),
                HIDDEN,
            ),
            "Agents": (each(f"modus_exporter_agents{{{q.JOB}}}"), wide(76, **NUMBER)),
            "Config": (each(f"modus_exporter_config_last_reload_successful{{{q.JOB}}}"), wide(72, **yes_no)),
            "Memory": (
                each(f"process_resident_memory_bytes{{{q.JOB}}}"),
                wide(88, unit="bytes", decimals=0),
            ),
            "CPU": (
                each(f"rate(process_cpu_seconds_total{{{q.JOB}}}[1h])"),
                wide(72, unit="percentunit", decimals=1),
            ),
            "Running for": (each(q.age(f"process_start_time_seconds{{{q.JOB}}}")), wide(108, **SECONDS)),
        },
        sort="Running for",
        labels={"instance": "Exporter", "version": "Version"},
    )


def shared_state(key: int) -> list[Json]:
    """How several exporters share the agents."""
    each = f"max by ({q.INSTALLATION}, instance)"
    return [
        graph(
            (key, "Agents per exporter", "short", (0, 0, 12, 6)),
            f"Agents that each exporter reads, the {q.TOP} with most at each point. Exporters that share "
            "their state have even shares; one that comes or goes changes all of them.",
            over_time(f"topk({q.TOP}, {each} (modus_exporter_agents{{{q.JOB}}}))", "{{instance}}"),
            interval="1m",
            decimals=0,
        ),
        graph(
            (key + 1, "Agents that changed hands", "short", (12, 0, 12, 6)),
            "Leases taken or lost in the 15 minutes before each point, per exporter: twice each agent that "
            "moved. Only exporters that share their state in PostgreSQL have leases.",
            over_time(
                f"topk({q.TOP}, {each} (increase(modus_exporter_lease_changes_total{{{q.JOB}}}[15m]))) > 0",
                "{{instance}}",
            ),
            bars=True,
            decimals=0,
            noValue="No agent changed hands",
        ),
    ]


def oldest_data(key: int, at: At) -> Json:
    """The agents that were not read for the longest time."""
    oldest = q.top(q.age(q.LAST_READ))
    errors_in_range = q.increase("modus_agent_read_errors_total", q.RANGE)
    return table(
        (key, "Oldest data", "s", at),
        "Since the last successful read of an agent, and since its whole lookback was compared with the "
        f"list of runs; its failed reads and missed runs in the time range. The first {q.TOP}.",
        {
            "Last read": (oldest, wide(84, **in_colour(READ_AGE, decimals=0))),
            "Read errors": (q.of(oldest, errors_in_range), wide(96, unit="short", decimals=0)),
            "Last compared": (
                q.of(oldest, q.age(q.LAST_RECONCILED)),
                wide(116, **in_colour(COMPARED_AGE, decimals=0)),
            ),
            "Missed": (q.of(oldest, q.MISSED), wide(72, **in_colour(SOON, unit="short", decimals=0))),
        },
        sort="Last read",
        noValue=NO_DATA,
    )
