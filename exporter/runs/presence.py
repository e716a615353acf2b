"""Since when agents are in use here, or no longer: their accounts leave memory and file a while later."""

from collections.abc import Container, Iterable, Mapping

from exporter.modus.discovery import shard_of
from exporter.runs.account import Account


def remove_gone(
    accounts: dict[int, Account], in_use: Container[int], now: float, patience: float
) -> set[int]:
    """Note which agents are not in use, and remove those that have not been for `patience` seconds.

    `now` is of our clock. Returns the ids of those that were removed.
    """
    gone = set()
    for agent_id in [agent_id for agent_id in accounts if agent_id not in in_use]:
        account = accounts[agent_id]
        account.mark_unread()
        since = account.state.unused_since
        if since is None:
            account.state.unused_since, account.changed = now, True
        elif since < now - patience:
            del accounts[agent_id]
            gone.add(agent_id)
    return gone


def go_on(accounts: Iterable[Account], written: float, now: float) -> None:
    """Go on after a downtime since `written`, in which nobody could see whether an agent is in use."""
    for account in accounts:
        state = account.state
        if not state.unread:  # a reading in which nothing happened is not written
            state.last_read = max(state.last_read or 0.0, written)
        if state.unused_since is not None:
            state.unused_since += max(now - written, 0.0)
            account.changed = True


def note_moved(accounts: Mapping[int, Account], before: tuple[int, int], started: float) -> None:
    """Note which agents were not of the shard `before` (index, total): another one counted them until now."""
    index, total = before
    for agent_id, account in accounts.items():
        if shard_of(agent_id, total) != index:
            account.state.ended_after = started
            account.moved = account.changed = True
