"""One request and its answer in time: an exchange, and sockets that wait no longer than theirs."""

import errno
import fcntl
import math
import os
import socket
import ssl
import struct
import termios
from collections.abc import Callable
from typing import Any

import urllib3
from urllib3.util.wait import wait_for_read, wait_for_write

from exporter.deadline import Deadline
from exporter.modus.errors import SilentConnectionError
from exporter.modus.pacing import SLICE
from exporter.turn import TURN

IDLE = 5.0  # seconds: what is between forgets no connection sooner, and one used since then is alive
NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)  # of a socket that does not wait


class Exchange(urllib3.Timeout):
    """The time of one request and its answer, handed to `requests` as its timeout.

    urllib3 sets both parts of a timeout as the `timeout` of its connection: here both are this object, so
    that the connection, and its socket, ask the deadline itself, which may move while they wait.
    A connection that had been idle for a while has `patience` seconds for its first byte, and `slow` ones if
    the other end took the request meanwhile; `fresh` refuses a connection that was there before.
    """

    def __init__(
        self,
        deadline: Deadline,
        *,
        patience: float = math.inf,
        slow: float = 0.0,
        fresh: bool = False,
    ) -> None:
        super().__init__()
        self.deadline, self.fresh, self.reused = deadline, fresh, False
        self._patience, self._longer = patience, max(slow - patience, 0.0)
        self._first_byte_by = math.inf  # on the deadline's clock; infinite once it has come
        self._sock: Any = None  # that had been idle

    def clone(self) -> "Exchange":
        """This one: it serves one request only."""
        return self

    @property
    def connect_timeout(self) -> Any:
        """This object, for the connection."""
        return self

    @property
    def read_timeout(self) -> Any:
        """This object, for the connection."""
        return self

    def reuse(self, sock: Any, since: float) -> None:
        """It goes over a connection that was there before, and idle since then (on the deadline's clock)."""
        self.reused = True
        now = self.deadline.monotonic()
        if now - since >= IDLE:
            self._sock, self._first_byte_by = sock, now + self._patience

    def answered(self) -> None:
        """The first byte has come: the connection lives."""
        self._first_byte_by = math.inf

    def wait(self) -> float:
        """Seconds to wait before asking again. Raises TimeoutError and SilentConnectionError."""
        left = self.deadline.left()
        if left <= 0.0:
            raise TimeoutError
        if self._first_byte_by < math.inf:
            patience = self._first_byte_by - self.deadline.monotonic()
            if patience <= 0.0 and self._longer and taken(self._sock):
                patience += self._longer
                self._first_byte_by += self._longer
                self._longer = 0.0
            if patience <= 0.0:
                raise SilentConnectionError
            left = min(left, patience)
        return left if left < SLICE else SLICE


class _Patient:
    """A socket whose waits end with the exchange of its connection; also when that is cut short meanwhile.

    The socket itself never waits: one `poll` of the connection does. Each further call of the system is one
    more chance that all other threads run before this one goes on.
    """

    connection: Any = None  # the one that the socket is of: it knows the exchange of the moment

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """As `recv`, into the buffer."""
        size: int = self._patiently(super().recv_into, buffer, nbytes or 0)  # type: ignore[misc]
        return size

    def recv(self, bufsize: int = 1024, flags: int = 0) -> bytes:
        """What has come, once something has. Raises TimeoutError, and SilentConnectionError for nothing."""
        data: bytes = self._patiently(super().recv, bufsize)  # type: ignore[misc]
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of it; it is short, and so nearly always sent at once."""
        while data:
            try:
                data = data[super().send(data) :]  # type: ignore[misc]
            except NOT_YET:
                TURN.wait(wait_for_write, self, self.connection.exchange.wait())  # type: ignore[arg-type]

    def pending(self) -> int:
        """Bytes that were received and not taken yet."""
        return 0

    def _patiently(self, receive: Callable[..., Any], *args: Any) -> Any:
        connection = self.connection
        if connection is None:  # `ssl` asks when the peer has gone before the handshake, which then says so
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        exchange = connection.exchange
        while True:
            seconds = exchange.wait()
            if not (self.pending() or TURN.wait(connection.arrived.poll, seconds * 1000)):
                continue
            try:
                received = receive(*args)
            except NOT_YET:  # a part of a TLS record
                continue
            exchange.answered()
            return received


class PatientSocket(_Patient, socket.socket):
    """Plain."""


class PatientTlsSocket(_Patient, ssl.SSLSocket):
    """Of TLS."""

    pending = ssl.SSLSocket.pending

    def do_handshake(self, block: bool = False) -> None:
        """Agree with the peer about keys and certificates."""
        if self._sslobj is None:  # type: ignore[attr-defined]
            raise ConnectionResetError
        while True:
            seconds = self.connection.exchange.wait()
            try:
                return super().do_handshake(block)
            except ssl.SSLWantReadError:
                TURN.wait(wait_for_read, self, seconds)
            except ssl.SSLWantWriteError:
                TURN.wait(wait_for_write, self, seconds)


def taken(sock: Any) -> bool:
    """Whether the other end has acknowledged all that was sent, as one does that is slow rather than gone."""
    try:
        (unacknowledged,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:  # not every system tells
        return True
    return not unacknowledged


def connect(sock: socket.socket, address: Any, deadline: Deadline) -> None:
    """Connect a new socket, which never waits by itself from then on. Raises OSError, TimeoutError too."""
    sock.setblocking(False)
    error = sock.connect_ex(address)
    while error == errno.EINPROGRESS:
        if deadline.passed():
            raise TimeoutError
        if TURN.wait(wait_for_write, sock, min(deadline.left(), SLICE)):
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
