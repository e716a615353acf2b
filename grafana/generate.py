"""Writes the three dashboards: run `python grafana/generate.py` after a change and commit what it wrote.

Classic dashboard schema, version 41: what file provisioning accepts. queries.py has the definitions and the
limits, panels.py the building blocks. A panel draws at most a few agents, however many are selected; only the
fleet's table lists them all.
"""

import json
from pathlib import Path

import queries as q
from panels import (
    BLUE,
    COLOURED_CELL,
    COLOURED_TEXT,
    GREEN,
    GREY,
    HIDDEN,
    NO_DATA,
    ORANGE,
    PURPLE,
    RED,
    At,
    Head,
    Json,
    annotations,
    collapsed_row,
    colours,
    graph,
    mapping,
    now,
    over_time,
    override,
    panel,
    stat,
    table,
    thresholds,
    variables,
)

STATUS_COLOURS = {"completed": GREEN, "error": RED, "cancelled": GREY}
TRIGGER_COLOURS = {
    "schedule": BLUE,
    "webhook": "light-blue",
    "api": PURPLE,
    "slack": "light-purple",
    "manual": GREY,
}
CODE_COLOURS = {"/^2/": GREEN, "/^[34]/": ORANGE, "/^5/": RED, "/^[^0-9]/": "dark-red", "429": "dark-orange"}
REASON_COLOURS = {
    "unauthorized": RED,
    "forbidden": "dark-red",
    "not_found": "light-red",
    "rate_limited": ORANGE,
    "server_error": "dark-orange",
    "timeout": "light-orange",
    "connection": PURPLE,
    "bad_response": "dark-purple",
    "deadline": BLUE,
    "internal": "dark-blue",
}
STATE_NAMES = mapping(*((code, name, colour) for code, name, colour, _ in q.STATES))
READ_NAMES = mapping((0, "failed", RED), (1, "ok", GREEN), (2, "catching up", ORANGE))
YES_NO = mapping((1, "yes", GREEN), (0, "no", RED))

NEUTRAL = thresholds((None, BLUE))
NONE_IS_FINE = thresholds((None, GREEN), (1, RED))
SOON = thresholds((None, GREEN), (1, ORANGE))
RATIO = thresholds((None, GREEN), (q.BUDGET, ORANGE), (q.FAILURE_LIMIT, RED))
WAITING_AGE = thresholds((None, BLUE), (q.WAITING_LONG, ORANGE))
READ_AGE = thresholds((None, GREEN), (q.STALE, ORANGE), (q.VERY_STALE, RED))
COMPARED_AGE = thresholds((None, GREEN), (q.RECONCILE_OVERDUE, ORANGE))
IN_A_ROW = thresholds((None, GREEN), (1, ORANGE), (3, RED))
FEW_RUNS = [override("of few runs", thresholds=NEUTRAL)]
SECONDS: Json = {"unit": "s", "decimals": 1}
NUMBER: Json = {"unit": "none", "decimals": 0}  # in full: not 9 K


def in_colour(steps: Json, **more: object) -> Json:
    """Cells whose text has the colour of its threshold."""
    return {"custom__cellOptions": COLOURED_TEXT, "thresholds": steps, **more}


