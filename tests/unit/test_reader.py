"""What a scrape costs, and how runs that end out of sight are found."""

import json
import weakref
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from exporter.deadline import Deadline
from exporter.demo.simulator import Answer, Request, SimulatedModus
from exporter.demo.wire import ABSENT, iso
from exporter.modus.errors import ApiError
from exporter.runs.account import NOT_LISTED
from exporter.runs.reader import AgentReader, Known, Memory
from tests.simulation import DAY, Clock, Exporter, finished, settings

AGENT = 7
HOUR = 3600.0


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
    world.history(450, apart=300)  # more than a page beyond the lookback
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


def test_more_open_runs_than_a_page_holds_and_nothing_else_cost_nothing_once_they_are_known() -> None:
    world = World()
    for _ in range(150):
        world.modus.start_run(AGENT, waits_from=0.0)
    for _ in range(6):
        world.clock.advance(60)
        world.scrape()
    assert world.asked == ["list_runs"]
    assert world.modus.requests[0].query["pageSize"] == "5"


@pytest.mark.parametrize("counts", ["true", "missing"])
def test_what_ends_below_open_runs_of_before_the_lookback_is_found_before_any_order_is_known(
    tmp_path: Path, counts: str
) -> None:
    world = Recorded(tmp_path, page_size=10, order="close")
    for n in range(25):
        world.modus.start_run(AGENT, at=world.clock() - 3 * DAY + n, waits_from=0.0)
    if counts == "missing":
        world.modus.counts_fault = lambda counts: None
    world.scrapes(10)
    world.history(1, apart=60)
    assert world.scrapes(1 if counts == "true" else 70) == Counter(completed=1)
    world.history(4, apart=60)
    assert world.scrapes(1) == Counter(completed=5)  # now it is known
    world.exporter.close()


def test_what_becomes_of_open_runs_on_the_newest_page_costs_nothing() -> None:
    world = World()
    world.history(20, apart=60)
    waits, ends = world.modus.start_run(AGENT), world.modus.start_run(AGENT)
    world.scrape()
    world.modus.change(waits, waits_from=world.clock())
    world.scrape()
    assert world.asked == ["list_runs"]
    world.modus.end_run(ends)
    world.scrape()
    assert world.asked == ["list_runs"]
    assert (world.agent.open_starts or {}).keys() == {"awaiting_human"}


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


def test_an_open_run_that_names_no_start_is_looked_for_in_the_whole_lookback() -> None:
    world = World(single_run=False)
    deep = world.modus.start_run(AGENT, override={"startedAt": None})
    world.history(250, apart=300)
    world.scrape()
    world.modus.end_run(deep, "cancelled")
    assert world.scrape()["cancelled"] == 1


def test_a_deep_search_comes_to_its_end_though_page_tokens_die_between_two_scrapes(tmp_path: Path) -> None:
    limits = {"page_size": 10, "max_pages": 3, "reconcile_interval": 0.0}
    world = Recorded(tmp_path, single_run=False, token_life=50.0, **limits)
    deep = world.modus.start_run(AGENT)
    world.history(250, apart=300)
    world.scrapes(40)
    assert not world.agent.backlog
    world.modus.end_run(deep, "error")
    pages = []
    while world.scrapes(1)["error"] == 0:
        pages.append(world.asked.count("list_runs"))
        assert len(pages) < 20
    assert max(later - earlier for earlier, later in pairwise(pages)) <= 3  # by so many it gets further
    world.exporter.close()


def test_after_a_walk_for_one_run_the_end_of_another_is_noticed_at_once() -> None:
    world = World(single_run=False)
    first, second = world.modus.start_run(AGENT), world.modus.start_run(AGENT)
    world.history(250, apart=300)
    world.scrape()
    world.modus.end_run(first, "error")
    world.scrape()
    world.scrape()
    world.modus.end_run(second, "error")
    assert world.scrape()["error"] == 2


def test_an_open_run_from_before_the_lookback_that_cannot_be_read_is_missed() -> None:
    world = World()
    world.modus.start_run(AGENT, at=world.clock() - 2 * DAY, raw=b'{"id": "broken"}')
    world.history(450, apart=300)
    world.scrape()
    assert world.agent.totals.missed["malformed"] == 1


def test_of_a_quiet_agent_the_open_lists_are_not_read_again(tmp_path: Path) -> None:
    world = Recorded(tmp_path, reconcile_interval=0.0)
    world.history(20, apart=60)
    world.modus.start_run(AGENT)
    world.scrapes(2)
    for _ in range(60):
        world.scrapes(1)
        assert world.asked == ["list_runs"]
    world.exporter.close()


