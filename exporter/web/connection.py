"""One connection: a coroutine that receives requests, has them answered and sends the answers.

h11 knows HTTP/1.1. Each step has its own time, so that no client holds a connection for longer than that.
"""

import asyncio
import contextlib
import email.utils
import http
import re
from collections.abc import Mapping
from urllib.parse import unquote

import h11

from exporter.web.log import log_failure
from exporter.web.messages import Handler, Request, Response
from exporter.web.stream import CHUNK_BYTES, NotTLSError, Stream
from exporter.web.webconfig import WebConfigFile

MAX_HEADER_BYTES = 16 * 1024
MAX_IGNORED_BYTES = 64 * 1024  # of what a client sends while its request is being answered
REQUEST_SECONDS = 10.0  # from connecting, or from the first byte, to a whole request; also the TLS handshake
ANSWER_SECONDS = 30.0  # for the client to take its answer
IDLE_SECONDS = 75.0  # between requests: longer than the usual scrape interval of a minute
FINISH_SECONDS = 2.0  # for the client to read the last answer and close

CONTENT_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_WANTS_TLS = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"  # as in Go
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "deny",
}


class Connection:
    """One client, served by `run`; what it waits for and holds is what decides who gives way to whom."""

    def __init__(
        self,
        stream: Stream,
        client: str,
        web_config: WebConfigFile,
        handler: Handler,
    ) -> None:
        self.client = client  # its IP address
        self.config = web_config.current()  # as it was when the client connected
        self.unread: bytes | None = None  # the large answer that the client is taking
        self._loop = asyncio.get_running_loop()
        self.since = self._loop.time()  # when the present step began
        self.receiving = True  # the client has not asked for anything yet, or not again
        self.answering = False  # it is our turn
        self._stream, self._web_config, self._handler = stream, web_config, handler
        self._http = h11.Connection(h11.SERVER, MAX_HEADER_BYTES)
        self._idle = False  # between two requests
        self._last = False  # close after the request that is being answered
        self._task: asyncio.Task[None] | None = None

    def pace(self) -> float:
        """Bytes a second that the client takes of its answer, beyond what the system holds for it."""
        taken = (self._stream.taken or 0) if self.unread else 0
        return taken / max(self._loop.time() - self.since, 1e-9)

    def start(self) -> "asyncio.Task[None]":
        """Serve the client until one of us ends the connection; the task raises nothing."""
        self._task = self._loop.create_task(self._run())
        return self._task

    def drop(self) -> None:
        """End it at once; an answer that the client was taking is lost."""
        self._close()
        if self._task:
            self._task.cancel()

    def retire(self) -> None:
        """End it at once if it is idle, after its answer if a request is under way."""
        self._last = True
        if self._idle:
            self.drop()

    async def _run(self) -> None:
        try:
            if await self._admitted():
                with contextlib.suppress(h11.RemoteProtocolError):  # nonsense while it waits for its answer
                    while await self._exchange():
                        pass
        except (OSError, asyncio.CancelledError):  # TimeoutError too; cancelled only by `drop`
            pass
        except Exception as exc:
            log_failure("connection failed", exc)
        finally:
            self._close()

    def _close(self) -> None:
        self._stream.close(reset=self.unread is not None)
        self.unread = None

    async def _admitted(self) -> bool:
        if not self.config.tls:
            return True
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                certificate = await self._stream.handshake(self.config.tls)
        except TimeoutError:
            return False
        except NotTLSError:
            await self._stream.send(_WANTS_TLS)
            await self._finish()
            return False
        except OSError:
            await self._finish()  # the alert that says why is on its way
            return False
        self.since = self._loop.time()
        return self.config.admits(certificate)

    async def _exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        try:
            request = await self._receive()
        except h11.RemoteProtocolError as exc:  # not HTTP (400), or too large headers (431)
            refusal = Response(b"", exc.error_status_hint, SECURITY_HEADERS)
            await self._send(refusal, b"GET", last=True)
            await self._finish()
            return False
        if request is None:
            return False
        if self._web_config.current() is not self.config:
            if self.config.tls:
                return False  # it may not be admitted any more; a client asks again on a new connection
            self._last = True
        response = await self._answered(_request(request, self.client))
        await self._send(response, request.method, last=self._last or _has_body(request))
        if (self._http.our_state, self._http.their_state) != (h11.DONE, h11.DONE):
            await self._finish()
            return False
        self._http.start_next_cycle()
        return True

    async def _receive(self) -> h11.Request | None:
        """The next request, None when the client is done; h11.RemoteProtocolError when it is none."""
        self.receiving, self.since = True, self._loop.time()
        first = self._http.their_http_version is None
        self._idle = not first and not self._http.trailing_data[0]
        async with asyncio.timeout(IDLE_SECONDS if self._idle else REQUEST_SECONDS) as limit:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = await self._stream.receive()
                if self._idle:
                    self._idle, self.since = False, self._loop.time()
                    limit.reschedule(self.since + REQUEST_SECONDS)
                self._http.receive_data(data)
        self.receiving = self._idle = False
        return event if isinstance(event, h11.Request) else None

    async def _answered(self, request: Request) -> Response:
        """What the handler says, given up when the client resets or sends nonsense meanwhile."""
        self.answering = True
        answer = asyncio.ensure_future(self._handler(request))
        watch = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            return await answer
        finally:
            answer.cancel()
            watch.cancel()
            await asyncio.wait({answer, watch})
            self.answering = False
            if not watch.cancelled():
                watch.exception()  # seen, if it came too late to matter

    async def _watch(self) -> None:
        """Ignore what the client sends during its answer; returns at a further request, or at too much.

        Also when it sends no more: it may still read, and whether it left shows when something is sent.
        """
        ignored = 0
        while ignored < MAX_IGNORED_BYTES:
            event = self._http.next_event()
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return
            if event is h11.NEED_DATA:
                data = await self._stream.receive()
                self._http.receive_data(data)
                ignored += len(data)

    async def _send(self, response: Response, method: bytes, *, last: bool) -> None:
        self.since = self._loop.time()
        headers = {
            "Date": email.utils.formatdate(usegmt=True),
            **response.headers,
            "Content-Length": str(len(response.body)),
            **({"Connection": "close"} if last else {}),
        }
        reason = http.HTTPStatus(response.status).phrase
        head = h11.Response(status_code=response.status, headers=list(headers.items()), reason=reason)
        data = [self._http.send(head) or b""]
        if method != b"HEAD":
            data += self._http.send_with_data_passthrough(h11.Data(response.body)) or []
        self._http.send(h11.EndOfMessage())
        if sum(map(len, data)) <= CHUNK_BYTES:
            data = [b"".join(data)]
        else:
            self.unread = response.body
        async with asyncio.timeout(ANSWER_SECONDS):
            for part in data:
                await self._stream.send(part)
        self.unread = None

    async def _finish(self) -> None:
        self.since = self._loop.time()
        async with asyncio.timeout(FINISH_SECONDS):
            await self._stream.finish()


def _has_body(event: h11.Request) -> bool:
    headers = dict(event.headers)
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _request(event: h11.Request, client: str) -> Request:
    target = event.target.decode("ascii")
    if absolute := re.match(r"https?://[^/?#]*", target, re.IGNORECASE):  # as to a proxy
        target = target[absolute.end() :]
        target = target if target.startswith("/") else f"/{target}"
    headers: dict[str, str] = {}
    for name, value in event.headers:
        headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    path = unquote(target.partition("?")[0]) if target.startswith("/") else ""
    return Request(event.method.decode("ascii"), path, headers, client)
