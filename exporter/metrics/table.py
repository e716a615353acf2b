"""Every metric in one table. Pure.

Names, types and help texts follow OpenMetrics and Prometheus' guide for writing exporters: base
units, `_total` on counters, `_created` on what counts from a known instant.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from exporter.histogram import Exemplar, Histogram
from exporter.metrics.snapshot import AgentSnapshot, Snapshot
from exporter.metrics.usage import UsageSnapshot
from exporter.modus.errors import REASONS
from exporter.modus.model import OPEN_STATUSES, TOTAL_COUNT, label
from exporter.modus.usage import Used
from exporter.runs.state import MISSED

AGENT_LABEL = "agent_id"  # and no name: a rename must not begin a new counter
COUNTED_STATUSES = (*OPEN_STATUSES, "error", "completed")  # those that the API documents for its counts
MAX_STATUSES = 20  # of one agent


class Point(msgspec.Struct, frozen=True, gc=False):
    """A value with the row's own label values."""

    labels: tuple[str, ...]
    value: float | Histogram
    created: float | None = None
    exemplar: Exemplar | None = None  # of a counter


Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True, slots=True)
class Row:
    """A metric: its name as exposed, its own labels, its help text, and where its values come from.

    `source` is all that an agent's points depend on, if that is one thing which never changes.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    per_agent: Callable[[AgentSnapshot], Sequence[Point]] | None = None
    overall: Callable[[Snapshot], Sequence[Point]] | None = None
    source: Callable[[AgentSnapshot], object] | None = None

    @property
    def family(self) -> str:
        """The name of the metric family: that of a counter has no `_total`."""
        return self.name.removesuffix("_total")

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels of a sample, that of the agent first."""
        return (AGENT_LABEL, *self.labels) if self.per_agent else self.labels


def _maybe(value: float | None, *labels: str) -> list[Point]:
    return [] if value is None else [Point(labels, value)]


def _runs(agent: AgentSnapshot) -> list[Point]:
    counts = agent.counts or {}
    if not counts.keys() - {TOTAL_COUNT}:
        return []
    by_status = dict.fromkeys(COUNTED_STATUSES, 0)  # the API may leave out those that no run is in
    for name, n in counts.items():
        if name == TOTAL_COUNT:
            continue
        status = label(name)  # two names may become one
        if status not in by_status and len(by_status) >= MAX_STATUSES:
            status = "other"
        by_status[status] = by_status.get(status, 0) + n
    return [Point((status,), n) for status, n in by_status.items()]


def _durations(agent: AgentSnapshot) -> list[Point]:
    totals = agent.totals
    return [] if totals is None else [Point((), totals.durations, totals.durations.created)]


def _finished(agent: AgentSnapshot) -> list[Point]:
    totals = agent.totals
    if totals is None:
        return []
    return [
        Point((status, trigger), n, totals.created, totals.newest.get(status, {}).get(trigger))
        for status, by_trigger in totals.finished.items()
        for trigger, n in by_trigger.items()
    ]


def _approval_timeouts(agent: AgentSnapshot) -> list[Point]:
    totals = agent.totals
    return [] if totals is None else [Point((), totals.approval_timeouts, totals.created)]


def _missed(agent: AgentSnapshot) -> list[Point]:
    totals = agent.totals
    if totals is None:
        return []
    return [Point((reason,), totals.missed.get(reason, 0), totals.created) for reason in MISSED]


def _last_end(agent: AgentSnapshot) -> list[Point]:
    return [Point((status,), end) for status, end in agent.last_end.items()]


def _oldest_open(agent: AgentSnapshot) -> list[Point]:
    starts = agent.open_starts or {}
    return [Point((status,), starts[status]) for status in OPEN_STATUSES if status in starts]


def _errors(agent: AgentSnapshot) -> list[Point]:
    return [Point((reason,), agent.errors.get(reason, 0), agent.created) for reason in REASONS]


def _requests(snapshot: Snapshot) -> list[Point]:
    return [Point(labels, n, snapshot.created) for labels, n in sorted(snapshot.requests.items())]


def _request_durations(snapshot: Snapshot) -> list[Point]:
    return [
        Point((operation,), durations, durations.created)
        for operation, durations in sorted(snapshot.request_durations.items())
    ]


