"""What else could ask for the pages: one pass over the agents, its wall and CPU seconds as JSON.

    [REQUESTS_CA_BUNDLE=...] python -m benchmarks.rivals KIND URL AGENTS IN_FLIGHT

naive    `requests.get` per agent in a loop, `json`, prometheus_client's metrics, `generate_latest`
session  `requests.Session().get` and `json.loads` per agent in a loop, nothing else
threads  the same with as many sessions in threads as requests in flight
adapter  the exporter's adapter of requests, one call after the other, the answer thrown away
pool     the same calls to the urllib3 pool behind it
floor    bare sockets in threads: the answer is received and thrown away
"""

import json
import os
import socket
import ssl
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import requests
import urllib3
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from exporter.deadline import Deadline
from exporter.modus.adapter import Exchange, ModusAdapter

HEADERS = {"Authorization": "Bearer bench"}


began = [0.0, 0.0]


def begin() -> None:
    """What counts starts here."""
    began[:] = time.perf_counter(), time.process_time()


def naive(urls: list[str], in_flight: int) -> None:
    """What one would write in ten minutes."""
    registry = CollectorRegistry()
    runs = Gauge("modus_agent_runs", "Runs.", ["agent_id", "status"], registry=registry)
    durations = Histogram("modus_agent_run_duration_seconds", "Durations.", ["agent_id"], registry=registry)
    for n, url in enumerate(urls):
        page = requests.get(url, headers=HEADERS, timeout=10).json()
        for status, count in page["counts"].items():
            runs.labels(str(n), status).set(count)
        for run in page["runs"]:
            durations.labels(str(n)).observe(run["durationMs"] / 1000)
    generate_latest(registry)


own = threading.local()  # a session per thread, kept from pass to pass


def get(url: str) -> None:
    """One call made plainly."""
    if not hasattr(own, "session"):
        own.session = requests.Session()
    json.loads(own.session.get(url, headers=HEADERS, timeout=10).content)


def session(urls: list[str], in_flight: int) -> None:
    """The same calls made plainly, twice: the second pass has its connection."""
    for url in urls:
        get(url)
    begin()
    for url in urls:
        get(url)


def threads(urls: list[str], in_flight: int) -> None:
    """The same side by side."""
    with ThreadPoolExecutor(in_flight) as executor:
        list(executor.map(get, urls))
        begin()
        list(executor.map(get, urls))


def adapter(urls: list[str], in_flight: int) -> None:
    """As `ModusClient` does."""
    sender = ModusAdapter(urls[0].partition("v1/")[0], 1)

    def call(url: str) -> None:
        request = requests.PreparedRequest()
        request.method, request.url = "GET", url
        request.headers = dict(HEADERS)  # type: ignore[assignment]
        answer = sender.send(request, stream=True, timeout=Exchange(Deadline(60.0)))  # type: ignore[arg-type]
        answer.raw.read()
        answer.raw.close()

    call(urls[0])
    begin()
    for url in urls:
        call(url)


def pool(urls: list[str], in_flight: int) -> None:
    """Without `requests`."""
    connections = ModusAdapter(urls[0].partition("v1/")[0], 1).get_connection_with_tls_context()
    host = urls[0].partition("/api/")[0]
    retries = urllib3.Retry(total=False)

    def call(url: str) -> None:
        timeout = Exchange(Deadline(60.0))
        answer = connections.urlopen(
            "GET", url.removeprefix(host), headers=HEADERS, timeout=timeout, retries=retries, redirect=False,
            preload_content=False, decode_content=False, assert_same_host=False,
        )  # fmt: skip
        answer.read()
        answer.close()

    call(urls[0])
    begin()
    for url in urls:
        call(url)


def floor(urls: list[str], in_flight: int) -> None:
    """No client at all."""
    secure = urls[0].startswith("https")
    context = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"]) if secure else None

    def walk(mine: list[str]) -> None:
        parts = urlsplit(mine[0])
        sock = socket.create_connection((parts.hostname, parts.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context:
            sock = context.wrap_socket(sock, server_hostname=parts.hostname)
        with sock:
            for url in mine:
                target = url.partition(parts.netloc)[2]
                sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
                answer = sock.recv(65536)
                head, _, body = answer.partition(b"\r\n\r\n")
                missing = int(head.rpartition(b"Content-Length: ")[2]) - len(body)
                while missing > 0:
                    missing -= len(sock.recv(65536))

    shares = [urls[n::in_flight] for n in range(min(in_flight, len(urls)))]
    with ThreadPoolExecutor(in_flight) as executor:
        for future in [executor.submit(walk, share) for share in shares]:
            future.result()


def main() -> None:
    """Read the arguments, run, tell."""
    kind, base, agents, in_flight = sys.argv[1:]
    rival = {each.__name__: each for each in (naive, session, threads, adapter, pool, floor)}[kind]
    urls = [f"{base}/api/v1/agents/{n}/runs?pageSize=5" for n in range(1, int(agents) + 1)]
    begin()
    rival(urls, int(in_flight))
    json.dump([time.perf_counter() - began[0], time.process_time() - began[1]], sys.stdout)


if __name__ == "__main__":
    main()