def test_an_open_run_that_the_counts_name_long_before_the_lists_is_found(tmp_path: Path) -> None:
    world = Recorded(tmp_path, reconcile_interval=0.0, page_size=10, counts_lag=-3600.0)
    world.history(30, apart=60)
    late = world.modus.start_run(AGENT, at=world.clock() - 1200, visible_from=world.clock() + 1500)
    world.scrapes(40)
    assert world.agent.open_starts == {"running": late.start}
    world.exporter.close()


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


def test_an_open_run_that_the_platform_removed_is_given_up_and_counted_as_missed() -> None:
    world, uptime = World(), Clock()
    world.exporter = Exporter(world.modus, None, settings(AGENT), monotonic=uptime)
    gone = world.modus.start_run(AGENT)
    world.history(10, apart=300)
    world.scrape()
    world.modus.change(gone, hidden=True)
    for passed in (60, 700, 700):
        assert world.agent.open_starts == {"running": gone.start}  # replicas may lag, and pages shift
        world.clock.advance(passed)
        uptime.advance(passed)
        world.scrape()
    assert world.agent.open_starts == {}
    assert finished(world.agent) == {"completed": 10, "error": 0, "cancelled": 0}
    assert world.agent.totals.missed["vanished"] == 1


def test_an_open_run_that_is_not_where_its_start_says_is_found_and_not_missed(tmp_path: Path) -> None:
    world = Recorded(tmp_path, single_run=False, page_size=10, reconcile_interval=0.0)
    world.history(60, apart=60)
    odd = world.modus.start_run(AGENT, override={"startedAt": iso(world.clock() + 7200)})
    world.history(60, apart=300)
    world.scrapes(7, apart=90)  # so long ago that it might be given up was it seen when it ends
    world.modus.end_run(odd, "error")
    assert world.scrapes(30, apart=90)["error"] == 1
    assert world.missed == {}
    world.exporter.close()


@pytest.mark.parametrize("status", [400, 403, 404, 500])
@pytest.mark.parametrize("route", [True, False])
def test_when_the_lists_of_open_runs_fail_for_good_the_agent_is_counted_all_the_same(
    tmp_path: Path, status: int, route: bool
) -> None:
    world = Recorded(tmp_path, filtered_lists=status, single_run=route, page_size=10)
    world.history(5, apart=30)
    world.scrapes(5)
    deep = [world.modus.start_run(AGENT) for _ in range(7)]
    world.scrapes(1)
    for _ in range(3):
        world.history(10, apart=1)
        world.scrapes(5)
    for run in deep:
        world.modus.end_run(run, "error")
    assert world.scrapes(15) == Counter(completed=35, error=7)
    world.modus.start_run(AGENT, lasts=1.0, visible_from=world.clock() + 900)
    for _ in range(30):
        world.history(1, apart=1)
        world.scrapes(1)
    assert world.scrapes(120) == Counter(completed=66, error=7)
    assert world.missed == {}
    assert not world.agent.up
    assert world.agent.last_reconciled is not None
    assert world.clock() - world.agent.last_reconciled < 2 * HOUR
    world.modus.filtered_lists = True
    world.scrapes(3)
    assert world.agent.up
    assert world.agent.open_starts == {}
    world.exporter.close()


def test_an_agent_whose_lists_of_open_runs_fail_is_down_in_every_scrape(tmp_path: Path) -> None:
    world = Recorded(tmp_path, filtered_lists=500, single_run=False, page_size=10, max_pages=1)
    world.modus.start_run(AGENT)
    world.history(60, apart=60)
    world.scrapes(10)
    for _ in range(40):
        world.scrapes(1)
        assert not world.agent.up
    world.exporter.close()


@pytest.mark.parametrize("burst", [8, 9, 10])
def test_an_open_run_is_not_given_up_for_one_search_of_pages_that_shift_on_replicas_that_lag(
    tmp_path: Path, burst: int
) -> None:
    limits = {"page_size": 3, "max_pages": 5, "lookback": HOUR}
    world = Recorded(tmp_path, single_run=403, replica_lags=(5.0, 0.0, 110.0), **limits)
    waiting = world.modus.start_run(AGENT, at=world.clock() - 1.5 * DAY, waits_from=0.0)
    for ago in (600, 570):
        world.modus.start_run(AGENT, at=world.clock() - ago, lasts=20.0)
    world.scrapes(3, apart=1)
    world.modus.end_run(waiting, "cancelled")
    world.clock.advance(2 * HOUR)  # nobody scrapes
    world.history(burst, apart=10)
    assert world.scrapes(60) == Counter(completed=burst + 2, cancelled=1)
    assert world.missed == {}
    world.exporter.close()


