"""The base URL of the API: whether what is configured can be one."""

import re
from urllib.parse import urlsplit

import requests

_URL = "an http(s) URL without user, password, query and fragment"


def problem(url: str) -> str:
    """What was expected of a base URL that is not one; it is not quoted: it may hold a password."""
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", url):
        return "an http(s) URL: write https:// in front"
    if not re.match("(?i:https?)://", url):
        return "an http(s) URL: begin it with https://"
    try:
        parts = urlsplit(url)
    except ValueError:  # a broken IPv6 address
        return _URL
    if not parts.hostname or re.search(r"[\s\\@?#]", url):
        return _URL
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        return "an http(s) URL with a port from 1 to 65535, or with none"
    if (parts.scheme, port) in (("https", 80), ("http", 443)):
        return f"another scheme for port {port}, which speaks {'https' if port == 443 else 'http'}"
    try:
        requests.Request("GET", url).prepare()
    except (requests.RequestException, ValueError):
        return "an http(s) URL with the name or address of a host"
    return ""
