"""The connections of ModusClient: how they are kept, whom they trust, when they are given up."""

import contextlib
import ctypes
import ipaddress
import socket
import ssl
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exporter import watch
from exporter.deadline import Deadline
from exporter.modus.adapter import ModusAdapter
from exporter.modus.body import LARGE, PIECE
from exporter.modus.client import ModusClient
from exporter.modus.errors import ApiError
from exporter.modus.exchange import Exchange, PatientSocket
from exporter.modus.tls import Trust
from tests.e2e.harness import free_port
from tests.e2e.scarce import no_descriptors
from tests.wire import Peer, Wire, answering, counted, failure, forget_environment, page, response

TOKEN = "modus_pat_org_prefix_secret"  # noqa: S105
HANG = 20.0  # seconds: only a protection that is gone takes this long


@pytest.fixture
def api(monkeypatch):
    """Start an API with an answer per request, or a script per connection; get a client for it."""
    forget_environment(monkeypatch)
    with contextlib.ExitStack() as stack:

        def serve(answer=lambda _: response(page()), *, script=None, tls=None):
            wire = Wire(script or answering(answer), tls=tls)
            stack.callback(wire.close)
            return wire

        def connect(url, **options):
            client = ModusClient(url, lambda: TOKEN, **{"resource": "agents"} | options)
            stack.callback(client.close)
            return client

        def start(answer=lambda _: response(page()), *, script=None, **options):
            wire = serve(answer, script=script)
            return wire, connect(wire.url, **options)

        start.connect, start.serve = connect, serve
        yield start


def ask(client, agent_id=42, deadline=None):
    return client.runs(agent_id, deadline=deadline or Deadline(HANG), page_size=100)


def error_of(client, **options) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ask(client, **options)
    assert "\n" not in str(caught.value)
    return caught.value


# kept


def test_calls_in_a_row_share_one_connection(api):
    wire, client = api(lambda head: failure(404) if "/9/" in head else response(page()))
    for _ in range(3):
        ask(client)
        error_of(client, agent_id=9)
    assert wire.connections == 1


def test_as_many_connections_as_calls_in_flight_are_kept(api, caplog):
    meet = threading.Barrier(16)

    def answer(_):
        meet.wait(HANG)
        return response(page())

    wire, client = api(answer, concurrency=16)
    with ThreadPoolExecutor(16) as threads:
        for _ in range(3):
            list(threads.map(lambda _: ask(client), range(16)))
    assert wire.connections == 16
    assert not caplog.records


def test_a_closed_client_answers_with_a_connection_error(api):
    _, client = api()
    ask(client)
    client.close()
    assert error_of(client).reason == "connection"


def test_cookies_are_neither_kept_nor_sent(api):
    wire, client = api(lambda _: response(page(), Set_Cookie="session=1"))
    ask(client)
    ask(client)
    assert "ookie" not in wire.requests[1]


# that died unseen


class Skipping:
    """A clock of deadlines that can skip the time in which nothing is asked."""

    def __init__(self):
        self.skipped = 0.0

    def __call__(self):
        return time.monotonic() + self.skipped

    def deadline(self):
        return Deadline(HANG, self)


@pytest.fixture
def clock():
    return Skipping()


def ask_idle(client, clock):
    """Ask over a connection that has been idle for a minute."""
    clock.skipped += 60
    return ask(client, deadline=clock.deadline())


def cut_off(peer: Peer) -> None:
    """Let nothing more arrive at this end, nor be acknowledged, as behind a NAT that has forgotten it."""
    drop = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # the filter "return 0"
    program = struct.pack("HL", 1, ctypes.addressof(drop))
    peer.sock.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


def dies_after_one_answer(peer: Peer) -> None:
    """The first connection answers once and then takes what comes without a word: as behind a dead NAT."""
    if peer.number:
        return answering(lambda _: response(page(error=7)))(peer)
    peer.request()
    peer.send(response(page()))
    peer.request()
    peer.wire.closing.wait(HANG)
    return None


