"""Every ended run counted once: the accounts of all agents, and the store that keeps them.

Memory holds the whole state. `commit` makes it durable, piece by piece, each with whole agents; a scrape
shows what is durable, but while the disk fails counting goes on in memory. What is written is the state,
never a difference, so a commit that failed, or of which nobody knows whether it failed, is written again.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import msgspec

from exporter.histogram import Histogram
from exporter.log import fields
from exporter.modus.discovery import shard_of
from exporter.runs.account import KEEP, Account
from exporter.runs.reader import Known, Reading
from exporter.runs.runlog import Outbox, RunLog
from exporter.runs.schema import Change, LedgerError
from exporter.runs.state import SCHEMA_VERSION, AgentState, Meta, Totals, UsageState
from exporter.runs.store import StateFile, StoreError
from exporter.runs.usage import UsageAccount

PIECE = 20_000  # ids, or the like of them, that are committed at once
AGENT_WEIGHT = 20  # what an agent's own row costs, in ids

log = logging.getLogger("exporter.runs.ledger")
_Taken = tuple[
    Account | UsageAccount, list[str], list[str], Any
]  # what is on its way to the store: new ids, gone ids


class Ledger:
    """The accounts of all agents, kept in the SQLite file `path`, or in memory when that is None.

    `bounds` are the upper bounds of the histogram's buckets, `lookback` is how much of an agent's past
    counts at its first sight, both in seconds. Without a file, and for agents that come to this `shard`
    (index, total) of several, only runs that end from now on are counted: the others may have been
    counted before. Safe to share between threads. Raises LedgerError when the file is of another program,
    of a newer version, in use, or made with other bounds and not `reset_histogram`.
    """

    def __init__(
        self,
        path: str | None,
        bounds: Sequence[float],
        *,
        lookback: float,
        shard: tuple[int, int] = (0, 1),
        reset_histogram: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.bounds = tuple(map(float, bounds))
        self.lookback = lookback
        self.up = True
        self.run_log = RunLog()  # may be changed at any time
        self._said = Outbox()
        self._accounts: dict[int, Account] = {}
        self._usage = UsageAccount(UsageState(clock()), only_new=path is None)
        self._lines: dict[str, int] = {}  # of the log in this scrape, by message
        self._removed: set[int] = set()  # agents whose rows are to be deleted
        self._lock = threading.Lock()  # guards the accounts; held for one agent's work
        self._committing = threading.Lock()
        self.clock = clock
        self._shard = shard
        self._started = clock()
        self._only_new = path is None or shard[1] > 1
        self._store = StateFile(path, clock) if path is not None else None
        if self._store:
            try:
                self._load(self._store, reset_histogram)
            except LedgerError:
                self._store.close()
                raise

    def known(self, agent_id: int) -> Known:
        """What a reading of the agent starts from."""
        with self._lock:
            account = self._accounts.get(agent_id)
            return account.known() if account else Known()

    def record(self, agent_id: int, reading: Reading) -> None:
        """Count what a reading found, also when an error cut it short; nothing is durable before `commit`."""
        with self._lock:
            account = self._accounts.get(agent_id)
            if not reading.now:  # the API did not answer
                if account:
                    account.mark_unread()
                return
            ended_after = self._started + reading.skew if self._only_new else None
            if account is None:
                account = Account.open(agent_id, reading.now, self.lookback, ended_after, self.bounds)
                self._accounts[agent_id] = account
            if account.moved:
                account.moved, account.changed = False, True
                account.state.ended_after = self._started + reading.skew
            account.run_log = self.run_log
            account.record(reading, self.bounds, self.lookback, self.clock, self._lines)

    def shown(self, agent_id: int) -> tuple[AgentState, Totals | None] | None:
        """The agent's state, and its totals as of the last durable commit, with new series at 0.

        Neither may be changed. There are no totals until all of the first sight has been read:
        the first sample is the whole base.
        """
        with self._lock:
            account = self._accounts.get(agent_id)
            if account is None:
                return None
            state = copy(account.state)
            state.open = dict(state.open)
            if account.shown is None:
                return state, None
            account.told |= account.shown.unshown
            return state, _born_at_zero(account.shown)

    @contextmanager
    def usage(self) -> Iterator[UsageAccount]:
        """The account of what was used, for this thread alone and for a short time."""
        with self._lock:
            yield self._usage

    def agents(self) -> dict[int, AgentState]:
        """The states of all agents that the ledger knows, to look at."""
        with self._lock:
            return {agent_id: account.state for agent_id, account in self._accounts.items()}

    def mark_shown(self) -> None:
        """Note that a scrape has shown all there is: from the next commit on new series have their values."""
        with self._lock:
            for account in self._accounts.values():
                if account.told & account.state.totals.unshown:
                    account.own().unshown -= account.told
                account.told = set()
            self._usage.mark_shown()

    def end_scrape(self, in_use: Container[int]) -> None:
        """A scrape is over: let go of agents that are not in use, a lookback after they were read last."""
        oldest = self.clock() - self.lookback - KEEP
        with self._lock:
            self._lines.clear()
            for agent_id in [agent_id for agent_id in self._accounts if agent_id not in in_use]:
                self._accounts[agent_id].mark_unread()
                if (self._accounts[agent_id].state.last_read or 0.0) < oldest:
                    del self._accounts[agent_id]
                    self._removed.add(agent_id)

    def commit(self) -> None:
        """Make the state durable; on failure `up` is False, and the next call tries again."""
        while self.commit_piece():
            pass

    def commit_piece(self) -> bool:
        """Make a piece of the state durable; False when there is no more to be written, or it failed."""
        with self._committing:
            try:
                more = bool(self._store and self._write(self._store))
            except StoreError as error:
                more = False
                self._tell(up=False, error=str(error))
            else:
                self._tell(up=True)
            with self._lock:
                for account in self._all() if not self._store or not self.up else ():
                    account.shown = account.keep()  # what is counted in memory is all there is
                    if not self._store:
                        account.changed, account.new, account.gone = False, [], []
                        self._said.take(account)
            self._said.say(self._store)
        return more

    def close(self) -> None:
        """Commit what is not yet durable and let go of the file, which a later commit leaves alone."""
        self.commit()
        with self._committing:
            store, self._store = self._store, None
        if store:
            store.close()

    def _tell(self, *, up: bool, error: str = "") -> None:
        if up != self.up and self._store:
            self.up = up
            path = self._store.path
            if up:
                log.info("the state can be written again", extra=fields(path=path))
            else:
                message = "the state cannot be written: counting goes on in memory"
                log.error(message, extra=fields(path=path, error=error))

    def _meta(self) -> Meta:
        return Meta(self.bounds, self.clock(), self._shard, SCHEMA_VERSION)

    def _write(self, store: StateFile) -> bool:
        meta = self._meta()
        if store.open_again():  # the file does not hold what was written last
            with self._lock:
                for account in self._all():
                    account.changed, account.new, account.gone = True, list(account.counted), []
            return self._write_piece(store, meta, math.inf, anew=True)
        return self._write_piece(store, meta, PIECE, anew=False)

    def _write_piece(self, store: StateFile, meta: Meta, most: float, *, anew: bool) -> bool:
        """Write some agents in one transaction; False when nothing is left to be written."""
        with self._lock:
            accounts = list(self._some_changed(most))
            removed, self._removed = self._removed, set()
        if not accounts and not removed and not anew:
            return False
        taken: list[_Taken] = []
        try:
            store.write(meta, self._changes(accounts, removed, taken), anew=anew)
        except BaseException:
            with self._lock:
                self._removed |= removed
                self._said.forget()
                for account, new, gone, _ in taken:
                    account.changed, account.new, account.gone = True, new + account.new, gone + account.gone
            raise
        with self._lock:
            for account, _, _, totals in taken:
                account.shown = totals
        self._said.say(store)
        return True

    def _all(self) -> "Iterator[Account | UsageAccount]":
        if self._usage.state.read_until:  # else there was no report so far
            yield self._usage
        yield from self._accounts.values()

    def _some_changed(self, most: float) -> "Iterator[Account | UsageAccount]":
        for account in self._all():
            if account.changed and most > 0:
                most -= _weight(account)
                yield account

    def _changes(
        self, accounts: "Iterable[Account | UsageAccount]", removed: Iterable[int], taken: "list[_Taken]"
    ) -> Iterator[Change]:
        """What to write, an agent at a time as it is then; `taken` gets what is now on its way."""
        for agent_id in removed:
            yield Change(agent_id, None, [], [])
        for account in accounts:
            with self._lock:
                counted = account.counted
                self._said.take(account)
                new = [(id_, counted[id_]) for id_ in account.new if id_ in counted]
                change = Change(account.agent_id, msgspec.json.encode(account.state), new, account.gone)
                taken.append((account, account.new, account.gone, account.keep()))
                account.changed, account.new, account.gone = False, [], []
            yield change

    def _load(self, store: StateFile, reset_histogram: bool) -> None:
        found = store.load(self._meta())
        if found.usage:
            self._usage = UsageAccount(found.usage, only_new=False)
        for agent_id, state in found.agents.items():
            account = self._accounts[agent_id] = Account(agent_id, state, found.counted.get(agent_id, {}))
            self._said.take_up(account, store.marked)
            index, total = found.meta.shard
            if (index, total) != self._shard and shard_of(agent_id, total) != index:
                state.ended_after = self._started  # another shard counted it in the meantime
                account.moved = account.changed = True
        if found.meta.bounds != self.bounds:
            if not reset_histogram:
                raise LedgerError(
                    f"{store.path}: the histogram was counted in other buckets; put the old "
                    "histogram.buckets back, or start once with --state.reset-histogram to count it anew"
                )
            for account in self._accounts.values():
                account.own().durations = Histogram.empty(self.bounds, self.clock(), exemplars=True)
                account.shown = account.keep()
        for state in found.agents.values():  # before version 0.2.0 there were no native ones
            state.totals.durations.complete_native(self.bounds)
        self._said.say(store)


def _weight(account: "Account | UsageAccount") -> int:
    return AGENT_WEIGHT + len(account.new) + len(account.gone)


def _born_at_zero(totals: Totals) -> Totals:
    """The totals with the series that no scrape has shown yet at 0."""
    if not totals.unshown:
        return totals
    totals = copy(totals)
    totals.newest = {
        status: {trigger: run for trigger, run in known.items() if (status, trigger) not in totals.unshown}
        for status, known in totals.newest.items()
    }
    totals.finished = {
        status: {trigger: 0 if (status, trigger) in totals.unshown else n for trigger, n in known.items()}
        for status, known in totals.finished.items()
    }
    return totals
