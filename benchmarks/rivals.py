"""What else could ask for the pages: one pass over the agents, its wall and CPU seconds as JSON.

    [REQUESTS_CA_BUNDLE=...] python -m benchmarks.rivals KIND URL AGENTS IN_FLIGHT

naive  `requests.get` per agent in a loop, `json`, prometheus_client's metrics, `generate_latest`
loop   `requests.Session().get` and `json.loads` per agent in a loop, nothing else
floor  bare sockets in threads, gunzip and typed decoding: what no client in Python can do without
"""

import json
import os
import socket
import ssl
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import msgspec
import requests
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from exporter.modus.decode import RunItems

HEADERS = {"Authorization": "Bearer bench", "Accept-Encoding": "gzip"}
Times = tuple[float, float]


def spent(since: Times = (0.0, 0.0)) -> Times:
    """Wall and CPU seconds."""
    return time.perf_counter() - since[0], time.process_time() - since[1]


def naive(urls: list[str], in_flight: int) -> Times:
    """What one would write in ten minutes."""
    begin = spent()
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
    return spent(begin)


def loop(urls: list[str], in_flight: int) -> Times:
    """The same calls made plainly, over a connection that is there."""
    with requests.Session() as session:
        session.get(urls[0], headers=HEADERS, timeout=10)
        begin = spent()
        for url in urls:
            json.loads(session.get(url, headers=HEADERS, timeout=10).content)
        return spent(begin)


def floor(urls: list[str], in_flight: int) -> Times:
    """No client at all."""
    parts = urlsplit(urls[0])
    secure = parts.scheme == "https"
    context = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"]) if secure else None
    decoder = msgspec.json.Decoder(RunItems)
    more = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())

    def connect() -> socket.socket:
        sock = socket.create_connection((parts.hostname, parts.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(sock, server_hostname=parts.hostname) if context else sock

    def walk(sock: socket.socket, mine: list[str]) -> None:
        for url in mine:
            target = url.partition(parts.netloc)[2]
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n{more}\r\n".encode())
            answer = sock.recv(65536)
            head, _, body = answer.partition(b"\r\n\r\n")
            size = int(head.rpartition(b"Content-Length: ")[2])
            while len(body) < size:
                body += sock.recv(65536)
            decoder.decode(zlib.decompress(body, 31) if b"Content-Encoding" in head else body)

    shares = [urls[n::in_flight] for n in range(min(in_flight, len(urls)))]
    socks = [connect() for _ in shares]
    begin = spent()
    if len(shares) == 1:
        walk(socks[0], urls)
    else:
        with ThreadPoolExecutor(in_flight) as executor:
            list(executor.map(walk, socks, shares))
    took = spent(begin)
    for sock in socks:
        sock.close()
    return took


def main() -> None:
    """Read the arguments, run, tell."""
    kind, base, agents, in_flight = sys.argv[1:]
    rival = {each.__name__: each for each in (naive, loop, floor)}[kind]
    urls = [f"{base}/api/v1/agents/{n}/runs?pageSize=5" for n in range(1, int(agents) + 1)]
    json.dump(rival(urls, int(in_flight)), sys.stdout)


if __name__ == "__main__":
    main()
