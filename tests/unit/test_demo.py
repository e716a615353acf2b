"""The simulated Modus API: the lives of its agents, its lists and pages, its errors, its server."""

import http.client
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import pytest

from exporter.demo.fleet import FLEET, HOUR, MINUTE
from exporter.demo.index import DAY
from exporter.demo.simulator import Answer, SimulatedModus
from exporter.demo.wire import ABSENT, iso
from tests.e2e.harness import free_port

BORN = 1_790_000_000.0


class Clock:
    def __init__(self):
        self.now = BORN

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def api(clock):
    """An API with one agent, 7, and no runs."""
    api = SimulatedModus(clock=clock, fleet={})
    api.add_agent(7, "Scripted")
    return api


@pytest.fixture
def fleet(clock):
    return SimulatedModus(clock=clock)


def get(api, path, authorization="Bearer demo", method="GET", **query):
    parameters = {name: str(value) for name, value in query.items()}
    answer = api.answer(method, f"/api/v1{path}", parameters, {"Authorization": authorization})
    return answer.status, answer.headers, json.loads(answer.body)


def page(api, agent_id=7, **query):
    status, _, body = get(api, f"/agents/{agent_id}/runs", **query)
    assert status == 200, body
    return body


def walk(api, path, **query):
    """Every item of every page."""
    items, token = [], {}
    while True:
        _, _, body = get(api, path, **query, **token)
        items += body.get("runs", body.get("agents"))
        if body["nextPageToken"] is None:
            return items
        token = {"pageToken": body["nextPageToken"]}


def runs_of(api, agent_id, **query):
    return walk(api, f"/agents/{agent_id}/runs", pageSize=100, **query)


def instant(text):
    return datetime.fromisoformat(text).timestamp()


# The demo fleet


def test_the_same_seed_and_instants_give_the_same_runs_however_often_they_are_asked_for(fleet, clock):
    twin = SimulatedModus(clock=clock)
    for _ in range(60):
        clock.now += MINUTE
        for agent_id in FLEET:
            page(fleet, agent_id)
    for agent_id in FLEET:
        assert runs_of(fleet, agent_id) == runs_of(twin, agent_id)


def test_another_seed_gives_other_runs(fleet, clock):
    other = SimulatedModus(clock=clock, seed=2)
    assert {run["id"] for run in runs_of(fleet, 101)}.isdisjoint(run["id"] for run in runs_of(other, 101))


def test_a_day_of_history_is_there_at_the_start(fleet):
    starts = [instant(run["startedAt"]) for run in runs_of(fleet, 101)]
    assert starts == sorted(starts, reverse=True)
    assert BORN - DAY <= starts[-1] < BORN - DAY + 5 * MINUTE
    assert BORN - 6 * MINUTE < starts[0] <= BORN


def test_the_healthy_agent_completes_every_run_of_its_schedule(fleet):
    runs = runs_of(fleet, 101)
    assert len(runs) == 288
    assert {(run["status"], run["triggerType"]) for run in runs} == {("completed", "schedule")}
    assert all(20_000 <= run["durationMs"] <= 60_000 for run in runs)


def test_the_busy_agent_has_hundreds_of_runs_an_hour_and_few_errors(fleet):
    runs = runs_of(fleet, 102, timeframe="last_hour")
    assert 390 <= len(runs) <= 410
    assert {run["triggerType"] for run in runs} == {"webhook", "api"}
    counts = page(fleet, 102)["counts"]
    assert 0.005 < counts["error"] / counts["all_executions"] < 0.02


def test_the_flaky_agent_fails_about_a_quarter_and_retries_in_the_same_workflow(fleet):
    runs = runs_of(fleet, 103)
    assert 0.15 < Counter(run["status"] for run in runs)["error"] / len(runs) < 0.35
    attempts = Counter(run["workflowId"] for run in runs)
    assert max(attempts.values()) == 2
    assert len({run["id"] for run in runs}) == len(runs)


def test_the_failing_agent_succeeded_until_three_hours_ago_and_fails_since(fleet, clock):
    clock.now += HOUR
    for run in runs_of(fleet, 104):
        if run["status"] != "running":
            failing = instant(run["startedAt"]) >= BORN - 3 * HOUR
            assert run["status"] == ("error" if failing else "completed")


def test_one_run_is_stuck_for_seven_hours_while_others_complete_in_minutes(fleet, clock):
    clock.now += HOUR
    runs = runs_of(fleet, 105)
    stuck = min((run for run in runs if run["status"] == "running"), key=lambda run: run["startedAt"])
    assert instant(stuck["startedAt"]) == BORN - 7 * HOUR
    assert "endedAt" not in stuck
    assert "durationMs" not in stuck
    assert max(run["durationMs"] for run in runs if run["status"] == "completed") <= 480_000


def test_one_run_waits_for_a_human_since_more_than_a_day(fleet):
    waiting = runs_of(fleet, 106, status="awaiting_human", approvalScope="all")
    assert instant(waiting[-1]["startedAt"]) == BORN - 26 * HOUR
    assert all(run["pendingApproval"] for run in waiting)
    assert {(run["agentType"], run["triggerType"]) for run in waiting} == {("workflow", "slack")}