def durations(key: int, at: At) -> Json:
    """Percentiles of the run durations, of all selected agents together."""
    return graph(
        (key, "Run duration percentiles", "s", at),
        "Median and 95th percentile of the runs that completed in the hour before each point, all selected "
        "agents together. Diamonds are single runs: hover over one for its run id.",
        over_time(q.quantile(0.5, q.HOUR), "p50", exemplar=False),
        over_time(q.quantile(0.95, q.HOUR), "p95", exemplar=True),
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


def who(
    head: Head, description: str, column: tuple[str, str], steps: Json, nobody: str, **cells: object
) -> Json:
    """The agents in one state, and for how long."""
    title, expr = column
    return table(
        head,
        f"{description} The first {q.TOP}.",
        {title: (q.top(expr), in_colour(steps, decimals=1, **cells))},
        sort=title,
        noValue=nobody,
    )


def failing(key: int, at: At) -> Json:
    """The failing agents: for how long, and how many runs in a row."""
    shown = q.top(q.NO_SUCCESS_FOR)
    return table(
        (key, "Failing: who", "s", at),
        f"Time since each failing agent's last success, and how many runs have failed in a row. "
        f"The first {q.TOP}.",
        {
            "No success for": (
                shown,
                in_colour(
                    thresholds((None, RED)),
                    decimals=1,
                    mappings=mapping((-1, "never succeeded", RED)),
                    custom__width=108,
                ),
            ),
            "In a row": (q.of(shown, q.IN_A_ROW), {"unit": "short", "decimals": 0, "custom__width": 68}),
        },
        sort="No success for",
        noValue="No agent is known to fail",
    )


def who_has_to_act() -> list[Json]:
    """Failing, stuck, waiting for a human, silent: how many, and who."""
    hours = q.WAITING_LONG // 3600
    return [
        stat(
            (1, "Failing", "short", (0, 0, 6, 3)),
            "Agents whose last run failed and that have not succeeded for "
            f"{q.FAILING_AFTER // 60} min, as in the alert ModusAgentLastRunFailed. One success takes an "
            "agent off.",
            now(q.count(q.FAILING)),
            steps=NONE_IS_FINE,
        ),
        stat(
            (2, "Stuck", "short", (6, 0, 6, 3)),
            f"Agents with a run that has been running for more than {q.STUCK // 3600} h.",
            now(q.count(q.IS_STUCK)),
            steps=NONE_IS_FINE,
        ),
        stat(
            (3, "Waiting for a human", "short", (12, 0, 6, 3)),
            f"Agents with a run that awaits a human: all of them (blue), and those where the oldest started "
            f"more than {hours} h ago (orange).",
            now(q.count(q.WAITING), "all"),
            now(q.count(f"{q.WAITING} > {q.WAITING_LONG}"), f"over {hours} h"),
            steps=SOON,
            overrides=[override("all", thresholds=thresholds((None, GREEN), (1, BLUE)))],
        ),
        stat(
            (4, "Silent", "short", (18, 0, 6, 3)),
            "Agents that started no run within their expected_interval (config.yaml). Agents without one, "
            "and those that are switched off, are never silent. The alert leaves a tenth and five minutes of "
            "grace.",
            now(q.count(q.SILENT)),
            steps=SOON,
        ),
        failing(5, (0, 3, 6, 5)),
        who(
            (6, "Stuck: who", "s", (6, 3, 6, 5)),
            "Age of each stuck agent's oldest running run.",
            ("Running for", q.IS_STUCK),
            thresholds((None, RED)),
            "No agent is known to be stuck",
        ),
        who(
            (7, "Waiting: who", "s", (12, 3, 6, 5)),
            f"Age of each agent's oldest run that awaits a human; orange from {hours} h.",
            ("Waiting for", q.WAITING),
            WAITING_AGE,
            "No run is known to wait",
        ),
        who(
            (8, "Silent: who", "s", (18, 3, 6, 5)),
            "Time from each silent agent's last start to its last read.",
            ("No run for", q.SILENT),
            thresholds((None, ORANGE)),
            "No agent is known to be silent",
        ),
    ]


def all_agents(key: int, at: At) -> Json:
    """The table with a row per agent."""
    return table(
        (key, "Agents", "short", at),
        "Every selected agent, the worst state first; the name leads to its details. Runs, failure ratio and "
        "p95 are of the dashboard's time range; a ratio needs at least "
        f"{q.MIN_RUNS} runs. In a row: the newest runs that failed, one after the other. Read: whether the "
        "API answered for it in the last scrape.",
        {
            "State": (
                q.named(q.STATE),
                {"mappings": STATE_NAMES, "custom__cellOptions": COLOURED_CELL, "custom__width": 120},
            ),
            "Last success": (q.named(q.age(q.SUCCEEDED)), SECONDS),
            "Last run": (q.named(q.age(q.STARTED)), SECONDS),
            "Open run age": (q.named(q.age(q.OPEN)), SECONDS),
            "Runs": (q.named(q.ended(q.RANGE)), NUMBER),
            "Failed": (q.named(q.ended(q.RANGE, match=q.ERROR)), NUMBER),
            "Failure ratio": (
                q.named(q.enough(q.failure_ratio(q.RANGE, q.KEY), q.RANGE, q.KEY)),
                in_colour(RATIO, unit="percentunit", decimals=1),
            ),
            "In a row": (q.named(q.IN_A_ROW), in_colour(IN_A_ROW, decimals=0)),
            "p95": (q.named(q.quantile(0.95, q.RANGE, q.KEY)), SECONDS),
            "Read": (q.named(q.READ), {"mappings": READ_NAMES, "custom__cellOptions": COLOURED_TEXT}),
        },
        sort="State",
        labels={"agent_name": "Agent", "cluster": "Cluster", "namespace": "Namespace", "job": "Job"},
    )


def fleet() -> list[Json]:
    """Who has to act, how the fleet runs, every agent, and the exporter's health."""
    return [
        *who_has_to_act(),
        ended_runs(9, (0, 8, 8, 6)),
        graph(
            (10, "Failure ratio", "percentunit", (8, 8, 8, 6)),
            "Errors among the runs that completed or failed in the hour before each point: all selected "
            "agents, and the 4 with the most errors in the time range. Dashed: "
            f"{q.BUDGET:.0%}, what the objective allows, and {q.FAILURE_LIMIT:.0%}.",
            over_time(q.failure_ratio(q.HOUR), "all agents"),
            over_time(q.most_errors(q.failure_ratio(q.HOUR, q.KEY), 4, "> 0"), "{{agent_name}}"),
            limits=RATIO,
            max=1,
            overrides=colours({"all agents": "text"}),
        ),
        durations(11, (16, 8, 8, 6)),
        all_agents(12, (0, 14, 24, 12)),
        collapsed_row(13, "Exporter health", 26, exporter_health(20, 27)),
    ]


def agent_now() -> list[Json]:
    """The first row of the agent's dashboard: numbers as of now."""
    names = ", ".join(name for _, name, _, _ in q.STATES)
    longest = "of several agents the longest"
    return [
        stat(
            (1, "State", "none", (0, 0, 6, 3)),
            f"The worst that applies of: {names}. Of several agents the 3 worst.",
            now(f"sort_desc({q.top(q.STATE, agents=3)})", "{{agent_name}}"),
            steps=NEUTRAL,
            mappings=STATE_NAMES,
            text={"titleSize": 12, "valueSize": 16},
        ),
        stat(
            (2, "Last success", "s", (6, 0, 3, 3)),
            f"Since the last completed run; {longest}.",
            now(f"max({q.age(q.SUCCEEDED)})", "ago"),
            steps=NEUTRAL,
            decimals=1,
            noValue="none yet",
        ),
        stat(
            (3, "Last start", "s", (9, 0, 3, 3)),
            f"Since the newest run started; {longest}.",
            now(f"max({q.age(q.STARTED)})", "ago"),
            steps=NEUTRAL,
            decimals=1,
            noValue="none yet",
        ),
        stat(
            (4, "Open run age", "s", (12, 0, 3, 3)),
            "Age of the oldest run that is running or awaits a human; orange from "
            f"{q.WAITING_LONG // 3600} h.",
            now(f"max({q.age(q.OPEN)})", "ago"),
            steps=WAITING_AGE,
            decimals=1,
            noValue="none",
        ),
        stat(
            (15, "Failed in a row", "short", (15, 0, 3, 3)),
            "How many of the newest runs failed, one after the other; of several agents the most.",
            now(f"max({q.IN_A_ROW})", "runs"),
            steps=IN_A_ROW,
            decimals=0,
        ),
        stat(
            (5, "Failure ratio", "percentunit", (18, 0, 3, 3)),
            f"Errors among the runs that completed or failed in the time range; orange from {q.BUDGET:.0%}, "
            f"what the objective allows, red from {q.FAILURE_LIMIT:.0%}. Blue: of fewer than "
            f"{q.MIN_RUNS} runs.",
            *enough_or_few(q.failure_ratio(q.RANGE), "errors"),
            steps=RATIO,
            decimals=1,
            noValue="no runs",
            overrides=FEW_RUNS,
        ),
        stat(
            (6, "Budget left", "percentunit", (21, 0, 3, 3)),
            f"Share of the errors allowed by an objective of {q.OBJECTIVE:.0%} over the time range that is "
            f"left; 0 % when they are used up or overdrawn. Blue: of fewer than {q.MIN_RUNS} runs.",
            *enough_or_few(f"clamp_min(1 - ({q.failure_ratio(q.RANGE)}) / {q.BUDGET}, 0)", "left"),
            steps=thresholds((None, RED), (0.01, ORANGE), (0.25, GREEN)),
            decimals=0,
            noValue="no runs",
            overrides=FEW_RUNS,
        ),
    ]


def enough_or_few(expr: str, legend: str) -> tuple[Json, Json]:
    """A ratio over the time range under one of two names, so that one of few runs is not painted red."""
    return now(q.enough(expr, q.RANGE), legend), now(q.few(expr, q.RANGE), "of few runs")


def agent_counting(y: int) -> list[Json]:
    """The last row: whether what is shown of the agent can be trusted."""
    return [
        stat(
            (7, "Read from the API", "none", (0, y, 6, 3)),
            "Whether the last scrape read the agent, and all of its pages; of several agents the worst.",
            now(f"min({q.UP}) * (1 + max({q.BACKLOG})) or min({q.UP})", "read"),
            steps=NEUTRAL,
            mappings=READ_NAMES,
        ),
        stat(
            (16, "Last read", "s", (6, y, 6, 3)),
            "Since the last successful read; of several agents the oldest.",
            now(f"max({q.age(q.LAST_READ)})", "ago"),
            steps=READ_AGE,
            decimals=0,
            noValue="never",
        ),
        stat(
            (17, "Runs missed", "short", (12, y, 6, 3)),
            "Runs of the time range that are known to be missing in the counts; the runbook of "
            "ModusRunsMissed has the reasons.",
            now(f"round(sum({q.MISSED}))", "runs"),
            steps=SOON,
            decimals=0,
        ),
        stat(
            (18, "Last compared", "s", (18, y, 6, 3)),
            "Since the whole lookback was last compared with the list of runs; of several agents the oldest.",
            now(f"max({q.age(q.LAST_RECONCILED)})", "ago"),
            steps=COMPARED_AGE,
            decimals=0,
            noValue="never",
        ),
    ]


def status_history(key: int, at: At) -> Json:
    """The state over time."""
    return panel(
        "state-timeline",
        (key, "Status history", "none", at),
        "The state at each time, by the rules of the fleet's dashboard; of many agents the "
        f"{q.TOP} with the most errors.",
        [over_time(q.most_errors(q.STATE), "{{agent_name}}")],
        options={
            "mergeValues": True,
            "showValue": "auto",
            "alignValue": "left",
            "rowHeight": 0.85,
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "single", "sort": "none"},
        },
        interval="5m",
        mappings=STATE_NAMES,
        custom={"fillOpacity": 80, "lineWidth": 0},
        color={"mode": "thresholds"},
        thresholds=NEUTRAL,
    )


