"""What a scrape costs, and how runs that end out of sight are found."""

import json
from collections import Counter

import pytest

from exporter.deadline import Deadline
from exporter.demo.simulator import Answer, Request, SimulatedModus
from exporter.demo.wire import ABSENT
from exporter.runs.reader import AgentReader, Known, Memory
from tests.simulation import Clock, Exporter, finished, settings

AGENT = 7


class World:
    """An agent, the exporter, and the requests of its newest scrape."""

    def __init__(self, **more: object) -> None:
        self.clock = Clock()
        self.modus = SimulatedModus(fleet={}, clock=self.clock, **more)  # type: ignore[arg-type]
        self.modus.add_agent(AGENT, "Any agent")
        self.exporter = Exporter(self.modus, None, settings(AGENT))

    def scrape(self) -> Counter[str]:
        self.modus.requests.clear()
        self.agent = self.exporter.scrape()[AGENT]
        return Counter(finished(self.agent)) if self.agent.totals else Counter()

    def history(self, runs: int, apart: float) -> None:
        for _ in range(runs):
            self.modus.start_run(AGENT, lasts=1.0)
            self.clock.advance(apart)

    @property
    def asked(self) -> list[str]:
        return [
            request.operation + (f" {request.query['status']}" if "status" in request.query else "")
            for request in self.modus.requests
        ]


def test_the_first_sight_reads_the_open_lists_and_the_next_scrape_only_one_page() -> None:
    world = World()
    world.history(20, apart=60)
    world.scrape()
    assert world.asked == ["list_runs", "list_runs running", "list_runs awaiting_human"]
    assert world.modus.requests[-1].query["approvalScope"] == "all"
    world.scrape()
    assert world.asked == ["list_runs"]


def test_a_quiet_agent_gets_a_small_page_and_a_busy_one_a_full_one() -> None:
    world = World()
    world.history(300, apart=600)
    for _ in range(3):
        world.clock.advance(60)
        world.scrape()
    assert [request.query["pageSize"] for request in world.modus.requests] == ["5"]
    for _ in range(3):
        world.history(60, apart=1)
        world.scrape()
    assert {request.query["pageSize"] for request in world.modus.requests} == {"100"}
    assert world.agent.backlog is False


def test_more_news_than_the_small_page_holds_costs_one_request_more() -> None:
    world = World()
    world.history(30, apart=600)
    for _ in range(3):
        world.scrape()
        world.clock.advance(60)
    before = world.scrape()
    world.history(20, apart=0.1)
    world.clock.advance(10)
    assert world.scrape() - before == Counter(completed=20)
    assert [request.query["pageSize"] for request in world.modus.requests] == ["5", "100"]


@pytest.mark.parametrize("open_for", [600, 3 * 86400])
def test_open_runs_pages_deep_cost_nothing_until_one_ends(open_for: float) -> None:
    world = World()
    deep = world.modus.start_run(AGENT, at=world.clock() - open_for)
    world.modus.start_run(AGENT, at=world.clock() - open_for, waits_from=0.0)
    world.history(250, apart=300)
    world.scrape()
    for _ in range(5):
        world.clock.advance(60)
        world.scrape()
        assert world.asked == ["list_runs"]
    world.modus.end_run(deep, "error")
    before = finished(world.agent)["error"]
    assert world.scrape()["error"] == before + 1
    assert world.asked == ["list_runs", "list_runs running", "list_runs awaiting_human", "get_run"]
    world.scrape()
    assert world.asked == ["list_runs"]


def test_without_the_single_run_route_a_walk_finds_how_a_deep_run_ended() -> None:
    world = World(single_run=False)
    deep = world.modus.start_run(AGENT)
    world.history(250, apart=300)
    world.scrape()
    world.modus.end_run(deep, "cancelled")
    assert world.scrape()["cancelled"] == 1
    assert (
        world.asked
        == ["list_runs", "list_runs running", "list_runs awaiting_human", "get_run"] + ["list_runs"] * 3
    )
    world.scrape()
    assert "get_run" not in world.asked


def test_a_route_of_one_run_that_did_not_work_is_tried_again_later() -> None:
    world, uptime = World(single_run=False), Clock()
    world.exporter = Exporter(world.modus, None, settings(AGENT), monotonic=uptime)
    ends = [world.modus.start_run(AGENT) for _ in range(3)]
    world.history(250, apart=300)
    world.scrape()
    asked = []
    for deep in ends:
        world.modus.end_run(deep, "error")
        world.scrape()
        asked.append("get_run" in world.asked)
        world.modus.single_run = True
        uptime.advance(400)
    assert asked == [True, False, True]
    assert finished(world.agent)["error"] == 3


