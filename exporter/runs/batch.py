"""What one commit takes from the accounts, and gives back when it fails."""

import threading
from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from exporter.runs.account import Account
from exporter.runs.runlog import Outbox
from exporter.runs.store import Change
from exporter.runs.usage import UsageAccount

AnyAccount = Account | UsageAccount


class Batch:
    """Changes of these accounts, and agents to be `removed`; `lock` guards the accounts.

    The lines that they have for the log go to the `outbox`.
    """

    def __init__(
        self,
        accounts: Collection[AnyAccount],
        removed: Collection[int],
        outbox: Outbox,
        lock: threading.Lock,
    ) -> None:
        self.accounts = accounts
        self.removed = removed
        self._outbox = outbox
        self._lock = lock
        # ids that are new, ids that are gone, what may be shown then
        self._taken: list[tuple[AnyAccount, list[str], list[str], Any]] = []

    def changes(self) -> Iterator[Change]:
        """What to write, an agent at a time as it is then."""
        for agent_id in self.removed:
            yield Change(agent_id, 0, None, [], [])
        for account in self.accounts:
            with self._lock:
                counted = account.counted
                self._outbox.take(account.agent_id, account.unsaid)
                new = [(id_, counted[id_]) for id_ in account.new if id_ in counted]
                state = msgspec.json.encode(account.state)
                change = Change(account.agent_id, account.epoch, state, new, account.gone)
                self._taken.append((account, account.new, account.gone, account.keep()))
                account.changed, account.new, account.gone = False, [], []
            yield change

    def give_back(self) -> None:
        """It was not written, or nobody knows: it is written again."""
        with self._lock:
            for account, new, gone, _ in self._taken:
                self._outbox.forget(account.agent_id)
                account.changed, account.new, account.gone = True, new + account.new, gone + account.gone

    def show(self) -> None:
        """It is durable: from now on it may be shown."""
        with self._lock:
            for account, _, _, totals in self._taken:
                account.shown = totals
