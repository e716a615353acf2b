"""What a request can end in besides an answer: one error, its reason, and one line that says what to do."""

import errno
import http.client
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, get_args

import msgspec
import requests
import urllib3

from exporter.log import one_line, placed
from exporter.modus.secret import USUAL, Secret

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
HINTS: dict[Reason, str] = {  # what to do, where nothing more is known
    "unauthorized": "check the token: MODUS_API_KEY, modus.token or modus.token_file",
    "forbidden": "give the token the missing scope",
    "not_found": "check agents and modus.resource",
    "rate_limited": "the API limits this token: try again later",
    "server_error": "the API failed: try again later",
    "timeout": "check the network, or raise modus.timeout",
    "deadline": "check the network",
    "connection": "check modus.base_url, the network and the proxy",
    "bad_response": "this does not look like the Modus API: check modus.base_url",
    "internal": "a mistake in the exporter: report it",
}
NOT_THE_API = "this is no answer of the Modus API: check modus.base_url and the proxy"
REFUSED = "the API refuses what is asked: is there a newer modus-exporter?"
UNKNOWN = ": this id or route is unknown, or not for this token"
FEWER_FILES = "raise the limit of open files (ulimit -n) or lower modus.concurrency"
PROXY_USER = "name the proxy's user and password: http_proxy=http://user:password@host:port"
TUNNEL_USER = PROXY_USER.replace("http_proxy", "https_proxy")
COMPANY_CA = "if it is the company's own, set modus.ca_file (a directory needs names by openssl rehash)"
OF_ANOTHER_NAME = "name the host as its certificate does"
OF_ANOTHER_TIME = "renew the certificate, or set the clock of this machine"
CERTIFICATE_HINTS = {9: OF_ANOTHER_TIME, 10: OF_ANOTHER_TIME, 62: OF_ANOTHER_NAME, 64: OF_ANOTHER_NAME}
WANTS_CERTIFICATE = re.compile("CERTIFICATE_REQUIRED|ALERT_BAD_CERTIFICATE|ALERT_HANDSHAKE_FAILURE")
USE_HTTPS = "write https:// in modus.base_url"
NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}


class ApiError(Exception):
    """A request that brought no usable answer.

    `reason` is a value of `modus_agent_read_errors_total`; the text says in one line what went wrong
    where, `hint` what to do about it, and neither ever holds a secret; `missing` lists the scopes a 403
    names; `status` is the HTTP status, if there was one; `too_large` says that a smaller page might do.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        hint: str = "",
        status: int | None = None,
        missing: tuple[str, ...] = (),
        too_large: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.hint = hint or HINTS[reason]
        self.status = status
        self.missing = missing
        self.too_large = too_large

    @classmethod
    def of(cls, error: Exception) -> "ApiError":
        """The error itself, or an exception of ours as one."""
        return error if isinstance(error, cls) else cls.internal(error)

    @classmethod
    def internal(cls, error: Exception) -> "ApiError":
        """An exception of ours as one agent's error: one line, with the place in the code."""
        return cls("internal", one_line(f"{placed(error)}: {error}")[:300])

    @property
    def line(self) -> str:
        """What went wrong where, and what to do."""
        return f"{self}: {self.hint}"

    @property
    def told(self) -> dict[str, str]:
        """The same as fields of a log line."""
        return {"reason": self.reason, "error": str(self), "hint": self.hint}

    @property
    def answered(self) -> bool:
        """Whether it is an answer of the API, if not the one that was wanted."""
        return self.status is not None


class TransientError(ApiError):
    """Worth another try; `idle`: the connection had been idle, and had died meanwhile."""

    def __init__(self, reason: Reason, message: str, *, hint: str, status: int | None, idle: bool) -> None:
        super().__init__(reason, message, hint=hint, status=status)
        self.idle = idle


class SilentConnectionError(ConnectionError):
    """A connection that was there before brought no first byte in time: it may have died unseen."""


class BodyTooLargeError(ValueError):
    """An answer larger than what a page of this size may take."""


