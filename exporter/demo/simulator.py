"""A simulated Modus API: agents with known lives, answered from memory and served over HTTP.

`--demo` runs against it and so do the tests. It writes its own wire JSON, so it cannot share a mistake
with the parser. Paths, parameters, answers and errors are those of Modus's API reference and OpenAPI
description; `SimulatedModus` says what is decided where these are silent.
"""

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, NamedTuple
from urllib.parse import unquote

from exporter.demo.fleet import FLEET, HOUR, AgentProfile, runs_of, trigger_of
from exporter.demo.index import ALL, DAY, INF, Order, SimulatedAgent, SimulatedRun, stable_uuid
from exporter.demo.paging import Item, Refusal, Tokens, page_of
from exporter.demo.routes import route_of
from exporter.demo.server import Answer, Server
from exporter.demo.usage import SimulatedUse, names_of, usage_json, uses_of
from exporter.demo.wire import agent_json, encode, error_json, run_json, single_run_json, without_absent

__all__ = ["Answer", "Request", "SimulatedModus", "SimulatedRun", "SimulatedUse"]

TIMEFRAMES = {"last_hour": HOUR, "last_day": DAY, "last_week": 7 * DAY, "last_month": 30 * DAY}
SCOPES = ("agents:read", "agents:invoke", "workflows:read", "workflows:invoke", "usage:read")


class Request(NamedTuple):
    """A request as it came in; `operation` is list_agents, list_runs, get_run, get_usage or unknown."""

    operation: str
    agent_id: int | None
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case


