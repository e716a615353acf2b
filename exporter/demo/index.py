"""What the simulated platform knows: runs with their lives, and the index that lists are read from."""

import heapq
import itertools
import uuid
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

INF, DAY = float("inf"), 86400.0
ALL, OPEN = "all_executions", ("running", "awaiting_human")
STATUSES = (ALL, *OPEN, "error", "completed", "cancelled")

Order = Literal["start", "close"]  # by start; or Temporal's: open ones first, then by end
Place = tuple[int, float, str]


@dataclass(slots=True, eq=False)
class SimulatedRun:
    """One run with its whole life in Unix seconds: its status follows from the instant of asking.

    Its place in a list stays that of `start`, whatever `startedAt` its `override` shows.
    """

    agent_id: int
    workflow_id: str
    temporal_run_id: str
    start: float
    end: float = INF
    outcome: str = "completed"  # its status from `end` on
    waits_from: float = INF  # awaiting_human from then on
    trigger: str | None = "manual"
    visible_from: float = -INF  # when the index shows it: late, if this is after the start
    reason: str | None = None  # why it did not complete, as its own route says
    mine: bool = False  # whether the token's owner is asked to approve it
    hidden: bool = False
    override: dict[str, object] = field(default_factory=dict)  # keys of its JSON to change or leave out
    raw: bytes | None = None  # sent in place of its JSON
    agent_name: str = ""  # the snapshot, taken when the run is first indexed
    listed: str | None = None  # the status list it is in
    reached: float = -INF  # what its life held until then has happened, whatever the clock says

    @property
    def id(self) -> str:
        """The identity: `workflowId:temporalRunId`."""
        return f"{self.workflow_id}:{self.temporal_run_id}"

    def state(self, at: float, retention: float) -> tuple[str | None, float]:
        """The status at an instant (None: in no list), and the instant at which it changes next."""
        at = max(at, self.reached)
        if self.hidden or at >= self.end + retention:
            return None, INF
        if at < (shown := max(self.start, self.visible_from)):
            return None, shown
        if at >= self.end:
            return self.outcome, self.end + retention
        if at >= self.waits_from:
            return "awaiting_human", self.end
        return "running", min(self.waits_from, self.end)


class Listed(NamedTuple):
    """A run in a list. Lists are sorted by place and read from their end."""

    place: Place
    status: str
    run: SimulatedRun


Lists = dict[str, list[Listed]]


@dataclass(slots=True, eq=False)
class SimulatedAgent:
    """One agent with its part of the index. What is above `life` may be changed while it runs."""

    id: int
    name: str  # change it with `SimulatedModus.rename`
    type: str
    deployed: float  # a draft until then
    deleted_at: float = INF
    enabled: bool = True  # whether its schedule is on
    trigger: dict[str, Any] | None = None  # what starts it, as `variation` shows it
    updated: float | None = None  # when a person changed it last; None: at its creation
    override: dict[str, object] = field(default_factory=dict)  # keys of its JSON to change or leave out
    raw: bytes | None = None  # sent in place of its JSON
    life: Iterator[SimulatedRun] = field(default_factory=lambda: iter(()))  # runs to come, by start
    upcoming: SimulatedRun | None = None
    runs: dict[str, SimulatedRun] = field(default_factory=dict)
    lists: Lists = field(default_factory=lambda: {name: [] for name in STATUSES})
    changes: list[tuple[float, str]] = field(default_factory=list)  # heap of (instant, run id)
    moves: deque[tuple[float, SimulatedRun]] = field(default_factory=deque)  # of the last day, newest last
    now: float = -INF  # the instant that `lists` show
    retention: float = INF
    order: Order = "start"

    def advance(self, now: float, retention: float, order: Order) -> None:
        """Bring the index to `now`. A clock that stepped back undoes nothing that has happened."""
        if now < self.now:
            for run in self.runs.values():
                run.reached = max(run.reached, self.now)
        self.now = now
        while self.moves and self.moves[0][0] < now - DAY:
            self.moves.popleft()
        if (retention, order) != (self.retention, self.order):
            self.retention, self.order = retention, order
            self._rebuild()
        while self.upcoming and self.upcoming.start <= now:
            self.runs[self.upcoming.id] = self.upcoming
            self._settle(self.upcoming)
            self.upcoming = next(self.life, None)
        while self.changes and self.changes[0][0] <= now:
            if changing := self.runs.get(heapq.heappop(self.changes)[1]):
                self._settle(changing)

    def change(self, run: SimulatedRun, fields: dict[str, Any]) -> None:
        """Change fields of a run, or add a new one."""
        self._move(self.lists, run, run.listed, None)
        run.listed = None
        for name, value in fields.items():
            setattr(run, name, value)
        self.runs[run.id] = run
        self._settle(run)

    def lists_at(self, at: float) -> Lists:
        """The lists as they were at an instant of the last day, or as they will be if nothing is changed.

        What retention took is gone from all of them.
        """
        if at < self.now:
            recent = itertools.takewhile(lambda move: move[0] > at, reversed(self.moves))
            moved = {run.id: run for _, run in recent if run.id in self.runs}
        else:
            due = {run_id for instant, run_id in self.changes if instant <= at}
            moved = {run_id: self.runs[run_id] for run_id in due if run_id in self.runs}
        if not moved:
            return self.lists
        lists = {name: runs.copy() for name, runs in self.lists.items()}
        for run in moved.values():
            self._move(lists, run, run.listed, run.state(at, self.retention)[0])
        return lists

    def since(self, runs: list[Listed], start: float) -> list[Listed]:
        """Those of a list that started at `start` or later."""
        if start == -INF:
            return runs
        if self.order == "start":
            return runs[bisect_left(runs, start, key=lambda listed: listed.place[1]) :]
        return [listed for listed in runs if listed.run.start >= start]

    def _rebuild(self) -> None:
        self.lists = {name: [] for name in self.lists}
        self.changes.clear()
        for run in tuple(self.runs.values()):
            run.listed = None
            self._settle(run)

    def _settle(self, run: SimulatedRun) -> None:
        """Put a run where it belongs now, and note when to look again."""
        status, changes_at = run.state(self.now, self.retention)
        if status:
            run.agent_name = run.agent_name or self.name
        if status != run.listed:
            self.moves.append((self.now, run))
            self._move(self.lists, run, run.listed, status)
            run.listed = status
        if changes_at < INF:
            heapq.heappush(self.changes, (changes_at, run.id))
        elif not status:
            del self.runs[run.id]

    def _move(self, lists: Lists, run: SimulatedRun, before: str | None, after: str | None) -> None:
        if before:
            place = self._place(run, before)
            for name in (ALL, before):
                del lists[name][bisect_left(lists[name], place, key=lambda listed: listed.place)]
        if after:
            listed = Listed(self._place(run, after), after, run)
            for name in (ALL, after):
                insort(lists.setdefault(name, []), listed)

    def _place(self, run: SimulatedRun, status: str) -> Place:
        if self.order == "start":
            return 0, run.start, run.id
        return (1, run.start, run.id) if status in OPEN else (0, run.end, run.id)


def stable_uuid(seed: int, *what: object) -> str:
    """The same for the same arguments."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{seed}/{what}"))
