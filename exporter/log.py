"""Log lines on standard error, as logfmt or JSON: one record is one line, whatever its values hold.

Structured fields go in as `log.info("listening", extra=fields(address=address))`. The keys are constants of
the code; the values may come from anywhere.
"""

import json
import logging
import math
import os
import re
import select
import stat
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

LEVELS: dict[str, int] = {
    name: getattr(logging, name.upper()) for name in ("debug", "info", "warn", "warning", "error")
}
PATIENCE = 0.5  # seconds for who reads the log to make room for a line, before lines are lost
_NAMES = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn"}


def fields(**pairs: object) -> dict[str, dict[str, object]]:
    """The `extra` of a log call that adds these fields to its line."""
    return {"fields": pairs}


def one_line(text: object) -> str:
    """It as text on one line."""
    return " ".join(str(text).split())


def described(error: BaseException) -> str:
    """The class of an exception and its text, on one line."""
    return one_line(f"{type(error).__name__}: {error}")


def placed(error: BaseException) -> str:
    """The class of an exception and its place in the code, without its text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    return f"{type(error).__name__} at {place}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII. `stacks` adds the stack of an exception as a field."""

    def __init__(self, *, stacks: bool = False) -> None:
        super().__init__()
        self.stacks = stacks

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line without its end."""
        return json.dumps({key: _plain(value) for key, value in self.pairs(record).items()})

    def pairs(self, record: logging.LogRecord) -> dict[str, Any]:
        """Time (UTC), level, message, the fields; an exception as type and text instead of a traceback."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        pairs = {
            "time": time.replace("+00:00", "Z"),
            "level": _NAMES.get(record.levelno, "error"),
            "msg": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            pairs["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            if self.stacks:
                pairs["stack"] = self.formatException(record.exc_info)
        return pairs


class LogfmtFormatter(JsonFormatter):
    """`key=value` pairs; values that need it are quoted and escaped as JSON strings are."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line without its end."""
        return " ".join(f"{key}={_quoted(_plain(value))}" for key, value in self.pairs(record).items())


def _plain(value: object) -> str | int | float | None:
    """The value as JSON can carry it: bool, int, finite float and None stay, all else becomes text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int) else str(value)


def _quoted(value: str | float | None) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if value.isprintable() and re.fullmatch(r'[^\s="\\]+', value):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


FORMATS = {"logfmt": LogfmtFormatter, "json": JsonFormatter}


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines, but for those that would wait for somebody who does not read: it says how many later."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._lost = 0
        self._pipe: select.poll | None = None  # None: it is no pipe or socket, writing to which may wait
        with suppress(OSError, ValueError, AttributeError):  # there is none, or it was closed
            mode = os.fstat(self.stream.fileno()).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                self._pipe = select.poll()
                self._pipe.register(self.stream.fileno(), select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line, or count it as lost."""
        if self._pipe and not self._pipe.poll(0 if self._lost else PATIENCE * 1000):
            self._lost += 1
            return
        if self._lost:
            lost = logging.LogRecord(__name__, logging.WARNING, "", 0, "nobody read the log", (), None)
            lost.fields, self._lost = {"lines_lost": self._lost}, 0
            super().emit(lost)
        super().emit(record)


def setup(level: str = "info", log_format: str = "logfmt", stream: TextIO | None = None) -> None:
    """Send every log record to `stream` (standard error by default), this package's from `level` on.

    `level` is a key of LEVELS, `log_format` one of FORMATS; KeyError for others. Libraries are heard from
    warning on only.
    """
    handler = LineHandler(stream)
    handler.setFormatter(FORMATS[log_format](stacks=level == "debug"))
    logging.basicConfig(level=max(LEVELS[level], logging.WARNING), handlers=[handler], force=True)
    logging.getLogger(__package__).setLevel(LEVELS[level])
