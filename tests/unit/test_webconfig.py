"""The file of --web.config.file: what the exporter-toolkit takes is taken, what it refuses is refused.

GOOD and BAD have a file for each that the toolkit's own tests use, in our words.
"""

import json
import logging
import os
import pty
import re
import shutil
import ssl
import subprocess
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.web import tls, webconfig
from exporter.web.errors import WebError
from exporter.web.webconfig import RateLimit, WebConfigFile
from tests.webfiles import HASH, TLS, Authority
from tests.webserver import running

PROMTOOL = shutil.which("promtool")
OTHER_PROMTOOL = re.compile(
    "field (rate_limit|cert|key|client_ca|client_allowed_sans) not found|MLKEM768"  # older
    "|unknown cipher: TLS_RSA"  # newer
)
GIVEN = ", client_auth_type: VerifyClientCertIfGiven"
REQUIRED = ", client_auth_type: RequireAndVerifyClientCert"
CIPHERS = [
    f"TLS_{exchange}_WITH_{cipher}"
    for exchange in ("ECDHE_ECDSA", "ECDHE_RSA", "RSA")
    for cipher in ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "AES_128_CBC_SHA", "AES_256_CBC_SHA")
]
CIPHERS += [f"TLS_ECDHE_{key}_WITH_CHACHA20_POLY1305_SHA256" for key in ("ECDSA", "RSA")]
CIPHERS += ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]

