"""Whatever a server sends, in whatever pieces: the body that http.client makes of it, or an error."""

import http.client
import io
from collections.abc import Iterator
from typing import Any

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from exporter.modus.response import Response

OK = b"HTTP/1.1 200 OK"
SOUND = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
STATUS_LINES = [OK] * 10 + [
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 200",
    b"HTTP/1.1 404 Not Found",
    b"HTTP/1.1 204 None",
]
STATUS_LINES += [
    b"HTTP/1.1 304 Same",
    b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 103 Early",
    b"HTTP/1.1 101 Switch",
]
STATUS_LINES += [
    b"HTTP/1.1 999 Any",
    b"HTTP/1.1 99 Low",
    b"HTTP/1.1  200 OK",
    b"HTTP/2.0 200 OK",
    b"HTTP/11 200",
]
STATUS_LINES += [b"HTTP/0.9 200 OK", b"ICE/1.1 200 OK", b""]
LENGTHS = [b"3"] * 6 + [
    b"0",
    b"10",
    b"3 ",
    b"+3",
    b"0x3",
    b"3, 3",
    b"",
    b"-1",
    b"1_0",
    b"99999999999999999999",
]
CODINGS = [b"chunked"] * 6 + [
    b"Chunked ",
    b"identity",
    b"gzip, chunked",
    b"chunked, gzip",
    b"\x0bchunked",
    b"",
]
OTHERS = [
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: upgrade",
    b"Upgrade: h2c",
    b"X-Any: 1",
]
OTHERS += [
    b"X-Any:",
    b"X-Any",
    b": 1",
    b" folded",
    b"X-Any: \x00",
    b"X-Any: \xff",
    b"X-Any: 1\rContent-Length: 3",
]
OTHERS += [b"Content-Length : 3", b" Content-Length: 3", b"Transfer-Encoding : chunked"]
BODIES = [b"abc"] * 4 + [b"0123456789", b"", b"abcd", b"\r\n", b"abc" + SOUND]
CHUNKS = [b"3\r\nabc\r\n"] * 4 + [b"3;a=b\r\nabc\r\n", b"3 \r\nabc\r\n", b"0x3\r\nabc\r\n", b"+3\r\nabc\r\n"]
CHUNKS += [b"3\nabc\n", b"A\r\n0123456789\r\n", b"3\r\nabcd\r\n", b"3\r\nab\r\n", b"-1\r\n", b"\r\n", b"abc"]
CHUNKS += [b"1_0\r\n0123456789abcdef\r\n", b"00\r\n\r\n"]
LASTS = [b"0\r\n\r\n"] * 6 + [
    b"0\r\nX-Any: 1\r\n\r\n",
    b"0\r\n",
    b"0\n\n",
    b"",
    b"0\r\n\r\n\r\n",
    b"0\r\n\r\n" + SOUND,
]
INTERIM = [b"HTTP/1.1 %d Any\r\n\r\n" % status for status in (100, 102, 103, 199)]
INTERIM += [b"HTTP/1.1 103 Any\r\nContent-Length: 3\r\n\r\n", b"HTTP/1.1 103 Any\r\nX-Any: 1\r\n\r\nabc"]
ENDS = st.sampled_from([b"\r\n"] * 40 + [b"\n", b"\r", b"\r\r\n", b" \r\n"])


@st.composite
def wires(draw: Any) -> bytes:
    """What a server may send: heads and bodies of sound and unsound parts, and then perhaps a byte wrong."""

    def some(parts: list[bytes], most: int, least: int = 0) -> list[bytes]:
        return draw(st.lists(st.sampled_from(parts), min_size=least, max_size=most))

    lengths = [b"Content-Length: " + value for value in some(LENGTHS, 1)]
    codings = [b"Transfer-Encoding: " + value for value in some(CODINGS, 1)]
    body = b"".join(some(CHUNKS, 2) + some(LASTS, 1, 1) if codings else some(BODIES, 1))
    if draw(st.booleans()):  # mostly sound
        chunked = draw(st.booleans())
        lengths, codings = ([], [b"Transfer-Encoding: chunked"]) if chunked else ([b"Content-Length: 3"], [])
        body = b"3\r\nabc\r\n0\r\n\r\n" if chunked else b"abc"
    headers = draw(st.permutations(lengths + codings + some(OTHERS, 2)))
    raw = b"".join(line + draw(ENDS) for line in [*some(STATUS_LINES, 1, 1), *headers, b""]) + body
    if draw(st.integers(0, 3)) == 0:
        raw = b"".join(some(INTERIM, 3)) + raw
    if draw(st.integers(0, 3)) == 0:
        at, gone = draw(st.integers(0, len(raw))), draw(st.integers(0, 3))
        raw = raw[:at] + draw(st.sampled_from([b"", b"\r", b"\n", b" ", b"\0", b"0"])) + raw[at + gone :]
    return raw


class Heard:
    """A socket on which that came, and then the end."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._raw)


class Oracle(http.client.HTTPResponse):
    """Skips every interim answer, as the standard wants it, and not `100 Continue` alone."""

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]
        interim = 100 <= status < 200 and status != http.client.SWITCHING_PROTOCOLS
        return version, http.client.CONTINUE if interim else status, reason


def oracle(raw: bytes) -> tuple[int, bytes] | None:
    """Status and body by http.client; None for an error."""
    answer = Oracle(Heard(raw), method="GET")  # type: ignore[arg-type]
    try:
        answer.begin()
        return answer.status, answer.read()
    except (http.client.HTTPException, ValueError):
        return None
    finally:
        answer.close()


class Pool:
    """Where an answer gives its connection back to; it is the connection too."""

    closed = False

    def close(self) -> None:
        self.closed = True

    def rest(self) -> None:
        pass

    def _put_conn(self, connection: object) -> None:
        pass


def ours(pieces: Iterator[bytes], most: int) -> tuple[int, bytes, bool] | None:
    """Status, body, and whether the connection is kept, by Response; None for an error."""
    pool = Pool()
    try:
        answer = Response(lambda _: next(pieces, b""))
        answer._pool = answer._connection = pool
        body = b"".join(iter(lambda: answer.read(most), b""))
    except (http.client.HTTPException, ConnectionError):
        return None
    answer.close()
    return answer.status, body, not pool.closed


@settings(max_examples=600)
@given(raw=wires(), cuts=st.lists(st.integers(1, 12), max_size=30), most=st.sampled_from([1, 4, 65536]))
@example(raw=SOUND, cuts=[], most=65536)
@example(raw=SOUND, cuts=[1] * 45, most=1)
@example(raw=INTERIM[2] + INTERIM[1] + SOUND, cuts=[1] * 90, most=4)
@example(raw=b"HTTP/1.1 100 Continue\r\n\r\n" + SOUND, cuts=[30], most=4)
def test_the_body_is_that_of_http_client_or_an_error(raw: bytes, cuts: list[int], most: int) -> None:
    def pieces() -> Iterator[bytes]:
        left = raw
        for cut in cuts:
            if left[:cut]:
                yield left[:cut]
            left = left[cut:]
        if left:
            yield left

    found = ours(pieces(), most)
    event("error" if found is None else "answer")
    if found is None:
        assert raw != SOUND
        return
    status, body, kept = found
    assert oracle(raw) == (status, body)
    if kept:  # there was nothing left of it
        rest = raw + SOUND.replace(b"abc", b"xyz")
        assert oracle(rest) == (status, body)
        assert ours(iter([rest]), most) is None
