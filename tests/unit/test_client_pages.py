"""ModusClient: what it makes of a page, item by item: what is odd costs itself."""

import gzip
import json
import re
import tracemalloc
from codecs import BOM_UTF8

import pytest
import responses

from exporter.deadline import Deadline
from exporter.modus.body import LARGEST, allowed
from exporter.modus.client import ModusClient
from exporter.modus.decode import MOST_COUNTS
from exporter.modus.errors import ApiError
from exporter.modus.model import LONGEST_LABEL, Agent, Run, seconds
from tests.wire import forget_environment, page, run

HOST = "http://api.example"
JSON = "application/json"


@pytest.fixture
def modus():
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


@pytest.fixture
def client(modus, monkeypatch):
    forget_environment(monkeypatch)
    client = ModusClient(HOST, lambda: "modus_pat_secret", resource="agents")
    yield client
    client.close()


@pytest.fixture
def runs(modus, client):
    """The page of runs that a body is read as."""

    def read(body, page_size=100, **options):
        answer = {"json": body} if isinstance(body, dict) else {"body": body, "content_type": JSON}
        modus.reset()
        modus.get(re.compile(HOST), **answer, **options)
        return client.runs(42, deadline=Deadline(60), page_size=page_size)

    return read


@pytest.fixture
def agents(modus, client):
    def read(body, page_size=100):
        modus.reset()
        modus.get(re.compile(HOST), body=json.dumps(body), content_type=JSON)
        return client.agents(deadline=Deadline(60), page_size=page_size)

    return read


def error_of(read, *args, **options) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(*args, **options)
    assert caught.value.reason == "bad_response"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    return caught.value


# what is sound


def test_a_byte_order_mark_before_the_json_is_passed_over(runs):
    assert [each.id for each in runs(BOM_UTF8 + json.dumps(page(run())).encode()).runs] == ["wf-1:r1"]


def test_a_page_of_runs_is_decoded(runs):
    answer = runs(page(run(), run("wf-2:r2", status="running"), following="next", error=0))
    assert answer.runs[0] == Run(
        id="wf-1:r1",
        workflow_id="wf-1",
        status="completed",
        agent_name="Invoice triage",
        agent_type="task",
        temporal_run_id="r1",
        trigger_type="schedule",
        started_at="2026-07-01T10:00:00.000Z",
        ended_at="2026-07-01T10:00:20.500Z",
        duration_ms=20500,
    )
    assert answer.runs[1].status == "running"
    assert answer.counts == {"all_executions": 2, "error": 0}
    assert answer.next_page_token == "next"  # noqa: S105 - of a page
    assert answer.malformed == []


def test_unknown_fields_and_statuses_are_no_obstacle(runs):
    answer = runs(page(run(status="paused", news={"a": [1]}), paused=1) | {"more": 1})
    assert answer.runs[0].status == "paused"
    assert answer.counts == {"all_executions": 1, "paused": 1}


@pytest.mark.parametrize("rest", [{}, {"nextPageToken": None}, {"nextPageToken": ""}])
def test_the_last_page_has_no_token(runs, agents, rest):
    assert runs({"runs": [], "counts": {}} | rest).next_page_token is None
    assert agents({"agents": []} | rest).next_page_token is None


def test_agents_are_listed_with_the_token_of_the_next_page(modus, agents):
    listed = {"agents": [{"id": 7, "name": "A", "type": "task", "status": "active", "slug": "a"}]}
    answer = agents(listed | {"nextPageToken": "p2"})
    assert (answer.agents, answer.next_page_token) == ([Agent(7, "A", "task", "active", slug="a")], "p2")
    assert modus.calls[0].request.url == f"{HOST}/api/v1/agents?pageSize=100"


def test_a_gzipped_page_is_unpacked(runs):
    body = gzip.compress(b'{"runs": [], "counts": {"error": 3}}')
    assert runs(body, headers={"Content-Encoding": "gzip"}).counts == {"error": 3}