GOOD = {
    "empty": "",
    "a comment": "# nothing\n",
    "a document with marks": "---\nhttp_server_config: {}\n...\n",
    "users without any": "basic_auth_users:\n",
    "TLS without any": "tls_server_config:\n",
    "users": f"basic_auth_users: {{alice: '{HASH}', 'b:c d': '{HASH.replace('2a', '2y')}', 7: {HASH}}}",
    "users and TLS": TLS % "" + f"basic_auth_users: {{alice: {HASH}}}",
    "headers": "http_server_config: {http2: true, headers: {X-Frame-Options: deny, X-XSS-Protection: '1',"
    " X-Content-Type-Options: nosniff, Strict-Transport-Security: max-age=600; preload,"
    " Content-Security-Policy: \"default-src 'self' *.example.org\"}}",
    "a header that YAML takes for a number": "http_server_config: {headers: {X-XSS-Protection: 1}}",
    "a header that YAML takes for a switch": "http_server_config: {headers: {X-XSS-Protection: yes}}",
    "a header without value": "http_server_config: {headers: {X-XSS-Protection: }}",
    "TLS": TLS % "",
    "no client certificate": TLS % ", client_auth_type: NoClientCert",
    "client certificate if given, of the system's authorities": TLS % GIVEN,
    "client certificate if given": TLS % f"{GIVEN}, client_ca_file: ca.pem",
    "client certificate, of the system's authorities": TLS % REQUIRED,
    "client certificate": TLS % f"{REQUIRED}, client_ca_file: ca.pem",
    "client certificate by name": TLS
    % f"{REQUIRED}, client_ca_file: ca.pem, client_allowed_sans: [one, 7, 10.0.0.1]",
    "client certificate asked for": TLS % ", client_auth_type: RequestClientCert",
    "client certificate asked for, with authorities": TLS
    % ", client_auth_type: RequestClientCert, client_ca_file: ca.pem",
    "versions": TLS % ", min_version: TLS12, max_version: TLS13, prefer_server_cipher_suites: false",
    "all cipher suites": TLS % f"{GIVEN}, cipher_suites: [{', '.join(CIPHERS)}]",
    "some cipher suites": TLS
    % ", cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA]",
    "the client's order": TLS % f"{GIVEN}, prefer_server_cipher_suites: no",
    "no HTTP/2": TLS % ", cipher_suites: [TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384], max_version: TLS12"
    + "http_server_config: {http2: off}",
    "TLS 1.3 only, which needs no cipher for HTTP/2": TLS
    % ", cipher_suites: [TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384], min_version: TLS13",
    "a curve": TLS % ", min_version: TLS13, curve_preferences: [CurveP521]",
    "all curves": TLS % f"{GIVEN}, curve_preferences: [CurveP256, CurveP384, CurveP521, X25519]",
    "all curves and the newest": TLS % ", curve_preferences: [X25519MLKEM768, X25519, CurveP256]",
    "no rate limit": "rate_limit: {interval: 0, burst: 0}",
    "a rate limit": 'rate_limit: {interval: "1s", burst: 0}',
    "ordinary YAML": "http_server_config: &http {http2: !!bool true, headers: &headers {}}",
}
BAD = [
    ("nothing: 1", "nothing: unknown key"),
    ("tls_server_confg: {}", "tls_server_confg: unknown key; did you mean tls_server_config?"),
    ("some words", "expected a mapping with keys like "),
    ("[", "line 1: expected the node content, but found '<stream end>'"),
    ("a: b: c", "line 1: mapping values are not allowed here"),
    ("\n\t- a", "line 2: found character '\\t' that cannot start any token"),
    ('http_server_config: "\\ud800"', "line 1: expected text of whole characters"),
    (f'basic_auth_users: {{"\\udfff": "{HASH}"}}', "line 1: expected a key like base_url"),
    (
        '\ntls_server_config: {cert: "\\ud83d\\ude00", key: x}',
        "line 2: expected text of whole characters",
    ),
    ("basic_auth_users: {alice: plain}", "basic_auth_users.alice: not a bcrypt hash"),
    ("basic_auth_users: {alice: }", "basic_auth_users[...]: expected text"),
    ("basic_auth_users: [alice]", "basic_auth_users: expected a mapping"),
    (
        f"basic_auth_users: {{alice: '{HASH.replace('$04$', '$32$')}'}}",
        "basic_auth_users.alice: not a bcrypt hash",
    ),
    (
        f"basic_auth_users: {{alice: '{HASH}', bob: '{HASH}', alice: '{HASH}'}}",
        "line 1: the key alice is given twice",
    ),
    (
        "http_server_config: {headers: {Server: x}}",
        "http_server_config.headers.Server: 'Server' is not supported",
    ),
    (
        "http_server_config: {headers: {X-Frame-Options: allow}}",
        "http_server_config.headers.X-Frame-Options: expected deny or sameorigin, got 'allow'",
    ),
    (
        "http_server_config: {headers: {X-Content-Type-Options: sniff}}",
        "http_server_config.headers.X-Content-Type-Options: expected nosniff, got 'sniff'",
    ),
    ("http_server_config: {http2: perhaps}", "http_server_config.http2: expected true or false"),
    ("http_server_config: {http2: 1}", "http_server_config.http2: expected true or false"),
    ("tls_server_config: {cert_file: server.crt}", "tls_server_config.key_file: give either key or key_file"),
    (
        "tls_server_config: {key_file: server.key}",
        "tls_server_config.cert_file: give either cert or cert_file",
    ),
    (
        "tls_server_config: {cert_file: '', key_file: server.key}",
        "tls_server_config.cert_file: give either cert or cert_file",
    ),
    (
        "tls_server_config: {cert: '', key_file: server.key}",
        "tls_server_config.cert_file: give either cert or cert_file",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key: ''}",
        "tls_server_config.key_file: give either key or key_file",
    ),
    (
        "tls_server_config: {cert_file: '', key_file: '', client_auth_type: x}",
        "tls_server_config.cert_file: give either cert or cert_file",
    ),
    (
        "tls_server_config: {cert_file: absent.crt, key_file: server.key}",
        "tls_server_config.cert_file: cannot read ",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: absent.key}",
        "tls_server_config.key_file: cannot read ",
    ),
    (TLS % f"{GIVEN}, client_ca_file: absent.pem", "tls_server_config.client_ca_file: cannot read "),
    (TLS % ", password: x", "tls_server_config.password: unknown key"),
    (
        TLS % ", client_ca_file: ca.pem",
        "tls_server_config.client_auth_type: client_ca and client_ca_file need one",
    ),
    (TLS % ", client_auth_type: Maybe", "tls_server_config.client_auth_type: 'Maybe' is not supported"),
    (TLS % ", min_version: TLS14", "tls_server_config.min_version: 'TLS14' is not supported"),
    (TLS % ", cipher_suites: [ALL]", "tls_server_config.cipher_suites: 'ALL' is not supported"),
    (
        TLS % ", cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256]",
        "tls_server_config.cipher_suites: 'TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256' is not supported",
    ),
    (TLS % ", curve_preferences: [P1]", "tls_server_config.curve_preferences: 'P1' is not supported"),
    (
        TLS % ", curve_preferences: [CurveP256, P1]",
        "tls_server_config.curve_preferences: 'P1' is not supported",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: ca.pem}",
        "tls_server_config: certificate and key do not load",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: locked.key}",
        "tls_server_config: certificate and key do not load",
    ),
    ("rate_limit: {interval: soon}", "rate_limit.interval: expected a duration with units"),
    ("rate_limit: {interval: 1s, burst: many}", "rate_limit.burst: expected a whole number"),
    ("rate_limit: {intervall: 1s}", "rate_limit.intervall: unknown key; did you mean interval?"),
]
OURS_ONLY = [  # refused at the start; the toolkit refuses them later, or takes them for less than they say
    (
        TLS % ", client_auth_type: NoClientCert, client_allowed_sans: [x]",
        "tls_server_config.client_auth_type: client_allowed_sans needs RequireAndVerifyClientCert",
    ),
    (
        TLS % f"{GIVEN}, client_ca_file: ca.pem, client_allowed_sans: [x]",
        "tls_server_config.client_auth_type: client_allowed_sans needs RequireAndVerifyClientCert",
    ),
    (
        TLS % ", cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA], max_version: TLS12",
        "tls_server_config.cipher_suites: none that HTTP/2 needs",
    ),
    (
        TLS % f"{REQUIRED}, client_ca_file: server.key",
        "tls_server_config.client_ca_file: no PEM certificate in it",
    ),
    (TLS % f"{REQUIRED}, client_ca: words", "tls_server_config.client_ca_file: no PEM certificate in it"),
    (
        TLS % f"{REQUIRED}, client_ca: words, client_ca_file: ca.pem",
        "tls_server_config.client_ca_file: give either client_ca or client_ca_file",
    ),
    (TLS % ", min_version: TLS10", "tls_server_config.min_version: 'TLS10' is not supported"),
    (TLS % ", min_version: TLS13, max_version: TLS12", "tls_server_config.max_version: is below min_version"),
    (
        TLS % ", client_auth_type: RequireAnyClientCert",
        "tls_server_config.client_auth_type: RequireAnyClientCert is not supported: Python's ssl",
    ),
    (
        TLS % ", client_auth_type: RequireClientCert, client_ca_file: ca.pem",
        "tls_server_config.client_auth_type: RequireClientCert is not supported: Python's ssl",
    ),
    (TLS % ", cert: x", "tls_server_config.cert_file: give either cert or cert_file"),
    ("tls_server_config: {min_version: TLS13}", "tls_server_config.cert_file: give either cert or cert_file"),
    (f"basic_auth_users: {{alice: '{HASH[:-1]}'}}", "basic_auth_users.alice: not a bcrypt hash"),
    (f"basic_auth_users: {{alice: '$2b$04${'z' * 53}'}}", "basic_auth_users.alice: not a bcrypt hash"),
    ("http_server_config: {headers: {Content-Security-Policy: ä}}", "http_server_config.headers.Content-Sec"),
    ("rate_limit: {interval: 5}", "rate_limit.interval: expected a duration with units like 1s"),
    ("rate_limit: {interval: -1s}", "rate_limit.interval: expected a duration with units like 1s"),
    ("rate_limit: {interval: 1s, burst: -1}", "rate_limit.burst: expected a whole number >= 0"),
]


