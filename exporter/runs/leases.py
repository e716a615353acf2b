"""Who reads which agents, of several exporters with shared state: decisions only, without a network.

Every member of the fleet decides for itself, from what the database says of all. Nothing here must agree
for runs to be counted once: the database gives each lease to one member. It only makes shares even.
"""

import time
from collections.abc import Collection, Hashable, Mapping

TERM = 10.0  # seconds that a membership lasts without being renewed
TICK = 2.0  # seconds between two renewals
MARGIN = 2.0  # seconds before its end from which nothing is shown: an answer takes time, and clocks drift
IDLE = 300.0  # seconds without a scrape after which a member leaves: nobody sees what it reads
BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_clock() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the machine sleeps where one does."""
    return time.clock_gettime(BOOT)


def quota(me: int, held: Mapping[int, int], agents: int) -> int:
    """How many of the agents a member should hold; `held` says how many each member has.

    All get the same, and of those left over one each the members that have most: so few agents move.
    """
    share, left = divmod(agents, len(held))
    first = sorted(held, key=lambda member: (-held[member], member))[:left]
    return share + (me in first)


def surplus(held: Collection[int], wanted: Collection[int], share: int) -> list[int]:
    """What a member gives back: agents that are not in use, and those above its share, newest leases first.

    `held` is in the order of the leases.
    """
    kept = [agent_id for agent_id in held if agent_id in wanted]
    return [agent_id for agent_id in held if agent_id not in wanted] + kept[share:]


class Watch:
    """Notices members that no longer renew: seen without a change for a whole term.

    The database's clock must say so too. A watch of our own keeps a clock that jumps, and an outage in which
    nobody could renew, from costing everybody's leases at once. Instants are of one clock that nobody sets.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Hashable, float]] = {}

    def dead(self, renewals: Mapping[int, Hashable], now: float) -> set[int]:
        """The members that seem dead; `renewals` is what changes with each renewal, by member."""
        seen = {member: self._seen.get(member) for member in renewals}
        self._seen = {
            member: before if before and before[0] == renewals[member] else (renewals[member], now)
            for member, before in seen.items()
        }
        return {member for member, (_, since) in self._seen.items() if now - since >= TERM}

    def forget(self) -> None:
        """Begin anew: the database was not to be seen, perhaps for others neither."""
        self._seen.clear()
