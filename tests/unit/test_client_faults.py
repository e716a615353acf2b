"""ModusClient when the API, the network or a proxy misbehaves: the reason, the time and the secrets kept."""

import contextlib
import gzip
import itertools
import json
import logging
import socket
import threading
import time
import traceback
import tracemalloc
import zlib
from email.utils import formatdate

import pytest

from exporter.modus.client import BACKOFF, DEFAULT_PAUSE, LONGEST_PAUSE, RETRIES, ModusClient
from exporter.modus.model import ApiError
from tests.wire import Wire, answering, failure, page, response, run

TOKEN = "modus_pat_org_prefix_secret"  # noqa: S105
HANG = 10.0  # seconds: only a protection that is gone takes this long


@pytest.fixture
def api(monkeypatch):
    """Start a server that plays a script per connection; get it and a client that notes its pauses."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with contextlib.ExitStack() as stack:

        def start(script, url=None, **options):
            wire = Wire(script)
            stack.callback(wire.close)
            wire.pauses = []
            options = {"resource": "agents", "jitter": lambda: 1.0, "sleep": wire.pauses.append} | options
            client = ModusClient(url or wire.url, options.pop("token", lambda: TOKEN), **options)
            stack.callback(client.close)
            return wire, client

        yield start


def ask(client, deadline=HANG, agent_id=42):
    return client.runs(agent_id, deadline=time.monotonic() + deadline, page_size=100)


def error_of(client, **options) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ask(client, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
    return caught.value


def in_turn(*answers):
    """A script that gives each request the next answer, then the last one for ever; None resets."""
    left = list(answers)

    def script(peer):
        while peer.request():
            answer = left.pop(0) if len(left) > 1 else left[0]
            if answer is None:
                peer.reset()
                return
            peer.send(answer)

    return script


def always(answer):
    return answering(lambda _: answer)


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
        (204, "bad_response"),
    ],
)
def test_a_refusal_has_its_reason_and_quotes_message_and_request_id(api, status, reason):
    answer = failure(status, "Something is wrong.", "req_77") if status != 204 else response(b"", 204)
    wire, client = api(always(answer))
    error = error_of(client)
    assert (error.reason, error.status) == (reason, status)
    assert f"GET {wire.url}/api/v1/agents/42/runs: {status}" in str(error)
    if status != 204:
        assert "Something is wrong. (request req_77)" in str(error)


def test_a_403_names_the_missing_scopes(api):
    info = {"missing": ["agents:invoke", "agents:read"]}
    _, client = api(always(response({"error": {"message": "Missing.", "info": info}}, 403)))
    error = error_of(client)
    assert error.missing == ("agents:invoke", "agents:read")
    assert "the token lacks agents:invoke, agents:read" in str(error)


def test_texts_of_the_server_become_one_bounded_printable_line(api):
    _, client = api(always(failure(401, "a\nb\x00\u2028c\x1b[31m" + "x" * 10_000, "r\r\n" + "y" * 10_000)))
    text = str(error_of(client))
    assert "a b\ufffd c\ufffd[31mxxx" in text
    assert text.isprintable()


@pytest.mark.parametrize(("status", "reason"), [(502, "server_error"), (401, "unauthorized")])
def test_an_error_page_of_a_proxy_is_quoted_at_its_start(api, status, reason):
    body = b"<html>\r\n<h1>Bad gateway</h1>" + b"x" * 10_000
    _, client = api(always(response(body, status, Content_Type="text/html")))
    error = error_of(client)
    assert error.reason == reason
    assert f"{status}, text/html, starts '<html> <h1>Bad gateway</h1>xxx" in str(error)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("path", ["/api/v1/agents/42/runs", ""])
def test_a_redirect_to_another_host_is_not_followed(api, status, path):
    other, _ = api(always(response(page())))
    host = other.url.removeprefix("http://")
    _, client = api(always(response(b"", status, Location=f"http://user@{host}{path}?q")))
    error = error_of(client)
    assert error.reason == "bad_response"
    assert f"{status}, a redirect to {host}, is not followed: correct modus.base_url" in str(error)
    assert other.connections == 0


@pytest.mark.parametrize("location", ["/login", "http://[::1", "", "x" * 5000])
def test_any_other_redirect_is_not_followed_either(api, location):
    wire, client = api(always(response(b"", 302, Location=location)))
    assert error_of(client).reason == "bad_response"
    assert len(wire.requests) == 1


# connections


def test_a_refused_connection_says_so_and_is_not_tried_again(api):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    wire, client = api(always(b""), url=f"http://127.0.0.1:{port}")
    error = error_of(client)
    assert (error.reason, error.status) == ("connection", None)
    assert str(error) == f"GET http://127.0.0.1:{port}/api/v1/agents/42/runs: connection refused"
    assert client.stats().requests == {("list_runs", "connection"): 1}
    assert wire.pauses == []


def test_a_name_that_does_not_resolve_says_dns(api):
    _, client = api(always(b""), url=f"http://{'a' * 64}.example")
    error = error_of(client)
    assert (error.reason, "DNS" in str(error)) == ("connection", True)


def test_a_server_that_speaks_no_tls_says_tls(api):
    wire, _ = api(always(b""))

    def script(peer):
        peer.sock.recv(100)
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    wire, client = api(script, url="https://127.0.0.1:1")
    client.close()
    with contextlib.closing(ModusClient(wire.url.replace("http:", "https:"), lambda: TOKEN)) as client:
        error = error_of(client)
    assert error.reason == "connection"
    assert "TLS: " in str(error)


@pytest.mark.parametrize("junk", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 abc Any\r\n\r\n"])
def test_an_answer_that_is_no_http_is_a_bad_response(api, junk):
    _, client = api(always(junk))
    assert error_of(client).reason == "bad_response"


def test_malformed_headers_are_a_bad_response(api):
    _, client = api(always(response(page()).replace(b"Content-Type:", b"Content-Type")))
    assert error_of(client).reason == "bad_response"


def test_endless_headers_are_a_bad_response(api):
    def script(peer):
        peer.request()
        peer.send(b"HTTP/1.1 200 Any\r\n")
        while True:
            peer.send(b"X-A: b\r\n" * 1000)

    _, client = api(script)
    assert error_of(client).reason == "bad_response"


def test_resets_are_tried_again_with_pauses_that_double(api):
    def script(peer):
        peer.request()
        if peer.number < RETRIES:
            peer.reset()
        else:
            peer.send(response(page(error=1)))

    wire, client = api(script)
    assert ask(client).counts["error"] == 1
    assert wire.pauses == [BACKOFF, 2 * BACKOFF]
    assert client.stats().requests == {("list_runs", "connection"): 2, ("list_runs", "200"): 1}


def test_a_reset_in_the_middle_of_a_body_is_tried_again(api):
    def script(peer):
        peer.request()
        whole = response(page())
        if peer.number:
            peer.send(whole)
        else:
            peer.send(whole[:-5])
            peer.reset()

    wire, client = api(script)
    ask(client)
    assert wire.connections == 2


def test_after_the_last_retry_the_error_is_that_of_the_connection(api):
    wire, client = api(in_turn(None))
    error = error_of(client)
    assert error.reason == "connection"
    assert "reset" in str(error)
    assert len(wire.requests) == 1 + RETRIES


def test_server_errors_are_tried_again(api):
    wire, client = api(in_turn(failure(503), failure(500), response(page(error=2))))
    assert ask(client).counts["error"] == 2
    assert wire.pauses == [BACKOFF, 2 * BACKOFF]


def test_server_errors_are_not_tried_for_ever(api):
    wire, client = api(always(failure(500)))
    assert error_of(client).reason == "server_error"
    assert len(wire.requests) == 1 + RETRIES


def test_pauses_are_drawn_anew_from_zero_to_their_length(api):
    draws = itertools.cycle([0.25, 0.0])
    wire, client = api(always(failure(500)), jitter=lambda: next(draws))
    error_of(client)
    assert wire.pauses == [0.25 * BACKOFF, 0.0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429])
def test_refusals_are_not_tried_again(api, status):
    wire, client = api(always(failure(status)))
    error_of(client)
    assert len(wire.requests) == 1


def test_a_pause_beyond_the_deadline_is_not_begun(api):
    wire, client = api(always(failure(500)), jitter=lambda: 5 / BACKOFF)
    assert error_of(client, deadline=4).reason == "server_error"
    assert (wire.pauses, len(wire.requests)) == ([], 1)


@pytest.mark.parametrize("reset", [True, False])
def test_connections_that_the_server_dropped_while_idle_are_no_error(api, reset):
    meet = threading.Barrier(4)

    def script(peer):
        peer.request()
        if peer.number < 4:
            meet.wait(HANG)  # four connections are open at once
        peer.send(response(page()))
        if peer.number < 4:
            peer.request()  # is read, but nobody answers it
            if reset:
                peer.reset()
        elif peer.request():
            peer.send(response(page()))

    wire, client = api(script)
    threads = [threading.Thread(target=ask, args=(client,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ask(client)
    assert wire.pauses == []
    assert wire.connections == 5


# time


def silent(peer):
    peer.request()
    peer.wire.closing.wait(HANG)


def trickled_headers(peer):
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nX-Long: ")
    peer.trickle(itertools.repeat(b"x"))


def trickled_body(peer):
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    peer.trickle(itertools.repeat(b" "))


def trickled_chunks(peer):
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    peer.trickle(itertools.cycle([b"1", b"\r\n", b" ", b"\r\n"]))


def endless_interim_answers(peer):
    peer.request()
    peer.trickle(itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"))


SLOW = [silent, trickled_headers, trickled_body, trickled_chunks, endless_interim_answers]


@pytest.mark.parametrize("script", SLOW)
@pytest.mark.parametrize(("timeout", "deadline", "reason"), [(0.3, HANG, "timeout"), (HANG, 0.3, "deadline")])
def test_a_slow_server_costs_no_more_than_the_limit(api, script, timeout, deadline, reason):
    wire, client = api(script, timeout=timeout)
    begin = time.monotonic()
    error = error_of(client, deadline=deadline)
    assert time.monotonic() - begin < HANG / 2
    assert error.reason == reason
    assert ("modus.timeout" if reason == "timeout" else "the scrape's deadline") in str(error)
    assert len(wire.requests) == 1
    assert client.stats().requests == {("list_runs", reason): 1}


@pytest.mark.parametrize("greeting", [b"", b"\x16\x03\x03\x0f\xff" + b"\x02" * 4000])
def test_a_tls_handshake_that_never_ends_costs_no_more_than_the_limit(api, greeting):
    def script(peer):
        peer.sock.recv(100)
        peer.trickle(greeting[n : n + 1] for n in range(len(greeting)))
        peer.wire.closing.wait(HANG)

    wire, _ = api(script)
    tls = wire.url.replace("http:", "https:")
    with contextlib.closing(ModusClient(tls, lambda: TOKEN, timeout=0.3)) as client:
        begin = time.monotonic()
        assert error_of(client).reason == "timeout"
    assert time.monotonic() - begin < HANG / 2


def test_a_proxy_that_trickles_its_consent_costs_no_more_than_the_limit(api, monkeypatch):
    wire, _ = api(trickled_headers)
    monkeypatch.setenv("https_proxy", wire.url)
    with contextlib.closing(ModusClient("https://127.0.0.1:1", lambda: TOKEN, timeout=0.3)) as client:
        begin = time.monotonic()
        assert error_of(client).reason == "timeout"
    assert time.monotonic() - begin < HANG / 2


def test_time_spent_in_the_tunnel_is_missing_in_the_handshake(api, monkeypatch):
    """The handshake has what is left, not what was left when the tunnel was last read."""

    def script(peer):
        peer.request()
        if not peer.wire.closing.wait(1.5):
            peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
            peer.wire.closing.wait(HANG)

    wire, _ = api(script)
    monkeypatch.setenv("https_proxy", wire.url)
    with contextlib.closing(ModusClient("https://127.0.0.1:1", lambda: TOKEN, timeout=2)) as client:
        begin = time.monotonic()
        assert error_of(client).reason == "timeout"
    assert time.monotonic() - begin < 3


@pytest.fixture
def deaf():
    """The port of a listener whose queue is full: connecting to it never ends."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_connecting_costs_no_more_than_the_limit(api, deaf):
    _, client = api(silent, url=f"http://127.0.0.1:{deaf}", timeout=0.3)
    begin = time.monotonic()
    assert error_of(client).reason == "timeout"
    assert time.monotonic() - begin < HANG / 2