def test_an_open_run_without_a_start_is_not_given_up_while_what_holds_it_is_unread(tmp_path: Path) -> None:
    world = Recorded(tmp_path, single_run=False, lookback=HOUR, page_size=3, max_pages=2)
    world.history(5, apart=60)
    world.scrapes(2)
    startless: dict[str, object] = {"startedAt": ABSENT}
    run = world.modus.start_run(AGENT, override=startless)
    world.scrapes(1)
    world.exporter.close()
    timeless = startless | {"endedAt": ABSENT, "durationMs": ABSENT}
    world.modus.change(run, end=world.clock() + 60, override=timeless)
    world.history(40, apart=900)
    world.start()
    assert world.scrapes(100) == Counter(completed=46)
    assert world.missed == {}
    world.exporter.close()


def test_an_open_run_from_before_the_lookback_that_vanished_is_given_up(tmp_path: Path) -> None:
    world = Recorded(tmp_path, single_run=False, page_size=10, reconcile_interval=0.0, lookback=3600.0)
    gone = world.modus.start_run(AGENT)
    world.history(60, apart=300)
    world.scrapes(4)
    world.modus.change(gone, hidden=True)
    world.scrapes(30)
    assert world.missed == {"vanished": 1}
    world.exporter.close()


def test_an_open_run_with_an_id_too_long_to_keep_is_found_by_the_list() -> None:
    world = World()
    deep = world.modus.start_run(AGENT, workflow_id="w" * 1000)
    world.history(250, apart=300)
    world.scrape()
    world.modus.end_run(deep, "error")
    assert world.scrape()["error"] == 1
    assert all(operation.startswith("list_runs") for operation in world.asked)


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


def test_also_after_a_restart_a_change_that_the_counts_hide_is_found(tmp_path: Path) -> None:
    world = Recorded(tmp_path, reconcile_interval=0.0)
    deep = world.modus.start_run(AGENT)
    world.history(250, apart=300)
    world.scrapes(2)
    world.restart()
    world.modus.end_run(deep, "error")
    world.modus.counts_fault = lambda counts: counts | {"running": 1, "error": 0}
    assert world.scrapes(15)["error"] == 1
    world.exporter.close()


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
    assert asked <= 20
    world.scrape()
    assert world.agent.errors == {"bad_response": 2}


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
        assert set(world.asked) == {"list_runs"}  # the open lists are as they were at its beginning
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


def test_another_run_than_the_one_that_was_asked_for_settles_nothing() -> None:
    world = World()
    deep = world.modus.start_run(AGENT)
    world.history(250, apart=300)
    world.scrape()
    world.modus.end_run(deep, "error")
    other = world.modus.runs(AGENT)[0]
    assert other != deep
    path = f"/api/v1/agents/{AGENT}/runs/{other.workflow_id}"
    answer = world.modus.answer("GET", path, {}, {"Authorization": "Bearer demo"})
    world.modus.fault = lambda request: answer if request.operation == "get_run" else None
    assert world.scrape()["error"] == 1


def test_a_route_of_one_run_that_begins_to_fail_is_left_alone_for_a_while() -> None:
    world = World()
    ends = [world.modus.start_run(AGENT) for _ in range(3)]
    world.history(250, apart=300)
    world.scrape()
    asked = []
    for deep in ends:
        world.modus.end_run(deep, "error")
        world.scrape()
        asked.append("get_run" in world.asked)
        world.modus.fault = lambda request: world.modus.error(500) if request.operation == "get_run" else None
    assert asked == [True, True, False]
    assert finished(world.agent)["error"] == 3


def test_a_scrape_that_ends_while_one_run_is_asked_for_says_nothing_about_its_route() -> None:
    world, uptime = World(), Clock()
    world.exporter = Exporter(world.modus, None, settings(AGENT), monotonic=uptime)
    deep = world.modus.start_run(AGENT)
    world.history(250, apart=300)
    world.scrape()
    world.modus.end_run(deep, "error")

    def too_late(request: Request) -> None:
        if request.operation == "get_run":
            uptime.advance(100)
            raise ApiError("deadline", "no whole answer within the scrape's deadline")

    world.modus.fault = too_late
    world.scrape()
    world.modus.fault = None
    assert world.scrape()["error"] == 1
    assert "get_run" in world.asked


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
    assert world.asked == ["list_runs"]  # its counts are as stale: nothing to look into
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