def duration_heatmap(key: int, at: At) -> Json:
    """The histogram of run durations over time."""
    buckets = q.increase("modus_agent_run_duration_seconds_bucket", q.HOUR, "le")
    return panel(
        "heatmap",
        (key, "Run durations", "s", at),
        "Completed runs by duration: each column is the hour up to it, its colour the number of runs.",
        [over_time(f"sum by (le) ({buckets})", "{{le}}", format="heatmap")],
        options={
            "calculate": False,
            "cellGap": 1,
            "cellValues": {"unit": "short", "decimals": 0},
            "color": {
                "mode": "scheme",
                "scheme": "Blues",
                "steps": 64,
                "scale": "exponential",
                "exponent": 0.5,
                "reverse": False,
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 0.5},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto", "value": "Runs"},
            "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": True},
            "yAxis": {"axisPlacement": "left", "unit": "s", "reverse": False},
        },
        interval=q.HOUR,
        custom={"scaleDistribution": {"type": "linear"}},
    )


def agent() -> list[Json]:
    """One agent, or a few, in detail."""
    oldest = q.top(q.age(q.OPEN_BY_STATUS), "status")
    return [
        *agent_now(),
        status_history(8, (0, 3, 15, 6)),
        table(
            (9, "Open runs", "s", (15, 3, 9, 6)),
            f"The oldest open run per agent and status, and how many the API counts. "
            f"The {q.TOP} oldest of each.",
            {
                "Oldest": (oldest, in_colour(WAITING_AGE, decimals=1)),
                "Open": (
                    f"{q.named(q.OPEN_COUNTS)} and on ({q.KEY}, status) {oldest}",
                    {"unit": "short", "decimals": 0},
                ),
            },
            sort="Oldest",
            labels={"agent_name": "Agent", "status": "Status"},
            noValue="No run is known to be open",
        ),
        duration_heatmap(10, (0, 9, 12, 9)),  # high enough for a label per bucket
        durations(11, (12, 9, 12, 9)),
        ended_runs(12, (0, 18, 8, 6)),
        graph(
            (13, "Ended runs by trigger", "short", (8, 18, 8, 6)),
            "Runs that ended in the hour before each point, by what started them.",
            over_time(f"sum by (trigger_type) ({q.ended(q.HOUR, 'trigger_type')})", "{{trigger_type}}"),
            bars=True,
            decimals=0,
            overrides=colours(TRIGGER_COLOURS),
        ),
        graph(
            (14, "Error budget burn rate", "x", (16, 18, 8, 6)),
            f"How many times faster than an objective of {q.OBJECTIVE:.0%} allows errors happen, over the "
            f"last hour and the last six. Dashed: {q.BURN_SLOW:g} (orange) and {q.BURN_FAST:g} (red, act "
            "now).",
            over_time(f"({q.failure_ratio(q.HOUR)}) / {q.BUDGET}", "1 h"),
            over_time(f"({q.failure_ratio('6h')}) / {q.BUDGET}", "6 h"),
            limits=thresholds((None, "transparent"), (q.BURN_SLOW, ORANGE), (q.BURN_FAST, RED)),
            soft_max=round(q.BURN_FAST + 1),
            decimals=0,
            overrides=colours({"1 h": "super-light-blue", "6 h": BLUE}),
        ),
        *agent_counting(24),
    ]