def promtool_accepts(path):
    if not PROMTOOL:
        pytest.skip("promtool is not installed")
    answer = subprocess.run([PROMTOOL, "check", "web-config", str(path)], capture_output=True, text=True)
    if other := OTHER_PROMTOOL.search(answer.stdout + answer.stderr):
        pytest.skip(f"this promtool is older or newer than what is asked: {other[0]}")
    return answer.returncode == 0


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- good and bad files ---


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_is_accepted(ca, write, name):
    WebConfigFile(str(write(GOOD[name])))


@pytest.mark.parametrize("name", GOOD)
def test_what_is_accepted_is_accepted_by_promtool_too(ca, write, name):
    assert promtool_accepts(write(GOOD[name]))


@pytest.mark.parametrize(("text", "message"), [*BAD, *OURS_ONLY])
def test_a_mistake_is_refused_with_one_line_naming_file_and_key(ca, write, text, message):
    ca.issue("locked", password=b"x")
    path = write(text)
    with pytest.raises(WebError) as caught:
        WebConfigFile(str(path))
    assert str(caught.value).startswith(f"{path}: {message}")
    assert str(caught.value).isprintable()
    assert HASH[8:20] not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", [text for text, _ in BAD])
def test_what_promtool_refuses_is_refused(ca, write, text):
    ca.issue("locked", password=b"x")
    assert not promtool_accepts(write(text))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(WebError, match=r"web.yml: cannot read the file: No such file or directory$"):
        WebConfigFile(str(tmp_path / "web.yml"))


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "web.yml")
    with pytest.raises(WebError, match=r"web.yml: cannot read the file: it is not a regular file$"):
        WebConfigFile(str(tmp_path / "web.yml"))


