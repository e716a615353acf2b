"""A simulated Modus API: agents with known lives, answered from memory and served over HTTP.

`--demo` runs against it and so do the tests. It writes its own wire JSON, so it cannot share a mistake
with the parser. Paths, parameters, answers and errors are those of Modus's API reference and OpenAPI
description; `SimulatedModus` says what is decided where these are silent.
"""

import base64
import heapq
import itertools
import json
import random
import re
import sys
import threading
import time
import uuid
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import attrgetter
from socket import SHUT_RDWR
from socketserver import TCPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

INF, MINUTE, HOUR, DAY = float("inf"), 60.0, 3600.0, 86400.0
ABSENT = object()  # as a value of `SimulatedRun.override`: leave the key out
ALL, OPEN = "all_executions", ("running", "awaiting_human")
STATUSES = (ALL, *OPEN, "error", "completed", "cancelled")
TIMEFRAMES = {"last_hour": HOUR, "last_day": DAY, "last_week": 7 * DAY, "last_month": 30 * DAY}
SCOPES = ("agents:read", "agents:invoke", "workflows:read", "workflows:invoke")
ERRORS = {
    400: ("BAD_REQUEST", "INVALID_ARGUMENT"),
    401: ("UNAUTHORIZED", "UNAUTHENTICATED"),
    403: ("FORBIDDEN", "PERMISSION_DENIED"),
    404: ("NOT_FOUND", "NOT_FOUND"),
    429: ("RATE_LIMITED", "RESOURCE_EXHAUSTED"),
    500: ("INTERNAL_ERROR", "INTERNAL"),
}
_ROUTE = re.compile(r"/api/v1/(agents|workflows)(?:/([^/]+)/runs(?:/([^/]+))?)?")
_key = attrgetter("key")


@dataclass(frozen=True, kw_only=True)
class Life:
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
    101: Life(name="Invoice triage", every=5 * MINUTE),
    102: Life(name="Lead enrichment", every=9, triggers=("webhook", "api"), lasts=(1, 20), errors=0.01),
    103: Life(name="Flaky scraper", every=10 * MINUTE, lasts=(20, 120), errors=0.25, retried=0.3),
    104: Life(name="CRM sync", every=15 * MINUTE, lasts=(10, 40), fails_from=-3 * HOUR),
    105: Life(name="Contract review", every=30 * MINUTE, triggers=("webhook", "manual"), lasts=(120, 480),
              open_since=-7 * HOUR),
    106: Life(name="Refund approval", type="workflow", every=20 * MINUTE, triggers=("slack",),
              lasts=(60, 2400), cancelled=0.1, asks_human=True, open_since=-26 * HOUR),
    107: Life(name="Weekly newsletter", lasts=(60, 180), last_start=-9 * HOUR),
    108: Life(name="Report builder", every=20 * MINUTE, lasts=(1440, 1560), slower=20 * MINUTE / DAY),
    109: Life(name='Support digest "EU" \\ Zürich 東京', triggers=("manual", "api"), lasts=(30, 300),
              cancelled=0.25),
    110: Life(name="Onboarding", last_start=-INF, deployed=10 * MINUTE),
}
# fmt: on


@dataclass(slots=True, eq=False)
class SimulatedRun:
    """One run with its whole life in Unix seconds: its status follows from the instant of asking."""

    agent_id: int
    workflow_id: str
    temporal_run_id: str
    start: float
    end: float = INF
    outcome: str = "completed"  # its status from `end` on
    waits_from: float = INF  # awaiting_human from then on
    trigger: str = "manual"
    visible_from: float = -INF  # when the index shows it: late, if this is after the start
    mine: bool = False  # whether the token's owner is asked to approve it
    hidden: bool = False
    override: dict[str, object] = field(default_factory=dict)  # keys of its JSON to change or leave out
    agent_name: str = ""  # the snapshot, taken when the run is first indexed
    listed: str | None = None  # the status list it is in

    @property
    def id(self) -> str:
        """The identity: `workflowId:temporalRunId`."""
        return f"{self.workflow_id}:{self.temporal_run_id}"

    @property
    def key(self) -> tuple[float, str]:
        """The place in a list."""
        return self.start, self.id

    def state(self, now: float, retention: float) -> tuple[str | None, float]:
        """The status at `now` (None: in no list), and the instant at which it changes next."""
        if self.hidden or now >= self.end + retention:
            return None, INF
        if now < (shown := max(self.start, self.visible_from)):
            return None, shown
        if now >= self.end:
            return self.outcome, self.end + retention
        if now >= self.waits_from:
            return "awaiting_human", self.end
        return "running", min(self.waits_from, self.end)


