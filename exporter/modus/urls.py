"""What is asked for, as text: the base of all URLs, and the query behind them."""

import re
import urllib.parse
from collections.abc import Mapping

import requests

from exporter.modus.errors import ApiError


def encoded(query: Mapping[str, str | int | None]) -> str:
    """The query with its question mark; what is None is left out."""
    given = [
        f"{name}={value if isinstance(value, int) else urllib.parse.quote(value, safe='')}"
        for name, value in query.items()
        if value is not None
    ]
    return f"?{'&'.join(given)}" if given else ""


def api_base(base_url: str) -> tuple[str, str]:
    """What precedes a route in a URL, and scheme, host and port alone. Raises ApiError."""
    try:
        parts = urllib.parse.urlsplit(requests.Request("GET", base_url).prepare().url or "")
        known = parts.scheme in ("http", "https")
    except requests.exceptions.MissingSchema:
        known = False
    except (requests.RequestException, ValueError) as exc:
        text = f"modus.base_url is no URL ({type(exc).__name__})"
        raise ApiError("connection", text, hint="write https:// and a host") from None
    if not known:
        raise ApiError("connection", "modus.base_url is no http(s) URL", hint="begin it with https://")
    host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    path = re.sub("/api(/v1)?$", "", parts.path.rstrip("/"))
    return f"{host}{path}/api/v1/", host
