"""Modus / Agent: one agent, or a few, in detail."""

import queries as q
from looks import (
    COMPARED_AGE,
    FEW_RUNS,
    IN_A_ROW,
    NEUTRAL,
    NONE_ENDED,
    RATIO,
    READ_AGE,
    READ_NAMES,
    SOON,
    STATE_NAMES,
    TRIGGER_COLOURS,
    WAITING_AGE,
    in_colour,
)
from panels import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    At,
    Json,
    colours,
    graph,
    now,
    over_time,
    panel,
    stacked,
    stat,
    table,
    thresholds,
    wide,
)
from run_panels import durations, ended_runs

TITLE = "Modus / Agent"
DESCRIPTION = "One Modus agent: its state over time, durations, triggers, open runs, error budget."


def panels() -> list[Json]:
    """As of now, over time, and last whether what is shown can be trusted."""
    return stacked(
        numbers(),
        [status_history(8, (0, 0, 15, 6)), open_runs(9, (15, 0, 9, 6))],
        # high enough for a label per bucket
        [duration_heatmap(10, (0, 0, 12, 9)), durations(11, (12, 0, 12, 9))],
        [
            ended_runs(12, (0, 0, 6, 6)),
            by_trigger(13, (6, 0, 6, 6)),
            burn_rate(14, (12, 0, 6, 6)),
            in_time(19, (18, 0, 6, 6)),
        ],
        schedule(),
        trust(),
    )