def _amounts(usage: UsageSnapshot, of: Mapping[str, Used], amount: Callable[[Used], float]) -> list[Point]:
    """What each agent or model used of something."""
    return [Point((name,), amount(used), usage.created) for name, used in of.items()]


def _tokens(usage: UsageSnapshot, of: Mapping[str, Used]) -> list[Point]:
    return [
        Point((name, kind), tokens, usage.created)
        for name, used in of.items()
        for kind, tokens in (("input", used.input_tokens), ("output", used.output_tokens))
    ]


# fmt: off
TABLE = (
    Row("modus_up", "gauge", "Whether the API answered at all in this scrape.",
        overall=lambda s: [Point((), s.up)]),
    Row("modus_exporter_scrape_complete", "gauge", "Whether every agent was read in this scrape.",
        overall=lambda s: [Point((), s.complete)]),
    Row("modus_agent_up", "gauge", "Whether this agent was read in this scrape.",
        per_agent=lambda a: [Point((), a.up)]),
    Row("modus_agent_info", "gauge", "The agent's name and type; always 1, one series for each agent.",
        ("agent_name", "agent_type"), per_agent=lambda a: [Point((a.name, a.type), 1)]),
    Row("modus_agent_enabled", "gauge",
        "Whether the agent's schedule is on in Modus; absent when the API does not list the agent.",
        per_agent=lambda a: _maybe(a.enabled)),
    Row("modus_agent_runs", "gauge", "Runs per status as the API counts them.", ("status",), per_agent=_runs),
    Row("modus_agent_executions", "gauge", "Runs in all statuses as the API counts them.",
        per_agent=lambda a: _maybe((a.counts or {}).get(TOTAL_COUNT))),
    Row("modus_agent_run_duration_seconds", "histogram", "Durations of the completed runs, each run once.",
        per_agent=_durations, source=lambda a: a.totals and a.totals.durations),
    Row("modus_agent_runs_finished_total", "counter",
        "Ended runs, each run once.", ("status", "trigger_type"),
        per_agent=_finished, source=lambda a: a.totals),
    Row("modus_agent_runs_missed_total", "counter",
        "Runs that are known to have been missed: they are in no other counter.", ("reason",),
        per_agent=_missed),
    Row("modus_agent_approval_timeouts_total", "counter",
        "Ended runs of which Modus says that an approval timed out; they are counted under their status too.",
        per_agent=_approval_timeouts),
    Row("modus_agent_consecutive_failures", "gauge",
        "How many runs in a row, the last one by its end included, ended in error.",
        per_agent=lambda a: _maybe(a.consecutive_failures)),
    Row("modus_agent_last_run_start_timestamp_seconds", "gauge", "Start of the newest run.",
        per_agent=lambda a: _maybe(a.last_start)),
    Row("modus_agent_last_run_end_timestamp_seconds", "gauge",
        "Newest end of a run per terminal status.", ("status",), per_agent=_last_end),
    Row("modus_agent_oldest_open_run_start_timestamp_seconds", "gauge",
        "Start of the oldest run that has not ended; absent while there is none.", ("status",),
        per_agent=_oldest_open),
    Row("modus_agent_expected_interval_seconds", "gauge",
        "A run should start at least this often, says the configuration; absent when it does not say.",
        per_agent=lambda a: _maybe(a.expected_interval)),
    Row("modus_agent_expected_duration_seconds", "gauge", "A run should take no longer, by configuration.",
        per_agent=lambda a: _maybe(a.expected_duration)),
    Row("modus_agent_schedule_last_due_timestamp_seconds", "gauge",
        "When the agent's schedule in Modus was due last; absent while it is off, unknown, or just changed.",
        per_agent=lambda a: _maybe(a.last_due)),
    Row("modus_agent_schedule_next_due_timestamp_seconds", "gauge",
        "When the agent's schedule in Modus is due next; absent while it is off or unknown.",
        per_agent=lambda a: _maybe(a.next_due)),
    Row("modus_agent_last_read_timestamp_seconds", "gauge", "The last successful read of the agent.",
        per_agent=lambda a: _maybe(a.last_read)),
    Row("modus_agent_last_reconciled_timestamp_seconds", "gauge",
        "The last comparison of all runs of the lookback with what was counted.",
        per_agent=lambda a: _maybe(a.last_reconciled)),
    Row("modus_agent_read_duration_seconds", "gauge", "How long reading the agent took in this scrape.",
        per_agent=lambda a: _maybe(a.read_duration)),
    Row("modus_agent_backlog", "gauge", "Whether older pages of the agent's runs are still to be read.",
        per_agent=lambda a: [Point((), a.backlog)]),
    Row("modus_agent_read_errors_total", "counter",
        "Scrapes in which the agent could not be read, by reason.", ("reason",), per_agent=_errors),
    Row("modus_agent_llm_calls_total", "counter", "Calls of language models by the agent.", (AGENT_LABEL,),
        overall=lambda s: _amounts(s.usage, s.usage.agents, lambda used: used.calls)),
    Row("modus_agent_llm_tokens_total", "counter", "Tokens that the agent sent to language models and got.",
        (AGENT_LABEL, "type"), overall=lambda s: _tokens(s.usage, s.usage.agents)),
    Row("modus_agent_credits_total", "counter", "Credits that the agent used.", (AGENT_LABEL,),
        overall=lambda s: _amounts(s.usage, s.usage.agents, lambda used: used.credits)),
    Row("modus_agent_month_credits", "gauge",
        "Credits that the agent used since the month began (UTC), or since it is counted.", (AGENT_LABEL,),
        overall=lambda s: [Point((agent,), spent) for agent, spent in s.usage.month_credits.items()]),
    Row("modus_agent_budget_credits", "gauge", "Credits a month that the configuration allows the agent.",
        (AGENT_LABEL,), overall=lambda s: [Point((agent,), most) for agent, most in s.usage.budgets.items()]),
    Row("modus_budget_credits", "gauge", "Credits a month that the configuration allows all agents together.",
        overall=lambda s: _maybe(s.usage.budget)),
    Row("modus_model_llm_calls_total", "counter", "Calls of the language model by all agents.", ("model",),
        overall=lambda s: _amounts(s.usage, s.usage.models, lambda used: used.calls)),
    Row("modus_model_llm_tokens_total", "counter", "Tokens that the language model was sent and gave.",
        ("model", "type"), overall=lambda s: _tokens(s.usage, s.usage.models)),
    Row("modus_model_credits_total", "counter", "Credits that were used for the language model.", ("model",),
        overall=lambda s: _amounts(s.usage, s.usage.models, lambda used: used.credits)),
    Row("modus_usage_up", "gauge",
        "Whether the usage report could be read the last time; absent while usage is off.",
        overall=lambda s: _maybe(s.usage.up)),
    Row("modus_usage_last_read_timestamp_seconds", "gauge", "When all of the usage report was read last.",
        overall=lambda s: _maybe(s.usage.last_read)),
    Row("modus_api_requests_total", "counter",
        "Requests to the API by operation and HTTP status, or by what went wrong without one.",
        ("operation", "code"), overall=_requests),
    Row("modus_api_request_duration_seconds", "histogram",
        "How long requests to the API took.", ("operation",), overall=_request_durations),
    Row("modus_exporter_agents", "gauge", "Agents in use.", overall=lambda s: [Point((), len(s.agents))]),
    Row("modus_exporter_scrape_duration_seconds", "gauge", "How long reading all agents took in this scrape.",
        overall=lambda s: [Point((), s.duration)]),
    Row("modus_exporter_ledger_up", "gauge", "Whether the state can be written.",
        overall=lambda s: [Point((), s.ledger_up)]),
    Row("modus_exporter_lease_changes_total", "counter", "Leases taken or lost, with shared state.",
        overall=lambda s: [] if s.lease_changes is None else [Point((), s.lease_changes, s.created)]),
    Row("modus_exporter_config_last_reload_successful", "gauge",
        "Whether the last attempt to load the configuration succeeded.",
        overall=lambda s: [Point((), s.reload_successful)]),
    Row("modus_exporter_config_last_reload_success_timestamp_seconds", "gauge",
        "When the configuration in force was loaded.", overall=lambda s: [Point((), s.reloaded)]),
    Row("modus_exporter_build_info", "gauge",
        "The exporter's version and the Python it runs on; always 1.", ("version", "pythonversion"),
        overall=lambda s: [Point((s.version, platform.python_version()), 1)]),
)
# fmt: on
