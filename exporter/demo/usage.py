"""The usage report of the simulated API: what agents and models used, by hour or day, known late and revised.

Decided here, because Modus does not say: a bucket grows while its hour is open; one run of ten is in it only
twenty minutes late, and each run's tokens are counted anew, a twentieth higher, two hours after its end.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from exporter.demo.index import INF, SimulatedAgent, SimulatedRun
from exporter.demo.paging import Refusal
from exporter.demo.wire import iso, slug_of

MODELS = ("claude-sonnet-4.6", "claude-haiku-4.5", "gpt-5-mini")
ROLLUPS = {"hour": 3600, "day": 86400}
GROUPINGS = ("all", "skill", "agent", "interface", "model", "attribution")
LATE, REVISED = 1200.0, 7200.0  # seconds after a run's end
AMOUNTS = ("call_count", "input_tokens", "output_tokens", "credits")


@dataclass(frozen=True, slots=True)
class SimulatedUse:
    """Something that was used at an instant and that the report knows of from another on, in Unix seconds.

    `group` is what the report calls the agent; empty: as the others. Negative amounts take back.
    """

    agent_id: int
    model: str
    at: float
    known_from: float = -INF
    calls: float = 1
    input_tokens: float = 0
    output_tokens: float = 0
    credits: float = 0.0
    group: str = ""

    @property
    def amounts(self) -> tuple[float, float, float, float]:
        """In the order of `AMOUNTS`."""
        return self.calls, self.input_tokens, self.output_tokens, self.credits


def uses_of(run: SimulatedRun, now: float) -> Iterator[SimulatedUse]:
    """What a run that has ended used, as far as anybody knows of it."""
    if not run.end <= now:
        return
    rng = random.Random(run.id)  # noqa: S311 - repeatable on purpose
    model = MODELS[run.agent_id % len(MODELS)]
    calls, late = rng.randint(1, 8), rng.random() < 0.1
    sent, got = calls * rng.randint(500, 4000), calls * rng.randint(50, 900)
    spent = round((sent + 5 * got) / 10_000, 3)
    known_from = run.end + (LATE if late else 0.0)
    yield SimulatedUse(run.agent_id, model, run.end, known_from, calls, sent, got, spent)
    more = sent // 20, got // 20, round(spent / 20, 4)
    yield SimulatedUse(run.agent_id, model, run.end, run.end + REVISED, 0, *more)


def names_of(agents: Mapping[int, SimulatedAgent], kind: str) -> dict[int, str]:
    """What the report calls each agent; `kind` is id, slug or name."""
    if kind == "id":
        return {agent_id: str(agent_id) for agent_id in agents}
    return {agent_id: slug_of(agent) if kind == "slug" else agent.name for agent_id, agent in agents.items()}


def usage_json(
    uses: Iterable[SimulatedUse], names: Mapping[int, str], query: Mapping[str, str], now: float
) -> dict[str, Any]:
    """The report; `names` is what it calls the agents. Raises Refusal for a query that is none."""
    since, until = (_instant(query, name) for name in ("since", "until"))
    rollup, grouping = query.get("rollup", ""), query.get("group_by", "skill")
    if rollup not in ROLLUPS:
        raise Refusal(400, "Invalid value for query parameter `rollup`.")
    if grouping not in GROUPINGS:
        raise Refusal(400, "Invalid value for query parameter `group_by`.")
    size = ROLLUPS[rollup]
    sums: dict[tuple[float, str], tuple[float, ...]] = {}
    for use in uses:
        if use.known_from <= now and since <= use.at < until:
            agent = use.group or names.get(use.agent_id, str(use.agent_id))
            group = {"agent": agent, "model": use.model}.get(grouping, grouping)
            key = use.at // size * size, group
            sums[key] = _sum(sums.get(key, (0.0,) * len(AMOUNTS)), use.amounts)
    buckets = [
        {"bucket": iso(start), "group_value": group}
        | ({"model": group} if grouping == "model" else {})
        | _amounts(amounts)
        for (start, group), amounts in sorted(sums.items())
    ]
    totals: tuple[float, ...] = (0.0,) * len(AMOUNTS)
    for amounts in sums.values():
        totals = _sum(totals, amounts)
    window = {"since": query["since"], "until": query["until"]}
    said = {"org_id": "org_demo", **window, "rollup": rollup, "group_by": grouping}
    return said | {"buckets": buckets, "totals": _amounts(totals)}


def _instant(query: Mapping[str, str], name: str) -> float:
    try:
        moment = datetime.fromisoformat(query.get(name, ""))
    except ValueError:
        raise Refusal(400, f"Invalid value for query parameter `{name}`.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _sum(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _amounts(amounts: tuple[float, ...]) -> dict[str, float]:
    return {name: round(number, 4) for name, number in zip(AMOUNTS, amounts, strict=True)}
