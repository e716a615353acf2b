"""One connection: TLS, what is not HTTP, clients that take their time."""

import contextlib
import gc
import http.client
import logging
import socket
import ssl
import struct
import threading
import time

import pytest

from exporter import watch
from exporter.web import connection, server
from exporter.web.webconfig import WebConfigFile
from tests.e2e.scarce import no_descriptors
from tests.webfiles import HASH, TLS, Authority
from tests.webserver import awaited, closed_by_peer, exchange, exposition, running


@pytest.fixture(scope="module")
def site():
    with running() as open_site:
        yield open_site


# --- TLS ---


def test_tls_serves_https_only(ca, write):
    with running(config=write(TLS % "")) as site:
        assert site.get("/metrics", tls=ca.client()).status == 200
        assert site.get("/metrics").status == 400


def test_a_renewed_certificate_is_used_for_new_connections(ca, write):
    def serial():
        with (
            socket.create_connection(("127.0.0.1", site.port)) as sock,
            ca.client().wrap_socket(sock, server_hostname="127.0.0.1") as tls,
        ):
            return int(tls.getpeercert()["serialNumber"], 16)

    with running(config=write(TLS % "")) as site:
        before = serial()
        renewed = ca.issue("server")
        assert serial() == renewed != before
        (ca.directory / "server.key").write_text("broken")
        assert serial() == renewed


def test_a_certificate_that_was_renewed_when_descriptors_were_out_is_used_a_while_later(
    ca, write, monkeypatch, caplog
):
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.2)
    file = WebConfigFile(str(write(TLS % ", curve_preferences: [CurveP256, CurveP384]")))
    before = file.current()
    caplog.clear()
    ca.issue("server")
    with no_descriptors():
        assert file.current() is before
        time.sleep(0.3)
        assert [file.current() for _ in range(3)] == [before] * 3
    time.sleep(0.3)
    assert file.current() is not before
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "web configuration refused, last one kept",
        "only one of the curves is used: Python's ssl takes one",
    ]


def test_certificate_and_key_may_be_inline(ca, write):
    def indented(name):
        return (ca.directory / name).read_text().replace("\n", "\n    ")

    certificate, key = indented("server.crt"), indented("server.key")
    text = f"tls_server_config:\n  cert: |\n    {certificate}\n  key: |\n    {key}\n"
    with running(config=write(text)) as site:
        assert site.get("/metrics", tls=ca.client()).status == 200


def test_tls_below_1_2_is_refused_and_a_higher_minimum_is_kept(ca, write):
    old = ca.client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with running(config=write(TLS % "")) as site:
        assert site.get("/", tls=old).status == 200
        assert (
            WebConfigFile(str(ca.directory / "web.yml")).current().tls.minimum_version
            == ssl.TLSVersion.TLSv1_2
        )
        write(TLS % ", min_version: TLS13")
        with pytest.raises(ssl.SSLError):
            site.get("/", tls=old)
        assert site.get("/", tls=ca.client()).status == 200


def test_ciphers_and_curve_are_those_of_the_file(ca, write):
    options = ", max_version: TLS12, curve_preferences: [CurveP384], prefer_server_cipher_suites: false"
    suites = "TLS_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
    http1 = "\nhttp_server_config: {http2: false}"  # which needs other suites
    with running(config=write(TLS % f"{options}, cipher_suites: [{suites}]" + http1)) as site:
        client = ca.client()
        with (
            socket.create_connection(("127.0.0.1", site.port)) as sock,
            client.wrap_socket(sock, server_hostname="127.0.0.1") as tls,
        ):
            assert tls.cipher()[0] == "ECDHE-ECDSA-CHACHA20-POLY1305"
        client.set_ecdh_curve("prime256v1")
        with pytest.raises(OSError, match=r"."):
            site.get("/", tls=client)


