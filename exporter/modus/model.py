"""The Modus API's answers as typed, frozen values.

Field names and meanings are those of the API reference ("List recent runs for an agent").
Only what the exporter uses is decoded; unknown fields are ignored.
"""

import hashlib
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any

import msgspec

OPEN_STATUSES = ("running", "awaiting_human")
TERMINAL_STATUSES = ("completed", "error", "cancelled")
TOTAL_COUNT = "all_executions"  # in `counts` beside its own parts; never a status value

LARGEST_ID = 2**63 - 1  # of an agent
LONGEST_LABEL = 200  # characters of a label value; a longer one is cut
LONGEST_ID = 1100  # characters of a workflow's id: Temporal allows 1,000
LONGEST_RUN_ID = 256  # characters of a run's id; of a longer one the beginning and a digest are kept
LONGEST_TIME = 64  # characters of a time; a longer text is none
LONGEST_TOKEN = 8192  # characters of a page token: it has to fit into a URL

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_ID)]
RunId = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_RUN_ID)]
Label = Annotated[str, msgspec.Meta(max_length=LONGEST_LABEL)]
Time = Annotated[str, msgspec.Meta(max_length=LONGEST_TIME)]

_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """Replace control characters (but the line feed) and lone surrogates: no label may carry them."""
    return _UNPRINTABLE.sub("\ufffd", text) if _UNPRINTABLE.search(text) else text


def label(text: str) -> str:
    """`text` as a label value: printable, and no longer than any name has to be."""
    return printable(text[:LONGEST_LABEL])


def kept_id(text: str) -> str:
    """A run's id as it is remembered: of a long one, which every counted run would cost, a digest."""
    if len(text) <= LONGEST_RUN_ID:
        return text
    return f"{text[:128]}...{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def seconds(timestamp: str | None) -> float | None:
    """Unix seconds of an ISO-8601 time (UTC where it names no zone); None for none or nonsense."""
    return _seconds(timestamp) if timestamp and len(timestamp) <= LONGEST_TIME else None


@lru_cache(maxsize=1024)  # a walk compares the same starts again and again
def _seconds(timestamp: str) -> float | None:
    try:
        moment = datetime.fromisoformat(timestamp)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


class Run(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """One run as the list shows it. Its identity is `id`: one workflow can have several."""

    id: RunId
    workflow_id: Id
    status: Annotated[Label, msgspec.Meta(min_length=1)]
    agent_name: Label = ""
    agent_type: Label = ""
    temporal_run_id: Id | None = None
    trigger_type: Label | None = None
    started_at: Time | None = None
    ended_at: Time | None = None
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
        """Whether the status is terminal, or one that nobody documented of a run that names an end."""
        if self.status in TERMINAL_STATUSES:
            return True
        named = self.end is not None or self.duration_ms is not None
        return named and self.status not in OPEN_STATUSES

    def explained(self, status_reason: str | None, task_error: str | None) -> "RunDetails":
        """The run with why it did not complete."""
        return RunDetails(**msgspec.structs.asdict(self), status_reason=status_reason, task_error=task_error)


class RunDetails(Run, frozen=True, rename="camel", gc=False):
    """One run as its own route shows it: with why it did not complete, where that is known."""

    status_reason: Label | None = None
    task_error: str | None = None  # the text of a failure; it may hold personal data


class RunsPage(msgspec.Struct, frozen=True):
    """One page of an agent's runs, newest start first, with the API's counts per status.

    `malformed` names the items that could not be read: by their id where they have one, else by a digest.
    `starts` are those of its runs that name one.
    """

    runs: list[Run]
    counts: dict[str, int]
    next_page_token: str | None  # None on the last page
    now: float  # the API's clock at the answer as far as its answers agree, Unix seconds
    skew: float = 0.0  # by how much that clock is ahead of ours, seconds
    malformed: list[str] = msgspec.field(default_factory=list)
    starts: list[float] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:  # noqa: D105 - asked for again and again
        starts = [start for run in self.runs if (start := run.start) is not None]
        msgspec.structs.force_setattr(self, "starts", starts)

    @property
    def newest(self) -> Run | None:
        """The run that started last so far; the first one where none names a start that has come."""
        if not self.runs:
            return None
        first = self.runs[0]
        if self.starts and first.start == max(self.starts) <= self.now:  # as in a list in its usual order
            return first
        started = [run for run in self.runs if run.start is not None and run.start <= self.now]
        return max(started, key=lambda run: run.start or 0.0, default=first)

    @property
    def ids(self) -> list[str]:
        """What tells the items of the page from those of another."""
        return [run.id for run in self.runs] + self.malformed


class Variation(msgspec.Struct, frozen=True):
    """What is deployed of an agent; `trigger` is free-form."""

    trigger: Any = None


class Agent(msgspec.Struct, frozen=True, rename="camel"):
    """One agent as the agents list shows it; `variation` is there when it was asked for."""

    id: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_ID)]
    name: Label = ""
    type: Label = ""
    status: Label = ""
    deleted_at: Time | None = None
    is_enabled: bool | None = None  # whether its schedule is on
    slug: Label = ""
    updated_at: Time | None = None  # by a person
    variation: Variation | None = None


class AgentsPage(msgspec.Struct, frozen=True, rename="camel"):
    """One page of the agents that the token may use; `malformed` as in RunsPage."""

    agents: list[Agent]
    next_page_token: Annotated[str, msgspec.Meta(max_length=LONGEST_TOKEN)] | None = None
    malformed: list[str] = msgspec.field(default_factory=list)

    @property
    def ids(self) -> list[int | str]:
        """What tells the items of the page from those of another."""
        return [*(agent.id for agent in self.agents), *self.malformed]
