"""The API of the benchmarks: static pages over keep-alive after a fixed latency, in a process of its own.

A raw asyncio protocol that looks only at the request line, so that it costs less than any client:

    python -m benchmarks.upstream [--latency 0.05] [--gzip] [--tls CERT KEY] [--runs-a-day 144]

prints its port and serves until its standard input ends. `GET /stats` answers with requests and bytes so far.
"""

import argparse
import asyncio
import gzip
import json
import re
import ssl
import sys
import time
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import parse_qs, urlsplit

LISTED = 1.4  # days of runs that the list of each agent has
STARTED = time.time()
REQUEST_LINE = re.compile(rb"GET (\S+) HTTP/1.1\r\n")


def _run(n: int, runs_a_day: int) -> dict[str, object]:
    """The n-th newest run; all have ended an hour ago or earlier."""
    begin = STARTED - 3600 - n * 86400 / runs_a_day
    duration = 5 + n * 37 % 400
    moments = [
        datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for at in (begin, begin + duration)
    ]
    return {
        "id": f"wf_01J9Z{n:08d}:0198f3c2-7c1e-7d4e-9f00-{n:012d}",
        "workflowId": f"wf_01J9Z{n:08d}",
        "temporalRunId": f"0198f3c2-7c1e-7d4e-9f00-{n:012d}",
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


@lru_cache(maxsize=1024)
def answer(query: str, zipped: bool, runs_a_day: int) -> bytes:
    """A whole HTTP answer with the page of runs that `query` asks for; the same for every agent."""
    number = int(runs_a_day * LISTED)
    asked = {key: values[0] for key, values in parse_qs(query).items()}
    size, first = int(asked.get("pageSize", 25)), int(asked.get("pageToken", 0))
    runs = [] if "status" in asked else [_run(n, runs_a_day) for n in range(first, min(first + size, number))]
    page: dict[str, object] = {
        "runs": runs,
        "counts": {
            "all_executions": number,
            "running": 0,
            "awaiting_human": 0,
            "error": number // 10,
            "completed": number - number // 10,
        },
    }
    if runs and first + size < number:
        page["nextPageToken"] = str(first + size)
    body = json.dumps(page, separators=(",", ":")).encode()
    encoding = ""
    if zipped:
        body, encoding = gzip.compress(body), "Content-Encoding: gzip\r\n"
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{encoding}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Upstream(asyncio.Protocol):
    """One connection."""

    requests = sent = 0

    def __init__(self, latency: float, zipped: bool, runs_a_day: int) -> None:
        self._latency, self._zipped, self._runs_a_day = latency, zipped, runs_a_day
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
            page = answer(path.query, self._zipped, self._runs_a_day)
            Upstream.requests += 1
            Upstream.sent += len(page)
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, self._transport.write, page)
            else:
                self._transport.write(page)


async def _serve(latency: float, zipped: bool, runs_a_day: int, tls: list[str] | None) -> None:
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Upstream(latency, zipped, runs_a_day), "127.0.0.1", 0, ssl=context, backlog=4096
    )
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Read the flags and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("--runs-a-day", type=int, default=144, help="of each agent")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    args = parser.parse_args()
    asyncio.run(_serve(args.latency, args.gzip, args.runs_a_day, args.tls))


if __name__ == "__main__":
    main()
