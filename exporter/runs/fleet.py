"""A member of a fleet: its membership and its leases in the shared database, on a thread of their own.

A lease is a row with its owner and an epoch that grows each time it changes hands. It is worth something
while the owner is a member; memberships end by the database's clock, and are renewed every `TICK`. Ours
counts from before the request that renewed it, and less a margin: whoever takes over waits longer.
"""

import logging
import os
import secrets
import socket
import threading
from collections.abc import Collection

from exporter.deadline import Deadline
from exporter.log import fields
from exporter.runs import tables
from exporter.runs.account import KEEP
from exporter.runs.database import Connection, Cursor
from exporter.runs.leases import IDLE, MARGIN, TERM, TICK, Watch, boot_clock, quota, surplus
from exporter.runs.store import Database, LedgerError, StoreError, Tenant

REQUEST = 5.0  # seconds that one transaction may take
AT_ONCE = 500  # leases that are taken at once
SWEEP = 3600.0  # seconds between two looks for agents that nobody wants any more

log = logging.getLogger("exporter.runs.fleet")


class Fleet:
    """The leases of this process for `tenant`; `written` gets what the database holds of each agent."""

    shared = True

    def __init__(
        self, database: Database, tenant: Tenant, buckets: int, written: dict[int, tuple[int, int]]
    ) -> None:
        self.changes = 0
        self.problem = ""  # why the newest renewal failed
        self.problems = 0  # renewals that failed
        self.member = 0  # our number in the database; 0: none
        self.said: dict[int, int] = {}  # agent -> number of its last line in the log, to be noted
        self._tenant = tenant
        self._buckets = buckets
        self._written = written
        self._connection = Connection(database, "leases")
        self._watch = Watch()
        self._epochs: dict[int, int] = {}  # of what we hold, oldest lease first
        self._leaving: dict[int, int] = {}  # likewise of what is no longer shown, and to be given back
        self._wanted: Collection[int] = frozenset()
        self._entered: Collection[int] = frozenset()  # agents that are known to have a row
        self._asked = -IDLE  # when somebody last wanted agents
        self._until = 0.0  # end of our membership, on our clock
        self._renewed = 0.0
        self._ours: object = None  # how many leases the database says are ours, and the sum of their epochs
        self._swept = boot_clock()
        self._settled = threading.Event()  # nothing is left to be taken
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

    def want(self, agent_ids: Collection[int], deadline: Deadline) -> None:
        """Say which agents are in use. Who has none yet waits for its share, until the deadline."""
        news = self._wanted != agent_ids or not self.member
        self._wanted, self._asked = agent_ids, boot_clock()
        if news:
            self._wake.set()
        self._settled.wait(deadline.left() / 2)

    def holds(self, agent_id: int) -> bool:
        """Whether the agent is ours right now."""
        return agent_id in self._epochs and boot_clock() < self._until

    def epoch(self, agent_id: int) -> int | None:
        """The epoch of our lease; None when we have none."""
        return self._epochs.get(agent_id)

    def close(self) -> None:
        """Give all back, within a few seconds."""
        self._closing = True
        self._wake.set()
        self._thread.join(REQUEST)

    # --- the thread ---

    def _run(self) -> None:
        while not self._closing:
            self._tick()
            if self._wake.wait(TICK):
                self._wake.clear()
        self._end()
        self._connection.close()

    def _tick(self) -> None:
        problem, asked = "", boot_clock() - self._asked < IDLE
        try:
            if asked:
                held = self._renew()
                self._compare()
                self._give_back()
                self._share(held)
            elif self.member:
                log.info("nobody has scraped for long: this exporter leaves the fleet")
                self._end()
        except (StoreError, LedgerError) as error:
            problem = str(error)
        except Exception as error:  # whatever it is: who holds leases goes on renewing them
            problem = " ".join(f"{type(error).__name__}: {error}".split())
        if asked:
            self._settled.set()
        if problem:
            self._watch.forget()
            self.problems += 1
        if problem and not self.problem:
            log.error("the leases cannot be renewed", extra=fields(error=problem))
        elif self.problem and not problem:
            log.info("the leases can be renewed again")
        self.problem = problem

    def _renew(self) -> dict[int, int]:
        """Stay a member, or become one; returns how many agents each member has. Raises StoreError."""
        began = boot_clock()
        with self._connection.transaction(REQUEST) as cursor:
            cursor.execute(
                "UPDATE modus_member SET expires = clock_timestamp() + %s * interval '1 s', agents = %s, "
                "read_until = %s WHERE id = %s",
                [TERM, len(self._epochs), self._tenant.read_until, self.member],
            )
            if not cursor.rowcount:
                self._join(cursor)
            members = self._members(cursor)
            cursor.execute(
                "SELECT count(*), coalesce(sum(epoch), 0)::bigint FROM modus_lease WHERE owner = %s",
                [self.member],
            )
            self._ours = cursor.fetchone()
            said = self._note_said(cursor)
        for agent_id, number in said.items():
            if self.said.get(agent_id) == number:
                del self.said[agent_id]
        self._renewed, self._until = began, began + TERM - MARGIN
        return members | {self.member: len(self._epochs)}

    def _note_said(self, cursor: Cursor) -> dict[int, int]:
        """Have the next owners of agents know which lines the log has already."""
        said = dict(self.said)
        if said:
            cursor.execute(
                "UPDATE modus_lease SET said = new.said FROM unnest(%s::bigint[], %s::bigint[]) "
                "AS new (agent_id, said) WHERE modus_lease.agent_id = new.agent_id AND owner = %s",
                [list(said), list(said.values()), self.member],
            )
        return said

    def _join(self, cursor: Cursor) -> None:
        """Become a new member: what an earlier membership held is lost. Raises LedgerError."""
        self._until = 0.0
        if self.member:
            log.warning("the membership is over: others take over", extra=fields(agents=len(self._epochs)))
        self._drop(list(self._epochs))
        self._leaving.clear()
        self._settled.clear()
        self.member = 0
        if tables.buckets_of(tables.read_meta(cursor, self._connection.place)) != self._buckets:
            raise LedgerError(
                "the fleet counts in other histogram.buckets; restart this exporter with the same"
            )
        self.member = 1 + secrets.randbits(62)  # no sequence: after a failover one may give a number again
        cursor.execute(
            "INSERT INTO modus_member VALUES (%s, %s, clock_timestamp() + %s * interval '1 s', 0, 0)",
            [self.member, f"{socket.gethostname()}:{os.getpid()}", TERM],
        )

    def _members(self, cursor: Cursor) -> dict[int, int]:
        """How many agents each member has; memberships that are over are ended, which frees their leases."""
        cursor.execute("SELECT id, agents, expires FROM modus_member")
        rows = cursor.fetchall()
        dead = self._watch.dead({id_: expires for id_, _, expires in rows}, boot_clock()) - {self.member}
        cursor.execute(
            "DELETE FROM modus_member WHERE id = ANY(%s) AND expires < clock_timestamp() RETURNING id",
            [list(dead)],
        )
        gone = {id_ for (id_,) in cursor}
        return {id_: agents for id_, agents, _ in rows if id_ not in gone}

    def _share(self, held: dict[int, int]) -> None:
        """Take what is free, up to our share, and stop showing what is above it. Raises StoreError."""
        wanted = self._wanted
        share = quota(self.member, held, len(wanted))
        if beyond := surplus(self._epochs, wanted, share):
            leaving = {agent_id: self._epochs[agent_id] for agent_id in beyond}
            self._drop(beyond)
            self._leaving |= leaving  # until the next tick: an answer that shows them may be on its way
        if wanted != self._entered:
            with self._connection.transaction(REQUEST) as cursor:
                cursor.execute(
                    "INSERT INTO modus_lease (agent_id) SELECT unnest(%s::bigint[]) ON CONFLICT DO NOTHING",
                    [sorted(wanted)],
                )
            self._entered = wanted
        while (short := share - len(self._epochs)) > 0 and self._take(wanted, min(short, AT_ONCE)):
            pass
        if boot_clock() - self._swept > SWEEP:
            self._sweep(wanted)

    def _sweep(self, wanted: Collection[int]) -> None:
        """Forget agents that no member has wanted for longer than a lookback. Raises StoreError."""
        self._swept, self._entered = boot_clock(), frozenset()
        with self._connection.transaction(REQUEST) as cursor:
            cursor.execute(
                "WITH old AS (DELETE FROM modus_lease WHERE agent_id <> ALL(%s::bigint[]) "
                "AND coalesce(owner, 0) NOT IN (SELECT id FROM modus_member) "
                "AND since < clock_timestamp() - %s * interval '1 s' RETURNING agent_id), "
                "states AS (DELETE FROM modus_agent USING old WHERE modus_agent.agent_id = old.agent_id) "
                "DELETE FROM modus_counted USING old WHERE modus_counted.agent_id = old.agent_id",
                [sorted(wanted), self._tenant.lookback + KEEP],
            )

    def _take(self, wanted: Collection[int], number: int) -> bool:
        """Lease so many free agents and load them; False when there are none."""
        with self._connection.transaction(REQUEST) as cursor:
            cursor.execute(
                "WITH free AS (SELECT agent_id FROM modus_lease WHERE agent_id = ANY(%s::bigint[]) "
                "AND coalesce(owner, 0) NOT IN (SELECT id FROM modus_member) "
                "LIMIT %s FOR UPDATE SKIP LOCKED) "
                "UPDATE modus_lease SET owner = %s, epoch = epoch + 1, since = clock_timestamp() FROM free "
                "WHERE modus_lease.agent_id = free.agent_id RETURNING modus_lease.agent_id, epoch",
                [list(wanted), number, self.member],
            )
            taken = dict(cursor.fetchall())
        self._load(taken)
        return bool(taken)

    def _load(self, epochs: dict[int, int]) -> None:
        """Hand the agents over to the tenant as the database has them, then call them ours."""
        member = self.member
        with self._connection.transaction(REQUEST) as cursor:
            rows = tables.read_rows(cursor, epochs, self._buckets)
        for piece in tables.in_pieces(rows):
            if boot_clock() - self._renewed > TICK:
                self._renew()
            if self.member != member:
                raise StoreError("the membership ended before its agents were loaded")
            with self._connection.transaction(REQUEST) as cursor:
                tables.read_counted(cursor, piece)
            self._written |= {row.agent_id: row.written for row in piece if row.written}
            self._tenant.take(row.taken for row in piece)
            self._epochs |= {row.agent_id: epochs[row.agent_id] for row in piece}
            self.changes += len(piece)

    def _compare(self) -> None:
        """Where the database says otherwise what is ours, believe it: others do. Raises StoreError."""
        known = self._epochs | self._leaving
        if self._ours == (len(known), sum(known.values())):
            return
        with self._connection.transaction(REQUEST) as cursor:
            cursor.execute("SELECT agent_id, epoch FROM modus_lease WHERE owner = %s", [self.member])
            ours = dict(cursor.fetchall())
        self._drop([agent_id for agent_id, epoch in self._epochs.items() if ours.get(agent_id) != epoch])
        self._load({id_: ours[id_] for id_ in ours.keys() - self._epochs.keys() - self._leaving.keys()})

    def _drop(self, agent_ids: list[int]) -> None:
        for agent_id in agent_ids:
            del self._epochs[agent_id]
            self._written.pop(agent_id, None)
        self.changes += len(agent_ids)
        self._tenant.let_go(agent_ids)

    def _give_back(self) -> None:
        """Let others have what has not been shown since the tick before. Raises StoreError."""
        if self._leaving:
            with self._connection.transaction(REQUEST) as cursor:
                self._free(cursor, self._leaving)
            self._leaving.clear()

    def _free(self, cursor: Cursor, agent_ids: Collection[int]) -> None:
        cursor.execute(
            "UPDATE modus_lease SET owner = NULL, epoch = epoch + 1, since = clock_timestamp() "
            "WHERE owner = %s AND agent_id = ANY(%s::bigint[])",
            [self.member, list(agent_ids)],
        )

    def _end(self) -> None:
        """Give all back and leave the fleet; where the database is away, our term runs out."""
        self._until = 0.0
        held = [*self._epochs, *self._leaving]
        self._drop(list(self._epochs))
        try:
            with self._connection.transaction(REQUEST) as cursor:
                self._note_said(cursor)
                self._free(cursor, held)
                cursor.execute("DELETE FROM modus_member WHERE id = %s", [self.member])
        except StoreError as error:
            log.warning("the leases cannot be given back: they run out", extra=fields(error=str(error)))
        self._leaving.clear()
        self._settled.clear()
        self.member = 0
