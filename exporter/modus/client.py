"""ModusClient: one page of the Modus API per call, as typed values or an ApiError."""

import http.client
import random
import re
import threading
import time
import urllib.parse
from codecs import BOM_UTF8
from collections.abc import Callable

import requests
import urllib3

from exporter import __version__
from exporter.deadline import Deadline
from exporter.modus import decode
from exporter.modus.adapter import ModusAdapter
from exporter.modus.answer import Answer, Call, Decoded, read
from exporter.modus.apiclock import ApiClock, http_date
from exporter.modus.body import LARGEST, Bodies, Room, allowed
from exporter.modus.contact import Contact
from exporter.modus.errors import REFUSED, ApiError, BodyTooLargeError, Fault, broken
from exporter.modus.exchange import Exchange
from exporter.modus.model import AgentsPage, RunDetails, RunsPage
from exporter.modus.pacing import Pause, RateLimit, Retries, Slowest
from exporter.modus.requeststats import ApiStats, RequestStats
from exporter.modus.routes import Routes
from exporter.modus.secret import secret_of
from exporter.modus.urls import api_base, encoded
from exporter.modus.usage import Grouping, UsageReport, decode_report, iso
from exporter.turn import TURN

HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "User-Agent": f"modus-exporter/{__version__}",
}
BESIDE = 2  # connections for what is asked beside the scrapes
FIRST_BYTE = 1 / 3  # of the time that is left: what an idle connection gets before it is taken for dead
SLOWER = 1.25  # times the slowest answer of late: what it gets if that is more and its peer took the request