def test_a_name_that_no_file_can_have_is_one_line(ca, write):
    path = write('tls_server_config: {cert_file: "a\\0b", key_file: server.key}')
    with pytest.raises(
        WebError, match=r"tls_server_config.cert_file: cannot read .*a\\x00b: embedded null byte$"
    ):
        WebConfigFile(str(path))


def test_relative_names_are_relative_to_the_file(ca, write, tmp_path, monkeypatch):
    path = write(TLS % f"{REQUIRED}, client_ca_file: ./ca.pem")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in (str(path), "../web.yml"):
        assert WebConfigFile(name).current().tls.verify_mode is ssl.CERT_REQUIRED


def test_an_alias_stands_for_what_it_names(ca, write):
    text = "http_server_config: {headers: {X-XSS-Protection: &one '1', Content-Security-Policy: *one}}"
    headers = WebConfigFile(str(write(text))).current().headers
    assert headers == {"X-XSS-Protection": "1", "Content-Security-Policy": "1"}


@pytest.mark.parametrize("value", ["1", "0x10", "1.50", "yes", "2026-11-24", "1:30", "'1'"])
def test_text_is_what_is_written_there(write, value):
    path = write(f"http_server_config: {{headers: {{X-XSS-Protection: {value}}}}}")
    assert WebConfigFile(str(path)).current().headers == {"X-XSS-Protection": value.strip("'")}


