"""One HTTP response as llhttp parses it: strictly, for where it may end in two places one of them is forged.

`Content-Length` beside `Transfer-Encoding`, two lengths, folded headers, lines without CR, bytes behind the
end, an upgrade: llhttp refuses it, or this module does. What is refused is an HTTPException, and its
connection is not used again.
"""

import http.client
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import httptools
import urllib3
from urllib3.response import GzipDecoder

RECEIVED = 65536  # bytes received at once, at most
MOST_HEADERS = 100
LONGEST_WITHOUT_BODY = 65536  # bytes that may come between two pieces of the body, or before the first
BODILESS = (204, 304)
ENCODINGS = ("", "identity", "gzip", "x-gzip")


class Headers(dict[bytes, bytes]):
    """Headers by their names in small letters, as they came: few are ever looked at."""

    @classmethod
    def of(cls, lines: Sequence[tuple[bytes, bytes]]) -> "Headers":
        """The headers of these lines; the values of several alike with commas between them."""
        headers = cls(lines)
        if len(headers) < len(lines):
            for name in headers:
                headers[name] = b", ".join(value for other, value in lines if other == name)
        return headers

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
        """The value, or `default`."""
        value = super().get(name.lower().encode())
        return default if value is None else value.decode("latin-1")


class Response:
    """One answer, in the form in which urllib3's pool and `requests` want it.

    `receive` is that of the connection's socket. What it raises passes through, and HTTPException is raised
    for an answer that is no sound one. Once made it has its headers; the body comes as `read` asks for it.
    Read to its end it gives the connection back, closed before it closes it.
    """

    reason, version_string = "", "HTTP/1"
    retries = length_remaining = None  # the one is set by the pool, the other logged
    _pool: Any  # set by the pool, once the headers are there; and so is the next
    _connection: Any

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self.status = 0  # until all headers are there
        self.headers = Headers()
        self._receive = receive
        self._parser: Any = httptools.HttpResponseParser(self)
        self._begun = self._whole = self._kept = False
        self._lines: list[tuple[bytes, bytes]] = []  # of the headers, or of what comes behind a chunked body
        self._without_body = 0  # bytes
        self._body: list[bytes] = []  # what came and was not read yet
        while not self.status:
            self._take()
        self._check()
        packed = "gzip" in self.headers.get("Content-Encoding").lower()
        self._unpacker = GzipDecoder() if packed else None

    def read(self, amt: int | None = None, decode_content: bool = True) -> bytes:
        """At most `amt` bytes of the body, unpacked; none behind its end. None: all of it."""
        if amt is None:
            return b"".join(iter(lambda: self.read(RECEIVED), b""))
        while True:
            piece = self._next(amt)
            if self._whole:
                self._release()
            if piece or self._whole:
                return piece
            self._take()

    def close(self) -> None:
        """Let go of the connection."""
        self._kept = self._kept and self._whole
        self._release()

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        self._parser = None  # which holds this object
        if connection:
            if self._kept:
                connection.rest()
            else:
                connection.close()
            self._pool._put_conn(connection)

    def _next(self, most: int) -> bytes:
        """What came, unpacked, but no more than so much of it."""
        came, self._body = b"".join(self._body), []
        if self._unpacker is None:
            if len(came) > most:
                self._body.append(came[most:])
            return came[:most]
        try:
            return self._unpacker.decompress(came, most)
        except zlib.error as exc:
            raise urllib3.exceptions.DecodeError(f"gzip: {exc}") from None

    def _check(self) -> None:
        """Refuse what the parser takes, but HTTP/1 does not, or nobody asked for."""
        if self._parser.get_http_version() not in ("1.1", "1.0") or not 200 <= self.status <= 999:
            raise http.client.HTTPException(f"status {self.status} of an unknown kind")
        chunked = self.headers.get("Transfer-Encoding").lower() == "chunked"
        if b"transfer-encoding" in self.headers and (not chunked or self.status in BODILESS):
            raise http.client.HTTPException("an unknown transfer encoding, or no body for it")
        if self.headers.get("Content-Encoding").lower() not in ENCODINGS:
            raise http.client.HTTPException("a content encoding that was not asked for")

    def _take(self) -> None:
        """Receive once, and parse."""
        data = self._receive(RECEIVED)
        if not data:
            self._end()
            return
        if not self._begun and not b"HTTP/1.".startswith(data[:7]):
            raise http.client.BadStatusLine(data[:8].decode("latin-1"))
        self._begun = True
        self._without_body += len(data)
        view = memoryview(data)
        try:
            for part in (view[:-1], view[-1:]):  # an answer ends where what came ends, or it is none
                if self._whole:
                    raise http.client.HTTPException("bytes behind the end of the answer")
                self._parser.feed_data(part)
        except httptools.HttpParserUpgrade:
            raise http.client.HTTPException("an upgrade that nobody asked for") from None
        except httptools.HttpParserError as exc:
            raise http.client.HTTPException(str(exc)) from None
        if self._without_body > LONGEST_WITHOUT_BODY or len(self._lines) > MOST_HEADERS:
            raise http.client.HTTPException("endless headers")

    def _end(self) -> None:
        """The server has closed the connection: only without any length that is an end of the body."""
        if not self._begun:
            raise http.client.RemoteDisconnected("closed without an answer")
        if not self.status or {b"content-length", b"transfer-encoding"} & self.headers.keys():
            raise http.client.IncompleteRead(b"")
        self._whole = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """For the parser: a header, or one behind a chunked body, which is none."""
        self._lines.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """For the parser: that was the last header, of the answer or of an interim one before it."""
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != http.client.SWITCHING_PROTOCOLS:
            self._lines.clear()
        else:
            self.headers = Headers.of(self._lines)
            self.status, self._kept = status, self._parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        """For the parser: a piece of the body."""
        self._body.append(piece)
        self._without_body = 0

    def on_message_complete(self) -> None:
        """For the parser: that was all, of the answer or of an interim one."""
        self._whole = self.status > 0
