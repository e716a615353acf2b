"""The door of the web server: connections that strangers can neither block nor exhaust.

uvicorn speaks HTTP/1.1. What it lacks is here: limits for slow clients and for the number of connections, TLS
settings read per connection, and a stop that ends with exit code 0.
"""

import asyncio
import contextlib
import errno
import functools
import http
import logging
import re
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from exporter.web.webconfig import WebConfigFile, WebError

log = logging.getLogger("exporter.web")
Reload = Callable[[], Awaitable[str | None]]  # answers with the one line of what went wrong

MAX_CONNECTIONS = 256  # one more takes the place of the one that is idle longest
MAX_UNREAD = 16  # answers that wait for a slow reader; likewise
MAX_HEADER_BYTES = 16 * 1024
REQUEST_SECONDS = 10.0  # from connecting, or from the first byte, to a whole request; also the TLS handshake
ANSWER_SECONDS = 30.0  # for the client to take its answer
IDLE_SECONDS = 75  # between requests: longer than the usual scrape interval of a minute
STOP_SECONDS = 3  # at the end, for requests that are being answered

CONTENT_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "deny",
}


def log_failure(message: str, exc: BaseException) -> None:
    """One line that says what went wrong, without a traceback."""
    text = " ".join(f"{type(exc).__name__}: {exc}".split())
    log.error(message, extra={"fields": {"error": text}})