@dataclass(slots=True, eq=False)
class SimulatedAgent:
    """One agent: all its runs by id, and those listed by status, in the order of their start."""

    id: int
    name: str
    type: str
    deployed: float
    deleted_at: float = INF
    life: Iterator[SimulatedRun] = field(default_factory=lambda: iter(()))
    upcoming: SimulatedRun | None = None
    runs: dict[str, SimulatedRun] = field(default_factory=dict)
    lists: dict[str, list[SimulatedRun]] = field(default_factory=lambda: {name: [] for name in STATUSES})
    changes: list[tuple[float, str]] = field(default_factory=list)  # heap of (instant, run id)


class Request(NamedTuple):
    """A request as it came in; `operation` is list_agents, list_runs, get_run or unknown."""

    operation: str
    agent_id: int | None
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case


class Answer(NamedTuple):
    """An answer to send; status 0 hangs up instead, and so does the end of a body in chunks."""

    status: int
    headers: dict[str, str]  # a Content-Length of its own is kept: give it `Connection: close` beside it
    body: bytes | Iterable[bytes]


class _Refusal(Exception):  # noqa: N818 - not a fault of the program: an answer other than 200
    def __init__(self, status: int, message: str, info: object = None) -> None:
        super().__init__(message)
        self.status, self.info = status, info