def test_all_the_ciphers_of_the_file_are_offered_in_its_order(ca, write):
    suites = "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
    context = WebConfigFile(str(write(TLS % f", cipher_suites: [{suites}]"))).current().tls
    names = [cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert names == ["ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES128-GCM-SHA256"]


@pytest.mark.parametrize(
    ("kind", "certificate", "served"),
    [
        ("RequireAndVerifyClientCert", "good", True),
        ("RequireAndVerifyClientCert", "stranger", False),
        ("RequireAndVerifyClientCert", None, False),
        ("VerifyClientCertIfGiven", "good", True),
        ("VerifyClientCertIfGiven", "stranger", False),
        ("VerifyClientCertIfGiven", None, True),
    ],
)
def test_client_certificates(ca, write, tmp_path, kind, certificate, served):
    ca.issue("good")
    stranger = Authority(tmp_path, "other")
    stranger.issue("stranger")
    client = ca.client(certificate)
    with running(config=write(TLS % f", client_auth_type: {kind}, client_ca_file: ca.pem")) as site:
        if served:
            assert site.get("/", tls=client).status == 200
        else:
            with pytest.raises(OSError, match=r"."):
                site.get("/", tls=client)


@pytest.mark.parametrize(
    ("allowed", "served"),
    [
        ("['good']", True),
        ("['0:0:0:0:0:0:0:1']", True),
        ("['other']", False),
        ("[]", False),  # nobody, as in the toolkit
        ("", True),  # no list
    ],
)
def test_only_clients_with_an_allowed_name_are_let_in(ca, write, allowed, served):
    ca.issue("good")
    options = ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem"
    options += f", client_allowed_sans: {allowed}"
    with running(config=write(TLS % options)) as site:
        if served:
            assert site.get("/", tls=ca.client("good")).status == 200
        else:
            with pytest.raises(OSError, match=r"."):
                site.get("/", tls=ca.client("good"))


# --- too much of it ---


@pytest.mark.parametrize("size", [17_000, 60_000, 400_000])
@pytest.mark.parametrize("complete", [True, False])
def test_oversized_headers_are_431(site, size, complete):
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"a" * size
    answer = exchange(site.port, request + (b"\r\n\r\n" if complete else b""))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"x-frame-options: deny" in answer.lower()


def test_headers_of_a_usual_size_pass(site):
    assert site.get("/", X="a" * 8000).status == 200


@pytest.mark.parametrize(
    "data",
    [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"\x16\x03\x01\r\n\r\n"],
)
def test_what_is_not_http_is_400(site, data):
    answer = exchange(site.port, data)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"X-Content-Type-Options: nosniff" in answer


def test_nonsense_in_a_body_ends_the_connection_and_nothing_else(caplog):
    entered, release = threading.Event(), threading.Event()
    with running(
        scrape=lambda timeout, form: entered.set() or (release.wait(20) and [exposition(form)])
    ) as site:
        with socket.create_connection(("127.0.0.1", site.port)) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert entered.wait(10)
            sock.sendall(b"nonsense\r\n")
            assert closed_by_peer(sock)
        release.set()
        assert site.get("/").status == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_client_that_trickles_its_request_is_dropped(monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 1.0)
    with running() as site, socket.create_connection(("127.0.0.1", site.port)) as sock:
        sock.settimeout(0.2)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):  # a byte at a time, far longer than it may take
                sock.sendall(b"G")
                with contextlib.suppress(TimeoutError):
                    assert sock.recv(100) == b""
                    return
        assert closed_by_peer(sock, seconds=0.1)