def test_the_silent_agent_started_its_last_run_nine_hours_ago_and_stays_silent(fleet, clock):
    clock.now += DAY
    runs = runs_of(fleet, 107)
    assert -HOUR < instant(runs[0]["startedAt"]) - (BORN - 9 * HOUR) <= 2
    assert len(runs) == 15


def test_the_slow_agent_gets_slower_and_stops_at_an_hour(fleet, clock):
    clock.now += 4 * DAY
    ended = [run for run in runs_of(fleet, 108) if "endedAt" in run]
    took = {instant(run["startedAt"]) - BORN: run["durationMs"] / 60_000 for run in ended}
    assert all(4 <= minutes <= 6 for start, minutes in took.items() if start < -DAY + HOUR)
    assert all(23 <= minutes <= 27 for start, minutes in took.items() if -HOUR < start < HOUR)
    assert max(took.values()) == 60


def test_the_agent_with_the_difficult_name_has_cancelled_runs(fleet):
    runs = runs_of(fleet, 109)
    assert {run["agentName"] for run in runs} == {'Support digest "EU" \\ Zürich 東京'}
    assert {run["triggerType"] for run in runs} == {"manual", "api"}
    assert {run["status"] for run in runs} >= {"completed", "cancelled"}


def test_the_new_agent_turns_from_draft_to_active_and_has_no_runs(fleet, clock):
    def new():
        return next(agent for agent in walk(fleet, "/agents") if agent["id"] == 110)

    assert new()["status"] == "draft"
    clock.now += 11 * MINUTE
    assert new()["status"] == "active"
    assert page(fleet, 110)["runs"] == []


def test_runs_start_and_end_as_time_goes_on(fleet, clock):
    seen = {run["id"]: run for run in runs_of(fleet, 108)}
    clock.now += HOUR
    later = {run["id"]: run for run in runs_of(fleet, 108)}
    assert len(later) == len(seen) + 3
    opened = [run_id for run_id, run in seen.items() if run["status"] == "running"]
    assert opened
    assert all(BORN < instant(later[run_id]["endedAt"]) <= BORN + HOUR for run_id in opened)
    assert all(later[run_id] == run for run_id, run in seen.items() if "endedAt" in run)


# Scripted lives


def test_a_run_goes_from_running_over_awaiting_human_to_its_end(api, clock):
    run = api.start_run(7, trigger="slack")
    assert page(api)["runs"][0]["status"] == "running"
    api.change(run, waits_from=BORN + 5)
    clock.now += 5
    assert page(api)["runs"][0]["pendingApproval"]["requestedAt"] == "2026-09-21T14:13:25.000Z"
    clock.now += 5.25
    api.end_run(run)
    assert page(api)["runs"] == [
        {
            "id": f"wf_7_run_1:{run.temporal_run_id}",
            "workflowId": "wf_7_run_1",
            "temporalRunId": run.temporal_run_id,
            "agentId": 7,
            "agentName": "Scripted",
            "agentType": "task",
            "status": "completed",
            "triggerType": "slack",
            "startedAt": "2026-09-21T14:13:20.000Z",
            "endedAt": "2026-09-21T14:13:30.250Z",
            "durationMs": 10250,
            "summary": "Scripted: completed",
        }
    ]


def test_a_run_planned_ahead_starts_and_ends_in_its_time(api, clock):
    api.start_run(7, at=BORN + 10, lasts=20, outcome="error")
    assert page(api)["runs"] == []
    clock.now = BORN + 10
    assert page(api)["counts"]["running"] == 1
    clock.now = BORN + 30
    assert page(api)["counts"] == {
        "all_executions": 1, "running": 0, "awaiting_human": 0, "error": 1, "completed": 0
    }  # fmt: skip


def test_a_run_indexed_late_appears_in_the_place_of_its_start(api, clock):
    late = api.start_run(7, lasts=5, visible_from=BORN + 45)
    clock.now += 10
    newer = api.start_run(7)
    assert [run["id"] for run in page(api)["runs"]] == [newer.id]
    assert get(api, f"/agents/7/runs/{late.workflow_id}", temporalRunId=late.temporal_run_id)[0] == 404
    clock.now += 35
    assert [run["id"] for run in page(api)["runs"]] == [newer.id, late.id]


def test_a_hidden_run_is_in_no_list_and_no_count(api):
    run = api.start_run(7)
    api.change(run, hidden=True)
    assert page(api)["counts"]["all_executions"] == len(page(api, status="running")["runs"]) == 0
    assert get(api, f"/agents/7/runs/{run.workflow_id}")[0] == 404
    api.change(run, hidden=False)
    assert page(api)["counts"]["running"] == 1


def test_ended_runs_are_forgotten_after_the_retention_and_open_ones_are_not(api, clock):
    api.retention = HOUR
    api.start_run(7, lasts=MINUTE)
    open_run = api.start_run(7)
    clock.now += HOUR + MINUTE
    assert [run["id"] for run in page(api)["runs"]] == [open_run.id]
    assert list(api.agents[7].runs) == [open_run.id]