PIECES = st.sampled_from(
    ["tls_server_config", "http_server_config", "rate_limit", "basic_auth_users", "headers", "interval",
     "cert", "alice", "x: ", ": ", ":", "- ", "\n", "\n  ", "[", "]", "{", "}", ", ", "'", '"', "&a ", "*a",
     "!!int ", "!!bool ", "!!binary ", "!!set ", "!!timestamp ", "!!map ", "!!null ", "!x ", "<<", "? ",
     "%YAML 1.1\n", "--- ", "|", "\t", "1s", "\\UFFFFFFFF", "\\ud800", "`", " - at `$.", "\ufeff", "\u2028",
     "true", "~", "2026-11-24"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.binary(max_size=100) | st.lists(PIECES, max_size=30).map(lambda pieces: "".join(pieces).encode()))
def test_any_file_is_a_configuration_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yml"
    path.write_bytes(content)
    try:
        line = repr(WebConfigFile(str(path)).current())
    except WebError as error:
        line = str(error)
    assert line.isprintable()


def test_a_mistake_of_ours_is_one_line_without_what_the_file_holds(write, monkeypatch):
    def fail(users):
        raise RuntimeError(f"no {users}")

    monkeypatch.setattr(webconfig, "_auth", fail)
    path = write(f"basic_auth_users: {{alice: '{HASH}'}}")
    with pytest.raises(WebError) as caught:
        WebConfigFile(str(path))
    assert str(caught.value).startswith(f"{path}: cannot be used: RuntimeError at test_webconfig.py:")
    assert HASH not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_repeats_itself_is_no_work(write):
    """Aliases of aliases would be a billion values."""
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(WebError, match="unknown key"):
        WebConfigFile(str(write("\n".join(lines))))


# --- client certificates ---


@pytest.mark.parametrize(
    ("kind", "certificate", "served"),
    [
        ("VerifyClientCertIfGiven", "good", True),
        ("VerifyClientCertIfGiven", "stranger", False),
        ("VerifyClientCertIfGiven", None, True),
        ("RequireAndVerifyClientCert", "good", True),
        ("RequireAndVerifyClientCert", "stranger", False),
        ("RequireAndVerifyClientCert", None, False),
    ],
)
def test_without_authorities_of_their_own_client_certificates_are_checked_against_the_systems(
    ca, write, tmp_path, monkeypatch, caplog, kind, certificate, served
):
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.file))
    ca.issue("good")
    Authority(tmp_path, "other").issue("stranger")
    client = ca.client(certificate)
    with running(config=write(TLS % f", client_auth_type: {kind}")) as site:
        if served:
            assert site.get("/", tls=client).status == 200
        else:
            with pytest.raises(OSError, match=r"."):
                site.get("/", tls=client)
    assert warnings(caplog)[0].startswith("client certificates of every authority that the system trusts")


@pytest.mark.parametrize("certificate", ["good", None])
def test_when_a_certificate_is_only_asked_for_everybody_is_served_and_a_line_says_so(
    ca, write, caplog, certificate
):
    ca.issue("good")
    with running(config=write(TLS % ", client_auth_type: RequestClientCert")) as site:
        assert site.get("/", tls=ca.client(certificate)).status == 200
    assert [line.partition(":")[0] for line in warnings(caplog)] == ["no client certificate is asked for"]


@pytest.mark.parametrize(("name", "served"), [("own", True), ("other", False)])
def test_a_certificate_may_be_its_own_authority(ca, write, tmp_path, name, served):
    """A file with the certificate of one client lets that client in, as with the toolkit."""
    ca.issue("own")
    ca.issue("other")
    with running(config=write(TLS % f"{REQUIRED}, client_ca_file: own.crt")) as site:
        if served:
            assert site.get("/", tls=ca.client(name)).status == 200
        else:
            with pytest.raises(OSError, match=r"."):
                site.get("/", tls=ca.client(name))


def test_the_authorities_may_be_inline(ca, write):
    ca.issue("good")
    pem = ca.file.read_text().replace("\n", "\n    ")
    text = f"tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n  client_ca: |\n    {pem}\n"
    with running(config=write(text + "  client_auth_type: RequireAndVerifyClientCert\n")) as site:
        assert site.get("/", tls=ca.client("good")).status == 200
        with pytest.raises(OSError, match=r"."):
            site.get("/", tls=ca.client())


