"""The web server in a thread of the test's own process, on a free port."""

import contextlib
import http.client
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from exporter.metrics.status import Status
from exporter.modus.contact import Contact
from exporter.web.listeners import Address, listen
from exporter.web.pages import application
from exporter.web.places import Places
from exporter.web.reload import Reloads
from exporter.web.server import Server
from exporter.web.site import Site
from exporter.web.webconfig import WebConfigFile
from tests.oracle import rendered

DEFAULT_TIMEOUT = 1000.0  # seconds, of scrapers that name none
NAME = 'Support "EU" \\ Zürich\n東京'


STATUS = Status(
    now=1_795_000_000.0,
    api="https://api.example",
    contact=Contact(),
    newest=None,
    known={},
    state_path="/var/lib/state.db",
    state_up=True,
    reload_successful=True,
    reloaded=1_795_000_000.0,
)


def exposition(form: str) -> bytes:
    up = GaugeMetricFamily("modus_up", "All agents were read.", 1)
    runs = CounterMetricFamily("modus_runs", "Runs.", labels=["agent_name"])
    runs.add_metric([NAME], 3)
    return rendered([up, runs], form == "openmetrics")


@dataclass
class Running:
    """A server in a thread of this process."""

    server: Server
    port: int
    places: Places
    reloads: list[int] = field(default_factory=list)  # one entry per reload

    def connect(self, source="127.0.0.1") -> socket.socket:
        """A connection from a loopback address."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20, source_address=(source, 0))

    def get(
        self, path, method="GET", tls=None, body=None, source="127.0.0.1", **headers
    ) -> http.client.HTTPResponse:
        """One request on a connection of its own; the body is in `.data`."""
        options = {"timeout": 20, "source_address": (source, 0)}
        connection = (
            http.client.HTTPSConnection("127.0.0.1", self.port, context=tls, **options)
            if tls
            else http.client.HTTPConnection("127.0.0.1", self.port, **options)
        )
        with contextlib.closing(connection):
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=names)
            answer = connection.getresponse()
            answer.data = answer.read()
            return answer


def in_threads(scrape, key=object):
    """What a server calls, of a `scrape` that may block: it has a thread of its own meanwhile."""
    pool = ThreadPoolExecutor(64)

    def waits(*asked):
        future, over = pool.submit(scrape, *asked), Future()
        future.add_done_callback(lambda _: over.set_result(None))
        yield over, 60.0
        return key(), future.result(60)

    return waits


@contextlib.contextmanager
def running(
    scrape=lambda timeout, form: [exposition(form)],  # may block: it has a thread
    waits=None,  # what yields what it waits for, in place of `scrape` and `key`
    key=object,  # called for each scrape: none is the same as another
    failure=None,
    config=None,
    path="/metrics",
    lifecycle=False,
    web_config=None,
    contact=Contact(),  # noqa: B008 - it is a value
    status=STATUS,
    external_url=None,
    route_prefix=None,
) -> Iterator[Running]:
    def reload():
        site.reloads.append(1)
        if failure:
            raise ValueError(failure)

    web_config = web_config or WebConfigFile(str(config) if config else None)
    reloads, places = Reloads(reload), Places()
    handler = application(
        site=Site.of(path, external_url, route_prefix),
        scrape=waits or in_threads(scrape, key),
        default_timeout=lambda: DEFAULT_TIMEOUT,
        contact=lambda: contact,
        status=lambda: status,
        reloads=reloads,
        places=places,
        enable_lifecycle=lifecycle,
        web_config=web_config,
    )
    listener = listen(Address("127.0.0.1", 0))
    site = Running(Server(handler, web_config, reloads, places), listener.getsockname()[1], places)
    thread = threading.Thread(target=site.server.run, args=[[listener]])
    thread.start()
    try:
        yield site
    finally:
        site.server.stop()
        thread.join(20)
        assert not thread.is_alive()


def awaited(condition, seconds=10):
    """Wait until the condition holds; the bound only keeps a failing test from hanging."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.01)


def closed_by_peer(sock, seconds=10):
    """Whether the other side ends the connection."""
    sock.settimeout(seconds)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def was_dropped(sock):
    """Whether the other side has reset the connection; what it sent is left unread."""
    poll = select.poll()
    poll.register(sock, 0)  # errors and hang-ups are told in any case
    return bool(poll.poll(0))


def exchange(port, data, seconds=10, host="127.0.0.1"):
    """Send raw bytes and return all that is answered."""
    with socket.create_connection((host, port), timeout=seconds) as sock:
        sock.sendall(data)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
        return answer


def slow_reader(port, tls=None, source="127.0.0.1"):
    """A client that has asked for the metrics and taken a first few bytes."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.bind((source, 0))
    sock.connect(("127.0.0.1", port))
    if tls:
        sock = tls.wrap_socket(sock, server_hostname="127.0.0.1")
    sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    sock.recv(100)
    return sock
