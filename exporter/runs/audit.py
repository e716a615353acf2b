"""`--audit`: every agent's lookback, read from the API and compared with the ledger run by run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from exporter.deadline import Deadline
from exporter.modus.discovery import Selection
from exporter.modus.errors import ApiError
from exporter.modus.model import OPEN_STATUSES, Run, RunsPage
from exporter.modus.pages import pages
from exporter.runs import paging
from exporter.runs.eligibility import was_over
from exporter.runs.ids import MALFORMED, TIMELESS
from exporter.runs.reader import Limits
from exporter.runs.report import find_targets, side_by_side, table
from exporter.runs.state import AgentState, State
from exporter.runs.store import LedgerError, Place, read_state
from exporter.runs.usageaudit import compare_usage

if TYPE_CHECKING:  # handed in
    from exporter.modus.client import ModusClient

PATIENCE = 3600.0  # seconds for all of it
FRESH = 60.0  # seconds before the ledger's last read in which the API's index may still have lagged
HEAD = ("agent", "since", "runs in the api", "counted", "missing", "extra", "note")


@dataclass(slots=True)
class Listed:
    """What the API lists of one agent."""

    runs: dict[str, Run] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    now: float = 0.0  # the API's clock at the first page
    skew: float = 0.0  # seconds by which it is ahead of ours


def run(
    client: "ModusClient",
    selection: Selection,
    limits: Limits,
    concurrency: int,
    place: Place | None,
    out: TextIO,
) -> int:
    """Print a line per agent to `out`; returns 0 when each run was counted once, else 1.

    It vouches for the runs since the instant that the line names. Works beside the exporter that writes
    the state: runs that ended after its last scrape are left out, and so are counted ones older than all that
    the platform has kept. Raises LedgerError and, when the agents cannot be listed, ApiError.
    """
    if place is None:
        raise LedgerError("state.path is null: there is no state to compare with")
    state = read_state(place)
    deadline = Deadline(PATIENCE)
    targets = find_targets(client, selection, deadline)

    def compare(agent_id: int) -> tuple[str, ...]:
        agent = state.agents.get(agent_id)
        if agent is None:
            return str(agent_id), "", "", "", "", "", "not counted yet: no scrape has read it"
        try:
            listed = _read_lookback(client, agent_id, limits, deadline, _times(state, agent_id))
        except ApiError as error:
            return str(agent_id), "", "", "", "", "", f"cannot be read: {error.line}"
        return str(agent_id), *_compare(agent, state, agent_id, listed, limits.lookback)

    rows = side_by_side(compare, [target.id for target in targets], concurrency)
    out.write(table(HEAD, rows))
    bad = [row for row in rows if row[4:6] != ("0", "0") or row[6].startswith(UNSOUND)]
    out.write(f"{len(rows)} agents, {len(bad)} not in order\n")
    sound = not (state.usage and state.usage.read_until) or compare_usage(client, state.usage, deadline, out)
    return 0 if sound and not bad else 1


def _times(state: State, agent_id: int) -> dict[str, float]:
    """When the counted runs were over, by id; without those that name no time."""
    latest = state.meta.written + TIMELESS / 2
    counted = state.counted[agent_id].items()
    return {id_: time for id_, time in counted if time < latest and not id_.startswith(MALFORMED)}


def _read_lookback(
    client: "ModusClient", agent_id: int, limits: Limits, deadline: Deadline, times: Mapping[str, float]
) -> Listed:
    """The whole lookback as the API lists it, and on until each run counted in it is met. Raises ApiError."""
    listed, by_start, sought, below = Listed(), None, set(times), 0

    def ask(token: str | None) -> RunsPage:
        return client.runs(agent_id, deadline=deadline, page_size=limits.page_size, page_token=token)

    for page in pages(ask):
        if not listed.now:
            listed.counts, listed.now, listed.skew = page.counts, page.now, page.skew
            sought = {id_ for id_ in sought if times[id_] > listed.now - limits.lookback}
        sought.difference_update(page.ids)
        listed.runs = {run.id: run for run in page.runs} | listed.runs
        by_start = paging.order(page, by_start)
        floor = listed.now - limits.lookback
        if not sought and paging.reaches(page, floor, by_start, before=below):
            break
        below = paging.below(page, floor, by_start, below)
    return listed


def _compare(
    agent: AgentState, state: State, agent_id: int, listed: Listed, lookback: float
) -> tuple[str, str, str, str, str, str]:
    """The cells behind the agent's id."""
    since = max(listed.now - lookback, agent.base, agent.horizon, agent.ended_after or 0.0)
    last_read = _last_read(agent, state, agent_id, listed)
    ended = {run.id: was_over(run, 0.0) for run in listed.runs.values() if run.ended}
    times = _times(state, agent_id)
    due = {id_ for id_, time in ended.items() if since < time < last_read - FRESH}
    due = {id_ for id_ in due if (listed.runs[id_].start or since) >= agent.base}
    counted = {id_ for id_, time in times.items() if time > since}
    oldest = min((run.start for run in listed.runs.values() if run.start is not None), default=listed.now)
    removed = {id_ for id_ in counted - ended.keys() if times[id_] < oldest}
    extra = counted - ended.keys() - removed
    ids = sum(not id_.startswith(MALFORMED) for id_ in state.counted[agent_id])
    instant = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    missing = due - state.counted[agent_id].keys()
    numbers = len(due), len(counted), len(missing), len(extra)
    return instant, *map(str, numbers), _note(agent, ids, listed, len(removed))  # type: ignore[return-value]


def _last_read(agent: AgentState, state: State, agent_id: int, listed: Listed) -> float:
    """Until when the agent was read, by the API's clock; a fleet's members have clocks of their own."""
    if (read := state.read.get(agent_id)) is None:
        return ((agent.last_read if agent.unread else state.meta.written) or 0.0) + listed.skew
    theirs = listed.skew if agent.clock.skew is None else agent.clock.skew
    return max((agent.last_read or 0.0) + theirs, read + listed.skew)


UNSOUND = "the totals are unsound"


def _note(agent: AgentState, ids: int, listed: Listed, removed: int) -> str:
    """What else there is to say: totals that do not add up, what the API removed or contradicts itself in."""
    finished = {status: sum(triggers.values()) for status, triggers in agent.totals.finished.items()}
    if sum(finished.values()) != ids + agent.forgotten:
        return f"{UNSOUND}: {sum(finished.values())} runs in them, {ids + agent.forgotten} were counted"
    if sum(agent.totals.durations.buckets) > finished.get("completed", 0):
        return f"{UNSOUND}: the histogram holds more runs than were completed"
    if removed:
        return f"{removed} counted are older than all that the API still lists"
    for status in OPEN_STATUSES:
        shown = sum(run.status == status for run in listed.runs.values())
        if status in listed.counts and shown > listed.counts[status]:
            return f"the API lists {shown} {status} runs and counts {listed.counts[status]}"
    return ""
