"""The pages of the web server: exposition, negotiation, landing page, health, reload."""

import contextlib
import errno
import gzip
import logging
import os
import re
import select
import socket
import threading
import time
from concurrent.futures import Future

import pytest

from exporter.modus.contact import Contact
from exporter.web import listeners, pages
from exporter.web.errors import WebError
from exporter.web.listeners import open_listeners, parse, passed_by_systemd, url_of
from exporter.web.negotiation import gzip_accepted, negotiate, scrape_timeout
from exporter.web.site import Site
from exporter.web.webconfig import RateLimit, WebConfig
from tests.e2e.harness import free_port
from tests.webserver import DEFAULT_TIMEOUT, awaited, exposition, running

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
NATIVE_2 = (  # with --enable-feature=native-histograms
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
    "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
NATIVE_3 = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;"
    "escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PROMETHEUS_2 = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
IPV6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


@pytest.fixture(scope="module")
def site():
    with running() as open_site:
        yield open_site


# --- the exposition ---


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, f"{OPENMETRICS}; escaping=allow-utf-8"),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", OPENMETRICS.replace("1.0.0", "0.0.1")),
        ("application/openmetrics-text;version=9.0.0,text/plain;version=0.0.4;q=0.5", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.9", TEXT),
        ("application/openmetrics-text;q=.9,text/plain;q=.95", TEXT),
        ("application/openmetrics-text;q=0.00001,text/plain;q=0.00002", TEXT),
        (
            "text/plain;version=1.0.0;escaping=underscores",
            f"{TEXT.replace('0.0.4', '1.0.0')}; escaping=underscores",
        ),
        ("text/plain;version=1.0.0;escaping=x\x0by", TEXT.replace("0.0.4", "1.0.0")),
        ("text/plain;version=abc", TEXT),
        ("application/openmetrics-text;version=abc;q=nan", TEXT),
        (";;,=,q=;", TEXT),
        ("image/png", TEXT),
        ('application/openmetrics-text; version="1.0.0"', OPENMETRICS),
        (
            'application/openmetrics-text;version="1.0.0";escaping="allow-utf-8"',
            f"{OPENMETRICS}; escaping=allow-utf-8",
        ),
        (r'application/openmetrics-text;version="1\.0.0"', OPENMETRICS),
        ('application/openmetrics-text;x="a,b;c";version="0.0.1"', OPENMETRICS.replace("1.0.0", "0.0.1")),
        ('application/openmetrics-text;version="1.0.0', TEXT),
    ],
)
def test_the_best_format_that_the_client_names_is_chosen(accept, expected):
    openmetrics = expected.startswith("application")
    assert negotiate(accept) == ("openmetrics" if openmetrics else "text", expected)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (NATIVE_2, PROTOBUF),
        (NATIVE_3, f"{PROTOBUF}; escaping=allow-utf-8"),
        (f"text/plain;q=0.5,{PROTOBUF};q=0.6", PROTOBUF),
        (PROTOBUF.upper(), PROTOBUF),
        (PROTOBUF.replace("=delimited", '="delimited"'), PROTOBUF),
        (f"{PROTOBUF};q=0.5,text/plain", TEXT),
        (f"{PROTOBUF};q=0", TEXT),
        (PROTOBUF.replace("delimited", "text"), TEXT),
        (PROTOBUF.replace("delimited", "compact-text") + ",application/openmetrics-text;q=0.1", OPENMETRICS),
        (PROTOBUF.replace("MetricFamily", "Metric"), TEXT),
        ("application/vnd.google.protobuf", TEXT),
        ("application/vnd.google.protobuf;encoding=delimited", TEXT),
        ("application/*", TEXT),
    ],
)
def test_protobuf_is_for_those_who_name_the_message_and_want_nothing_better(accept, expected):
    form, content_type = negotiate(accept)
    assert content_type == expected
    assert (form == "protobuf") == expected.startswith(PROTOBUF)


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("", False),
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("gzip;q=0.0000", False),
        ("gzip;q=00", False),
        ("gzip;q=.0", False),
        ("gzip;q=0.", False),
        ("gzip;q=1.00001", True),
        ("gzip;q=.", True),  # no number: as none
        ("gzip;q=\u0660", True),
        ("*;q=0.1", True),
        ("identity", False),
        ("gzipped", False),
    ],
)
def test_gzip_is_used_only_when_the_client_wants_it(header, accepted):
    assert gzip_accepted(header) is accepted


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("10", 10.0),
        ("0.5", 0.5),
        ("1e1", 10.0),
        (".5", 0.5),
        ("300.5", 300.0),
        ("1e10", 300.0),
        ("100000", 300.0),
        *[
            (bad, None)
            for bad in (None, "", " ", "0", "0.0", "-1", "nan", "inf", "-inf", "1e999", "9" * 2000)
        ],
        *[
            (bad, None)
            for bad in ("ten", "1s", "1_0", "0x10", "\u0661\u0660", "1,5", "5, 10", "1e-999", ".", "e5")
        ],
    ],
)
def test_the_scrape_timeout_is_a_positive_number_of_300_at_most_or_none(header, seconds):
    assert scrape_timeout(header) == seconds