@dataclass(kw_only=True, eq=False, repr=False)
class SimulatedModus:
    """The API. Any field may be changed while it runs; the same seed and instants give the same runs.

    Decided here, because Modus does not say: `approvalScope` is `mine` unless given; `counts` follow
    `timeframe` and `search`, but `status` only when told; pages are found by offset or by key, as told.
    """

    seed: int = 1
    clock: Callable[[], float] = time.time  # the API's own, also in its Date header
    fleet: Mapping[int, Life] = field(default_factory=lambda: FLEET)  # {}: no agents, to be scripted
    token: str = "demo"  # noqa: S105 - opens nothing but the simulation
    scopes: tuple[str, ...] = SCOPES
    resources: tuple[str, ...] = ("agents", "workflows")
    single_run: bool = True  # whether the route of one run exists
    page_tokens: str = "offset"  # or "key": such pages do not shift when runs arrive
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
        self._server: _Server | None = None
        for agent_id, life in self.fleet.items():
            agent = self.add_agent(agent_id, life.name, life.type, self.born + life.deployed)
            agent.life = self._live(agent_id, life)
            agent.upcoming = next(agent.life, None)

    # What happens: told by a script

    def add_agent(
        self, agent_id: int, name: str, kind: str = "task", deployed: float = -INF
    ) -> SimulatedAgent:
        """Add an agent without runs; it is a draft until the instant `deployed`."""
        with self._lock:
            agent = self.agents[agent_id] = SimulatedAgent(agent_id, name, kind, deployed)
            return agent

    def rename(self, agent_id: int, name: str) -> None:
        """Rename an agent: runs that are indexed already keep the old name."""
        with self._lock:
            self._advance(self.agents[agent_id], self.clock())
            self.agents[agent_id].name = name

    def start_run(
        self, agent_id: int, at: float | None = None, lasts: float = INF, **fields: Any
    ) -> SimulatedRun:
        """Start a run, now or `at` (past or future), that ends after `lasts` seconds as `outcome` says.

        `fields` are those of `SimulatedRun`: a `workflow_id` used before makes one more Temporal run of it.
        """
        start, number = round(self.clock() if at is None else at, 3), next(self._run_numbers)
        ids = agent_id, f"wf_{agent_id}_run_{number}", self._uuid(agent_id, number)
        run = SimulatedRun(*ids, start, start + lasts)
        self.change(run, **fields)
        return run

    def end_run(self, run: SimulatedRun, status: str = "completed", *, at: float | None = None) -> None:
        """End a run now or `at`."""
        self.change(run, outcome=status, end=round(self.clock() if at is None else at, 3))

    def change(self, run: SimulatedRun, **fields: Any) -> None:
        """Change fields of a run: `waits_from` to ask a human, `hidden` to take it out of every list."""
        with self._lock:
            agent = self.agents[run.agent_id]
            self._list(agent, run, None)
            for name, value in fields.items():
                setattr(run, name, value)
            agent.runs[run.id] = run
            self._settle(agent, run, self.clock())

    def runs(self, agent_id: int) -> list[SimulatedRun]:
        """The runs that the list holds now, newest start first."""
        with self._lock:
            self._advance(self.agents[agent_id], self.clock())
            return self.agents[agent_id].lists[ALL][::-1]

    # What happens: by itself, as time passes

    def _uuid(self, *what: object) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.seed}/{what}"))

    def _live(self, agent_id: int, life: Life) -> Iterator[SimulatedRun]:
        """The runs of a demo agent from a day before the start on, one in each slot of `life.every`."""
        rng = random.Random(f"{self.seed}/{agent_id}")  # noqa: S311 - repeatable on purpose

        def run(start: float, lasts: float, outcome: str = "completed", retry_of: str = "") -> SimulatedRun:
            start, end = round(start, 3), round(start + lasts, 3)
            workflow_id = retry_of or f"wf_{agent_id}_{start * 1000:.0f}"
            waits_from, trigger = start + 10 if life.asks_human else INF, rng.choice(life.triggers)
            ids = agent_id, workflow_id, self._uuid(workflow_id, start)
            return SimulatedRun(*ids, start, end, outcome, waits_from, trigger)

        if life.open_since is not None:
            yield run(self.born + life.open_since, INF)
        for slot in itertools.count():
            due = slot * life.every - DAY
            if due > life.last_start:
                return
            start = self.born + due + rng.random() * (2 if "schedule" in life.triggers else life.every)
            draw, lasts = rng.random(), min(rng.triangular(*life.lasts) + life.slower * due, HOUR)
            failed = due >= life.fails_from or draw < life.errors
            cancelled = draw < life.errors + life.cancelled
            first = run(start, lasts, "error" if failed else "cancelled" if cancelled else "completed")
            yield first
            if failed and rng.random() < life.retried:
                yield run(first.end + 5, rng.triangular(*life.lasts), retry_of=first.workflow_id)

    def _advance(self, agent: SimulatedAgent, now: float) -> None:
        while agent.upcoming and agent.upcoming.start <= now:
            agent.runs[agent.upcoming.id] = agent.upcoming
            self._settle(agent, agent.upcoming, now)
            agent.upcoming = next(agent.life, None)
        while agent.changes and agent.changes[0][0] <= now:
            if run := agent.runs.get(heapq.heappop(agent.changes)[1]):
                self._settle(agent, run, now)

    def _settle(self, agent: SimulatedAgent, run: SimulatedRun, now: float) -> None:
        """Put a run where it belongs at `now`, and note when to look again."""
        status, changes_at = run.state(now, self.retention)
        if status:
            run.agent_name = run.agent_name or agent.name
        self._list(agent, run, status)
        if changes_at < INF:
            heapq.heappush(agent.changes, (changes_at, run.id))
        elif not status:
            del agent.runs[run.id]

    def _list(self, agent: SimulatedAgent, run: SimulatedRun, status: str | None) -> None:
        before, after = ({name, ALL} if name else set() for name in (run.listed, status))
        for name in before - after:
            del agent.lists[name][bisect_left(agent.lists[name], run.key, key=_key)]
        for name in after - before:
            insort(agent.lists.setdefault(name, []), run, key=_key)
        run.listed = status

    # What is answered

    def answer(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Answer:
        """Answer one request; `path` is as on the wire, without the query."""
        match = _ROUTE.fullmatch(path)
        resource, agent, run = match.groups() if match else (None, None, None)
        operation = "get_run" if run else "list_runs" if agent else "list_agents" if match else "unknown"
        agent_id = int(agent) if agent and agent.isdecimal() else None
        lower = {name.lower(): value for name, value in headers.items()}
        request = Request(operation, agent_id, method, path, dict(query), lower)
        self.requests.append(request)
        if self.fault and (fault := self.fault(request)):
            return fault
        try:
            with self._lock:
                return self._json(200, self._respond(request, resource, unquote(run or "")))
        except _Refusal as refusal:
            return self.error(refusal.status, str(refusal), refusal.info)

    def error(self, status: int, message: str = "Simulated.", info: object = None, **headers: str) -> Answer:
        """The API's error envelope, for answers and for faults: `error(429, **{"Retry-After": "3"})`."""
        code, name = ERRORS[status]
        request_id = f"req_{next(self._request_ids):026d}"
        body = {"code": code, "status": name, "message": message, "requestId": request_id}
        return self._json(status, {"error": body | ({"info": info} if info else {})}, **headers)

    def _json(self, status: int, body: object, **headers: str) -> Answer:
        base = {"Content-Type": "application/json", "Date": formatdate(self.clock(), usegmt=True)}
        return Answer(status, base | headers, json.dumps(body).encode())

    def _respond(self, request: Request, resource: str | None, workflow_id: str) -> dict[str, Any]:
        operation, query, now = request.operation, request.query, self.clock()
        known = resource in self.resources and (self.single_run or operation != "get_run")
        if request.method != "GET" or not known:
            raise _Refusal(404, f"Cannot {request.method} {request.path}")
        if request.headers.get("authorization") != f"Bearer {self.token}":
            raise _Refusal(401, "Missing or invalid access token.")
        scope = f"{resource}:{'read' if operation == 'list_agents' else 'invoke'}"
        if scope not in self.scopes:
            raise _Refusal(403, f"Missing required scope(s): {scope}.", {"missing": [scope]})
        if operation == "list_agents":
            return self._list_agents(query, now)
        if request.agent_id is None:
            raise _Refusal(400, "Invalid value for path parameter `id`.")
        if (agent := self.agents.get(request.agent_id)) is None:
            raise _Refusal(404, "Resource not found.")
        self._advance(agent, now)
        return _get_run(agent, workflow_id, query) if workflow_id else self._list_runs(agent, query, now)

    def _list_agents(self, query: dict[str, str], now: float) -> dict[str, Any]:
        kind, search = _choice(query, "type", ("task", "workflow"), ""), query.get("search", "").lower()
        agents = [a for a in self.agents.values() if kind in ("", a.type) and search in a.name.lower()]
        agents.sort(key=_descending)  # pages are read from the end
        page, token = self._page(agents, _descending, query)
        return {"agents": [self._agent_json(agent, now) for agent in page], "nextPageToken": token}

    def _list_runs(self, agent: SimulatedAgent, query: dict[str, str], now: float) -> dict[str, Any]:
        status = _choice(query, "status", tuple(agent.lists), ALL)
        scope = _choice(query, "approvalScope", ("mine", "all"), "mine")
        timeframe = _choice(query, "timeframe", tuple(TIMEFRAMES), "")
        since = now - TIMEFRAMES[timeframe] if timeframe else -INF
        found = query.get("search", "").lower() in agent.name.lower()
        runs = agent.lists[status] if found else []
        if status == "awaiting_human" and scope == "mine":
            runs = [run for run in runs if run.mine]
        page, token = self._page(runs, _key, query, _first(runs, since))
        counts = {name: len(runs) - _first(runs, since) if found else 0 for name, runs in agent.lists.items()}
        del counts["cancelled"]  # the API names none
        if self.counts_follow_status and status != ALL:
            counts = {name: count if name == status else 0 for name, count in counts.items()}
        return {"runs": [_run_json(run, agent) for run in page], "counts": counts, "nextPageToken": token}

    def _page(
        self, items: list[Any], key: Callable[[Any], Any], query: dict[str, str], first: int = 0
    ) -> tuple[list[Any], str | None]:
        """One page of `items[first:]`, which is read from its end, and the token of the next."""
        wanted, end = query.get("pageSize", "25"), len(items)
        if not wanted.isdecimal() or int(wanted) < 1:
            raise _Refusal(400, "Invalid value for query parameter `pageSize`.")
        try:
            if token := query.get("pageToken"):
                place = json.loads(base64.b64decode(token, validate=True))
                end = end - place if isinstance(place, int) else bisect_left(items, tuple(place), key=key)
        except (ValueError, TypeError) as bad:
            raise _Refusal(400, "Invalid value for query parameter `pageToken`.") from bad
        begin, end = max(first, end - min(int(wanted), 100)), max(first, end)
        if begin == first:
            return items[first:end][::-1], None
        place = len(items) - begin if self.page_tokens == "offset" else key(items[begin])
        return items[begin:end][::-1], base64.b64encode(json.dumps(place).encode()).decode()

    def _agent_json(self, agent: SimulatedAgent, now: float) -> dict[str, Any]:
        deployed, deleted = agent.deployed <= now, agent.deleted_at <= now
        created = iso(self.born - 30 * DAY)
        # fmt: off
        return {
            "id": agent.id, "slug": f"agent-{agent.id}", "name": agent.name, "type": agent.type,
            "status": "deleted" if deleted else "active" if deployed else "draft",
            "isEnabled": deployed and not deleted, "hasUnpublishedChanges": not deployed,
            "createdAt": created, "updatedAt": created,
            "deletedAt": iso(agent.deleted_at) if deleted else None, "orgUuid": self._uuid("organisation"),
            "canUse": True, "canManage": False, "manageDenial": "not_owner",
            "accessConfig": {"visibility": "shared", "groupPermissions": {}, "sharedWith": []},
        }
        # fmt: on

    # How it is served

    @property
    def url(self) -> str:
        """The base URL, while it is started."""
        if self._server is None:
            raise RuntimeError("the simulated API is not started")
        return f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def start(self, port: int = 0) -> "SimulatedModus":
        """Serve on a loopback port (0: a free one), in threads that end with the process."""
        self._server = _Server(self, port)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def close(self) -> None:
        """Stop serving and cut the connections; `start` may follow."""
        if server := self._server:
            self._server = None
            server.shutdown()
            server.server_close()
            for connection in tuple(server.connections):
                with suppress(OSError):  # the client was quicker
                    connection.shutdown(SHUT_RDWR)


def iso(instant: float) -> str:
    """Unix seconds as the API writes them: ISO-8601, milliseconds, Z."""
    text = datetime.fromtimestamp(round(instant, 3), UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _descending(agent: SimulatedAgent) -> tuple[int]:
    return (-agent.id,)


def _first(runs: list[SimulatedRun], since: float) -> int:
    return bisect_left(runs, (since, ""), key=_key)


def _choice(query: dict[str, str], name: str, known: tuple[str, ...], default: str) -> str:
    value = query.get(name) or default
    if value not in (*known, default):
        raise _Refusal(400, f"Invalid value for query parameter `{name}`.")
    return value


def _get_run(agent: SimulatedAgent, workflow_id: str, query: dict[str, str]) -> dict[str, Any]:
    if temporal := query.get("temporalRunId"):
        run = agent.runs.get(f"{workflow_id}:{temporal}")
    else:  # the newest of the workflow's
        run = next((run for run in reversed(agent.lists[ALL]) if run.workflow_id == workflow_id), None)
    if run is None or run.listed is None:
        raise _Refusal(404, "Resource not found.")
    more = {"source": "live-query" if run.listed in OPEN else "history"}
    return (
        _run_json(run, agent)
        | more
        | ({"taskError": "Upstream answered 502."} if run.listed == "error" else {})
    )


def _run_json(run: SimulatedRun, agent: SimulatedAgent) -> dict[str, Any]:
    # fmt: off
    body: dict[str, Any] = {
        "id": run.id, "workflowId": run.workflow_id, "temporalRunId": run.temporal_run_id,
        "agentId": run.agent_id, "agentName": run.agent_name, "agentType": agent.type,
        "status": run.listed, "triggerType": run.trigger, "startedAt": iso(run.start),
        "summary": f"{run.agent_name}: {run.listed}",
    }
    # fmt: on
    if run.listed not in OPEN:
        body |= {"endedAt": iso(run.end), "durationMs": round((run.end - run.start) * 1000)}
    elif run.listed == "awaiting_human":
        body["pendingApproval"] = {"requestedAt": iso(run.waits_from), "message": "Approve this step?"}
    return {name: value for name, value in (body | run.override).items() if value is not ABSENT}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet
    server: "_Server"

    def do_GET(self) -> None:
        api, (path, _, query) = self.server.api, self.path.partition("?")
        time.sleep(api.latency)
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        status, headers, body = api.answer("GET", path, parameters, dict(self.headers.items()))
        if not status:
            self.close_connection = True
            return
        length = {"Content-Length": str(len(body))} if isinstance(body, bytes) else {"Connection": "close"}
        self.send_response_only(status)
        for name, value in (length | headers).items():
            self.send_header(name, value)
        self.end_headers()
        for chunk in (body,) if isinstance(body, bytes) else body:
            self.wfile.write(chunk)
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in http.server
        """Log nothing: there is `SimulatedModus.requests`."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    server_bind = TCPServer.server_bind  # HTTPServer's asks the DNS for the machine's name

    def __init__(self, api: SimulatedModus, port: int) -> None:
        self.api, self.connections = api, set[Any]()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave when it likes
            super().handle_error(request, client_address)
