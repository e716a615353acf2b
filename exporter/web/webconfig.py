"""The file of `--web.config.file`: TLS, headers and basic auth, as every Prometheus exporter reads it.

The format is that of the exporter-toolkit
(https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md). What Python's
ssl cannot do is refused, never ignored.
"""

import contextlib
import ipaddress
import logging
import re
import ssl
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import bcrypt
import msgspec
import yaml

from exporter.web.auth import BasicAuth

log = logging.getLogger("exporter.web")
T = TypeVar("T")

_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CURVES = {name: f"secp{name[6:]}r1" for name in ("CurveP384", "CurveP521")}
_CURVES |= {"CurveP256": "prime256v1", "X25519": "X25519"}
_HEADERS: dict[str, tuple[str, ...]] = {  # the toolkit's list, with the values it allows
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
_TWICE = "a key is given twice"
_HASH = re.compile(r"\$2[abxy]\$(0[4-9]|[12]\d|3[01])\$([./A-Za-z0-9]{22})[./A-Za-z0-9]{31}")


class WebError(Exception):
    """Why the web server cannot start, in one line; `exit_code` is 2 for a mistake of use, else 1."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):  # the last one would win: somebody might keep an old password
            raise yaml.MarkedYAMLError(problem=_TWICE, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"  # keys and hashes are secrets


class _TLS(_Section, frozen=True):
    cert: str | None = None
    cert_file: str | None = None
    key: str | None = None
    key_file: str | None = None
    client_auth_type: str | None = None
    client_ca: str | None = None
    client_ca_file: str | None = None
    client_allowed_sans: list[str] | None = None
    min_version: str | None = None
    max_version: str | None = None
    cipher_suites: list[str] | None = None
    curve_preferences: list[str] | None = None
    prefer_server_cipher_suites: bool | None = None


class _HTTP(_Section, frozen=True):
    http2: bool | None = None  # allows HTTP/2, does not demand it: HTTP/1.1 is answered either way
    headers: dict[str, str] | None = None


class _File(_Section, frozen=True):
    tls_server_config: _TLS | None = None
    http_server_config: _HTTP | None = None
    basic_auth_users: dict[str, str] | None = None


@dataclass(frozen=True)
class RateLimit:
    """A bucket of `burst` requests that gains one every `interval` seconds (above 0)."""

    interval: float
    burst: int


@dataclass(frozen=True)
class WebConfig:
    """What the file asks for; with no file: plain HTTP for everybody."""

    tls: ssl.SSLContext | None = None
    allowed_sans: frozenset[str] = frozenset()
    headers: Mapping[str, str] = field(default_factory=dict)
    auth: BasicAuth | None = None
    rate_limit: RateLimit | None = None

    def admits(self, certificate: Mapping[str, Any] | None) -> bool:
        """Whether a verified client certificate (as `SSLSocket.getpeercert` has it) is on the list."""
        names = {_san(value) for _, value in (certificate or {}).get("subjectAltName", ())}
        return not self.allowed_sans or bool(names & self.allowed_sans)


class WebConfigFile:
    """The file at `path`, read again when it or a file it names changes; `path` None: the defaults.

    Raises WebError, one line with file and key path, for a file that cannot be used from the start;
    a later one is logged once and the last good one stays in force.
    """

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._seen: dict[Path, object] = {}
        self._config = self._load(self._path) if self._path else WebConfig()

    def current(self) -> WebConfig:
        """The configuration for a request or connection that begins now."""
        if self._path and any(_signature(path) != seen for path, seen in list(self._seen.items())):
            self._seen = {path: _signature(path) for path in self._seen}  # a bad file is tried once
            try:
                self._config = self._load(self._path)
                log.info("web configuration read again", extra={"fields": {"file": str(self._path)}})
            except WebError as exc:
                log.error("web configuration refused, last one kept", extra={"fields": {"error": str(exc)}})
        return self._config

    def _read(self, path: Path, key: str = "") -> bytes:
        self._seen[path] = _signature(path)  # before reading: a change in between is seen next time
        try:
            return path.read_bytes()
        except OSError as exc:
            raise self._error(key, f"cannot read {path}: {exc.strerror}") from None

    def _error(self, key: str, what: str) -> WebError:
        return WebError(": ".join(part for part in (str(self._path), key, what) if part))

    def _load(self, path: Path) -> WebConfig:
        text = self._read(path)
        try:
            file = msgspec.convert(_Loader(text).get_single_data() or {}, _File)
        except msgspec.ValidationError as exc:
            what, _, at = str(exc).partition(" - at ")
            key = at.strip("`").removeprefix("key in `").removeprefix("$").removeprefix(".")
            if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what):
                key, what = f"{key}.{unknown[1]}".removeprefix("."), "unknown key"
            raise self._error(key, what) from None
        except (yaml.YAMLError, ValueError, RecursionError) as exc:
            mark = getattr(exc, "problem_mark", None)  # the text itself would quote secrets
            where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            what = _TWICE if getattr(exc, "problem", "") == _TWICE else "not valid YAML"
            raise self._error("", f"{what}{where}") from None
        tls, users = file.tls_server_config, file.basic_auth_users or {}
        for name, value in users.items():
            self._check_hash(f"basic_auth_users.{name}", value)
        headers = (file.http_server_config.headers if file.http_server_config else None) or {}
        for name, value in headers.items():
            key = f"http_server_config.headers.{name}"
            allowed = self._choice(key, name, _HEADERS)
            if (allowed and value not in allowed) or not re.fullmatch(r"[ -~]*", value):
                raise self._error(key, f"expected {' or '.join(allowed) or 'printable ASCII'}, got {value!r}")
        return WebConfig(
            tls=self._context(tls, path.parent) if tls and tls != _TLS() else None,
            allowed_sans=frozenset(_san(value) for value in (tls and tls.client_allowed_sans) or ()),
            headers=headers,
            auth=BasicAuth(users) if users else None,
        )

    def _choice(self, key: str, value: str, table: Mapping[str, T]) -> T:
        if value not in table:
            raise self._error(key, f"{value!r} is not supported: expected one of {', '.join(table)}")
        return table[value]

    def _check_hash(self, key: str, value: str) -> None:
        try:
            match = _HASH.fullmatch(value)
            good = match and bcrypt.hashpw(b"", f"$2b$04${match[2]}".encode())  # is the salt one?
        except ValueError:
            good = None
        if not good:
            raise self._error(key, "not a bcrypt hash: make one with htpasswd -nBC 10 ''")

    def _context(self, tls: _TLS, directory: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        key = "tls_server_config"
        context.minimum_version = self._choice(f"{key}.min_version", tls.min_version or "TLS12", _VERSIONS)
        context.maximum_version = self._choice(f"{key}.max_version", tls.max_version or "TLS13", _VERSIONS)
        if context.minimum_version > context.maximum_version:
            raise self._error(f"{key}.max_version", "is below min_version")
        if tls.prefer_server_cipher_suites is False:
            context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        self._set_ciphers(context, tls.cipher_suites or ())
        curves = tls.curve_preferences or []
        for curve in curves:
            name = self._choice(f"{key}.curve_preferences", curve, _CURVES)
            try:
                context.set_ecdh_curve(name)
            except (ssl.SSLError, ValueError):  # X25519, by Python 3.11 with some builds of OpenSSL
                problem = f"{curve!r} cannot be set with this Python ({ssl.OPENSSL_VERSION})"
                raise self._error(f"{key}.curve_preferences", problem) from None
        if len(curves) > 1:
            raise self._error(f"{key}.curve_preferences", "only one curve can be set: name one or none")
        self._load_pair(context, tls, directory)
        self._set_client_auth(context, tls, directory)
        return context

    def _set_ciphers(self, context: ssl.SSLContext, suites: Iterable[str]) -> None:
        names = []
        for suite in suites:  # TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 is ECDHE-RSA-AES128-GCM-SHA256
            name = suite.removeprefix("TLS_").replace("_WITH_", "_").replace("AES_", "AES")
            name = name.replace("_CBC", "").replace("POLY1305_SHA256", "POLY1305").replace("_", "-")
            try:
                if re.fullmatch(r"TLS_(AES|CHACHA20)_\w+", suite):
                    continue  # those of TLS 1.3 are not configurable, here as in Go
                if not re.fullmatch(r"TLS_ECDHE_(RSA|ECDSA)_WITH_\w+", suite):
                    raise ssl.SSLError
                context.set_ciphers(name)
            except ssl.SSLError:
                raise self._error("tls_server_config.cipher_suites", f"{suite!r} is not supported") from None
            names.append(name)
        if names:
            context.set_ciphers(":".join(names))

    def _load_pair(self, context: ssl.SSLContext, tls: _TLS, directory: Path) -> None:
        with contextlib.ExitStack() as stack:
            paths = []
            for name, inline, file in (("cert", tls.cert, tls.cert_file), ("key", tls.key, tls.key_file)):
                key = f"tls_server_config.{name}_file"
                if bool(inline) == bool(file):
                    raise self._error(key, f"give either {name} or {name}_file")
                if file:
                    self._read(directory / file, key)
                    paths.append(str(directory / file))
                else:  # OpenSSL reads files only: a private one, gone at once
                    copy = stack.enter_context(tempfile.NamedTemporaryFile())
                    copy.write((inline or "").encode())
                    copy.flush()
                    paths.append(copy.name)
            try:
                context.load_cert_chain(paths[0], paths[1], password=lambda: "")  # never ask at the terminal
            except (OSError, ValueError) as exc:
                reason = getattr(exc, "reason", None) or "not PEM, or the key is encrypted"
                raise self._error("tls_server_config", f"certificate and key do not load: {reason}") from None

    def _set_client_auth(self, context: ssl.SSLContext, tls: _TLS, directory: Path) -> None:
        key = "tls_server_config.client_auth_type"
        mode = self._choice(key, tls.client_auth_type or "NoClientCert", _CLIENT_AUTH)
        pem = tls.client_ca or ""
        if tls.client_ca_file:
            ca = self._read(directory / tls.client_ca_file, "tls_server_config.client_ca_file")
            pem = ca.decode("ascii", "replace")
        if bool(pem) != (mode is not ssl.CERT_NONE):
            raise self._error(key, "client certificates need both this and client_ca_file")
        if tls.client_allowed_sans and mode is not ssl.CERT_REQUIRED:
            raise self._error(key, "client_allowed_sans needs RequireAndVerifyClientCert")
        try:
            if pem:
                context.load_verify_locations(cadata=pem)
        except (ssl.SSLError, ValueError):
            raise self._error("tls_server_config.client_ca_file", "no PEM certificate in it") from None
        context.verify_mode = mode


def _signature(path: Path) -> object:
    try:
        stat = path.stat()  # follows symlinks, so a swapped one counts as a change
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _san(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return value