def test_metrics_are_served_in_the_format_asked_for(site):
    answer = site.get("/metrics", Accept=PROMETHEUS_3)
    assert (answer.status, answer.headers["content-type"]) == (
        200,
        f"{OPENMETRICS}; escaping=allow-utf-8",
    )
    assert answer.data == exposition("openmetrics")
    plain = site.get("/metrics", Accept="text/plain;version=abc")
    assert (plain.status, plain.headers["content-type"]) == (200, TEXT)
    assert plain.data == exposition("text")


def test_metrics_are_compressed_when_accepted_and_caches_are_told(site):
    zipped = site.get("/metrics", Accept_Encoding="gzip")
    plain = site.get("/metrics", Accept_Encoding="gzip;q=0")
    assert gzip.decompress(zipped.data) == plain.data
    assert (zipped.headers["content-encoding"], plain.headers["content-encoding"]) == ("gzip", None)
    assert zipped.headers["vary"] == plain.headers["vary"] == "Accept, Accept-Encoding"


def test_head_answers_as_get_does_without_the_body(site):
    head, get = site.get("/metrics", "HEAD"), site.get("/metrics")
    assert (head.status, head.data) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.data))


def test_the_scrapers_timeout_reaches_the_scrape():
    seen = []
    with running(scrape=lambda timeout, form: seen.append(timeout) or []) as site:
        site.get("/metrics", X_Prometheus_Scrape_Timeout_Seconds="7.5")
        site.get("/metrics", X_Prometheus_Scrape_Timeout_Seconds="-inf")
        site.get("/metrics", X_Prometheus_Scrape_Timeout_Seconds="1e10")
    assert seen == [pytest.approx(seconds, abs=1) for seconds in (7.5, DEFAULT_TIMEOUT, 300)]


def test_a_timeout_that_leaves_no_time_is_told_so(site):
    answer = site.get("/metrics", X_Prometheus_Scrape_Timeout_Seconds="1e-9")
    assert (answer.status, answer.data) == (503, b"the time for the scrape was over before it began\n")


def test_scrapes_one_after_the_other_come_from_one_thread():
    """Each new thread would leave memory behind that nobody else uses."""
    threads = []

    def waits(timeout, form):
        threads.append(threading.current_thread())
        yield Future(), 0.01
        threads.append(threading.current_thread())
        return object(), []

    with running(waits=waits) as site:
        for _ in range(3):
            site.get("/metrics")
    assert threads == threads[:1] * 6


def test_a_failing_scrape_is_a_500_and_one_line_in_the_log(caplog):
    def scrape(timeout, form):
        raise RuntimeError("it broke\nhere")

    with running(scrape=scrape) as site:
        answer = site.get("/metrics")
    assert (answer.status, answer.data) == (500, b"the scrape failed: see the log of the exporter\n")
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (record.name, record.message, record.exc_info) == ("exporter.web.log", "scrape failed", None)
    assert record.fields == {"error": "RuntimeError: it broke here"}


def test_a_page_that_breaks_is_a_500_without_a_traceback(caplog, monkeypatch):
    monkeypatch.setattr(pages, "negotiate", lambda accept: 1 / 0)
    with running() as site:
        answer = site.get("/metrics")
    assert (answer.status, answer.headers["x-frame-options"]) == (500, "deny")
    assert b"Traceback" not in answer.data
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.fields == {"error": "ZeroDivisionError: division by zero"}


# --- the other pages ---