def test_after_a_rename_a_page_carries_both_names(api, clock):
    api.start_run(7, lasts=10)
    api.start_run(7, at=BORN + 1)
    api.start_run(7, at=BORN + 3)
    clock.now = BORN + 2
    api.rename(7, "Renamed")
    clock.now = BORN + 20
    assert [run["agentName"] for run in page(api)["runs"]] == ["Renamed", "Scripted", "Scripted"]


def test_keys_of_a_run_can_be_changed_and_left_out(api):
    api.start_run(7, lasts=0, override={"durationMs": float("nan"), "endedAt": ABSENT, "status": "paused"})
    run = page(api)["runs"][0]
    assert run["durationMs"] != run["durationMs"]
    assert run["status"] == "paused"
    assert "endedAt" not in run


def test_a_status_nobody_knows_gets_a_count_of_its_own(api):
    api.start_run(7, lasts=0, outcome="timed_out")
    assert page(api)["counts"]["timed_out"] == 1


def test_the_script_sees_what_a_complete_walk_finds(fleet):
    assert [run.id for run in fleet.runs(106)] == [run["id"] for run in runs_of(fleet, 106)]


# Lists: filters, counts, pages


@pytest.mark.parametrize("status", ["running", "awaiting_human", "error", "completed", "cancelled"])
def test_the_status_filter_finds_exactly_the_runs_in_that_status(fleet, status):
    for agent_id in FLEET:
        expected = [run for run in runs_of(fleet, agent_id) if run["status"] == status]
        assert runs_of(fleet, agent_id, status=status, approvalScope="all") == expected


def test_counts_hold_every_status_but_cancelled_and_ignore_the_status_filter(fleet):
    runs = runs_of(fleet, 109)
    statuses = Counter(run["status"] for run in runs)
    expected = {name: statuses[name] for name in ("running", "awaiting_human", "error", "completed")}
    assert page(fleet, 109)["counts"] == expected | {"all_executions": len(runs)}
    assert page(fleet, 109, status="error")["counts"] == page(fleet, 109)["counts"]


def test_counts_follow_the_status_filter_when_told(fleet):
    fleet.counts_follow_status = True
    counts = page(fleet, 104, status="error")["counts"]
    assert {name for name, count in counts.items() if count} == {"error"}


def test_runs_and_counts_follow_the_timeframe(fleet):
    body = page(fleet, 101, timeframe="last_hour", pageSize=100)
    assert len(body["runs"]) == body["counts"]["all_executions"] == 12
    assert all(instant(run["startedAt"]) >= BORN - HOUR for run in body["runs"])
    assert body["nextPageToken"] is None


def test_search_looks_into_the_agents_name_whatever_the_case(fleet):
    assert page(fleet, 101, search="TRIAGE")["counts"]["all_executions"] == 288
    assert page(fleet, 101, search="sync")["counts"]["all_executions"] == 0
    assert [agent["id"] for agent in walk(fleet, "/agents", search="sync")] == [104]


def test_approvals_of_others_are_listed_only_with_the_scope_all(api):
    for mine in (True, False):
        api.start_run(7, waits_from=BORN, mine=mine)
    assert len(page(api, status="awaiting_human", approvalScope="all")["runs"]) == 2
    assert len(page(api, status="awaiting_human", approvalScope="mine")["runs"]) == 1
    assert len(page(api, status="awaiting_human")["runs"]) == 1
    assert len(page(api)["runs"]) == 2


@pytest.mark.parametrize(("asked", "given"), [({}, 25), ({"pageSize": 3}, 3), ({"pageSize": 5000}, 100)])
def test_a_page_has_25_runs_unless_told_and_never_more_than_100(fleet, asked, given):
    assert len(page(fleet, 101, **asked)["runs"]) == given


@pytest.mark.parametrize("page_tokens", ["offset", "key"])
@pytest.mark.parametrize("size", [1, 7, 48, 49, 50, 100])
def test_a_walk_over_the_pages_sees_every_run_once(fleet, page_tokens, size):
    fleet.page_tokens = page_tokens
    ids = [run["id"] for run in walk(fleet, "/agents/105/runs", pageSize=size)]
    assert ids == [run.id for run in fleet.runs(105)]
    assert len(set(ids)) == 49


@pytest.mark.parametrize("page_tokens", ["offset", "key"])
def test_runs_of_one_instant_are_not_lost_at_a_page_border(api, page_tokens):
    api.page_tokens = page_tokens
    ids = {api.start_run(7).id for _ in range(10)}
    walked = [run["id"] for run in walk(api, "/agents/7/runs", pageSize=3)]
    assert len(walked) == 10
    assert set(walked) == ids


@pytest.mark.parametrize(("page_tokens", "repeated"), [("offset", 1), ("key", 0)])
def test_a_run_that_starts_in_mid_walk_shifts_offset_pages_only(api, clock, page_tokens, repeated):
    api.page_tokens = page_tokens
    for second in range(4):
        api.start_run(7, at=BORN - 9 + second)
    first = page(api, pageSize=2)
    api.start_run(7)
    second = page(api, pageSize=2, pageToken=first["nextPageToken"])
    ids = [run["id"] for run in first["runs"] + second["runs"]]
    assert len(ids) - len(set(ids)) == repeated


