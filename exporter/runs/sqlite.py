"""The ledger's SQLite file: what it holds, and how one process writes it while others may read it.

Every byte is what was written, or the file is set aside (`schema`).
"""

import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from exporter.log import fields
from exporter.runs import schema
from exporter.runs.state import SCHEMA_VERSION, Corruption, Meta, State
from exporter.runs.store import Alone, Change, LedgerError, StoreError, Tenant, refuse_known

LOCK_WAIT = 0.2  # seconds for another program that has locked the file: a scrape cannot wait
WAL_BYTES = 4 << 20  # that are kept of the write-ahead log between commits

log = logging.getLogger(__name__)


class StateFile:
    """The SQLite file: one writer, any number of readers.

    Raises LedgerError when the file is in use, cannot be opened, or is not ours to write.
    """

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        self.place = path
        self._clock = clock
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, ...] = ()  # of the file as we left it
        self._stamp: bytes | None = None  # of the newest commit that is known to be durable
        if os.path.exists(path) and not os.path.isfile(path):  # a device: our mode would be everybody's
            raise LedgerError(f"{path}: not a regular file; check state.path")
        lock = Path(f"{os.path.realpath(path)}.lock")  # one for all names of the file
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._known = lock.exists()
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._lock)
                raise
        except BlockingIOError:
            raise LedgerError(
                f"{path}: in use by another process; give each exporter its own state.path"
            ) from None
        except OSError as error:
            raise LedgerError(f"{path}: cannot be opened: {error.strerror}; check state.path") from None

    def load(self, meta: Meta, *, reset_histogram: bool) -> State:
        """Open the file, made when missing, and return what it holds; a corrupt one is moved aside first.

        Buckets are the caller's to reset: it has all agents.
        """
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
            raise LedgerError(f"{self.place}: not usable as state file: {error}; check state.path") from None

    def lease_for(self, tenant: Tenant) -> Alone:
        """All agents are this process's own."""
        return Alone()

    def open_again(self, agent_ids: Callable[[], Collection[int]]) -> Collection[int] | None:
        """Open the file where it is not open; all agents when it does not hold what was written last.

        A file that somebody else changed is opened anew, and moved aside when it is broken.
        Raises StoreError.
        """
        try:
            return agent_ids() if self._open_again() else None
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
                    schema.make_tables(db)
                db.execute("INSERT OR REPLACE INTO meta VALUES (1, ?, ?)", (stamp, schema.checksum_of(stamp)))
                for change in changes:
                    schema.write_change(db, change)
            self._stamp, self._identity = stamp, self._identity_now()
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            if isinstance(error, sqlite3.Error) and schema.is_corruption(error):
                self._move_aside(error)
            raise StoreError(str(error)) from None

    def mark(self, agent_id: int, number: int) -> None:
        """Note that all lines for the log up to this number were said; a kill does not undo it."""
        with suppress(OSError):  # then they are said again after a restart
            os.pwrite(self._lock, number.to_bytes(8, "little"), 0)

    @property
    def marked(self) -> int:
        """The number of the line for the log that was said last."""
        return int.from_bytes(os.pread(self._lock, 8, 0), "little")

    def adopt(self, meta: Meta, changes: Sequence[Change]) -> None:
        """Write agents of another store that the file has not got. Raises StoreError."""
        assert self._db is not None, "load comes first"  # noqa: S101
        known = {agent_id for (agent_id,) in self._db.execute("SELECT agent_id FROM agent")}
        refuse_known(known, changes)
        self.write(meta, changes, anew=False)

    def close(self) -> None:
        """Close the file and let another process have it."""
        self._disconnect()
        os.close(self._lock)

    def _read(self, meta: Meta) -> State:
        db = self._connect()
        try:
            state = schema.read(db, meta)
        except schema.DAMAGE as error:
            raise schema.as_corruption(error) from None
        row = schema.stamp_of(db)
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
                    Path(self.place + suffix).unlink(missing_ok=True)
            self._stamp = None  # somebody else wrote: nothing in it can be relied on
        try:
            found = schema.stamp_of(self._connect())
            return self._stamp is None or found != self._stamp
        except Corruption as error:
            self._move_aside(error)
            self._connect()
            return True

    def _tell_loss(self) -> None:
        """Say so when the file that was there before is not, or is empty."""
        try:
            size = os.stat(self.place).st_size
        except OSError:
            size = 0
        if self._known and not size:
            log.warning(
                "the state file was deleted or emptied while no exporter ran: counting begins anew",
                extra=fields(path=self.place),
            )

    def _move_aside(self, error: Exception) -> None:
        """Rename a corrupt file to a name that says when, with what belongs to it."""
        self._disconnect()
        when = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = f"{self.place}.corrupt-{when}"
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(self.place + suffix):
                os.replace(self.place + suffix, aside + suffix)
        log.error(
            "the state file is corrupt and was moved aside: a fresh one begins",
            extra=fields(path=self.place, moved_to=aside, error=str(error)),
        )

    def _connect(self) -> sqlite3.Connection:
        """Open the file. Raises sqlite3.Error, OSError, Corruption and, when it is not ours, LedgerError."""
        os.close(os.open(self.place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = self._db = sqlite3.connect(
            self.place, timeout=LOCK_WAIT, check_same_thread=False, isolation_level=None
        )
        try:
            try:
                schema.check_ownership(db, self.place, ours=self._known)
                if os.stat(self.place).st_uid == os.geteuid():
                    os.chmod(self.place, 0o600)  # as earlier versions did not
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
                if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    with db:
                        db.execute("BEGIN IMMEDIATE")
                        schema.make_tables(db)
            except schema.DAMAGE as error:
                raise schema.as_corruption(error) from None
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
        for path in (self.place, f"{self.place}-wal"):
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
            schema.check_ownership(db, path, ours=True)
            return schema.read(db, None)
    except (*schema.DAMAGE, Corruption) as error:
        raise LedgerError(f"{path}: cannot be read: {error}; check state.path") from None