def resolving_to(monkeypatch, *addresses):
    """Have any name resolve to these addresses: no resolver on loopback can be told to."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_several_deaf_addresses_share_the_limit(api, deaf, monkeypatch):
    _, client = api(silent, url=f"http://several.example:{deaf}", timeout=1)
    resolving_to(monkeypatch, *[("127.0.0.1", deaf)] * 4)
    begin = time.monotonic()
    assert error_of(client).reason == "timeout"
    assert time.monotonic() - begin < 2


def test_a_deaf_address_leaves_time_for_the_next(api, deaf, monkeypatch):
    wire, client = api(always(response(page())), url="http://several.example", timeout=1)
    resolving_to(monkeypatch, ("127.0.0.1", deaf), ("127.0.0.1", wire.port))
    ask(client)
    assert len(wire.requests) == 1


def test_nothing_is_asked_when_no_time_is_left(api):
    wire, client = api(always(response(page())))
    assert error_of(client, deadline=0).reason == "deadline"
    assert wire.connections == 0
    assert client.stats().requests == {}


def test_retries_share_the_limit(api):
    wire, client = api(in_turn(failure(500)), timeout=0.5, sleep=time.sleep, jitter=lambda: 0.45 / BACKOFF)
    begin = time.monotonic()
    assert error_of(client).reason == "server_error"
    assert time.monotonic() - begin < HANG / 2
    assert len(wire.requests) == 2


# bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"runs": []}',
        b'{"counts": {}}',
        b'{"runs": {}, "counts": {}}',
        b'{"runs": [null], "counts": {}}',
        b'{"runs": [{"id": "a:b"}], "counts": {}}',
        b'{"runs": [], "counts": {"running": "1"}}',
        b'{"runs": [], "counts": {"running": -1}}',
        b'{"runs": [], "counts": {"running": 1' + b"0" * 30 + b"}}",
        b'{"runs": [], "counts": {"running": 1' + b"0" * 6000 + b"}}",
        b'{"runs": [], "counts": {}, "nextPageToken": 7}',
        b'{"runs": [], "counts": {}, "x": NaN',
        b'{"runs": [], "counts": {}, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"runs": [], "counts": {"\xff": 1}}',
        b"\x80\x00\xff",
        b'{"runs": [], "counts": {}} trailing',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_a_body_that_is_no_page_is_a_bad_response(api, body):
    wire, client = api(always(response(body, Content_Type="application/json")))
    error = error_of(client)
    assert (error.reason, error.status) == ("bad_response", 200)
    assert "application/json, starts" in str(error)
    assert len(wire.requests) == 1, "the server would only say the same again"


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 6000, '"5"', "{}", "true"])
def test_a_duration_that_is_no_number_of_this_world_is_a_bad_response(api, number):
    body = json.dumps(page(run(durationMs="HERE"))).replace('"HERE"', number)
    _, client = api(always(response(body.encode())))
    assert error_of(client).reason == "bad_response"


@pytest.mark.parametrize(
    ("number", "duration"), [("NaN", -1), ("Infinity", -1), ("-Infinity", -1), ("null", None)]
)
def test_a_duration_that_is_not_a_number_is_one_that_cannot_be(api, number, duration):
    body = json.dumps(page(run(durationMs="HERE"), error=3)).replace('"HERE"', number)
    _, client = api(always(response(body.encode())))
    answer = ask(client)
    assert answer.runs[0].duration_ms == duration
    assert answer.counts["error"] == 3


def test_a_lone_surrogate_in_a_name_is_replaced(api):
    body = json.dumps(page(run(agentName="HERE"))).replace("HERE", r"a\ud800b\u6771")
    _, client = api(always(response(body.encode())))
    assert ask(client).runs[0].agent_name == "a?b東"


def test_a_page_of_html_says_what_came_instead(api):
    _, client = api(always(response(b"<!DOCTYPE html>\n<title>Log in</title>", Content_Type="text/html")))
    error = error_of(client)
    assert error.reason == "bad_response"
    assert "text/html, starts '<!DOCTYPE html> <title>Log in</title>'" in str(error)


def test_a_truncated_body_is_a_bad_response(api):
    def script(peer):
        peer.request()
        peer.send(response(page(run()))[:-20])

    wire, client = api(script)
    error = error_of(client)
    assert (error.reason, "truncated" in str(error)) == ("bad_response", True)
    assert len(wire.requests) == 1


def test_a_truncated_chunk_is_a_bad_response(api):
    def script(peer):
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\n{")

    _, client = api(script)
    assert error_of(client).reason == "bad_response"


@pytest.mark.parametrize("cut", [slice(0, 20), slice(5, None)])
def test_a_broken_gzip_body_is_a_bad_response(api, cut):
    body = gzip.compress(json.dumps(page(run())).encode())[cut]
    _, client = api(always(response(body, Content_Encoding="gzip")))
    assert error_of(client).reason == "bad_response"


def test_a_body_may_be_as_long_as_the_limit_and_no_longer(api):
    body = b'{"runs": [], "counts": {}}'
    _, client = api(always(response(body)), max_body=len(body))
    ask(client)
    _, client = api(always(response(body)), max_body=len(body) - 1)
    error = error_of(client)
    assert error.reason == "bad_response"
    assert f"more than {len(body) - 1} bytes" in str(error)


@pytest.fixture(scope="module")
def bomb():
    """300 MB of zeros, gzipped."""
    packer, zeros = zlib.compressobj(1, wbits=31), bytes(1 << 20)
    return b"".join([*(packer.compress(zeros) for _ in range(300)), packer.flush()])


@pytest.mark.parametrize("status", [200, 401])
def test_a_gzip_bomb_is_refused_in_bounded_memory(api, bomb, status):
    _, client = api(always(response(bomb, status, Content_Encoding="gzip")))
    tracemalloc.start()
    try:
        error = error_of(client)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.reason == "bad_response"
    assert peak < 24 << 20


def test_a_body_without_end_is_refused(api):
    def script(peer):
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            peer.send(bytes(1 << 16))

    _, client = api(script)
    assert error_of(client).reason == "bad_response"


def test_a_connection_with_a_refused_body_is_not_used_again(api):
    wire, client = api(in_turn(response(b" " * 10_000_000), response(page())))
    error_of(client)
    ask(client)
    assert wire.connections == 2


# rate limits


class Time:
    """A clock that a test moves; `now` in seconds of both clocks."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def limited(api, retry_after, **headers):
    clock = Time()
    headers = {} if retry_after is None else {"Retry_After": retry_after}
    headers |= {"Date": formatdate(clock.now, usegmt=True)}
    refusal, fine = failure(429, **headers), response(page())
    wire, client = api(in_turn(refusal, fine), clock=clock, monotonic=clock)
    return clock, wire, client


