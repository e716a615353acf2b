"""The web configuration file: what is accepted, and what is refused in one line."""

import os
import pty
import ssl
import subprocess
import sys

import pytest

from exporter.web import webconfig
from exporter.web.webconfig import WebConfigFile, WebError
from tests.e2e.harness import program
from tests.webfiles import HASH, TLS
from tests.webserver import running

# --- the file ---


def test_headers_of_the_file_replace_ours_and_blank_ones_are_left_out(write):
    text = (
        "http_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: sameorigin\n"
        "    Strict-Transport-Security: max-age=60\n    Content-Security-Policy: ''\n"
    )
    with running(config=write(text)) as site:
        headers = site.get("/nothing").headers
    assert (headers["x-frame-options"], headers["strict-transport-security"]) == ("sameorigin", "max-age=60")
    assert "content-security-policy" not in headers


def can_set(curve):
    """Whether this Python can: 3.11 of Debian 12 knows X25519 as no curve."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ecdh_curve(curve)
    except (ssl.SSLError, ValueError):
        return False
    return True


X25519 = can_set("X25519")
ACCEPTED = [
    "",
    "basic_auth_users:\n",
    "tls_server_config:\n",
    f"basic_auth_users: {{alice: '{HASH}', 'b:c d': '{HASH.replace('2a', '2y')}'}}",
    "http_server_config: {http2: true, headers: {X-Frame-Options: deny, X-XSS-Protection: '1'}}",
    TLS % "",
    TLS % ", min_version: TLS12, max_version: TLS13, prefer_server_cipher_suites: false",
    TLS % ", cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA]",
    TLS % f", curve_preferences: [{'X25519' if X25519 else 'CurveP521'}]",
    TLS % ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem",
    TLS % ", client_auth_type: NoClientCert",
]
REFUSED = [  # by promtool as well
    ("nothing: 1", "nothing: unknown key"),
    ("basic_auth_users: {alice: plain}", "basic_auth_users.alice: not a bcrypt hash"),
    ("basic_auth_users: {alice: }", "basic_auth_users[...]: Expected `str`, got `null`"),
    (
        f"basic_auth_users: {{alice: '{HASH.replace('$04$', '$32$')}'}}",
        "basic_auth_users.alice: not a bcrypt hash",
    ),
    ("basic_auth_users: [alice]", "basic_auth_users: Expected `object | null`, got `array`"),
    ("[", "not valid YAML at line 1, column 2"),
    ("a: b: c", "not valid YAML at line 1, column 5"),
    (
        f"basic_auth_users: {{alice: '{HASH}', bob: '{HASH}', alice: '{HASH}'}}",
        "a key is given twice at line 1, column 19",
    ),
    (
        "http_server_config: {headers: {Server: x}}",
        "http_server_config.headers.Server: 'Server' is not supported",
    ),
    (
        "http_server_config: {headers: {X-Frame-Options: allow}}",
        "http_server_config.headers.X-Frame-Options: expected deny or sameorigin, got 'allow'",
    ),
    ("tls_server_config: {cert_file: server.crt}", "tls_server_config.key_file: give either key or key_file"),
    (
        "tls_server_config: {key_file: server.key}",
        "tls_server_config.cert_file: give either cert or cert_file",
    ),
    (
        "tls_server_config: {cert_file: absent.crt, key_file: server.key}",
        "tls_server_config.cert_file: cannot read ",
    ),
    (TLS % ", password: x", "tls_server_config.password: unknown key"),
    (TLS % ", client_ca_file: ca.pem", "tls_server_config.client_auth_type: client certificates need both"),
    (TLS % ", client_auth_type: Maybe", "tls_server_config.client_auth_type: 'Maybe' is not supported"),
    (TLS % ", min_version: TLS14", "tls_server_config.min_version: 'TLS14' is not supported"),
    (TLS % ", cipher_suites: [ALL]", "tls_server_config.cipher_suites: 'ALL' is not supported"),
    (
        TLS % ", cipher_suites: [TLS_ECDHE_RSA_WITH_X]",
        "tls_server_config.cipher_suites: 'TLS_ECDHE_RSA_WITH_X'",
    ),
    (TLS % ", curve_preferences: [P1]", "tls_server_config.curve_preferences: 'P1' is not supported"),
    (
        "tls_server_config: {cert_file: server.crt, key_file: ca.pem}",
        "tls_server_config: certificate and key do not load",
    ),
    (
        "tls_server_config: {cert_file: server.crt, key_file: locked.key}",
        "tls_server_config: certificate and key do not load",
    ),
]
OURS_ONLY = [  # refused rather than ignored: Python cannot do it, or it would be less than it seems
    (TLS % ", min_version: TLS10", "tls_server_config.min_version: 'TLS10' is not supported"),
    (TLS % ", min_version: TLS13, max_version: TLS12", "tls_server_config.max_version: is below min_version"),
    (
        TLS % ", curve_preferences: [CurveP384, CurveP256]",
        "tls_server_config.curve_preferences: only one curve",
    ),
    (TLS % ", client_auth_type: RequireAnyClientCert", "tls_server_config.client_auth_type: 'RequireAny"),
    (
        TLS % ", client_auth_type: RequireAndVerifyClientCert",
        "tls_server_config.client_auth_type: client cert",
    ),
    (
        TLS % ", client_auth_type: VerifyClientCertIfGiven, client_ca_file: server.key",
        "tls_server_config.client_ca_file: no PEM certificate in it",
    ),
    (
        TLS % ", client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem, client_allowed_sans: [x]",
        "tls_server_config.client_auth_type: client_allowed_sans needs RequireAndVerifyClientCert",
    ),
    (TLS % ", cert: x", "tls_server_config.cert_file: give either cert or cert_file"),
    ("tls_server_config: {min_version: TLS13}", "tls_server_config.cert_file: give either cert or cert_file"),
    (f"basic_auth_users: {{alice: '{HASH[:-1]}'}}", "basic_auth_users.alice: not a bcrypt hash"),
    ("http_server_config: {headers: {Content-Security-Policy: ä}}", "http_server_config.headers.Content-Sec"),
    (f"basic_auth_users: {{alice: '$2b$04${'z' * 53}'}}", "basic_auth_users.alice: not a bcrypt hash"),
]


@pytest.mark.skipif(X25519, reason="this Python can set X25519")
def test_a_curve_that_this_python_cannot_set_is_one_line(ca, write):
    with pytest.raises(WebError, match=r"web\.yml: .*curve_preferences: 'X25519' cannot be set"):
        WebConfigFile(str(write(TLS % ", curve_preferences: [X25519]")))


def promtool_accepts(path):
    return (
        subprocess.run(
            [program("promtool"), "check", "web-config", str(path)], capture_output=True
        ).returncode
        == 0
    )


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_is_accepted_is_accepted_by_promtool_too(ca, write, text):
    path = write(text)
    WebConfigFile(str(path))
    assert promtool_accepts(path)


@pytest.mark.parametrize(("text", "message"), [*REFUSED, *OURS_ONLY])
def test_a_mistake_is_refused_with_one_line_naming_file_and_key(ca, write, text, message):
    ca.issue("locked", password=b"x")
    path = write(text)
    with pytest.raises(WebError) as caught:
        WebConfigFile(str(path))
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)
    assert HASH[8:20] not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", [text for text, _ in REFUSED])
def test_what_promtool_refuses_is_refused(ca, write, text):
    ca.issue("locked", password=b"x")
    assert not promtool_accepts(write(text))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(WebError, match=r"web.yml: cannot read .*: No such file or directory$"):
        WebConfigFile(str(tmp_path / "web.yml"))


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


def test_secrets_are_in_no_representation():
    for section in (webconfig._TLS(key="hidden"), webconfig._File(basic_auth_users={"alice": "hidden"})):
        assert "hidden" not in repr(section)
    assert "hidden" not in repr(webconfig.WebConfig(auth=webconfig.BasicAuth({"alice": HASH})))
