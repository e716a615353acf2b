"""ModusClient when the API, the network or a proxy misbehaves: the reason, the time and the secrets kept."""

import contextlib
import errno
import gzip
import itertools
import json
import logging
import os
import socket
import threading
import time
import traceback
import tracemalloc
import zlib
from urllib.parse import quote

import pytest

from exporter.deadline import Deadline
from exporter.modus.client import ModusClient
from exporter.modus.errors import ApiError
from tests.e2e.harness import free_port
from tests.simulation import Clock
from tests.wire import Wire, answering, counted, failure, forget_environment, page, response, run

TOKEN = "modus_pat_org_prefix_secret"  # noqa: S105
HANG = 10.0  # seconds: only a protection that is gone takes this long


@pytest.fixture
def api(monkeypatch):
    """Start a server that plays a script per connection; get it and a client that notes its pauses."""
    forget_environment(monkeypatch)
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
    return client.runs(agent_id, deadline=Deadline(deadline), page_size=100)


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


# connections


def test_a_refused_connection_says_so_and_is_not_tried_again(api):
    port = free_port()
    wire, client = api(always(b""), url=f"http://127.0.0.1:{port}")
    error = error_of(client)
    assert (error.reason, error.status) == ("connection", None)
    assert str(error) == f"GET http://127.0.0.1:{port}/api/v1/agents/42/runs: connection refused"
    assert counted(client) == {("list_runs", "connection"): 1}
    assert wire.pauses == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:1"])
def test_a_lack_of_descriptors_is_waited_for_and_says_what_to_do(api, monkeypatch, number, proxy):
    wire, client = api(always(response(page())))
    if proxy:
        monkeypatch.setenv("http_proxy", proxy)
        client = ModusClient("http://api.invalid", lambda: TOKEN, resource="agents", sleep=wire.pauses.append)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as scarce:
        scarce.setattr("exporter.modus.adapter.PatientSocket", refuse)
        error = error_of(client)
    assert error.reason == "connection"
    assert error.hint == "raise the limit of open files (ulimit -n) or lower modus.concurrency"
    assert os.strerror(number) in str(error)
    assert len(wire.pauses) == 2


def test_a_name_that_does_not_resolve_says_dns(api):
    _, client = api(always(b""), url=f"http://{'a' * 64}.example")
    error = error_of(client)
    assert (error.reason, "DNS" in str(error)) == ("connection", True)


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
    assert counted(client) == {("list_runs", reason): 1}


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


# bodies


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


def call(client, clock, agent_id=42):
    return client.runs(agent_id, deadline=Deadline(HANG, clock), page_size=1)


def test_a_429_without_a_whole_body_closes_the_client_too(api):
    def script(peer):
        peer.request()
        peer.send(failure(429, Retry_After="60")[:-10])

    wire, client = api(script)
    error_of(client)
    assert error_of(client).reason == "rate_limited"
    assert len(wire.requests) == 1


def test_a_shorter_pause_does_not_cut_a_longer_one(api):
    clock = Clock()
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


@pytest.mark.parametrize(
    "spelt",
    [
        quote("a+b/_prefix_<c>&'d", safe=""),
        "a%2bb%2f_prefix_%3cc%3e%26%27d",
        "a+b/_prefix_&lt;c&gt;&amp;&#x27;d",
        "a+b/_prefix_&lt;c&gt;&amp;&#39;d",
        "a+b/_prefix_&lt;c&gt;&amp;'d",
    ],
)
def test_a_token_of_any_characters_is_cut_out_as_urls_and_pages_spell_it(api, spelt):
    _, client = api(always(failure(401, f"Bad token {spelt}.")), token=lambda: "a+b/_prefix_<c>&'d")
    assert "401 Bad token ***. (request req_1)" in str(error_of(client))


def test_an_error_keeps_hold_of_no_request(api):
    for script in (in_turn(None), always(b"junk\r\n\r\n"), always(response(b"{")), trickled_body):
        _, client = api(script, timeout=0.3)
        error = error_of(client)
        assert error.__context__ is None
        assert error.__cause__ is None


@pytest.mark.parametrize("where", ["127.0.0.1:99999", "", ":3128", "%zz"])
def test_the_password_of_a_proxy_that_cannot_be_used_stays_secret(monkeypatch, caplog, where):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("http_proxy", f"http://user:hidden@{where}")
    with pytest.raises(ApiError, match="the proxy of the environment cannot be used") as caught:
        ModusClient("http://api.invalid", lambda: TOKEN)
    assert "hidden" not in str(caught.value) + "".join(traceback.format_exception(caught.value)) + caplog.text


def test_the_password_in_a_base_url_stays_secret(api):
    wire, _ = api(always(failure(404)))
    url = wire.url.replace("//", "//user:secret@")
    with contextlib.closing(ModusClient(url, lambda: TOKEN, resource="agents")) as client:
        assert "secret" not in str(error_of(client))
    assert f"Bearer {TOKEN}" in wire.requests[0]
