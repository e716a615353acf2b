"""Fields of protobuf messages: https://protobuf.dev/programming-guides/encoding. Pure.

What stands before a value is its key: number of the field * 8 + kind. Bytes are put together as texts in
Latin-1, a character for each byte: Python does that twice as fast.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from struct import Struct
from typing import Any

from exporter.modus.model import printable

BYTES = "latin-1"
CACHED = 4096  # values of a kind

_pack = Struct("<d").pack


class Cache(dict[Any, str]):
    """What a function makes of values that mostly come again and again; faster than an `lru_cache`."""

    def __init__(self, function: Callable[[Any], str]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, value: Any) -> str:
        """Make the text of a value that is not here."""
        if len(self) >= CACHED:
            self.clear()
        text = self[value] = self._function(value)
        return text


def varint(number: int) -> str:
    """A whole number, a negative one as in 64 bits."""
    number %= 2**64
    return chr(number) if number < 128 else chr(number & 127 | 128) + VARINTS[number >> 7]


def signed(number: int) -> str:
    """A whole number in the encoding that keeps small negative ones short."""
    return varint(2 * number if number >= 0 else -2 * number - 1)


def double(number: float) -> str:
    """Any number, as one of 64 bits."""
    return _pack(number).decode(BYTES)


def timestamp(instant: float) -> str:
    """Unix seconds as a message of whole ones and nanoseconds, to the millisecond; its length before it."""
    seconds, milliseconds = divmod(round(instant * 1000), 1000)
    if seconds >> 14 > 0:  # nearly always, and seldom the same twice: a cache of them would be in vain
        whole = f"{_MORE[seconds & 127]}{_MORE[seconds >> 7 & 127]}{VARINTS[seconds >> 14]}"
    else:
        whole = varint(seconds)
    content = f"\x08{whole}\x10{_NANOSECONDS[milliseconds]}"
    return f"{VARINTS[len(content)]}{content}"


VARINTS, SIGNED, NUMBERS, INSTANTS = map(Cache, (varint, signed, double, timestamp))  # in NUMBERS -0.0 is 0.0
_NANOSECONDS = Cache(lambda milliseconds: varint(milliseconds * 1_000_000))
_MORE = [chr(bits | 128) for bits in range(128)]  # an octet of a varint that is not its last


def field(key: str, content: str) -> str:
    """A message, or a text."""
    return f"{key}{VARINTS[len(content)]}{content}"


def encoded(text: str) -> str:
    """Any text as its bytes in UTF-8."""
    return text if text.isascii() and text.isprintable() else printable(text).encode().decode(BYTES)


@lru_cache
def _name(name: str) -> str:
    return field("\x0a", encoded(name))


def pairs(labels: Iterable[tuple[str, str]]) -> str:
    """Labels, by name and value."""
    text = ""
    for name, value in labels:
        shown = encoded(value)
        pair = f"{_name(name)}\x12{VARINTS[len(shown)]}{shown}"
        text += f"\x0a{VARINTS[len(pair)]}{pair}"
    return text
