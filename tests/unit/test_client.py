"""ModusClient: what it asks, how it decodes, which route it takes, how it keeps its connections."""

import contextlib
import gzip
import ipaddress
import logging
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exporter import __version__
from exporter.modus.client import OTHER_ROUTE_AGAIN, REQUEST_BUCKETS, ModusClient
from exporter.modus.model import Agent, ApiError, Run
from tests.wire import Wire, answering, failure, page, response, run

TOKEN = "modus_pat_org_prefix_secret"  # noqa: S105


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "requests_ca_bundle",
        "curl_ca_bundle",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def api():
    """Start an API with an answer per request, or a script per connection; get a client for it."""
    with contextlib.ExitStack() as stack:

        def start(answer, **options):
            wire = Wire(answering(answer))
            stack.callback(wire.close)
            return wire, connect(wire, **options)

        def connect(wire, **options):
            client = ModusClient(wire.url, lambda: TOKEN, **{"resource": "agents"} | options)
            stack.callback(client.close)
            return client

        start.connect = connect
        start.stack = stack
        yield start


def ask(client, agent_id=42, **options):
    return client.runs(agent_id, deadline=time.monotonic() + 20, page_size=100, **options)


def routes(*known, agents=(42,)):
    """An API that has the routes named and the agents named."""

    def answer(head):
        _, _, _, route, *rest = head.split(" ")[1].partition("?")[0].split("/")
        return response(page()) if route in known and int(rest[0]) in agents else failure(404, "Not found.")

    return answer


# decoding


def test_a_page_of_runs_is_decoded(api):
    _, client = api(
        lambda _: response(page(run(), run("wf-2:r2", status="running"), following="next", error=0))
    )
    answer = ask(client)
    assert answer.runs == [
        Run(
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
        ),
        answer.runs[1],
    ]
    assert answer.runs[1].status == "running"
    assert answer.counts == {"all_executions": 2, "error": 0}
    assert answer.next_page_token == "next"  # noqa: S105 - of a page


def test_unknown_fields_and_statuses_are_no_obstacle(api):
    _, client = api(lambda _: response(page(run(status="paused", news={"a": [1]}), paused=1) | {"more": 1}))
    answer = ask(client)
    assert answer.runs[0].status == "paused"
    assert answer.counts == {"all_executions": 1, "paused": 1}


@pytest.mark.parametrize(("counts", "read"), [(None, {}), ({"running": None, "error": 2}, {"error": 2})])
def test_counts_that_are_null_are_left_out(api, counts, read):
    _, client = api(lambda _: response({"runs": [], "counts": counts}))
    assert ask(client).counts == read


@pytest.mark.parametrize("rest", [{}, {"nextPageToken": None}, {"nextPageToken": ""}])
def test_the_last_page_has_no_token(api, rest):
    _, client = api(lambda _: response({"runs": [], "counts": {}, "agents": []} | rest))
    assert ask(client).next_page_token is None
    assert client.agents(deadline=time.monotonic() + 20).next_page_token is None


def test_agents_are_listed_with_the_token_of_the_next_page(api):
    listed = {"agents": [{"id": 7, "name": "A", "type": "task", "status": "active", "slug": "a"}]}
    wire, client = api(lambda _: response(listed | {"nextPageToken": "p2"}))
    answer = client.agents(deadline=time.monotonic() + 20, page_token="p1")  # noqa: S106 - of a page
    assert (answer.agents, answer.next_page_token) == ([Agent(7, "A", "task", "active")], "p2")
    assert wire.paths == ["/api/v1/agents?pageSize=100&pageToken=p1"]


def test_one_run_is_asked_for_by_its_workflow_and_temporal_ids(api):
    wire, client = api(lambda _: response(run()))
    answer = client.run(42, "a/b?c#d e", "r&1", deadline=time.monotonic() + 20)
    assert answer.id == "wf-1:r1"
    client.run(42, "wf", None, deadline=time.monotonic() + 20)
    assert wire.paths == [
        "/api/v1/agents/42/runs/a%2Fb%3Fc%23d%20e?temporalRunId=r%261",
        "/api/v1/agents/42/runs/wf",
    ]


def test_a_gzipped_page_is_unpacked(api):
    body = gzip.compress(b'{"runs": [], "counts": {"error": 3}}')
    _, client = api(lambda _: response(body, Content_Encoding="gzip"))
    assert ask(client).counts == {"error": 3}


# asking