def numbers() -> list[Json]:
    """The first row: numbers as of now."""
    names = ", ".join(name for _, name, _, _ in q.STATES)
    longest = "of several agents the longest"
    return [
        stat(
            (1, "State", "none", (0, 0, 6, 3)),
            f"The worst that applies of: {names}. Of several agents the 3 worst.",
            now(f"sort_desc({q.top(q.STATE, agents=3)})", "{{agent_name}}"),
            steps=NEUTRAL,
            mappings=STATE_NAMES,
            rows=True,
        ),
        stat(
            (2, "Last success", "s", (6, 0, 3, 3)),
            f"Since the last completed run; {longest}.",
            now(f"max({q.age(q.SUCCEEDED)})", "ago"),
            steps=NEUTRAL,
            decimals=1,
            noValue="none",
        ),
        stat(
            (3, "Last start", "s", (9, 0, 3, 3)),
            f"Since the newest run started; {longest}.",
            now(f"max({q.age(q.STARTED)})", "ago"),
            steps=NEUTRAL,
            decimals=1,
            noValue="none",
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


def open_runs(key: int, at: At) -> Json:
    """The oldest open runs."""
    oldest = q.top(q.age(q.OPEN_BY_STATUS), "status")
    return table(
        (key, "Open runs", "s", at),
        f"The oldest open run per agent and status, and how many the API counts. The {q.TOP} oldest of each.",
        {
            "Oldest": (oldest, wide(100, **in_colour(WAITING_AGE, decimals=1))),
            "Open": (
                f"{q.named(q.OPEN_COUNTS)} and on ({q.KEY}, status) {oldest}",
                wide(64, unit="short", decimals=0),
            ),
        },
        sort="Oldest",
        labels={"agent_name": "Agent", "status": "Status"},
        noValue="No run is known to be open",
    )


def duration_heatmap(key: int, at: At) -> Json:
    """The histogram of run durations over time."""
    native, classic = q.durations(q.HOUR)
    return panel(
        "heatmap",
        (key, "Run durations", "s", at),
        "Completed runs by duration: each column is the hour up to it, its colour the number of runs.",
        [
            over_time(native, "", format="time_series"),  # Grafana draws it as it is
            over_time(f"{classic} unless on () histogram_count({native})", "{{le}}", format="heatmap"),
        ],
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


def by_trigger(key: int, at: At) -> Json:
    """Ended runs per hour, by trigger."""
    return graph(
        (key, "Ended runs by trigger", "short", at),
        "Runs that ended in the hour before each point, by what started them.",
        over_time(f"sum by (trigger_type) ({q.ended(q.HOUR, 'trigger_type')})", "{{trigger_type}}"),
        bars=True,
        decimals=0,
        overrides=colours(TRIGGER_COLOURS),
    )


def burn_rate(key: int, at: At) -> Json:
    """How fast the error budget is used up."""
    return graph(
        (key, "Error budget burn rate", "x", at),
        f"How many times faster than an objective of {q.OBJECTIVE:.0%} allows errors happen, over the "
        f"last hour and the last six. Dashed: {q.BURN_6H:g} (orange) and {q.BURN_1H:g} (red, act "
        "now).",
        over_time(f"({q.failure_ratio(q.HOUR)}) / {q.BUDGET}", "1 h"),
        over_time(f"({q.failure_ratio('6h')}) / {q.BUDGET}", "6 h"),
        limits=thresholds((None, "transparent"), (q.BURN_6H, ORANGE), (q.BURN_1H, RED)),
        soft_max=round(q.BURN_1H + 1),
        noValue=NONE_ENDED,
        decimals=0,
        overrides=colours({"1 h": "super-light-blue", "6 h": BLUE}),
    )


def in_time(key: int, at: At) -> Json:
    """The share of runs within the expected duration."""
    return graph(
        (key, "Runs within expected duration", "percentunit", at),
        "Share of the runs of the last 6 hours that took no longer than their agent's expected_duration, of "
        f"several such agents no longer than the longest. Dashed: the objective, {q.OBJECTIVE:.0%}.",
        over_time(q.share_in_time("6h"), "in time"),
        limits=thresholds((None, "transparent"), (q.OBJECTIVE, GREEN)),
        max=1,
        decimals=1,
        noValue="No run, no expected_duration, or it is no bucket's bound (before Prometheus 3.4)",
        overrides=colours({"in time": BLUE}),
    )


def schedule() -> list[Json]:
    """What the agent's schedule in Modus plans, and whether it came to pass."""
    return [
        stat(
            (20, "Next due", "s", (0, 0, 6, 3)),
            "Until the agent's schedule in Modus is due; of several agents the next one.",
            now(f"min(clamp_min({q.NEXT_DUE} - time(), 0))", "in"),
            steps=NEUTRAL,
            decimals=0,
            noValue="no schedule",
        ),
        stat(
            (21, "Last due", "s", (6, 0, 6, 3)),
            "Since the schedule was due last; of several agents the newest.",
            now(f"min({q.age(q.LAST_DUE)})", "ago"),
            steps=NEUTRAL,
            decimals=0,
            noValue="not known",
        ),
        stat(
            (22, "Started since", "short", (12, 0, 6, 3)),
            "Agents that started a run, or ended one, since their schedule was due last.",
            now(f"count({q.LAST_DUE}) - (count({q.MISSED_FOR}) or 0 * count({q.LAST_DUE}))", "agents"),
            steps=NEUTRAL,
            decimals=0,
            noValue="no schedule",
        ),
        stat(
            (23, "Start missed for", "s", (18, 0, 6, 3)),
            "From a due time to the last read, without a start between them; of several agents the longest. "
            f"Red from {q.MISSED_START // 60} min, as in the alert ModusAgentStartMissed.",
            now(f"max({q.MISSED_FOR}) or 0 * max({q.LAST_DUE})", "missed"),
            steps=thresholds((None, GREEN), (1, BLUE), (q.MISSED_START, RED)),
            decimals=0,
            noValue="no schedule",
        ),
    ]


def trust() -> list[Json]:
    """The last row: whether what is shown of the agent can be trusted."""
    return [
        stat(
            (7, "Read from the API", "none", (0, 0, 6, 3)),
            "Whether the last scrape read the agent, and all of its pages; of several agents the worst.",
            now(f"min({q.UP}) * (1 + max({q.BACKLOG})) or min({q.UP})", "read"),
            steps=NEUTRAL,
            mappings=READ_NAMES,
        ),
        stat(
            (16, "Last read", "s", (6, 0, 6, 3)),
            "Since the last successful read; of several agents the oldest.",
            now(f"max({q.age(q.LAST_READ)})", "ago"),
            steps=READ_AGE,
            decimals=0,
            noValue="never",
        ),
        stat(
            (17, "Runs missed", "short", (12, 0, 6, 3)),
            "Runs of the time range that are known to be missing in the counts; the runbook of "
            "ModusRunsMissed has the reasons.",
            now(f"round(sum({q.MISSED}))", "runs"),
            steps=SOON,
            decimals=0,
        ),
        stat(
            (18, "Last compared", "s", (18, 0, 6, 3)),
            "Since the whole lookback was last compared with the list of runs; of several agents the oldest.",
            now(f"max({q.age(q.LAST_RECONCILED)})", "ago"),
            steps=COMPARED_AGE,
            decimals=0,
            noValue="never",
        ),
    ]
