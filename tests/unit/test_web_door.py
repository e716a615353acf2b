"""The door: TLS and basic auth from the web configuration file, slow clients, floods, the end by signal."""

import contextlib
import datetime
import inspect
import ipaddress
import logging
import os
import pty
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64encode

import bcrypt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from exporter.web import server as door
from exporter.web import webconfig
from exporter.web.webconfig import WebConfigFile, WebError
from tests.e2e.harness import program
from tests.webserver import exposition, running

HASH = "$2a$04$W00MjpPDRoSjOflEI/NbPu9j3i0VIoRoNeoJbK/OIIqd3g.s2aUIq"  # of: secret


def basic(user, password):
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def awaited(condition, seconds=10):
    """Wait until the condition holds; the bound only keeps a failing test from hanging."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.01)


def closed_by_peer(sock, seconds=10):
    """Whether the other side ends the connection."""
    sock.settimeout(seconds)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


class Authority:
    """A certificate authority that writes certificates and keys to files."""

    def __init__(self, directory, name="ca"):
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = directory / f"{name}.pem"
        usage = dict.fromkeys(inspect.signature(x509.KeyUsage).parameters, False)
        usage |= {"key_cert_sign": True, "crl_sign": True}
        authority = x509.BasicConstraints(ca=True, path_length=None), x509.KeyUsage(**usage)
        certificate = self._sign(self.name, self.key, *authority)
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject, key, *extensions):
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder(self.name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        for extension in (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), issuer, *extensions):
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name, *, password=None):
        """Write `name`.crt and `name`.key; the certificate is for `name`, 127.0.0.1 and ::1."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [
            x509.DNSName(name),
            *(x509.IPAddress(ipaddress.ip_address(ip)) for ip in ("127.0.0.1", "::1")),
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, x509.SubjectAlternativeName(names))
        lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        pem = key.private_bytes(serialization.Encoding.PEM, form, lock)
        (self.directory / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (self.directory / f"{name}.key").write_bytes(pem)
        return certificate.serial_number

    def client(self, name=None):
        """The TLS settings of a client that trusts this authority, with a certificate if `name`."""
        context = ssl.create_default_context(cafile=str(self.file))
        if name:
            context.load_cert_chain(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        return context


@pytest.fixture(scope="module")
def site():
    with running() as open_site:
        yield open_site


@pytest.fixture(scope="module")
def guarded_site(tmp_path_factory):
    path = tmp_path_factory.mktemp("guarded") / "web.yml"
    path.write_text(f"basic_auth_users: {{alice: '{HASH}'}}")
    with running(config=path) as open_site:
        yield open_site


@pytest.fixture
def ca(tmp_path):
    authority = Authority(tmp_path)
    authority.issue("server")
    return authority


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "web.yml"
        path.write_text(text)
        return path

    return write_file


TLS = "tls_server_config: {cert_file: server.crt, key_file: server.key%s}\n"


# --- basic auth ---


def test_basic_auth_guards_every_path(write):
    with running(config=write(f"basic_auth_users: {{alice: '{HASH}'}}")) as site:
        for path in ("/", "/metrics", "/-/healthy", "/nothing"):
            answer = site.get(path)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Basic charset="UTF-8"')
            assert answer.headers["x-frame-options"] == "deny"
        assert site.get("/metrics", Authorization=basic("alice", "secret")).status == 200


@pytest.mark.parametrize(
    "header",
    [
        basic("alice", "wrong"),
        basic("bob", "secret"),
        basic("alice", ""),
        basic("", ""),
        basic("alice", "secret" + "x" * 67),
        basic("bob", "x" * 100),
        basic("alice", "sec\0ret"),
        "Basic",
        "Basic !!!",
        "Basic " + b64encode(b"alice").decode(),
        "Bearer secret",
        "basic " + b64encode(b"\xff\xfe:\xff").decode(),
    ],
)
def test_wrong_credentials_of_any_kind_are_401(guarded_site, header):
    assert guarded_site.get("/metrics", Authorization=header).status == 401


@pytest.mark.parametrize("version", ["2a", "2b", "2y"])
def test_the_hashes_of_htpasswd_and_others_are_understood(write, version):
    with running(config=write(f"basic_auth_users: {{alice: '${version}{HASH[3:]}'}}")) as site:
        assert site.get("/metrics", Authorization=basic("alice", "secret")).status == 200


def test_an_unknown_user_costs_a_comparison_of_the_same_cost(monkeypatch):
    compared = []
    check = bcrypt.checkpw
    monkeypatch.setattr(
        bcrypt, "checkpw", lambda password, value: compared.append(value) or check(password, value)
    )
    auth = webconfig.BasicAuth({"alice": HASH, "bob": HASH.replace("$04$", "$05$")})
    assert not auth.check(b"carol:secret")
    assert not auth.check(b"bob:wrong")
    assert [value[:7] for value in compared] == [b"$2b$05$", b"$2a$05$"]


def test_an_unknown_user_stays_out_whatever_the_comparison_says(monkeypatch):
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, value: True)
    assert not webconfig.BasicAuth({"alice": HASH}).check(b"carol:the password of the decoy")


def test_a_password_is_compared_once_and_only_good_ones_are_remembered(monkeypatch):
    compared = []
    check = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda *args: compared.append(1) or check(*args))
    auth = webconfig.BasicAuth({"alice": HASH})
    assert [auth.known(b"alice:secret"), auth.check(b"alice:secret")] == [False, True]
    assert [auth.known(b"alice:secret"), auth.check(b"alice:secret")] == [True, True]
    assert [auth.check(b"alice:wrong"), auth.check(b"alice:wrong"), auth.known(b"alice:wrong")] == [False] * 3
    assert len(compared) == 3
    assert b"secret" not in repr(vars(auth)).encode()


