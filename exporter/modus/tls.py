"""Whom to trust: one TLS context for all connections, made again when the CA bundle has changed."""

import logging
import os
import re
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import certifi

from exporter.log import fields
from exporter.modus.errors import ApiError
from exporter.watch import Watched

MAX_WATCHED = 1000  # certificates of a directory: a look at them costs each new connection a millisecond
VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # a file or a directory, before those of OpenSSL
_HASHED = re.compile("[0-9a-f]{8}\\.[0-9]+")  # as `openssl rehash` names them

log = logging.getLogger(__name__)


def bundle(ca_file: str | None) -> dict[str, str]:
    """Files and directories of CA certificates, each with what names it, a key or a variable."""
    for name, chosen in (("modus.ca_file", ca_file), *((name, os.environ.get(name)) for name in VARIABLES)):
        if chosen:
            return {chosen: name}
    files = {os.environ.get("SSL_CERT_FILE", ""): "SSL_CERT_FILE"}
    folders = dict.fromkeys(os.environ.get("SSL_CERT_DIR", "").split(os.pathsep), "SSL_CERT_DIR")
    found = {path: name for path, name in (files | folders).items() if path}
    return found or {certifi.where(): "the package certifi"}


class Trust:
    """The TLS context for connections to the API and to an HTTPS proxy. Safe to share between threads.

    Raises ApiError when a file or directory of `paths` cannot be read; one that becomes unreadable later
    changes nothing but one line in the log.
    """

    def __init__(self, paths: Mapping[str, str], socket_class: type[ssl.SSLSocket]) -> None:
        self._paths, self._socket_class = paths, socket_class
        self._lock = threading.Lock()
        self._refusal = ""  # what was said last
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """The context of now: for each new connection, while open ones keep theirs."""
        with self._lock:
            if (changed := self._watched.changed()) or self._watched.due():
                try:
                    self._context = self._load()
                except ApiError as error:
                    if changed or str(error) != self._refusal:
                        told = fields(error=str(error), hint=error.hint)
                        log.error("the CA certificates in use stay", extra=told)
                    self._refusal = str(error)
                else:
                    log.info("CA certificates read again", extra=fields(files=" ".join(self._paths)))
            return self._context

    def _load(self) -> ssl.SSLContext:
        self._watched = Watched(_with_entries(self._paths))  # before reading: a change in between shows
        context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        context.sslsocket_class = self._socket_class
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.hostname_checks_common_name = False
        # as curl and openssl do: any certificate may be trusted, and companies' CAs are not strict
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
        for path, name in self._paths.items():
            try:
                context.load_verify_locations(**{"capath" if os.path.isdir(path) else "cafile": path})
            except (OSError, ValueError) as exc:
                system = None if isinstance(exc, ssl.SSLError) else getattr(exc, "strerror", None)
                if system:
                    self._watched.look_again()
                what = f"cannot read the CA bundle {path}: {system or 'it holds no certificate in PEM'}"
                raise ApiError("connection", what, hint=f"check {name}") from None
        return context


def _with_entries(paths: Iterable[str]) -> Iterator[str]:
    """The paths, and of directories what OpenSSL reads in them: overwriting that leaves them as they were."""
    for path in paths:
        yield path
        with suppress(OSError), os.scandir(path) as entries:  # a file, or nothing there
            certificates = (entry.path for entry in entries if _HASHED.fullmatch(entry.name))
            yield from islice(certificates, MAX_WATCHED)


class _Context(ssl.SSLContext):
    """Has its sockets shake hands when they know the connection whose time they keep to."""

    def wrap_socket(self, sock: Any, *_: Any, server_hostname: Any = None, **__: Any) -> Any:
        tls: Any = super().wrap_socket(sock, do_handshake_on_connect=False, server_hostname=server_hostname)
        try:
            tls.connection = sock.connection
            tls.do_handshake()
        except BaseException:
            tls.close()
            raise
        return tls
