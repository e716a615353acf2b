"""What else could ask for the pages: one pass over the agents, its wall and CPU seconds as JSON.

    python -m benchmarks.rivals naive|session|threads|floor URL AGENTS IN_FLIGHT CAFILE|-

naive    `requests.get` per agent in a loop, `json`, prometheus_client's metrics, `generate_latest`
session  `requests.Session().get` and `json.loads` per agent in a loop, nothing else
threads  the same with as many sessions in threads as requests in flight
floor    bare sockets in threads: the answer is received and thrown away
"""

import json
import socket
import ssl
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import requests
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

HEADERS = {"Authorization": "Bearer bench"}


def naive(urls: list[str], in_flight: int, cafile: str | None) -> None:
    """What one would write in ten minutes."""
    registry = CollectorRegistry()
    runs = Gauge("modus_agent_runs", "Runs.", ["agent_id", "status"], registry=registry)
    durations = Histogram("modus_agent_run_duration_seconds", "Durations.", ["agent_id"], registry=registry)
    for n, url in enumerate(urls):
        page = requests.get(url, headers=HEADERS, timeout=10, verify=cafile or True).json()
        for status, count in page["counts"].items():
            runs.labels(str(n), status).set(count)
        for run in page["runs"]:
            durations.labels(str(n)).observe(run["durationMs"] / 1000)
    generate_latest(registry)


def session(urls: list[str], in_flight: int, cafile: str | None) -> None:
    """The same calls made plainly."""
    with requests.Session() as one:
        one.verify = cafile or True
        for url in urls:
            json.loads(one.get(url, headers=HEADERS, timeout=10).content)


def threads(urls: list[str], in_flight: int, cafile: str | None) -> None:
    """The same calls made plainly, side by side."""
    own = threading.local()

    def get(url: str) -> None:
        if not hasattr(own, "session"):
            own.session = requests.Session()
            own.session.verify = cafile or True
        json.loads(own.session.get(url, headers=HEADERS, timeout=10).content)

    with ThreadPoolExecutor(in_flight) as executor:
        for future in [executor.submit(get, url) for url in urls]:
            future.result()


def floor(urls: list[str], in_flight: int, cafile: str | None) -> None:
    """No client at all."""
    context = ssl.create_default_context(cafile=cafile) if cafile else None

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
    kind, base, agents, in_flight, cafile = sys.argv[1:]
    rival = {"naive": naive, "session": session, "threads": threads, "floor": floor}[kind]
    urls = [f"{base}/api/v1/agents/{n}/runs?pageSize=5" for n in range(1, int(agents) + 1)]
    wall, cpu = time.perf_counter(), time.process_time()
    rival(urls, int(in_flight), None if cafile == "-" else cafile)
    json.dump([time.perf_counter() - wall, time.process_time() - cpu], sys.stdout)


if __name__ == "__main__":
    main()
