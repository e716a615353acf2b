"""The section `tls_server_config` of the web configuration, as an `ssl.SSLContext` for servers."""

import contextlib
import ipaddress
import logging
import re
import ssl
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from exporter.log import fields
from exporter.watch import Watched
from exporter.yamlfile import YamlError, got

log = logging.getLogger(__name__)
T = TypeVar("T")

_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CURVES = {  # Go's names -> OpenSSL's
    "CurveP256": "prime256v1",
    "CurveP384": "secp384r1",
    "CurveP521": "secp521r1",
    "X25519": "X25519",
    "X25519MLKEM768": "X25519MLKEM768",
}
_ALWAYS_ON = "of TLS 1.3: on whatever the file says, here as in Go"
_CIPHERS = {  # those of Go's tls.CipherSuites, now or before 1.22 -> OpenSSL's names
    "TLS_AES_128_GCM_SHA256": _ALWAYS_ON,
    "TLS_AES_256_GCM_SHA384": _ALWAYS_ON,
    "TLS_CHACHA20_POLY1305_SHA256": _ALWAYS_ON,
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
}
# what a file says around its certificates is for people, and passed over as in Go
_CERTIFICATE = re.compile(
    r"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----[\s\w+/=]*-----END \1-----", re.ASCII
)
_HTTP2_CIPHERS = ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "RequestClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping of the file; its values do not show in a repr: keys and hashes are secrets."""

    def __repr__(self) -> str:  # noqa: D105 - the class says it
        return f"{type(self).__name__}(...)"


class Switch(int):
    """1 or 0; in the file true or false, in any of YAML's words for them."""


class Settings(Section, frozen=True):
    """The keys of `tls_server_config`."""

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
    prefer_server_cipher_suites: Switch | None = None


def context(settings: Settings, directory: Path, files: Watched, *, http2: bool) -> ssl.SSLContext:
    """What the settings ask for; their files, relative to `directory`, are read through `files`.

    Raises YamlError for what is wrong or cannot be done, with the key path.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_alpn_protocols(["http/1.1"])
    made.minimum_version = choice(_key("min_version"), settings.min_version or "TLS12", _VERSIONS)
    made.maximum_version = choice(_key("max_version"), settings.max_version or "TLS13", _VERSIONS)
    if made.minimum_version > made.maximum_version:
        raise YamlError(f"{_key('max_version')}: is below min_version")
    if settings.prefer_server_cipher_suites == 0:
        made.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    suites = settings.cipher_suites or []
    _set_ciphers(made, suites)
    if http2 and suites and settings.min_version != "TLS13" and not set(suites) & set(_HTTP2_CIPHERS):
        # not used here, but every other exporter refuses such a file at its start
        names = " or ".join(_HTTP2_CIPHERS)
        how = f"name {names}, or set http_server_config.http2 to false"
        raise YamlError(f"{_key('cipher_suites')}: none that HTTP/2 needs: {how}")
    _load_pair(made, settings, directory, files)
    _set_client_auth(made, settings, directory, files)
    _set_curve(made, settings.curve_preferences or [])
    return made


def choice(key: str, value: str, table: Mapping[str, T]) -> T:
    """`table[value]`; YamlError for a value that is not in it."""
    if value not in table:
        raise YamlError(f"{key}: {got(value)} is not supported: expected one of {', '.join(table)}")
    return table[value]


def san(name: str) -> str:
    """A subject alternative name as it is compared: an IP address in its shortest form."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _key(name: str) -> str:
    return f"tls_server_config.{name}"


def _set_ciphers(made: ssl.SSLContext, suites: Iterable[str]) -> None:
    key, names = _key("cipher_suites"), []
    for suite in suites:
        name = choice(key, suite, _CIPHERS)
        if name == _ALWAYS_ON:
            continue
        try:
            made.set_ciphers(name)
        except ssl.SSLError:
            raise YamlError(f"{key}: {suite} is not in the OpenSSL of this machine") from None
        names.append(name)
    if names:
        made.set_ciphers(":".join(names))