def test_only_parameters_that_are_given_are_sent(api):
    wire, client = api(lambda _: response(page()))
    ask(client)
    query = {"page_token": "a=b&c", "status": "awaiting_human", "approval_scope": "all"}
    ask(client, **query, timeframe="last_day")
    assert wire.paths == [
        "/api/v1/agents/42/runs?pageSize=100",
        "/api/v1/agents/42/runs?pageSize=100&pageToken=a%3Db%26c"
        "&status=awaiting_human&approvalScope=all&timeframe=last_day",
    ]


def test_a_base_url_may_have_a_path_and_a_slash_at_its_end(api):
    wire, _ = api(lambda _: response(page()))
    wire.url += "/modus/"
    ask(api.connect(wire))
    assert wire.paths == ["/modus/api/v1/agents/42/runs?pageSize=100"]


def test_every_request_names_the_exporter_and_carries_the_token_of_the_moment(api):
    wire, _ = api(lambda _: response(page()))
    tokens = iter(["first", "second"])
    with contextlib.closing(ModusClient(wire.url, lambda: next(tokens))) as client:
        ask(client)
        ask(client)
    for head, token in zip(wire.requests, ["first", "second"], strict=True):
        lines = head.split("\r\n")
        assert f"Authorization: Bearer {token}" in lines
        assert f"User-Agent: modus-exporter/{__version__}" in lines
        assert "Accept-Encoding: gzip" in lines
        assert "Cookie" not in head


def test_an_error_of_the_token_source_is_passed_on_and_nothing_is_asked(api):
    wire, _ = api(lambda _: response(page()))

    def missing():
        raise ApiError("unauthorized", "token_file: no such file")

    with contextlib.closing(ModusClient(wire.url, missing)) as client:
        with pytest.raises(ApiError, match="token_file: no such file"):
            ask(client)
        assert client.stats().requests == {}
    assert wire.connections == 0


@pytest.mark.parametrize("url", ["api.getmodus.com", "http://", "ftp://example.com", "http://[::1"])
def test_a_base_url_that_cannot_be_used_is_one_clear_error(url):
    with pytest.raises(ApiError, match=r"modus\.base_url") as caught:
        ModusClient(url, lambda: TOKEN)
    assert caught.value.reason == "connection"


# the route


def test_the_route_agents_comes_first(api):
    wire, client = api(routes("agents", "workflows"), resource="auto")
    ask(client)
    assert wire.paths == ["/api/v1/agents/42/runs?pageSize=100"]


def test_the_renamed_route_is_found_remembered_and_told_once(api, caplog):
    caplog.set_level(logging.INFO, "exporter.modus.client")
    wire, client = api(routes("workflows"), resource="auto")
    for _ in range(3):
        ask(client)
    assert [path.split("/")[3] for path in wire.paths] == ["agents", *["workflows"] * 3]
    assert [record.getMessage() for record in caplog.records] == ["the API answers on /api/v1/workflows"]


@pytest.mark.parametrize("resource", ["agents", "workflows"])
def test_a_pinned_route_is_the_only_one_asked(api, resource):
    wire, client = api(routes(), resource=resource)
    with pytest.raises(ApiError):
        ask(client)
    assert wire.paths == [f"/api/v1/{resource}/42/runs?pageSize=100"]


def test_an_unknown_agent_costs_one_request_once_the_route_is_known(api):
    wire, client = api(routes("workflows"), resource="auto")
    ask(client)
    del wire.requests[:]
    for _ in range(3):
        with pytest.raises(ApiError) as caught:
            ask(client, 99)
        assert caught.value.reason == "not_found"
    ask(client)
    assert [path.split("/")[3:5] for path in wire.paths] == [["workflows", "99"]] * 3 + [["workflows", "42"]]


def test_an_unknown_agent_teaches_no_route(api):
    wire, client = api(routes("agents"), resource="auto")
    for _ in range(2):
        with pytest.raises(ApiError, match=r"this id or route is unknown") as caught:
            ask(client, 99)
        assert (caught.value.reason, caught.value.status) == ("not_found", 404)
    ask(client)
    assert [path.split("/")[3] for path in wire.paths] == ["agents", "workflows"] * 2 + ["agents"]


def test_a_rename_while_running_is_noticed_with_one_request_in_a_while(api):
    now = [1000.0]
    known = {"agents"}
    wire, client = api(
        lambda head: routes(*known)(head), resource="auto", monotonic=lambda: now[0], timeout=60
    )

    def read():
        return client.runs(42, deadline=now[0] + 60, page_size=1)

    read()
    known.clear()
    known.add("workflows")
    with pytest.raises(ApiError):
        read()
    now[0] += OTHER_ROUTE_AGAIN + 1
    read()
    read()
    assert [path.split("/")[3] for path in wire.paths] == [*["agents"] * 3, *["workflows"] * 2]