def test_agents_are_listed_page_by_page_by_type_and_with_the_deleted_ones(fleet):
    assert [agent["id"] for agent in walk(fleet, "/agents", pageSize=3)] == sorted(FLEET)
    assert [agent["id"] for agent in walk(fleet, "/agents", type="workflow")] == [106]
    fleet.agents[101].deleted_at = BORN - 1
    deleted, other, *_ = walk(fleet, "/agents")
    assert (deleted["status"], instant(deleted["deletedAt"])) == ("deleted", BORN - 1)
    assert (other["status"], other["deletedAt"]) == ("active", None)


def test_a_single_run_is_named_by_its_workflow_and_temporal_run(api):
    first = api.start_run(7, at=BORN - 60, lasts=30, outcome="error")
    second = api.start_run(7, workflow_id=first.workflow_id)

    def run(**query):
        return get(api, f"/agents/7/runs/{first.workflow_id}", **query)[2]

    assert run()["id"] == second.id
    assert run()["source"] == "live-query"
    failed = run(temporalRunId=first.temporal_run_id)
    assert (failed["id"], failed["source"]) == (first.id, "history")
    assert failed["taskError"]


# The world on a bad day


def ids(api, **query):
    return [run["id"] for run in page(api, pageSize=100, **query)["runs"]]


def everything(api, **query):
    """The ids of a whole walk."""
    return [run["id"] for run in runs_of(api, 7, **query)]


def total(api, **query):
    return page(api, **query)["counts"]["all_executions"]


def test_ordered_by_close_the_open_runs_come_first_and_then_the_last_to_end(api, clock):
    long = api.start_run(7, at=BORN - 100, lasts=90)
    short = api.start_run(7, at=BORN - 50, lasts=10)
    old, young = api.start_run(7, at=BORN - 200), api.start_run(7, at=BORN - 150, waits_from=BORN)
    assert ids(api) == [short.id, long.id, young.id, old.id]
    api.order = "close"
    assert ids(api) == [young.id, old.id, long.id, short.id]
    api.end_run(old)
    assert ids(api) == [young.id, old.id, long.id, short.id]
    clock.now += 1
    api.end_run(young)
    assert ids(api) == [young.id, old.id, long.id, short.id]
    assert ids(api, timeframe="last_hour", status="completed") == [young.id, old.id, long.id, short.id]
    assert api.runs(7) == [short, long, young, old]
    api.order = "start"
    assert ids(api) == [short.id, long.id, young.id, old.id]


@pytest.mark.parametrize("page_tokens", ["offset", "key"])
@pytest.mark.parametrize("size", [1, 7, 49, 50])
def test_a_walk_in_the_order_of_the_ends_sees_every_run_once(fleet, page_tokens, size):
    fleet.order, fleet.page_tokens = "close", page_tokens
    walked = [run["id"] for run in walk(fleet, "/agents/105/runs", pageSize=size)]
    assert len(walked) == len(set(walked)) == 49
    assert set(walked) == {run.id for run in fleet.runs(105)}


def test_ordered_by_close_a_timeframe_still_looks_at_the_start(api):
    api.order = "close"
    api.start_run(7, at=BORN - 2 * HOUR, lasts=2 * HOUR - 1)
    recent = api.start_run(7, at=BORN - HOUR / 2, lasts=1)
    assert ids(api, timeframe="last_hour") == [recent.id]
    assert total(api, timeframe="last_hour") == 1


def test_a_run_that_shows_another_start_keeps_the_place_of_its_true_one(api, clock):
    first = api.start_run(7)
    clock.now += 1
    rerun = api.start_run(7, override={"startedAt": iso(BORN - 2 * DAY)})
    clock.now += 1
    last = api.start_run(7)
    assert ids(api) == [last.id, rerun.id, first.id]
    assert page(api)["runs"][1]["startedAt"] == iso(BORN - 2 * DAY)


def test_counts_may_be_as_old_as_told(api, clock):
    run = api.start_run(7)
    api.counts_lag = 60.0
    clock.now += 59
    assert (ids(api), total(api)) == ([run.id], 0)
    clock.now += 1
    api.end_run(run)
    body = page(api)
    assert (body["runs"][0]["status"], body["counts"]["running"], body["counts"]["completed"]) == (
        "completed", 1, 0
    )  # fmt: skip
    clock.now += 60
    assert page(api)["counts"]["completed"] == 1
    api.counts_lag = 0.0
    assert page(api)["counts"] == {
        "all_executions": 1, "running": 0, "awaiting_human": 0, "error": 0, "completed": 1
    }  # fmt: skip


def test_counts_may_be_ahead_of_the_list(api, clock):
    late = api.start_run(7, lasts=10, visible_from=BORN + 60)
    api.counts_lag = -60.0
    assert (ids(api), total(api), page(api)["counts"]["completed"]) == ([], 1, 1)
    clock.now += 60
    assert (ids(api), total(api)) == ([late.id], 1)


