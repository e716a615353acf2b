"""The ledger's SQLite file: what it holds, and how one process writes it while others may read it."""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from exporter.modus.model import Cursor, OpenRun, Totals

APPLICATION_ID = 0x4D4F4452  # "MODR"
SCHEMA_VERSION = 1
LOCK_WAIT = 0.2  # seconds for another program that has locked the file: a scrape cannot wait

log = logging.getLogger("exporter.runs.store")


class LedgerError(Exception):
    """The state file cannot be used; the text is one line that says what to do."""


class Account(msgspec.Struct):
    """What the ledger knows of one agent."""

    totals: Totals
    name: str = ""
    type: str = ""
    cursor: Cursor = Cursor()
    open: dict[str, OpenRun] = msgspec.field(default_factory=dict)
    opens_listed: bool = False  # the lists of open runs have been read once
    ended_after: float | None = None  # count only runs that ended later, Unix seconds
    horizon: float = 0.0  # ids of runs started up to here may be forgotten: such a run is not counted
    late: dict[str, float] = msgspec.field(default_factory=dict)  # ids counted late in life, kept until then
    last_start: float | None = None
    last_read: float | None = None
    unread: bool = False  # the newest attempt failed


class Meta(msgspec.Struct, frozen=True):
    """What the file says of itself."""

    bounds: tuple[float, ...]  # upper bounds of the histogram's buckets, seconds
    written: float  # instant of the newest commit, Unix seconds
    shard: tuple[int, int] = (0, 1)  # index and total of the shards that wrote it


class State(msgspec.Struct):
    """All that a state file holds."""

    meta: Meta
    accounts: dict[int, Account]
    counted: dict[int, dict[str, float]]  # agent -> run id -> start of the run, Unix seconds


SCHEMA = f"""
BEGIN;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE IF NOT EXISTS meta (id INTEGER PRIMARY KEY CHECK (id = 1), state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS account (agent_id INTEGER PRIMARY KEY, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counted (
    agent_id INTEGER NOT NULL, run_id TEXT NOT NULL, start REAL NOT NULL, PRIMARY KEY (agent_id, run_id)
) WITHOUT ROWID;
COMMIT;
"""