@dataclass(kw_only=True, eq=False, repr=False)
class SimulatedModus:
    """The API. Any field may be changed while it runs; the same seed and instants give the same runs.

    Decided here, because Modus does not say: `approvalScope` is `mine` unless given; `counts` follow
    `timeframe` and `search`, but `status` only when told; pages are found by offset or by key, as told.
    A field `bool | int` is True for what works, False for 404, else the status that is answered.
    """

    seed: int = 1
    clock: Callable[[], float] = time.time  # the API's own; it may step, which undoes nothing
    date_offset: float | Callable[[Request], float] = 0.0  # seconds by which the Date header alone is ahead
    fleet: Mapping[int, AgentProfile] = field(default_factory=lambda: FLEET)  # {}: no agents, to be scripted
    token: str = "demo"  # noqa: S105 - opens nothing but the simulation
    scopes: tuple[str, ...] = SCOPES
    resources: tuple[str, ...] = ("agents", "workflows")
    single_run: bool | int = True  # the route of one run
    filtered_lists: bool | int = True  # lists of runs in one status
    usage_report: bool | int = True
    usage_names: str = "id"  # or slug, or name: what the report calls an agent
    uses: list[SimulatedUse] = field(default_factory=list)  # besides those of the fleet's runs
    order: Order = "start"  # of the lists of runs
    page_tokens: str = "offset"  # or "key": such pages do not shift when runs arrive
    token_life: float = INF  # seconds for which a page token is taken
    token_refusal: int = 400  # the status that a page token which is not taken gets
    replica_lags: tuple[float, ...] = (0.0,)  # seconds, at most a day: they answer lists of runs in turn
    counts_lag: float = 0.0  # seconds by which the counts are behind their list; negative: ahead
    counts_fault: Callable[[dict[str, int]], object] = lambda counts: counts  # what is sent
    counts_follow_status: bool = False
    retention: float = INF  # seconds from its end until a run is forgotten
    latency: float = 0.0  # seconds before each answer over HTTP
    fault: Callable[[Request], Answer | None] | None = None  # asked first; it may block
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=100_000))  # newest last

    def __post_init__(self) -> None:  # noqa: D105 - the end of the constructor
        self.agents: dict[int, SimulatedAgent] = {}
        self.born = self.clock()
        self._lock = threading.RLock()
        self._request_ids, self._run_numbers = itertools.count(1), itertools.count(1)
        self._turns, self._tokens_forgotten = itertools.count(), 0
        self._server: Server | None = None
        for agent_id, profile in self.fleet.items():
            agent = self.add_agent(agent_id, profile.name, profile.type, self.born + profile.deployed)
            agent.trigger = trigger_of(profile)
            agent.life = runs_of(agent_id, profile, self.born, self.seed)
            agent.upcoming = next(agent.life, None)

    # What happens: told by a script

    def add_agent(
        self, agent_id: int, name: str, kind: str = "task", deployed: float = -INF
    ) -> SimulatedAgent:
        """Add an agent without runs; it is a draft until the instant `deployed`."""
        with self._lock:
            agent = self.agents[agent_id] = SimulatedAgent(agent_id, name, kind, deployed)
            return agent

    def remove_agent(self, agent_id: int) -> None:
        """Take an agent out of the list of agents and forget its runs: its routes answer 404."""
        with self._lock:
            del self.agents[agent_id]

    def rename(self, agent_id: int, name: str) -> None:
        """Rename an agent: runs that are indexed already keep the old name."""
        with self._lock:
            self._advanced(agent_id).name = name

    def start_run(
        self, agent_id: int, at: float | None = None, lasts: float = INF, **fields: Any
    ) -> SimulatedRun:
        """Start a run, now or `at` (past or future), that ends after `lasts` seconds as `outcome` says.

        `fields` are those of `SimulatedRun`: a `workflow_id` used before makes one more Temporal run of it.
        """
        start, number = self._instant(at), next(self._run_numbers)
        ids = agent_id, f"wf_{agent_id}_run_{number}", stable_uuid(self.seed, agent_id, number)
        run = SimulatedRun(*ids, start, start + lasts)
        self.change(run, **fields)
        return run

    def end_run(self, run: SimulatedRun, status: str = "completed", *, at: float | None = None) -> None:
        """End a run now or `at`."""
        self.change(run, outcome=status, end=self._instant(at))

    def change(self, run: SimulatedRun, **fields: Any) -> None:
        """Change fields of a run: `waits_from` to ask a human, `hidden` to take it out of all lists."""
        with self._lock:
            self._advanced(run.agent_id).change(run, fields)

    def runs(self, agent_id: int) -> list[SimulatedRun]:
        """The runs that the list holds now, newest start first."""
        with self._lock:
            runs = [listed.run for listed in reversed(self._advanced(agent_id).lists[ALL])]
        return runs if self.order == "start" else sorted(runs, key=lambda run: run.start, reverse=True)

    def forget_tokens(self) -> None:
        """Refuse every page token that was handed out so far."""
        self._tokens_forgotten += 1

    def _instant(self, at: float | None) -> float:
        """An instant in whole milliseconds; now is never ahead of now."""
        return math.floor(self.clock() * 1000) / 1000 if at is None else round(at, 3)

    def _advanced(self, agent_id: int) -> SimulatedAgent:
        agent = self.agents[agent_id]
        agent.advance(self.clock(), self.retention, self.order)
        return agent

    # What is answered

    def answer(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Answer:
        """Answer one request; `path` is as on the wire, without the query."""
        operation, resource, agent, run = route_of(path)
        agent_id = int(agent) if agent.isdecimal() else None
        lower = {name.lower(): value for name, value in headers.items()}
        request = Request(operation, agent_id, method, path, dict(query), lower)
        self.requests.append(request)
        if self.fault and (fault := self.fault(request)):
            return fault
        try:
            with self._lock:
                answer = self._json(200, self._respond(request, resource, unquote(run)))
        except Refusal as refusal:
            answer = self.error(refusal.status, str(refusal), refusal.info)
        ahead = self.date_offset(request) if callable(self.date_offset) else self.date_offset
        answer.headers["Date"] = formatdate(self.clock() + ahead, usegmt=True)
        return answer

    def error(self, status: int, message: str = "Simulated.", info: object = None, **headers: str) -> Answer:
        """The API's error envelope, for answers and for faults: `error(429, **{"Retry-After": "3"})`."""
        request_id = f"req_{next(self._request_ids):026d}"
        return self._json(status, error_json(status, request_id, message, info), **headers)

    def _json(self, status: int, body: object, **headers: str) -> Answer:
        base = {"Content-Type": "application/json", "Date": formatdate(self.clock(), usegmt=True)}
        return Answer(status, base | headers, encode(body))

    def _respond(self, request: Request, resource: str, workflow_id: str) -> dict[str, Any] | bytes:
        operation, query = request.operation, request.query
        if request.method != "GET" or resource not in (*self.resources, "usage"):
            raise Refusal(404, f"Cannot {request.method} {request.path}")
        if request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refusal(401, "Missing or invalid access token.")
        scope = f"{resource}:{'read' if operation in ('list_agents', 'get_usage') else 'invoke'}"
        if scope not in self.scopes:
            raise Refusal(403, f"Missing required scope(s): {scope}.", {"missing": [scope]})
        if operation == "list_agents":
            return self._list_agents(query)
        if operation == "get_usage":
            _require(self.usage_report, f"Cannot GET {request.path}")
            return usage_json(self._uses(), names_of(self.agents, self.usage_names), query, self.clock())
        if request.agent_id is None:
            raise Refusal(400, "Invalid value for path parameter `id`.")
        _require(self.single_run if operation == "get_run" else True, f"Cannot GET {request.path}")
        if request.agent_id not in self.agents:
            raise Refusal(404, "Resource not found.")
        agent = self._advanced(request.agent_id)
        return _get_run(agent, workflow_id, query) if workflow_id else self._list_runs(agent, query)

    def _uses(self) -> Iterator[SimulatedUse]:
        yield from self.uses
        for agent_id in self.agents.keys() & self.fleet.keys():
            for run in self._advanced(agent_id).runs.values():
                yield from uses_of(run, self.clock())

    def _list_agents(self, query: dict[str, str]) -> dict[str, Any]:
        kind, search = _choice(query, "type", ("task", "workflow"), ""), query.get("search", "").lower()
        found = [a for a in self.agents.values() if kind in ("", a.type) and search in a.name.lower()]
        page, token = self._page(sorted(((-a.id,), a) for a in found), query)  # pages are read from the end
        now = self.clock()
        wanted = query.get("includeVariation") == "true"
        agents = [agent_json(agent, now, self.born, self.seed, with_variation=wanted) for _, agent in page]
        return {"agents": agents, "nextPageToken": token}

    def _list_runs(self, agent: SimulatedAgent, query: dict[str, str]) -> dict[str, Any]:
        status = _choice(query, "status", tuple(agent.lists), ALL)
        _require(self.filtered_lists if status != ALL else True, f"Cannot list runs by status {status}.")
        scope = _choice(query, "approvalScope", ("mine", "all"), "mine")
        timeframe = _choice(query, "timeframe", tuple(TIMEFRAMES), "")
        since = agent.now - TIMEFRAMES[timeframe] if timeframe else -INF
        found = query.get("search", "").lower() in agent.name.lower()
        shown_at = agent.now - self.replica_lags[next(self._turns) % len(self.replica_lags)]
        runs = agent.since(agent.lists_at(shown_at)[status], since) if found else []
        if status == "awaiting_human" and scope == "mine":
            runs = [listed for listed in runs if listed.run.mine]
        page, token = self._page(runs, query)
        counted = agent.lists_at(shown_at - self.counts_lag)
        counts = {name: len(agent.since(listed, since)) if found else 0 for name, listed in counted.items()}
        del counts["cancelled"]  # the API names none
        if self.counts_follow_status and status != ALL:
            counts = {name: count if name == status else 0 for name, count in counts.items()}
        body = {"runs": [run_json(run, agent, status) for _, status, run in page]}
        return without_absent(body | {"counts": self.counts_fault(counts), "nextPageToken": token})

    def _page(self, items: list[Item], query: dict[str, str]) -> tuple[list[Item], str | None]:
        tokens = Tokens(self.page_tokens, self.token_life, self.token_refusal, self._tokens_forgotten)
        return page_of(items, query, tokens, self.clock())

    # How it is served

    @property
    def url(self) -> str:
        """The base URL, while it is started."""
        if self._server is None:
            raise RuntimeError("the simulated API is not started")
        return self._server.url

    def start(self, port: int = 0, host: str = "127.0.0.1") -> "SimulatedModus":
        """Serve on a port (0: a free one), in threads that end with the process."""
        self._server = Server(self, port, host)
        self._server.start()
        return self

    def close(self) -> None:
        """Stop serving and cut the connections; `start` may follow."""
        if self._server:
            server, self._server = self._server, None
            server.stop()


def _require(works: bool | int, message: str) -> None:
    if works is not True:
        raise Refusal(works or 404, message)


def _choice(query: dict[str, str], name: str, known: tuple[str, ...], default: str) -> str:
    value = query.get(name) or default
    if value not in (*known, default):
        raise Refusal(400, f"Invalid value for query parameter `{name}`.")
    return value


def _get_run(agent: SimulatedAgent, workflow_id: str, query: dict[str, str]) -> dict[str, Any] | bytes:
    if temporal := query.get("temporalRunId"):
        run = agent.runs.get(f"{workflow_id}:{temporal}")
    else:  # the newest of the workflow's
        runs = [listed.run for listed in agent.lists[ALL] if listed.run.workflow_id == workflow_id]
        run = max(runs, key=lambda run: run.start, default=None)
    if run is None or run.listed is None:
        raise Refusal(404, "Resource not found.")
    return single_run_json(run, agent, run.listed)