class Recorded(World):
    """A world whose exporter has a state file, an uptime that goes with the clock, and reconciles."""

    def __init__(self, path: Path, reconcile_interval: float = 3600.0, **more: object) -> None:
        limits = {name: more.pop(name) for name in ("page_size", "max_pages", "lookback") if name in more}
        super().__init__(**more)
        self.path = str(path / "state.db")
        self.settings = settings(AGENT, reconcile_interval=reconcile_interval, **limits)
        self.offset = 0.0  # of the API's clock
        self.modus.clock = lambda: self.clock.now + self.offset
        self.start()

    def start(self) -> None:
        self.exporter = Exporter(self.modus, self.path, self.settings, monotonic=self.clock, clock=self.clock)

    def restart(self) -> None:
        self.exporter.close()
        self.start()

    def scrapes(self, number: int, apart: float = 60.0) -> Counter[str]:
        for _ in range(number):
            self.clock.advance(apart)
            counted = self.scrape()
        return +counted

    @property
    def missed(self) -> dict[str, int]:
        assert self.agent.totals is not None
        return {reason: number for reason, number in self.agent.totals.missed.items() if number}


def test_c3_two_days_down_with_a_lookback_of_one_and_a_run_an_hour_lose_nothing(tmp_path: Path) -> None:
    world = Recorded(tmp_path)
    world.scrapes(2)
    world.exporter.close()
    world.history(47, apart=3600)
    world.start()
    assert world.scrapes(3) == Counter(completed=47)
    world.exporter.close()


@pytest.mark.parametrize("pause", ["restart", "no scrape"])
def test_c3_an_agent_without_a_run_when_it_was_read_last_loses_nothing_either(
    tmp_path: Path, pause: str
) -> None:
    world = Recorded(tmp_path, page_size=10, reconcile_interval=0.0)
    world.scrapes(20)
    if pause == "restart":
        world.exporter.close()
    world.history(47, apart=3600)
    if pause == "restart":
        world.start()
    assert world.scrapes(3) == Counter(completed=47)
    assert world.missed == {}
    world.exporter.close()


@pytest.mark.parametrize("counts", ["true", "missing"])
def test_c4_a_run_that_the_index_shows_late_below_the_first_page_is_counted(
    tmp_path: Path, counts: str
) -> None:
    world = Recorded(tmp_path, page_size=10)
    if counts == "missing":
        world.modus.counts_fault = lambda counts: None
    world.scrapes(2)
    world.modus.start_run(AGENT, lasts=1.0, visible_from=world.clock() + 400)
    for _ in range(20):
        world.history(1, apart=1)
        world.scrapes(1, apart=30)
    assert world.scrapes(3 if counts == "true" else 70) == Counter(completed=21)
    assert world.missed == {}
    world.exporter.close()


def test_c4_a_late_run_of_before_a_downtime_longer_than_the_lookback_is_counted(tmp_path: Path) -> None:
    world = Recorded(tmp_path)
    world.history(3, apart=60)
    world.scrapes(2)
    world.modus.start_run(AGENT, at=world.clock() - 200, lasts=1.0, visible_from=world.clock() + 300)
    world.exporter.close()
    world.history(60, apart=3600)
    world.start()
    assert world.scrapes(10) == Counter(completed=64)
    world.exporter.close()


@pytest.mark.parametrize("step", [-600.0, -3600.0, 3600.0])
def test_c5_a_clock_of_the_api_that_steps_loses_nothing(tmp_path: Path, step: float) -> None:
    world = Recorded(tmp_path, reconcile_interval=0.0)
    world.modus.counts_fault = lambda counts: None  # nothing but the reading itself finds a run
    world.scrapes(2)
    for n in range(150):
        if n == 30:
            world.offset = step
        world.modus.start_run(AGENT, lasts=5.0)
        world.scrapes(1, apart=60)
    assert world.scrapes(2) == Counter(completed=150)
    world.exporter.close()


def test_c5_after_a_step_back_a_pause_in_the_scrapes_loses_nothing(tmp_path: Path) -> None:
    world = Recorded(tmp_path, reconcile_interval=0.0, page_size=10)
    world.modus.counts_fault = lambda counts: None
    world.history(5, apart=60)
    world.scrapes(2)
    world.offset = -3600.0
    world.scrapes(2)
    world.history(20, apart=60)
    assert world.scrapes(2) == Counter(completed=25)
    world.exporter.close()


@pytest.mark.parametrize("page_size", [3, 30, 100])  # of 40 runs, half of them older than the last known
@pytest.mark.parametrize("step", [-HOUR, -5 * HOUR])
@pytest.mark.parametrize("restart", [True, False])
def test_c5_after_a_step_back_a_downtime_longer_than_the_step_and_the_lookback_loses_nothing(
    tmp_path: Path, step: float, page_size: int, restart: bool
) -> None:
    limits = {"page_size": page_size, "max_pages": 2, "reconcile_interval": 0.0, "lookback": 6 * HOUR}
    world = Recorded(tmp_path, **limits)
    world.modus.counts_fault = lambda counts: None
    world.scrapes(2)
    world.history(25, apart=1)
    world.scrapes(1)
    world.offset = step
    world.history(40, apart=900)
    if restart:
        world.restart()
    assert world.scrapes(40) == Counter(completed=65)
    assert world.missed == {}
    world.exporter.close()