def exporter_health(key: int, y: int) -> list[Json]:
    """Whether the exporter reads everything in time: on its own dashboard, and folded away on the fleet's."""
    rate = f"rate(modus_api_requests_total{{{q.JOB}}}[$__rate_interval])"
    return [
        stat(
            (key + 6, "API answers", "none", (0, y, 4, 3)),
            "Whether the API answered every exporter at all in the last scrape.",
            now(f"min(modus_up{{{q.JOB}}})", "answers"),
            steps=NEUTRAL,
            mappings=YES_NO,
        ),
        stat(
            (key, "Scrapes complete", "none", (4, y, 4, 3)),
            "Whether every exporter read all of its agents in the last scrape.",
            now(f"min(modus_exporter_scrape_complete{{{q.JOB}}})", "complete"),
            steps=NEUTRAL,
            mappings=YES_NO,
        ),
        stat(
            (key + 1, "Agents not read", "short", (8, y, 4, 3)),
            "Agents that no exporter could read in the last scrape.",
            now(q.count(q.NOT_READ)),
            steps=NONE_IS_FINE,
        ),
        stat(
            (key + 2, "Backlog", "short", (12, y, 4, 3)),
            "Agents whose older pages are still to be read: their totals lag, no run is lost.",
            now(q.count(f"{q.BACKLOG} == 1")),
            steps=SOON,
        ),
        stat(
            (key + 7, "Runs missed", "short", (16, y, 4, 3)),
            "Runs of the selected agents in the time range that are known to be missing in the counts.",
            now(f"round(sum({q.MISSED}))", "runs"),
            steps=SOON,
            decimals=0,
        ),
        stat(
            (key + 3, "Ledger writable", "none", (20, y, 4, 3)),
            "Whether every exporter can write its state; one that cannot counts on in memory, and a restart "
            "would set its counters back.",
            now(f"min(modus_exporter_ledger_up{{{q.JOB}}})", "writable"),
            steps=NEUTRAL,
            mappings=YES_NO,
        ),
        graph(
            (key + 4, "Scrape duration", "s", (0, y + 3, 12, 6)),
            f"How long exporters took to read their agents, the {q.TOP} slowest at each point. Dashed: the "
            f"scrape timeout of prometheus.yml, {q.SCRAPE_TIMEOUT} s.",
            over_time(f"topk({q.TOP}, modus_exporter_scrape_duration_seconds{{{q.JOB}}})", "{{instance}}"),
            limits=thresholds((None, "transparent"), (q.SCRAPE_TIMEOUT, RED)),
            interval="1m",
        ),
        graph(
            (key + 5, "API requests by code", "reqps", (12, y + 3, 12, 6)),
            "Requests per second by HTTP status, or by what went wrong before there was one: green answered, "
            "orange refused, red failed.",
            over_time(f"sum by (code) ({rate})", "{{code}}"),
            interval="1m",
            overrides=colours(CODE_COLOURS),
        ),
    ]