def test_a_telemetry_path_of_slash_takes_the_landing_pages_place():
    with running(path="/") as site:
        assert site.get("/").data == exposition("text")


@pytest.mark.parametrize("path", ["metrics", "", "/{x}", "/a b", "/a?b", "/ä"])
def test_a_telemetry_path_that_is_no_path_is_refused(path):
    with pytest.raises(WebError, match=r"^--web.telemetry-path: expected a path like /metrics, got "):
        Site.of(path, None, None)


@pytest.mark.parametrize("path", ["/-/healthy", "/-/ready", "/-/reload"])
def test_a_telemetry_path_that_takes_another_pages_place_is_refused(path):
    with pytest.raises(WebError, match=f"^--web.telemetry-path: {path} is another page: name another path$"):
        Site.of(path, None, None)


def test_health_and_readiness():
    with running() as site:
        assert site.get("/-/healthy").data == b"modus-exporter is healthy.\n"
        assert site.get("/-/ready").data.startswith(b"modus-exporter is ready.\n")


@pytest.mark.parametrize(
    ("ago", "problem", "says"),
    [
        (None, "", r"The API has not been asked yet\."),
        (None, "refused: check x", r"The API has not answered yet: refused: check x\."),
        (600, "", r"The API answered 1\d min ago\."),
        (600, "401: check y", r"The API answered 1\d min ago\. Now: 401: check y\."),
    ],
)
def test_ready_is_who_serves_metrics_and_tells_whether_the_api_answers(ago, problem, says):
    contact = Contact(None if ago is None else time.time() - ago, problem)
    with running(contact=contact) as site:
        answer = site.get("/-/ready")
    assert answer.status == 200  # else Kubernetes would keep an outage of the API from Prometheus
    assert re.fullmatch(rf"modus-exporter is ready\.\n{says}\n", answer.data.decode())


def test_reload_is_forbidden_unless_enabled():
    with running() as site:
        answer = site.get("/-/reload", "POST")
    assert (answer.status, site.reloads) == (403, [])
    assert b"--web.enable-lifecycle" in answer.data


def test_reload_by_post_and_put_when_enabled():
    with running(lifecycle=True) as site:
        assert [site.get("/-/reload", method).status for method in ("POST", "PUT", "GET")] == [200, 200, 405]
    assert site.reloads == [1, 1]


def test_a_failed_reload_says_why():
    with running(lifecycle=True, failure="config.yaml: agents: wrong") as site:
        answer = site.get("/-/reload", "POST")
    assert (answer.status, answer.data) == (500, b"failed to reload config: config.yaml: agents: wrong\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"])
def test_other_methods_are_405_with_the_allowed_ones(site, method):
    answer = site.get("/metrics", method)
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/metrics/../etc/passwd",
        "/metrics/",
        "/metrics/x",
        "//metrics",
        "/METRICS",
        "/metrics%00",
        "/metrics%0a",
        "/%ff",
        "/-/",
        "/favicon.ico",
    ],
)
def test_every_other_path_is_404(site, path):
    answer = site.get(path)
    assert (answer.status, answer.data) == (404, b"Not Found")


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/-/reload", "/nothing"])
def test_every_answer_has_the_security_headers_and_no_banner(site, path):
    headers = site.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "deny"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "server" not in headers


def test_a_body_is_not_read_and_the_connection_ends_after_the_answer():
    with running(lifecycle=True) as site:
        answer = site.get("/-/reload", "POST", body=b"x" * 1000)
    assert (answer.status, answer.headers["connection"]) == (200, "close")


# --- where it listens ---


def listen_on(*addresses):
    return open_listeners(parse(addresses), systemd_socket=False)


@pytest.mark.parametrize("address", ["127.0.0.1:0", pytest.param("[::1]:0", marks=IPV6), "localhost:0", ":0"])
def test_addresses_as_prometheus_users_write_them(address):
    [listener] = listen_on(address)
    with listener:
        assert listener.getsockname()[1] > 0


@IPV6
@pytest.mark.parametrize("address", [":0", "[::]:0"])
def test_no_host_and_the_ipv6_wildcard_are_both_families_as_in_go(address):
    [listener] = listen_on(address)
    with listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()


