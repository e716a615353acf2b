"""ModusClient: one page of the Modus API per call, as typed values or an ApiError."""

import bisect
import email.utils
import functools
import http.client
import json
import logging
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from datetime import UTC
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import requests
import urllib3

from exporter import __version__
from exporter.modus.adapter import call, cause, pool, time_left
from exporter.modus.model import AgentsPage, ApiError, Reason, Run, RunsPage, printable

REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
RETRIES = 2  # of a 5xx or a reset, besides the first try
BACKOFF = 0.2  # seconds: full jitter over this, doubled at each retry
DEFAULT_PAUSE = 30.0  # seconds after a 429 that names no time
LONGEST_PAUSE = 300.0  # seconds a 429 may close the client for
OTHER_ROUTE_AGAIN = 300.0  # seconds between two tries of the route that did not work
CLOCK_RESOLUTION = 2.0  # seconds: a Date header nearer than this says nothing about the clock
PIECE = 65536  # bytes of a body read at once

ROUTES = ("agents", "workflows")  # of resource auto, in the order they are tried
REASON_OF: dict[int, Reason] = {401: "unauthorized", 403: "forbidden", 404: "not_found", 429: "rate_limited"}
HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "User-Agent": f"modus-exporter/{__version__}",
}

log = logging.getLogger(__name__)
_slow = threading.Lock()  # one tolerant decoding at a time: it can take many times its body's memory
Page = TypeVar("Page")


class _RunsWire(msgspec.Struct, rename="camel", gc=False):
    runs: list[Run]
    counts: dict[str, Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None] | None
    next_page_token: str | None = None


class _Info(msgspec.Struct):
    missing: list[str] = []


class _Error(msgspec.Struct, rename="camel"):
    message: str
    request_id: str | None = None
    info: _Info | None = None


class _Envelope(msgspec.Struct):
    error: _Error


_RUNS = msgspec.json.Decoder(_RunsWire)
_RUN = msgspec.json.Decoder(Run)
_AGENTS = msgspec.json.Decoder(AgentsPage)
_ENVELOPE = msgspec.json.Decoder(_Envelope)


class ApiStats(msgspec.Struct, frozen=True):
    """What was asked since the start.

    `requests`: (operation, code) -> number; the code is the HTTP status, or the ApiError's reason
    where no whole answer came. `durations`: operation -> (requests per bucket of REQUEST_BUCKETS and
    +Inf, not cumulative; sum in seconds).
    """

    requests: dict[tuple[str, str], int]
    durations: dict[str, tuple[list[int], float]]


class _Answer(NamedTuple):
    status: int
    headers: Any  # case-insensitive mapping
    body: bytes
    now: float  # the API's clock, Unix seconds
    skew: float  # by how much it is ahead of ours, seconds


class _ResetError(ApiError):
    """The connection was closed under the request: worth another try."""


class _Fault(NamedTuple):
    reason: Reason
    text: str
    missing: tuple[str, ...] = ()
    reset: bool = False