def test_a_page_as_large_as_a_hundred_long_runs_is_read(runs):
    answer = runs(page(*(run(f"wf-{n}:r", summary="s. " * 10_000) for n in range(100))))
    assert len(answer.runs) == 100


# what is no page


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"counts": {}}',
        b'{"runs": null, "counts": {}}',
        b'{"runs": {}, "counts": {}}',
        b'{"runs": [], "counts": {}, "nextPageToken": 7}',
        b'{"runs": [], "counts": {}, "nextPageToken": "' + b"x" * 10_000 + b'"}',
        b'{"runs": [], "counts": {}, "x": NaN',
        b'{"runs": ' + b"[" * 100_000,
        b"\x80\x00\xff",
        b'{"runs": [], "counts": {}} trailing',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_a_body_that_is_no_page_is_a_bad_response(modus, runs, body):
    error = error_of(runs, body)
    assert error.status == 200
    assert "application/json, starts" in str(error)
    assert len(modus.calls) == 1, "the server would only say the same again"


def test_a_page_of_html_says_what_came_instead(modus, client):
    body = "<!DOCTYPE html>\n<title>Log in</title>"
    modus.get(re.compile(HOST), body=body, content_type="text/html")
    error = error_of(client.runs, 42, deadline=Deadline(60), page_size=1)
    assert "text/html, starts '<!DOCTYPE html> <title>Log in</title>'" in str(error)


@pytest.mark.parametrize("body", [{"agents": None}, {"agents": {}}, {}, {"runs": []}, []])
def test_a_list_of_agents_that_is_none_is_a_bad_response(agents, body):
    error_of(agents, body)


@pytest.mark.parametrize("body", [{"id": ""}, {"status": "error"}, [], 7, {"id": 7, "status": "error"}])
def test_a_single_run_that_is_none_is_a_bad_response(modus, client, body):
    modus.get(re.compile(HOST), json=body)
    error_of(client.run, 42, "wf", None, deadline=Deadline(60))


# what is odd


@pytest.mark.parametrize(
    "field",
    [
        "workflowId",
        "agentName",
        "agentType",
        "temporalRunId",
        "triggerType",
        "startedAt",
        "endedAt",
        "durationMs",
    ],
)
@pytest.mark.parametrize("value", [None, True, [], {"a": 1}, "MISSING"])
def test_a_run_needs_a_usable_id_and_status_only(runs, field, value):
    odd = run("wf-1:odd") | {field: value}
    if value == "MISSING":
        del odd[field]
    answer = runs(page(run("wf-0:r"), odd, run("wf-2:r")))
    assert [each.id for each in answer.runs] == ["wf-0:r", "wf-1:odd", "wf-2:r"]
    name = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", field)
    absent = {"workflow_id": "wf-1", "agent_name": "", "agent_type": ""}.get(name)
    assert getattr(answer.runs[1], name) == absent
    assert answer.runs[1].status == "completed"
    assert answer.malformed == []


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 6000, '"5"', "{}", "true", "null"]
)
def test_a_duration_that_is_no_number_of_this_world_reads_as_absent(runs, number):
    body = json.dumps(page(run(durationMs="HERE"), error=3)).replace('"HERE"', number)
    answer = runs(body)
    assert answer.runs[0].duration_ms is None
    assert answer.counts["error"] == 3


def test_of_a_long_id_a_short_one_is_made_which_is_the_same_each_time_and_no_others(runs):
    ids = ["x" * 257, "x" * 200_000, "x" * 200_000 + "y", "\ud800" * 300]
    kept = [each.id for each in runs(page(*map(run, ids))).runs]
    assert len(set(kept)) == len(ids)
    assert all(len(each) < 200 for each in kept)
    assert kept == [each.id for each in runs(page(*map(run, ids))).runs]
    assert [each.id for each in runs(page(run("x" * 256))).runs] == ["x" * 256]


