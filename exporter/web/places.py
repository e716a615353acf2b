"""The places that connections take, and who gives way when there are too many.

A client address that holds the most gives way first, so that none can take all; within it, who takes his
answer slowest, then who has waited longest.
"""

import asyncio
import resource
from collections import Counter
from collections.abc import Callable, Iterator

from exporter.web.connection import Connection

MAX_CONNECTIONS = 256  # at most; a quarter of the descriptors that the system allows if that is less
MAX_UNREAD = 8  # different answers that wait for slow readers; those who read the same one share its memory
TAKING_SECONDS = 1.0  # that every reader has, before he gives way to another


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
        waiting = [connection for connection in self if not connection.answering]
        if waiting:
            self._drop(_first_to_go(waiting, id))
        return bool(waiting)

    async def room_for_an_answer(self) -> None:
        """Wait until fewer than MAX_UNREAD different answers are being taken; slow readers have to go."""
        while len({id(connection.unread) for connection in self if connection.unread}) >= MAX_UNREAD:
            victim = _first_to_go([c for c in self if c.unread], lambda c: id(c.unread))
            if victim.since + TAKING_SECONDS < asyncio.get_running_loop().time():
                self._drop(victim)
            else:
                await asyncio.sleep(0.02)

    async def ended(self, seconds: float) -> None:
        """Wait until all have ended; those who have not after `seconds` are dropped."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=seconds)
        for connection in self:
            connection.drop()
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    def _drop(self, victim: Connection) -> None:
        victim.drop()
        self._tasks.pop(victim)


def _first_to_go(candidates: list[Connection], held: Callable[[Connection], int]) -> Connection:
    """Of the client that holds the most different things: who takes his answer slowest, then the oldest."""
    holds = Counter(client for client, _ in {(c.client, held(c)) for c in candidates})
    return max(candidates, key=lambda c: (holds[c.client], -c.pace(), -c.since))