class Fault(NamedTuple):
    """Why there is no answer, before it is known who is told."""

    reason: Reason
    text: str
    hint: str = ""  # in place of the one of the reason
    missing: tuple[str, ...] = ()
    transient: bool = False
    too_large: bool = False
    status: int | None = None

    def error(self, where: str, *, idle: bool) -> ApiError:
        """The error for who asked for `where`; `idle`: the connection had been idle."""
        text = f"{where}: {self.text}"
        if self.transient:
            return TransientError(self.reason, text, hint=self.hint, status=self.status, idle=idle)
        return ApiError(
            self.reason,
            text,
            hint=self.hint,
            status=self.status,
            missing=self.missing,
            too_large=self.too_large,
        )


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
    reason = REASON_OF.get(status, "server_error" if status >= 500 else "bad_response")
    if 300 <= status < 400 and status != 304:
        target = re.match("(?:https?:)?//([^/?#]*)", headers.get("Location", ""))
        host = secret.quoted(target[1].rpartition("@")[2]) if target else "another path"
        return Fault(reason, f"{status}, a redirect to {host}, is not followed", "correct modus.base_url")
    try:
        error = _ENVELOPE.decode(body).error
    except (ValueError, RecursionError):
        text = f"{status}, {excerpt(headers, body, secret)}{UNKNOWN if status == 404 else ''}"
        return Fault(reason, text, _hint_of_a_stranger(status, body))
    request = secret.quoted(error.request_id or "without id", 80)
    text = f"{status} {secret.quoted(error.message)} (request {request})"
    missing = tuple(secret.quoted(scope, 80) for scope in (error.info.missing if error.info else ())[:10])
    if missing:
        return Fault(reason, text, f"give the token the scope {' and '.join(missing)}", missing)
    if status == 401 and not secret.is_usual:
        return Fault(reason, text, f"{HINTS[reason]}; a token of Modus begins with {USUAL}")
    if status == 404:
        text += UNKNOWN
    elif reason == "bad_response":
        return Fault(reason, text, REFUSED)
    return Fault(reason, text)


def _hint_of_a_stranger(status: int, body: bytes) -> str:
    """What to do about a refusal that is not in the API's form: perhaps something in between gave it."""
    if status == 407:
        return PROXY_USER  # in a tunnel it is no answer
    if status == 400 and b"HTTPS port" in body:
        return USE_HTTPS
    if status == 404:
        return "check modus.base_url, agents and modus.resource"
    return "" if status == 429 or status >= 500 else NOT_THE_API


def broken(raised: BaseException, secret: Secret, limit: Fault, proxy: str) -> Fault:
    """What an exchange without a whole answer died of; `limit` is the answer when it was time.

    `proxy` is the host and port of the one in between, if there is one.
    """
    chain = list(_chain(raised))
    exc = chain[-1]
    fault = _fault(exc, secret, limit)
    if fault.hint == FEWER_FILES or not any(
        isinstance(link, requests.exceptions.ProxyError) for link in chain
    ):
        return fault
    kept = fault is limit or fault.hint == TUNNEL_USER or isinstance(exc, ssl.SSLCertVerificationError)
    hint = fault.hint if kept else "check https_proxy and http_proxy"
    return fault._replace(text=f"the proxy {proxy}: {fault.text}", hint=hint)


def _fault(exc: BaseException, secret: Secret, limit: Fault) -> Fault:
    match exc:
        case TimeoutError() | urllib3.exceptions.TimeoutError() | requests.exceptions.Timeout():
            return limit
        case BodyTooLargeError():
            return Fault("bad_response", str(exc), too_large=True)
        case socket.gaierror() | UnicodeError():
            return Fault("connection", "DNS: the host name cannot be resolved", "check modus.base_url")
        case ConnectionRefusedError():
            return Fault("connection", "connection refused")
        case SilentConnectionError():
            text = "a connection that had been idle went silent: something between drops idle connections"
            return Fault("connection", text, transient=True)
        case ConnectionError() | ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return Fault("connection", "the connection was reset or closed without an answer", transient=True)
        case ssl.SSLError():
            return _tls_fault(exc, secret)
        case http.client.IncompleteRead():
            return Fault("bad_response", "the body is truncated")
        case http.client.BadStatusLine() if "\x15\x03" in str(exc):
            return Fault("bad_response", "this port speaks TLS", USE_HTTPS)
        case http.client.HTTPException() | urllib3.exceptions.DecodeError():
            return Fault("bad_response", f"no sound HTTP answer: {secret.quoted(str(exc))}")
        case OSError() if exc.errno in (errno.EMFILE, errno.ENFILE):
            return Fault("connection", str(exc.strerror), FEWER_FILES, transient=True)
        case OSError() if exc.strerror:
            return Fault("connection", exc.strerror)
        case OSError() if str(exc).startswith("Tunnel connection failed"):
            hint = TUNNEL_USER if ": 407" in str(exc) else ""
            return Fault("connection", secret.quoted(str(exc), 80), hint)
    return Fault("connection", secret.quoted(f"{type(exc).__name__}: {exc}"))


def _tls_fault(exc: ssl.SSLError, secret: Secret) -> Fault:
    if isinstance(exc, ssl.SSLCertVerificationError):
        text = f"TLS: certificate not accepted: {secret.quoted(exc.verify_message)}"
        return Fault("connection", text, CERTIFICATE_HINTS.get(exc.verify_code, COMPANY_CA))
    if exc.reason in NO_TLS:
        hint = "write http:// in modus.base_url, or name the port that does"
        return Fault("connection", "TLS: this port speaks none", hint)
    hint = ""
    if WANTS_CERTIFICATE.search(exc.reason or ""):
        hint = "if the server wants a client certificate: those are not supported"
    return Fault("connection", f"TLS: {secret.quoted(exc.reason or type(exc).__name__)}", hint)


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