@pytest.mark.parametrize("address", ["", "10371", "host:", "host:port", ":70000", ":-1", "[::1]"])
def test_an_address_that_is_none_is_a_mistake_of_use(address):
    with pytest.raises(WebError, match=r"^--web.listen-address: expected host:port or :port, got ") as caught:
        parse([address])
    assert caught.value.exit_code == 2


def test_an_address_that_is_given_twice_is_a_mistake_of_use():
    with pytest.raises(WebError, match=r"^--web.listen-address: \[::1\]:9 is given twice$") as caught:
        parse(["[::1]:9", ":9", "[::1]:9"])
    assert caught.value.exit_code == 2
    assert len(parse(["127.0.0.1:0", "127.0.0.1:0"])) == 2  # two free ports


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("no-such-host.invalid:1", "the host name cannot be resolved"),
        (f"{'x' * 64}.example:1", "the host name cannot be resolved"),
        ("192.0.2.1:1", "this machine has no such address"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_line_and_exit_code_1(address, problem):
    with pytest.raises(WebError) as caught:
        listen_on(address)
    assert str(caught.value) == f"--web.listen-address: cannot listen on {address}: {problem}"
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (errno.EACCES, "not allowed to: name a port from 1024 on"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_what_the_system_refuses_is_said_without_pythons_own_words(monkeypatch, number, problem):
    def refuse(*args, **options):
        raise OSError(number, f"{os.strerror(number)} (while attempting to bind on address ('', 1))")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(WebError, match=f"^--web.listen-address: cannot listen on :1: {problem}$"):
        listen_on(":1")


def test_several_addresses_are_all_listened_on():
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(each) for each in listen_on("127.0.0.1:0", "127.0.0.2:0")]
        assert [each.getsockname()[0] for each in found] == ["127.0.0.1", "127.0.0.2"]


def test_a_port_in_use_is_one_line_and_exit_code_1_and_leaves_no_other_address_open():
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(WebError) as caught:
            listen_on(f"127.0.0.2:{port}", f"127.0.0.1:{port}")
        [other] = listen_on(f"127.0.0.2:{port}")
        other.close()
    problem = "the port is in use: name another one, or end what listens there"
    assert str(caught.value) == f"--web.listen-address: cannot listen on 127.0.0.1:{port}: {problem}"
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("address", "tls", "path", "url"),
    [
        ("127.0.0.1:0", False, "/", "http://127.0.0.1:{}/"),
        (":0", False, "/modus/", "http://localhost:{}/modus/"),
        ("0.0.0.0:0", True, "/", "https://localhost:{}/"),
        pytest.param("[::1]:0", False, "/", "http://[::1]:{}/", marks=IPV6),
    ],
)
def test_the_url_of_a_listener_can_be_opened_on_this_machine(address, tls, path, url):
    [listener] = listen_on(address)
    with listener:
        assert url_of(listener, tls=tls, path=path) == url.format(listener.getsockname()[1])


def test_a_unix_socket_has_no_url(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert url_of(listener, tls=False, path="/") is None


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_PID": "7"},
        {"LISTEN_PID": "8", "LISTEN_FDS": "1"},
        *[{"LISTEN_PID": "7", "LISTEN_FDS": bad} for bad in ("0", "-1", "x", "")],
    ],
)
def test_without_a_socket_of_systemd_it_is_one_line(environ):
    with pytest.raises(WebError, match=r"^--web.systemd-socket: systemd passed no socket: ") as caught:
        passed_by_systemd(environ, 7)
    assert caught.value.exit_code == 1