def test_bcrypt_runs_one_at_a_time_and_holds_up_nobody_who_is_known(write, monkeypatch):
    release, running_now, most = threading.Event(), [], []
    check = bcrypt.checkpw

    def slow(password, value):
        running_now.append(1)
        most.append(len(running_now))
        if password == b"wrong":
            release.wait(20)
        running_now.pop()
        return check(password, value)

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    with running(config=write(f"basic_auth_users: {{alice: '{HASH}'}}")) as site:
        good = basic("alice", "secret")
        assert site.get("/metrics", Authorization=good).status == 200
        request = f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {basic('alice', 'wrong')}\r\n\r\n".encode()
        with contextlib.ExitStack() as stack:
            flood = [
                stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(60)
            ]
            for sock in flood:
                sock.sendall(request)
            awaited(lambda: len(select.select(flood, [], [], 1)[0]) == 27)  # more than 33 do not even wait
            for sock in select.select(flood, [], [], 1)[0]:
                assert sock.recv(100).startswith(b"HTTP/1.1 503 ")
            assert site.get("/metrics", Authorization=good).status == 200
            release.set()
            awaited(lambda: len(most) == 34)
    assert max(most) == 1


def test_new_users_count_at_once_and_removed_ones_no_longer(write):
    path = write(f"basic_auth_users: {{alice: '{HASH}'}}")
    with running(config=path) as site:
        assert site.get("/", Authorization=basic("alice", "secret")).status == 200
        write(f"basic_auth_users: {{bob: '{HASH}'}}")
        assert site.get("/", Authorization=basic("alice", "secret")).status == 401
        assert site.get("/", Authorization=basic("bob", "secret")).status == 200
        replacement = path.with_name("new.yml")
        replacement.write_text("basic_auth_users: {}")
        path.unlink()
        path.symlink_to(replacement)  # as Kubernetes swaps secrets
        assert site.get("/").status == 200


