"""What a scraper's headers ask for: format, compression, and how long it waits."""

import math
import re
from typing import Literal

Format = Literal["text", "openmetrics", "protobuf"]

MAX_TIMEOUT_SECONDS = 300.0  # of X-Prometheus-Scrape-Timeout-Seconds

_PART = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_PIECE = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"?)+')
_PROTO = "io.prometheus.client.MetricFamily"
_ESCAPING = ("allow-utf-8", "underscores", "dots", "values")
_WEIGHT = re.compile(r"\d+\.?\d*|\.\d+", re.ASCII)
_NUMBER = re.compile(r"\+?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def _preferences(header: str) -> list[tuple[float, str, dict[str, str]]]:
    """(weight, name, parameters) of an Accept header, best first; a nonsensical weight counts as 1."""
    parts = []
    for part in _PART.findall(header.lower()):
        name, *rest = (piece.strip() for piece in _PIECE.findall(part) or [""])
        parameters = {
            key.strip(): _unquoted(value.strip())
            for key, _, value in (piece.partition("=") for piece in rest)
        }
        weight = parameters.get("q", "1")
        parts.append((min(float(weight), 1.0) if _WEIGHT.fullmatch(weight) else 1.0, name, parameters))
    return sorted(parts, key=lambda part: -part[0])


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value


def negotiate(accept: str) -> tuple[Format, str]:
    """The format to answer in, and the content type; what is not understood gets text 0.0.4.

    The names of our metrics need no escaping, so every version and escaping scheme that Prometheus
    asks for reads the same.
    """
    for weight, media, parameters in _preferences(accept):
        escaping = parameters.get("escaping")
        suffix = f"; escaping={escaping}" if escaping in _ESCAPING else ""
        if weight and media == "application/vnd.google.protobuf":
            if parameters.get("proto") == _PROTO.lower() and parameters.get("encoding") == "delimited":
                return "protobuf", f"{media}; proto={_PROTO}; encoding=delimited{suffix}"
            continue
        openmetrics = media == "application/openmetrics-text"
        known = ("1.0.0", "0.0.1") if openmetrics else ("0.0.4", "1.0.0")
        version = parameters.get("version", known[0])
        if weight and version in known and (openmetrics or media in ("text/plain", "text/*", "*/*")):
            kind = "application/openmetrics-text" if openmetrics else "text/plain"
            suffix = suffix if version == "1.0.0" else ""
            return (
                "openmetrics" if openmetrics else "text",
                f"{kind}; version={version}; charset=utf-8{suffix}",
            )
    return "text", "text/plain; version=0.0.4; charset=utf-8"


def gzip_accepted(accept_encoding: str) -> bool:
    """Whether gzip may be used: named, or covered by *, with a weight above 0."""
    weights = {name: weight for weight, name, _ in _preferences(accept_encoding)}
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def scrape_timeout(header: str | None) -> float | None:
    """Seconds of X-Prometheus-Scrape-Timeout-Seconds, MAX_TIMEOUT_SECONDS at most.

    None when it is missing or anything but a positive, finite decimal number.
    """
    if not _NUMBER.fullmatch((header or "").strip()):
        return None
    seconds = float(header or "")
    return min(seconds, MAX_TIMEOUT_SECONDS) if seconds > 0 and math.isfinite(seconds) else None