@pytest.mark.parametrize(
    "sent", [{"all_executions": 3.0, "error": "12", "running": None}, {}, [], None, {"all_executions": -1}]
)
def test_counts_may_be_anything(api, sent):
    api.counts_fault = lambda counts: sent
    assert page(api)["counts"] == sent


def test_counts_may_be_changed_a_little_or_be_missing(api):
    run = api.start_run(7)
    api.counts_fault = lambda counts: counts | {"running": counts["running"] + 2}
    assert page(api)["counts"]["running"] == 3
    api.counts_fault = lambda counts: ABSENT
    assert page(api).keys() == {"runs", "nextPageToken"}
    assert ids(api) == [run.id]


def test_replicas_answer_in_turn_and_the_one_that_lags_shows_what_was(api, clock):
    api.replica_lags = (0.0, 300.0)
    old = api.start_run(7)
    clock.now += 290
    new = api.start_run(7)
    api.end_run(old, "error")
    for _ in range(2):
        fresh = page(api)
        assert [run["id"] for run in fresh["runs"]] == [new.id, old.id]
        assert (fresh["counts"]["running"], fresh["counts"]["error"]) == (1, 1)
        assert page(api) == {
            "runs": [],
            "counts": dict.fromkeys(fresh["counts"], 0),
            "nextPageToken": None,
        }
    clock.now += 20
    page(api)
    lagging = page(api)
    assert [(run["id"], run["status"]) for run in lagging["runs"]] == [(old.id, "running")]
    assert "endedAt" not in lagging["runs"][0]
    assert lagging["counts"]["running"] == 1
    clock.now += 300
    assert page(api) == page(api)


@pytest.mark.parametrize("order", ["start", "close"])
def test_a_replica_shows_exactly_what_the_index_held_then(clock, order):
    """Also of runs that live on by themselves, and of runs that the retention took from nobody."""
    modus = SimulatedModus(clock=clock, order=order)
    for _ in range(20):
        clock.now += 7 * MINUTE
        then = {agent_id: page(modus, agent_id, pageSize=100) for agent_id in FLEET}
        clock.now += 9 * MINUTE
        modus.replica_lags = (9 * MINUTE,)
        for agent_id, shown in then.items():
            lagging = page(modus, agent_id, pageSize=100)
            assert (lagging["runs"], lagging["counts"]) == (shown["runs"], shown["counts"])
        modus.replica_lags = (0.0,)


def test_counts_lag_behind_the_replica_that_answers(api, clock):
    api.replica_lags, api.counts_lag = (60.0,), 30.0
    api.start_run(7)
    for waited, listed, counted in ((59, 0, 0), (1, 1, 0), (29, 1, 0), (1, 1, 1)):
        clock.now += waited
        assert (len(ids(api)), total(api)) == (listed, counted)


def token_of(api):
    for _ in range(3):
        api.start_run(7)
    return page(api, pageSize=1)["nextPageToken"]


def status_with(api, token, path="/agents/7/runs"):
    return get(api, path, pageSize=1, pageToken=token)[0]


def test_a_page_token_is_taken_as_long_as_it_lives(api, clock):
    api.token_life = 5.0
    token = token_of(api)
    clock.now += 4.5
    assert status_with(api, token) == 200
    clock.now += 0.5
    assert status_with(api, token) == 400
    api.token_life = 10.0
    assert status_with(api, token) == 200


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422, 429, 500, 503])
def test_a_page_token_is_refused_with_any_status(api, status):
    api.token_refusal, api.token_life = status, 0.0
    answer = get(api, "/agents/7/runs", pageSize=1, pageToken=token_of(api))
    assert answer[0] == status
    assert "`pageToken`" in answer[2]["error"]["message"]
    assert page(api)["runs"]


def test_a_page_token_that_was_forgotten_is_refused_and_a_new_one_taken_at_once(api):
    api.add_agent(8, "Other")
    agents = get(api, "/agents", pageSize=1)[2]["nextPageToken"]
    old = token_of(api)
    api.forget_tokens()
    new = page(api, pageSize=1)["nextPageToken"]
    assert [status_with(api, token) for token in (old, new)] == [400, 200]
    assert status_with(api, agents, "/agents") == 400


def test_a_page_token_of_another_kind_of_page_is_refused(api):
    token = token_of(api)
    api.page_tokens = "key"
    assert status_with(api, token) == 400


def test_a_shorter_retention_takes_runs_at_once_and_a_longer_one_brings_none_back(api, clock):
    old, new = api.start_run(7, lasts=10), api.start_run(7, at=BORN + HOUR, lasts=10)
    waiting = api.start_run(7)
    clock.now += 2 * HOUR
    assert total(api) == 3
    api.retention = 90 * MINUTE
    assert set(ids(api)) == {new.id, waiting.id}
    assert total(api) == 2
    api.retention = DAY
    assert set(ids(api)) == {new.id, waiting.id}
    clock.now += DAY
    assert ids(api) == [waiting.id]
    assert old not in api.runs(7)