def _set_curve(made: ssl.SSLContext, curves: list[str]) -> None:
    """Set the first curve that this Python can set: one is all that its ssl takes."""
    key, taken = _key("curve_preferences"), ""
    for name in curves:
        curve = choice(key, name, _CURVES)
        if not taken:
            # an unknown curve is a ValueError, one that this OpenSSL or Python cannot set an SSLError
            with contextlib.suppress(ValueError, ssl.SSLError):
                made.set_ecdh_curve(curve)
                taken = name
    if curves and not taken:
        raise YamlError(f"{key}: Python's ssl cannot set {' or '.join(curves)} here: name CurveP256, or none")
    if len(curves) > 1:
        log.warning(
            "only one of the curves is used: Python's ssl takes one", extra=fields(key=key, used=taken)
        )


def _load_pair(made: ssl.SSLContext, settings: Settings, directory: Path, files: Watched) -> None:
    with contextlib.ExitStack() as stack:
        certificate = _pem_path("cert", settings.cert, settings.cert_file, directory, files, stack)
        key = _pem_path("key", settings.key, settings.key_file, directory, files, stack)
        try:
            made.load_cert_chain(certificate, key, password=lambda: "")  # never ask at the terminal
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or "not PEM, or the key is encrypted"
            raise YamlError(f"tls_server_config: certificate and key do not load: {reason}") from None
        except OSError as error:
            files.look_again()
            raise YamlError(f"tls_server_config: certificate and key do not load: {error.strerror}") from None


def _pem_path(
    name: str,
    inline: str | None,
    file: str | None,
    directory: Path,
    files: Watched,
    stack: contextlib.ExitStack,
) -> str:
    """Where OpenSSL, which reads files only, finds what is given inline or as a file."""
    if bool(inline) == bool(file):
        raise YamlError(f"{_key(name)}_file: give either {name} or {name}_file")
    if file:
        _read(f"{name}_file", directory / file, files)
        return str(directory / file)
    try:
        copy = stack.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115 - private, the stack ends it
        copy.write((inline or "").encode())
        copy.flush()
    except OSError as error:
        files.look_again()
        how = f"set TMPDIR, or give {name}_file"
        raise YamlError(f"{_key(name)}: no temporary file for it: {error.strerror}; {how}") from None
    return copy.name


def _read(name: str, path: Path, files: Watched) -> str:
    try:
        return files.read(str(path)).decode("ascii", "replace")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", error)
        raise YamlError(f"{_key(name)}: cannot read {path}: {reason}") from None


def _set_client_auth(made: ssl.SSLContext, settings: Settings, directory: Path, files: Watched) -> None:
    key, kind = _key("client_auth_type"), settings.client_auth_type or "NoClientCert"
    if kind in ("RequireAnyClientCert", "RequireClientCert"):
        why = "Python's ssl takes no client certificate that it cannot verify"
        raise YamlError(f"{key}: {kind} is not supported: {why}: use RequireAndVerifyClientCert")
    mode = choice(key, kind, _CLIENT_AUTH)
    if settings.client_ca and settings.client_ca_file:
        raise YamlError(f"{_key('client_ca_file')}: give either client_ca or client_ca_file")
    authorities = settings.client_ca or ""
    if settings.client_ca_file:
        authorities = _read("client_ca_file", directory / settings.client_ca_file, files)
    if settings.client_allowed_sans is not None and mode is not ssl.CERT_REQUIRED:
        raise YamlError(f"{key}: client_allowed_sans needs RequireAndVerifyClientCert")
    if (settings.client_ca or settings.client_ca_file) and kind == "NoClientCert":
        raise YamlError(f"{key}: client_ca and client_ca_file need one, such as RequireAndVerifyClientCert")
    if kind == "RequestClientCert":
        text = "no client certificate is asked for: Python's ssl would verify it, RequestClientCert does not"
        log.warning(text, extra=fields(key=key))
    elif settings.client_ca or settings.client_ca_file:
        _trust(made, authorities)
    elif mode is not ssl.CERT_NONE:
        made.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        text = "client certificates of every authority that the system trusts are taken: no client_ca_file"
        log.warning(text, extra=fields(key=key))
    made.verify_mode = mode


def _trust(made: ssl.SSLContext, authorities: str) -> None:
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # also an intermediate one alone, as Go does
    certificates = "\n".join(match[0] for match in _CERTIFICATE.finditer(authorities))
    try:
        made.load_verify_locations(cadata=certificates)
    except (ssl.SSLError, ValueError):
        raise YamlError(f"{_key('client_ca_file')}: no PEM certificate in it") from None