def test_an_idle_connection_that_went_silent_is_replaced_once_within_the_deadline(api, clock):
    wire, client = api(script=dies_after_one_answer, timeout=1.5)
    ask(client, deadline=clock.deadline())
    assert ask_idle(client, clock).counts["error"] == 7
    assert wire.connections == 2
    assert counted(client) == {("list_runs", "200"): 2, ("list_runs", "connection"): 1}
    ask(client, deadline=clock.deadline())
    assert wire.connections == 2


def test_a_server_that_is_silent_on_a_fresh_connection_too_is_not_asked_a_third_time(api, clock):
    def script(peer):
        if not peer.number:
            return dies_after_one_answer(peer)
        peer.request()
        return peer.wire.closing.wait(HANG)

    wire, client = api(script=script, timeout=1)
    ask(client, deadline=clock.deadline())
    clock.skipped += 60
    assert error_of(client, deadline=clock.deadline()).reason == "timeout"
    assert len(wire.requests) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="no filter for what arrives")
def test_a_slow_api_keeps_no_dead_connection_alive(api, clock):
    """Its answers are slow, but what is sent on a dead connection is never acknowledged."""
    is_dead, refused = threading.Event(), []

    def script(peer):
        while peer.request():
            time.sleep(1.4)
            peer.send(response(page()))
            if not peer.number:
                try:
                    cut_off(peer)
                except OSError as error:  # a kernel has room for so many filters of ordinary users
                    refused.append(error)
                is_dead.set()
                peer.wire.closing.wait(HANG)

    wire, client = api(script=script, timeout=3)
    ask(client, deadline=clock.deadline())
    assert is_dead.wait(HANG)
    if refused:
        pytest.skip(f"the system lets nobody filter what arrives: {refused[0]}")
    ask_idle(client, clock)
    assert (wire.connections, len(wire.requests)) == (2, 2)
    assert counted(client) == {("list_runs", "200"): 2, ("list_runs", "connection"): 1}


@pytest.mark.parametrize("slow", [1.6, 2.4], ids=["half of the time", "more than that"])
def test_a_slow_api_is_asked_once_for_each_answer_also_after_a_pause(api, clock, slow):
    def answer(_):
        time.sleep(slow)
        return response(page(error=3))

    wire, client = api(answer, timeout=3.2)
    for _ in range(3):
        assert ask_idle(client, clock).counts["error"] == 3
    assert (wire.connections, len(wire.requests)) == (1, 3)


def test_an_api_that_turns_slow_while_it_is_asked_is_asked_once(api):
    """A connection that has just brought an answer is not taken for a dead one."""

    def answer(_):
        time.sleep(2.4 if len(wire.requests) == 2 else 0)
        return response(page(error=3))

    wire, client = api(answer, timeout=3.2)
    ask(client)
    assert ask(client).counts["error"] == 3
    assert (wire.connections, len(wire.requests)) == (1, 2)


def test_an_api_that_was_slow_long_ago_gives_a_silent_connection_no_more_time(api, clock):
    def script(peer):
        if peer.number:
            return answering(lambda _: response(page(error=7)))(peer)
        for pause in (2.4, 0, HANG):
            peer.request()
            peer.wire.closing.wait(pause)
            peer.send(response(page()))
        return None

    wire, client = api(script=script, timeout=3.2, monotonic=clock)
    ask(client, deadline=clock.deadline())
    clock.skipped += 3600
    ask(client, deadline=clock.deadline())
    assert ask_idle(client, clock).counts["error"] == 7
    assert wire.connections == 2


def test_a_retry_gets_a_connection_of_its_own_also_while_others_are_idle(api):
    wire = api.serve()
    with contextlib.closing(ModusAdapter(f"{wire.url}/", 4)) as adapter:
        for fresh in (False, False, True):
            exchange = Exchange(Deadline(HANG), fresh=fresh)
            request = requests.Request("GET", f"{wire.url}/").prepare()
            assert adapter.send(request, stream=True, timeout=exchange).raw.read()
    assert wire.connections == 2


