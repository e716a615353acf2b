"""A connection to the PostgreSQL that several exporters share: opened when needed, bounded in time.

Needs psycopg, the extra `postgres`: nothing imports this file unless a database is configured.
"""

import logging
import os
import re
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg import IsolationLevel
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from exporter.log import one_line
from exporter.runs.store import Database, LedgerError, StoreError, UnansweredError

CONNECT = 5  # seconds for each host of the URL
STILL = 5  # seconds that a transaction may stand still between two statements
KEPT = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}

logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # what goes wrong is told once, by who asked

Cursor = psycopg.Cursor[tuple[Any, ...]]


class Connection:
    """One connection, for one thread; `purpose` tells it from the others in `pg_stat_activity`.

    Raises LedgerError when the URL cannot be used.
    """

    def __init__(self, database: Database, purpose: str) -> None:
        self._database = database
        try:
            self._given = conninfo_to_dict(database.url)
        except psycopg.Error:  # its text may quote a part of the password
            raise LedgerError("state.url: expected postgresql://user@host:port/database") from None
        if not _is_read_as_meant(database.url, str(self._given.get("port") or "")):
            raise LedgerError(
                "state.url: expected postgresql://user:password@host:port/database with the password "
                "percent-encoded (%40 for @, %2F for /), or state.password_file"
            )
        self._purpose = purpose
        self._open: psycopg.Connection[tuple[Any, ...]] | None = None
        self._secrets: set[str] = set()

    @property
    def place(self) -> str:
        """Where the database is, to be shown."""
        given = {name: str(self._given.get(name) or "") for name in ("host", "hostaddr", "port", "dbname")}
        host = given["host"] or given["hostaddr"] or "localhost"
        return f"postgresql://{host}{given['port'] and ':' + given['port']}/{given['dbname']}"

    @contextmanager
    def transaction(self, seconds: float, *, snapshot: bool = False) -> Iterator[Cursor]:
        """One durable transaction, which is cut off after `seconds`; any failure closes the connection.

        With `snapshot` all of it sees the database as of one moment; it is only for reading.

        The server ends it too, and soon when we stand still in it: its locks would keep others from our
        leases. What is written is made before. Raises StoreError.
        """
        failure: type[StoreError] = StoreError
        try:
            db = self._connect()
            db.isolation_level = IsolationLevel.REPEATABLE_READ if snapshot else IsolationLevel.READ_COMMITTED
            with _cut_off(db, seconds), db.transaction(), db.cursor(binary=True) as cursor:
                cursor.execute(
                    "SELECT set_config('statement_timeout', %(limit)s, true), "
                    "set_config('idle_in_transaction_session_timeout', %(still)s, true), "
                    "set_config('synchronous_commit', CASE current_setting('synchronous_commit') "
                    "WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)",
                    {
                        "limit": f"{int(seconds * 1000)}ms",
                        "still": f"{int(seconds if snapshot else STILL)}s",  # a snapshot locks nothing
                    },
                )
                yield cursor
                failure = UnansweredError  # only the commit is left
        except (psycopg.Error, OSError) as error:  # a connection that is lost has no descriptor any more
            self.close()
            raise failure(self._told(error)) from None
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether the last transaction left it open, and the server has not closed it since."""
        if self._open and (self._open.closed or _has_news(self._open)):  # nobody asked: it says goodbye
            self.close()
        return self._open is not None

    def close(self) -> None:
        """Close it; the next transaction opens it again."""
        if self._open is not None:
            with suppress(psycopg.Error):
                self._open.close()
            self._open = None

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        if not self.is_open or self._open is None:
            options: dict[str, Any] = {"connect_timeout": CONNECT, "client_encoding": "UTF8"}
            options |= KEPT | {"application_name": f"modus-exporter {self._purpose}"} | self._given
            if (password := self._password()) is not None:
                options["password"] = password
            self._secrets = {str(options["password"])} if options.get("password") else set()
            self._open = psycopg.connect(make_conninfo(**options), autocommit=True, prepare_threshold=None)
        return self._open

    def _password(self) -> str | None:
        """Read anew for each connection, as it may change. Raises StoreError."""
        path = self._database.password_file
        if path is None:
            return None
        try:
            with open(path, encoding="utf-8") as file:
                return file.read(4096).strip("\r\n")
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise StoreError(f"cannot read the password file {path}: {reason}") from None

    def _told(self, error: Exception) -> str:
        """The error in one line, without the password."""
        text = one_line(error) or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _has_news(db: psycopg.Connection[tuple[Any, ...]]) -> bool:
    """Whether there is something to be read between two transactions, if only the connection's end."""
    look = select.poll()
    look.register(db.fileno(), select.POLLIN)
    return bool(look.poll(0))


def _is_read_as_meant(url: str, ports: str) -> bool:
    """Whether libpq takes no part of a password for a host, a port or a database, which are shown.

    It reads the user and the password up to the first `@`, if no `/` comes before that.
    """
    behind = re.sub("^[^@/]*@", "", url.partition("://")[2])
    return "@" not in behind.partition("?")[0] and re.fullmatch("[0-9,]*", ports) is not None


@contextmanager
def _cut_off(db: psycopg.Connection[tuple[Any, ...]], seconds: float) -> Iterator[None]:
    """Cut the network connection after `seconds`: libpq itself would wait for ever for a silent server."""
    line = socket.socket(fileno=os.dup(db.fileno()))

    def cut() -> None:
        with suppress(OSError):  # it is closed already
            line.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    with suppress(RuntimeError):  # the system has no thread for us: the server's own limit has to do
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        line.close()
