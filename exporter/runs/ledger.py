"""Every ended run counted once: the accounts of all agents, and the store that keeps them.

Memory holds the whole state. `commit` makes it durable, piece by piece, each with whole agents; a scrape
shows what is durable, but while the disk fails counting goes on in memory. What is written is the state,
never a difference, so a commit that failed, or of which nobody knows whether it failed, is written again.
"""

import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy

from msgspec.structs import replace

from exporter.histogram import Histogram
from exporter.log import fields
from exporter.runs.account import Account
from exporter.runs.batch import AnyAccount, Batch
from exporter.runs.forgetting import KEEP
from exporter.runs.ids import CountedIds
from exporter.runs.presence import go_on, note_moved, remove_gone
from exporter.runs.reader import Known, Reading
from exporter.runs.runlog import Outbox, RunLog
from exporter.runs.state import SCHEMA_VERSION, USAGE_ID, AgentState, Meta, Totals, UsageState
from exporter.runs.store import Alone, Leases, LedgerError, Place, Store, StoreError, Taken, open_store
from exporter.runs.usage import UsageAccount

PIECE = 20_000  # ids, or the like of them, that are committed at once
AGENT_WEIGHT = 20  # what an agent's own row costs, in ids

log = logging.getLogger(__name__)


class Ledger:
    """The accounts of all agents, kept in the store at `place`, or in memory when that is None.

    `bounds` are the upper bounds of the histogram's buckets, `lookback` is how much of an agent's past
    counts at its first sight, both in seconds. Without a file, and for agents that come to this `shard`
    (index, total) of several, only runs that end from now on are counted: the others may have been
    counted before. Safe to share between threads. Raises LedgerError when the file is of another program,
    of a newer version, in use, or made with other bounds and not `reset_histogram`.
    """

    def __init__(
        self,
        place: Place | None,
        bounds: Sequence[float],
        *,
        lookback: float,
        shard: tuple[int, int] = (0, 1),
        reset_histogram: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.bounds = tuple(map(float, bounds))
        self.lookback = lookback
        self.reconciles = False  # whether the lists are compared with what was counted; may change like these
        self.up = True
        self.run_log = RunLog()  # may be changed at any time
        self._said = Outbox()
        self._accounts: dict[int, Account] = {}
        self._usage = UsageAccount(UsageState(clock()), only_new=place is None)
        self._lines: dict[str, int] = {}  # of the log in this scrape, by message
        self._removed: set[int] = set()  # agents whose rows are to be deleted
        self._lock = threading.Lock()  # guards the accounts; held for one agent's work
        self._committing = threading.Lock()
        self.clock = clock
        self._shard = shard
        self._started = clock()
        self._only_new = place is None or shard[1] > 1
        self._store = open_store(place, clock) if place is not None else None
        self.place = self._store.place if self._store else None  # to be shown; None: in memory
        self.read_until = 0.0  # all was read up to then, and is durable
        self.leases: Leases = Alone()
        if self._store:
            try:
                self._load(self._store, reset_histogram)
                self.leases = self._store.lease_for(self)
            except LedgerError:
                self._store.close()
                raise

    def known(self, agent_id: int) -> Known:
        """What a reading of the agent starts from."""
        with self._lock:
            account = self._accounts.get(agent_id)
            return replace(account.known() if account else Known(), epoch=self.leases.epoch(agent_id))

    def record(self, agent_id: int, reading: Reading) -> bool:
        """Count what was read, also when an error cut it short; returns whether there is something to commit.

        What was read of an agent whose lease ended meanwhile is thrown away: its next owner reads it.
        """
        with self._lock:
            epoch = self.leases.epoch(agent_id)
            if epoch is None or epoch != reading.memory.epoch:
                return False
            account = self._accounts.get(agent_id)
            if account and account.state.unused_since is not None:
                account.state.unused_since, account.changed = None, True
            if not reading.now:  # the API did not answer
                if account:
                    account.mark_unread()
                return account is not None
            ended_after = self._started + reading.skew if self._only_new else None
            if account is None:
                account = Account.open(agent_id, reading.now, self.lookback, ended_after, self.bounds)
                account.epoch, self._accounts[agent_id] = epoch, account
            if account.moved:
                account.moved, account.changed = False, True
                account.state.ended_after = self._started + reading.skew
            account.run_log = self.run_log
            given = self.bounds, self.lookback, self.clock, self._lines
            account.record(reading, *given, reconciles=self.reconciles)
            return account.changed

    def shown(self, agent_id: int) -> tuple[AgentState, Totals | None] | None:
        """The agent's state, and its totals as of the last durable commit, with new series at 0.

        Neither may be changed. There are no totals until all of the first sight has been read:
        the first sample is the whole base.
        """
        with self._lock:
            account = self._accounts.get(agent_id)
            if account is None:
                return None
            account.keep()  # what is counted from now on is counted in a copy of the totals
            state = copy(account.state)
            state.open = dict(state.open)
            if account.shown is None:
                return state, None
            if account.shown.unshown:
                account.told |= account.shown.unshown
            return state, account.shown.born_at_zero()

    def take(self, agents: Iterable[Taken]) -> None:
        """Count and show these agents from now on."""
        with self._lock:
            for agent_id, state, counted, same_buckets, marked, epoch in agents:
                if isinstance(state, AgentState):
                    account = self._accounts[agent_id] = Account(agent_id, state, counted, epoch)
                    if not same_buckets:
                        account.own().durations = Histogram.empty(self.bounds, self.clock(), exemplars=True)
                        account.shown = account.keep()
                    # before version 0.2.0 there were no native ones
                    account.state.totals.durations.complete_native(self.bounds)
                    self._said.take_up(agent_id, account.unsaid, marked)
                elif agent_id == USAGE_ID:
                    self._usage = UsageAccount(state or UsageState(self.clock()), epoch, only_new=False)

    def let_go(self, agent_ids: Iterable[int]) -> None:
        """Forget agents whose leases are over; what is not durable is counted by who has them next."""
        with self._lock:
            for agent_id in agent_ids:
                self._accounts.pop(agent_id, None)
                if agent_id == USAGE_ID:
                    self._usage = UsageAccount(UsageState(self.clock()), only_new=False)

    @contextmanager
    def usage(self, account: UsageAccount | None = None) -> Iterator[UsageAccount]:
        """The account of what was used, or this one of before, for this thread alone and for a short time."""
        with self._lock:
            yield account or self._usage

    def agents(self) -> dict[int, AgentState]:
        """The states of all agents that the ledger knows, to look at."""
        with self._lock:
            return {agent_id: account.state for agent_id, account in self._accounts.items()}

    def mark_shown(self) -> None:
        """Note that a scrape has shown all there is: from the next commit on new series have their values."""
        with self._lock:
            for account in self._accounts.values():
                if account.told:
                    if account.told & account.state.totals.unshown:
                        account.own().unshown -= account.told
                    account.told = frozenset()
            self._usage.mark_shown()

    def end_scrape(self, in_use: Container[int] | None) -> None:
        """A scrape is over: let go of agents that have not been in use for a lookback; None: nobody knows."""
        patience = self.lookback + KEEP
        with self._lock:
            self._lines.clear()
            if in_use is not None and not self.leases.shared:  # else what is not in use is given back
                self._removed |= remove_gone(self._accounts, in_use, self.clock(), patience)

    def commit(self) -> None:
        """Make the state durable; on failure `up` is False, and the next call tries again."""
        while self.commit_piece():
            pass

    def commit_piece(self) -> bool:
        """Make a piece of the state durable; False when there is no more to be written, or it failed."""
        with self._committing:
            more, error = False, ""
            try:
                more = bool(self._store and self._write(self._store))
            except StoreError as failure:
                error = str(failure)
            self._tell(error)
            with self._lock:
                # in memory is all there is, but where another exporter may have to go on from what is durable
                alone = not self.leases.shared and (not self._store or not self.up)
                for account in self._all() if alone else ():
                    account.shown = account.keep()
                    if not self._store:
                        account.changed, account.new, account.gone = False, [], []
                        self._said.take(account.agent_id, account.unsaid)
            self._said.say(self._store)
        return more

    def close(self) -> None:
        """Commit what is not yet durable and let go of the file, which a later commit leaves alone."""
        self.commit()
        self.leases.close()
        with self._committing:
            store, self._store = self._store, None
        if store:
            store.close()

    def _tell(self, error: str) -> None:
        """Say when the state can no longer be written, and when it can again."""
        if bool(error) == self.up and self._store:
            self.up = not error
            if error:
                message = "the state cannot be written: counting goes on in memory"
                log.error(message, extra=fields(path=self.place, error=error))
            else:
                log.info("the state can be written again", extra=fields(path=self.place))

    def _meta(self) -> Meta:
        return Meta(self.bounds, self.clock(), self._shard, SCHEMA_VERSION)

    def _write(self, store: Store) -> bool:
        """Write what is not yet written, or a piece of it; False when nothing is left to be written."""
        meta = self._meta()
        stale = store.open_again(self._agent_ids)
        with self._lock:
            if stale is None:
                accounts = list(self._some_changed())
            else:  # the store does not hold what was written last; agents may have come and gone meanwhile
                ids = frozenset(stale)
                accounts = [account for account in self._all() if account.agent_id in ids]
                for account in accounts:
                    account.changed, account.new, account.gone = True, list(account.counted), []
            removed, self._removed = self._removed, set()
        if not accounts and not removed and stale is None:
            self.read_until = meta.written
            return False
        batch = Batch(accounts, removed, self._said, self._lock)
        try:
            store.write(meta, batch.changes(), anew=stale is not None)
        except BaseException:
            with self._lock:
                self._removed |= removed
            batch.give_back()
            raise
        batch.show()
        return True

    def _agent_ids(self) -> set[int]:
        with self._lock:
            return {account.agent_id for account in self._all()}

    def _all(self, *, changed: bool = False) -> Iterator[AnyAccount]:
        """The accounts that this exporter still has the leases of; or those of them that have `changed`."""
        usage = (self._usage,) if self._usage.state.read_until else ()  # else there was no report so far
        for account in (*usage, *self._accounts.values()):
            if changed and not account.changed:
                continue
            if account.epoch == self.leases.epoch(account.agent_id):  # else it was given back meanwhile
                yield account

    def _some_changed(self) -> Iterator[AnyAccount]:
        most = PIECE
        for account in self._all(changed=True):
            most -= AGENT_WEIGHT + len(account.new) + len(account.gone)
            yield account
            if most <= 0:
                return

    def _load(self, store: Store, reset_histogram: bool) -> None:
        found = store.load(self._meta(), reset_histogram=reset_histogram)
        same_buckets = found.meta.bounds == self.bounds
        if not same_buckets and not reset_histogram:
            raise LedgerError(
                f"{store.place}: the histogram was counted in other buckets; put the old "
                "histogram.buckets back, or start once with --state.reset-histogram to count it anew"
            )
        states = found.agents | ({USAGE_ID: found.usage} if found.usage else {})
        counted, marked = found.counted | {USAGE_ID: CountedIds()}, store.marked
        self.take(Taken(id_, state, counted[id_], same_buckets, marked) for id_, state in states.items())
        go_on(self._accounts.values(), found.meta.written, self._started)
        if found.meta.shard != self._shard:
            note_moved(self._accounts, found.meta.shard, self._started)
        self._said.say(store)