def call(client, clock, agent_id=42):
    return client.runs(agent_id, deadline=clock.now + HANG, page_size=1)


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        ("7", 7),
        (formatdate(1_000_020, usegmt=True), 20),
        (formatdate(999_000, usegmt=True), 0),
        ("0", 0),
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
def test_a_429_closes_the_client_until_its_retry_after(api, retry_after, pause):
    clock, wire, client = limited(api, retry_after)
    with pytest.raises(ApiError) as caught:
        call(client, clock)
    assert (caught.value.reason, caught.value.status) == ("rate_limited", 429)
    clock.now += pause - 0.001
    for agent_id in (42, 43) if pause else ():
        with pytest.raises(ApiError, match="not asked") as caught:
            call(client, clock, agent_id)
        assert (caught.value.reason, caught.value.status) == ("rate_limited", None)
    assert len(wire.requests) == 1
    clock.now += 0.002
    call(client, clock)
    assert len(wire.requests) == 2
    assert client.stats().requests == {("list_runs", "429"): 1, ("list_runs", "200"): 1}


def test_a_429_without_a_whole_body_closes_the_client_too(api):
    def script(peer):
        peer.request()
        peer.send(failure(429, Retry_After="60")[:-10])

    wire, client = api(script)
    error_of(client)
    assert error_of(client).reason == "rate_limited"
    assert len(wire.requests) == 1