def test_a_missing_scope_proves_the_route(api):
    refusal = {"error": {"message": "Missing.", "requestId": "r", "info": {"missing": ["workflows:invoke"]}}}
    wire, client = api(
        lambda head: response(refusal, 403) if "/workflows/" in head else failure(404), resource="auto"
    )
    for _ in range(2):
        with pytest.raises(ApiError, match="workflows:invoke") as caught:
            ask(client)
        assert caught.value.missing == ("workflows:invoke",)
    assert [path.split("/")[3] for path in wire.paths] == ["agents", "workflows", "workflows"]


def test_many_threads_learn_one_route(api, caplog):
    caplog.set_level(logging.INFO, "exporter.modus.client")
    meet = threading.Barrier(32)

    def answer(head):
        if "/agents/" in head:
            meet.wait(20)  # all 32 have asked before the first is answered
        return routes("workflows", agents=range(100, 116))(head)

    wire, client = api(answer, resource="auto")

    def one(agent_id):
        try:
            return ask(client, agent_id) is not None
        except ApiError as error:
            return error.reason

    with ThreadPoolExecutor(32) as threads:
        outcomes = list(threads.map(one, range(100, 132)))
    assert outcomes == [True] * 16 + ["not_found"] * 16
    assert len(wire.requests) == 64
    assert len(caplog.records) == 1


# connections


def test_calls_in_a_row_share_one_connection(api):
    wire, client = api(lambda head: failure(404) if "/9/" in head else response(page()))
    for _ in range(3):
        ask(client)
        with pytest.raises(ApiError):
            ask(client, 9)
    assert wire.connections == 1


def test_as_many_connections_as_calls_in_flight_are_kept(api, caplog):
    meet = threading.Barrier(16)

    def answer(_):
        meet.wait(20)
        return response(page())

    wire, client = api(answer, concurrency=16)
    with ThreadPoolExecutor(16) as threads:
        for _ in range(3):
            list(threads.map(lambda _: ask(client), range(16)))
    assert wire.connections == 16
    assert not caplog.records


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A server's TLS context for 127.0.0.1 and the file of its own certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    public = folder / "certificate.pem"
    public.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private = folder / "key.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context, public


def test_the_ca_bundle_is_read_once_for_all_connections(api, certificate, monkeypatch, tmp_path):
    context, public = certificate
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(public.read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))

    def script(peer):  # one answer per connection
        peer.request()
        peer.send(response(page(), Connection="close"))

    read = []
    load = ssl.SSLContext.load_verify_locations
    monkeypatch.setattr(
        ssl.SSLContext,
        "load_verify_locations",
        lambda *args, **names: [read.append(names), load(*args, **names)],
    )
    wire = Wire(script, tls=context)
    api.stack.callback(wire.close)
    client = api.connect(wire)
    bundle.unlink()
    for _ in range(3):
        ask(client)
    assert wire.connections == 3
    assert read == [{"cafile": str(bundle)}]


def test_a_ca_bundle_that_cannot_be_read_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "missing.pem")
    with pytest.raises(ApiError, match=r"missing\.pem: No such file or directory"):
        ModusClient("https://127.0.0.1:1", lambda: TOKEN)


def test_a_certificate_that_nobody_vouches_for_is_a_connection_error(api, certificate):
    context, _ = certificate
    wire = Wire(answering(lambda _: response(page())), tls=context)
    api.stack.callback(wire.close)
    with pytest.raises(ApiError, match=r"TLS: certificate not accepted: self.signed certificate") as caught:
        ask(api.connect(wire))
    assert caught.value.reason == "connection"
    assert not wire.requests


def test_a_certificate_for_another_name_is_a_connection_error(api, certificate, monkeypatch):
    context, public = certificate
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(public))
    wire = Wire(answering(lambda _: response(page())), tls=context)
    api.stack.callback(wire.close)
    wire.url = wire.url.replace("127.0.0.1", "localhost")
    with pytest.raises(ApiError, match="TLS: certificate not accepted: Hostname mismatch"):
        ask(api.connect(wire))


