"""Modus / Cost: what agents and models use, against a week ago, and against what may be used."""

import queries as q
from looks import NEUTRAL, NUMBER, in_colour
from panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
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

TITLE = "Modus / Cost"
DESCRIPTION = "Credits and tokens of Modus agents: by agent and model, against a week ago and the budget."

NO_USAGE = "No usage: the token needs usage:read"
SPENT = thresholds((None, GREEN), (80, ORANGE), (100, RED))  # percent of a budget


def panels() -> list[Json]:
    """Sums, then over time, then who."""
    return stacked(
        numbers(),
        [week_ago(6, (0, 0, 12, 7)), tokens(7, (12, 0, 12, 7))],
        [by_agent(8, (0, 0, 12, 8)), by_model(9, (12, 0, 12, 8))],
        [top_ten(10, (0, 0, 14, 9)), budgets(11, (14, 0, 10, 9))],
    )


def numbers() -> list[Json]:
    """Sums of the time range, and of the month."""
    return [
        stat(
            (1, "Credits", "short", (0, 0, 5, 3)),
            "Credits that the selected agents used in the time range.",
            now(f"sum({q.used('modus_agent_credits_total', q.RANGE)})", "credits"),
            steps=NEUTRAL,
            decimals=1,
        ),
        stat(
            (2, "Tokens", "short", (5, 0, 5, 3)),
            "Tokens that the selected agents sent to models and got in the time range.",
            now(f"sum({q.used('modus_agent_llm_tokens_total', q.RANGE)})", "tokens"),
            steps=NEUTRAL,
            decimals=1,
        ),
        stat(
            (3, "Calls of models", "short", (10, 0, 4, 3)),
            "Calls of language models by the selected agents in the time range.",
            now(f"sum({q.used('modus_agent_llm_calls_total', q.RANGE)})", "calls"),
            steps=NEUTRAL,
            decimals=0,
        ),
        stat(
            (4, "Credits this month", "short", (14, 0, 5, 3)),
            "Credits that the selected agents used since the month began (UTC), or since they are counted.",
            now(f"sum({q.gauge('modus_agent_month_credits')})", "credits"),
            steps=NEUTRAL,
            decimals=1,
        ),
        stat(
            (5, "Spent of the budget", "percent", (19, 0, 5, 3)),
            "Credits that all agents used since the month began, of usage.budget.total (config.yaml): orange "
            "from 80 %, red when it is used up.",
            now(f"100 * ({q.MONTH_OF_ALL}) / on ({q.INSTALLATION}) ({q.BUDGET_OF_ALL})", "{{job}}"),
            steps=SPENT,
            decimals=0,
            noValue="no budget",
        ),
    ]


def week_ago(key: int, at: At) -> Json:
    """Credits an hour, beside those of the same day a week ago."""
    credits_total = "modus_agent_credits_total"
    return graph(
        (key, "Credits an hour, and a week ago", "short", at),
        "Credits that the selected agents used in the hour before each point; grey: on the same day a week "
        "earlier.",
        over_time(f"sum({q.used(credits_total, q.HOUR)})", "now"),
        over_time(f"sum({q.used(credits_total, q.HOUR, at=' offset 1w')})", "a week ago"),
        noValue=NO_USAGE,
        overrides=colours({"now": BLUE, "a week ago": GREY}),
    )


def tokens(key: int, at: At) -> Json:
    """Tokens an hour, sent and got."""
    return graph(
        (key, "Tokens by direction", "short", at),
        "Tokens that the selected agents sent to models (input) and got (output), in the hour before each "
        "point.",
        over_time(f"sum by (type) ({q.used('modus_agent_llm_tokens_total', q.HOUR, 'type')})", "{{type}}"),
        bars=True,
        noValue=NO_USAGE,
        overrides=colours({"input": BLUE, "output": "light-blue"}),
    )


def by_agent(key: int, at: At) -> Json:
    """Credits an hour of the agents that use the most."""
    credits_total = "modus_agent_credits_total"
    most = f"topk({q.TOP}, {q.used(credits_total, q.RANGE, at=' @ end()')})"
    shown = f"{q.used(credits_total, q.HOUR)} and on ({q.KEY}) {most}"
    return graph(
        (key, "Credits by agent", "short", at),
        f"Credits in the hour before each point, of the {q.TOP} agents that used the most in the time range.",
        over_time(q.called(shown, " @ end()"), "{{agent_name}}"),
        bars=True,
        noValue=NO_USAGE,
    )


def by_model(key: int, at: At) -> Json:
    """Credits an hour of each model."""
    return graph(
        (key, "Credits by model", "short", at),
        "Credits in the hour before each point by language model, of all agents.",
        over_time(f"sum by (model) ({q.of_models('modus_model_credits_total', q.HOUR)})", "{{model}}"),
        bars=True,
        noValue=NO_USAGE,
    )


def top_ten(key: int, at: At) -> Json:
    """The agents that use the most."""
    spent = q.used("modus_agent_credits_total", q.RANGE)
    shown = f"topk({q.TOP}, {spent})"

    def of(expr: str) -> str:
        return q.called(f"{expr} and on ({q.KEY}) {shown}")

    per_run = f"{spent} / ({q.ended(q.RANGE)} > 0)"
    return table(
        (key, "Top ten", "short", at),
        f"The {q.TOP} agents that used the most credits in the time range. A run: credits, of the runs that "
        "ended in it.",
        {
            "Credits": (q.called(shown), wide(90, decimals=1)),
            "A run": (of(f"({per_run})"), wide(80, decimals=2)),
            "Tokens": (of(q.used("modus_agent_llm_tokens_total", q.RANGE)), wide(90, decimals=1)),
            "Calls": (of(q.used("modus_agent_llm_calls_total", q.RANGE)), wide(90, **NUMBER)),
        },
        sort="Credits",
        noValue=NO_USAGE,
    )


def budgets(key: int, at: At) -> Json:
    """The agents that have a budget: how much of it is spent."""
    budget, month = q.gauge("modus_agent_budget_credits"), q.gauge("modus_agent_month_credits")
    shown = f"topk({q.TOP}, 100 * {month} / ({budget}))"
    return table(
        (key, "Spent against budget", "short", at),
        "Credits since the month began of the agents that have a budget (usage.budget in config.yaml); the "
        f"{q.TOP} that spent the largest share.",
        {
            "Share": (q.called(shown), wide(80, **in_colour(SPENT, unit="percent", decimals=0))),
            "Spent": (q.called(f"{month} and on ({q.KEY}) {shown}"), wide(80, decimals=1)),
            "Budget": (q.called(f"{budget} and on ({q.KEY}) {shown}"), wide(80, decimals=0)),
        },
        sort="Share",
        noValue="No agent has a budget",
    )
