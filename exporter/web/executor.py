"""Blocking calls in a bounded number of threads, awaited by coroutines."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from exporter.waits import Waits
from exporter.web.errors import WebError
from exporter.web.messages import too_busy

T = TypeVar("T")


class BoundedExecutor:
    """At most `threads` calls at once; one more than `waiting` further callers gets a 503.

    The threads are kept: a new one for each call would leave memory of its own behind. When the system
    refuses one, the calls wait for those there are; the first starts here, so that one there is. Raises
    WebError when that is refused.
    """

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        try:
            self._pool.submit(lambda: None)
        except RuntimeError:
            raise WebError(
                "the system refuses threads: allow 16 or more (ulimit -u, the pids limit of a container)", 1
            ) from None
        self._free = threads + waiting

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work()`, or what it raises; HTTPError (503) when too many wait.

        A caller who is cancelled gives up his place in the queue.
        """
        if self._free <= 0:
            raise too_busy()
        self._free -= 1
        loop = asyncio.get_running_loop()
        result: Future[T] = Future()
        result.add_done_callback(lambda _: self._done(loop))
        with contextlib.suppress(RuntimeError):  # no new thread: it is in the queue all the same
            self._pool.submit(_work, work, result)
        return await asyncio.wrap_future(result)

    async def run_waits(self, waits: Waits[T]) -> T:
        """Likewise of `waits`, which has a thread for its steps only, and none while it waits."""
        ended: list[T] = []

        def steps() -> Waits[None]:
            ended.append((yield from waits))

        step, before = partial(next, steps(), None), None
        while wait := await self.run(step):
            future, seconds = wait
            if future is not before:
                before, done = future, asyncio.wrap_future(future)
            await asyncio.wait({done}, timeout=seconds)
        return ended[0]

    def _done(self, loop: asyncio.AbstractEventLoop) -> None:
        def free() -> None:
            self._free += 1

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(free)


def _work(work: Callable[[], T], result: "Future[T]") -> None:
    if not result.set_running_or_notify_cancel():
        return
    try:
        result.set_result(work())
    except BaseException as exc:
        result.set_exception(exc)