def test_the_proxy_of_the_environment_is_used_and_read_once(api, monkeypatch):
    proxy, _ = api(lambda _: response(page(error=5)))
    monkeypatch.setenv("http_proxy", proxy.url)
    client = ModusClient("http://api.invalid", lambda: TOKEN, resource="agents")
    api.stack.callback(client.close)
    monkeypatch.delenv("http_proxy")
    assert ask(client).counts["error"] == 5
    assert proxy.paths == ["http://api.invalid/api/v1/agents/42/runs?pageSize=100"]


def test_no_proxy_is_honoured(api, monkeypatch):
    proxy, _ = api(lambda _: failure(502))
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    _, client = api(lambda _: response(page()))
    ask(client)
    assert not proxy.requests


def test_tls_goes_through_a_tunnel_of_the_proxy_which_never_sees_the_token(api, certificate, monkeypatch):
    context, public = certificate

    def script(peer):
        peer.request()
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        inside = context.wrap_socket(peer.sock, server_side=True)
        with contextlib.closing(inside):
            inside.recv(65536)
            inside.sendall(response(page(error=6)))

    proxy = Wire(script)
    api.stack.callback(proxy.close)
    monkeypatch.setenv("https_proxy", proxy.url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(public))
    client = ModusClient("https://127.0.0.1:1", lambda: TOKEN, resource="agents")
    api.stack.callback(client.close)
    assert ask(client).counts["error"] == 6
    assert proxy.paths == ["127.0.0.1:1"]
    assert TOKEN not in proxy.requests[0]


def test_a_socks_proxy_is_refused_rather_than_passed_by(monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5h://user:hidden@127.0.0.1:1080")
    with pytest.raises(ApiError, match="SOCKS proxies are not supported") as caught:
        ModusClient("http://127.0.0.1:1", lambda: TOKEN)
    assert "hidden" not in str(caught.value)


def test_a_closed_client_answers_with_a_connection_error(api):
    _, client = api(lambda _: response(page()))
    ask(client)
    client.close()
    with pytest.raises(ApiError) as caught:
        ask(client)
    assert caught.value.reason == "connection"


# the API's clock


@pytest.mark.parametrize(
    ("date", "now"),
    [
        ("Wed, 01 Jul 2026 10:00:00 GMT", 1782900000.0),  # an hour behind the exporter
        ("Wed, 01 Jul 2026 12:00:00 GMT", 1782907200.0),  # an hour ahead
        ("Wed, 01 Jul 2026 10:59:59 GMT", 1782903600.5),  # nearer than a header can tell
        ("Wed, 01 Jul 2026 11:00:02 GMT", 1782903600.5),
        ("yesterday", 1782903600.5),
        ("Wed, 99 Jul 2026 10:00:00 GMT", 1782903600.5),
        ("Wed, 01 Jul 99999999999 10:00:00 GMT", 1782903600.5),
        ("", 1782903600.5),
    ],
)
def test_a_page_tells_the_time_of_the_api(api, date, now):
    _, client = api(lambda _: response(page(), Date=date), clock=lambda: 1782903600.5)
    answer = ask(client)
    assert (answer.now, answer.skew) == (now, now - 1782903600.5)


# what is counted


def test_requests_are_counted_by_operation_and_status_with_their_durations(api):
    wire, client = api(lambda head: failure(403) if "/9/" in head else response(page() | {"agents": []}))
    ask(client)
    ask(client)
    with pytest.raises(ApiError):
        ask(client, 9)
    client.agents(deadline=time.monotonic() + 20)
    stats = client.stats()
    assert stats.requests == {("list_runs", "200"): 2, ("list_runs", "403"): 1, ("list_agents", "200"): 1}
    buckets, total = stats.durations["list_runs"]
    assert len(buckets) == len(REQUEST_BUCKETS) + 1
    assert sum(buckets) == 3
    assert total > 0
    ask(client)
    assert sum(buckets) == 3, "the copy stays as it was"
    assert len(wire.requests) == 5


def test_a_request_falls_into_the_bucket_of_its_duration(api):
    now = [0.0]

    def answer(_):
        now[0] += 0.3
        return response(page())

    _, client = api(answer, monotonic=lambda: now[0])
    client.runs(42, deadline=20, page_size=1)
    buckets, total = client.stats().durations["list_runs"]
    assert buckets[REQUEST_BUCKETS.index(0.5)] == 1
    assert total == pytest.approx(0.3)


def test_threads_lose_no_count(api):
    _, client = api(lambda _: response(page()))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: ask(client), range(200)))
    assert client.stats().requests == {("list_runs", "200"): 200}