def exporters(key: int, at: At) -> Json:
    """The table with a row per exporter."""
    rows = 2 * q.TOP

    def each(expr: str, also: str = "instance") -> str:
        return f"topk({rows}, max by ({q.INSTALLATION}, {also}) ({expr}))"

    yes_no = {"mappings": YES_NO, "custom__cellOptions": COLOURED_TEXT}
    return table(
        (key, "Exporters", "short", at),
        f"The exporters of the selected jobs, the first {rows}. CPU: cores used over the last hour.",
        {
            "Up": (each(f"up{{{q.JOB}}}"), yes_no),
            "Build": (
                each(f"modus_exporter_build_info{{{q.JOB}}}", "instance, version"),
                HIDDEN,
            ),
            "Agents": (each(f"modus_exporter_agents{{{q.JOB}}}"), {"decimals": 0}),
            "Config": (each(f"modus_exporter_config_last_reload_successful{{{q.JOB}}}"), yes_no),
            "Memory": (
                each(f"process_resident_memory_bytes{{{q.JOB}}}"),
                {"unit": "bytes", "decimals": 0},
            ),
            "CPU": (
                each(f"rate(process_cpu_seconds_total{{{q.JOB}}}[1h])"),
                {"unit": "percentunit", "decimals": 1},
            ),
            "Running for": (each(q.age(f"process_start_time_seconds{{{q.JOB}}}")), SECONDS),
        },
        sort="Running for",
        labels={"instance": "Exporter", "version": "Version"},
    )


