"""What the exporter sees, as values for the page that people read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.modus.contact import Contact
from exporter.modus.discovery import Target
from exporter.modus.errors import ApiError
from exporter.runs.state import AgentState


@dataclass(frozen=True, slots=True)
class Pass:
    """What the newest pass over the API found out; times in seconds."""

    ended: float  # our clock
    duration: float
    targets: Sequence[Target]
    errors: Mapping[int, ApiError]  # of the agents that could not be read
    unlisted: str  # why the agents cannot be listed: one line, or nothing


@dataclass(frozen=True, slots=True)
class Status:
    """What is known now; instants are Unix seconds of our clock."""

    now: float
    api: str  # scheme and host
    contact: Contact
    newest: Pass | None  # None before the first scrape
    known: Mapping[int, AgentState]  # what was counted of the agents
    state_path: str | None  # None: in memory
    state_up: bool
    reload_successful: bool
    reloaded: float  # when the configuration in force was loaded
