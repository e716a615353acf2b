"""From what the ledger holds of the usage to the values that are shown. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from exporter.modus.usage import Used
from exporter.runs.usage import UsageShown
from exporter.runs.usagereader import UsageReader, UsageSettings


@dataclass(frozen=True, slots=True)
class UsageSnapshot:
    """What agents and models used so far, by agent id and model; None is what is not known or not set."""

    up: bool | None = None
    last_read: float | None = None  # Unix seconds
    agents: Mapping[str, Used] = field(default_factory=dict)
    models: Mapping[str, Used] = field(default_factory=dict)
    month_credits: Mapping[str, float] = field(default_factory=dict)  # of each agent, since the month began
    created: float = 0.0  # instant from which is counted, Unix seconds
    budget: float | None = None  # credits a month, of all agents
    budgets: Mapping[str, float] = field(default_factory=dict)  # likewise, of an agent


def usage_snapshot(
    reader: UsageReader,
    used: UsageShown | None,
    settings: UsageSettings,
    agents: Iterable[int],
    now: float,
) -> UsageSnapshot:
    """What was used so far, as of the last commit. Agents in use that used nothing are there at 0."""
    budgets = {str(agent_id): amount for agent_id, amount in settings.budgets.items()}
    up, last_read = reader.up, reader.last_read
    if not settings.is_on or used is None or (up is None and last_read is None):
        return UsageSnapshot(up, last_read, budget=settings.budget, budgets=budgets)
    nothing = dict.fromkeys(map(str, agents), Used())
    return UsageSnapshot(
        up=up,
        last_read=last_read,
        agents=nothing | dict(used.totals.get("agent", {})),
        models=used.totals.get("model", {}),
        month_credits=dict.fromkeys(nothing, 0.0) | dict(used.credits_of(now)),
        created=used.created,
        budget=settings.budget,
        budgets=budgets,
    )
