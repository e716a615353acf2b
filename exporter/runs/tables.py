"""What the shared database holds, row by row, and how it is known to be what was written.

An agent's row carries a checksum of its own, and its state one over the agent's rows in `modus_counted`,
as in a state file. A lease is free when nobody owns it, or its owner is no member any more.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgspec

from exporter.log import fields, one_line
from exporter.runs import leases
from exporter.runs.database import Cursor
from exporter.runs.ids import CountedIds, add_checksum
from exporter.runs.schema import DAMAGE, checksum_of
from exporter.runs.state import SCHEMA_VERSION, USAGE_ID, AgentState, Corruption, Meta, State, UsageState
from exporter.runs.store import LedgerError, StoreError, Taken

LOCK = 0x4D4F4452  # "MODR": one exporter at a time makes the tables or changes them
IDS_AT_ONCE = 20_000  # counted runs that are read between two renewals

SCHEMA = (
    "CREATE TABLE modus_meta (id integer PRIMARY KEY CHECK (id = 1), version integer NOT NULL, "
    "state bytea NOT NULL)",
    "CREATE TABLE modus_member (id bigint PRIMARY KEY, name text NOT NULL, expires timestamptz NOT NULL, "
    "agents bigint NOT NULL, read_until double precision NOT NULL)",
    "CREATE TABLE modus_lease (agent_id bigint PRIMARY KEY, owner bigint, epoch bigint NOT NULL DEFAULT 0, "
    "since timestamptz NOT NULL DEFAULT clock_timestamp(), said bigint NOT NULL DEFAULT 0) "
    "WITH (fillfactor = 70)",
    "CREATE INDEX modus_lease_owner ON modus_lease (owner)",
    "CREATE TABLE modus_agent (agent_id bigint PRIMARY KEY, epoch bigint NOT NULL, serial bigint NOT NULL, "
    "buckets bigint NOT NULL, state bytea NOT NULL, checksum bytea NOT NULL) WITH (fillfactor = 70)",
    "CREATE TABLE modus_counted (agent_id bigint, run_id bytea, over double precision NOT NULL, "
    "PRIMARY KEY (agent_id, run_id))",
    "CREATE TABLE modus_aside (agent_id bigint NOT NULL, since timestamptz NOT NULL, state bytea NOT NULL, "
    "checksum bytea NOT NULL, reason text NOT NULL)",
)
# what leads from the version before to this one
MIGRATIONS: Mapping[int, tuple[str, ...]] = {}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Row:
    """One agent as the database holds it; `state` None: nothing was counted yet, or it was set aside."""

    agent_id: int
    epoch: int  # of the lease under which it is read
    written: tuple[int, int] | None = None  # epoch and serial number of the last write
    state: AgentState | UsageState | None = None
    same_buckets: bool = True  # as today's
    counted: CountedIds = field(default_factory=CountedIds)
    said: int = 0  # the number of its line for the log that was said last

    @property
    def taken(self) -> Taken:
        """What is handed to the ledger."""
        return Taken(self.agent_id, self.state, self.counted, self.same_buckets, self.said, self.epoch)


def prepare(cursor: Cursor, place: str, meta: Meta, *, reset_histogram: bool) -> Meta:
    """Make the tables when there are none, bring older ones up to date, and return what they say.

    Whoever changes what all rely on ends all memberships: the others read it anew. Raises LedgerError.
    """
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
    cursor.execute("SELECT to_regclass('modus_meta') IS NOT NULL")
    if not _one(cursor)[0]:
        for statement in SCHEMA:
            cursor.execute(statement)
        _set_meta(cursor, meta)
        return meta
    found = read_meta(cursor, place)
    changed = found.version < SCHEMA_VERSION
    for version in range(found.version + 1, SCHEMA_VERSION + 1):
        for statement in MIGRATIONS[version]:
            cursor.execute(statement)
    if found.bounds != meta.bounds and reset_histogram:
        found, changed = msgspec.structs.replace(found, bounds=meta.bounds), True
    if changed:
        _set_meta(cursor, msgspec.structs.replace(found, version=SCHEMA_VERSION))
        cursor.execute("DELETE FROM modus_member")
        cursor.execute(
            "UPDATE modus_lease SET owner = NULL, since = clock_timestamp() WHERE owner IS NOT NULL"
        )
    return found


def read_meta(cursor: Cursor, place: str) -> Meta:
    """What the database says of itself. Raises LedgerError, also for one of a newer version."""
    cursor.execute("SELECT version, state FROM modus_meta")
    version, state = cursor.fetchone() or (0, b"")
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"{place}: a newer modus-exporter has taken it over (schema {version}, this one has "
            f"{SCHEMA_VERSION}); upgrade this one"
        )
    try:
        found: Meta = msgspec.json.decode(state, type=Meta)
    except DAMAGE as error:
        raise LedgerError(
            f"{place}: the table modus_meta is not what was written ({one_line(error)}): restore it from a "
            "backup, or drop all tables modus_* to begin anew"
        ) from None
    return found


def _set_meta(cursor: Cursor, meta: Meta) -> None:
    cursor.execute(
        "INSERT INTO modus_meta VALUES (1, %(version)s, %(state)s) "
        "ON CONFLICT (id) DO UPDATE SET version = excluded.version, state = excluded.state",
        {"version": meta.version, "state": msgspec.json.encode(meta)},
    )


def buckets_of(meta: Meta) -> int:
    """A number that tells the histogram's buckets from others."""
    return crc32(msgspec.json.encode(meta.bounds))


