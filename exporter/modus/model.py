"""The Modus API's answers as typed, frozen values, and the one error a request can end in.

Field names and meanings are those of the API reference ("List recent runs for an agent").
Only what the exporter uses is decoded; unknown fields are ignored.
"""

import re
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

OPEN_STATUSES = ("running", "awaiting_human")
TERMINAL_STATUSES = ("completed", "error", "cancelled")
TOTAL_COUNT = "all_executions"  # in `counts` beside its own parts; never a status value

LONGEST_LABEL = 200  # characters of a label value; a longer one is cut

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

_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """Replace control characters (but the line feed) and lone surrogates: no label may carry them."""
    return _UNPRINTABLE.sub("\ufffd", text) if _UNPRINTABLE.search(text) else text


def label(text: str) -> str:
    """`text` as a label value: printable, and no longer than any name has to be."""
    return printable(text[:LONGEST_LABEL])


@lru_cache(maxsize=1024)  # a walk compares the same starts again and again
def seconds(timestamp: str | None) -> float | None:
    """Unix seconds of an ISO-8601 time (UTC where it names no zone); None for none or nonsense."""
    if not timestamp:
        return None
    try:
        moment = datetime.fromisoformat(timestamp)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


class Run(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """One run as the list shows it. Its identity is `id`: one workflow can have several."""

    id: str
    workflow_id: str
    status: str
    agent_name: str = ""
    agent_type: str = ""
    temporal_run_id: str | None = None
    trigger_type: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    duration_ms: float | None = None

    @property
    def start(self) -> float | None:
        """Start in Unix seconds; None when the API names none."""
        return seconds(self.started_at)

    @property
    def end(self) -> float | None:
        """End in Unix seconds; None while in flight or when the API names none."""
        return seconds(self.ended_at)

    @property
    def ended(self) -> bool:
        """Whether it will not change any more: a terminal status, or an unknown one that names an end."""
        if self.status in TERMINAL_STATUSES:
            return True
        return self.status not in OPEN_STATUSES and (
            self.ended_at is not None or self.duration_ms is not None
        )


class RunsPage(msgspec.Struct, frozen=True):
    """One page of an agent's runs, newest start first, with the API's counts per status."""

    runs: list[Run]
    counts: dict[str, int]
    next_page_token: str | None  # None on the last page
    now: float  # the API's clock at the answer, Unix seconds
    skew: float = 0.0  # by how much that clock is ahead of ours, seconds
    malformed: list[str] = []  # what names items that could not be decoded

    @property
    def ids(self) -> list[str]:
        """The runs' identities."""
        return [run.id for run in self.runs]


class Agent(msgspec.Struct, frozen=True, rename="camel"):
    """One agent as the agents list shows it."""

    id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    name: str = ""
    type: str = ""
    status: str = ""
    deleted_at: str | None = None
    is_enabled: bool | None = None


class AgentsPage(msgspec.Struct, frozen=True, rename="camel"):
    """One page of the agents that the token may use."""

    agents: list[Agent]
    next_page_token: str | None = None

    @property
    def ids(self) -> list[int]:
        """The agents' identities."""
        return [agent.id for agent in self.agents]


class ApiError(Exception):
    """A request that brought no usable answer.

    `reason` is a value of `modus_agent_read_errors_total`; the text is one line for the log and
    never holds a secret; `missing` lists the scopes a 403 names; `status` is the HTTP status, if
    there was one.
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
        return self.status is not None and self.status < 500
