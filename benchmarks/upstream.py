"""The API of the benchmarks: pages over keep-alive after a fixed latency, in a process of its own.

A raw asyncio protocol that looks only at the request line, so that it costs less than any client:

    python -m benchmarks.upstream [--latency 0.05] [--gzip] [--tls CERT KEY] [--runs-a-day 144] [--still]

prints its port and serves until its standard input ends. Each answer has the headers that servers behind a
proxy send. An agent's runs end as in life: whoever asks for its newest page meets it a minute later than the
time before, so that of 144 runs a day one has ended in every tenth scrape; with `--still` never. `GET /stats`
answers with requests and bytes so far.
"""

import argparse
import asyncio
import email.utils
import gzip
import json
import re
import ssl
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from functools import lru_cache
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

LISTED = 1.4  # days of runs that the list of each agent has
MINUTE = 60.0  # seconds between two scrapes, as far as an agent's runs go
STARTED = time.time() - 2 * 3600  # of the newest run at first: a hundred scrapes later it is not yet to come
REQUEST_LINE = re.compile(rb"GET (\S+) HTTP/1.1\r\n")
AGENT = re.compile(r"/api/v1/agents/(\d+)/runs")
HEADERS = """\
Content-Type: application/json; charset=utf-8
Connection: keep-alive
Cache-Control: private, no-cache, no-store, max-age=0, must-revalidate
Vary: Accept-Encoding, Origin
X-Request-Id: 0198f3c2-7c1e-7d4e-9f00-3b6f1c5a9d27
Strict-Transport-Security: max-age=63072000; includeSubDomains; preload
X-Content-Type-Options: nosniff
X-Frame-Options: DENY
Referrer-Policy: strict-origin-when-cross-origin
Content-Security-Policy: default-src 'none'; frame-ancestors 'none'
Server: cloudflare
Via: 1.1 google
Alt-Svc: h3=":443"; ma=86400
CF-RAY: 8f2b1c7d9e3a4b5c-FRA
""".replace("\n", "\r\n")  # with Date, Content-Length and Content-Encoding they are 17


def _run(n: int, runs_a_day: int) -> dict[str, object]:
    """The n-th run, counted from the newest at the start: 0, older ones below."""
    begin = STARTED + n * 86400 / runs_a_day
    duration = 5 + n * 37 % 400
    moments = [
        datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for at in (begin, begin + duration)
    ]
    number = n + 10**6
    return {
        "id": f"wf_01J9Z{number:08d}:0198f3c2-7c1e-7d4e-9f00-{number:012d}",
        "workflowId": f"wf_01J9Z{number:08d}",
        "temporalRunId": f"0198f3c2-7c1e-7d4e-9f00-{number:012d}",
        "agentId": 1,
        "agentName": "Invoice triage",
        "agentType": "task",
        "status": "error" if n % 10 == 9 else "completed",
        "triggerType": "schedule",
        "startedAt": moments[0],
        "endedAt": moments[1],
        "durationMs": duration * 1000,
        "summary": "Sorted the invoices of the morning and asked back about two of them.",
    }


@lru_cache(maxsize=4096)
def page(query: str, newest: int, zipped: bool, runs_a_day: int) -> tuple[bytes, bytes]:
    """Headers and body of the page of runs that `query` asks for, when the newest run is this one."""
    oldest = -int(runs_a_day * LISTED)
    asked = {key: values[0] for key, values in parse_qs(query).items()}
    size, first = int(asked.get("pageSize", 25)), int(asked.get("pageToken", newest))
    after = max(first - size, oldest)
    runs = [] if "status" in asked else [_run(n, runs_a_day) for n in range(first, after, -1)]
    number = newest - oldest
    content: dict[str, object] = {
        "runs": runs,
        "counts": {
            "all_executions": number,
            "running": 0,
            "awaiting_human": 0,
            "error": number // 10,
            "completed": number - number // 10,
        },
    }
    if runs and after > oldest:
        content["nextPageToken"] = str(after)
    body = json.dumps(content, separators=(",", ":")).encode()
    headers = HEADERS
    if zipped:
        body, headers = gzip.compress(body), f"{HEADERS}Content-Encoding: gzip\r\n"
    return f"{headers}Content-Length: {len(body)}\r\n\r\n".encode(), body


@lru_cache(maxsize=1)
def status_line(second: int) -> bytes:
    """The beginning of an answer."""
    return f"HTTP/1.1 200 OK\r\nDate: {email.utils.formatdate(second, usegmt=True)}\r\n".encode()


class Upstream(asyncio.Protocol):
    """One connection."""

    requests = sent = 0
    minutes: ClassVar[Counter[int]] = Counter()  # how often each agent's newest page was asked for

    def __init__(self, latency: float, zipped: bool, runs_a_day: int, still: bool) -> None:
        self._latency, self._zipped, self._runs_a_day, self._still = latency, zipped, runs_a_day, still
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer every request whose head is complete."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            target = REQUEST_LINE.match(head)
            if not target:
                self._transport.close()
                return
            path = urlsplit(target[1].decode())
            if path.path == "/stats":
                body = json.dumps([Upstream.requests, Upstream.sent]).encode()
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                continue
            newest = self._newest(path.path, path.query)
            answer = status_line(int(time.time())) + b"".join(
                page(path.query, newest, self._zipped, self._runs_a_day)
            )
            Upstream.requests += 1
            Upstream.sent += len(answer)
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, self._transport.write, answer)
            else:
                self._transport.write(answer)

    def _newest(self, path: str, query: str) -> int:
        """The agent's newest run; agents differ in when theirs end."""
        found = AGENT.match(path)
        if not found or self._still:
            return 0
        agent, interval = int(found[1]), 86400 / self._runs_a_day
        now = Upstream.minutes[agent] * MINUTE + agent * 61 % interval
        if "pageToken" not in query and "status" not in query:
            Upstream.minutes[agent] += 1
        return int(now / interval)


async def _serve(args: argparse.Namespace) -> None:
    context = None
    if args.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*args.tls)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Upstream(args.latency, args.gzip, args.runs_a_day, args.still),
        "127.0.0.1", 0, ssl=context, backlog=4096,
    )  # fmt: skip
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Read the flags and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("--runs-a-day", type=int, default=144, help="of each agent")
    parser.add_argument("--still", action="store_true", help="no run ends")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
