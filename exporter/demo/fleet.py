"""The demo fleet: ten agents that succeed, fail, hang, wait for a human and go silent."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from exporter.demo.index import DAY, INF, SimulatedRun, stable_uuid

MINUTE, HOUR = 60.0, 3600.0


@dataclass(frozen=True, kw_only=True)
class AgentProfile:
    """How a demo agent lives. Times in seconds; instants count from the start of the simulation."""

    name: str
    type: str = "task"
    every: float = HOUR
    triggers: tuple[str, ...] = ("schedule",)
    lasts: tuple[float, float] = (20, 60)
    slower: float = 0.0  # growth of the duration, in seconds a second; it ends at an hour
    errors: float = 0.0  # share of the runs; likewise `cancelled`
    cancelled: float = 0.0
    retried: float = 0.0  # share of the errors that get a second Temporal run
    fails_from: float = INF
    last_start: float = INF
    open_since: float | None = None  # start of one more run, which never ends
    asks_human: bool = False
    deployed: float = -INF  # a draft until then


# fmt: off
FLEET = {
    101: AgentProfile(name="Invoice triage", every=5 * MINUTE),
    102: AgentProfile(name="Lead enrichment", every=9, triggers=("webhook", "api"), lasts=(1, 20),
                      errors=0.01),
    103: AgentProfile(name="Flaky scraper", every=10 * MINUTE, lasts=(20, 120), errors=0.25, retried=0.3),
    104: AgentProfile(name="CRM sync", every=15 * MINUTE, lasts=(10, 40), fails_from=-3 * HOUR),
    105: AgentProfile(name="Contract review", every=30 * MINUTE, triggers=("webhook", "manual"),
                      lasts=(120, 480), open_since=-7 * HOUR),
    106: AgentProfile(name="Refund approval", type="workflow", every=20 * MINUTE, triggers=("slack",),
                      lasts=(60, 2400), cancelled=0.1, asks_human=True, open_since=-26 * HOUR),
    107: AgentProfile(name="Weekly newsletter", lasts=(60, 180), last_start=-9 * HOUR),
    108: AgentProfile(name="Report builder", every=20 * MINUTE, lasts=(1440, 1560), slower=20 * MINUTE / DAY),
    109: AgentProfile(name='Support digest "EU" \\ Zürich 東京', triggers=("manual", "api"), lasts=(30, 300),
                      cancelled=0.25),
    110: AgentProfile(name="Onboarding", last_start=-INF, deployed=10 * MINUTE),
}
# fmt: on


def trigger_of(profile: AgentProfile) -> dict[str, Any]:
    """What starts the agent, as the list of agents shows it; a schedule keeps to the clock of its zone."""
    if "schedule" not in profile.triggers:
        return {"trigger_type": profile.triggers[0]}
    if profile.every == HOUR:
        schedule: dict[str, Any] = {
            "frequency": "hourly",
            "time_of_day": "00:00",
            "timezone": "Europe/Zurich",
        }
    else:
        cron = f"*/{profile.every / MINUTE:.0f} * * * *"
        schedule = {"frequency": "custom", "timezone": "UTC", "cron_expressions": [cron]}
    return {"trigger_type": "schedule", "schedule": schedule}


def runs_of(agent_id: int, profile: AgentProfile, born: float, seed: int) -> Iterator[SimulatedRun]:
    """The runs of a demo agent from a day before `born` on, by start, one in each slot of `every`."""
    rng = random.Random(f"{seed}/{agent_id}")  # noqa: S311 - repeatable on purpose
    scheduled = "schedule" in profile.triggers
    ahead = -born % profile.every if scheduled else 0.0  # a schedule keeps to the clock

    def run(start: float, lasts: float, outcome: str = "completed", retry_of: str = "") -> SimulatedRun:
        start, end = round(start, 3), round(start + lasts, 3)
        workflow_id = retry_of or f"wf_{agent_id}_{start * 1000:.0f}"
        waits_from, trigger = start + 10 if profile.asks_human else INF, rng.choice(profile.triggers)
        ids = agent_id, workflow_id, stable_uuid(seed, workflow_id, start)
        timed_out = outcome == "cancelled" and profile.asks_human
        reason = "approval_timeout" if timed_out else None
        return SimulatedRun(*ids, start, end, outcome, waits_from, trigger, reason=reason)

    if profile.open_since is not None:
        yield run(born + profile.open_since, INF)
    for slot in itertools.count():
        due = slot * profile.every - DAY + ahead
        if due > profile.last_start:
            return
        start = born + due + rng.random() * (2 if scheduled else profile.every)
        draw, lasts = rng.random(), min(rng.triangular(*profile.lasts) + profile.slower * due, HOUR)
        failed = due >= profile.fails_from or draw < profile.errors
        cancelled = draw < profile.errors + profile.cancelled
        first = run(start, lasts, "error" if failed else "cancelled" if cancelled else "completed")
        yield first
        if failed and rng.random() < profile.retried:
            yield run(first.end + 5, rng.triangular(*profile.lasts), retry_of=first.workflow_id)