def exporter() -> list[Json]:
    """Whether the numbers of the other two dashboards can be trusted."""
    requests = f"rate(modus_api_requests_total{{{q.JOB}}}[$__rate_interval])"
    refused = f'rate(modus_api_requests_total{{{q.JOB},code="429"}}[$__rate_interval])'
    durations_of = f"rate(modus_api_request_duration_seconds_bucket{{{q.JOB}}}[15m])"
    errors = q.increase("modus_agent_read_errors_total", q.HOUR, "reason")
    oldest = q.top(q.age(q.LAST_READ))
    errors_in_range = q.increase("modus_agent_read_errors_total", q.RANGE)
    return [
        *exporter_health(1, 0),
        graph(
            (12, "API latency", "s", (0, 9, 8, 6)),
            "How long the API took to answer in the 15 minutes before each point: the 95th percentile per "
            "operation, and the median of all requests.",
            over_time(f"histogram_quantile(0.5, sum by (le) ({durations_of})) >= 0", "p50"),
            over_time(
                f"histogram_quantile(0.95, sum by (operation, le) ({durations_of})) >= 0", "p95 {{operation}}"
            ),
            interval="1m",
            overrides=colours(
                {
                    "p50": "super-light-blue",
                    "p95 list_runs": BLUE,
                    "p95 get_run": PURPLE,
                    "p95 list_agents": "light-purple",
                }
            ),
        ),
        graph(
            (13, "Rate limited", "percentunit", (8, 9, 8, 6)),
            "Share of the requests that the API refused with 429. Near 100 % nothing is read any more.",
            over_time(f"(sum({refused}) or 0 * sum({requests})) / (sum({requests}) > 0)", "refused"),
            interval="1m",
            max=1,
            overrides=colours({"refused": ORANGE}),
        ),
        graph(
            (9, "Read errors by reason", "short", (16, 9, 8, 6)),
            "Failed reads of the selected agents in the hour before each point. unauthorized and forbidden "
            "need a person: the token is wrong or lacks a scope.",
            over_time(f"sum by (reason) ({errors})", "{{reason}}"),
            bars=True,
            decimals=0,
            overrides=colours(REASON_COLOURS),
        ),
        exporters(10, (0, 15, 14, 6)),
        table(
            (11, "Oldest data", "s", (14, 15, 10, 6)),
            "Since the last successful read of an agent, and since its whole lookback was compared with the "
            f"list of runs; its failed reads and missed runs in the time range. The first {q.TOP}.",
            {
                "Last read": (oldest, in_colour(READ_AGE, decimals=0)),
                "Read errors": (q.of(oldest, errors_in_range), {"unit": "short", "decimals": 0}),
                "Last compared": (
                    q.of(oldest, q.age(q.LAST_RECONCILED)),
                    in_colour(COMPARED_AGE, decimals=0),
                ),
                "Missed": (q.of(oldest, q.MISSED), in_colour(SOON, unit="short", decimals=0)),
            },
            sort="Last read",
            noValue=NO_DATA,
        ),
    ]