@pytest.mark.parametrize(
    "around",
    ["# Firma Müller, Zürich\n{}", "\ufeff{}", "{}# 終わり\n", "-----BEGIN CERTIFICATE-----\nMIIB\n\n{}"],
    ids=["a comment before", "a byte order mark", "a comment behind", "half a certificate before"],
)
def test_what_stands_around_the_authorities_is_passed_over_as_in_go(ca, write, around):
    ca.issue("good")
    clients = ca.client("good"), ca.client()
    commented = around.format(ca.file.read_text())
    with running(config=write(TLS % f"{REQUIRED}, client_ca_file: ca.pem")) as site:
        ca.file.write_text(commented, "utf-8")
        assert site.get("/", tls=clients[0]).status == 200
        with pytest.raises(OSError, match=r"."):
            site.get("/", tls=clients[1])
    inline = json.dumps(commented, ensure_ascii=False)
    assert WebConfigFile(str(write(TLS % f"{REQUIRED}, client_ca: {inline}"))).current().tls.get_ca_certs()


# --- ciphers and curves ---


def test_every_cipher_of_the_toolkit_is_one_of_openssl(ca, write):
    context = WebConfigFile(str(write(TLS % f", cipher_suites: [{', '.join(CIPHERS)}]"))).current().tls
    ciphers = context.get_ciphers()
    assert len({cipher["name"] for cipher in ciphers if cipher["protocol"] != "TLSv1.3"}) == len(CIPHERS) - 3
    assert {cipher["name"] for cipher in ciphers} >= set(CIPHERS[-3:])


def test_all_the_ciphers_of_the_file_are_offered_in_its_order(ca, write):
    suites = "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
    context = WebConfigFile(str(write(TLS % f", cipher_suites: [{suites}]"))).current().tls
    names = [cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert names == ["ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES128-GCM-SHA256"]


def test_of_several_curves_the_first_is_used_and_a_line_says_so(ca, write, caplog):
    with running(config=write(TLS % ", curve_preferences: [CurveP384, CurveP256]")) as site:
        client = ca.client()
        client.set_ecdh_curve("secp384r1")
        assert site.get("/", tls=client).status == 200
        client.set_ecdh_curve("prime256v1")
        with pytest.raises(OSError, match=r"."):
            site.get("/", tls=client)
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage() == "only one of the curves is used: Python's ssl takes one"
    assert record.fields["used"] == "CurveP384"


def without_x25519(monkeypatch):
    """As Python 3.11.2 of Debian 12 answers."""
    set_curve = ssl.SSLContext.set_ecdh_curve

    def refuse(context, name):
        if name.startswith("X25519"):
            raise ssl.SSLError("[EC: UNKNOWN_GROUP] unknown group (_ssl.c:4372)")
        set_curve(context, name)

    monkeypatch.setattr(ssl.SSLContext, "set_ecdh_curve", refuse)


def test_a_curve_that_pythons_ssl_refuses_is_one_line(ca, write, monkeypatch):
    without_x25519(monkeypatch)
    path = write(TLS % ", curve_preferences: [X25519]")
    with pytest.raises(WebError) as caught:
        WebConfigFile(str(path))
    assert str(caught.value) == (
        f"{path}: tls_server_config.curve_preferences: Python's ssl cannot set X25519 here: "
        "name CurveP256, or none"
    )


def test_a_curve_that_pythons_ssl_refuses_gives_way_to_the_next(ca, write, monkeypatch, caplog):
    without_x25519(monkeypatch)
    WebConfigFile(str(write(TLS % ", curve_preferences: [X25519MLKEM768, X25519, CurveP256]")))
    [record] = caplog.records
    assert record.fields["used"] == "CurveP256"


def test_x25519_works_or_is_one_line(ca, write):
    refusal = ""
    try:
        WebConfigFile(str(write(TLS % ", curve_preferences: [X25519]")))
    except WebError as error:
        refusal = str(error)
    assert not refusal or "Python's ssl cannot set X25519" in refusal


# --- headers, rate limit ---


def test_headers_of_the_file_replace_ours_and_blank_ones_are_left_out(write):
    text = (
        "http_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: sameorigin\n"
        "    Strict-Transport-Security: max-age=60\n    Content-Security-Policy: ''\n"
        "    X-XSS-Protection: 1\n"
    )
    with running(config=write(text)) as site:
        headers = site.get("/nothing").headers
    assert (headers["x-frame-options"], headers["strict-transport-security"]) == ("sameorigin", "max-age=60")
    assert headers["x-xss-protection"] == "1"
    assert "content-security-policy" not in headers


def test_spaces_around_a_header_are_left_out_as_in_go(write):
    with running(config=write('http_server_config: {headers: {X-XSS-Protection: " 1 "}}')) as site:
        assert site.get("/-/healthy").headers["x-xss-protection"] == "1"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("interval: 1s, burst: 5", RateLimit(1.0, 5)),
        ("interval: '1m30s', burst: 1", RateLimit(90.0, 1)),
        ("interval: 2h1m1s1ms", RateLimit(7261.001, 0)),
        ("interval: 1.5s", RateLimit(1.5, 0)),
        ("interval: 250ms, burst: 10", RateLimit(0.25, 10)),
        ("interval: 2us, burst: 10", RateLimit(2e-6, 10)),
        ("interval: 0, burst: 10", None),
        ("interval: 0s", None),
        ("burst: 10", None),
        ("", None),
    ],
)
def test_the_rate_limit_is_given_in_seconds_and_requests(write, text, limit):
    assert WebConfigFile(str(write(f"rate_limit: {{{text}}}"))).current().rate_limit == limit


