"""The log lines of the web server."""

import logging

from exporter.log import described, fields

log = logging.getLogger(__name__)


def log_failure(message: str, exc: BaseException) -> None:
    """One line that says what went wrong, without a traceback."""
    log.error(message, extra=fields(error=described(exc)))