class ModusClient:
    """Asks the Modus API; safe to share between threads.

    `token()` is called per request and may raise ApiError itself; the token goes to `base_url`'s
    host only and is cut out of everything that the server says. `resource` is agents, workflows or
    auto: the route that answers, `agents` first. A call ends with its `deadline` or after `timeout`
    seconds, whichever is first, with connect, TLS, sending, headers, body and retries inside; only a
    DNS lookup cannot be cut short. The deadline may be moved meanwhile: one that is ended cuts the call
    off within half a second. 5xx and resets are tried again with full jitter. Bodies are bounded,
    unpacked, by what a page of its size may take; a truncated one is a `bad_response`. A 429, or a 503
    with `Retry-After`, closes the client, whoever calls, until then. `max_requests_per_second` holds
    over all threads: who would wait past the deadline gets the reason `deadline`.

    `ca_file` names CA certificates to trust, also for an HTTPS proxy, instead of those of the
    environment (REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, SSL_CERT_FILE, SSL_CERT_DIR) or of certifi.
    `requests_so_far` are those of a client that this one replaces, to be counted on. `contact` tells what
    came of the newest call.

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
        ca_file: str | None = None,
        max_requests_per_second: float | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = TURN.sleep,
        jitter: Callable[[], float] = random.random,
        requests_so_far: RequestStats | None = None,
    ) -> None:
        self._token, self._timeout, self._clock, self._monotonic = token, timeout, clock, monotonic
        self._base, self._host = api_base(base_url)
        try:
            adapter = ModusAdapter(self._base, concurrency + BESIDE, ca_file)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError, TypeError) as exc:
            # the text of a library's error may hold a proxy's password; TypeError: that has no host behind it
            text = f"the proxy of the environment cannot be used ({type(exc).__name__})"
            raise ApiError("connection", text, hint="check https_proxy and http_proxy") from None
        self._session = requests.Session()
        self._session.mount(self._base, adapter)
        self._proxy = adapter.proxy
        self._routes = Routes(resource, monotonic)
        self._rate_limit = RateLimit(max_requests_per_second, monotonic, sleep)
        self._retries = Retries(self._rate_limit, sleep, jitter)
        self._pause = Pause(monotonic)
        self._slowest = Slowest()
        self._bodies = Bodies()
        self._api_clock = ApiClock()
        self.requests_so_far = requests_so_far or RequestStats(clock())
        self.contact = Contact()
        self._noting = threading.Lock()  # of what came of a call

    def runs(
        self,
        agent_id: int,
        *,
        deadline: Deadline,
        page_size: int,
        page_token: str | None = None,
        status: str | None = None,
        approval_scope: str | None = None,
        timeframe: str | None = None,
    ) -> RunsPage:
        """One page of an agent's runs, newest start first (operation list_runs).

        A run that cannot be read costs itself; a page larger than may be is a `bad_response` whose
        error is `too_large`.
        """
        query = {
            "pageSize": page_size,
            "pageToken": page_token,
            "status": status,
            "approvalScope": approval_scope,
            "timeframe": timeframe,
        }
        call = Call(
            "list_runs",
            f"/{agent_id}/runs{encoded(query)}",
            lambda body: decode.runs_page(body, page_size),
            allowed(page_size),
            agent_id,
        )
        try:
            page, answer = self._ask(call, deadline)
        except ApiError as error:
            if timeframe and error.hint == REFUSED:
                error.hint = "the API refuses what is asked: check runs.timeframe"
            raise
        token = page.next_page_token or None
        return RunsPage(page.runs, page.counts, token, answer.now, answer.skew, page.malformed)

    def run(
        self, agent_id: int, workflow_id: str, temporal_run_id: str | None, *, deadline: Deadline
    ) -> RunDetails:
        """One run; without `temporal_run_id` the newest of its workflow id (operation get_run)."""
        path = f"/{agent_id}/runs/{urllib.parse.quote(workflow_id, safe='')}"
        query = encoded({"temporalRunId": temporal_run_id})
        return self._ask(Call("get_run", path + query, decode.one_run, allowed(1), agent_id), deadline)[0]

    def agents(
        self,
        *,
        deadline: Deadline,
        page_token: str | None = None,
        page_size: int = 100,
        with_variation: bool = False,
    ) -> AgentsPage:
        """One page of the agents that the token may use, with what is deployed of each if wanted."""
        query = encoded(
            {
                "pageSize": page_size,
                "pageToken": page_token,
                "includeVariation": "true" if with_variation else None,
                "view": "active" if with_variation else None,
            }
        )
        call = Call(
            "list_agents", query, lambda body: decode.agents_page(body, page_size), allowed(page_size), -1
        )
        return self._ask(call, deadline)[0]

    def usage(self, grouping: Grouping, since: float, until: float, *, deadline: Deadline) -> UsageReport:
        """What was used in each hour from `since` until before `until`, in Unix seconds."""
        query = {"since": iso(since), "until": iso(until), "rollup": "hour", "group_by": grouping}
        call = Call("get_usage", encoded(query), decode_report, LARGEST, -1, "usage")
        return self._ask(call, deadline)[0]

    @property
    def host(self) -> str:
        """Scheme, host and port that are asked, without credentials."""
        return self._host

    def stats(self) -> ApiStats:
        """What was asked so far; what this shows for the first time it shows at 0 (RequestStats.shown)."""
        return self.requests_so_far.shown()

    def close(self) -> None:
        """Close the connections; calls from now on are `connection` errors."""
        self._session.close()

    def _ask(self, call: "Call[Decoded]", deadline: Deadline) -> "tuple[Decoded, Answer]":
        """What the answer holds, and the answer, by the route that works and through retries."""

        def by(route: str) -> tuple[Decoded, Answer]:
            self._rate_limit.wait(deadline)
            until = deadline.within(self._timeout)
            return self._retries.ask(lambda fresh: self._once(call, route, fresh, until, deadline), until)

        try:
            found = by(call.route) if call.route else self._routes.ask(by)
        except ApiError as error:
            with self._noting:
                self.contact = self.contact.after(error, self._clock())
            raise
        with self._noting:
            self.contact = Contact(self._clock())
        return found

    def _once(
        self, call: "Call[Decoded]", route: str, fresh: bool, until: Deadline, deadline: Deadline
    ) -> "tuple[Decoded, Answer]":
        """One request. Errors are raised outside of except blocks: none drags the request's headers along."""
        url = f"{self._base}{route}{call.suffix}"
        where = f"GET {url.partition('?')[0]}"
        self._pause.check(where)
        left = until.left()
        if left <= 0.0:
            raise ApiError(self._limit(deadline).reason, f"{where}: not asked, no time left")
        token = self._token()
        if not re.fullmatch("[!-~]+", token):
            raise ApiError("unauthorized", f"{where}: not asked, the token is empty or not fit for a header")
        slow = self._slowest.seconds * SLOWER
        exchange = Exchange(until, patience=left * FIRST_BYTE, slow=slow, fresh=fresh)
        room = self._bodies.room()
        try:
            answer = self._exchange(call, url, token, exchange, room, deadline)
            got = answer if isinstance(answer, Fault) else read(answer, call, secret_of(token))
        finally:
            room.leave()
        if not isinstance(got, Fault):
            return got
        raise got.error(where, idle=exchange.reused and not got.status)

    def _exchange(
        self,
        call: "Call[Decoded]",
        url: str,
        token: str,
        exchange: Exchange,
        room: Room,
        deadline: Deadline,
    ) -> Answer | Fault:
        """Send one request and read its answer whole, or say why there is none; either is counted."""
        begin = self._monotonic()
        try:
            answer: Answer | Fault = self._send(call, url, token, exchange, room)
        except (
            OSError,  # the errors of requests are of this kind too
            http.client.HTTPException,
            urllib3.exceptions.HTTPError,
            UnicodeError,
            BodyTooLargeError,
        ) as exc:
            answer = broken(exc, secret_of(token), self._limit(deadline), self._proxy)
        code = answer.reason if isinstance(answer, Fault) else str(answer.status)
        end = self._monotonic()
        if not isinstance(answer, Fault):
            self._slowest.note(end - begin, end)
        self.requests_so_far.count(call.operation, code, end - begin)
        return answer

    def _send(self, call: "Call[Decoded]", url: str, token: str, exchange: Exchange, room: Room) -> Answer:
        request = requests.PreparedRequest()
        request.method, request.url = "GET", url
        request.headers = HEADERS | {"Authorization": f"Bearer {token}"}  # type: ignore[assignment]
        response = self._session.get_adapter(url).send(request, stream=True, timeout=exchange)  # type: ignore[arg-type]
        try:
            status, headers, ours = response.status_code, response.headers, self._clock()
            date = headers.get("Date", "")
            skew = self._api_clock.skew(date, ours, call.agent_id)
            silenced = status in (429, 503) and self._pause.note(
                status, headers.get("Retry-After", ""), http_date(date) or ours
            )
            body = secret_of(token).redacted(room.read(response.raw, call.most, exchange.deadline))
            return Answer(status, headers, body.removeprefix(BOM_UTF8), ours + skew, skew, silenced)
        finally:
            response.raw.close()  # keeps the connection if the body was read to its end

    def _limit(self, deadline: Deadline) -> Fault:
        """What it is when a call's time is over: the scrape's deadline, or the call's own limit."""
        if deadline.passed():
            return Fault("deadline", "no whole answer within the scrape's deadline")
        return Fault("timeout", f"no whole answer within {self._timeout:g} s (modus.timeout)")
