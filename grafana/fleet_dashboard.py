"""Modus / Fleet: who has to act, how the fleet runs, every agent, and the exporter's health."""

import queries as q
from exporter_dashboard import health
from looks import (
    IN_A_ROW,
    NONE_ENDED,
    NONE_IS_FINE,
    NUMBER,
    RATIO,
    READ_NAMES,
    SECONDS,
    SOON,
    STATE_NAMES,
    WAITING_AGE,
    in_colour,
)
from panels import (
    BLUE,
    COLOURED_CELL,
    COLOURED_TEXT,
    GREEN,
    ORANGE,
    RED,
    At,
    Head,
    Json,
    collapsed_row,
    colours,
    graph,
    mapping,
    now,
    over_time,
    override,
    stacked,
    stat,
    table,
    thresholds,
    wide,
)
from run_panels import durations, ended_runs

TITLE = "Modus / Fleet"
DESCRIPTION = "Which Modus agents fail, hang, wait for a human or went silent, and how the fleet runs."


def panels() -> list[Json]:
    """What needs action first; the exporter's health is folded away."""
    return stacked(
        who_has_to_act(),
        [ended_runs(9, (0, 0, 8, 6)), failure_ratio(10, (8, 0, 8, 6)), durations(11, (16, 0, 8, 6))],
        [all_agents(12, (0, 0, 24, 12))],
        collapsed_row(13, "Exporter health", health(20)),
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
            f"Agents that started no run for {q.SILENT_FACTOR:g} times their expected_interval (config.yaml) "
            f"and {q.SILENT_GRACE // 60} min, as in the alert ModusAgentNotRunLately. Agents without one and "
            "those that are switched off are never silent.",
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
                wide(
                    108,
                    **in_colour(
                        thresholds((None, RED)),
                        decimals=1,
                        mappings=mapping((-1, "never succeeded", RED)),
                    ),
                ),
            ),
            "In a row": (q.of(shown, q.IN_A_ROW), wide(68, unit="short", decimals=0)),
        },
        sort="No success for",
        noValue="No agent is known to fail",
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


def failure_ratio(key: int, at: At) -> Json:
    """The failure ratio of all, and of the agents with the most errors."""
    return graph(
        (key, "Failure ratio", "percentunit", at),
        "Errors among the runs that completed or failed in the hour before each point: all selected "
        "agents, and the 4 with the most errors in the time range. Dashed: "
        f"{q.BUDGET:.0%}, what the objective allows, and {q.FAILURE_LIMIT:.0%}.",
        over_time(q.failure_ratio(q.HOUR), "all agents"),
        over_time(q.most_errors(q.failure_ratio(q.HOUR, q.KEY), 4, "> 0"), "{{agent_name}}"),
        limits=RATIO,
        noValue=NONE_ENDED,
        max=1,
        overrides=colours({"all agents": "text"}),
    )


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
                {"mappings": STATE_NAMES, "custom__cellOptions": COLOURED_CELL},
            ),
            "Last success": (q.named(q.age(q.SUCCEEDED)), SECONDS),
            "Last run": (q.named(q.age(q.STARTED)), SECONDS),
            "Open run age": (q.named(q.age(q.OPEN)), SECONDS),
            "Runs": (q.named(q.ended(q.RANGE)), wide(72, **NUMBER)),
            "Failed": (q.named(q.ended(q.RANGE, match=q.ERROR)), wide(72, **NUMBER)),
            "Failure ratio": (
                q.named(q.enough(q.failure_ratio(q.RANGE, q.KEY), q.RANGE, q.KEY)),
                in_colour(RATIO, unit="percentunit", decimals=1),
            ),
            "In a row": (q.named(q.IN_A_ROW), wide(82, **in_colour(IN_A_ROW, decimals=0))),
            "p95": (q.named(q.quantile(0.95, q.durations(q.RANGE, q.KEY))), SECONDS),
            "Read": (
                q.named(q.READ),
                {"mappings": READ_NAMES, "custom__cellOptions": COLOURED_TEXT},
            ),
        },
        sort="State",
        name_width=240,
        labels={"agent_name": "Agent", "cluster": "Cluster", "namespace": "Namespace", "job": "Job"},
    )
