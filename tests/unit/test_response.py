"""Answers on the wire: what is sound is read, what is ambiguous is refused and ends its connection."""

import contextlib
import gzip
import json
import threading

import pytest
import requests

from exporter.deadline import Deadline
from exporter.modus.adapter import ModusAdapter
from exporter.modus.client import ModusClient
from exporter.modus.errors import ApiError
from exporter.modus.exchange import Exchange
from tests.wire import Wire, answering, forget_environment, page, response, run

HANG = 10.0  # seconds: only a protection that is gone takes this long
BODY = json.dumps(page(run())).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
OK = b"HTTP/1.1 200 OK\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\n%b\r\n"


@pytest.fixture
def api(monkeypatch):
    """A server that answers each request with these bytes, and a client for it."""
    forget_environment(monkeypatch)
    with contextlib.ExitStack() as stack:

        def start(answer, **options):
            wire = Wire(answering(answer) if callable(answer) else answering(lambda _: answer))
            stack.callback(wire.close)
            client = ModusClient(wire.url, lambda: "token", resource="agents", **options)
            stack.callback(client.close)
            return wire, client

        yield start


def ask(client):
    return client.runs(42, deadline=Deadline(HANG), page_size=100)


SOUND = {
    "length": OK + LENGTH + b"\r\n" + BODY,
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunks with extension and trailer": OK
    + b"transfer-encoding: Chunked\r\n\r\n%x;a=b\r\n%b\r\n0\r\nX-Any: 3\r\n\r\n" % (len(BODY), BODY),
    "a single byte each": OK
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
    + b"0\r\n\r\n",
    "no reason": b"HTTP/1.1 200\r\n" + LENGTH + b"\r\n" + BODY,
    "empty and odd headers": OK + b"X-Empty:\r\nX-Any: \xff\r\n" + LENGTH + b"\r\n" + BODY,
    "an upgrade on offer": OK + b"Connection: Upgrade\r\nUpgrade: h2,h2c\r\n" + LENGTH + b"\r\n" + BODY,
    "continue": b"HTTP/1.1 100 Continue\r\nContent-Encoding: br\r\n\r\n" + OK + LENGTH + b"\r\n" + BODY,
    "an interim answer": INTERIM % b"Link: </x>\r\nContent-Encoding: br\r\n" + OK + LENGTH + b"\r\n" + BODY,
    "several interim answers": b"HTTP/1.1 102 Processing\r\n\r\n"
    + INTERIM % b"" * 3
    + OK
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + CHUNKED,
    "gzip": response(gzip.compress(BODY), Content_Encoding="gzip"),
    "two gzip members": response(
        gzip.compress(BODY[:50]) + gzip.compress(BODY[50:]), Content_Encoding="X-GZip"
    ),
    "a hundred headers": OK + b"X-Any: 1\r\n" * 99 + LENGTH + b"\r\n" + BODY,
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_answer_is_read_and_its_connection_kept(api, name):
    wire, client = api(SOUND[name])
    for _ in range(3):
        assert [each.id for each in ask(client).runs] == ["wf-1:r1"]
    assert wire.connections == 1


CLOSING = {
    "close": OK + b"Connection: close\r\n" + LENGTH + b"\r\n" + BODY,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("name", CLOSING)
def test_a_connection_that_the_server_will_close_is_not_used_again(api, name):
    wire, client = api(CLOSING[name])
    for _ in range(2):
        assert ask(client).runs
    assert wire.connections == 2


def test_a_body_without_a_length_ends_with_its_connection(api):
    wire, client = api(b"")

    def script(peer):
        peer.request()
        peer.send(OK + b"\r\n" + BODY)

    wire.script = script
    for _ in range(2):
        assert ask(client).runs
    assert wire.connections == 2


AMBIGUOUS = {
    "length and chunks": OK + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunks and length": OK + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + CHUNKED,
    "two lengths": OK + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY,
    "the same length twice": OK + LENGTH * 2 + b"\r\n" + BODY,
    "a list of lengths": OK + b"Content-Length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY,
    "a signed length": OK + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY,
    "no length": OK + b"Content-Length:\r\n\r\n" + BODY,
    "a huge length": OK + b"Content-Length: %d\r\n\r\n" % 2**64 + BODY,
    "a folded header": OK + b"X-Any: 1\r\n 2\r\n" + LENGTH + b"\r\n" + BODY,
    "a space before the colon": OK + LENGTH.replace(b":", b" :") + b"\r\n" + BODY,
    "no colon": OK + b"X-Any\r\n" + LENGTH + b"\r\n" + BODY,
    "a header with NUL": OK + b"X-Any: \0\r\n" + LENGTH + b"\r\n" + BODY,
    "the status line without CR": OK.replace(b"\r", b"") + LENGTH + b"\r\n" + BODY,
    "a header without CR": OK + b"X-Any: 1\n" + LENGTH + b"\r\n" + BODY,
    "an end of headers without CR": OK + LENGTH + b"\n" + BODY,
    "a header without LF": OK + b"X-Any: 1\rX-Other: 2\r\n" + LENGTH + b"\r\n" + BODY,
    "a chunk without CR": OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED.replace(b"\r", b""),
    "a chunk of unclear size": OK + b"Transfer-Encoding: chunked\r\n\r\n0x" + CHUNKED,
    "a chunk that is longer": OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED.replace(BODY, BODY + b"x"),
    "another transfer encoding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED,
    "two transfer encodings": OK + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n" + CHUNKED,
    "chunks and more": OK + b"Transfer-Encoding: chunked, x\r\n\r\n" + CHUNKED,
    "an encoding that was not asked for": OK + b"Content-Encoding: br\r\n" + LENGTH + b"\r\n" + BODY,
    "bytes behind the end": OK + LENGTH + b"\r\n" + BODY + b"\r\n",
    "an answer behind the end": (OK + LENGTH + b"\r\n" + BODY) * 2,
    "bytes behind the chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED + b"\r\n",
    "bytes behind a close": OK + b"Connection: close\r\n" + LENGTH + b"\r\n" + BODY + b"x",
    "a body of 204": b"HTTP/1.1 204 None\r\n" + LENGTH + b"\r\n" + BODY,
    "chunks of 204": b"HTTP/1.1 204 None\r\nTransfer-Encoding: chunked\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Any\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n" + BODY,
    "an interim answer with a body": INTERIM % b"Content-Length: 1\r\n" + b"x" + OK + LENGTH + b"\r\n" + BODY,
    "an interim answer and nothing else": INTERIM % b"" + BODY,
    "interim answers without end": INTERIM % b"" * 10_000 + OK + LENGTH + b"\r\n" + BODY,
    "a low status": b"HTTP/1.1 099 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "an empty line first": b"\r\n" + OK + LENGTH + b"\r\n" + BODY,
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "no HTTP": b"RTSP/1.0 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "too many headers": OK + b"X-Any: 1\r\n" * 100 + LENGTH + b"\r\n" + BODY,
    "a header too long": OK + b"X-Any: %b\r\n" % (b"x" * (1 << 17)) + LENGTH + b"\r\n" + BODY,
    "trailers without end": OK
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + CHUNKED[:-2]
    + b"X-Any: %b\r\n\r\n" % (b"x" * (1 << 18)),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_answer_is_refused_and_its_connection_not_used_again(api, name):
    wire, client = api(lambda _: response(page()) if wire.connections > 1 else AMBIGUOUS[name])
    with pytest.raises(ApiError) as caught:
        ask(client)
    assert caught.value.reason == "bad_response"
    ask(client)
    assert wire.connections == 2


def test_an_answer_that_was_sent_unasked_is_not_taken_for_the_next_one(api):
    """It comes behind a whole one, when nobody receives any more."""

    def script(peer):
        while peer.request():
            peer.send(response(page(error=peer.number)))
            if not peer.number:
                peer.wire.closing.wait(0.2)
                peer.send(response(page(error=99)))

    wire, client = api(b"")
    wire.script = script
    assert ask(client).counts["error"] == 0
    wire.closing.wait(0.5)
    assert ask(client).counts["error"] == 1
    assert wire.connections == 2


def test_the_rest_of_an_answer_that_took_too_long_is_not_taken_for_the_next_one(api):
    """Also over a connection that had served before."""
    given_up = threading.Event()

    def script(peer):
        while peer.request():
            answer = response(page(error=peer.number))
            if len(peer.wire.requests) == 2:
                peer.send(answer[:10])
                given_up.wait(HANG)
            peer.send(answer[10:] if given_up.is_set() and not peer.number else answer)

    wire, client = api(b"")
    wire.script = script
    assert ask(client).counts["error"] == 0
    with pytest.raises(ApiError, match="no whole answer"):
        client.runs(42, deadline=Deadline(0.3), page_size=100)
    given_up.set()
    assert ask(client).counts["error"] == 1


@pytest.mark.parametrize(
    "headers", [{"X-Any": "1\r\nX-Other: 2"}, {"X-Any: 1\r\nX": "2"}, {"X-Any": "\u00e4"}]
)
def test_a_request_with_a_header_that_is_none_is_not_sent(api, headers):
    wire, _ = api(b"")
    with contextlib.closing(ModusAdapter(f"{wire.url}/", 1)) as adapter:
        request = requests.PreparedRequest()
        request.method, request.url, request.headers = "GET", f"{wire.url}/any", headers
        with pytest.raises(requests.RequestException, match="characters"):
            adapter.send(request, timeout=Exchange(Deadline(HANG)))
    assert not wire.requests
