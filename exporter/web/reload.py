"""Reloads of the configuration: those who ask while one waits to begin share it."""

import asyncio
from collections.abc import Callable

from exporter.log import one_line
from exporter.web.executor import BoundedExecutor
from exporter.web.log import log_failure


class Reloads:
    """Runs `reload` in a thread, one at a time; it raises with a one-line message when it fails."""

    def __init__(self, reload: Callable[[], None]) -> None:
        self._reload = reload
        self._thread = BoundedExecutor("reload", threads=1, waiting=0)
        self._running: asyncio.Task[str | None] | None = None
        self._next: asyncio.Task[str | None] | None = None

    def ask(self) -> "asyncio.Task[str | None]":
        """The next reload to begin; its result is the one line of what went wrong, None when nothing did."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._once(self._running))
        return self._next

    async def _once(self, before: "asyncio.Task[str | None] | None") -> str | None:
        if before:
            await before
        self._running, self._next = self._next, None
        try:
            await self._thread.run(self._reload)
        except Exception as exc:
            log_failure("reload failed", exc)
            return one_line(exc)
        finally:
            self._running = None
        return None
