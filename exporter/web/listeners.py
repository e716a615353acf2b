"""Where to listen: addresses as Prometheus users write them, and sockets that systemd passes on."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Mapping, Sequence

from exporter.web.webconfig import WebError

BACKLOG = 1024
SEND_BUFFER_BYTES = 256 * 1024  # per connection, kept by the system; Linux doubles it
FIRST_PASSED = 3  # the descriptor of the first socket that systemd passes


def listen_on(addresses: Sequence[str]) -> list[socket.socket]:
    """A listening socket for each of the addresses. Raises WebError, one line, and leaves none open."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listen(address)) for address in addresses]
        stack.pop_all()
        return listeners


def listen(address: str) -> socket.socket:
    """A listening socket for `host:port`; no host, or ::, is every address of both families of the machine.

    Raises WebError, one line.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise WebError(f"--web.listen-address: expected host:port or :port, got {address!r}")
    try:
        return _bounded(_both_families(host, int(port)) or _one_family(host, int(port)))
    except (OSError, UnicodeError) as exc:
        raise WebError(f"cannot listen on {address}: {getattr(exc, 'strerror', exc)}", exit_code=1) from None


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
    if not isinstance(name, tuple):
        return str(name)
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
