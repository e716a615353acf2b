"""What tests of counting share: a clock that is moved by hand, and the simulated API without HTTP."""

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from exporter.demo.simulator import SimulatedModus
from exporter.metrics.collector import RunsCollector
from exporter.metrics.settings import Settings
from exporter.metrics.snapshot import AgentSnapshot
from exporter.modus import decode
from exporter.modus.apiclock import ApiClock
from exporter.modus.discovery import Selection, Target
from exporter.modus.errors import REASON_OF, ApiError
from exporter.modus.model import AgentsPage, Run, RunsPage
from exporter.modus.usage import UsageReport, decode_report, iso
from exporter.runs.ledger import Ledger
from exporter.runs.reader import Limits

BOUNDS = (1.0, 10.0, 60.0, 600.0)
DAY = 86400.0
START = 1_790_000_000.0
ILL, WELL = 1, 2  # the two agents of the fixture `modus`


class Clock:
    """Unix time that stands still until it is moved."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class DirectApi:
    """The client's methods over a simulated API in the same process; `clock` is the exporter's own."""

    def __init__(self, modus: SimulatedModus, clock: Callable[[], float] | None = None) -> None:
        self.modus = modus
        self.clock = clock or modus.clock
        self._api_clock = ApiClock()
        self._skew = 0.0
        self.before: Callable[[], None] = lambda: None  # called before every request; may raise

    def runs(self, agent_id: int, *, deadline: object, **query: Any) -> RunsPage:
        names = {
            "page_size": "pageSize",
            "page_token": "pageToken",
            "status": "status",
            "approval_scope": "approvalScope",
            "timeframe": "timeframe",
        }
        sent = {names[name]: str(value) for name, value in query.items() if value is not None}
        path = f"/api/v1/agents/{agent_id}/runs"
        page = decode.runs_page(self._get(path, sent, agent_id), query["page_size"])
        now = self.clock() + self._skew
        return RunsPage(page.runs, page.counts, page.next_page_token, now, self._skew, page.malformed)

    def run(self, agent_id: int, workflow_id: str, temporal_run_id: str | None, *, deadline: object) -> Run:
        query = {"temporalRunId": temporal_run_id} if temporal_run_id else {}
        return decode.one_run(self._get(f"/api/v1/agents/{agent_id}/runs/{workflow_id}", query, agent_id))

    def agents(
        self,
        *,
        deadline: object,
        page_token: str | None = None,
        page_size: int = 100,
        with_variation: bool = False,
    ) -> AgentsPage:
        query = {"pageToken": page_token} if page_token else {}
        query |= {"includeVariation": "true", "view": "active"} if with_variation else {}
        return decode.agents_page(self._get("/api/v1/agents", query), page_size)

    def usage(self, grouping: str, since: float, until: float, *, deadline: object) -> UsageReport:
        query = {"since": iso(since), "until": iso(until), "rollup": "hour", "group_by": grouping}
        return decode_report(self._get("/api/v1/usage", query))

    def stats(self) -> Any:
        return SimpleNamespace(requests={}, durations={})

    def close(self) -> None:
        pass

    def _get(self, path: str, query: dict[str, str], agent_id: int | None = None) -> bytes:
        self.before()
        answer = self.modus.answer("GET", path, query, {"Authorization": "Bearer demo"})
        assert isinstance(answer.body, bytes)
        self._skew = self._api_clock.skew(answer.headers.get("Date", ""), self.clock(), agent_id)
        if answer.status != 200:
            message = json.loads(answer.body)["error"]["message"]
            reason = REASON_OF.get(answer.status, "server_error" if answer.status >= 500 else "bad_response")
            raise ApiError(reason, message, status=answer.status)
        return answer.body


def settings(*agent_ids: int, reconcile_interval: float = 0.0, **limits: Any) -> Settings:
    """Settings for these agents; one request at a time, so that requests come in one order."""
    chosen = {"page_size": 100, "max_pages": 20, "lookback": DAY} | limits
    return Settings(
        selection=Selection([Target(agent_id) for agent_id in agent_ids]),
        limits=Limits(**chosen),
        concurrency=1,
        timeout_offset=0.5,
        default_timeout=60.0,
        min_interval=0.0,
        reconcile_interval=reconcile_interval,
    )


class Exporter:
    """The collector with its ledger over a simulated API: all of the exporter but its two ends."""

    def __init__(
        self,
        modus: SimulatedModus,
        path: str | None,
        chosen: Settings,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] | None = None,  # its own; None: the API's
    ) -> None:
        clock = clock or modus.clock
        self.api = DirectApi(modus, clock)
        self.ledger = Ledger(
            path, BOUNDS, lookback=chosen.limits.lookback, shard=chosen.selection.shard, clock=clock
        )
        self.collector = RunsCollector(
            self.api,  # type: ignore[arg-type]
            self.ledger,
            chosen,
            reload_state=lambda: (True, 0.0),
            clock=clock,
            monotonic=monotonic,
        )

    def scrape(self) -> dict[int, AgentSnapshot]:
        return {agent.id: agent for agent in self.collector.scrape(None).agents}

    def close(self) -> None:
        self.collector.close()
        self.ledger.close()


def finished(agent: AgentSnapshot) -> dict[str, int]:
    """Counted runs by status."""
    assert agent.totals is not None
    return {status: sum(by_trigger.values()) for status, by_trigger in agent.totals.finished.items()}
