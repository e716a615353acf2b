"""The web server in a thread of the test's own process, on a free port."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from exporter.web.pages import application
from exporter.web.server import Server, listen
from exporter.web.webconfig import WebConfigFile
from tests.oracle import rendered

NAME = 'Support "EU" \\ Zürich\n東京'


def exposition(openmetrics: bool) -> bytes:
    up = GaugeMetricFamily("modus_up", "All agents were read.", 1)
    runs = CounterMetricFamily("modus_runs", "Runs.", labels=["agent_name"])
    runs.add_metric([NAME], 3)
    return rendered([up, runs], openmetrics)


class StartedServer(Server):
    """Says when it has begun: from then on only a request reads the web configuration again."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.begun = threading.Event()

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self.begun.set()


@dataclass
class Site:
    """A server in a thread of this process."""

    server: StartedServer
    port: int
    reloads: list[int] = field(default_factory=list)  # one entry per reload

    def get(self, path, method="GET", tls=None, body=None, **headers) -> http.client.HTTPResponse:
        """One request on a connection of its own; the body is in `.data`."""
        connection = (
            http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=tls)
            if tls
            else http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        )
        with contextlib.closing(connection):
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=names)
            answer = connection.getresponse()
            answer.data = answer.read()
            return answer


@contextlib.contextmanager
def running(
    scrape=lambda timeout, openmetrics: [exposition(openmetrics)],
    ready=lambda: True,
    failure=None,
    config=None,
    path="/metrics",
    lifecycle=False,
) -> Iterator[Site]:
    async def reload():
        site.reloads.append(1)
        return failure

    web_config = WebConfigFile(str(config) if config else None)
    app = application(
        scrape=scrape,
        ready=ready,
        reload=reload,
        telemetry_path=path,
        enable_lifecycle=lifecycle,
        web_config=web_config,
    )
    listener = listen("127.0.0.1:0")
    site = Site(StartedServer(app, web_config, reload), listener.getsockname()[1])
    thread = threading.Thread(target=site.server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert site.server.begun.wait(20)
        yield site
    finally:
        site.server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
