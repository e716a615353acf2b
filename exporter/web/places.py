"""The places that connections take, and who gives way when there are too many.

A client address that holds the most gives way first, so that none can take all; within it, who has waited
longest.
"""

import asyncio
import resource
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from exporter.web.connection import Connection

MAX_CONNECTIONS = 256  # at most; a quarter of the descriptors that the system allows if that is less
MAX_UNREAD = 8  # different answers that wait for slow readers; those who read the same one share its memory


def most_connections() -> int:
    """How many connections may be open: the other descriptors are for the API, the state and the rest."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if allowed < 0 else min(MAX_CONNECTIONS, max(1, allowed // 4))


class Places:
    """The open connections."""

    def __init__(self) -> None:
        self._tasks: dict[Connection, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Connection]:
        """Those that are open now."""
        return iter(list(self._tasks))

    def take(self, connection: Connection) -> None:
        """Start it; its place is free again when it ends."""
        task = self._tasks[connection] = connection.start()
        task.add_done_callback(lambda _: self._tasks.pop(connection, None))

    def make_room(self) -> bool:
        """Whether there is a place, after dropping a connection if that is needed and possible."""
        return len(self._tasks) < most_connections() or self.drop_one()

    def drop_one(self) -> bool:
        """Drop a connection that waits for its client; whether there was one."""
        return self._drop(connection for connection in self if not connection.answering)

    def bound_unread(self) -> None:
        """Drop slow readers until no more than MAX_UNREAD different answers wait."""
        while len({id(connection.unread) for connection in self if connection.unread}) > MAX_UNREAD:
            self._drop((c for c in self if c.unread), lambda c: id(c.unread))

    async def ended(self, seconds: float) -> None:
        """Wait until all have ended; those who have not after `seconds` are dropped."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=seconds)
        for connection in self:
            connection.drop()
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    def _drop(
        self, candidates: Iterable[Connection], held: Callable[[Connection], object] = lambda c: c
    ) -> bool:
        """Drop the oldest of the client that holds the most different things."""
        found = list(candidates)
        if not found:
            return False
        holds = Counter(client for client, _ in {(c.client, held(c)) for c in found})
        victim = max(found, key=lambda c: (holds[c.client], -c.since))
        victim.drop()
        self._tasks.pop(victim)
        return True
