"""What a request can end in besides an answer: one error, its reason, and one line that says what to do."""

import http.client
import re
import socket
import ssl
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import msgspec
import requests
import urllib3

from exporter.modus.secret import Secret

Reason = Literal[
    "unauthorized",
    "forbidden",
    "not_found",
    "rate_limited",
    "server_error",
    "timeout",
    "connection",
    "bad_response",
    "deadline",
    "internal",
]
REASONS: tuple[str, ...] = get_args(Reason)
REASON_OF: dict[int, Reason] = {401: "unauthorized", 403: "forbidden", 404: "not_found", 429: "rate_limited"}
NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}


class ApiError(Exception):
    """A request that brought no usable answer.

    `reason` is a value of `modus_agent_read_errors_total`; the text is one line for the log and
    never holds a secret; `missing` lists the scopes a 403 names; `status` is the HTTP status, if
    there was one; `too_large` says that a smaller page might do.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        status: int | None = None,
        missing: tuple[str, ...] = (),
        too_large: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.status = status
        self.missing = missing
        self.too_large = too_large

    @classmethod
    def internal(cls, error: Exception) -> "ApiError":
        """An exception of ours as one agent's error: one line, with the place in the code."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
        return cls("internal", " ".join(f"{type(error).__name__} at {place}: {error}".split())[:300])

    @property
    def answered(self) -> bool:
        """Whether it is an answer of the API, if not the one that was wanted."""
        return self.status is not None


class TransientError(ApiError):
    """Worth another try; `idle`: the connection had been idle, and had died meanwhile."""

    def __init__(self, reason: Reason, message: str, *, status: int | None, idle: bool) -> None:
        super().__init__(reason, message, status=status)
        self.idle = idle


class SilentConnectionError(ConnectionError):
    """A connection that was there before brought no first byte in time: it may have died unseen."""


class BodyTooLargeError(ValueError):
    """An answer larger than what a page of this size may take."""


class Fault(NamedTuple):
    """Why there is no answer, before it is known who is told."""

    reason: Reason
    text: str
    missing: tuple[str, ...] = ()
    transient: bool = False
    too_large: bool = False
    status: int | None = None


class _Info(msgspec.Struct):
    missing: list[str] = []


class _Error(msgspec.Struct, rename="camel"):
    message: str
    request_id: str | None = None
    info: _Info | None = None


class _Envelope(msgspec.Struct):
    error: _Error


_ENVELOPE = msgspec.json.Decoder(_Envelope)


def excerpt(headers: Mapping[str, str], body: bytes, secret: Secret) -> str:
    """How a body begins that is not what was asked for."""
    kind = secret.quoted(headers.get("Content-Type", "no content type")[:1000], 60)
    return f"{kind}, starts {secret.quoted(body[:1000].decode('utf-8', 'replace'), 80)!r}"


def refusal(status: int, headers: Mapping[str, str], body: bytes, secret: Secret) -> Fault:
    """What a status other than 200 means, in the words of the API where it has some."""
    missing: tuple[str, ...] = ()
    try:
        error = _ENVELOPE.decode(body)
    except (ValueError, RecursionError):
        text = f"{status}, {excerpt(headers, body, secret)}"
    else:
        request_id = secret.quoted(error.error.request_id or "without id", 80)
        text = f"{status} {secret.quoted(error.error.message)} (request {request_id})"
        if error.error.info:
            missing = tuple(secret.quoted(scope, 80) for scope in error.error.info.missing[:10])
    if 300 <= status < 400:
        target = re.match("(?:https?:)?//([^/?#]*)", headers.get("Location", ""))
        host = secret.quoted(target[1].rpartition("@")[2]) if target else "another path"
        return Fault(
            "bad_response", f"{status}, a redirect to {host}, is not followed: correct modus.base_url"
        )
    if status == 404:
        text += ": this id or route is unknown, or not for this token"
    elif status == 407:
        text += ": the proxy wants a user and a password, as in https_proxy=http://user:password@host:port"
    elif status == 400 and b"HTTPS port" in body:
        text += ": this port speaks TLS: write https:// in modus.base_url"
    if missing:
        text += f": the token lacks {', '.join(missing)}"
    return Fault(REASON_OF.get(status, "server_error" if status >= 500 else "bad_response"), text, missing)


def broken(raised: BaseException, secret: Secret, limit: Fault) -> Fault:
    """What an exchange without a whole answer died of; `limit` is the answer when it was time."""
    chain = list(_chain(raised))
    exc = chain[-1]
    fault = _fault(exc, secret, limit)
    if fault is not limit and any(isinstance(link, requests.exceptions.ProxyError) for link in chain):
        return fault._replace(text=f"the proxy: {fault.text}: check https_proxy and http_proxy")
    return fault


def _fault(exc: BaseException, secret: Secret, limit: Fault) -> Fault:
    match exc:
        case TimeoutError() | urllib3.exceptions.TimeoutError() | requests.exceptions.Timeout():
            return limit
        case BodyTooLargeError():
            return Fault("bad_response", str(exc), too_large=True)
        case socket.gaierror() | UnicodeError():
            return Fault("connection", "DNS: the host name cannot be resolved: check modus.base_url")
        case ConnectionRefusedError():
            return Fault("connection", "connection refused")
        case SilentConnectionError():
            text = "a connection that had been idle went silent: something between drops idle connections"
            return Fault("connection", text, transient=True)
        case ConnectionError() | ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return Fault("connection", "the connection was reset or closed without an answer", transient=True)
        case ssl.SSLError():
            return Fault("connection", _tls_text(exc, secret))
        case http.client.IncompleteRead():
            return Fault("bad_response", "the body is truncated")
        case http.client.BadStatusLine() if "\x15\x03" in str(exc):
            return Fault("bad_response", "this port speaks TLS: write https:// in modus.base_url")
        case http.client.HTTPException() | urllib3.exceptions.DecodeError():
            return Fault("bad_response", f"no sound HTTP answer: {secret.quoted(str(exc))}")
        case OSError() if exc.strerror:
            return Fault("connection", exc.strerror)
        case OSError() if str(exc).startswith("Tunnel connection failed"):
            return Fault("connection", secret.quoted(str(exc), 80))
    return Fault("connection", secret.quoted(f"{type(exc).__name__}: {exc}"))


def _tls_text(exc: ssl.SSLError, secret: Secret) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        verdict = secret.quoted(exc.verify_message)
        return f"TLS: certificate not accepted: {verdict}: if it is the company's own, set modus.ca_file"
    if exc.reason in NO_TLS:
        return "TLS: this port speaks none: write http:// in modus.base_url, or name the port that does"
    return f"TLS: {secret.quoted(exc.reason or type(exc).__name__)}"


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """The error and those that the libraries wrapped, the system's or the parser's own one last."""
    telling = (http.client.HTTPException, urllib3.exceptions.DecodeError)
    while True:
        yield exc
        inner: object = None
        if isinstance(exc, requests.RequestException):
            inner = exc.args[0] if exc.args and isinstance(exc.args[0], BaseException) else exc.__context__
        elif isinstance(exc, urllib3.exceptions.HTTPError) and not isinstance(exc, telling):
            inner = exc.__context__
        if not isinstance(inner, BaseException):
            return
        exc = inner