@pytest.mark.parametrize(
    ("odd", "name"),
    [
        ({"id": "wf-1:r1"}, "wf-1:r1"),
        ({"id": "wf-1:r1", "status": None}, "wf-1:r1"),
        ({"id": "wf-1:r1", "status": ""}, "wf-1:r1"),
        ({"id": "wf-1:r1", "status": 5}, "wf-1:r1"),
        ({"id": None, "status": "error"}, None),
        ({"id": "", "status": "error"}, None),
        ({"id": 7, "status": "error"}, None),
        ({"status": "error"}, None),
        (None, None),
        ("run", None),
        ([], None),
    ],
)
def test_an_item_that_is_no_run_costs_itself_and_is_named(runs, odd, name):
    answer = runs(page(run("wf-0:r"), odd, run("wf-2:r"), error=1))
    assert [each.id for each in answer.runs] == ["wf-0:r", "wf-2:r"]
    assert answer.counts["error"] == 1
    (named,) = answer.malformed
    assert named == name or (name is None and re.fullmatch("[0-9a-f]{16}", named))
    assert runs(page(odd)).malformed == [named], "by a digest it is known again"


@pytest.mark.parametrize(
    ("counts", "read"),
    [
        (None, {}),
        ("MISSING", {}),
        ([], {}),
        (7, {}),
        ({"running": None, "error": 2}, {"error": 2}),
        ({"running": "12", "error": 2}, {"error": 2}),
        ({"running": 3.0, "error": 2}, {"running": 3, "error": 2}),
        ({"running": 3.5, "error": -1, "completed": True, "x": {}, "cancelled": 0}, {"cancelled": 0}),
        ({"running": 10**30, "error": 2}, {"error": 2}),
        ({"x" * 5000: 1, "error": 2}, {"x" * LONGEST_LABEL: 1, "error": 2}),
    ],
)
def test_a_count_that_is_odd_costs_itself(runs, counts, read):
    body = page(run()) | {"counts": counts}
    if counts == "MISSING":
        del body["counts"]
    answer = runs(body)
    assert answer.counts == read
    assert len(answer.runs) == 1


def test_of_counts_without_end_the_documented_ones_are_kept(runs):
    many = {f"status {n}": n for n in range(MOST_COUNTS)} | {"error": 7, "all_executions": 9}
    assert runs(page() | {"counts": many}).counts == {"all_executions": 9, "error": 7}


@pytest.mark.parametrize("token", [None, "", 0, False, [], {}])
def test_a_token_that_says_no_in_whatever_way_is_that_of_the_last_page(runs, agents, token):
    assert runs(page(run()) | {"nextPageToken": token}).next_page_token is None
    assert agents({"agents": [{"id": 7}], "nextPageToken": token}).next_page_token is None


@pytest.mark.parametrize("token", [5, 1.5, True, ["next"], {"page": 2}, "x" * 8193])
def test_a_token_that_nobody_can_send_back_is_an_error_and_no_last_page(runs, agents, token):
    error_of(runs, page(run()) | {"nextPageToken": token})
    error_of(agents, {"agents": [{"id": 7}], "nextPageToken": token})


def test_a_page_without_runs_may_have_null_for_them_or_nothing_beside_its_counts(runs):
    empty = page(running=0)
    for body in (empty | {"runs": None}, {"counts": empty["counts"]}):
        assert (runs(body).runs, runs(body).counts) == ([], empty["counts"])
    for body in ({"runs": None}, {"runs": None, "counts": None}, {}, empty | {"runs": {}}):
        error_of(runs, body)


def test_bytes_and_characters_that_nobody_can_show_are_replaced(runs):
    body = json.dumps(page(run(agentName="HERE"))).replace("HERE", r"a\ud800b\u6771")
    assert runs(body).runs[0].agent_name == "a?b東"
    broken = body.encode().replace(rb"a\ud800b\u6771", b"a\xffb")
    assert runs(broken).runs[0].agent_name == "a\ufffdb"


def test_a_single_run_is_read_as_one_of_a_page_is(modus, client):
    body = json.dumps(run(agentName="HERE", startedAt=7)).replace("HERE", r"a\ud800b")
    modus.get(re.compile(HOST), body=body)
    answer = client.run(42, "wf-1", None, deadline=Deadline(60))
    assert (answer.agent_name, answer.started_at) == ("a?b", None)


