"""The values of config.yaml that YAML does not know: durations, rates, secrets."""

import re
from typing import Annotated, Any

from msgspec import Meta

TOKEN = re.compile("[!-~]{1,4096}")  # what an HTTP header can carry
_UNITS = {
    "y": 31_536_000_000,
    "w": 604_800_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1000,
    "ms": 1,
}
_DURATION = re.compile("".join(f"(?:([0-9]{{1,15}}){unit})?" for unit in _UNITS))
_MAX_MILLISECONDS = (1 << 63) // 1_000_000  # Prometheus keeps durations as 64-bit nanoseconds: 292 years


class Secret(str):
    """Text that does not show in a repr."""

    __slots__ = ()

    def __repr__(self) -> str:  # noqa: D105 - the class says it
        return "'***'"


class DatabaseUrl(Secret):
    """A URL of libpq; it may hold a password."""

    __slots__ = ()


class Duration(float):
    """Seconds; in the file a Prometheus duration (1h30m, 500ms, 1d, 0s)."""


class Positive(Duration):
    """A duration above zero."""


class Amount(float):
    """A number above zero, whole or decimal in the file."""


class Switch(str):
    """auto, true or false, as text."""

    __slots__ = ()


Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]


def decode(kind: type, value: Any) -> Any:
    """The hook of `yamlfile.convert`, which adds to its errors where, and what was got."""
    text = str(value) if type(value) in (int, str) else ""
    if kind is Switch:
        text = str(value).lower() if isinstance(value, bool) else text
        if text not in ("auto", "true", "false"):
            raise ValueError("expected auto, true or false")
        return Switch(text)
    if kind is Secret:
        if not TOKEN.fullmatch(text):
            raise ValueError("expected a token in printable ASCII without spaces")
        return Secret(text)
    if kind is DatabaseUrl:
        if not TOKEN.fullmatch(text) or not text.startswith(("postgresql://", "postgres://")):
            raise ValueError("expected a URL like postgresql://user@host:5432/database")
        return DatabaseUrl(text)
    if kind is Amount:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not float(text):
            raise ValueError("expected a number above 0 and below 1000000000")
        return Amount(text)
    if text == "0":  # the one that Prometheus takes without a unit
        text = "0s"
    elif re.fullmatch("-?[0-9.]+", text):
        raise ValueError("expected a duration with a unit like 30s")
    match = _DURATION.fullmatch(text)
    numbers = match.groups("0") if text and match else ()
    milliseconds = sum(int(number) * unit for number, unit in zip(numbers, _UNITS.values(), strict=False))
    if not numbers or milliseconds > _MAX_MILLISECONDS:
        raise ValueError("expected a duration like 1h30m")
    if kind is Positive and not milliseconds:
        raise ValueError("expected a duration above 0s")
    return kind(milliseconds / 1000)
