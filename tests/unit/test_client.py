"""ModusClient by the answers it gets: what it asks, what it makes of them, and when it asks again."""

import base64
import contextlib
import itertools
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest
import requests
import responses

from exporter import __version__
from exporter.deadline import Deadline
from exporter.modus.client import ModusClient
from exporter.modus.errors import HINTS, REASONS, ApiError
from exporter.modus.pacing import BACKOFF, DEFAULT_PAUSE, LONGEST_PAUSE, RETRIES
from exporter.modus.requeststats import REQUEST_BUCKETS
from exporter.modus.routes import LOOK_AGAIN
from tests.simulation import Clock
from tests.wire import counted, envelope, forget_environment, page, run

TOKEN = "modus_pat_org_prefix_secret"  # noqa: S105
HOST = "https://api.example"
RUNS = f"{HOST}/api/v1/agents/42/runs"
HANG = 10.0  # seconds


@pytest.fixture
def modus():
    """The API: the answers that a test adds, in turn, the last one for ever."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


@pytest.fixture
def connect(monkeypatch):
    """Make a client that does not sleep but notes in `pauses` how long it would have."""
    forget_environment(monkeypatch)
    with contextlib.ExitStack() as stack:

        def make(base_url=HOST, token=lambda: TOKEN, **options):
            pauses = []
            options = {"resource": "agents", "jitter": lambda: 1.0, "sleep": pauses.append} | options
            client = ModusClient(base_url, token, **options)
            client.pauses = pauses
            stack.callback(client.close)
            return client

        yield make


def ask(client, agent_id=42, **options):
    return client.runs(agent_id, **{"deadline": Deadline(HANG), "page_size": 100} | options)


def error_of(client, **options) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ask(client, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    return caught.value


def paths(modus) -> list[str]:
    return [call.request.url.removeprefix(HOST) for call in modus.calls]


# asking


def test_only_parameters_that_are_given_are_sent(modus, connect):
    modus.get(RUNS, json=page())
    client = connect()
    ask(client)
    query = {"page_token": "a=b&c", "status": "awaiting_human", "approval_scope": "all"}
    ask(client, **query, timeframe="last_day")
    assert paths(modus) == [
        "/api/v1/agents/42/runs?pageSize=100",
        "/api/v1/agents/42/runs?pageSize=100&pageToken=a%3Db%26c"
        "&status=awaiting_human&approvalScope=all&timeframe=last_day",
    ]


def test_one_run_is_asked_for_by_its_workflow_and_temporal_ids(modus, connect):
    modus.get(re.compile(RUNS), json=run())
    client = connect()
    assert client.run(42, "a/b?c#d e", "r&1", deadline=Deadline(HANG)).id == "wf-1:r1"
    client.run(42, "wf", None, deadline=Deadline(HANG))
    assert paths(modus) == [
        "/api/v1/agents/42/runs/a%2Fb%3Fc%23d%20e?temporalRunId=r%261",
        "/api/v1/agents/42/runs/wf",
    ]


@pytest.mark.parametrize("end", ["/modus", "/modus/", "/modus/api", "/modus/api/v1", "/modus/api/v1/"])
def test_a_base_url_may_have_a_path_and_name_what_follows_it_too(modus, connect, end):
    modus.get(f"{HOST}/modus/api/v1/agents/42/runs", json=page(error=3))
    assert ask(connect(HOST + end)).counts["error"] == 3


def test_every_request_names_the_exporter_and_carries_the_token_of_the_moment(modus, connect):
    modus.get(RUNS, json=page())
    tokens = iter(["first", "second"])
    client = connect(token=lambda: next(tokens))
    ask(client)
    ask(client)
    for call, token in zip(modus.calls, ["first", "second"], strict=True):
        assert call.request.headers == {
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "User-Agent": f"modus-exporter/{__version__}",
            "Authorization": f"Bearer {token}",
        }


def test_an_error_of_the_token_source_is_passed_on_and_nothing_is_asked(modus, connect):
    def missing():
        raise ApiError("unauthorized", "token_file: no such file")

    client = connect(token=missing)
    with pytest.raises(ApiError, match="token_file: no such file"):
        ask(client)
    assert counted(client) == {}
    assert not modus.calls


@pytest.mark.parametrize("token", ["", "secret\n", "secret\r\nX-Evil: 1", "secret 2", "secrét", "secret\x00"])
def test_a_token_that_no_header_can_carry_is_an_error_that_does_not_show_it(modus, connect, token):
    error = error_of(connect(token=lambda: token))
    assert error.reason == "unauthorized"
    assert "check the token" in error.line
    assert "secr" not in error.line
    assert not modus.calls


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("api.getmodus.com", r"is no http\(s\) URL$"),
        ("localhost:8080", r"is no http\(s\) URL$"),
        ("ftp://example.com", r"is no http\(s\) URL$"),
        ("user:hidden@api.getmodus.com", r"is no http\(s\) URL$"),
        ("http://", "is no URL"),
        ("http://[::1", "is no URL"),
    ],
)
def test_a_base_url_that_cannot_be_used_is_one_clear_error(connect, url, text):
    with pytest.raises(ApiError, match=rf"modus\.base_url {text}") as caught:
        connect(url)
    assert caught.value.reason == "connection"
    assert "hidden" not in str(caught.value)


def test_nothing_is_asked_when_no_time_is_left(modus, connect):
    client = connect()
    assert error_of(client, deadline=Deadline(0)).reason == "deadline"
    assert not modus.calls
    assert counted(client) == {}


# statuses


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "bad_response"),
        (401, "unauthorized"),
        (403, "forbidden"),
        (404, "not_found"),
        (409, "bad_response"),
        (422, "bad_response"),
        (429, "rate_limited"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_a_refusal_has_its_reason_and_quotes_message_and_request_id(modus, connect, status, reason):
    modus.get(RUNS, json=envelope("Something is wrong.", "req_77"), status=status)
    error = error_of(connect())
    assert (error.reason, error.status) == (reason, status)
    assert f"GET {RUNS}: {status} Something is wrong. (request req_77)" in str(error)


def test_an_answer_without_a_body_that_has_to_have_one_is_a_bad_response(modus, connect):
    modus.get(RUNS, status=204)
    error = error_of(connect())
    assert (error.reason, error.status) == ("bad_response", 204)


def test_a_403_names_the_missing_scopes(modus, connect):
    info = {"missing": ["agents:invoke", "agents:read"]}
    modus.get(RUNS, json={"error": {"message": "Missing.", "info": info}}, status=403)
    error = error_of(connect())
    assert error.missing == ("agents:invoke", "agents:read")
    assert error.hint == "give the token the scope agents:invoke and agents:read"


def test_every_reason_has_a_hint_and_the_line_ends_with_it(modus, connect):
    assert HINTS.keys() == set(REASONS)
    modus.get(RUNS, json=envelope("Busy."), status=429)
    error = error_of(connect())
    assert error.line == f"GET {RUNS}: 429 Busy. (request req_1): {HINTS['rate_limited']}"


@pytest.mark.parametrize(("token", "says"), [("secret", True), ("modus_pat_1", False)])
def test_a_refused_token_that_does_not_look_like_one_is_said_not_to(modus, connect, token, says):
    modus.get(RUNS, json=envelope("Invalid token."), status=401)
    hint = error_of(connect(token=lambda: token)).hint
    assert hint.startswith(HINTS["unauthorized"])
    assert hint.endswith("; a token of Modus begins with modus_") is says


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_time_frame_is_named(modus, connect, status):
    modus.get(RUNS, json=envelope("timeframe: expected one of last_hour, last_day."), status=status)
    assert error_of(connect(), timeframe="last_dya").hint.endswith("check runs.timeframe")
    assert "timeframe" not in error_of(connect()).hint


@pytest.mark.parametrize(
    ("status", "reason"), [(200, "bad_response"), (401, "unauthorized"), (403, "forbidden")]
)
def test_an_answer_in_another_form_than_the_apis_points_to_what_gave_it(modus, connect, status, reason):
    modus.get(RUNS, body="<html>Please log in</html>", content_type="text/html", status=status)
    error = error_of(connect())
    assert error.reason == reason
    assert "check modus.base_url" in error.hint


def test_texts_of_the_server_become_one_bounded_printable_line(modus, connect):
    body = envelope("a\nb\x00\u2028c\x1b[31m" + "x" * 10_000, "r\r\n" + "y" * 10_000)
    modus.get(RUNS, json=body, status=401)
    text = str(error_of(connect()))
    assert "a b\ufffd c\ufffd[31mxxx" in text
    assert text.isprintable()


@pytest.mark.parametrize(("status", "reason"), [(502, "server_error"), (401, "unauthorized")])
def test_an_error_page_of_a_proxy_is_quoted_at_its_start(modus, connect, status, reason):
    body = "<html>\r\n<h1>Bad gateway</h1>" + "x" * 10_000
    modus.get(RUNS, body=body, status=status, content_type="text/html")
    error = error_of(connect())
    assert error.reason == reason
    assert f"{status}, text/html, starts '<html> <h1>Bad gateway</h1>xxx" in str(error)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    "location", ["http://user@else.example/api", "//else.example", "http://else.example?q"]
)
def test_a_redirect_to_another_host_is_not_followed(modus, connect, status, location):
    modus.get(RUNS, status=status, headers={"Location": location})
    error = error_of(connect())
    assert error.reason == "bad_response"
    assert f"{status}, a redirect to else.example, is not followed: correct modus.base_url" in error.line
    assert len(modus.calls) == 1


@pytest.mark.parametrize("location", ["/login", "http://[::1", "", "x" * 5000])
def test_any_other_redirect_is_not_followed_either(modus, connect, location):
    modus.get(RUNS, status=302, headers={"Location": location})
    assert error_of(connect()).reason == "bad_response"
    assert len(modus.calls) == 1


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (407, "Proxy Authentication Required", "name the proxy's user and password: http_proxy="),
        (304, "", "this is no answer of the Modus API: check modus.base_url and the proxy"),
        (400, "The plain HTTP request was sent to HTTPS port", "write https:// in modus.base_url"),
    ],
)
def test_a_refusal_that_the_configuration_can_mend_says_how(modus, connect, status, body, advice):
    modus.get(RUNS, body=body, status=status)
    assert advice in error_of(connect()).hint


# asking again


def test_resets_are_tried_again_with_pauses_that_double(modus, connect):
    for _ in range(RETRIES):
        modus.get(RUNS, body=requests.ConnectionError(ConnectionResetError()))
    modus.get(RUNS, json=page(error=1))
    client = connect()
    assert ask(client).counts["error"] == 1
    assert client.pauses == [BACKOFF, 2 * BACKOFF]
    assert counted(client) == {("list_runs", "connection"): 2, ("list_runs", "200"): 1}


def test_after_the_last_retry_the_error_is_that_of_the_connection(modus, connect):
    modus.get(RUNS, body=requests.ConnectionError(ConnectionResetError()))
    error = error_of(connect())
    assert (error.reason, "reset" in str(error)) == ("connection", True)
    assert len(modus.calls) == 1 + RETRIES


def test_server_errors_are_tried_again(modus, connect):
    for answer in ({"status": 503}, {"status": 500}, {"json": page(error=2)}):
        modus.get(RUNS, **answer)
    client = connect()
    assert ask(client).counts["error"] == 2
    assert client.pauses == [BACKOFF, 2 * BACKOFF]


def test_server_errors_are_not_tried_for_ever(modus, connect):
    modus.get(RUNS, status=500)
    assert error_of(connect()).reason == "server_error"
    assert len(modus.calls) == 1 + RETRIES


def test_pauses_are_drawn_anew_from_zero_to_their_length(modus, connect):
    modus.get(RUNS, status=500)
    draws = itertools.cycle([0.25, 0.0])
    client = connect(jitter=lambda: next(draws))
    error_of(client)
    assert client.pauses == [0.25 * BACKOFF, 0.0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429])
def test_refusals_are_not_tried_again(modus, connect, status):
    modus.get(RUNS, status=status)
    error_of(connect())
    assert len(modus.calls) == 1


def test_a_pause_beyond_the_deadline_is_not_begun(modus, connect):
    modus.get(RUNS, status=500)
    client = connect(jitter=lambda: 5 / BACKOFF)
    assert error_of(client, deadline=Deadline(4)).reason == "server_error"
    assert (client.pauses, len(modus.calls)) == ([], 1)


def test_retries_share_the_limit(modus, connect):
    modus.get(RUNS, status=500)
    clock = Clock()
    client = connect(
        timeout=0.5, monotonic=clock, sleep=clock.advance, jitter=itertools.cycle([0.45 / BACKOFF]).__next__
    )
    assert error_of(client, deadline=Deadline(HANG, clock)).reason == "server_error"
    assert len(modus.calls) == 2


# silence


def limited(modus, connect, status, retry_after):
    clock = Clock(1_000_000.0)
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    headers |= {"Date": formatdate(clock.now, usegmt=True)}
    modus.get(re.compile(HOST), status=status, headers=headers)
    modus.get(re.compile(HOST), json=page())
    return clock, connect(clock=clock, monotonic=clock)


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        ("7", 7),
        (formatdate(1_000_020, usegmt=True), 20),
        ("86400", LONGEST_PAUSE),
        ("9" * 6000, LONGEST_PAUSE),
        (formatdate(2_000_000, usegmt=True), LONGEST_PAUSE),
        ("-5", DEFAULT_PAUSE),
        ("nan", DEFAULT_PAUSE),
        ("soon", DEFAULT_PAUSE),
        ("", DEFAULT_PAUSE),
        (None, DEFAULT_PAUSE),
    ],
)
def test_a_429_closes_the_client_until_its_retry_after(modus, connect, retry_after, pause):
    clock, client = limited(modus, connect, 429, retry_after)
    error = error_of(client, deadline=Deadline(HANG, clock))
    assert (error.reason, error.status) == ("rate_limited", 429)
    clock.now += pause - 0.001
    for agent_id in (42, 43):
        error = error_of(client, agent_id=agent_id, deadline=Deadline(HANG, clock))
        assert (error.reason, error.status, "not asked" in str(error)) == ("rate_limited", None, True)
    assert len(modus.calls) == 1
    clock.now += 0.002
    ask(client, deadline=Deadline(HANG, clock))
    assert counted(client) == {("list_runs", "429"): 1, ("list_runs", "200"): 1}


@pytest.mark.parametrize("retry_after", ["0", formatdate(999_000, usegmt=True)])
def test_a_429_whose_time_is_over_closes_nothing(modus, connect, retry_after):
    clock, client = limited(modus, connect, 429, retry_after)
    error_of(client, deadline=Deadline(HANG, clock))
    ask(client, deadline=Deadline(HANG, clock))


def test_a_503_with_retry_after_closes_the_client_as_a_429_does(modus, connect):
    clock, client = limited(modus, connect, 503, "120")
    for agent_id in (42, 42, 43):
        error = error_of(client, agent_id=agent_id, deadline=Deadline(HANG, clock))
        assert error.reason == "server_error"
    assert (len(modus.calls), client.pauses) == (1, [])
    clock.now += 120.001
    ask(client, deadline=Deadline(HANG, clock))


@pytest.mark.parametrize("retry_after", [None, "", "soon", "0"])
def test_a_503_that_names_no_time_is_tried_again(modus, connect, retry_after):
    clock, client = limited(modus, connect, 503, retry_after)
    ask(client, deadline=Deadline(HANG, clock))
    assert client.pauses == [BACKOFF]


def test_a_retry_is_not_sent_to_a_client_that_was_closed_meanwhile(modus, connect):
    modus.get(RUNS, status=500)
    modus.get(f"{HOST}/api/v1/agents/43/runs", status=429, headers={"Retry-After": "60"})
    client = connect(sleep=lambda _: error_of(client, agent_id=43))
    assert error_of(client).reason == "rate_limited"
    assert len(modus.calls) == 2


# the limit of our own


def test_requests_are_no_more_than_the_limit_allows_whoever_asks(modus, connect):
    modus.get(re.compile(HOST), json=page())
    clock = Clock()
    client = connect(max_requests_per_second=4, monotonic=clock, sleep=clock.advance)
    began = clock.now
    for n in range(9):
        ask(client, agent_id=n, deadline=Deadline(60, clock))
    assert clock.now - began == pytest.approx(2)


def test_a_turn_that_would_come_after_the_deadline_is_not_waited_for(modus, connect):
    modus.get(RUNS, json=page())
    clock = Clock()
    client = connect(max_requests_per_second=0.1, monotonic=clock, sleep=clock.advance)
    ask(client, deadline=Deadline(60, clock))
    began = clock.now
    error = error_of(client, deadline=Deadline(5, clock))
    assert (error.reason, "modus.max_requests_per_second" in str(error)) == ("deadline", True)
    assert (clock.now, len(modus.calls)) == (began, 1)
    ask(client, deadline=Deadline(60, clock))
    assert clock.now - began == pytest.approx(10), "the turn that nobody waited for is not lost"


def test_a_deadline_that_ends_while_a_turn_is_waited_for_ends_the_wait(modus, connect):
    modus.get(RUNS, json=page())
    clock, deadline = Clock(), Deadline(60)

    def sleep(seconds):
        clock.advance(seconds)
        deadline.end()

    client = connect(max_requests_per_second=0.1, monotonic=clock, sleep=sleep)
    ask(client)
    began = clock.now
    assert error_of(client, deadline=deadline).reason == "deadline"
    assert clock.now - began < 1


def test_retries_keep_to_the_limit_too(modus, connect):
    modus.get(RUNS, status=500)
    clock = Clock()
    client = connect(max_requests_per_second=1, monotonic=clock, sleep=clock.advance, jitter=lambda: 0.0)
    began = clock.now
    error_of(client, deadline=Deadline(60, clock))
    assert (len(modus.calls), clock.now - began) == (3, pytest.approx(2))


# the route


def routed(modus, *known, agents=("42",)):
    """Give the API the routes and the agents named."""

    def answer(request):
        _, _, _, route, agent, *_ = request.path_url.partition("?")[0].split("/")
        fine = route in known and agent in agents
        return (200, {}, '{"runs": []}') if fine else (404, {}, "{}")

    modus.reset()
    modus.add_callback(responses.GET, re.compile(HOST), answer)


def asked(modus) -> list[str]:
    return [path.split("/")[3] for path in paths(modus)]


def test_the_route_agents_comes_first(modus, connect):
    routed(modus, "agents", "workflows")
    ask(connect(resource="auto"))
    assert asked(modus) == ["agents"]


def test_the_renamed_route_is_found_remembered_and_told_once(modus, connect, caplog):
    caplog.set_level(logging.INFO)
    routed(modus, "workflows")
    client = connect(resource="auto")
    for _ in range(3):
        ask(client)
    assert asked(modus) == ["agents", *["workflows"] * 3]
    assert [record.getMessage() for record in caplog.records] == ["the API answers on /api/v1/workflows"]


@pytest.mark.parametrize("resource", ["agents", "workflows"])
def test_a_pinned_route_is_the_only_one_asked(modus, connect, resource):
    routed(modus)
    error_of(connect(resource=resource))
    assert asked(modus) == [resource]


def test_an_unknown_agent_costs_one_request_once_the_route_is_known(modus, connect):
    routed(modus, "workflows")
    client = connect(resource="auto")
    ask(client)
    modus.calls.reset()
    for _ in range(3):
        assert error_of(client, agent_id=99).reason == "not_found"
    ask(client)
    assert asked(modus) == ["workflows"] * 4


def test_an_unknown_agent_teaches_no_route(modus, connect):
    routed(modus, "agents")
    client = connect(resource="auto")
    for _ in range(2):
        error = error_of(client, agent_id=99)
        assert (error.reason, error.status) == ("not_found", 404)
        assert "this id or route is unknown" in str(error)
    ask(client)
    assert asked(modus) == ["agents", "workflows"] * 2 + ["agents"]


def test_a_rename_while_running_is_noticed_after_a_while(modus, connect):
    clock = Clock()
    routed(modus, "agents")
    client = connect(resource="auto", monotonic=clock)
    ask(client, deadline=Deadline(60, clock))
    routed(modus, "workflows")
    error_of(client, deadline=Deadline(60, clock))
    clock.advance(LOOK_AGAIN + 1)
    for _ in range(2):
        ask(client, deadline=Deadline(60, clock))
    assert asked(modus) == [*["agents"] * 2, *["workflows"] * 2]


def test_a_rename_is_found_though_a_deleted_agent_is_always_asked_first(modus, connect):
    clock = Clock()
    routed(modus, "agents")
    client = connect(resource="auto", monotonic=clock)
    ask(client, deadline=Deadline(60, clock))
    routed(modus, "workflows")
    clock.advance(LOOK_AGAIN + 1)
    error_of(client, agent_id=99, deadline=Deadline(60, clock))  # uses up the look at the other route
    ask(client, deadline=Deadline(60, clock))
    assert asked(modus) == ["agents", "workflows"] * 2


def test_deleted_agents_beside_others_cost_a_look_at_the_other_route_now_and_then_only(modus, connect):
    clock = Clock()
    routed(modus, "agents")
    client = connect(resource="auto", monotonic=clock)
    for _ in range(20):
        ask(client, deadline=Deadline(60, clock))
        error_of(client, agent_id=99, deadline=Deadline(60, clock))
        clock.advance(60)
    assert asked(modus).count("workflows") == 20 * 60 / LOOK_AGAIN - 1


def test_a_missing_scope_proves_the_route(modus, connect):
    refusal = {"error": {"message": "Missing.", "requestId": "r", "info": {"missing": ["workflows:invoke"]}}}
    modus.get(RUNS, status=404)
    modus.get(RUNS.replace("agents", "workflows"), json=refusal, status=403)
    client = connect(resource="auto")
    for _ in range(2):
        assert error_of(client).missing == ("workflows:invoke",)
    assert asked(modus) == ["agents", "workflows", "workflows"]


# the API's clock

OURS = 1782903600.5  # Wed, 01 Jul 2026 11:00:00.5 GMT


def dated(modus, agent_id, date):
    modus.get(f"{HOST}/api/v1/agents/{agent_id}/runs", json=page(), headers={"Date": date})


@pytest.mark.parametrize(
    ("date", "now"),
    [
        ("Wed, 01 Jul 2026 10:00:00 GMT", 1782900000.0),  # an hour behind the exporter
        ("Wed, 01 Jul 2026 12:00:00 GMT", 1782907200.0),  # an hour ahead
        ("Wed, 01 Jul 2026 10:59:59 GMT", OURS),  # nearer than a header can tell
        ("Wed, 01 Jul 2026 11:00:02 GMT", OURS),
        ("yesterday", OURS),
        ("Wed, 99 Jul 2026 10:00:00 GMT", OURS),
        ("Wed, 01 Jul 99999999999 10:00:00 GMT", OURS),
        ("Thu, 01 Jan 1970 00:00:00 GMT", OURS),
        ("Thu, 01 Jan 0001 00:00:00 +2359", OURS),
        ("Fri, 31 Dec 9999 23:59:59 GMT", OURS),
        ("x" * 60_000, OURS),
        ("", OURS),
    ],
)
def test_a_page_tells_the_time_of_the_api(modus, connect, date, now):
    dated(modus, 42, date)
    answer = ask(connect(clock=lambda: OURS))
    assert (answer.now, answer.skew) == (now, now - OURS)


def test_a_year_that_no_server_lives_in_is_believed_by_nobody(modus, connect):
    client = connect(clock=lambda: OURS)
    assert skews(modus, client, 1, "Fri, 31 Dec 9999 23:59:59 GMT", times=10) == [0] * 10


def skews(modus, client, agent_id, date, times=1):
    modus.reset()
    dated(modus, agent_id, date)
    return [round(ask(client, agent_id=agent_id).skew) for _ in range(times)]


@pytest.mark.parametrize("odd", ["Thu, 01 Jan 1970 00:00:00 GMT", "Wed, 01 Jul 2026 10:00:00 GMT"])
def test_one_odd_agent_moves_no_clock_however_often_it_answers(modus, connect, odd):
    client = connect(clock=lambda: OURS)
    for agent_id in (1, 2, 3):
        assert skews(modus, client, agent_id, "Wed, 01 Jul 2026 11:00:00 GMT") == [0]
    assert skews(modus, client, 4, odd, times=40) == [0] * 40


def test_an_odd_first_answer_is_outvoted_by_the_next(modus, connect):
    client = connect(clock=lambda: OURS)
    skews(modus, client, 4, "Wed, 01 Jul 2026 10:00:00 GMT")
    assert skews(modus, client, 1, "Wed, 01 Jul 2026 11:00:00 GMT") == [0]


def test_agents_that_are_gone_outvote_nobody(modus, connect):
    ours = [OURS]
    client = connect(clock=lambda: ours[0])
    for agent_id in (1, 2):
        skews(modus, client, agent_id, "Wed, 01 Jul 2026 10:00:00 GMT", times=3)
    ours[0] += 700
    assert skews(modus, client, 3, "Wed, 01 Jul 2026 12:11:40 GMT", times=3)[-1] == 3600


@pytest.mark.parametrize("agents", [1, 2, 50])
def test_a_clock_that_really_steps_is_believed_within_some_answers(modus, connect, agents):
    client = connect(clock=lambda: OURS)
    for agent_id in range(agents):
        skews(modus, client, agent_id, "Wed, 01 Jul 2026 11:00:00 GMT", times=3)
    seen = []
    for n in range(30):
        seen += skews(modus, client, n % agents, "Wed, 01 Jul 2026 10:00:00 GMT")
    assert seen[0] == 0
    assert seen[-1] == round(1782900000.0 - OURS)


# what is counted


def test_requests_are_counted_by_operation_and_status_with_their_durations(modus, connect):
    modus.get(RUNS, json=page())
    modus.get(f"{HOST}/api/v1/agents/9/runs", status=403)
    modus.get(f"{HOST}/api/v1/agents", json={"agents": []})
    client = connect()
    ask(client)
    ask(client)
    error_of(client, agent_id=9)
    client.agents(deadline=Deadline(HANG))
    assert counted(client) == {("list_runs", "200"): 2, ("list_runs", "403"): 1, ("list_agents", "200"): 1}
    durations = client.stats().durations["list_runs"]
    assert len(durations.buckets) == len(REQUEST_BUCKETS) + 1
    assert sum(durations.buckets) == 3
    assert durations.sum > 0
    ask(client)
    assert sum(durations.buckets) == 3, "the copy stays as it was"


def test_a_request_falls_into_the_bucket_of_its_duration(modus, connect):
    clock = Clock()
    modus.add_callback(responses.GET, RUNS, lambda _: (200, {}, clock.advance(0.3) or '{"runs": []}'))
    client = connect(monotonic=clock)
    ask(client, deadline=Deadline(HANG, clock))
    counted(client)
    durations = client.stats().durations["list_runs"]
    assert durations.buckets[REQUEST_BUCKETS.index(0.5)] == 1
    assert durations.sum == pytest.approx(0.3)


def test_what_is_asked_for_the_first_time_is_shown_at_zero_once(modus, connect):
    """A counter that is born at 1 is invisible to increase()."""
    modus.get(RUNS, json=page())
    modus.get(f"{HOST}/api/v1/agents/9/runs", status=403)
    client = connect()
    assert client.stats().requests == {}
    ask(client)
    ask(client)
    first = client.stats()
    assert (first.requests, first.durations["list_runs"].sum) == ({("list_runs", "200"): 0}, 0.0)
    error_of(client, agent_id=9)
    second = client.stats()
    assert second.requests == {("list_runs", "200"): 2, ("list_runs", "403"): 0}
    assert sum(second.durations["list_runs"].buckets) == 3
    assert client.stats().requests == {("list_runs", "200"): 2, ("list_runs", "403"): 1}


def test_a_client_that_replaces_another_counts_on(modus, connect):
    modus.get(RUNS, json=page())
    client = connect()
    ask(client)
    client.stats()
    second = connect(requests_so_far=client.requests_so_far)
    ask(second)
    assert second.stats().requests == {("list_runs", "200"): 2}


def test_threads_lose_no_count(modus, connect):
    modus.get(RUNS, json=page())
    client = connect()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: ask(client), range(200)))
    assert counted(client) == {("list_runs", "200"): 200}


# secrets


def hidden_in(answer) -> str:
    """All that the answer says, with what is in base64 read too."""
    text = repr(answer)
    for letters in re.findall("[A-Za-z0-9+/_-]{16,}", text):
        for start in range(4):
            part = letters[start : start + (len(letters) - start) // 4 * 4]
            text += base64.b64decode(part, altchars=b"-_", validate=False).decode("latin-1")
    return text


@pytest.mark.parametrize(
    "echo",
    [
        TOKEN,
        f"Bearer {TOKEN}",
        f"wf-{TOKEN}:r1",
        base64.b64encode(TOKEN.encode()).decode(),
        base64.b64encode(f"Bearer {TOKEN}".encode()).decode(),
        base64.b64encode(f"x {TOKEN} y".encode()).decode(),
        base64.urlsafe_b64encode(f"u:{TOKEN}".encode()).decode(),
    ],
)
@pytest.mark.parametrize("spelling", [str, lambda text: "".join(f"\\u{ord(c):04x}" for c in text)])
def test_a_token_that_the_api_echoes_is_in_nothing_that_was_decoded(modus, connect, echo, spelling):
    fields = dict.fromkeys(("id", "status", "agentName", "triggerType", "temporalRunId"), "HERE")
    odd = {"id": "HERE"}
    body = json.dumps(
        {"runs": [run(**fields), odd], "counts": {"HERE": 1}, "agents": [{"id": 1, "name": "HERE"}]}
    )
    body = body.replace("HERE", spelling(echo))
    modus.get(re.compile(HOST), body=body, content_type="application/json")
    client = connect()
    for answer in (ask(client), client.agents(deadline=Deadline(HANG))):
        assert "***" in repr(answer)
        assert "prefix_secr" not in hidden_in(answer)


def test_text_that_is_escaped_for_no_reason_stays_what_it_says(modus, connect):
    body = json.dumps({"runs": [run(agentName="HERE")]})
    body = body.replace("HERE", r"a\/b \u0041\\u0041 \u0022 \u005c \u00e9 \"")
    modus.get(RUNS, body=body)
    assert ask(connect()).runs[0].agent_name == 'a/b A\\u0041 " \\ é "'