class Door(H11Protocol):
    """One connection; uvicorn's protocol with the moment since which it waits for the client."""

    def __init__(self, web_config: WebConfigFile, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config, state, {})
        self.since = 0.0
        self._web_config = web_config
        self._receiving = True  # part of a request is here or due; else idle between two
        self._taking = False  # the client has begun to hold up its answer
        self._refused = False

    @property
    def answering(self) -> bool:
        """Whether it is our turn: a request is being answered and the client takes what we write."""
        return bool(self.cycle and not self.cycle.response_complete and not self.flow.write_paused)

    def overdue(self) -> bool:
        """Whether the client had its time: for its request, for taking the answer, or between requests."""
        if self.answering and not self._taking:
            return False  # the scrape has its own deadline
        if self._taking or self.transport.is_closing() or self.transport.get_write_buffer_size():
            limit = ANSWER_SECONDS
        else:
            limit = REQUEST_SECONDS if self._receiving else IDLE_SECONDS
        return self.loop.time() - self.since > limit

    def abort(self) -> None:
        """Drop the connection at once, with what is still to be written."""
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there, after its TLS handshake if there is one."""
        self.since = self.loop.time()
        super().connection_made(transport)
        if not self._web_config.current().admits(transport.get_extra_info("peercert")):
            self.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; the first ones after a pause start its time."""
        if self._refused:
            return
        if not self._receiving and not self.answering:
            self._receiving, self.since = True, self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """The answer is written, if not taken yet."""
        self._receiving, self._taking, self.since = False, False, self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client is slow to take its answer."""
        super().pause_writing()
        if not self._taking:  # its time runs from the first pause: a trickle does not renew it
            self._taking, self.since = True, self.loop.time()
        slow = [c for c in self.connections if isinstance(c, Door) and c.flow.write_paused]
        if len(slow) > MAX_UNREAD:
            min(slow, key=lambda door: door.since).abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP (400) or has too large headers (431); h11's error is being handled."""
        if self.cycle and self.conn.our_state is not h11.IDLE:
            self.abort()  # an answer is under way or done: no place for another
            return
        status = getattr(sys.exception(), "error_status_hint", 400)
        lines = [
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
            "Connection: close",
            "Content-Length: 0",
        ]
        lines += [f"{name}: {value}" for name, value in SECURITY_HEADERS.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode())
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()  # the client may still be sending: a reset would destroy the answer
        else:
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server with bounded connections, TLS settings as of now, and signals that just end it."""

    def __init__(self, app: ASGIApp, web_config: WebConfigFile, reload: Reload) -> None:
        config = uvicorn.Config(
            app,
            http=Door,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",  # our own logger says what matters
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        super().__init__(config)
        self._web_config = web_config
        self._reload = reload
        self._reloading: asyncio.Future[str | None] | None = None
        self._opening: dict[socket.socket, float] = {}  # since when; until the TLS handshake is done
        self._accepting: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()  # kept: the loop holds tasks weakly

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        self.servers = []
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in sockets or ()]
        self.started = True
        for listener in sockets or ():  # said now that signals are handled
            host, port = listener.getsockname()[:2]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            fields = {"address": address, "tls": self._web_config.current().tls is not None}
            log.info("listening", extra={"fields": fields})

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; once a second overdue connections are dropped."""
        if counter % 10 == 0:
            for door in self._doors():
                if door.overdue():
                    door.abort()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting; uvicorn waits for the answers under way, then cancels them."""
        for task in self._accepting:
            task.cancel()
        for client in list(self._opening):
            self._give_up(client)
        await super().shutdown(sockets)

    def _doors(self) -> list[Door]:
        return [door for door in self.server_state.connections if isinstance(door, Door)]

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as exc:  # out of file descriptors: those of others may come free
                log_failure("cannot accept a connection", exc)
                await asyncio.sleep(1)
                continue
            if not self._make_room():
                client.close()
                continue
            self._opening[client] = loop.time()
            task = loop.create_task(self._open(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)  # a full backlog must not keep the others waiting

    def _make_room(self) -> bool:
        doors = self._doors()
        if len(self._opening) + len(doors) < MAX_CONNECTIONS:
            return True
        waiting = [(since, functools.partial(self._give_up, sock)) for sock, since in self._opening.items()]
        waiting += [(door.since, functools.partial(Door.abort, door)) for door in doors if not door.answering]
        if waiting:
            min(waiting, key=lambda each: each[0])[1]()
        return bool(waiting)

    def _give_up(self, client: socket.socket) -> None:
        self._opening.pop(client, None)
        with contextlib.suppress(OSError):  # the client may be gone already
            client.shutdown(socket.SHUT_RDWR)  # the handshake fails: asyncio ignores a close before it begins

    async def _open(self, client: socket.socket) -> None:
        tls = self._web_config.current().tls
        limits = {"ssl_handshake_timeout": REQUEST_SECONDS, "ssl_shutdown_timeout": 2.0} if tls else {}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Door(self._web_config, self.config, self.server_state), client, ssl=tls, **limits
            )
        except OSError:
            pass  # a failed handshake is the client's affair
        finally:
            self._opening.pop(client, None)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the server, SIGHUP reloads; uvicorn's own would end in an exit code."""
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop, number)
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        yield

    def _stop(self, number: signal.Signals) -> None:
        log.info("stopping", extra={"fields": {"signal": number.name}})
        self.should_exit = True

    def _hang_up(self) -> None:
        self._reloading = asyncio.ensure_future(self._reload())


def listen(address: str) -> socket.socket:
    """A listening socket for `host:port`; no host is every address of the machine, IPv6 too if it has it.

    Raises WebError, one line.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise WebError(f"--web.listen-address: expected host:port or :port, got {address!r}")
    try:
        if not host and socket.has_dualstack_ipv6():
            try:
                return socket.create_server(
                    ("", int(port)), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
                )
            except OSError as exc:
                if exc.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # no IPv6 here
                    raise
        found = socket.getaddrinfo(host or "0.0.0.0", int(port), type=socket.SOCK_STREAM)  # noqa: S104
        family, _, _, _, target = min(found)  # IPv4 first, as in Go
        return socket.create_server(target, family=family, backlog=1024)
    except (OSError, UnicodeError) as exc:
        raise WebError(f"cannot listen on {address}: {getattr(exc, 'strerror', exc)}", exit_code=1) from None