@functools.lru_cache(maxsize=16)
def _http_date(text: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _quote(text: str, secret: str, limit: int = 200) -> str:
    """A server's text as part of one line of the log."""
    text = printable(" ".join(text.replace(secret, "***").split()))
    return text if len(text) <= limit else f"{text[:limit]}..."


def _excerpt(answer: _Answer, secret: str) -> str:
    start = answer.body.replace(secret.encode(), b"***")[:1000].decode("utf-8", "replace")
    kind = _quote(answer.headers.get("Content-Type", "no content type"), secret, 60)
    return f"{kind}, starts {_quote(start, secret, 80)!r}"


def _decode(body: bytes, decoder: "msgspec.json.Decoder[Page]") -> Page:
    """Typed JSON; NaN reads as null, lone surrogates as question marks. Raises ValueError, RecursionError."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError:
        raise
    except ValueError:
        pass
    with _slow:
        # NaN and Infinity become a number that no duration and no count can be
        loose = json.loads(body, parse_constant=lambda _: -1)
        return decoder.decode(json.dumps(loose, ensure_ascii=False).encode("utf-8", "replace"))


def _refusal(answer: _Answer, token: str) -> _Fault:
    """What a status other than 200 means, in the words of the API where it has some."""
    status = answer.status
    missing: tuple[str, ...] = ()
    try:
        error = _ENVELOPE.decode(answer.body).error
    except (ValueError, RecursionError):
        text = f"{status}, {_excerpt(answer, token)}"
    else:
        request_id = _quote(error.request_id or "without id", token, 80)
        text = f"{status} {_quote(error.message, token)} (request {request_id})"
        if error.info:
            missing = tuple(_quote(scope, token, 80) for scope in error.info.missing[:10])
    if 300 <= status < 400:
        target = re.match("(?:https?:)?//([^/?#]*)", answer.headers.get("Location", ""))
        host = _quote(target[1].rpartition("@")[2], token) if target else "another path"
        return _Fault(
            "bad_response", f"{status}, a redirect to {host}, is not followed: correct modus.base_url"
        )
    if status == 404:
        text += ": this id or route is unknown, or not for this token"
    if missing:
        text += f": the token lacks {', '.join(missing)}"
    reason = REASON_OF.get(status, "server_error" if status >= 500 else "bad_response")
    return _Fault(reason, text, missing)


class ModusClient:
    """Asks the Modus API; safe to share between threads.

    `token()` is called per request and may raise ApiError itself; the token goes to `base_url`'s
    host only and is cut out of every text of the server that an error quotes. `resource` is agents,
    workflows or auto: the route that answers, `agents` first. A call ends at its `deadline`
    (absolute seconds of `monotonic`) or after `timeout` seconds, whichever is first, with connect,
    TLS, sending, headers, body and retries inside; only a DNS lookup cannot be cut short. 5xx and
    resets are tried again with full jitter. A body over `max_body` bytes, unpacked, is refused, and a
    truncated one is a `bad_response`. A 429 closes the client, whoever calls, until `Retry-After`.

    `stats` are those of a client that this one replaces, to be counted on.

    Raises ApiError only: `deadline` and `timeout` say which of the two limits passed. The
    constructor raises ApiError too: a base URL, proxy or CA bundle that cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        token: Callable[[], str],
        *,
        resource: str = "auto",
        timeout: float = 10.0,
        concurrency: int = 32,
        max_body: int = 8 << 20,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        stats: ApiStats | None = None,
    ) -> None:
        self._token, self._timeout, self._max_body = token, timeout, max_body
        self._clock, self._monotonic, self._sleep, self._jitter = clock, monotonic, sleep, jitter
        try:
            prepared = requests.Request("GET", base_url).prepare().url or ""
            parts = urllib.parse.urlsplit(prepared)
            self._host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
            self._base = f"{self._host}{parts.path.rstrip('/')}/api/v1/"
            self._pool, self._target = pool(self._base, concurrency)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as exc:
            # the text of a library's error may hold a proxy's password
            text = f"modus.base_url or the proxy cannot be used ({type(exc).__name__})"
            raise ApiError("connection", text) from None
        self._routes = ROUTES if resource == "auto" else (resource,)
        self._route = None if resource == "auto" else resource
        self._other_route_at = -float("inf")
        self._closed_until = -float("inf")
        self._lock = threading.Lock()  # guards the four above and the two below
        self._requests = dict(stats.requests) if stats else {}
        self._durations = dict(stats.durations) if stats else {}

    def runs(
        self,
        agent_id: int,
        *,
        deadline: float,
        page_size: int,
        page_token: str | None = None,
        status: str | None = None,
        approval_scope: str | None = None,
        timeframe: str | None = None,
    ) -> RunsPage:
        """One page of an agent's runs, newest start first (operation list_runs)."""
        query = {
            "pageSize": page_size,
            "pageToken": page_token,
            "status": status,
            "approvalScope": approval_scope,
            "timeframe": timeframe,
        }
        wire, answer = self._get("list_runs", f"/{agent_id}/runs", query, _RUNS, deadline)
        counts = {name: n for name, n in (wire.counts or {}).items() if n is not None}
        return RunsPage(wire.runs, counts, wire.next_page_token or None, answer.now, answer.skew)

    def run(self, agent_id: int, workflow_id: str, temporal_run_id: str | None, *, deadline: float) -> Run:
        """One run; without `temporal_run_id` the newest of its workflow id (operation get_run)."""
        suffix = f"/{agent_id}/runs/{urllib.parse.quote(workflow_id, safe='')}"
        return self._get("get_run", suffix, {"temporalRunId": temporal_run_id}, _RUN, deadline)[0]

    def agents(self, *, deadline: float, page_token: str | None = None) -> AgentsPage:
        """One page of the agents that the token may use (operation list_agents)."""
        query = {"pageSize": 100, "pageToken": page_token}
        page, _ = self._get("list_agents", "", query, _AGENTS, deadline)
        return AgentsPage(page.agents, page.next_page_token or None)

    @property
    def host(self) -> str:
        """Scheme, host and port that are asked, without credentials."""
        return self._host

    def stats(self) -> ApiStats:
        """A consistent copy of what was asked so far."""
        with self._lock:
            durations = {name: (list(counts), total) for name, (counts, total) in self._durations.items()}
            return ApiStats(dict(self._requests), durations)

    def close(self) -> None:
        """Close the connections; calls from now on are `connection` errors."""
        self._pool.close()

    def _get(
        self,
        operation: str,
        suffix: str,
        query: dict[str, Any],
        decoder: "msgspec.json.Decoder[Page]",
        deadline: float,
    ) -> tuple[Page, _Answer]:
        """One page and the answer it came in, by the route that is known to work or is found to."""
        start = self._monotonic()
        call.until, call.monotonic = min(deadline, start + self._timeout), self._monotonic
        call.limit = "deadline" if deadline <= start + self._timeout else "timeout"
        if encoded := urllib.parse.urlencode({k: v for k, v in query.items() if v is not None}):
            suffix = f"{suffix}?{encoded}"
        known = self._route
        tried: list[str] = []
        error: ApiError | None = None
        while route := self._next_route(tried):
            tried.append(route)
            try:
                page = self._persist(operation, route + suffix, decoder)
            except ApiError as exc:
                if exc.missing and not known:
                    self._learn(route)  # a route that names its scopes is there
                if error is None or not known:
                    error = exc
                if exc.status != 404:
                    break
            else:
                self._learn(route)
                return page
        raise error or RuntimeError("no route")

    def _next_route(self, tried: list[str]) -> str | None:
        """The route to ask after those that answered 404; None when that answer stands."""
        with self._lock:
            known = self._route
            if known and known not in tried:
                return known
            others = [route for route in self._routes if route not in tried]
            if known and others:  # perhaps the API was renamed meanwhile: look now and then, not per agent
                now = self._monotonic()
                if now < self._other_route_at:
                    return None
                self._other_route_at = now + OTHER_ROUTE_AGAIN
            return others[0] if others else None

    def _learn(self, route: str) -> None:
        with self._lock:
            if route != self._route:
                self._route = route
                self._other_route_at = self._monotonic() + OTHER_ROUTE_AGAIN
                log.info("the API answers on /api/v1/%s", route)

    def _persist(
        self, operation: str, path: str, decoder: "msgspec.json.Decoder[Page]"
    ) -> tuple[Page, _Answer]:
        """One page, through resets and 5xx as far as the time allows."""
        attempt = 0
        while True:
            try:
                return self._once(operation, path, decoder)
            except ApiError as exc:
                error = exc
            if isinstance(error, _ResetError) and call.reused:
                continue  # the server had closed an idle connection: no fault, and the pool has one less
            pause = self._jitter() * BACKOFF * 2**attempt
            attempt += 1
            retry = isinstance(error, _ResetError) or error.reason == "server_error"
            if not retry or attempt > RETRIES or self._monotonic() + pause >= call.until:
                raise error
            self._sleep(pause)

    def _once(self, operation: str, path: str, decoder: "msgspec.json.Decoder[Page]") -> tuple[Page, _Answer]:
        """One request. Errors are raised outside of except blocks: none drags the request's headers along."""
        begin = self._monotonic()
        where = f"GET {self._base}{path.partition('?')[0]}"
        if begin < self._closed_until:
            pause = self._closed_until - begin
            raise ApiError("rate_limited", f"{where}: not asked, the API wants {pause:.0f} s more of silence")
        if begin >= call.until:
            raise ApiError(call.limit, f"{where}: not asked, no time left")
        token = self._token()
        if not re.fullmatch("[!-~]+", token):
            raise ApiError("unauthorized", "the token is empty or not fit for a header: check modus.token")
        answer = None
        try:
            answer = self._exchange(path, token)
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, UnicodeError) as exc:
            fault = self._broken(cause(exc), token)
        self._count(operation, str(answer.status) if answer else fault.reason, self._monotonic() - begin)
        if answer and answer.status == 200:
            try:
                return _decode(answer.body, decoder), answer
            except (ValueError, RecursionError) as exc:
                fault = _Fault("bad_response", f"{_quote(str(exc), token)}: {_excerpt(answer, token)}")
        elif answer:
            fault = _refusal(answer, token)
        kind = _ResetError if fault.reset else ApiError
        status = answer.status if answer else None
        raise kind(fault.reason, f"{where}: {fault.text}", status=status, missing=fault.missing)

    def _exchange(self, path: str, token: str) -> _Answer:
        """Send one request and read its answer whole, as the libraries' errors."""
        call.reused = True  # until a connection is made for it
        response = self._pool.urlopen(
            "GET",
            self._target + path,
            headers=HEADERS | {"Authorization": f"Bearer {token}"},
            timeout=time_left(),
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
        )
        try:
            ours = self._clock()
            now = _http_date(response.headers.get("Date", ""))
            if now is None or abs(now - ours) < CLOCK_RESOLUTION:
                now = ours
            if response.status == 429:
                self._pause(response.headers.get("Retry-After", ""), now)
            return _Answer(response.status, response.headers, self._body(response), now, now - ours)
        finally:
            response.close()  # keeps the connection if the body was read to its end

    def _body(self, response: Any) -> bytes:
        pieces, size = [], 0
        while piece := response.read(PIECE, decode_content=True):
            pieces.append(piece)
            size += len(piece)
            if size > self._max_body:
                raise http.client.HTTPException(f"a body of more than {self._max_body} bytes")
        return b"".join(pieces)

    def _pause(self, retry_after: str, now: float) -> None:
        if retry_after.isdecimal():
            seconds = float(retry_after)
        else:
            date = _http_date(retry_after)
            seconds = DEFAULT_PAUSE if date is None else max(0.0, date - now)
        until = self._monotonic() + min(seconds, LONGEST_PAUSE)
        with self._lock:
            self._closed_until = max(self._closed_until, until)

    def _broken(self, exc: BaseException, token: str) -> _Fault:
        """What an exchange without a whole answer died of."""
        match exc:
            case TimeoutError() | urllib3.exceptions.TimeoutError():
                limit = f"{self._timeout:g} s (modus.timeout)"
                if call.limit == "deadline":
                    limit = "the scrape's deadline"
                return _Fault(call.limit, f"no whole answer within {limit}")
            case socket.gaierror() | UnicodeError():
                return _Fault("connection", "DNS: the host name cannot be resolved")
            case ConnectionRefusedError():
                return _Fault("connection", "connection refused")
            case ConnectionError() | ssl.SSLEOFError() | ssl.SSLZeroReturnError():
                return _Fault(
                    "connection", "the connection was reset or closed without an answer", reset=True
                )
            case ssl.SSLCertVerificationError():
                return _Fault(
                    "connection", f"TLS: certificate not accepted: {_quote(exc.verify_message, token)}"
                )
            case ssl.SSLError():
                return _Fault("connection", f"TLS: {_quote(exc.reason or type(exc).__name__, token)}")
            case http.client.IncompleteRead():
                return _Fault("bad_response", "the body is truncated")
            case http.client.HTTPException() | urllib3.exceptions.DecodeError():
                return _Fault("bad_response", f"no sound HTTP answer: {_quote(str(exc), token)}")
            case OSError() if exc.strerror:
                return _Fault("connection", exc.strerror)
        return _Fault("connection", _quote(f"{type(exc).__name__}: {exc}", token))

    def _count(self, operation: str, code: str, took: float) -> None:
        with self._lock:
            self._requests[operation, code] = self._requests.get((operation, code), 0) + 1
            counts, total = self._durations.get(operation) or ([0] * (len(REQUEST_BUCKETS) + 1), 0.0)
            counts[bisect.bisect_left(REQUEST_BUCKETS, took)] += 1
            self._durations[operation] = (counts, total + took)
