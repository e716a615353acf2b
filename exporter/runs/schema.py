"""What a state file holds, row by row, and how it is known to be what was written.

Each row of `meta` and `agent` carries a checksum of its own, an agent's row one over its rows in `counted`,
and SQLite checks the rest.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from exporter.log import one_line
from exporter.runs import migration
from exporter.runs.ids import CountedIds, add_checksum
from exporter.runs.state import SCHEMA_VERSION, USAGE_ID, AgentState, Corruption, Meta, State, UsageState
from exporter.runs.store import Change, LedgerError

T = TypeVar("T")
APPLICATION_ID = 0x4D4F4452  # "MODR"
AT_ONCE = 100  # rows of one statement: behind each it waits for the interpreter, which hundreds may want

# what a file that is as it was written can give: its content says nothing about these
_CIRCUMSTANCES = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip
# what reading a damaged file can raise
DAMAGE = (
    sqlite3.Error,
    msgspec.MsgspecError,
    ArithmeticError,
    AttributeError,  # bytes where a text was written
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


SCHEMA = (
    "CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), state BLOB NOT NULL, checksum BLOB NOT NULL)",
    "CREATE TABLE agent (agent_id INTEGER PRIMARY KEY, state BLOB NOT NULL, checksum BLOB NOT NULL)",
    """CREATE TABLE counted (
        agent_id INTEGER NOT NULL, run_id TEXT NOT NULL, over REAL NOT NULL, PRIMARY KEY (agent_id, run_id)
    ) WITHOUT ROWID""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


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
        return read(db, None).meta.version <= SCHEMA_VERSION
    except (*DAMAGE, Corruption):
        return False


def make_tables(db: sqlite3.Connection) -> None:
    """Make the tables anew, empty, in place of what was there."""
    for table in ("meta", "agent", "counted", "account"):
        db.execute(f"DROP TABLE IF EXISTS {table}")
    for statement in SCHEMA:
        db.execute(statement)


def write_change(db: sqlite3.Connection, change: Change) -> None:
    """Write what changed of one agent, within the transaction of the caller."""
    agent_id, _, state, new, gone = change
    if state is None:
        db.execute("DELETE FROM agent WHERE agent_id = ?", (agent_id,))
        db.execute("DELETE FROM counted WHERE agent_id = ?", (agent_id,))
        return
    row = agent_id, state, checksum_of(state, agent_id)
    db.execute("INSERT OR REPLACE INTO agent VALUES (?, ?, ?)", row)
    for items in _in_pieces(new):
        rows = ", ".join(["(?, ?, ?)"] * len(items))
        values = [value for id_, over in items for value in (agent_id, id_, over)]
        db.execute(f"INSERT OR REPLACE INTO counted VALUES {rows}", values)  # noqa: S608 - question marks
    for ids in _in_pieces(gone):
        marks = ", ".join(["?"] * len(ids))
        delete = f"DELETE FROM counted WHERE agent_id = ? AND run_id IN ({marks})"  # noqa: S608
        db.execute(delete, (agent_id, *ids))


def _in_pieces(items: list[T]) -> Iterator[list[T]]:
    return (items[first : first + AT_ONCE] for first in range(0, len(items), AT_ONCE))


def read(db: sqlite3.Connection, meta: Meta | None) -> State:
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
        rows = {row[0]: row[1:] for row in db.execute("SELECT agent_id, state, checksum FROM agent")}
        state, checksum = rows.pop(USAGE_ID, (None, b""))
        usage = None if state is None else _decoded(state, checksum, UsageState, USAGE_ID)
        agents = {
            agent_id: _decoded(state, checksum, AgentState, agent_id)
            for agent_id, (state, checksum) in rows.items()
        }
        counted = {agent_id: CountedIds() for agent_id in agents}
        sums = dict.fromkeys(agents, 0)
        for agent_id, run_id, over in db.execute("SELECT agent_id, run_id, over FROM counted"):
            counted[agent_id].add(run_id, over)
            sums[agent_id] = add_checksum(sums[agent_id], run_id, over)
    finally:
        db.execute("ROLLBACK")
    for agent_id, state in agents.items():
        if (state.ids_number, state.ids_sum) != (len(counted[agent_id]), sums[agent_id]):
            raise Corruption(f"the counted runs of agent {agent_id} are not those that were written")
    return State(found, agents, counted, usage)


def stamp_of(db: sqlite3.Connection) -> bytes | None:
    """What the newest commit wrote of itself. Raises Corruption, and sqlite3.Error for the circumstances."""
    try:
        row = db.execute("SELECT state FROM meta").fetchone()
    except sqlite3.Error as error:
        raise as_corruption(error) from None
    return row[0] if row else None


def checksum_of(content: bytes, agent_id: int = 0) -> bytes:
    """Eight bytes over a row's content, which are others in another agent's row."""
    return hashlib.blake2b(content, digest_size=8, key=str(agent_id).encode()).digest()


def _decoded(content: bytes, checksum: bytes, kind: type[T], agent_id: int = 0) -> T:
    if checksum_of(content, agent_id) != checksum:
        raise Corruption("a row is not what was written")
    return msgspec.json.decode(content, type=kind)


def as_corruption(error: Exception) -> Exception:
    """What reading died of: damage, or the circumstances."""
    return Corruption(one_line(error)) if is_corruption(error) else error


def is_corruption(error: Exception) -> bool:
    """Whether it tells of the file's content, and not of the circumstances."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or code & 0xFF not in _CIRCUMSTANCES