class StateFile:
    """The SQLite file: one writer, any number of readers. Methods raise sqlite3.Error and OSError.

    Raises LedgerError when the file is in use, cannot be opened, or is not ours to write.
    """

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        self.path = path
        self._clock = clock
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, ...] = ()  # of the file as we left it
        self._stamp: bytes | None = None  # of the newest commit that is known to be durable
        lock = Path(f"{os.path.realpath(path)}.lock")  # one for all names of the file
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._known = lock.exists()
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise LedgerError(
                f"{path}: in use by another process; give each exporter its own state.path"
            ) from None
        except OSError as error:
            raise LedgerError(f"{path}: cannot be opened: {error.strerror}; check state.path") from None

    def load(self, meta: Meta) -> State:
        """Open the file, made when missing, and return what it holds; a corrupt one is moved aside first."""
        try:
            try:
                return _read(self._connect(), meta)
            except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
                if isinstance(error, sqlite3.OperationalError) or not self._known:
                    raise
                self.move_aside(error)
                return _read(self._connect(), meta)
        except (sqlite3.Error, msgspec.DecodeError, OSError) as error:
            raise LedgerError(f"{self.path}: not usable as state file: {error}; check state.path") from None

    def open_again(self) -> bool:
        """Open the file where it is not open; True when it does not hold what was written last.

        A file that somebody else changed is opened anew, and moved aside when it is broken.
        """
        identity = self._identity_now()
        changed = self._db is not None
        if changed:
            if identity == self._identity:
                return False
            self._disconnect()
            if identity[0] != self._identity[0]:
                for suffix in ("-wal", "-shm"):  # ours: replayed over another file they would spoil it
                    Path(self.path + suffix).unlink(missing_ok=True)
        try:
            row = self._connect().execute("SELECT state FROM meta").fetchone()
            return changed or row is None or row[0] != self._stamp
        except sqlite3.DatabaseError as error:
            if not _is_corruption(error):
                raise
            self.move_aside(error)
            self._connect()
            return True

    def write(
        self,
        meta: Meta,
        accounts: Iterable[tuple[int, bytes]],
        new: Iterable[tuple[int, str, float]],
        gone: Iterable[tuple[int, str]],
        *,
        anew: bool,
    ) -> None:
        """Write in one durable transaction; `anew` replaces all that the file held."""
        assert self._db is not None, "open_again comes first"  # noqa: S101
        stamp = msgspec.json.encode(meta)
        try:
            with self._db as db:
                if anew:
                    db.execute("DELETE FROM account")
                    db.execute("DELETE FROM counted")
                db.execute("INSERT OR REPLACE INTO meta VALUES (1, ?)", (stamp,))
                db.executemany("INSERT OR REPLACE INTO account VALUES (?, ?)", accounts)
                db.executemany("INSERT OR REPLACE INTO counted VALUES (?, ?, ?)", new)
                db.executemany("DELETE FROM counted WHERE agent_id = ? AND run_id = ?", gone)
        except sqlite3.Error as error:
            self._disconnect()
            if _is_corruption(error):
                self.move_aside(error)
            raise
        self._stamp, self._identity = stamp, self._identity_now()

    def move_aside(self, error: Exception) -> None:
        """Rename a corrupt file to a name that says when, with what belongs to it."""
        self._disconnect()
        when = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = f"{self.path}.corrupt-{when}"
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(self.path + suffix):
                os.replace(self.path + suffix, aside + suffix)
        log.error(
            "the state file is corrupt and was moved aside: a fresh one begins",
            extra={"fields": {"path": self.path, "moved_to": aside, "error": str(error)}},
        )

    def close(self) -> None:
        """Close the file and let another process have it."""
        self._disconnect()
        os.close(self._lock)

    def _connect(self) -> sqlite3.Connection:
        db = self._db = sqlite3.connect(self.path, timeout=LOCK_WAIT, check_same_thread=False)
        try:
            _check_ownership(db, self.path)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                db.executescript(SCHEMA)
        except (sqlite3.Error, LedgerError):
            self._disconnect()
            raise
        self._identity = self._identity_now()
        return db

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _identity_now(self) -> tuple[int, ...]:
        """Changes when anybody writes to the file or its WAL, or puts another one in their place."""
        identity: list[int] = []
        for path in (self.path, f"{self.path}-wal"):
            try:
                found = os.stat(path)
                identity += found.st_ino, found.st_size, found.st_mtime_ns
            except FileNotFoundError:
                identity.append(0)
        return tuple(identity)


def read_state(path: str) -> State:
    """Read a state file beside the process that writes it. Raises LedgerError."""
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            _check_ownership(db, path)
            return _read(db, None)
    except (sqlite3.Error, msgspec.DecodeError) as error:
        raise LedgerError(f"{path}: cannot be read: {error}; check state.path") from None


def _is_corruption(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _check_ownership(db: sqlite3.Connection, path: str) -> None:
    application: int = db.execute("PRAGMA application_id").fetchone()[0]
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    tables: int = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application == APPLICATION_ID:
        if version > SCHEMA_VERSION:
            raise LedgerError(
                f"{path}: written by a newer modus-exporter (schema {version}); upgrade, or move it away"
            )
    elif application or tables:
        raise LedgerError(f"{path}: not a state file of modus-exporter; set state.path to another file")


def _read(db: sqlite3.Connection, meta: Meta | None) -> State:
    problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(problem)
    with db:
        db.execute("BEGIN")  # one moment for all three tables
        row = db.execute("SELECT state FROM meta").fetchone()
        counted: dict[int, dict[str, float]] = {}
        for agent_id, run_id, start in db.execute("SELECT agent_id, run_id, start FROM counted"):
            counted.setdefault(agent_id, {})[run_id] = start
        accounts = {
            agent_id: msgspec.json.decode(state, type=Account)
            for agent_id, state in db.execute("SELECT agent_id, state FROM account")
        }
    found = msgspec.json.decode(row[0], type=Meta) if row else meta
    if found is None:
        raise sqlite3.DatabaseError("it is empty")
    return State(found, accounts, counted)