def read_rows(cursor: Cursor, epochs: Mapping[int, int], buckets: int) -> list[Row]:
    """The agents with leases of these epochs, without their counted runs, which `read_counted` adds.

    Rows that are not what was written are set aside, with one line; such an agent begins anew.
    """
    rows = {agent_id: Row(agent_id, epoch) for agent_id, epoch in epochs.items()}
    cursor.execute(
        "SELECT agent_id, a.epoch, serial, buckets, state, checksum, said "
        "FROM modus_agent a JOIN modus_lease USING (agent_id) WHERE agent_id = ANY(%s)",
        [list(epochs)],
    )
    for agent_id, epoch, serial, its_buckets, state, checksum, said in cursor.fetchall():
        row = rows[agent_id]
        row.said = said
        row.written, row.same_buckets = (epoch, serial), its_buckets == buckets
        try:
            row.state = _decoded(agent_id, state, checksum)
        except Corruption as error:
            _set_aside(cursor, row, str(error))
    return list(rows.values())


def in_pieces(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in pieces of not too many counted runs: between two the caller may do something else."""
    piece: list[Row] = []
    ids = 0
    for row in rows:
        ids += row.state.ids_number if isinstance(row.state, AgentState) else 0
        piece.append(row)
        if ids >= IDS_AT_ONCE:
            yield piece
            piece, ids = [], 0
    if piece:
        yield piece


def read_counted(cursor: Cursor, rows: Iterable[Row]) -> None:
    """Add the runs that were counted of these agents; corrupt ones are set aside."""
    by_id = {row.agent_id: row for row in rows if isinstance(row.state, AgentState)}
    sums = dict.fromkeys(by_id, 0)
    cursor.execute("SELECT agent_id, run_id, over FROM modus_counted WHERE agent_id = ANY(%s)", [list(by_id)])
    for agent_id, run_id, over in cursor:
        id_ = _id_of(run_id)
        by_id[agent_id].counted.add(id_, over)
        sums[agent_id] = add_checksum(sums[agent_id], id_, over)
    for agent_id, row in by_id.items():
        state = row.state
        assert isinstance(state, AgentState)  # noqa: S101
        if (state.ids_number, state.ids_sum) != (len(row.counted), sums[agent_id]):
            _set_aside(cursor, row, "its counted runs are not those that were written")


def _id_of(run_id: bytes) -> str:
    """The id of a run; of what is none another one than was written, so that the checksum tells."""
    try:
        return run_id.decode()
    except UnicodeDecodeError:
        return repr(run_id)


def _decoded(agent_id: int, state: bytes, checksum: bytes) -> AgentState | UsageState:
    if checksum_of(state, agent_id) != checksum:
        raise Corruption("its row is not what was written")
    try:
        if agent_id == USAGE_ID:
            return msgspec.json.decode(state, type=UsageState)
        return msgspec.json.decode(state, type=AgentState)
    except DAMAGE as error:
        raise Corruption(one_line(error)) from None


def _set_aside(cursor: Cursor, row: Row, reason: str) -> None:
    """Keep what is there of an agent for who wants to look, and let it begin anew."""
    log.error(
        "the shared state of an agent is corrupt and was set aside: it begins anew",
        extra=fields(agent_id=row.agent_id, table="modus_aside", error=reason),
    )
    cursor.execute(
        "WITH old AS (DELETE FROM modus_agent WHERE agent_id = %(id)s RETURNING agent_id, state, checksum), "
        "ids AS (DELETE FROM modus_counted WHERE agent_id = %(id)s) "
        "INSERT INTO modus_aside SELECT agent_id, clock_timestamp(), state, checksum, %(reason)s FROM old",
        {"id": row.agent_id, "reason": reason},
    )
    row.written, row.state, row.counted = None, None, CountedIds()


def read_all(cursor: Cursor, place: str) -> State:
    """All that the database holds, as of one moment. Raises LedgerError and Corruption.

    An agent was read as its state says, or later, when its owner has read all of its agents since it has it.
    That is by our clock; what the state says is by the clock of who wrote it.
    """
    cursor.execute("SELECT to_regclass('modus_meta') IS NOT NULL")
    if not _one(cursor)[0]:
        raise LedgerError(f"{place}: there is no state yet: start the exporter first, or check state.url")
    found, now = State(read_meta(cursor, place), {}, {}), time.time()
    cursor.execute(
        "SELECT agent_id, state, checksum, "
        "CASE WHEN to_timestamp(m.read_until) > l.since "
        "THEN extract(epoch FROM clock_timestamp())::float8 - m.read_until END "
        "FROM modus_agent LEFT JOIN modus_lease l USING (agent_id) LEFT JOIN modus_member m ON m.id = l.owner"
    )
    for agent_id, content, checksum, unread in cursor:
        state = _decoded(agent_id, content, checksum)
        if isinstance(state, UsageState):
            found.usage = state
            continue
        found.agents[agent_id] = state
        found.counted[agent_id] = CountedIds()
        found.read[agent_id] = 0.0 if state.unread or unread is None else now - unread
        state.unread = True  # what it says of its last read holds, not when anybody wrote last
    cursor.execute("SELECT agent_id, run_id, over FROM modus_counted")
    for agent_id, run_id, over in cursor:
        found.counted.setdefault(agent_id, CountedIds()).add(_id_of(run_id), over)
    for agent_id, state in found.agents.items():
        ids = 0
        for id_, over in found.counted[agent_id].items():
            ids = add_checksum(ids, id_, over)
        if (state.ids_number, state.ids_sum) != (len(found.counted[agent_id]), ids):
            raise Corruption(f"the counted runs of agent {agent_id} are not those that were written")
    return found


def refuse_members(cursor: Cursor) -> None:
    """Raise StoreError while exporters use the database.

    A membership that ends later than it can is from before its clock was set back: who lives renews it.
    """
    cursor.execute(
        "SELECT name FROM modus_member WHERE expires > clock_timestamp() "
        "AND expires <= clock_timestamp() + %s * interval '1 s'",
        [leases.TERM],
    )
    if names := [name for (name,) in cursor]:
        raise StoreError(f"{len(names)} exporters use it ({', '.join(sorted(names))}): stop them first")


def _one(cursor: Cursor) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None  # noqa: S101 - a query that always has a row
    return row
