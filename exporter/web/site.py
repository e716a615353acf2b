"""Where the pages are: the paths that we serve, and those that the world sees."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from exporter.web.errors import WebError

HEALTHY, READY, RELOAD = "/-/healthy", "/-/ready", "/-/reload"


@dataclass(frozen=True)
class Site:
    """The paths of the pages; `outside` is what they begin with for the world, None when that is unknown."""

    telemetry_path: str = "/metrics"
    prefix: str = ""  # what they begin with for us: nothing, or a path like /modus
    outside: str | None = None

    @classmethod
    def of(cls, telemetry_path: str, external_url: str | None, route_prefix: str | None) -> "Site":
        """As the flags say. Raises WebError, one line, for what is no path and no URL."""
        if not re.fullmatch(r"/[\w.~/-]*", telemetry_path, re.ASCII):
            raise WebError(f"--web.telemetry-path: expected a path like /metrics, got {telemetry_path!r}")
        if telemetry_path in (HEALTHY, READY, RELOAD):
            raise WebError(f"--web.telemetry-path: {telemetry_path} is another page: name another path")
        outside = _path_of(external_url) if external_url else None
        prefix = outside or "" if route_prefix is None else _prefix(route_prefix)
        return cls(telemetry_path, prefix, outside)

    @property
    def home(self) -> str:
        """The path of the landing page, for us."""
        return f"{self.prefix}/"

    def link(self, path: str) -> str:
        """A link to a page, for the landing page: relative, which is right behind any proxy, if need be."""
        return f"{'.' if self.outside is None else self.outside}{path}"


def _path_of(external_url: str) -> str:
    """The path of the URL under which the world sees us, without the / at its end."""
    try:
        url = urlsplit(external_url)
        good = url.scheme in ("http", "https") and url.hostname and not (url.query or url.fragment)
    except ValueError:
        good = False
    if not good or not re.fullmatch(r"[\w.~/-]*", url.path, re.ASCII):
        example = "https://proxy.example/modus"
        raise WebError(f"--web.external-url: expected a URL like {example}, got {external_url!r}")
    return _stripped(url.path)


def _prefix(path: str) -> str:
    if not re.fullmatch(r"[\w.~/-]*", path, re.ASCII):
        raise WebError(f"--web.route-prefix: expected a path like /modus, got {path!r}")
    return _stripped(path)


def _stripped(path: str) -> str:
    return f"/{path.strip('/')}" if path.strip("/") else ""
