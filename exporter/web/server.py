"""The server: accepts connections that strangers can neither block nor exhaust, and ends on a signal.

What it holds is bounded: MAX_CONNECTIONS connections (fewer when descriptors are scarce), each with what the
system keeps for it (half a MiB at most), and MAX_UNREAD different answers that wait for slow readers.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Sequence

from exporter.log import fields
from exporter.web.connection import Connection
from exporter.web.errors import WebError
from exporter.web.listeners import shown, url_of
from exporter.web.log import log, log_failure
from exporter.web.messages import Handler
from exporter.web.places import Places
from exporter.web.reload import Reloads
from exporter.web.stream import Stream, readable
from exporter.web.webconfig import WebConfigFile

STOP_SECONDS = 2.0  # at the end, for requests that are being answered
WATCH_SECONDS = 1.0  # how soon a new web configuration ends old connections
COMPLAINT_SECONDS = 60.0  # at least, between two lines that say that no connection can be accepted
LEAST_DESCRIPTORS = 8  # free at the start: the event loop takes three, and others take some meanwhile


class Server:
    """Serves every connection of its listeners with one handler."""

    def __init__(
        self, handler: Handler, web_config: WebConfigFile, reloads: Reloads, places: Places, home: str = "/"
    ) -> None:
        self._handler, self._web_config, self._reloads = handler, web_config, reloads
        self._places, self._home = places, home  # home: the path of the landing page
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._complained = float("-inf")
        self._spare: int | None = None  # a descriptor in reserve, for refusing when there is no other

    def run(self, listeners: Sequence[socket.socket]) -> None:
        """Serve until `stop`, or SIGTERM or SIGINT in the main thread; closes the listeners.

        Raises WebError when the system has too few descriptors for it.
        """
        with contextlib.ExitStack() as stack:
            for listener in listeners:
                listener.setblocking(False)
                stack.enter_context(listener)
            try:
                _try_descriptors()
                asyncio.run(self._serve(listeners))
            except OSError as exc:
                if exc.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                how = "allow 64 or more (ulimit -n)"
                raise WebError(f"the system has too few file descriptors: {how}", 1) from None

    def stop(self) -> None:
        """End it, from any thread."""
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._stopping.set) if self._loop else self._stopping.set()

    async def _serve(self, listeners: Sequence[socket.socket]) -> None:
        self._loop = asyncio.get_running_loop()
        self._handle_signals(self._loop)
        self._spare = os.open(os.devnull, os.O_RDONLY)
        tasks = {asyncio.create_task(self._accept(listener)) for listener in listeners}
        tasks |= {asyncio.create_task(self._retire_old()), asyncio.create_task(self._stopping_set())}
        for listener in listeners:  # said now that signals are handled
            tls = self._web_config.current().tls is not None
            where = {"address": shown(listener), "tls": tls}
            url = url_of(listener, tls=tls, path=self._home)
            log.info("listening", extra=fields(**where, **({"url": url} if url else {})))
        ended, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        for listener in listeners:
            listener.close()
        for connection in self._places:
            connection.drop() if connection.receiving else connection.retire()
        await self._places.ended(STOP_SECONDS)
        os.close(self._spare)
        for task in ended:
            task.result()

    async def _stopping_set(self) -> None:
        await self._stopping.wait()

    def _handle_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop_by, number)
            loop.add_signal_handler(signal.SIGHUP, self._reloads.ask)

    def _stop_by(self, number: signal.Signals) -> None:
        if not self._stopping.is_set():
            log.info("stopping", extra=fields(signal=number.name))
            self._stopping.set()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                await readable(listener)  # else a lack of descriptors is told although nobody waits
                client, address = listener.accept()
            except (BlockingIOError, ConnectionError):
                continue  # it left while it waited
            except OSError as exc:
                await self._refused_by_the_system(listener, exc)
                continue
            if self._places.make_room():
                self._open(client, address)
            else:
                client.close()
            await asyncio.sleep(0)  # a full backlog must not keep the others waiting

    def _open(self, client: socket.socket, address: object) -> None:
        host = str(address[0]) if isinstance(address, tuple) else ""
        try:
            stream = Stream(client)
        except OSError:  # it left already
            client.close()
            return
        self._places.take(Connection(stream, host, self._web_config, self._handler))

    async def _refused_by_the_system(self, listener: socket.socket, exc: OSError) -> None:
        """Out of descriptors or memory: make room, or refuse whoever waits instead of leaving him hanging."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._complained > COMPLAINT_SECONDS:
            self._complained = loop.time()
            log_failure("cannot accept a connection", exc)
        if self._places.drop_one():
            await asyncio.sleep(0)
            return
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        with contextlib.suppress(OSError):
            listener.accept()[0].close()
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)
        await asyncio.sleep(0.1)

    async def _retire_old(self) -> None:
        """End the connections that were made under another web configuration than today's."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            config = self._web_config.current()
            for connection in self._places:
                if connection.config is not config:
                    connection.retire()


def _try_descriptors() -> None:
    """Raise OSError when there are too few: an event loop that gets half of its own complains at length."""
    with contextlib.ExitStack() as stack:
        for _ in range(LEAST_DESCRIPTORS):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