def test_a_run_that_vanishes_is_in_no_list_and_no_count_of_any_replica(api, clock):
    run = api.start_run(7)
    clock.now += 100
    api.change(run, hidden=True)
    api.replica_lags = (50.0,)
    assert (ids(api), total(api)) == ([], 0)
    assert get(api, f"/agents/7/runs/{run.workflow_id}")[0] == 404


def test_what_retention_took_is_gone_from_the_replicas_that_lag_too(api, clock):
    api.retention, api.replica_lags = HOUR, (60.0,)
    run = api.start_run(7, lasts=10)
    clock.now += HOUR + 9
    assert ids(api) == [run.id]
    clock.now += 1
    assert (ids(api), total(api)) == ([], 0)


def test_a_page_token_beyond_what_retention_left_gives_an_empty_last_page(api, clock):
    for _ in range(4):
        api.start_run(7, lasts=10)
    left = {api.start_run(7).id for _ in range(2)}
    token = page(api, pageSize=3)["nextPageToken"]
    clock.now += HOUR
    api.retention = MINUTE
    rest = page(api, pageSize=3, pageToken=token)
    assert (rest["runs"], rest["nextPageToken"]) == ([], None)
    assert set(ids(api)) == left


def date_of(api, path="/agents"):
    return parsedate_to_datetime(get(api, path)[1]["Date"]).timestamp()


def test_the_date_header_may_be_wrong_for_all_or_for_one_answer(api):
    assert date_of(api) == BORN
    api.date_offset = -HOUR
    assert date_of(api) == date_of(api, "/nowhere") == BORN - HOUR
    api.date_offset = lambda request: -BORN if request.agent_id == 7 else 0.0
    assert (date_of(api), date_of(api, "/agents/7/runs")) == (BORN, 0)
    assert get(api, "/agents/7/runs")[1]["Date"] == "Thu, 01 Jan 1970 00:00:00 GMT"
    api.start_run(7)
    assert page(api)["runs"][0]["startedAt"] == iso(BORN)


@pytest.mark.parametrize("back", [600, HOUR])
def test_a_clock_that_steps_back_undoes_nothing_and_new_runs_take_its_time(api, clock, back):
    ended, going = api.start_run(7, at=BORN - 20, lasts=10), api.start_run(7, at=BORN - 15)
    before = page(api)
    clock.now -= back
    assert page(api) == before
    new = api.start_run(7, lasts=30)
    assert ids(api) == [going.id, ended.id, new.id]
    api.end_run(going, "error")
    clock.now += 30
    api.change(ended, override={"summary": "changed"})
    api.retention = DAY
    assert [run["status"] for run in page(api)["runs"]] == ["error", "completed", "completed"]
    assert (page(api)["runs"][0]["endedAt"], new.start) == (iso(BORN - back), BORN - back)


def test_after_a_step_of_the_clock_a_replica_shows_nothing_older_than_the_step(api, clock):
    run = api.start_run(7)
    clock.now += 100
    page(api)
    clock.now -= HOUR
    api.replica_lags = (60.0,)
    assert ids(api) == [run.id]
    api.start_run(7)
    assert ids(api) == [run.id]
    clock.now += 60
    assert len(ids(api)) == 2


def test_a_clock_that_steps_ahead_ends_what_is_planned_until_then(api, clock):
    api.start_run(7, lasts=HOUR)
    clock.now += DAY
    assert page(api)["counts"]["completed"] == 1


def test_an_item_may_be_any_bytes_and_the_others_are_as_they_were(api):
    api.start_run(7, raw=b'{"id": \xff}')
    api.start_run(7, raw=b"")
    api.start_run(7, raw=b"[1, {}]", lasts=0)
    run = api.start_run(7, at=BORN - 1)
    body = api.answer("GET", "/api/v1/agents/7/runs", {}, {"Authorization": "Bearer demo"}).body
    odd = b'{"runs": [[1, {}], , {"id": \xff}, '  # the newest first
    assert body.startswith(odd)
    good = json.loads(b'{"runs": [' + body.removeprefix(odd))
    assert [item["id"] for item in good["runs"]] == [run.id]
    assert good["counts"]["all_executions"] == 4


def test_a_single_run_may_be_any_bytes(api):
    run = api.start_run(7, raw=b"\xff")
    path = f"/api/v1/agents/7/runs/{run.workflow_id}"
    assert api.answer("GET", path, {}, {"Authorization": "Bearer demo"}).body == b"\xff"


@pytest.mark.parametrize("more", [{}, {"endedAt": ABSENT, "durationMs": ABSENT}])
def test_a_status_nobody_knows_may_have_an_end_or_none_and_can_be_asked_for(api, more):
    run = api.start_run(7, at=BORN - 10, lasts=5, outcome="timed_out", override=more)
    (shown,) = page(api, status="timed_out")["runs"]
    assert (shown["id"], shown["status"]) == (run.id, "timed_out")
    assert ("endedAt" in shown, "durationMs" in shown) == (not more, not more)


