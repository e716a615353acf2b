"""The ledger's SQLite file: what it holds, and how one process writes it while others may read it.

Every byte is what was written, or the file is set aside: each row of `meta` and `agent` carries a checksum of
its own, an agent's row one over its rows in `counted`, and SQLite checks the rest.
"""

import fcntl
import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from exporter.log import fields
from exporter.runs import migration
from exporter.runs.account import add_checksum
from exporter.runs.state import SCHEMA_VERSION, AgentState, Corruption, Meta, State

T = TypeVar("T")
APPLICATION_ID = 0x4D4F4452  # "MODR"
LOCK_WAIT = 0.2  # seconds for another program that has locked the file: a scrape cannot wait
WAL_BYTES = 4 << 20  # that are kept of the write-ahead log between commits

log = logging.getLogger("exporter.runs.store")


# what a file that is as it was written can give: its content says nothing about these
_CIRCUMSTANCES = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip
# what reading a damaged file can raise
_DAMAGE = (
    sqlite3.Error,
    msgspec.MsgspecError,
    ArithmeticError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class LedgerError(Exception):
    """The state file cannot be used; the text is one line that says what to do."""


class StoreError(Exception):
    """A commit failed; the text is one line."""


class Change(NamedTuple):
    """What a commit writes of one agent: its encoded state (None: forget it), ids that are new, and gone."""

    agent_id: int
    state: bytes | None
    new: list[tuple[str, float]]
    gone: list[str]


SCHEMA = (
    "CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), state BLOB NOT NULL, checksum BLOB NOT NULL)",
    "CREATE TABLE agent (agent_id INTEGER PRIMARY KEY, state BLOB NOT NULL, checksum BLOB NOT NULL)",
    """CREATE TABLE counted (
        agent_id INTEGER NOT NULL, run_id TEXT NOT NULL, over REAL NOT NULL, PRIMARY KEY (agent_id, run_id)
    ) WITHOUT ROWID""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class StateFile:
    """The SQLite file: one writer, any number of readers.

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
        self._tell_loss()
        try:
            try:
                return self._read(meta)
            except Corruption as error:
                if not self._known:
                    raise
                self._move_aside(error)
                return self._read(meta)
        except (sqlite3.Error, Corruption, OSError) as error:
            raise LedgerError(f"{self.path}: not usable as state file: {error}; check state.path") from None

    def open_again(self) -> bool:
        """Open the file where it is not open; True when it does not hold what was written last.

        A file that somebody else changed is opened anew, and moved aside when it is broken.
        Raises StoreError.
        """
        try:
            return self._open_again()
        except (sqlite3.Error, OSError, LedgerError) as error:
            raise StoreError(str(error)) from None

    def write(self, meta: Meta, changes: Iterable[Change], *, anew: bool) -> None:
        """Write in one durable transaction; `anew` replaces all that the file held. Raises StoreError."""
        assert self._db is not None, "open_again comes first"  # noqa: S101
        stamp = msgspec.json.encode(meta)
        try:
            with self._db as db:
                db.execute("BEGIN IMMEDIATE")
                if anew:
                    _make_tables(db)
                db.execute("INSERT OR REPLACE INTO meta VALUES (1, ?, ?)", (stamp, _checksum(stamp)))
                for change in changes:
                    _write_change(db, change)
            self._stamp, self._identity = stamp, self._identity_now()
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            if isinstance(error, sqlite3.Error) and _is_corruption(error):
                self._move_aside(error)
            raise StoreError(str(error)) from None

    def close(self) -> None:
        """Close the file and let another process have it."""
        self._disconnect()
        os.close(self._lock)

    def _read(self, meta: Meta) -> State:
        db = self._connect()
        try:
            state = _read(db, meta)
        except _DAMAGE as error:
            raise _as_corruption(error) from None
        row = _stamp(db)
        self._stamp = row if state.meta.version == SCHEMA_VERSION else None  # an older one is written anew
        return state

    def _open_again(self) -> bool:
        identity = self._identity_now()
        if self._db is not None:
            if identity == self._identity:
                return self._stamp is None
            self._disconnect()
            if identity[0] != self._identity[0]:
                for suffix in ("-wal", "-shm"):  # ours: replayed over another file they would spoil it
                    Path(self.path + suffix).unlink(missing_ok=True)
            self._stamp = None  # somebody else wrote: nothing in it can be relied on
        try:
            found = _stamp(self._connect())
            return self._stamp is None or found != self._stamp
        except Corruption as error:
            self._move_aside(error)
            self._connect()
            return True

    def _tell_loss(self) -> None:
        """Say so when the file that was there before is not, or is empty."""
        try:
            size = os.stat(self.path).st_size
        except OSError:
            size = 0
        if self._known and not size:
            log.warning(
                "the state file was deleted or emptied while no exporter ran: counting begins anew",
                extra=fields(path=self.path),
            )

    def _move_aside(self, error: Exception) -> None:
        """Rename a corrupt file to a name that says when, with what belongs to it."""
        self._disconnect()
        when = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = f"{self.path}.corrupt-{when}"
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(self.path + suffix):
                os.replace(self.path + suffix, aside + suffix)
        log.error(
            "the state file is corrupt and was moved aside: a fresh one begins",
            extra=fields(path=self.path, moved_to=aside, error=str(error)),
        )

    def _connect(self) -> sqlite3.Connection:
        """Open the file. Raises sqlite3.Error, OSError, Corruption and, when it is not ours, LedgerError."""
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = self._db = sqlite3.connect(
            self.path, timeout=LOCK_WAIT, check_same_thread=False, isolation_level=None
        )
        try:
            try:
                check_ownership(db, self.path, ours=self._known)
                if os.stat(self.path).st_uid == os.geteuid():
                    os.chmod(self.path, 0o600)  # as earlier versions did not
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
                if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    with db:
                        db.execute("BEGIN IMMEDIATE")
                        _make_tables(db)
            except _DAMAGE as error:
                raise _as_corruption(error) from None
        except BaseException:
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
    if not os.path.exists(path):
        raise LedgerError(
            f"{path}: there is no state file yet: start the exporter first, or check state.path"
        )
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            check_ownership(db, path, ours=True)
            return _read(db, None)
    except (*_DAMAGE, Corruption) as error:
        raise LedgerError(f"{path}: cannot be read: {error}; check state.path") from None


def check_ownership(db: sqlite3.Connection, path: str, *, ours: bool) -> None:
    """Raise LedgerError for a file of another program or of a newer version, Corruption for ours gone bad."""
    application: int = db.execute("PRAGMA application_id").fetchone()[0]
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    looks_ours = {"meta", "counted"} <= tables
    if application == APPLICATION_ID and version <= SCHEMA_VERSION:
        return
    if application == APPLICATION_ID and not (looks_ours and _is_whole(db)):
        raise LedgerError(
            f"{path}: written by a newer modus-exporter (schema {version}); upgrade, or move it away"
        )
    if looks_ours and ours:
        raise Corruption("its header is damaged")
    if application or tables:
        raise LedgerError(f"{path}: not a state file of modus-exporter; set state.path to another file")


def _is_whole(db: sqlite3.Connection) -> bool:
    """Whether the file is of this version whatever its header says."""
    try:
        return _read(db, None).meta.version <= SCHEMA_VERSION
    except (*_DAMAGE, Corruption):
        return False


def _make_tables(db: sqlite3.Connection) -> None:
    for table in ("meta", "agent", "counted", "account"):
        db.execute(f"DROP TABLE IF EXISTS {table}")
    for statement in SCHEMA:
        db.execute(statement)


def _write_change(db: sqlite3.Connection, change: Change) -> None:
    agent_id, state, new, gone = change
    if state is None:
        db.execute("DELETE FROM agent WHERE agent_id = ?", (agent_id,))
        db.execute("DELETE FROM counted WHERE agent_id = ?", (agent_id,))
        return
    row = agent_id, state, _checksum(state, agent_id)
    db.execute("INSERT OR REPLACE INTO agent VALUES (?, ?, ?)", row)
    db.executemany("INSERT OR REPLACE INTO counted VALUES (?, ?, ?)", ((agent_id, *each) for each in new))
    db.executemany(
        "DELETE FROM counted WHERE agent_id = ? AND run_id = ?", ((agent_id, each) for each in gone)
    )


def _read(db: sqlite3.Connection, meta: Meta | None) -> State:
    """All that the file holds, every row checked. Raises Corruption, and what SQLite raises."""
    problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise Corruption(problem)
    db.execute("BEGIN")  # one moment for all tables
    try:
        if not db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'agent'").fetchone()[0]:
            return migration.read_version_1(db)
        row = db.execute("SELECT state, checksum FROM meta").fetchone()
        found = _decoded(row[0], row[1], Meta) if row else meta
        if found is None:
            raise Corruption("it is empty")
        agents = {
            agent_id: _decoded(state, checksum, AgentState, agent_id)
            for agent_id, state, checksum in db.execute("SELECT agent_id, state, checksum FROM agent")
        }
        counted: dict[int, dict[str, float]] = {agent_id: {} for agent_id in agents}
        sums = dict.fromkeys(agents, 0)
        for agent_id, run_id, over in db.execute("SELECT agent_id, run_id, over FROM counted"):
            counted[agent_id][run_id] = over
            sums[agent_id] = add_checksum(sums[agent_id], run_id, over)
    finally:
        db.execute("ROLLBACK")
    for agent_id, state in agents.items():
        if (state.ids_number, state.ids_sum) != (len(counted[agent_id]), sums[agent_id]):
            raise Corruption(f"the counted runs of agent {agent_id} are not those that were written")
    return State(found, agents, counted)


def _stamp(db: sqlite3.Connection) -> bytes | None:
    """What the newest commit wrote of itself. Raises Corruption, and sqlite3.Error for the circumstances."""
    try:
        row = db.execute("SELECT state FROM meta").fetchone()
    except sqlite3.Error as error:
        raise _as_corruption(error) from None
    return row[0] if row else None


def _checksum(content: bytes, agent_id: int = 0) -> bytes:
    return hashlib.blake2b(content, digest_size=8, key=str(agent_id).encode()).digest()


def _decoded(content: bytes, checksum: bytes, kind: type[T], agent_id: int = 0) -> T:
    if _checksum(content, agent_id) != checksum:
        raise Corruption("a row is not what was written")
    return msgspec.json.decode(content, type=kind)


def _as_corruption(error: Exception) -> Exception:
    """What reading died of: damage, or the circumstances."""
    return Corruption(" ".join(str(error).split())) if _is_corruption(error) else error


def _is_corruption(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or code & 0xFF not in _CIRCUMSTANCES
