"""The file of `--web.config.file`: TLS, headers, basic auth and a rate limit, as every Prometheus exporter
reads it.

The format is that of the exporter-toolkit
(https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md). What cannot be done
here is refused or warned of, never ignored: docs/web-config.md.
"""

import logging
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bcrypt

from exporter import yamlfile
from exporter.log import fields, placed
from exporter.watch import Watched
from exporter.web import tls
from exporter.web.auth import BasicAuth
from exporter.web.errors import WebError
from exporter.yamlfile import YamlError

log = logging.getLogger(__name__)

_HEADERS: dict[str, tuple[str, ...]] = {  # the toolkit's list, with the values it allows
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
_HASH = re.compile(r"\$2[abxy]\$(0[4-9]|[12]\d|3[01])\$([./A-Za-z0-9]{22})[./A-Za-z0-9]{31}")
_SWITCH = dict.fromkeys(("y", "yes", "true", "on"), True) | dict.fromkeys(("n", "no", "false", "off"), False)
_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_DURATION = re.compile(rf"([0-9]{{1,12}}(?:\.[0-9]{{0,12}})?)({'|'.join(_GO_UNITS)})")


class _Interval(float):
    """Seconds; in the file a duration of Go (1s, 1m30s, 0.5s, 0)."""


class _Burst(int):
    """A whole number from 0 on."""


class _HTTP(tls.Section, frozen=True):
    http2: tls.Switch | None = None  # allows HTTP/2, does not demand it: HTTP/1.1 is answered either way
    headers: dict[str, str | None] | None = None


class _Rate(tls.Section, frozen=True):
    interval: _Interval | None = None
    burst: _Burst | None = None


class _File(tls.Section, frozen=True):
    tls_server_config: tls.Settings | None = None
    http_server_config: _HTTP | None = None
    rate_limit: _Rate | None = None
    basic_auth_users: dict[str, str] | None = None


@dataclass(frozen=True)
class RateLimit:
    """A bucket of `burst` requests that gains one every `interval` seconds (above 0)."""

    interval: float
    burst: int


@dataclass(frozen=True)
class WebConfig:
    """What the file asks for; with no file: plain HTTP for everybody, as often as they like."""

    tls: ssl.SSLContext | None = None
    allowed_sans: frozenset[str] | None = None  # an empty one lets nobody in
    headers: Mapping[str, str] = field(default_factory=dict)
    auth: BasicAuth | None = None
    rate_limit: RateLimit | None = None

    def admits(self, certificate: Mapping[str, Any] | None) -> bool:
        """Whether a verified client certificate (as `SSLSocket.getpeercert` has it) is on the list."""
        names = {tls.san(value) for _, value in (certificate or {}).get("subjectAltName", ())}
        return self.allowed_sans is None or bool(names & self.allowed_sans)


class WebConfigFile:
    """The file at `path`, read again when it or a file it names changes; `path` None: the defaults.

    Raises WebError, one line with file and key path, for a file that cannot be used from the start;
    a later one is logged once and the last good one stays in force. So does it while the file is empty: that
    is one which is being written, and must let nobody in meanwhile.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._files = Watched()
        self._refusal = ""  # what was said last
        self._config = _load(path, self._files, may_be_empty=True) if path else WebConfig()

    def current(self) -> WebConfig:
        """The configuration for a request or connection that begins now; raises nothing."""
        if self._path and ((changed := self._files.changed()) or self._files.due()):
            try:
                self._config = _load(self._path, self._files, may_be_empty=self._config == WebConfig())
                log.info("web configuration read again", extra=fields(file=self._path))
            except WebError as error:
                if changed or str(error) != self._refusal:
                    log.error("web configuration refused, last one kept", extra=fields(error=str(error)))
                self._refusal = str(error)
        return self._config


def _load(path: str, files: Watched, *, may_be_empty: bool) -> WebConfig:
    """Read the file and those it names through `files`."""
    try:
        content = _read(path, files)
        if not content.strip() and not may_be_empty:
            raise YamlError("it is empty: to turn everything off, write basic_auth_users: {}")
        raw = yamlfile.parse(content, _File, ordinary=True)
        file = yamlfile.convert(raw, _File, _decode, raw=raw, secret=lambda key: True)
        settings = file.tls_server_config
        http2 = not (file.http_server_config and file.http_server_config.http2 == 0)
        if settings and settings != tls.Settings():
            context = tls.context(settings, Path(path).parent, files, http2=http2)
        else:
            context = None
        sans = settings.client_allowed_sans if settings else None
        return WebConfig(
            tls=context,
            allowed_sans=None if sans is None else frozenset(map(tls.san, sans)),
            headers=_headers((file.http_server_config and file.http_server_config.headers) or {}),
            auth=_auth(file.basic_auth_users or {}),
            rate_limit=_rate_limit(file.rate_limit),
        )
    except YamlError as error:
        raise WebError(yamlfile.escaped(f"{path}: {error}")) from None
    except Exception as error:  # a mistake of ours, of which the text may hold what the file holds
        raise WebError(yamlfile.escaped(f"{path}: cannot be used: {placed(error)}")) from error


def _read(path: str, files: Watched) -> bytes:
    try:
        return files.read(path, yamlfile.MAX_BYTES + 1)
    except OSError as error:
        raise YamlError(f"cannot read the file: {error.strerror}") from None


def _decode(kind: type, value: object) -> object:
    """The hook of `yamlfile.convert`; values are text, or of another type by an explicit tag."""
    text = str(value) if isinstance(value, str | int) else ""
    if kind is tls.Switch:
        if text.lower() not in _SWITCH:
            raise ValueError("expected true or false")
        return tls.Switch(_SWITCH[text.lower()])
    if kind is _Burst:
        if not re.fullmatch("[0-9]{1,9}", text):
            raise ValueError("expected a whole number >= 0")
        return _Burst(text)
    parts = _GO_DURATION.findall(text)
    if text != "0" and (not parts or "".join(map("".join, parts)) != text):
        raise ValueError("expected a duration with units like 1s, 1m30s or 0.5s, or 0")
    return _Interval(sum(float(number) * _GO_UNITS[unit] for number, unit in parts))


def _headers(headers: Mapping[str, str | None]) -> Mapping[str, str]:
    for name, value in headers.items():
        key = f"http_server_config.headers.{name}"
        allowed = tls.choice(key, name, _HEADERS)
        if (allowed and value not in allowed) or not re.fullmatch(r"[ -~]*", value or ""):
            expected = " or ".join(allowed) or "printable ASCII"
            raise YamlError(f"{key}: expected {expected}, got {yamlfile.got(value)}")
    return {name: (value or "").strip() for name, value in headers.items()}  # as Go sends it


def _auth(users: Mapping[str, str]) -> BasicAuth | None:
    for name, value in users.items():
        try:
            match = _HASH.fullmatch(value)
            good = match and bcrypt.hashpw(b"", f"$2b$04${match[2]}".encode())  # is the salt one?
        except ValueError:
            good = None
        if not good:
            how = "make one with htpasswd -nBC 10 ''"
            raise YamlError(f"basic_auth_users.{yamlfile.shown(name)}: not a bcrypt hash: {how}")
    return BasicAuth(users) if users else None


def _rate_limit(rate: _Rate | None) -> RateLimit | None:
    if not rate or not rate.interval:
        return None
    return RateLimit(interval=float(rate.interval), burst=int(rate.burst or 0))