def test_c5_after_a_step_back_and_a_downtime_what_names_an_old_start_counts_by_its_end(
    tmp_path: Path,
) -> None:
    world = Recorded(tmp_path, reconcile_interval=0.0)
    world.scrapes(2)
    world.offset = -HOUR
    world.modus.start_run(AGENT, lasts=5.0, override={"startedAt": iso(world.clock() - 2 * DAY)})
    world.history(3, apart=HOUR)
    assert world.scrapes(3) == Counter(completed=4)
    world.exporter.close()


def test_c5_a_step_back_during_a_search_gives_up_no_run_that_started_after_the_step(tmp_path: Path) -> None:
    limits = {"page_size": 10, "max_pages": 3, "reconcile_interval": 0.0, "lookback": 6 * HOUR}
    world = Recorded(tmp_path, single_run=False, **limits)
    world.scrapes(2)
    deep = world.modus.start_run(AGENT)
    world.history(250, apart=300)
    world.scrapes(40)
    world.modus.change(deep, hidden=True)
    world.scrapes(1)
    assert world.agent.backlog  # it has begun
    world.offset = -HOUR
    later = world.modus.start_run(AGENT)
    world.scrapes(1, apart=5)
    world.history(12, apart=1)  # it is not on the first page any more, and no open list shows it
    world.modus.fault = lambda request: world.modus.error(500) if "status" in request.query else None
    world.scrapes(20, apart=90)
    assert world.missed == {}
    world.modus.fault = None
    world.scrapes(90, apart=90)
    assert world.missed == {"vanished": 1}
    world.modus.end_run(later)
    assert world.scrapes(20) == Counter(completed=263)
    world.exporter.close()


def test_c5_a_comparison_that_began_before_a_step_back_is_not_one_of_the_time_to_come(tmp_path: Path) -> None:
    world = Recorded(tmp_path, page_size=10, max_pages=5)
    world.history(200, apart=60)
    world.scrapes(30)
    world.scrapes(3, apart=HOUR)  # it is due, and has begun
    world.offset = -4 * HOUR
    believed = False  # one answer moves nothing
    for _ in range(150):
        world.scrapes(1)
        reconciled = world.exporter.ledger.agents()[AGENT].last_reconciled
        assert reconciled is not None
        assert reconciled <= world.modus.clock() or not believed
        believed = True
    world.exporter.close()


def test_c6_runs_with_odd_starts_at_the_end_of_a_page_end_no_walk(tmp_path: Path) -> None:
    world = Recorded(tmp_path, page_size=10)
    world.scrapes(2)
    for n in range(60):
        run = world.modus.start_run(AGENT, lasts=1.0)
        if n % 10 == 0:
            world.modus.change(run, override={"startedAt": iso(world.clock() - 2 * DAY)})
        world.clock.advance(1)
    assert world.scrapes(3) == Counter(completed=60)
    world.exporter.close()


def test_c7_a_list_in_the_order_of_ends_with_open_runs_first_is_counted_whole(tmp_path: Path) -> None:
    world = Recorded(tmp_path, page_size=10, order="close")
    world.scrapes(2)
    for n in range(196):
        world.modus.start_run(AGENT, lasts=(5.0, 400.0, 3000.0)[n % 3])
        world.scrapes(1, apart=30)
    assert world.scrapes(60) == Counter(completed=196)
    world.exporter.close()


@pytest.mark.parametrize("end", ["2020-01-01T00:00:00Z", "9999-12-31T00:00:00Z"])
@pytest.mark.parametrize("counts", ["true", "missing"])
def test_c7_an_odd_end_in_the_order_of_ends_makes_it_no_order_of_starts(
    tmp_path: Path, counts: str, end: str
) -> None:
    world = Recorded(tmp_path, page_size=10, order="close")
    if counts == "missing":
        world.modus.counts_fault = lambda counts: None
    for n in range(12):  # more than a page on top of what ends
        world.modus.start_run(AGENT, at=world.clock() - 30 * HOUR + n, waits_from=0.0)
    for _ in range(5):
        world.history(1, apart=60)
        world.scrapes(1)
    world.modus.start_run(AGENT, lasts=1.0, override={"endedAt": end})
    for _ in range(60):
        world.scrapes(1, apart=300)
        world.history(1, apart=1)
    assert world.scrapes(10) == Counter(completed=66)
    world.exporter.close()


