"""Keeps the token out of everything that the API or a proxy says, also when they echo it."""

import base64
import re
from functools import lru_cache
from html import escape
from urllib.parse import quote

from exporter.modus.model import printable

SHORTEST = 8  # characters: a shorter token may be a part of any word, and is looked for in errors only
USUAL = "modus_"  # what the platform's own tokens begin with

_ESCAPED = re.compile(rb"\\(?:u00([2-7][0-9a-fA-F])|.)", re.DOTALL)


class Secret:
    """A token as it may be echoed: plain, as in a URL or in HTML, or anywhere inside of a text in base64."""

    def __init__(self, token: str) -> None:
        plain = token.encode()
        spelt = _in_url_and_html(token) + _in_base64(plain)
        self._forms = list(dict.fromkeys([plain, *spelt])) if len(plain) >= SHORTEST else []
        self._plain = plain
        self.is_usual = token.startswith(USUAL)

    def redacted(self, body: bytes) -> bytes:
        """The body of an answer without the token, whatever of it is decoded later."""
        if b"\\" in body and (b"\\u00" in body or b"\\/" in body):  # perhaps spelt with needless escapes
            body = _ESCAPED.sub(_unescaped, body)
        for form in self._forms:
            if form in body:
                body = body.replace(form, b"***")
        return body

    def quoted(self, text: str, limit: int = 200) -> str:
        """A server's text as a bounded part of one line of the log."""
        plain = text.encode("utf-8", "replace").replace(self._plain, b"***")
        line = printable(" ".join(self.redacted(plain).decode().split()))
        return line if len(line) <= limit else f"{line[:limit]}..."


@lru_cache(maxsize=4)
def secret_of(token: str) -> Secret:
    """The same Secret for the same token: what it looks for is computed once."""
    return Secret(token)


def _in_url_and_html(token: str) -> list[bytes]:
    """What percent-encoding and HTML make of it: of the platform's own tokens nothing else."""
    in_url = quote(token, safe="")
    small = re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), in_url)
    html = escape(token)
    numbered = html.replace("&quot;", "&#34;").replace("&#x27;", "&#39;")  # as Go writes it
    return [form.encode() for form in (in_url, small, html, numbered, escape(token, quote=False))]


def _in_base64(plain: bytes) -> list[bytes]:
    """What base64 makes of it wherever it starts in a text, but for letters shared with its neighbours."""
    forms = []
    for start in range(3):
        whole = plain[start : len(plain) - (len(plain) - start) % 3]
        forms += [base64.b64encode(whole), base64.urlsafe_b64encode(whole)]
    return [form for form in dict.fromkeys(forms) if form]


def _unescaped(match: re.Match[bytes]) -> bytes:
    if match[0] == b"\\/":
        return b"/"
    char = bytes([int(match[1], 16)]) if match[1] else b""
    return char if char and char not in b'"\\\x7f' else match[0]
