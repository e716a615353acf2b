"""The usage report: what the whole organisation used, by hour and by agent or model.

A bucket that cannot be read costs itself. Nothing is said about when one is final: it grows while its hour is
open, and may be revised for some hours after.
"""

from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import msgspec

from exporter.modus.decode import sound
from exporter.modus.errors import BodyTooLargeError
from exporter.modus.model import Time, label, seconds

MOST_BUCKETS = 100_000  # of one answer: what is larger is asked for in shorter windows
LARGEST = float(2**53)

Grouping = Literal["agent", "model"]
GROUPINGS: tuple[Grouping, ...] = ("agent", "model")


class Used(NamedTuple):
    """What was used: calls of a model, tokens in and out, credits."""

    calls: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    credits: float = 0.0


class Bucket(NamedTuple):
    """What one agent or model used in the hour that begins at `hour` (Unix seconds)."""

    hour: int
    group: str  # how the API names the agent or model
    used: Used


class UsageReport(NamedTuple):
    """An answer; `malformed` is the number of buckets that could not be read."""

    buckets: list[Bucket]
    totals: Used
    malformed: int = 0


class _Numbers(msgspec.Struct):
    call_count: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    credits: float = 0.0

    @property
    def used(self) -> Used | None:
        """None for what is no amount."""
        used = Used(self.call_count, self.input_tokens, self.output_tokens, self.credits)
        return used if all(0 <= number <= LARGEST for number in used) else None


class _Bucket(_Numbers, kw_only=True):
    bucket: Time
    group_value: str | int


class _Report(msgspec.Struct):
    buckets: list[msgspec.Raw]
    totals: msgspec.Raw = msgspec.Raw(b"{}")


_REPORT = msgspec.json.Decoder(_Report)
_BUCKET = msgspec.json.Decoder(_Bucket)
_NUMBERS = msgspec.json.Decoder(_Numbers)


def iso(instant: float) -> str:
    """Unix seconds as the API reads them."""
    return datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def decode_report(body: bytes) -> UsageReport:
    """The report that an answer holds. Raises ValueError when it is none, and BodyTooLargeError."""
    try:
        raw = _REPORT.decode(body)
    except msgspec.ValidationError:
        raise
    except ValueError:  # one number that is none spoils no other
        raw = _REPORT.decode(sound(body))
    if len(raw.buckets) > MOST_BUCKETS:
        raise BodyTooLargeError(f"a report of {len(raw.buckets)} buckets")
    buckets, malformed = [], 0
    for each in raw.buckets:
        bucket = _bucket(each)
        if bucket is None:
            malformed += 1
        else:
            buckets.append(bucket)
    totals = _typed(_NUMBERS, raw.totals)
    return UsageReport(buckets, (totals and totals.used) or Used(), malformed)


def _bucket(raw: msgspec.Raw) -> Bucket | None:
    found = _typed(_BUCKET, raw)
    if found is None:
        return None
    start, used = seconds(found.bucket), found.used
    group = label(str(found.group_value)).strip()
    if start is None or start < 0 or used is None or not group:
        return None
    return Bucket(int(start // 3600) * 3600, group, used)


def _typed(decoder: "msgspec.json.Decoder[Any]", raw: msgspec.Raw) -> Any:
    try:
        return decoder.decode(raw)
    except (ValueError, RecursionError):
        return None