DASHBOARDS = {
    "fleet": (
        "Modus / Fleet",
        "Which Modus agents fail, hang, wait for a human or went silent, and how the fleet runs.",
        fleet,
    ),
    "agent": (
        "Modus / Agent",
        "One Modus agent: its state over time, durations, triggers, open runs, error budget.",
        agent,
    ),
    "exporter": (
        "Modus / Exporter",
        "Whether modus-exporter reads everything in time, and what the Modus API answers.",
        exporter,
    ),
}


def dashboard(name: str) -> Json:
    """One of DASHBOARDS in the classic schema."""
    title, description, panels = DASHBOARDS[name]
    links = [
        {
            "type": "link",
            "title": other_title,
            "url": f"/d/modus-{other}",
            "icon": "dashboard",
            "keepTime": True,
            "includeVars": True,
            "asDropdown": False,
            "targetBlank": False,
            "tags": [],
            "tooltip": other_description,
        }
        for other, (other_title, other_description, _) in DASHBOARDS.items()
        if other != name
    ]
    return {
        "uid": f"modus-{name}",
        "title": title,
        "description": description,
        "tags": ["modus"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # the crosshair is shared by all panels
        "refresh": "1m",
        "timezone": "browser",
        "time": {"from": "now-24h", "to": "now"},
        "templating": {"list": variables(all_agents=name != "agent")},
        "annotations": {"list": annotations()},
        "links": links,
        "panels": panels(),
    }


def generate() -> dict[str, str]:
    """The text of each file, by its name."""
    return {
        f"{name}.json": json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"
        for name in DASHBOARDS
    }


if __name__ == "__main__":
    for file, text in generate().items():
        (Path(__file__).parent / "dashboards" / file).write_text(text, encoding="utf-8")