def test_a_passed_descriptor_that_is_no_listening_socket_is_one_line(monkeypatch):
    with socket.socket() as not_listening:
        monkeypatch.setattr(listeners, "FIRST_PASSED", os.dup(not_listening.fileno()))
        with pytest.raises(
            WebError, match=r"^--web.systemd-socket: descriptor \d+ is no listening stream socket"
        ):
            passed_by_systemd({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, 7)


# --- behind a proxy ---


def test_the_path_of_the_external_url_is_the_prefix_of_all_pages_and_links():
    with running(external_url="https://proxy.example/modus/") as site:
        links = re.findall(rb'href="([^":]*)"', site.get("/modus/").data)
        assert links == [b"/modus/metrics", b"/modus/-/healthy", b"/modus/-/ready"]
        assert [site.get(link.decode()).status for link in links] == [200] * 3
        assert site.get("/metrics").status == 404
        for path in ("/", "/modus"):
            assert (site.get(path).status, site.get(path).headers["location"]) == (302, "/modus/")


def test_a_proxy_that_takes_the_prefix_off_wants_a_route_prefix_of_slash():
    with running(external_url="https://proxy.example/modus", route_prefix="/") as site:
        assert b'href="/modus/metrics"' in site.get("/").data
        assert site.get("/metrics").status == 200


def test_a_route_prefix_alone_moves_the_pages():
    with running(route_prefix="modus/") as site:
        assert b'href="./metrics"' in site.get("/modus/").data
        assert site.get("/modus/metrics").status == 200
        assert site.get("/").headers["location"] == "/modus/"


def test_an_external_url_without_a_path_changes_nothing():
    with running(external_url="http://proxy.example:9090") as site:
        assert (site.get("/").status, site.get("/metrics").status) == (200, 200)


@pytest.mark.parametrize(
    "url", ["proxy", "/modus", "ftp://x/", "http://", "http://x/a b", "http://[x/", "http://x/?a"]
)
def test_an_external_url_that_is_none_is_refused(url):
    with (
        pytest.raises(WebError, match=r"^--web.external-url: expected a URL like https://.*, got "),
        running(external_url=url),
    ):
        pass


def test_a_route_prefix_that_is_no_path_is_refused():
    with (
        pytest.raises(WebError, match=r"^--web.route-prefix: expected a path like /modus, got '/a b'"),
        running(route_prefix="/a b"),
    ):
        pass


# --- the rate limit of the web configuration ---


class Fixed:
    """A web configuration that a test changes."""

    def __init__(self, **options):
        self.config = WebConfig(**options)

    def current(self):
        return self.config


def test_requests_beyond_the_rate_limit_are_429_whatever_they_ask_for():
    with running(web_config=Fixed(rate_limit=RateLimit(3600, 3))) as site:
        answers = [site.get(path) for path in ("/metrics", "/-/healthy", "/", "/-/healthy", "/metrics")]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert (answers[3].data, answers[3].headers["retry-after"]) == (b"Too Many Requests\n", "3600")
    assert answers[3].headers["x-frame-options"] == "deny"


def test_a_request_more_is_allowed_after_each_interval():
    with running(web_config=Fixed(rate_limit=RateLimit(0.05, 1))) as site:
        assert site.get("/").status == 200
        awaited(lambda: site.get("/").status == 200)


def test_a_changed_rate_limit_counts_at_once_and_an_unchanged_one_goes_on():
    limited = WebConfig(rate_limit=RateLimit(3600, 1))
    web_config = Fixed(rate_limit=RateLimit(3600, 1))
    with running(web_config=web_config) as site:
        assert [site.get("/").status for _ in range(2)] == [200, 429]
        web_config.config = limited  # read again with the same limit
        assert site.get("/").status == 429
        web_config.config = WebConfig()
        assert [site.get("/").status for _ in range(2)] == [200, 200]
        web_config.config = WebConfig(rate_limit=RateLimit(3600, 2))
        assert [site.get("/").status for _ in range(3)] == [200, 200, 429]


def test_a_burst_of_0_allows_nothing_as_in_the_toolkit():
    with running(web_config=Fixed(rate_limit=RateLimit(0.001, 0))) as site:
        assert site.get("/").status == 429


# --- threads ---


def test_a_thread_that_the_system_refuses_makes_it_slower_and_nothing_else(monkeypatch):
    release = Future()

    def waits(timeout, form):
        if timeout > 300:  # the default: others say theirs
            yield release, 20.0
        return object(), [exposition(form)]

    def refused(thread):
        raise RuntimeError("can't start new thread")

    with (
        running(waits=waits) as site,
        contextlib.ExitStack() as stack,
        monkeypatch.context() as patched,
    ):
        patched.setattr(threading.Thread, "start", refused)
        patient = [stack.enter_context(site.connect()) for _ in range(3)]
        for sock in patient:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        for number in range(5):  # who waits holds no thread: the others have what there is
            assert site.get("/metrics", X_Prometheus_Scrape_Timeout_Seconds=str(9 + number)).status == 200
        assert site.get("/-/healthy").status == 200
        assert not select.select(patient, [], [], 0)[0]
        release.set_result(None)
        assert all(sock.recv(100).startswith(b"HTTP/1.1 200 ") for sock in patient)
