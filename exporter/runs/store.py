"""Where the ledger keeps what it counted: the interface, and which store a place names."""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from exporter.deadline import Deadline
from exporter.log import one_line
from exporter.runs.ids import CountedIds
from exporter.runs.state import USAGE_ID, AgentState, Meta, State, UsageState
from exporter.scalars import Secret


class LedgerError(Exception):
    """The state cannot be used; the text is one line that says what to do."""


class StoreError(Exception):
    """A commit failed; the text is one line."""


class UnansweredError(StoreError):
    """Nobody knows whether a commit was done: its answer was lost."""


class Change(NamedTuple):
    """What a commit writes of one agent: its encoded state (None: forget it), ids that are new, and gone.

    It is written only under the lease that the state was loaded under, which has this `epoch`.
    """

    agent_id: int
    epoch: int
    state: bytes | None
    new: list[tuple[str, float]]
    gone: list[str]


@dataclass(frozen=True, slots=True)
class Database:
    """A PostgreSQL that several exporters share: a URL of libpq, and the file that holds the password."""

    url: Secret
    password_file: str | None = None


Place = str | Database  # a path, or a database


class Taken(NamedTuple):
    """An agent as the store holds it; `state` None: nothing was counted yet.

    `marked` is the number of its line for the log that was said last, `epoch` that of the lease.
    """

    agent_id: int
    state: AgentState | UsageState | None
    counted: CountedIds
    same_buckets: bool = True  # as today's
    marked: int = 0
    epoch: int = 0


class Tenant(Protocol):
    """Who counts what is leased."""

    clock: Callable[[], float]
    read_until: float  # instant of that clock up to which all that it holds was read and is durable
    lookback: float  # seconds

    def take(self, agents: Iterable[Taken]) -> None:
        """Count and show these agents from now on."""

    def let_go(self, agent_ids: Iterable[int]) -> None:
        """Neither count nor show these any more, and forget them."""


class Leases(Protocol):
    """The agents that this exporter may count and show."""

    shared: bool  # whether others have the rest
    changes: int  # leases that were taken or lost so far

    def want(self, agent_ids: frozenset[int], deadline: Deadline) -> None:
        """Say which agents are in use. Who has none yet waits for its share, until the deadline."""

    def holds(self, agent_id: int) -> bool:
        """Whether it may count and show the agent right now."""

    def epoch(self, agent_id: int) -> int | None:
        """What tells this lease of the agent from earlier ones; None without one."""

    def close(self) -> None:
        """Give all back."""


class Alone:
    """The leases of an exporter that has all agents to itself."""

    shared = False
    changes = 0

    def want(self, agent_ids: frozenset[int], deadline: Deadline) -> None:
        """All of them are its own."""

    def holds(self, agent_id: int) -> bool:
        """Always."""
        return True

    def epoch(self, agent_id: int) -> int | None:
        """There is one lease for ever."""
        return 0

    def close(self) -> None:
        """There is nobody to give anything back to."""


class Store(Protocol):
    """Keeps the state of agents; one thread at a time uses it."""

    place: str  # where it is, to be shown

    def load(self, meta: Meta, *, reset_histogram: bool) -> State:
        """Open it, made with `meta` when there is none, and return what it holds for us.

        `reset_histogram`: other buckets in it are to be replaced by those of `meta`. Raises LedgerError.
        """

    def lease_for(self, tenant: Tenant) -> Leases:
        """The leases of `tenant`, who counts what this store keeps. Comes after `load`."""

    def open_again(self, agent_ids: Callable[[], Collection[int]]) -> Collection[int] | None:
        """Open it where it is not open; None when it holds of our agents what was written last.

        Else those that are to be written anew and whole, all in the next `write`. Raises StoreError.
        """

    def write(self, meta: Meta, changes: Iterable[Change], *, anew: bool) -> None:
        """Write in one durable transaction; `anew`: in place of what it holds. Raises StoreError."""

    def mark(self, agent_id: int, number: int) -> None:
        """Note that the agent's lines for the log up to this number were said."""

    @property
    def marked(self) -> int:
        """The number of the line that was said last, of those that `load` returned."""

    def adopt(self, meta: Meta, changes: Sequence[Change]) -> None:
        """Write agents that it has not got, from another store, while nobody uses it. Raises StoreError."""

    def close(self) -> None:
        """Let another process have it."""


def refuse_known(known: Collection[int], changes: Iterable[Change]) -> None:
    """Raise StoreError when a store has one of the agents that it is to adopt."""
    if both := sorted({change.agent_id for change in changes}.intersection(known)):
        first = next((agent_id for agent_id in both if agent_id != USAGE_ID), "the usage of all")
        raise StoreError(f"it has {len(both)} of these agents already, such as {first}")


def open_store(place: Place, clock: Callable[[], float]) -> Store:
    """The store at `place`. Raises LedgerError when it is in use, or cannot be opened."""
    # each store imports this interface, and that of a database a library that not everybody has
    if isinstance(place, Database):
        with _needs_psycopg():
            from exporter.runs.postgres import SharedStore
        return SharedStore(place)
    from exporter.runs.sqlite import StateFile

    return StateFile(place, clock)


def read_state(place: Place, *, alone: bool = False) -> State:
    """All that the store at `place` holds, beside who writes it, or when nobody does. Raises LedgerError."""
    if isinstance(place, Database):
        with _needs_psycopg():
            from exporter.runs import postgres
        return postgres.read_state(place, alone=alone)
    from exporter.runs import sqlite

    if alone and os.path.exists(place):
        open_store(place, time.time).close()  # it is locked, or was not
    return sqlite.read_state(place)


@contextmanager
def _needs_psycopg() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise LedgerError(
            f"state.url needs psycopg, which cannot be used here ({one_line(error)}): "
            "pip install 'modus-exporter[postgres]'"
        ) from None