def test_c7_in_the_order_of_ends_a_run_that_is_looked_for_for_ever_puts_no_backlog_off(
    tmp_path: Path,
) -> None:
    world = Recorded(tmp_path, order="close", single_run=False, page_size=10, max_pages=1)
    paused = world.modus.start_run(AGENT)
    for _ in range(25):  # more than two pages on top of what ends
        world.modus.start_run(AGENT)
    world.history(36, apart=300)
    world.scrapes(20)
    no_end: dict[str, object] = {"endedAt": ABSENT, "durationMs": ABSENT}
    world.modus.change(paused, outcome="paused", end=world.clock(), override=no_end)
    assert world.scrapes(120, apart=120) == Counter(completed=36)
    assert world.agent.last_reconciled is not None
    assert world.clock() - world.agent.last_reconciled < 2 * HOUR
    world.exporter.close()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422, 500, 503])
def test_c8_a_page_token_kept_over_a_restart_and_refused_costs_no_run(tmp_path: Path, status: int) -> None:
    world = Recorded(tmp_path, page_size=10, max_pages=2, token_refusal=status)
    world.scrapes(2)
    world.history(80, apart=0.5)
    world.scrapes(1)
    assert world.agent.backlog
    world.modus.forget_tokens()
    world.restart()
    assert world.scrapes(12) == Counter(completed=80)
    assert not world.agent.backlog
    world.exporter.close()


def test_c8_page_tokens_that_die_between_two_scrapes_let_every_walk_end(tmp_path: Path) -> None:
    world = Recorded(tmp_path, page_size=5, max_pages=2, token_life=50.0)
    world.history(150, apart=30)
    world.scrapes(80)
    assert not world.agent.backlog
    reconciled = world.exporter.ledger.agents()[AGENT].last_reconciled
    world.scrapes(120)
    assert (world.exporter.ledger.agents()[AGENT].last_reconciled or 0.0) > (reconciled or 0.0)
    world.exporter.close()


@pytest.mark.parametrize("page_size", [3, 100])
def test_c9_items_that_cannot_be_read_cost_themselves_and_are_missed_once(
    tmp_path: Path, page_size: int
) -> None:
    world = Recorded(tmp_path, page_size=page_size)
    world.scrapes(2)
    for n in range(40):
        world.modus.start_run(AGENT, lasts=1.0, raw=b'{"id": "broken %d"}' % n)
    null = world.modus.start_run(AGENT, lasts=1.0, override={"agentName": None})
    world.history(2, apart=1)
    assert world.scrapes(5) == Counter(completed=3)
    assert null.listed == "completed"
    assert world.missed == {"malformed": 40}
    assert world.scrapes(40, apart=3700) == Counter(completed=3)  # long after other ids are forgotten
    assert world.missed == {"malformed": 40}
    world.exporter.close()


def test_c9_a_page_of_nothing_but_what_could_not_be_read_before_is_no_reason_to_walk_on(
    tmp_path: Path,
) -> None:
    world = Recorded(tmp_path, page_size=10)
    for n in range(60):
        world.modus.start_run(AGENT, lasts=1.0, raw=b'{"id": "broken %d"}' % n)
    world.scrapes(3)
    assert world.missed == {"malformed": 60}
    world.scrapes(1)
    assert world.asked == ["list_runs"]
    world.scrapes(100)
    world.history(25, apart=1)
    assert world.scrapes(1) == Counter(completed=25)
    reconciled = world.exporter.ledger.agents()[AGENT].last_reconciled
    assert reconciled is not None
    assert world.clock() - reconciled < 2 * 3600
    world.exporter.close()


def test_c9_in_the_order_of_ends_runs_that_end_below_open_ones_that_cannot_be_read_are_counted(
    tmp_path: Path,
) -> None:
    world = Recorded(tmp_path, page_size=10, order="close")
    for n in range(6):
        world.modus.start_run(AGENT, lasts=(5.0, 900.0)[n % 2])
        world.clock.advance(400)
    for n in range(12):
        world.modus.start_run(AGENT, raw=b'{"id": "broken %d"}' % n)
    world.scrapes(10)
    world.modus.counts_fault = lambda counts: None  # no checksum to find them by
    for _ in range(5):
        world.modus.start_run(AGENT, lasts=30.0)
        world.clock.advance(60)
    assert world.scrapes(2) == Counter(completed=11)
    world.exporter.close()


def test_c10_counts_that_are_no_numbers_touch_no_counting(tmp_path: Path) -> None:
    world = Recorded(tmp_path)
    world.modus.counts_fault = lambda counts: counts | {"completed": "12", "error": 3.0, "running": None}
    world.scrapes(2)
    world.history(5, apart=10)
    assert world.scrapes(2) == Counter(completed=5)
    assert world.agent.up
    assert world.agent.counts is not None
    assert world.agent.counts["error"] == 3
    assert "completed" not in world.agent.counts
    world.exporter.close()


