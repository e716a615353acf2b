"""Where to listen: addresses as Prometheus users write them, and sockets that systemd passes on."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from exporter.web.errors import WebError

BACKLOG = 1024
SEND_BUFFER_BYTES = 256 * 1024  # per connection, kept by the system; Linux doubles it
FLAG = "--web.listen-address"
FIRST_PASSED = 3  # the descriptor of the first socket that systemd passes


class Address(NamedTuple):
    """Where to listen."""

    host: str  # an empty one is every address of the machine
    port: int  # 0: a free one

    def __str__(self) -> str:  # noqa: D105 - as the flag has it
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def open_listeners(addresses: Sequence[Address], *, systemd_socket: bool) -> list[socket.socket]:
    """A listening socket for each address, or those that systemd passes in their place.

    Raises WebError, one line, and leaves none open.
    """
    if systemd_socket:
        return passed_by_systemd(os.environ, os.getpid())
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listen(address)) for address in addresses]
        stack.pop_all()
        return listeners


def parse(texts: Sequence[str]) -> list[Address]:
    """The addresses, `host:port` each. Raises WebError, one line, for one that is none or given twice."""
    addresses = [_parsed(text) for text in texts]
    for number, address in enumerate(addresses):
        if address in addresses[:number] and address.port:
            raise WebError(f"{FLAG}: {address} is given twice")
    return addresses


def _parsed(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or "/" in host or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise WebError(f"{FLAG}: expected host:port or :port, got {text!r}")
    return Address(host, int(port))


def listen(address: Address) -> socket.socket:
    """A listening socket; no host, or ::, is every address of both families of the machine.

    Raises WebError, one line.
    """
    host, port = address
    try:
        return _bounded(_both_families(host, port) or _one_family(host, port))
    except (OSError, UnicodeError) as exc:
        raise WebError(f"{FLAG}: cannot listen on {address}: {_problem(exc)}", exit_code=1) from None


def _problem(exc: OSError | UnicodeError) -> str:
    match exc:
        case socket.gaierror():
            return "the host name cannot be resolved"
        case OSError(errno=errno.EADDRINUSE):
            return "the port is in use: name another one, or end what listens there"
        case OSError(errno=errno.EADDRNOTAVAIL):
            return "this machine has no such address"
        case OSError(errno=errno.EACCES):
            return "not allowed to: name a port from 1024 on"
        case OSError(errno=int(number)):
            return os.strerror(number)  # the text of the error itself names addresses in Python's own words
    return "the host name cannot be resolved"


def _both_families(host: str, port: int) -> socket.socket | None:
    if host not in ("", "::") or not socket.has_dualstack_ipv6():
        return None
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    except OSError as exc:
        if exc.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # no IPv6 here
            raise
        return None


def _one_family(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)  # noqa: S104
    family, _, _, _, target = min(found)  # IPv4 first, as in Go
    return socket.create_server(target, family=family, backlog=BACKLOG)


def passed_by_systemd(environ: Mapping[str, str], process_id: int) -> list[socket.socket]:
    """The listening sockets of `sd_listen_fds(3)`. Raises WebError, one line, when there is none for us."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(process_id) or not re.fullmatch("[1-9][0-9]{0,3}", count, re.ASCII):
        raise WebError(
            "--web.systemd-socket: systemd passed no socket: start it by a socket unit", exit_code=1
        )
    with contextlib.ExitStack() as stack:
        listeners = []
        for number in range(FIRST_PASSED, FIRST_PASSED + int(count)):
            try:
                listener = stack.enter_context(socket.socket(fileno=number))
                listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            except OSError:
                listening = 0
            if not listening:
                what = f"descriptor {number} is no listening stream socket"
                raise WebError(f"--web.systemd-socket: {what}: expected ListenStream=", exit_code=1)
            os.set_inheritable(number, False)
            listeners.append(_bounded(listener))
        stack.pop_all()
        return listeners


def _bounded(listener: socket.socket) -> socket.socket:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # of those it accepts
    return listener


def shown(listener: socket.socket) -> str:
    """Its address for a log line."""
    name = listener.getsockname()
    return str(Address(*name[:2])) if isinstance(name, tuple) else str(name)


def url_of(listener: socket.socket, *, tls: bool, path: str) -> str | None:
    """A URL for a browser on this machine; None for a Unix socket."""
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return None
    host = "localhost" if name[0] in ("0.0.0.0", "::") else name[0]  # noqa: S104
    return f"{'https' if tls else 'http'}://{Address(host, name[1])}{path}"