def test_an_open_run_that_the_platform_removed_is_given_up_and_not_counted() -> None:
    world = World()
    gone = world.modus.start_run(AGENT)
    world.history(10, apart=300)
    world.scrape()
    assert world.agent.open_starts == {"running": gone.start}
    world.clock.advance(60)
    world.modus.change(gone, hidden=True)
    world.scrape()
    world.scrape()
    assert world.agent.open_starts == {}
    assert finished(world.agent) == {"completed": 10, "error": 0, "cancelled": 0}


def test_a_change_that_the_counts_hide_is_found_by_the_check_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("exporter.runs.opens.CHECK_INTERVAL", 0.0)
    world = World()
    deep = world.modus.start_run(AGENT)
    world.history(250, apart=300)
    world.scrape()
    world.modus.fault = lambda request: _with_counts(world.modus, request, running=1)
    world.modus.end_run(deep, "error")
    assert world.scrape()["error"] == 1


def _with_counts(modus: SimulatedModus, request: Request, **counts: int) -> Answer:
    fault, modus.fault = modus.fault, None
    answer = modus.answer(request.method, request.path, request.query, request.headers)
    modus.fault = fault
    assert isinstance(answer.body, bytes)
    body = json.loads(answer.body)
    if "counts" in body:
        body["counts"] |= counts
    return Answer(answer.status, answer.headers, json.dumps(body).encode())


@pytest.mark.parametrize("fresh_tokens", [False, True])
def test_a_list_that_never_ends_marks_the_agent_unread(fresh_tokens: bool) -> None:
    world = World()
    world.history(5, apart=0.0)
    asked = 0

    def endless(request: Request) -> Answer | None:
        nonlocal asked
        if request.operation != "list_runs" or "status" in request.query:
            return None
        asked += 1
        answer = _with_counts(world.modus, request._replace(query={}))
        assert isinstance(answer.body, bytes)
        body = json.loads(answer.body) | {"nextPageToken": f"token {asked if fresh_tokens else ''}"}
        return Answer(200, {}, json.dumps(body).encode())

    world.modus.fault = endless
    world.scrape()
    assert not world.agent.up
    assert world.agent.errors == {"bad_response": 1}
    assert asked <= 20


def test_a_refused_page_token_of_an_earlier_scrape_costs_a_new_walk_and_no_run() -> None:
    world = World()
    world.history(0, apart=0)
    world.scrape()
    world.exporter.collector.reload(lambda: world.exporter.api, settings(AGENT, page_size=10, max_pages=3))  # type: ignore[arg-type]
    world.history(100, apart=0.5)
    world.clock.advance(5)
    world.scrape()
    assert world.agent.backlog
    world.modus.page_tokens = "key"  # the tokens of before are refused
    for _ in range(40):
        counted = world.scrape()
        world.clock.advance(60)
    assert not world.agent.backlog
    assert +counted == Counter(completed=100)


def test_a_run_without_times_is_counted_once() -> None:
    world = World()
    world.scrape()
    run = world.modus.start_run(AGENT)
    world.scrape()
    world.modus.end_run(run)
    world.modus.change(run, override={"startedAt": ABSENT, "endedAt": ABSENT, "durationMs": None})
    assert +world.scrape() == Counter(completed=1)
    assert +world.scrape() == Counter(completed=1)


def test_counts_of_a_timeframe_cost_one_small_request_and_no_run_when_it_fails() -> None:
    world = World()
    world.scrape()
    world.exporter.collector.reload(lambda: world.exporter.api, settings(AGENT, timeframe="last_hour"))  # type: ignore[arg-type]
    world.history(2, apart=3600)
    world.history(1, apart=60)
    world.scrape()
    sent = [(request.query["pageSize"], request.query.get("timeframe")) for request in world.modus.requests]
    assert sent == [("100", None), ("1", "last_hour")]
    assert world.agent.counts is not None
    assert world.agent.counts["completed"] == 1
    world.history(1, apart=60)
    world.modus.fault = lambda request: world.modus.error(500) if "timeframe" in request.query else None
    assert world.scrape()["completed"] == 4
    assert not world.agent.up