def test_c13_a_status_nobody_documented_counts_with_an_end_and_is_open_without(tmp_path: Path) -> None:
    world = Recorded(tmp_path)
    world.scrapes(2)
    world.modus.start_run(AGENT, lasts=5.0, outcome="timed_out")
    no_end = {"endedAt": ABSENT, "durationMs": ABSENT}
    world.modus.start_run(AGENT, lasts=5.0, outcome="paused", override=no_end)
    assert world.scrapes(3) == Counter(timed_out=1)
    requests = []
    for _ in range(120):
        world.scrapes(1)
        requests.append(len(world.asked))
    assert sum(requests) < 1.6 * len(requests)
    world.exporter.close()


def test_c14_a_backlog_and_what_comes_new_both_progress(tmp_path: Path) -> None:
    world = Recorded(tmp_path, page_size=25, max_pages=6)
    world.history(1500, apart=0.5)
    for _ in range(30):
        world.history(60, apart=0.5)
        world.scrapes(1, apart=30)
    assert world.scrapes(5) == Counter(completed=1500 + 30 * 60)
    world.exporter.close()


def test_c15_of_more_waiting_runs_than_a_scrape_can_list_the_oldest_is_true_or_unknown(
    tmp_path: Path,
) -> None:
    world = Recorded(tmp_path, page_size=50, max_pages=4)
    first = world.clock() - 90 * 3600
    for n in range(500):
        world.modus.start_run(AGENT, at=first + 600 * n, waits_from=0.0)
    shown, pages = [], []
    for _ in range(12):
        world.scrapes(1)
        shown.append(world.agent.open_starts)
        pages.append(world.asked.count("list_runs awaiting_human"))
    told = [starts for starts in shown if starts is not None]
    assert told
    assert {starts["awaiting_human"] for starts in told} == {first}
    assert sum(pages) == 500 / 50  # it goes on where the scrape before had stopped
    world.modus.end_run(world.modus.runs(AGENT)[0])
    while sum(pages) < 2 * 500 / 50:
        world.scrapes(1)
        pages.append(world.asked.count("list_runs awaiting_human"))
    assert max(pages) <= 4
    world.exporter.close()


def test_a_run_without_times_is_not_counted_again_when_other_ids_are_forgotten(tmp_path: Path) -> None:
    world = Recorded(tmp_path)
    world.scrapes(2)
    times = {"startedAt": ABSENT, "endedAt": ABSENT, "durationMs": ABSENT}
    world.modus.start_run(AGENT, lasts=1.0, override=times)
    assert world.scrapes(60, apart=3700) == Counter(completed=1)
    world.exporter.close()


def test_replicas_that_disagree_are_no_reason_to_count_anything_as_missed(tmp_path: Path) -> None:
    world = Recorded(tmp_path, replica_lags=(0.0, 110.0, 30.0))
    for n in range(120):
        world.modus.start_run(AGENT, lasts=5.0)
        world.scrapes(1)
        if n % 25 == 24:
            world.restart()
    assert world.scrapes(30) == Counter(completed=120)
    assert world.missed == {}
    world.exporter.close()


def test_runs_that_the_counts_name_and_the_list_never_shows_are_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = Recorded(tmp_path)
    world.history(5, apart=60)
    world.scrapes(12)  # until then a count that lags might be meant
    world.modus.counts_fault = lambda counts: counts | {"all_executions": counts["all_executions"] + 2}
    world.scrapes(30)
    assert world.missed == {"unreachable": 2}
    lines = [line.fields for line in caplog.records if line.getMessage() == NOT_LISTED]  # type: ignore[attr-defined]
    assert lines == [{"agent_id": AGENT, "number": 2}]
    world.exporter.close()


def test_a_reading_cut_short_after_its_first_page_makes_nothing_missed(tmp_path: Path) -> None:
    world = Recorded(tmp_path, page_size=10)
    world.scrapes(2)
    world.history(15, apart=1)
    world.modus.fault = lambda request: world.modus.error(500) if "pageToken" in request.query else None
    world.scrapes(1)
    world.modus.fault = None
    assert world.scrapes(40) == Counter(completed=15)
    assert world.missed == {}
    world.exporter.close()