def test_a_bad_new_file_keeps_the_old_one_in_force_and_is_logged_once(write, caplog):
    path = write(f"basic_auth_users: {{alice: '{HASH}'}}")
    with running(config=path) as site:
        for breakage in ("basic_auth_users: {alice: plaintext}", None):
            caplog.clear()
            write(breakage) if breakage else path.unlink()
            assert [site.get("/").status for _ in range(3)] == [401] * 3
            assert site.get("/", Authorization=basic("alice", "secret")).status == 200
            [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
            assert record.fields["error"].startswith(f"{path}: ")
            assert "plaintext" not in str(record.fields)
        write("")
        assert site.get("/").status == 200


def test_a_bad_file_is_logged_once_also_when_a_certificate_changes_with_it(ca, write, caplog):
    file = WebConfigFile(str(write(TLS % "")))
    good = file.current()
    write("[")
    ca.issue("server")
    assert [file.current() for _ in range(3)] == [good] * 3
    assert [record.fields["error"] for record in caplog.records] == [
        f"{ca.directory / 'web.yml'}: not valid YAML at line 1, column 2"
    ]


# --- TLS ---


def test_tls_serves_https_only(ca, write):
    with running(config=write(TLS % "")) as site:
        assert site.get("/metrics", tls=ca.client()).status == 200
        with pytest.raises(OSError, match=r"."):
            site.get("/metrics")


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
    with running(config=write(TLS % f"{options}, cipher_suites: [{suites}]")) as site:
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


@pytest.mark.parametrize(("allowed", "served"), [("good", True), ("0:0:0:0:0:0:0:1", True), ("other", False)])
def test_only_clients_with_an_allowed_name_are_let_in(ca, write, allowed, served):
    ca.issue("good")
    options = ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem"
    options += f", client_allowed_sans: ['{allowed}']"
    with running(config=write(TLS % options)) as site:
        if served:
            assert site.get("/", tls=ca.client("good")).status == 200
        else:
            with pytest.raises(OSError, match=r"."):
                site.get("/", tls=ca.client("good"))


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


# --- too much of it ---


def exchange(port, data, seconds=10):
    """Send raw bytes and return all that is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sock:
        sock.sendall(data)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
        return answer


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
        scrape=lambda timeout, openmetrics: entered.set() or (release.wait(20) and [exposition(openmetrics)])
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
    monkeypatch.setattr(door, "REQUEST_SECONDS", 1.0)
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
    monkeypatch.setattr(door, "REQUEST_SECONDS", 1.0)
    with running() as site, socket.create_connection(("127.0.0.1", site.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536)
        sock.sendall(b"GET / HTTP/1.1\r\n")
        assert closed_by_peer(sock)


def test_an_idle_connection_is_closed_later_than_a_scrape_interval(monkeypatch):
    assert door.IDLE_SECONDS > 60
    monkeypatch.setattr(door, "IDLE_SECONDS", 1)
    with running() as site, socket.create_connection(("127.0.0.1", site.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert closed_by_peer(sock)


def test_an_unfinished_tls_handshake_is_dropped(ca, write, monkeypatch):
    monkeypatch.setattr(door, "REQUEST_SECONDS", 1.0)
    with running(config=write(TLS % "")) as site, socket.create_connection(("127.0.0.1", site.port)) as sock:
        sock.sendall(b"\x16\x03\x01")
        assert closed_by_peer(sock)


def long_pass(timeout, openmetrics):
    """A pass whose exposition is some 16 MB: more than the buffers of any socket."""
    return (b'modus_agent_runs{agent_name="%05d%s"} 1.0\n' % (n, b"x" * 4_000) for n in range(4_000))


def slow_reader(port, tls=None):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    if tls:
        sock = tls.wrap_socket(sock, server_hostname="127.0.0.1")
    sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    sock.recv(100)
    return sock


@pytest.mark.parametrize("secure", [False, True])
def test_a_client_that_does_not_take_its_answer_is_dropped(ca, write, monkeypatch, secure):
    monkeypatch.setattr(door, "ANSWER_SECONDS", 1.0)
    config = write(TLS % "") if secure else None
    with (
        running(scrape=long_pass, config=config) as site,
        slow_reader(site.port, ca.client() if secure else None),
    ):
        awaited(lambda: site.server._doors())
        awaited(lambda: not site.server._doors())


def test_a_client_that_trickles_its_answer_is_dropped_too(monkeypatch):
    monkeypatch.setattr(door, "ANSWER_SECONDS", 2.0)
    with running(scrape=long_pass) as site, slow_reader(site.port) as sock:
        taken = 0
        while site.server._doors():  # never idle, but too slow
            taken += len(sock.recv(65536))
            time.sleep(0.002)
        assert taken < 16_000_000


@pytest.mark.parametrize("secure", [False, True])
def test_only_a_few_answers_wait_for_slow_readers(ca, write, monkeypatch, secure):
    monkeypatch.setattr(door, "MAX_UNREAD", 3)
    tls = ca.client() if secure else None
    with (
        running(scrape=long_pass, config=write(TLS % "") if secure else None) as site,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(8):
            stack.enter_context(slow_reader(site.port, tls))
        awaited(lambda: len(site.server._doors()) == 3)
        assert site.get("/metrics", tls=tls).data.count(b"\n") == 4_000


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_300_slow_clients_neither_starve_a_scrape_nor_grow_the_process(ca, write):
    def footprint():
        with open("/proc/self/status") as status:
            resident = int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])
        return resident, threading.active_count(), len(os.listdir("/proc/self/fd"))

    for config in (None, write(TLS % "")):
        with running(config=config) as site, contextlib.ExitStack() as stack:
            tls = ca.client() if config else None
            assert site.get("/metrics", tls=tls).status == 200
            before = footprint()
            for number in range(300):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", site.port)))
                with contextlib.suppress(ConnectionError):
                    sock.sendall((b"", b"\x16\x03\x01", b"GET /metrics HT")[number % 3])
            assert site.get("/metrics", tls=tls).status == 200
            after = footprint()
            assert after[0] - before[0] < 100_000  # kB
            assert after[1] - before[1] <= 2
            assert after[2] - before[2] - 300 <= 256  # the server holds fewer than there are


@pytest.mark.parametrize("secure", [False, True])
def test_when_all_places_are_taken_the_longest_idle_makes_room(ca, write, monkeypatch, secure):
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 5)
    with running(config=write(TLS % "") if secure else None) as site, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(20)]
        assert site.get("/metrics", tls=ca.client() if secure else None).status == 200
        awaited(lambda: len(site.server._doors()) + len(site.server._opening) <= 5)
        assert all(closed_by_peer(sock) for sock in idle[:15])
        assert not closed_by_peer(idle[-1], seconds=0.1)


def test_a_request_that_is_being_answered_never_makes_room(monkeypatch):
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 3)
    entered, release = threading.Semaphore(0), threading.Event()
    with running(scrape=lambda timeout, openmetrics: entered.release() or (release.wait(20) and [])) as site:
        answers = []
        scrapers = [
            threading.Thread(target=lambda: answers.append(site.get("/metrics").status)) for _ in range(3)
        ]
        for scraper in scrapers:
            scraper.start()
            assert entered.acquire(timeout=10)
        with socket.create_connection(("127.0.0.1", site.port)) as sock:
            assert closed_by_peer(sock)
        release.set()
        for scraper in scrapers:
            scraper.join(10)
        assert answers == [200, 200, 200]


def test_scrapes_at_once_are_bounded_and_more_are_told_so():
    entered, release = [], threading.Event()

    def scrape(timeout, openmetrics):
        entered.append(1)
        release.wait(20)
        return []

    with running(scrape=scrape) as site, contextlib.ExitStack() as stack:
        flood = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(45)]
        for sock in flood:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        awaited(lambda: len(select.select(flood, [], [], 1)[0]) == 5)
        for sock in select.select(flood, [], [], 1)[0]:
            assert sock.recv(100).startswith(b"HTTP/1.1 503 ")
        assert len(entered) == 8
        assert site.get("/-/healthy").status == 200
        release.set()
        awaited(lambda: len(select.select(flood, [], [], 1)[0]) == 45)


# --- the end ---

SCRIPT = """
import logging, os, sys, time
from exporter.web.pages import serve
from exporter.web.webconfig import WebError
class Lines(logging.Formatter):
    def format(self, record):
        return f"{record.message if hasattr(record, 'message') else record.getMessage()} {record.fields}"
handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(Lines())
logging.basicConfig(level=logging.INFO, handlers=[handler])
def scrape(timeout, openmetrics):
    os.write(1, b"scraping\\n")  # whole lines, also from several threads at once
    time.sleep(timeout or 0)
    return [b"#" + b"x" * 20_000_000]
def reload():
    print("reloading", flush=True)
    raise ValueError("config.yaml: no")
try:
    serve(listen_address=sys.argv[1], scrape=scrape, ready=lambda: True, reload=reload)
except WebError as exc:
    sys.exit(f"{exc}")
print("served", flush=True)
os._exit(0)  # as the command line does: nobody waits for a scrape that is still at work
"""


@contextlib.contextmanager
def process(address="127.0.0.1:0"):
    root = os.path.dirname(os.path.dirname(door.__file__))
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def port_of(child):
    return int(re.search(r"listening .*'address': '127.0.0.1:(\d+)'", child.stdout.readline())[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_exit_code_0(number):
    with process() as child:
        assert exchange(port_of(child), b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        child.send_signal(number)
        out, err = child.communicate(timeout=20)
    assert (child.returncode, err) == (0, "")
    assert out.splitlines() == [f"stopping {{'signal': '{number.name}'}}", "served"]


def test_a_scrape_and_slow_clients_do_not_hold_up_the_end():
    with process() as child, contextlib.ExitStack() as stack:
        port = port_of(child)
        stack.enter_context(slow_reader(port))
        assert child.stdout.readline() == "scraping\n"
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Prometheus-Scrape-Timeout-Seconds: 60\r\n\r\n"
        for sock in slow[:10]:
            sock.sendall(request)
        assert child.stdout.readline() == "scraping\n"
        child.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        child.communicate(timeout=20)
        assert time.monotonic() - begin < 5  # what is promised to operators
    assert child.returncode == 0


def test_a_scrape_that_ends_in_time_is_answered_after_the_signal():
    with process() as child:
        with socket.create_connection(("127.0.0.1", port_of(child))) as sock:
            sock.sendall(
                b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Prometheus-Scrape-Timeout-Seconds: 1\r\n\r\n"
            )
            assert child.stdout.readline() == "scraping\n"
            child.send_signal(signal.SIGTERM)
            sock.settimeout(10)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
        child.communicate(timeout=20)
    assert child.returncode == 0


def test_sighup_reloads_and_a_failure_is_one_line():
    with process() as child:
        port_of(child)
        child.send_signal(signal.SIGHUP)
        assert child.stdout.readline() == "reloading\n"
        assert child.stdout.readline() == "reload failed {'error': 'ValueError: config.yaml: no'}\n"
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=20)
    assert child.returncode == 0


def test_an_address_in_use_ends_it_with_one_line():
    with door.listen("127.0.0.1:0") as listener, process(f"127.0.0.1:{listener.getsockname()[1]}") as child:
        out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err.count("\n")) == (1, "", 1)
    assert "Address already in use" in err


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_as_process_1_a_signal_ends_it():
    root = os.path.dirname(os.path.dirname(door.__file__))
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", SCRIPT, "127.0.0.1:0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}
    ) as outer:
        try:
            if not (line := outer.stdout.readline()):
                pytest.skip("this machine does not allow a PID namespace")
            assert line.startswith("listening")
            children = f"/proc/{outer.pid}/task/{outer.pid}/children"
            with open(children) as file:
                inner = int(file.read())
            os.kill(inner, signal.SIGTERM)
            assert outer.wait(20) == 0
        finally:
            outer.kill()
