"""The log lines of the web server."""

import logging

from exporter.log import fields

log = logging.getLogger("exporter.web")


def log_failure(message: str, exc: BaseException) -> None:
    """One line that says what went wrong, without a traceback."""
    text = " ".join(f"{type(exc).__name__}: {exc}".split())
    log.error(message, extra=fields(error=text))