def test_of_many_runs_that_ended_at_once_a_walk_is_made_and_none_is_asked_for_by_itself() -> None:
    world = World()
    deep = [world.modus.start_run(AGENT) for _ in range(20)]
    world.history(150, apart=300)
    world.scrape()
    for run in deep:
        world.modus.end_run(run, "error")
    assert world.scrape()["error"] == 20
    assert "get_run" not in world.asked
    assert len(world.asked) <= 5


def test_a_deep_search_longer_than_a_scrape_allows_is_a_backlog_and_goes_on_at_the_next() -> None:
    world = World(single_run=False)
    deep = world.modus.start_run(AGENT)
    world.history(500, apart=100)
    world.exporter.collector.reload(lambda: world.exporter.api, settings(AGENT, page_size=50, max_pages=3))  # type: ignore[arg-type]
    for _ in range(10):
        world.scrape()
    assert not world.agent.backlog
    world.modus.end_run(deep, "error")
    assert world.scrape()["error"] == 0
    assert world.agent.backlog
    for _ in range(4):  # ten pages: three at once, then two beside the newest one
        world.clock.advance(60)
        counted = world.scrape()
    assert counted["error"] == 1
    assert not world.agent.backlog
    world.scrape()
    assert world.asked == ["list_runs"]


def test_when_the_route_of_one_run_knows_no_such_run_a_walk_settles_it_and_the_route_stays_in_use() -> None:
    world = World()
    first, second, third = (world.modus.start_run(AGENT) for _ in range(3))
    world.history(250, apart=300)
    world.scrape()
    world.modus.end_run(first, "error")
    assert world.scrape()["error"] == 1
    world.modus.fault = lambda request: world.modus.error(404) if request.operation == "get_run" else None
    world.modus.end_run(second, "error")
    assert world.scrape()["error"] == 2
    world.modus.fault = None
    world.modus.end_run(third, "error")
    assert world.scrape()["error"] == 3
    assert "get_run" in world.asked


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_when_the_route_of_one_run_fails_in_whatever_way_the_list_serves(status: int) -> None:
    world = World()
    deep = world.modus.start_run(AGENT)
    world.history(250, apart=300)
    world.scrape()
    world.modus.end_run(deep, "error")
    world.modus.fault = lambda request: world.modus.error(status) if request.operation == "get_run" else None
    assert world.scrape()["error"] == 1
    assert world.agent.up


def test_a_counted_run_that_a_stale_index_shows_as_running_is_neither_open_nor_counted_again() -> None:
    world = World()
    world.scrape()
    run = world.modus.start_run(AGENT)
    world.clock.advance(30)
    world.modus.end_run(run)
    assert +world.scrape() == Counter(completed=1)
    world.modus.change(run, end=float("inf"))
    assert +world.scrape() == Counter(completed=1)
    assert world.agent.open_starts == {}
    world.modus.end_run(run)
    assert +world.scrape() == Counter(completed=1)


def test_an_agent_whose_turn_comes_after_the_deadline_is_not_asked_for() -> None:
    world = World()
    reader = AgentReader(world.exporter.api, settings(AGENT).limits)  # type: ignore[arg-type]
    reading = reader.read(AGENT, Known(), Memory(), Deadline(0.0))
    assert reading.error is not None
    assert reading.error.reason == "deadline"
    assert not world.modus.requests


def test_lists_of_open_runs_that_lag_behind_the_counts_are_read_until_they_agree() -> None:
    world = World()
    deep = world.modus.start_run(AGENT)
    world.history(250, apart=300)
    world.scrape()
    query = {"status": "running"}
    stale = world.modus.answer("GET", "/api/v1/agents/7/runs", query, {"Authorization": "Bearer demo"})
    world.modus.end_run(deep, "error")
    world.modus.fault = lambda request: stale if request.query.get("status") == "running" else None
    assert world.scrape()["error"] == 0
    world.clock.advance(60)
    world.modus.fault = None
    assert world.scrape()["error"] == 1
    world.clock.advance(60)
    world.scrape()
    assert world.asked == ["list_runs"]


def test_counts_that_are_wrong_for_good_read_no_open_list_after_a_while() -> None:
    world = World()
    world.modus.fault = lambda request: _with_counts(world.modus, request, running=3)
    read = []
    for _ in range(3):
        world.history(1, apart=100)
        world.scrape()
        read.append("list_runs running" in world.asked)
    assert world.agent.up
    assert read == [True, True, False]
