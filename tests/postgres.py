"""A PostgreSQL of the tests' own: in a directory of its own, on loopback, ended by its process id."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from exporter.runs.store import Database
from exporter.scalars import DatabaseUrl
from tests.e2e.harness import free_port, wait_for

PASSWORD = "correct-horse"  # noqa: S105
NOBODY = 65534
# it refuses to run as root
AS = (
    ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups") if os.geteuid() == 0 else ()
)
SETTINGS = ("fsync=off", "max_connections=60", "shared_buffers=32MB", "autovacuum_naptime=10s")
MISSING = "PostgreSQL is not installed: apt-get install postgresql"


def programs() -> Path:
    """The directory of initdb and postgres; without one the test is skipped, but not in CI."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found or debian:
        initdb = Path(found or debian[-1]).resolve()
        if subprocess.run([*AS, "test", "-x", str(initdb)], check=False).returncode:
            pytest.skip(f"PostgreSQL does not run as root, and others may not run {initdb}")
        return initdb.parent
    if os.environ.get("CI"):
        pytest.fail(MISSING)
    pytest.skip(MISSING)


class Postgres:
    """A server; `url` names a user with a password."""

    def __init__(self) -> None:
        self._programs = programs()
        self.directory = Path(tempfile.mkdtemp(prefix="modus-postgres-"))
        if AS:
            shutil.chown(self.directory, NOBODY, NOBODY)
        self.port = free_port()
        self.schema = "public"
        self.url_options = ""
        try:
            self._init()
            self.start()
            with self.connect("postgres", dbname="postgres") as db:
                db.execute(f"CREATE ROLE modus LOGIN PASSWORD '{PASSWORD}'")
                db.execute("CREATE DATABASE modus OWNER modus")
        except BaseException:
            self.close()
            raise

    def _init(self) -> None:
        password = self.directory / "password"
        password.write_text(PASSWORD + "\n")
        options = ("--auth=scram-sha-256", "--username=postgres", f"--pwfile={password}", "--no-sync")
        self._run("initdb", "-D", str(self.data), *options)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def url(self) -> str:
        address = f"postgresql://modus:{PASSWORD}@127.0.0.1:{self.port}/modus"
        return f"{address}?options=-csearch_path%3D{self.schema}{self.url_options}"

    @property
    def database(self) -> Database:
        return Database(DatabaseUrl(self.url))

    def _run(self, program: str, *arguments: str) -> None:
        command = [*AS, str(self._programs / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.directory, check=False)
        assert done.returncode == 0, done.stderr + done.stdout

    def start(self) -> None:
        command = [*AS, str(self._programs / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        command += ["-h", "127.0.0.1", "-k", ""]
        for setting in SETTINGS:
            command += ["-c", setting]
        with (self.directory / "log").open("ab") as log:
            self.popen = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)

        def answers() -> bool:
            with contextlib.suppress(psycopg.OperationalError), self.connect("postgres", dbname="postgres"):
                return True
            assert self.popen.poll() is None, (self.directory / "log").read_text()
            return False

        wait_for("PostgreSQL answers", answers)

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: all connections are cut, what was committed is on the disk; SIGQUIT: as a crash."""
        self.popen.send_signal(number)
        self.popen.wait(30)

    def pause(self) -> None:
        """All of its processes stand still, as on a machine that hangs."""
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):  # a connection's process has ended meanwhile
                os.kill(pid, number)

    def _pids(self) -> list[int]:
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()
        return [self.popen.pid, *map(int, children)]

    def connect(self, user: str = "modus", **more: str) -> "psycopg.Connection[tuple[object, ...]]":
        given = {"dbname": "modus", "password": PASSWORD, "options": f"-csearch_path={self.schema}"} | more
        return psycopg.connect(f"host=127.0.0.1 port={self.port} user={user}", autocommit=True, **given)  # type: ignore[arg-type]

    def ask(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with self.connect() as db:
            return db.execute(query, values).fetchall()  # type: ignore[arg-type]

    def do(self, query: str, *values: object) -> None:
        with self.connect() as db:
            db.execute(query, values)  # type: ignore[arg-type]

    def cut_connections(self) -> None:
        """End all of them, in whatever transaction they are."""
        with self.connect("postgres") as db:
            db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'modus'")

    def renew(self) -> None:
        """A schema that nobody has used; whoever still has an earlier `url` stays in the one before."""
        self.schema, self.url_options = f"modus_{secrets.token_hex(8)}", ""
        self.do(f"CREATE SCHEMA {self.schema}")

    def close(self) -> None:
        if hasattr(self, "popen") and self.popen.poll() is None:
            self.go_on()
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    server = Postgres()
    try:
        yield server
    finally:
        server.close()