def test_a_slow_body_on_an_idle_connection_is_no_sign_of_its_death(api, clock):
    whole = response(page(error=3))

    def script(peer):
        while peer.request():
            peer.send(whole[:-5])
            if len(peer.wire.requests) == 2:
                time.sleep(0.9)  # longer than the third of the timeout that a first byte may take
            peer.send(whole[-5:])

    wire, client = api(script=script, timeout=2)
    ask(client, deadline=clock.deadline())
    assert ask_idle(client, clock).counts["error"] == 3
    assert (wire.connections, len(wire.requests)) == (1, 2)


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="this system does not show its probes")
def test_idle_connections_are_probed(api):
    """What is between forgets connections on which nothing moves, often after a minute."""
    seen = []
    connect = socket.socket.connect_ex

    class Noted(socket.socket):
        def connect_ex(self, address):
            seen.append(self)
            return connect(self, address)

    wire, client = api()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect_ex", Noted.connect_ex, raising=False)
        ask(client)
        assert seen[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert seen[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 60
    assert wire.connections == 1


# a deadline that moves


def silent(peer: Peer) -> None:
    peer.request()
    peer.wire.closing.wait(HANG)


def trickling(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    peer.trickle(b" " for _ in range(2000))


def deaf_to_tls(peer: Peer) -> None:
    peer.sock.recv(100)
    peer.wire.closing.wait(HANG)


@pytest.mark.parametrize("script", [silent, trickling, deaf_to_tls])
def test_ending_the_deadline_cuts_a_call_off_while_it_waits(api, script):
    wire = api.serve(script=script)
    url = wire.url.replace("http:", "https:") if script is deaf_to_tls else wire.url
    client, deadline = api.connect(url, timeout=HANG), Deadline(HANG)
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(error_of, client, deadline=deadline)
        while not wire.connections:
            time.sleep(0.01)
        deadline.end()
        assert call.result(HANG / 2).reason == "deadline"


def test_ending_the_deadline_cuts_a_call_off_while_it_connects(api):
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # its queue is full: connecting to it never ends
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        client = api.connect(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=HANG)
        deadline = Deadline(HANG)
        with ThreadPoolExecutor(1) as thread:
            call = thread.submit(error_of, client, deadline=deadline)
            time.sleep(0.2)
            deadline.end()
            assert call.result(HANG / 2).reason == "deadline"


def test_a_deadline_that_is_extended_while_a_call_waits_leaves_it_the_time(api):
    arrived, release = threading.Event(), threading.Event()

    def answer(_):
        arrived.set()
        release.wait(HANG)
        return response(page(error=9))

    _, client = api(answer)
    deadline = Deadline(0.5)
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(ask, client, deadline=deadline)
        arrived.wait(HANG)
        deadline.extend(HANG)
        time.sleep(0.7)  # past the first deadline
        release.set()
        assert call.result(HANG).counts["error"] == 9


# bodies, all together


@pytest.fixture
def patient():
    """A socket of the client with ten seconds, and the other end."""
    ours, theirs = socket.socketpair()
    with PatientSocket(fileno=ours.detach()) as sock, theirs:
        sock.setblocking(False)
        sock.connection = SimpleNamespace(exchange=Exchange(Deadline(10)))
        yield sock, theirs


def test_a_request_that_the_system_does_not_take_at_once_is_sent_whole(patient):
    sock, theirs = patient
    data = bytes(range(256)) * 20_000
    with ThreadPoolExecutor() as pool:
        received = pool.submit(lambda: b"".join(iter(lambda: theirs.recv(65536), b"")))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert received.result(10) == data


def test_a_request_that_nobody_takes_ends_with_its_deadline(patient):
    sock, _ = patient
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(sock.sendall, bytes(5_000_000))
        sock.connection.exchange.deadline.end()
        with pytest.raises(TimeoutError):
            sending.result(10)


def test_few_large_bodies_are_in_memory_at_one_time_and_small_ones_do_not_wait(api):
    begun, release = threading.Semaphore(0), threading.Event()
    large = response(page() | {"x": "x" * 8 * PIECE})

    def script(peer):
        while head := peer.request():
            if "/2/" in head:
                peer.send(large)
            elif "/1/" in head:
                peer.send(large[: 4 * PIECE])
                begun.release()
                release.wait(HANG)
                peer.send(large[4 * PIECE :])
            else:
                peer.send(response(page()))

    _, client = api(script=script, timeout=HANG)
    with ThreadPoolExecutor(LARGE) as threads:
        calls = [threads.submit(ask, client, 1) for _ in range(LARGE)]
        for _ in calls:
            assert begun.acquire(timeout=HANG)
        time.sleep(0.3)  # until all have read as much as there is
        ask(client)
        assert error_of(client, agent_id=2, deadline=Deadline(0.5)).reason == "deadline"
        release.set()
        for call in calls:
            assert call.result(HANG).counts == {"all_executions": 0}
        ask(client, 2)


# whom to trust


class Authority:
    """A certificate authority of a company, and what it signs."""

    def __init__(
        self,
        folder: Path,
        *,
        critical: bool = True,
        since: timedelta = timedelta(days=-1),
        until: timedelta = timedelta(days=1),
    ) -> None:
        self.folder, self.since, self.until = folder, since, until
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Company CA")])
        constraints = (x509.BasicConstraints(ca=True, path_length=None), critical)
        self.certificate = self._sign(self.name, self.key.public_key(), [constraints])
        self.file = folder / "ca.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def server(self) -> ssl.SSLContext:
        """The TLS context of a server at 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
        certificate = self._sign(name, key.public_key(), [(x509.SubjectAlternativeName([address]), False)])
        both = self.folder / "server.pem"
        both.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(both)
        return context

    def _sign(self, name, key, extensions):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + self.since)
            .not_valid_after(now + self.until)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256())


@pytest.fixture(scope="module")
def company(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("company"))


@pytest.fixture(scope="module")
def server_tls(company):
    return company.server()


VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_ca_bundle_of_the_environment_is_trusted(api, company, server_tls, monkeypatch, variable):
    wire = api.serve(tls=server_tls)
    monkeypatch.setenv(variable, str(company.file))
    ask(api.connect(wire.url))


def test_a_folder_of_ca_certificates_is_trusted(api, company, server_tls, monkeypatch, tmp_path):
    loaded = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    loaded.load_verify_locations(company.file)
    folder = tmp_path / "certificates"
    folder.mkdir()
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}:{folder}")
    wire = api.serve(tls=server_tls)
    assert error_of(api.connect(wire.url)).reason == "connection"
    # as `openssl rehash` names it
    name = hashed_name(company)
    (folder / name).write_bytes(company.file.read_bytes())
    ask(api.connect(wire.url))


@pytest.mark.parametrize("linked", [False, True], ids=["the file itself", "what a link leads to"])
def test_a_certificate_of_the_folder_that_is_replaced_counts_for_new_connections(
    api, company, server_tls, tmp_path, linked
):
    def script(peer):  # one answer per connection
        peer.request()
        peer.send(response(page(), Connection="close"))

    for name in ("other", "certificates"):
        (tmp_path / name).mkdir()
    other = Authority(tmp_path / "other")
    file = tmp_path / "certificates" / hashed_name(company)
    if linked:
        file.symlink_to(tmp_path / "company.pem")
    file.write_bytes(company.file.read_bytes())
    wire = api.serve(script=script, tls=server_tls)
    client = api.connect(wire.url, ca_file=str(file.parent))
    ask(client)
    file.write_bytes(other.file.read_bytes())
    assert "certificate not accepted" in str(error_of(client))
    file.write_bytes(company.file.read_bytes())
    ask(client)


def hashed_name(company: Authority) -> str:
    """The file name under which OpenSSL looks for a CA: a hash of its subject in canonical form."""
    import hashlib

    text = company.name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value.lower().encode()
    value = b"\x0c" + bytes([len(text)]) + text
    oid = b"\x06\x03\x55\x04\x03"
    pair = b"\x30" + bytes([len(oid + value)]) + oid + value
    canonical = b"\x31" + bytes([len(pair)]) + pair
    digest = hashlib.sha1(canonical).digest()  # noqa: S324 - OpenSSL's choice
    return f"{int.from_bytes(digest[:4], 'little'):08x}.0"


def test_the_ca_file_of_the_configuration_comes_before_the_environment(api, company, server_tls, monkeypatch):
    wire = api.serve(tls=server_tls)
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "missing.pem")
    ask(api.connect(wire.url, ca_file=str(company.file)))


def test_the_ca_file_is_read_once_for_all_connections_and_again_when_it_changes(
    api, company, server_tls, tmp_path
):
    def script(peer):  # one answer per connection
        peer.request()
        peer.send(response(page(), Connection="close"))

    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    file = tmp_path / "ca.pem"
    file.write_bytes(company.file.read_bytes())
    wire = api.serve(script=script, tls=server_tls)
    client = api.connect(wire.url, ca_file=str(file))
    loads = []
    load = ssl.SSLContext.load_verify_locations

    def noted(*args, **kwargs):
        loads.append(kwargs)
        return load(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl.SSLContext, "load_verify_locations", noted)
        for _ in range(3):
            ask(client)
        assert loads == []
        file.write_bytes(other.file.read_bytes())
        assert "certificate not accepted" in str(error_of(client))
        file.write_bytes(company.file.read_bytes() + b"\n")
        for _ in range(2):
            ask(client)
        assert len(loads) == 2


def test_a_ca_file_that_goes_bad_leaves_the_one_in_force_with_one_line(
    api, company, server_tls, tmp_path, caplog
):
    def script(peer):
        peer.request()
        peer.send(response(page(), Connection="close"))

    file = tmp_path / "ca.pem"
    file.write_bytes(company.file.read_bytes())
    wire = api.serve(script=script, tls=server_tls)
    client = api.connect(wire.url, ca_file=str(file))
    file.write_text("no certificate")
    ask(client)
    ask(client)
    file.unlink()
    ask(client)
    assert [record.getMessage() for record in caplog.records] == ["the CA certificates in use stay"] * 2


def test_a_ca_file_that_changed_when_descriptors_were_out_is_read_a_while_later(
    company, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.2)
    file = tmp_path / "ca.pem"
    file.write_bytes(company.file.read_bytes())
    trust = Trust({str(file): "modus.ca_file"}, ssl.SSLSocket)
    before = trust.context()
    file.write_bytes(company.file.read_bytes() + b"\n")
    with no_descriptors():
        assert trust.context() is before
        time.sleep(0.3)
        assert [trust.context() for _ in range(3)] == [before] * 3
    time.sleep(0.3)
    assert trust.context() is not before
    assert [record.getMessage() for record in caplog.records] == ["the CA certificates in use stay"]
    assert "Too many open files" in caplog.records[0].fields["error"]


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "No such file or directory"), ("no certificate", "it holds no certificate in PEM")],
)
@pytest.mark.parametrize(
    "name", ["modus.ca_file", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"]
)
def test_a_ca_file_that_cannot_be_read_is_one_line_with_what_names_it(
    api, tmp_path, monkeypatch, name, text, says
):
    file = tmp_path / "bundle.pem"
    if text:
        file.write_text(text)
    if name != "modus.ca_file":
        monkeypatch.setenv(name, str(file))
    with pytest.raises(ApiError) as caught:
        api.connect("https://127.0.0.1:1", ca_file=str(file) if name == "modus.ca_file" else None)
    assert caught.value.reason == "connection"
    assert caught.value.line == f"cannot read the CA bundle {file}: {says}: check {name}"


def test_a_ca_as_openssl_and_curl_accept_it_is_accepted_by_every_python(api, tmp_path):
    """From 3.13 on Python is stricter by itself, and refuses basic constraints that are not critical."""
    company = Authority(tmp_path, critical=False)
    wire = api.serve(tls=company.server())
    ask(api.connect(wire.url, ca_file=str(company.file)))


def test_a_certificate_that_nobody_vouches_for_is_a_connection_error(api, server_tls):
    wire = api.serve(tls=server_tls)
    error = error_of(api.connect(wire.url))
    assert error.reason == "connection"
    assert "TLS: certificate not accepted: " in str(error)
    assert error.hint.startswith("if it is the company's own, set modus.ca_file (a directory needs ")
    assert not wire.requests


def test_a_certificate_for_another_name_is_a_connection_error(api, company, server_tls):
    wire = api.serve(tls=server_tls)
    client = api.connect(wire.url.replace("127.0.0.1", "localhost"), ca_file=str(company.file))
    error = error_of(client)
    assert "TLS: certificate not accepted: Hostname mismatch" in str(error)
    assert error.hint == "name the host as its certificate does"


def test_a_certificate_that_has_expired_is_told_from_one_that_nobody_vouches_for(api, tmp_path):
    company = Authority(tmp_path, since=timedelta(days=-9), until=timedelta(days=-1))
    wire = api.serve(tls=company.server())
    error = error_of(api.connect(wire.url, ca_file=str(company.file)))
    assert "certificate has expired" in str(error)
    assert error.hint == "renew the certificate, or set the clock of this machine"


def test_a_server_that_wants_a_client_certificate_says_so(api, company):
    context = company.server()
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # later ones say it behind the handshake, if they can
    context.verify_mode = ssl.CERT_REQUIRED
    wire = api.serve(tls=context)
    error = error_of(api.connect(wire.url, ca_file=str(company.file)))
    assert error.reason == "connection"
    assert error.hint == "if the server wants a client certificate: those are not supported"


def test_tls_on_a_port_without_it_says_so(api):
    wire, _ = api(script=lambda peer: (peer.sock.recv(100), peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")))
    error = error_of(api.connect(wire.url.replace("http:", "https:")))
    assert error.reason == "connection"
    assert "write http:// in modus.base_url" in error.line


def test_a_port_with_tls_asked_without_says_so(api, server_tls):
    def script(peer):
        peer.request()
        peer.send(b"\x15\x03\x01\x00\x02\x02\x46")  # as OpenSSL answers: a fatal alert

    _, client = api(script=script)
    assert "write https:// in modus.base_url" in error_of(client).line


# proxies


def test_the_proxy_of_the_environment_is_used_and_read_once(api, monkeypatch):
    proxy = api.serve(lambda _: response(page(error=5)))
    monkeypatch.setenv("http_proxy", proxy.url)
    client = api.connect("http://api.invalid")
    monkeypatch.delenv("http_proxy")
    assert ask(client).counts["error"] == 5
    assert proxy.paths == ["http://api.invalid/api/v1/agents/42/runs?pageSize=100"]


def test_no_proxy_is_honoured(api, monkeypatch):
    proxy = api.serve(lambda _: failure(502))
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    _, client = api()
    ask(client)
    assert not proxy.requests


def tunnel(target: ssl.SSLContext, answer: bytes):
    """A proxy that consents, and in its tunnel the server itself."""

    def script(peer):
        peer.request()
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        inside = target.wrap_bio(incoming, outgoing, server_side=True)

        def through(step, *args):
            while True:
                try:
                    return step(*args)
                except ssl.SSLWantReadError:
                    peer.send(outgoing.read())
                    incoming.write(peer.sock.recv(65536))
                finally:
                    if outgoing.pending:
                        peer.send(outgoing.read())

        through(inside.do_handshake)
        through(inside.read, 65536)
        through(inside.write, answer)
        peer.wire.closing.wait(HANG)

    return script


@pytest.mark.parametrize("secure", [False, True], ids=["http proxy", "https proxy"])
def test_tls_goes_through_a_tunnel_of_the_proxy_which_never_sees_the_token(
    api, company, server_tls, monkeypatch, secure
):
    script = tunnel(server_tls, response(page(error=6)))
    proxy = api.serve(script=script, tls=server_tls if secure else None)
    monkeypatch.setenv("https_proxy", proxy.url)
    client = api.connect("https://127.0.0.1:1", ca_file=str(company.file))
    assert ask(client).counts["error"] == 6
    assert proxy.paths == ["127.0.0.1:1"]
    assert TOKEN not in proxy.requests[0]


def test_an_https_proxy_that_nobody_vouches_for_is_not_used(api, server_tls, monkeypatch):
    proxy = api.serve(tls=server_tls)
    monkeypatch.setenv("https_proxy", proxy.url)
    error = error_of(api.connect("https://127.0.0.1:1"))
    assert f"the proxy {proxy.url.removeprefix('https://')}: TLS: certificate not accepted" in str(error)
    assert error.hint.startswith("if it is the company's own, set modus.ca_file (a directory needs ")
    assert not proxy.requests


def test_a_plain_request_goes_over_an_https_proxy_of_the_company(api, company, server_tls, monkeypatch):
    proxy = api.serve(lambda _: response(page(error=5)), tls=server_tls)
    monkeypatch.setenv("http_proxy", proxy.url)
    client = api.connect("http://api.invalid", ca_file=str(company.file))
    assert ask(client).counts["error"] == 5


def test_a_proxy_that_refuses_the_tunnel_says_which_and_why(api, monkeypatch):
    proxy = api.serve(lambda _: b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
    monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//user:hidden@"))
    error = error_of(api.connect("https://127.0.0.1:1"))
    assert error.reason == "connection"
    assert f"the proxy {proxy.url.removeprefix('http://')}: Tunnel connection failed: 407" in str(error)
    assert error.hint == "name the proxy's user and password: https_proxy=http://user:password@host:port"
    assert "hidden" not in str(error)


def through(consent: bytes):
    """A proxy that answers so, and then cuts the connection."""

    def script(peer):
        peer.request()
        peer.send(consent)
        peer.reset()

    return script


@pytest.mark.parametrize(
    ("script", "reason", "says"),
    [
        (
            lambda peer: (peer.request(), peer.send(b"garbage\r\n\r\n")),
            "bad_response",
            "no sound HTTP answer",
        ),
        (lambda peer: peer.request(), "connection", "closed without an answer"),
        (lambda peer: (peer.request(), peer.reset()), "connection", "closed without an answer"),
        (silent, "timeout", "no whole answer within 0.5 s"),
    ],
    ids=["garbage", "close", "reset", "silence"],
)
def test_a_proxy_that_gives_no_tunnel_is_named(api, monkeypatch, script, reason, says):
    proxy = api.serve(script=script)
    monkeypatch.setenv("https_proxy", proxy.url)
    error = error_of(api.connect("https://127.0.0.1:1", timeout=0.5, sleep=lambda _: None))
    assert error.reason == reason
    assert f"the proxy {proxy.url.removeprefix('http://')}: " in str(error)
    assert says in str(error)
    assert "modus.base_url" not in error.hint


def test_a_tunnel_that_ends_before_the_handshake_is_a_connection_error(api, monkeypatch):
    proxy = api.serve(script=through(b"HTTP/1.1 200 Connection established\r\n\r\n"))
    monkeypatch.setenv("https_proxy", proxy.url)
    error = error_of(api.connect("https://127.0.0.1:1", sleep=lambda _: None))
    assert error.reason == "connection"


def test_a_proxy_that_is_not_there_is_told_from_an_api_that_is_not(api, monkeypatch):
    port = free_port()
    assert "proxy" not in str(error_of(api.connect(f"http://127.0.0.1:{port}")))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    for scheme in ("http", "https"):
        error = error_of(api.connect(f"{scheme}://api.invalid"))
        assert (
            f"the proxy 127.0.0.1:{port}: connection refused: check https_proxy and http_proxy" in error.line
        )


def test_a_socks_proxy_is_refused_rather_than_passed_by(api, monkeypatch):
    monkeypatch.setenv("all_proxy", "socks5h://user:hidden@127.0.0.1:1080")
    with pytest.raises(ApiError, match="SOCKS proxies are not supported") as caught:
        api.connect("http://127.0.0.1:1")
    assert "hidden" not in str(caught.value)
