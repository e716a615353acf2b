"""Scrapes for all who ask: many may wait for the API at once, few are turned into text at once.

Each caller has a scrape of its own, with its own timeout, but for a crowd: while MAX_ALIKE scrapes of a kind
(timeout, format, compression) are under way, all who ask for another within JOIN_SECONDS share the next one
and its bytes. So a crowd of equal scrapers cannot take all places, and neither can one client address: it
gets half of them at most. Who finds no place is told to come back (503). Scrapes that turn out to be the
same, as those of two servers that ask at once, share the text and its compression, whatever their timeouts.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass, field

from exporter.waits import Waits
from exporter.web.executor import BoundedExecutor
from exporter.web.messages import too_busy, too_late
from exporter.web.negotiation import Format

Exposition = tuple[Hashable, Iterable[bytes]]  # a key, equal for scrapes that are the same, and the pieces
ReadScrape = Callable[[float, Format], Waits[Exposition]]  # of a timeout in seconds

MAX_SCRAPES = 32  # under way at once; as many more wait for a place
MAX_ALIKE = 4  # of the same kind
MAX_WRITING = 2  # being turned into text at once: this is what takes memory
JOIN_SECONDS = 1.0


@dataclass(frozen=True)
class Kind:
    """What a caller asks for."""

    timeout: float | None  # seconds; None: the default
    form: Format
    zipped: bool


@dataclass(eq=False)
class _Flight:
    """A scrape for those who share it."""

    kind: Kind
    client: str
    asked: float  # when its first caller came
    body: "asyncio.Future[bytes]"
    callers: int = 0
    task: "asyncio.Task[None] | None" = field(default=None)


class Scrapes:
    """Scrapes that wait for the API hold no thread; what they found is turned into text in a few."""

    def __init__(
        self, scrape: ReadScrape, default_timeout: Callable[[], float], room: Callable[[], Awaitable[None]]
    ) -> None:
        self._scrape = scrape
        self._default_timeout = default_timeout  # seconds
        self._room = room  # waits until the memory for one more text may be taken
        self._writers = asyncio.Semaphore(MAX_WRITING)
        self._steps = BoundedExecutor("scrape", 1, waiting=MAX_SCRAPES)
        self._writing = BoundedExecutor("write", MAX_WRITING, waiting=MAX_SCRAPES)
        self._under_way: list[_Flight] = []
        self._waiting: list[_Flight] = []
        self._texts: dict[Hashable, asyncio.Future[bytes]] = {}  # what is being written, by scrape and kind

    async def body(self, kind: Kind, client: str) -> bytes:
        """The exposition that `client` asks for, or what `scrape` raises.

        HTTPError (503) if too many ask, or if no time is left.
        """
        flight = self._join(kind, client) or self._depart(kind, client)
        flight.callers += 1
        try:
            return await asyncio.shield(flight.body)
        finally:
            flight.callers -= 1
            if not flight.callers and flight in self._waiting:
                self._waiting.remove(flight)

    def _join(self, kind: Kind, client: str) -> _Flight | None:
        since = asyncio.get_running_loop().time() - JOIN_SECONDS
        return next((f for f in self._waiting if f.kind == kind and f.asked > since), None)

    def _depart(self, kind: Kind, client: str) -> _Flight:
        loop = asyncio.get_running_loop()
        flight = _Flight(kind, client, loop.time(), loop.create_future())
        if not self._starts(flight):
            mine = sum(other.client == client for other in self._waiting)
            if mine >= MAX_SCRAPES // 2 or len(self._waiting) >= MAX_SCRAPES:
                raise too_busy()
            self._waiting.append(flight)
        return flight

    def _starts(self, flight: _Flight) -> bool:
        alike = sum(other.kind == flight.kind for other in self._under_way)
        mine = sum(other.client == flight.client for other in self._under_way)
        if len(self._under_way) >= MAX_SCRAPES or alike >= MAX_ALIKE or mine >= MAX_SCRAPES // 2:
            return False
        self._under_way.append(flight)
        flight.task = asyncio.ensure_future(self._fly(flight))
        return True

    async def _fly(self, flight: _Flight) -> None:
        try:
            flight.body.set_result(await self._exposition(flight))
        except Exception as exc:
            flight.body.set_exception(exc)
            flight.body.exception()  # seen, also when all its callers have left
        finally:
            self._under_way.remove(flight)
            self._waiting = [other for other in self._waiting if not self._starts(other)]

    async def _exposition(self, flight: _Flight) -> bytes:
        kind, now = flight.kind, asyncio.get_running_loop().time

        def read() -> Waits[Exposition]:
            allowed = self._default_timeout() if kind.timeout is None else kind.timeout
            if (timeout := allowed - (now() - flight.asked)) <= 0:
                raise too_late()
            return (yield from self._scrape(timeout, kind.form))

        key, pieces = await self._steps.run_waits(read())
        same = key, kind.form, kind.zipped
        if same not in self._texts:
            self._texts[same] = asyncio.ensure_future(self._write(pieces, kind.zipped))
            self._texts[same].add_done_callback(lambda _: self._texts.pop(same))
        return await asyncio.shield(self._texts[same])

    async def _write(self, pieces: Iterable[bytes], zipped: bool) -> bytes:
        async with self._writers:
            await self._room()
            return await self._writing.run(lambda: _written(pieces, zipped))


def _written(pieces: Iterable[bytes], zipped: bool) -> bytes:
    if not zipped:
        return b"".join(pieces)
    packer = zlib.compressobj(level=1, wbits=31)  # 31: in gzip's format; the whole text is never in memory
    return b"".join((*map(packer.compress, pieces), packer.flush()))