def test_a_reading_cut_short_after_all_its_pages_makes_nothing_missed(tmp_path: Path) -> None:
    world = Recorded(tmp_path, page_size=100)
    deep = world.modus.start_run(AGENT)
    world.history(150, apart=60)
    world.scrapes(15)
    world.modus.end_run(deep, "error")
    world.history(5, apart=1)
    world.modus.fault = lambda request: world.modus.error(500) if "status" in request.query else None
    world.scrapes(1)
    assert not world.agent.up
    world.modus.fault = None
    assert world.scrapes(40) == Counter(completed=155, error=1)
    assert world.missed == {}
    world.exporter.close()


def test_a_search_over_several_scrapes_gives_nothing_up_before_its_end(tmp_path: Path) -> None:
    limits = {"page_size": 10, "max_pages": 3, "reconcile_interval": 0.0, "lookback": 3600.0}
    world = Recorded(tmp_path, single_run=False, **limits)
    deep = world.modus.start_run(AGENT)
    world.history(250, apart=60)
    world.scrapes(20, apart=90)
    while "list_runs running" not in world.asked:
        world.scrapes(1, apart=90)
    world.scrapes(6, apart=90)  # so long ago that it might be given up was it seen when it ends
    world.modus.end_run(deep, "error")
    assert world.scrapes(30, apart=90)["error"] == 1
    assert world.missed == {}
    world.exporter.close()


@pytest.mark.parametrize(
    ("error", "reason"), [(ApiError("deadline", "over"), None), (KeyError("x"), "internal")]
)
def test_what_was_read_before_the_time_was_over_or_a_mistake_of_ours_counts(
    error: Exception, reason: str | None
) -> None:
    world = World()
    world.history(30, apart=60)
    left = iter([False, True])

    def fail() -> None:
        if next(left, False):
            raise error

    world.exporter.api.before = fail
    reader = AgentReader(world.exporter.api, settings(AGENT, page_size=10).limits)  # type: ignore[arg-type]
    reading = reader.read(AGENT, Known(), Memory(), Deadline(60))
    assert len(reading.runs) == 10
    assert (reading.error and reading.error.reason) == reason


def test_a_late_run_that_a_comparison_found_is_counted_and_not_missed(tmp_path: Path) -> None:
    world = Recorded(tmp_path, page_size=10)
    world.scrapes(2)
    world.modus.start_run(AGENT, lasts=1.0, visible_from=world.clock() + 400)
    world.history(20, apart=15)
    world.scrapes(1, apart=1)
    assert world.scrapes(60) == Counter(completed=21)
    assert world.missed == {}
    world.exporter.close()


def test_a_run_that_was_counted_before_a_restart_and_is_in_the_count_afterwards_only_is_not_missed(
    tmp_path: Path,
) -> None:
    world = Recorded(tmp_path)
    world.history(5, apart=60)
    world.scrapes(2)
    world.modus.counts_fault = lambda counts: counts | {"all_executions": counts["all_executions"] - 1}
    world.restart()
    world.scrapes(1)
    world.modus.counts_fault = lambda counts: counts
    assert world.scrapes(40) == Counter(completed=5)
    assert world.agent.up
    assert world.missed == {}
    world.exporter.close()


def test_a_late_run_is_looked_for_at_once_though_another_took_long_to_be_found(tmp_path: Path) -> None:
    world = Recorded(tmp_path, page_size=10)
    world.history(30, apart=60)
    world.scrapes(3)
    world.modus.counts_fault = lambda counts: counts | {"all_executions": counts["all_executions"] + 1}
    assert world.scrapes(2, apart=10) == Counter(completed=30)  # the count is ahead of the list
    world.modus.counts_fault = lambda counts: counts
    world.modus.start_run(AGENT, lasts=1.0)
    assert world.scrapes(1, apart=10) == Counter(completed=31)
    world.modus.start_run(AGENT, at=world.clock() - 1200, lasts=1.0)
    assert world.scrapes(1, apart=10) == Counter(completed=32)
    world.exporter.close()


def test_a_reading_that_is_thrown_away_leaves_no_trace() -> None:
    world = World()
    world.history(30, apart=60)
    reader, memory = AgentReader(world.exporter.api, settings(AGENT).limits), Memory()  # type: ignore[arg-type]
    reading = reader.read(AGENT, Known(), memory, Deadline(60))
    assert memory == Memory()
    assert reading.memory != memory


class Body:
    """An answer's."""


class Broken:
    """Its answers are of no use."""

    body: "weakref.ref[Body]"

    def runs(self, agent_id: int, **_: object) -> None:
        body = Body()
        self.body = weakref.ref(body)
        raise ApiError("bad_response", "no JSON")


def test_an_error_that_is_kept_keeps_no_answer_in_memory() -> None:
    api = Broken()
    reader = AgentReader(api, settings(AGENT).limits)  # type: ignore[arg-type]
    reading = reader.read(AGENT, Known(), Memory(), Deadline())
    assert reading.error
    assert api.body() is None