def test_a_run_may_have_no_name_no_trigger_and_no_times(api):
    nothing = {"agentName": None, "startedAt": ABSENT, "endedAt": ABSENT, "durationMs": ABSENT}
    api.start_run(7, lasts=0, trigger=None, override=nothing)
    (shown,) = page(api)["runs"]
    assert shown["agentName"] is None
    assert shown.keys().isdisjoint({"startedAt", "endedAt", "durationMs", "triggerType"})


def test_the_newest_run_of_a_workflow_is_the_last_to_start_not_the_last_to_end(api):
    first = api.start_run(7, at=BORN - 60, lasts=50)
    second = api.start_run(7, at=BORN - 30, lasts=10, workflow_id=first.workflow_id)
    api.order = "close"
    assert ids(api) == [first.id, second.id]
    assert get(api, f"/agents/7/runs/{first.workflow_id}")[2]["id"] == second.id


@pytest.mark.parametrize(("told", "status"), [(False, 404), (403, 403), (500, 500), (True, 200)])
def test_the_route_of_one_run_answers_as_told(api, told, status):
    run = api.start_run(7)
    api.single_run = told
    assert get(api, f"/agents/7/runs/{run.workflow_id}")[0] == status
    assert ids(api) == [run.id]


@pytest.mark.parametrize(("told", "status"), [(False, 404), (400, 400), (500, 500), (True, 200)])
def test_lists_by_status_answer_as_told_and_the_whole_list_always(api, told, status):
    run = api.start_run(7)
    api.filtered_lists = told
    assert get(api, "/agents/7/runs", status="running")[0] == status
    assert ids(api) == ids(api, status="all_executions") == [run.id]


def test_agents_come_and_go(api):
    api.add_agent(8, "Other")
    api.start_run(8)
    api.remove_agent(8)
    assert [agent["id"] for agent in walk(api, "/agents")] == [7]
    assert get(api, "/agents/8/runs")[0] == 404
    api.add_agent(8, "Back")
    assert page(api, 8)["runs"] == []


def test_an_agent_may_be_switched_off_and_on(api):
    for enabled in (False, True):
        api.agents[7].enabled = enabled
        assert [(agent["isEnabled"], agent["status"]) for agent in walk(api, "/agents")] == [
            (enabled, "active")
        ]


def test_an_agent_in_the_list_may_be_odd_or_any_bytes(api):
    api.agents[7].override = {"name": None, "type": ABSENT, "id": "7"}
    api.add_agent(8, "Other")
    odd, good = walk(api, "/agents")
    assert (odd["name"], odd["id"], good["id"]) == (None, "7", 8)
    assert "type" not in odd
    api.agents[7].raw = b"\xff\xfe"
    body = api.answer("GET", "/api/v1/agents", {}, {"Authorization": "Bearer demo"}).body
    assert body.startswith(b'{"agents": [\xff\xfe, {"id": 8, ')


# Errors


@pytest.mark.parametrize(
    ("path", "query", "parameter"),
    [
        ("/agents/7/runs", {"pageSize": "many"}, "pageSize"),
        ("/agents/7/runs", {"pageSize": "0"}, "pageSize"),
        ("/agents/7/runs", {"pageToken": "no token"}, "pageToken"),
        ("/agents/7/runs", {"pageToken": "bnVsbA=="}, "pageToken"),
        ("/agents/7/runs", {"pageToken": "Mj U="}, "pageToken"),  # as a + comes out of a careless query
        ("/agents/7/runs", {"status": "broken"}, "status"),
        ("/agents/7/runs", {"timeframe": "ever"}, "timeframe"),
        ("/agents/7/runs", {"approvalScope": "theirs"}, "approvalScope"),
        ("/agents", {"type": "robot"}, "type"),
        ("/agents/seven/runs", {}, "id"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(api, path, query, parameter):
    status, _, body = get(api, path, **query)
    assert (status, body["error"]["code"], body["error"]["status"]) == (
        400,
        "BAD_REQUEST",
        "INVALID_ARGUMENT",
    )
    assert f"`{parameter}`" in body["error"]["message"]


def test_a_wrong_token_is_unauthorized(api):
    status, _, body = get(api, "/agents/7/runs", authorization="Bearer other")
    assert (status, body["error"]["code"]) == (401, "UNAUTHORIZED")
    assert api.answer("GET", "/api/v1/agents", {}, {}).status == 401


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/agents", "agents:read"),
        ("/agents/7/runs", "agents:invoke"),
        ("/workflows", "workflows:read"),
        ("/workflows/7/runs", "workflows:invoke"),
    ],
)
def test_a_missing_scope_is_named(api, path, scope):
    assert get(api, path)[0] == 200
    api.scopes = tuple(other for other in api.scopes if other != scope)
    status, _, body = get(api, path)
    assert (status, body["error"]["code"], body["error"]["info"]) == (403, "FORBIDDEN", {"missing": [scope]})


def test_what_does_not_exist_is_not_found_and_every_error_has_a_request_id_of_its_own(api):
    run = api.start_run(7)
    answers = [
        get(api, path) for path in ("/agents/8/runs", "/agents/7/runs/wf_7_run_9", "/agents/7", "/robots")
    ]
    answers.append(get(api, f"/agents/7/runs/{run.workflow_id}", temporalRunId="other"))
    answers.append(get(api, "/agents", method="POST"))
    assert {status for status, _, _ in answers} == {404}
    assert len({body["error"]["requestId"] for _, _, body in answers}) == len(answers)


def test_routes_exist_as_told(api):
    run = api.start_run(7)
    assert get(api, "/agents/7/runs")[2] == get(api, "/workflows/7/runs")[2]
    api.resources, api.single_run = ("workflows",), False
    assert [get(api, path)[0] for path in ("/agents", "/agents/7/runs")] == [404, 404]
    assert [get(api, path)[0] for path in ("/workflows", "/workflows/7/runs")] == [200, 200]
    assert get(api, f"/workflows/7/runs/{run.workflow_id}")[0] == 404


@pytest.mark.parametrize(
    ("status", "code"), [(410, "BAD_REQUEST"), (422, "VALIDATION"), (503, "INTERNAL_ERROR")]
)
def test_an_error_of_any_status_has_a_code_of_its_kind(api, status, code):
    answer = api.error(status)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)