# --- secrets ---


@pytest.mark.parametrize(
    "text",
    [
        "basic_auth_users: {alice: *hunter2}",
        "basic_auth_users: {alice: !hunter2 x}",
        "basic_auth_users: {alice:hunter2}",
        "basic_auth_users: {alice:hunter2: x}",
        "basic_auth_users: {alice: %hunter2}",
        "basic_auth_users: {alice: '$hunter2'}",
        "basic_auth_users: hunter2",
        "basic_auth_users:\n  alice:hunter2\n  bob: x",
        "alice:hunter2: x",
        "tls_server_config: hunter2",
        "tls_server_config: {key: [hunter2]}",
        "tls_server_config: {cert_file: server.crt, key: hunter2}",
        "http_server_config: {http2: hunter2}",
        "rate_limit: {interval: hunter2}",
        "basic_auth_users: {alice: &hunter2 x, bob: &hunter2 y}",
        "basic_auth_users: {'alice:hunter2': x, 'alice:hunter2': y}",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_quoted(ca, write, text):
    with pytest.raises(WebError) as caught:
        WebConfigFile(str(write(text)))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_secrets_are_in_no_representation():
    for section in (
        tls.Settings(key="hidden"),
        webconfig.WebConfig(auth=webconfig.BasicAuth({"alice": HASH})),
    ):
        assert "hidden" not in repr(section)
        assert HASH[8:] not in repr(section)


def test_for_an_inline_key_without_a_place_for_it_the_way_out_is_named(ca, write, monkeypatch, tmp_path):
    """OpenSSL reads files only, and a container's root may be read-only."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    path = write("tls_server_config: {cert_file: server.crt, key: hunter2}")
    with pytest.raises(WebError) as caught:
        WebConfigFile(str(path))
    assert str(caught.value) == (
        f"{path}: tls_server_config.key: no temporary file for it: No such file or directory; "
        "set TMPDIR, or give key_file"
    )


def test_for_an_encrypted_key_nobody_is_asked_at_the_terminal(ca, write):
    """A start would wait for a password for ever, and a reload with it."""
    ca.issue("locked", password=b"x")
    path = write("tls_server_config: {cert_file: server.crt, key_file: locked.key}")
    ours, terminal = pty.openpty()
    program = "import sys; from exporter.web.webconfig import WebConfigFile; WebConfigFile(sys.argv[1])"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        start_new_session=True,
        preexec_fn=lambda: os.open(os.ttyname(terminal), os.O_RDWR),  # now the terminal of its session
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            assert "certificate and key do not load" in started.communicate(timeout=20)[1]
        finally:
            started.kill()
            os.close(terminal)
            os.close(ours)