@pytest.mark.parametrize("field", ["agentName", "agentType", "triggerType", "status"])
def test_a_text_that_becomes_a_label_is_cut(runs, field):
    answer = runs(page(run() | {field: "x" * 100_000}))
    name = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", field)
    assert getattr(answer.runs[0], name) == "x" * LONGEST_LABEL


@pytest.mark.parametrize("field", ["startedAt", "endedAt"])
def test_a_time_that_is_too_long_to_be_one_is_none(runs, field):
    name = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", field)
    assert getattr(runs(page(run() | {field: "2026-07-01T10:00:00." + "0" * 100})).runs[0], name) is None


def test_texts_without_end_are_kept_by_no_cache():
    tracemalloc.start()
    try:
        for n in range(100):
            assert seconds("2026-07-01T10:00:00." + f"{n:03}" * 100_000) is None
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


@pytest.mark.parametrize(
    "odd", [{"name": None}, {"name": 5}, {"type": []}, {"deletedAt": 7}, {"status": None}]
)
def test_an_agent_needs_a_usable_id_only(agents, odd):
    answer = agents({"agents": [{"id": 1, "name": "A"}, {"id": 2} | odd, {"id": 3.0, "name": "C"}]})
    assert answer.agents == [Agent(1, "A"), Agent(2), Agent(3, "C")]
    assert answer.malformed == []


@pytest.mark.parametrize("id_", [None, "2", True, -1, 2.5, 2**63, [], "MISSING"])
def test_an_agent_without_a_usable_id_costs_itself(agents, id_):
    odd = {"name": "B"} if id_ == "MISSING" else {"id": id_, "name": "B"}
    answer = agents({"agents": [{"id": 1, "name": "A"}, odd], "nextPageToken": "more"})
    assert (answer.agents, answer.next_page_token) == ([Agent(1, "A")], "more")
    assert len(answer.malformed) == 1


# what is too much


def test_a_page_of_more_than_was_asked_for_is_a_bad_response(runs, agents):
    assert len(runs(page(run(), run("b:c")), page_size=2).runs) == 2
    error = error_of(runs, page(run(), run("b:c"), run("d:e")), page_size=2)
    assert "3 runs on a page of 2" in str(error)
    error_of(runs, page(run(), None), page_size=1)
    error_of(agents, {"agents": [{"id": 1}, {"id": 2}]}, page_size=1)
    error_of(agents, {"agents": [{"id": 1}, {}]}, page_size=1)


@pytest.mark.parametrize("item", ['{"id":"a","status":"b"}', "1", "{}", "NaN"])
@pytest.mark.parametrize("page_size", [5, 100])
def test_pages_without_end_are_refused_in_bounded_memory(runs, item, page_size):
    number = (allowed(page_size) - 100) // (len(item) + 1)
    body = '{"counts": {}, "runs": [' + ",".join([item] * number) + "]}"
    runs({"runs": []})
    tracemalloc.start()
    try:
        error_of(runs, body, page_size=page_size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20


def test_what_is_refused_for_its_size_says_that_a_smaller_page_might_do(runs):
    long = {"summary": "s" * 100_000}
    error = error_of(runs, page(*(run(f"wf-{n}:r", **long) for n in range(100))))
    assert error.too_large
    assert f"more than {LARGEST} bytes" in str(error)
    for size in (50, 25, 5, 1):
        assert len(runs(page(*(run(f"wf-{n}:r", **long) for n in range(size))), page_size=size).runs) == size
    assert not error_of(runs, page(run(), run("b:c")), page_size=1).too_large
    assert not error_of(runs, b"{").too_large


def test_only_small_bodies_are_decoded_tolerantly(runs):
    sound = json.dumps(page(run(summary="s" * 2_000_000)))
    assert len(runs(sound).runs) == 1
    error = error_of(runs, sound.replace("20500", "NaN"))
    assert error.too_large
