"""A connected socket, plain or TLS, whose waits are awaitable.

Nothing is buffered on our side and closing is immediate: the memory of a connection is what the system keeps
for it. With TLS, OpenSSL writes to the socket itself, so that its alert reaches the client also when a
handshake fails.
"""

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
CHUNK_BYTES = 64 * 1024
TURN_BYTES = 1024 * 1024  # sent to one client before it is the others' turn
_RESET = struct.pack(
    "ii", 1, 0
)  # SO_LINGER on, no seconds: what was not taken yet is dropped with the socket


class NotTLSError(Exception):
    """A client spoke HTTP where TLS was expected."""


class Stream:
    """The server's side of a connection; for one coroutine at a time. Every method may raise OSError."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self.taken: int | None = None  # bytes since the client first let us wait in `send`, None until then

    async def handshake(self, tls: ssl.SSLContext) -> Mapping[str, Any] | None:
        """Speak TLS from now on; returns the client's certificate if it has a verified one.

        Raises NotTLSError, and goes on without TLS, when it is HTTP that the client speaks.
        """
        self._sock.getpeername()  # of a client that left already Python's ssl would lose the socket
        self._sock = tls.wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
        try:
            await self._when_ready(self._sock.do_handshake)
        except ssl.SSLError as error:
            if error.reason != "HTTP_REQUEST":
                raise
            self._sock = socket.socket(fileno=self._sock.detach())
            self._sock.setblocking(False)
            raise NotTLSError from None
        return self._sock.getpeercert()

    async def receive(self) -> bytes:
        """Some bytes; none when the client sends no more."""
        return await self._when_ready(lambda: self._sock.recv(CHUNK_BYTES))

    async def send(self, data: bytes) -> None:
        """All of the bytes, in pieces that the client takes one by one; they are not copied."""
        view = memoryview(data)
        self.taken, turn = None, 0
        while view:
            send = functools.partial(self._sock.send, view[:CHUNK_BYTES])
            sent = await self._when_ready(send, writing=True)
            view = view[sent:]
            if self.taken is not None:
                self.taken += sent
            turn += sent
            if turn >= TURN_BYTES:
                turn = 0
                await asyncio.sleep(0)  # a fast reader keeps nobody waiting

    async def finish(self) -> None:
        """Say that nothing more comes and wait until the client has read it: a close might destroy that."""
        if isinstance(self._sock, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):  # the client's own goodbye is not waited for
                self._sock.unwrap()
        self._sock.shutdown(socket.SHUT_WR)
        while await self._when_ready(lambda: self._sock.recv(CHUNK_BYTES)):
            pass

    def close(self, *, reset: bool = False) -> None:
        """Close at once, also while a coroutine waits; `reset` drops what the client has not taken yet."""
        if self._closed:
            return
        self._closed = True
        if self._sock.fileno() >= 0:  # else it was lost, when a client left at that very instant
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
        if reset:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._sock.close()

    async def _when_ready(self, call: Callable[[], T], *, writing: bool = False) -> T:
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                await self._ready(writing=False)
            except ssl.SSLWantWriteError:
                await self._ready(writing=True)
            except BlockingIOError:
                await self._ready(writing=writing)

    async def _ready(self, *, writing: bool) -> None:
        if self._closed:
            raise ConnectionAbortedError("the connection was closed")
        if writing and self.taken is None:
            self.taken = 0
        ready: asyncio.Future[None] = self._loop.create_future()
        add, remove = (
            (self._loop.add_writer, self._loop.remove_writer)
            if writing
            else (self._loop.add_reader, self._loop.remove_reader)
        )
        add(self._sock, _wake, ready)
        try:
            await ready
        finally:
            if not self._closed:  # its number may be another connection's by now
                remove(self._sock)


async def readable(sock: socket.socket) -> None:
    """Wait until the socket has something to receive or to accept."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _wake(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)