def test_a_second_request_that_trickles_is_dropped_too(monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 1.0)
    with running() as site, socket.create_connection(("127.0.0.1", site.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536)
        sock.sendall(b"GET / HTTP/1.1\r\n")
        assert closed_by_peer(sock)


def test_an_idle_connection_is_closed_later_than_a_scrape_interval(monkeypatch):
    assert connection.IDLE_SECONDS > 60
    monkeypatch.setattr(connection, "IDLE_SECONDS", 1)
    with running() as site, socket.create_connection(("127.0.0.1", site.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert closed_by_peer(sock)


def test_an_unfinished_tls_handshake_is_dropped(ca, write, monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 1.0)
    with running(config=write(TLS % "")) as site, socket.create_connection(("127.0.0.1", site.port)) as sock:
        sock.sendall(b"\x16\x03\x01")
        assert closed_by_peer(sock)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
@pytest.mark.parametrize("size", [0, 8_000])
def test_who_speaks_http_to_the_port_with_tls_is_told_so_as_in_go(ca, write, method, size):
    with running(config=write(TLS % "")) as site:
        request = f"{method} /metrics HTTP/1.1\r\nHost: x\r\nX: {'x' * size}\r\n\r\n"
        assert exchange(site.port, request.encode()) == (
            b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
        )
        with site.connect() as sock:
            sock.sendall(b"nonsense\r\n")
            assert closed_by_peer(sock)
        assert site.get("/", tls=ca.client()).status == 200


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01"], ids=["at once", "in the middle"])
def test_a_client_that_resets_instead_of_shaking_hands_leaves_no_line(ca, write, caplog, first):
    """As health checks of load balancers do, every few seconds."""
    with running(config=write(TLS % "")) as site:
        for _ in range(50):
            with site.connect() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.sendall(first)
        assert site.get("/", tls=ca.client()).status == 200
        gc.collect()  # tells of tasks of which nobody saw how they ended
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


# --- the end of a handshake, and of a configuration ---


@pytest.mark.parametrize(
    ("options", "alert"),
    [
        (", min_version: TLS13", "ALERT_PROTOCOL_VERSION"),
        (
            ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem, max_version: TLS12",
            "ALERT_HANDSHAKE_FAILURE",
        ),
        (
            ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem",
            "ALERT_CERTIFICATE_REQUIRED",
        ),
    ],
)
def test_a_client_whose_handshake_fails_is_told_why(ca, write, options, alert):
    client = ca.client()
    if "min_version" in options:
        client.maximum_version = ssl.TLSVersion.TLSv1_2
    with running(config=write(TLS % options)) as site, pytest.raises(ssl.SSLError) as caught:
        site.get("/", tls=client)
    assert alert in str(caught.value)


def test_a_client_with_an_unknown_authority_is_told_so(ca, write, tmp_path):
    Authority(tmp_path, "other").issue("stranger")
    options = ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem"
    with running(config=write(TLS % options)) as site, pytest.raises(ssl.SSLError, match="ALERT_UNKNOWN_CA"):
        site.get("/", tls=ca.client("stranger"))


KEEP = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def answered(sock):
    """The status of one answer, which is read to its end."""
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    answer.read()
    return answer.status


@pytest.mark.parametrize("secure", [False, True])
def test_an_idle_connection_ends_when_the_web_configuration_changes(ca, write, secure):
    tls = TLS % "" if secure else ""
    with running(config=write(tls)) as site, contextlib.ExitStack() as stack:
        sock = stack.enter_context(site.connect())
        if secure:
            sock = stack.enter_context(ca.client().wrap_socket(sock, server_hostname="127.0.0.1"))
        for _ in range(2):
            sock.sendall(KEEP)
            assert answered(sock) == 200
        write(f"{tls}basic_auth_users: {{alice: '{HASH}'}}")
        assert closed_by_peer(sock)


@contextlib.contextmanager
def an_old_connection(ca, write):
    """One that was answered before the certificate changed."""
    with (
        running(config=write(TLS % "")) as site,
        site.connect() as sock,
        ca.client().wrap_socket(sock, server_hostname="127.0.0.1") as tls,
    ):
        tls.sendall(KEEP)
        assert answered(tls) == 200
        ca.issue("server")
        yield tls


def test_an_idle_connection_ends_when_the_certificate_changes(ca, write):
    with an_old_connection(ca, write) as tls:
        assert closed_by_peer(tls)


def test_a_connection_that_is_busy_when_the_web_configuration_changes_ends_after_its_answer(ca, write):
    entered, release = threading.Event(), threading.Event()

    def scrape(timeout, form):
        entered.set()
        release.wait(20)
        return [exposition(form)]

    with running(scrape=scrape, config=write("")) as site, site.connect() as sock:
        sock.sendall(KEEP.replace(b"/", b"/metrics", 1))
        assert entered.wait(10)
        write(f"basic_auth_users: {{alice: '{HASH}'}}")
        assert site.get("/").status == 401
        assert not closed_by_peer(sock, seconds=1.5)  # longer than the server looks away
        release.set()
        assert answered(sock) == 200
        assert closed_by_peer(sock)


def test_a_request_on_an_old_tls_connection_is_not_answered(ca, write, monkeypatch):
    """Whoever is no longer admitted gets nothing, however soon he asks."""
    monkeypatch.setattr(server, "WATCH_SECONDS", 3600)
    with an_old_connection(ca, write) as tls:
        tls.sendall(KEEP)
        assert tls.recv(100) == b""


# --- HTTP ---


@pytest.mark.parametrize(
    "target", ["http://any.example/metrics", "HTTPS://x:1/metrics?a=b", "/metrics?x", "/%6detrics"]
)
def test_every_form_of_a_target_is_understood(site, target):
    answer = exchange(site.port, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(exposition("text"))


@pytest.mark.parametrize(
    ("target", "status"), [("http://x", b"200"), ("http://x?a", b"200"), ("*", b"404"), ("metrics", b"404")]
)
def test_a_target_without_a_path_is_the_landing_page_or_nothing(site, target, status):
    answer = exchange(site.port, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] == status


def test_http_1_0_is_answered_and_closed(site):
    assert exchange(site.port, b"GET /-/healthy HTTP/1.0\r\n\r\n").endswith(b"modus-exporter is healthy.\n")


def test_requests_in_one_piece_are_answered_one_after_the_other(site):
    first = b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = exchange(site.port, first + first.replace(b"Host", b"Connection: close\r\nHost"))
    assert answer.count(b"modus-exporter is healthy.\n") == 2


def test_the_answer_to_an_upload_survives_what_is_still_on_its_way(site):
    head = b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    assert exchange(site.port, head + b"x" * 1_000_000).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize("path", ["/-/healthy", "/metrics", "/"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_who_says_that_nothing_more_comes_is_answered_all_the_same(site, path, version):
    """As `nc -N` does; Go answers too."""
    with site.connect() as sock:
        sock.sendall(f"GET {path} HTTP/{version}\r\nHost: x\r\n\r\n".encode())
        sock.shutdown(socket.SHUT_WR)
        assert answered(sock) == 200
        assert closed_by_peer(sock)


def test_who_says_so_while_his_scrape_is_at_work_gets_it():
    entered, release = threading.Event(), threading.Event()

    def scrape(timeout, form):
        entered.set()
        release.wait(20)
        return [exposition(form)]

    with running(scrape=scrape) as site, site.connect() as sock:
        sock.sendall(KEEP.replace(b"/", b"/metrics", 1))
        assert entered.wait(10)
        sock.shutdown(socket.SHUT_WR)
        assert not closed_by_peer(sock, seconds=0.2)
        release.set()
        assert answered(sock) == 200
        assert closed_by_peer(sock)


def test_all_requests_before_the_end_are_answered(site):
    with site.connect() as sock:
        sock.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(4096), b""))
    assert answer.count(b"modus-exporter is healthy.\n") == 3


def test_half_a_body_before_the_end_is_no_request(site):
    with site.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        sock.shutdown(socket.SHUT_WR)
        assert closed_by_peer(sock)
    assert site.get("/").status == 200


def test_who_has_left_is_sent_nothing_for_long():
    """Leaving looks like saying that nothing more comes until something is sent."""
    entered, release = threading.Event(), threading.Event()

    def scrape(timeout, form):
        entered.set()
        release.wait(20)
        return [b"#" * 999 + b"\n"] * 20_000

    with running(scrape=scrape) as site:
        with site.connect() as sock:
            sock.sendall(KEEP.replace(b"/", b"/metrics", 1))
            assert entered.wait(10)
        release.set()
        awaited(lambda: not list(site.places), seconds=5)  # far less than who takes his answer slowly may