def test_requests_are_kept_with_operation_and_query(api):
    get(api, "/agents")
    get(api, "/workflows/7/runs", status="error")
    get(api, "/agents/7/runs/wf_7_run_1")
    assert [(r.operation, r.agent_id, r.query) for r in api.requests] == [
        ("list_agents", None, {}),
        ("list_runs", 7, {"status": "error"}),
        ("get_run", 7, {}),
    ]


def test_a_fault_takes_the_place_of_the_answers_it_wants(api):
    limited = api.error(429, **{"Retry-After": "3"})
    api.fault = lambda request: limited if request.agent_id == 7 else None
    status, headers, body = get(api, "/agents/7/runs")
    assert (status, headers["Retry-After"], body["error"]["code"]) == (429, "3", "RATE_LIMITED")
    assert get(api, "/agents")[0] == 200


# The server


def connect(api):
    return closing(http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=30))


def fetch(connection, path="/api/v1/agents/7/runs"):
    connection.request("GET", path, headers={"Authorization": "Bearer demo"})
    response = connection.getresponse()
    return response, response.read()


@pytest.fixture
def served(api):
    with closing(api.start()):
        yield api


def test_answers_over_http_are_those_of_the_api_with_its_own_clock_and_keep_the_connection(served):
    run = served.start_run(7)
    with connect(served) as connection:
        for _ in range(3):
            response, body = fetch(connection, "/api/v1/agents/7/runs?status=running&pageSize=1")
            assert response.status == 200
            assert response.headers["Date"] == "Mon, 21 Sep 2026 14:13:20 GMT"
            assert [item["id"] for item in json.loads(body)["runs"]] == [run.id]
            assert not response.will_close


def test_a_token_with_reserved_characters_survives_the_query(served):
    served.page_tokens = "key"
    for _ in range(3):
        served.start_run(7, workflow_id="wf ÿ?~>")
    with connect(served) as connection:
        first = json.loads(fetch(connection, "/api/v1/agents/7/runs?pageSize=2")[1])
        token = first["nextPageToken"].replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
        last = json.loads(fetch(connection, f"/api/v1/agents/7/runs?pageSize=2&pageToken={token}")[1])
    assert len({run["id"] for run in first["runs"] + last["runs"]}) == 3


def test_a_fault_can_be_any_status_header_and_body(served):
    served.fault = lambda request: Answer(502, {"Content-Type": "text/html"}, b"<h1>Bad gateway</h1>")
    with connect(served) as connection:
        response, body = fetch(connection)
    assert (response.status, response.headers["Content-Type"], body) == (
        502, "text/html", b"<h1>Bad gateway</h1>"
    )  # fmt: skip


def test_a_fault_can_come_in_pieces_be_cut_short_or_hang_up(served):
    faults = [
        Answer(200, {}, (b"{", b"}")),
        Answer(200, {"Content-Length": "9", "Connection": "close"}, b"{}"),
        Answer(0, {}, b""),
    ]
    served.fault = lambda request: faults.pop(0)
    with connect(served) as connection:
        assert fetch(connection)[1] == b"{}"
        with pytest.raises(http.client.IncompleteRead):
            fetch(connection)
    with connect(served) as connection, pytest.raises(http.client.RemoteDisconnected):
        fetch(connection)


def test_closing_cuts_kept_connections_and_the_port_can_be_opened_again(api):
    port = free_port()
    api.start(port)
    with connect(api) as connection:
        fetch(connection)
        api.close()
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            fetch(connection)
    with closing(api.start(port)), connect(api) as connection:
        assert fetch(connection)[0].status == 200


def test_thirty_two_connections_hold_under_latency(served):
    served.latency = 0.05
    served.start_run(7)

    def ask(_):
        with connect(served) as connection:
            return [fetch(connection)[0].status for _ in range(10)]

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(32)))
    assert answers == [[200] * 10] * 32
    assert len(served.requests) == 320