def test_a_shorter_pause_does_not_cut_a_longer_one(api):
    clock = Time()
    meet = threading.Barrier(2)

    def answer(head):
        meet.wait(HANG)  # both were asked before the first is answered
        return failure(429, Retry_After="100" if "/1/" in head else "1")

    wire, client = api(answering(answer), clock=clock, monotonic=clock)

    def read(agent_id):
        with contextlib.suppress(ApiError):
            call(client, clock, agent_id)

    threads = [threading.Thread(target=read, args=(agent_id,)) for agent_id in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now += 50
    with pytest.raises(ApiError, match="not asked"):
        call(client, clock)
    assert len(wire.requests) == 2


def test_a_call_in_flight_finishes_when_another_is_limited(api):
    limited_now, arrived, got = threading.Event(), threading.Event(), []

    def answer(head):
        if "/1/" in head:
            arrived.set()
            limited_now.wait(HANG)
            return response(page(error=4))
        return failure(429, Retry_After="60")

    _, client = api(answering(answer))
    thread = threading.Thread(target=lambda: got.append(ask(client, agent_id=1)))
    thread.start()
    arrived.wait(HANG)
    error_of(client)
    limited_now.set()
    thread.join()
    assert got[0].counts["error"] == 4


def test_a_retry_is_not_sent_to_a_client_that_was_closed_meanwhile(api):
    answers = in_turn(failure(500), failure(429, Retry_After="60"))
    wire, client = api(answers, sleep=lambda _: error_of(client, agent_id=43))
    assert error_of(client).reason == "rate_limited"
    assert len(wire.requests) == 2


# secrets


def everything_about(error, caplog) -> str:
    chain = []
    link = error
    while link is not None:
        chain += [str(link), repr(link), repr(vars(link)), repr(link.args)]
        link = link.__cause__ or link.__context__
    return "\n".join([*chain, *traceback.format_exception(error), caplog.text])


def echoes():
    secret = TOKEN
    yield failure(401, f"Bad token {secret}.", secret)
    yield failure(401, "x" * (200 - len(secret) // 2) + secret)
    yield response({"error": {"message": "No.", "info": {"missing": [secret]}}}, 403)
    yield response(f"<html>{secret}".encode(), 502, Content_Type=secret)
    yield response(b"x" * (80 - len(secret) // 2) + secret.encode())
    yield response(b" " * (1001 - len(secret)) + secret.encode())
    yield response({"runs": {secret: secret}, "counts": {}})
    yield response(b"", 302, Location=f"http://{secret}/{secret}")
    yield f"HTTP/1.1 200 OK\r\n{secret}\r\n\r\n{{".encode()
    yield f"{secret}\r\n\r\n".encode()
    yield f"HTTP/1.1 {secret} OK\r\n\r\n".encode()
    yield f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{secret}\r\n".encode()


@pytest.mark.parametrize("answer", list(echoes()), ids=range(12))
def test_a_server_that_echoes_the_token_gets_it_into_no_error_and_no_log(api, answer, caplog):
    caplog.set_level(logging.DEBUG)

    def script(peer):
        peer.request()
        peer.send(answer)

    wire, client = api(script)
    error = error_of(client)
    assert f"Bearer {TOKEN}" in wire.requests[0]
    assert "_prefix_" not in everything_about(error, caplog)
    assert "_prefix_" not in repr(client) + repr(client.stats())


def test_an_error_keeps_hold_of_no_request(api):
    for script in (in_turn(None), always(b"junk\r\n\r\n"), always(response(b"{")), trickled_body):
        _, client = api(script, timeout=0.3)
        error = error_of(client)
        assert error.__context__ is None
        assert error.__cause__ is None


@pytest.mark.parametrize("token", ["", "secret\n", "secret\r\nX-Evil: 1", "secret 2", "secrét", "secret\x00"])
def test_a_token_that_no_header_can_carry_is_an_error_that_does_not_show_it(api, token, caplog):
    caplog.set_level(logging.DEBUG)
    wire, client = api(always(response(page())), token=lambda: token)
    error = error_of(client)
    assert error.reason == "unauthorized"
    assert "modus.token" in str(error)
    assert "secr" not in everything_about(error, caplog)
    assert wire.connections == 0


def test_the_password_of_a_proxy_stays_secret(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("http_proxy", "http://user:hidden@127.0.0.1:99999")
    with pytest.raises(ApiError) as caught:
        ModusClient("http://127.0.0.1:1", lambda: TOKEN)
    assert "hidden" not in str(caught.value) + "".join(traceback.format_exception(caught.value)) + caplog.text


def test_the_password_in_a_base_url_stays_secret(api):
    wire, _ = api(always(failure(404)))
    url = wire.url.replace("//", "//user:secret@")
    with contextlib.closing(ModusClient(url, lambda: TOKEN, resource="agents")) as client:
        assert "secret" not in str(error_of(client))
    assert f"Bearer {TOKEN}" in wire.requests[0]
