"""Basic auth: who is let in, and what strangers can do about it."""

import contextlib
import logging
import select
import threading
from base64 import b64encode

import bcrypt
import pytest

from exporter.web import auth as logins
from exporter.web import webconfig
from exporter.web.auth import BasicAuth
from exporter.web.webconfig import WebConfigFile
from tests.webfiles import HASH, TLS
from tests.webserver import awaited, running


def basic(user, password):
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def guarded_site(tmp_path_factory):
    path = tmp_path_factory.mktemp("guarded") / "web.yml"
    path.write_text(f"basic_auth_users: {{alice: '{HASH}'}}")
    with running(config=path) as open_site:
        yield open_site


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


def test_an_unknown_user_costs_a_fixed_comparison_whatever_the_hashes_cost(monkeypatch):
    compared = []
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, value: compared.append(value[4:6]) or False)
    auth = BasicAuth({"alice": HASH, "bob": HASH.replace("$04$", "$18$")})
    assert not auth.check(b"carol:secret")
    assert not auth.check(b"bob:wrong")
    assert compared == [b"10", b"18"]


def test_an_unknown_user_stays_out_whatever_the_comparison_says(monkeypatch):
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, value: True)
    assert not BasicAuth({"alice": HASH}).check(b"carol:the password of the decoy")


@pytest.fixture
def compared(monkeypatch):
    """The passwords that were compared by bcrypt."""
    passwords = []
    check = bcrypt.checkpw
    monkeypatch.setattr(
        bcrypt, "checkpw", lambda password, value: passwords.append(password) or check(password, value)
    )
    return passwords


def test_credentials_are_compared_once_good_or_bad(guarded_site, compared):
    for user, password, status in (("alice", "secret", 200), ("alice", "bad", 401), ("eve", "bad", 401)):
        for _ in range(3):
            assert guarded_site.get("/", Authorization=basic(user, password)).status == status
    assert compared.count(b"bad") == 2
    assert compared.count(b"secret") <= 1  # an earlier test may have asked


def test_what_is_remembered_is_bounded_and_strangers_do_not_push_out_users(write, compared, monkeypatch):
    monkeypatch.setattr(logins, "MAX_REMEMBERED", 3)
    monkeypatch.setattr(logins, "REFUSAL_SECONDS", 0)
    with running(config=write(f"basic_auth_users: {{alice: '{HASH}'}}")) as site:
        for name in ("alice", "a", "b", "c", "c", "alice", "a"):
            site.get("/", Authorization=basic(name, "secret" if name == "alice" else name))
    assert compared == [b"secret", b"a", b"b", b"c", b"a"]


def test_passwords_are_kept_as_digests_only():
    auth = BasicAuth({"alice": HASH})
    auth.remember(b"alice:secret", auth.check(b"alice:secret"))
    assert auth.remembered(b"alice:secret")
    assert b"secret" not in repr(vars(auth)).encode()


def test_a_refusal_takes_the_same_time_for_a_known_and_an_unknown_name(write, compared, monkeypatch):
    """Else names could be found out; also when the answer is remembered."""
    monkeypatch.setattr(logins, "REFUSAL_SECONDS", 3600)
    with (
        running(config=write(f"basic_auth_users: {{alice: '{HASH}'}}")) as site,
        contextlib.ExitStack() as stack,
    ):
        refused = []
        for name in ("alice", "eve", "alice", "eve"):
            sock = stack.enter_context(site.connect())
            sock.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {basic(name, 'no')}\r\n\r\n".encode())
            refused.append(sock)
        awaited(lambda: compared.count(b"no") >= 2)
        assert site.get("/", Authorization=basic("alice", "secret")).status == 200
        assert select.select(refused, [], [], 0.2)[0] == []


def test_strangers_who_wait_for_bcrypt_hold_up_no_user_not_even_at_his_first_login(write, monkeypatch):
    release, running_now, most = threading.Event(), [], []
    check = bcrypt.checkpw

    def slow(password, value):
        if not password.startswith(b"wrong"):
            return check(password, value)
        running_now.append(1)
        most.append(len(running_now))
        release.wait(20)
        running_now.pop()
        return False

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    with (
        running(config=write(f"basic_auth_users: {{alice: '{HASH}'}}")) as site,
        contextlib.ExitStack() as stack,
    ):
        flood = [stack.enter_context(site.connect()) for _ in range(60)]
        for number, sock in enumerate(flood):
            header = basic(f"eve{number}", f"wrong{number}")
            sock.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n\r\n".encode())
        awaited(lambda: len(select.select(flood, [], [], 1)[0]) == 27)  # more than 33 do not even wait
        for sock in select.select(flood, [], [], 1)[0]:
            assert sock.recv(100).startswith(b"HTTP/1.1 503 ")
        assert site.get("/metrics", Authorization=basic("alice", "secret")).status == 200
        release.set()
        awaited(lambda: len(most) == 33)
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
        for breakage in ("basic_auth_users: {alice: plaintext}", " \n", None):
            caplog.clear()
            write(breakage) if breakage else path.unlink()
            assert [site.get("/").status for _ in range(3)] == [401] * 3
            assert site.get("/", Authorization=basic("alice", "secret")).status == 200
            [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
            assert record.fields["error"].startswith(f"{path}: ")
            assert "plaintext" not in str(record.fields)
        write("basic_auth_users: {}")
        assert site.get("/").status == 200


def test_who_guesses_the_password_of_a_known_name_holds_up_no_other_user(write, monkeypatch):
    release, check = threading.Event(), bcrypt.checkpw

    def slow(password, value):
        return not release.wait(20) if password.startswith(b"wrong") else check(password, value)

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    with (
        running(config=write(f"basic_auth_users: {{alice: '{HASH}', bob: '{HASH}'}}")) as site,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(release.set)
        flood = [stack.enter_context(site.connect()) for _ in range(60)]
        for number, sock in enumerate(flood):
            header = basic("alice", f"wrong{number}")
            sock.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n\r\n".encode())
        awaited(lambda: len(select.select(flood, [], [], 1)[0]) == 60 - logins.MAX_ALIKE)
        sock = stack.enter_context(site.connect())
        header = basic("bob", "secret")
        sock.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n\r\n".encode())
        assert select.select([sock], [], [], 0.2)[0] == []  # no 503: it waits for its turn
        release.set()
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_bad_file_is_logged_once_also_when_a_certificate_changes_with_it(ca, write, caplog):
    file = WebConfigFile(str(write(TLS % "")))
    good = file.current()
    write("[")
    ca.issue("server")
    assert [file.current() for _ in range(3)] == [good] * 3
    assert [record.fields["error"] for record in caplog.records] == [
        f"{ca.directory / 'web.yml'}: line 1: expected the node content, but found '<stream end>'"
    ]


def test_whatever_goes_wrong_with_a_new_file_the_old_one_stays_in_force_with_one_line(
    write, caplog, monkeypatch
):
    def fail(users):
        raise RuntimeError("a mistake of ours")

    with running(config=write(f"basic_auth_users: {{alice: '{HASH}'}}")) as site, site.connect() as sock:
        monkeypatch.setattr(webconfig, "_auth", fail)
        write("basic_auth_users: {}")
        awaited(lambda: caplog.records)  # whoever looks first: also when nobody asks
        threading.Event().wait(1.5)
        assert site.get("/").status == 401
        assert site.get("/", Authorization=basic("alice", "secret")).status == 200
        [record] = caplog.records
        assert "RuntimeError at test_web_auth.py:" in record.fields["error"]
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 401 ")
