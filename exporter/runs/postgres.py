"""The ledger's state in a PostgreSQL that several exporters share: each writes what it has leased.

A write holds only while the lease does: it names the lease's epoch and locks it, so that nobody takes the
agent over meanwhile. Writes of one agent have growing serial numbers besides: one that a cut connection left
behind changes nothing when it gets through after a newer one.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing

from exporter.runs import leasetable, tables
from exporter.runs.database import Connection, Cursor
from exporter.runs.fleet import Fleet
from exporter.runs.schema import checksum_of
from exporter.runs.state import Corruption, Meta, State
from exporter.runs.store import Change, Database, LedgerError, StoreError, Tenant, refuse_known

WRITE = 60.0  # seconds that one transaction may take
NOTHING = -1, 0  # epoch and serial of an agent that was never written
IDS_AT_ONCE = 20_000  # ids that are written in one statement: the server waits while it is made


class SharedStore:
    """The tables of `database`. Raises LedgerError for a URL that cannot be used."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection = Connection(database, "ledger")
        self.place = self._connection.place
        self._buckets = 0
        self._fleet: Fleet  # from `lease_for` on
        self._written: dict[int, tuple[int, int]] = {}  # epoch and serial of what is known to be durable
        self._serial = 0
        self._problems = 0  # of the leases, when the database was last known to hold all that was written
        self._stale: set[int] = set()

    def load(self, meta: Meta, *, reset_histogram: bool) -> State:
        """Make the tables when there are none; no agent is ours before it is leased. Raises LedgerError."""
        try:
            with self._connection.transaction(WRITE) as cursor:
                found = tables.prepare(cursor, self.place, meta, reset_histogram=reset_histogram)
        except StoreError as error:
            raise LedgerError(f"{self.place}: not usable for the state: {error}; check state.url") from None
        self._buckets = tables.buckets_of(found)
        return State(found, {}, {})

    def lease_for(self, tenant: Tenant) -> Fleet:
        """Begin to lease agents for this tenant."""
        self._fleet = Fleet(self._database, tenant, self._buckets, self._written)
        return self._fleet

    def open_again(self, agent_ids: Callable[[], Collection[int]]) -> Collection[int] | None:
        """The agents of which the database, after a new connection, holds less than was written.

        So it is when it failed over to a server that had not got the last transactions.
        Raises StoreError, also while the leases cannot be renewed.
        """
        if self._fleet.problem:
            raise StoreError(self._fleet.problem)
        if self._problems != (problems := self._fleet.problems):
            self._connection.close()  # it may be of a server that is no longer in charge
        if not self._connection.is_open:
            ours = agent_ids()
            written = {id_: at for id_, at in list(self._written.items()) if id_ in ours}
            with self._connection.transaction(WRITE) as cursor:
                cursor.execute(
                    "SELECT agent_id, epoch, serial FROM modus_agent WHERE agent_id = ANY(%s)",
                    [list(written)],
                )
                found = {agent_id: (epoch, serial) for agent_id, epoch, serial in cursor}
            self._problems = problems
            self._stale = {id_ for id_, at in written.items() if found.get(id_, NOTHING) < at}
        self._stale &= self._written.keys()
        return list(self._stale) or None

    def write(self, meta: Meta, changes: Iterable[Change], *, anew: bool) -> None:
        """Write in one durable transaction, fenced by the leases. Raises StoreError."""
        made = list(changes)
        self._serial += 1
        with self._connection.transaction(WRITE) as cursor:
            self._lock(cursor, made, anew=anew)
            self._write(cursor, made, anew=anew)
        for change in made:
            self._stale.discard(change.agent_id)
            self._written[change.agent_id] = (change.epoch, self._serial)

    def mark(self, agent_id: int, number: int) -> None:
        """Note that the agent's lines for the log up to this number were said: with the next renewal."""
        self._fleet.said[agent_id] = number

    @property
    def marked(self) -> int:
        """Nothing is loaded that has lines: each lease brings its own mark."""
        return 0

    def adopt(self, meta: Meta, changes: Sequence[Change]) -> None:
        """Write agents of another store, with leases that are free. Raises StoreError.

        Who comes meanwhile waits, and who stood still for longer than its membership has lost its leases.
        """
        ids = [change.agent_id for change in changes]
        with self._connection.transaction(10 * WRITE) as cursor:
            cursor.execute("LOCK TABLE modus_member IN SHARE MODE")
            tables.refuse_members(cursor)
            leasetable.enter(cursor, ids)
            leasetable.end_all(cursor, ids)
            cursor.execute("SELECT agent_id FROM modus_agent WHERE agent_id = ANY(%s)", [ids])
            refuse_known({agent_id for (agent_id,) in cursor}, changes)
            self._write(cursor, changes, anew=False)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _lock(self, cursor: Cursor, changes: Sequence[Change], *, anew: bool) -> None:
        """Keep the leases from being taken over until the end of the transaction. Raises StoreError.

        Also where the database holds less than was written: behind a pooler a failover cuts no connection.
        """
        cursor.execute(
            "SELECT agent_id, stored.epoch, stored.serial FROM modus_lease "
            "JOIN unnest(%s::bigint[], %s::bigint[]) AS ours (agent_id, epoch) USING (agent_id, epoch) "
            "LEFT JOIN modus_agent AS stored USING (agent_id) WHERE owner = %s ORDER BY agent_id "
            "FOR SHARE OF modus_lease",
            [[each.agent_id for each in changes], [each.epoch for each in changes], self._fleet.member],
        )
        found = {id_: NOTHING if epoch is None else (epoch, serial) for id_, epoch, serial in cursor}
        if lost := len(changes) - len(found):
            self._fleet.doubt()
            raise StoreError(f"{lost} leases are over: others may have these agents")
        stale = [agent_id for agent_id, at in found.items() if at < self._written.get(agent_id, at)]
        if stale and not anew:  # the connection is closed, and with the next one they are written whole
            raise StoreError(f"the database has lost what was written of {len(stale)} agents")

    def _write(self, cursor: Cursor, changes: Sequence[Change], *, anew: bool) -> None:
        for piece in _in_pieces(changes):
            self._write_piece(cursor, piece, anew=anew)

    def _write_piece(self, cursor: Cursor, changes: Sequence[Change], *, anew: bool) -> None:
        ids = [change.agent_id for change in changes]
        states = [change.state or b"" for change in changes]
        new = [(change.agent_id, _encoded(id_), over) for change in changes for id_, over in change.new]
        gone = [(change.agent_id, _encoded(id_)) for change in changes for id_ in change.gone]
        cursor.execute(
            "INSERT INTO modus_agent AS old (agent_id, epoch, serial, buckets, state, checksum) "
            "SELECT agent_id, epoch, %b, %b, state, checksum FROM unnest(%b::bigint[], %b::bigint[], "
            "%b::bytea[], %b::bytea[]) AS new (agent_id, epoch, state, checksum) "
            "ON CONFLICT (agent_id) DO UPDATE SET epoch = excluded.epoch, serial = excluded.serial, "
            "buckets = excluded.buckets, state = excluded.state, checksum = excluded.checksum "
            "WHERE (old.epoch, old.serial) < (excluded.epoch, excluded.serial)",
            [
                self._serial,
                self._buckets,
                ids,
                [change.epoch for change in changes],
                states,
                [checksum_of(state, id_) for id_, state in zip(ids, states, strict=True)],
            ],
        )
        if cursor.rowcount != len(ids):
            raise StoreError("the database holds a newer state than ours")
        if anew:
            cursor.execute("DELETE FROM modus_counted WHERE agent_id = ANY(%b)", [ids])
        if new:
            cursor.execute(
                "INSERT INTO modus_counted SELECT * FROM unnest(%b::bigint[], %b::bytea[], %b::float8[]) "
                "ON CONFLICT (agent_id, run_id) DO UPDATE SET over = excluded.over",
                [list(column) for column in zip(*new, strict=True)],
            )
        if gone:
            cursor.execute(
                "DELETE FROM modus_counted AS old USING unnest(%b::bigint[], %b::bytea[]) "
                "AS gone (agent_id, run_id) WHERE old.agent_id = gone.agent_id AND old.run_id = gone.run_id",
                [list(column) for column in zip(*gone, strict=True)],
            )


def read_state(database: Database, *, alone: bool = False) -> State:
    """All that the database holds, read beside the exporters that write it, or when none does (`alone`).

    Raises LedgerError.
    """
    connection = Connection(database, "audit")
    with closing(connection):
        try:
            with connection.transaction(10 * WRITE, snapshot=True) as cursor:
                found = tables.read_all(cursor, connection.place)
                if alone:
                    tables.refuse_members(cursor)
                return found
        except (StoreError, Corruption) as error:
            raise LedgerError(f"{connection.place}: cannot be read: {error}; check state.url") from None


def _in_pieces(changes: Iterable[Change]) -> Iterator[list[Change]]:
    piece: list[Change] = []
    ids = 0
    for change in changes:
        piece.append(change)
        ids += 1 + len(change.new) + len(change.gone)
        if ids >= IDS_AT_ONCE:
            yield piece
            piece, ids = [], 0
    if piece:
        yield piece


def _encoded(id_: str) -> bytes:
    """A run's id as the database holds it, whose texts cannot have every character."""
    return id_.encode("utf-8", "surrogatepass")
