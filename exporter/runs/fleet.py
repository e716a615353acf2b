"""A member of a fleet: its membership and its leases in the shared database, on a thread of their own.

A lease is a row with its owner and an epoch that grows each time it is taken. It is worth something
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
from exporter.log import described, fields
from exporter.runs import leasetable, tables
from exporter.runs.database import Connection, Cursor
from exporter.runs.forgetting import KEEP
from exporter.runs.leases import IDLE, MARGIN, TERM, TICK, Watch, boot_clock, quota, surplus
from exporter.runs.state import USAGE_ID
from exporter.runs.store import Database, LedgerError, StoreError, Tenant

REQUEST = 5.0  # seconds that one transaction may take
END = 8.0  # seconds that giving all back at the end may take: who ends us grants 15 for all
AT_ONCE = 500  # leases that are taken at once
SWEEP = 3600.0  # seconds between two looks for agents that nobody wants any more

log = logging.getLogger(__name__)


class Fleet:
    """The leases of this process for `tenant`; `written` gets what the database holds of each agent.

    Raises LedgerError when the system has no thread for it.
    """

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
        self._place = self._connection.place
        self._watch = Watch()
        self._epochs: dict[int, int] = {}  # of what we hold, oldest lease first
        self._leaving: dict[int, int] = {}  # likewise of what is no longer shown, and to be given back
        self._wanted: frozenset[int] = frozenset()
        self._entered: frozenset[int] = frozenset()  # agents that are known to have a row
        self._asked = -IDLE  # when somebody last wanted agents
        self._until = 0.0  # end of our membership, on our clock
        self._renewed = 0.0
        # how many leases the database says are ours, the sum of their epochs, and who reads the usage
        self._ours: tuple[int, int, int | None] = (0, 0, None)
        self._swept = boot_clock()
        self._doubted = False  # whether the leases are those that the database says are ours
        self._settled = threading.Event()  # nothing is left to be taken
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise LedgerError(f"the leases need a thread: {error}; allow more of them") from None

    def want(self, agent_ids: frozenset[int], deadline: Deadline) -> None:
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

    def doubt(self) -> None:
        """A write found out that a lease is not ours: it is looked up which are, also where numbers agree."""
        self._doubted = True
        self._wake.set()

    def close(self) -> None:
        """Give all back, within a few seconds. May be called again, also meanwhile."""
        first, self._closing = not self._closing, True
        self._wake.set()
        self._thread.join(END)
        if first and self._thread.is_alive():
            late = "the leases cannot be given back in time: they run out"
            log.warning(late, extra=fields(path=self._place))

    @property
    def _agents(self) -> list[int]:
        """The agents that we hold, oldest lease first: without that of the usage, which is no share."""
        return [agent_id for agent_id in self._epochs if agent_id != USAGE_ID]

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
            problem = described(error)
        if asked:
            self._settled.set()
        if problem:
            self._watch.forget()
            self._entered = frozenset()  # it may be another database by now, or an older copy
            self.problems += 1
        if problem and not self.problem:
            log.error("the leases cannot be renewed", extra=fields(path=self._place, error=problem))
        elif self.problem and not problem:
            log.info("the leases can be renewed again", extra=fields(path=self._place))
        self.problem = problem

    def _renew(self) -> dict[int, int]:
        """Stay a member, or become one; returns how many agents each member has. Raises StoreError."""
        began, said = boot_clock(), dict(self.said)
        with self._connection.transaction(REQUEST) as cursor:
            unread = max(self._tenant.clock() - self._tenant.read_until, 0.0)
            if not leasetable.renew(cursor, self.member, TERM, len(self._agents), unread):
                self._join(cursor)
            members = self._members(cursor)
            self._ours = leasetable.ours(cursor, self.member)
            later = leasetable.note_said(cursor, self.member, said)
        for agent_id, number in said.items():
            if agent_id not in later and self.said.get(agent_id) == number:
                del self.said[agent_id]
        self._renewed, self._until = began, began + TERM - MARGIN
        return members | {self.member: len(self._agents)}

    def _join(self, cursor: Cursor) -> None:
        """Become a new member: what an earlier membership held is lost. Raises LedgerError."""
        if self.member:
            log.warning("the membership is over: others take over", extra=fields(agents=len(self._epochs)))
        self._drop(list(self._epochs))
        self._leaving.clear()
        self._settled.clear()
        self.member, self._entered = 0, frozenset()
        if tables.buckets_of(tables.read_meta(cursor, self._place)) != self._buckets:
            raise LedgerError("the fleet counts in other histogram.buckets: restart this exporter with them")
        self.member = 1 + secrets.randbits(62)  # no sequence: after a failover one may give a number again
        leasetable.join(cursor, self.member, f"{socket.gethostname()}:{os.getpid()}", TERM)

    def _members(self, cursor: Cursor) -> dict[int, int]:
        """How many agents each member has; memberships that are over are ended."""
        rows = leasetable.members(cursor)
        dead = self._watch.dead({id_: expires for id_, _, expires in rows}, boot_clock()) - {self.member}
        gone = leasetable.end_dead(cursor, dead, TERM) if dead else set()
        return {id_: agents for id_, agents, _ in rows if id_ not in gone}

    def _share(self, held: dict[int, int]) -> None:
        """Take what is free, up to our share, and stop showing what is above it. Raises StoreError."""
        wanted, agents = self._wanted, self._wanted - {USAGE_ID}
        share = quota(self.member, held, len(agents))
        if beyond := surplus(self._agents, agents, share):
            leaving = {agent_id: self._epochs[agent_id] for agent_id in beyond}
            self._drop(beyond)
            self._leaving |= leaving  # until the next tick: an answer that shows them may be on its way
        if wanted != self._entered:
            with self._connection.transaction(REQUEST) as cursor:
                leasetable.enter(cursor, wanted)
            self._entered = wanted
        if USAGE_ID in wanted and self._ours[2] not in held:
            self._take({USAGE_ID}, 1)
        while (short := share - len(self._agents)) > 0 and self._take(agents, min(short, AT_ONCE)):
            pass
        if boot_clock() - self._swept > SWEEP:
            self._swept, self._entered = boot_clock(), frozenset()
            with self._connection.transaction(REQUEST) as cursor:
                leasetable.sweep(cursor, wanted, self._tenant.lookback + KEEP)

    def _take(self, agent_ids: Collection[int], number: int) -> bool:
        """Lease so many free agents and load them; False when there are none. Raises StoreError."""
        with self._connection.transaction(REQUEST) as cursor:
            taken = leasetable.take(cursor, self.member, agent_ids, number)
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
            self._epochs |= {row.agent_id: row.epoch for row in piece}
            self.changes += len(piece)

    def _compare(self) -> None:
        """Where the database says otherwise what is ours, believe it: others do. Raises StoreError."""
        known = self._epochs | self._leaving
        if self._ours[:2] == (len(known), sum(known.values())) and not self._doubted:
            return
        self._doubted = False
        with self._connection.transaction(REQUEST) as cursor:
            ours = leasetable.held(cursor, self.member)
        self._entered = frozenset()  # the rows may be gone
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
                kept = leasetable.free(cursor, self.member, self._leaving)
            self._leaving = {agent_id: self._leaving[agent_id] for agent_id in kept}

    def _end(self) -> None:
        """Give all back and leave the fleet; where the database is away, our term runs out."""
        held = [*self._epochs, *self._leaving]
        self._drop(list(self._epochs))
        try:
            with self._connection.transaction(REQUEST) as cursor:
                leasetable.note_said(cursor, self.member, dict(self.said))
                leasetable.free(cursor, self.member, held)
                leasetable.leave(cursor, self.member)
        except StoreError as error:
            why = fields(path=self._place, error=str(error))
            log.warning("the leases cannot be given back: they run out", extra=why)
        self._leaving.clear()
        self._settled.clear()
        self.member = 0
