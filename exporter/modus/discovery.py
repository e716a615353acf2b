"""Which agents are in use: those listed in the configuration, those discovered, or both."""

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType

from exporter.log import fields
from exporter.modus.errors import ApiError
from exporter.modus.model import Agent, AgentsPage
from exporter.modus.pages import pages
from exporter.modus.schedules import Planned

MAX_AGENTS = 100_000  # ten times what one exporter reads: a list that is longer is none of agents

NOTHING: Mapping[int, Planned] = MappingProxyType({})

log = logging.getLogger(__name__)

Ask = Callable[[str | None], AgentsPage]  # page token -> page; raises ApiError


@dataclass(frozen=True, slots=True)
class Target:
    """An agent to read. What is not of the configuration is what the agents list shows, if that was asked."""

    id: int
    name: str = ""
    type: str = ""
    enabled: bool | None = None
    expected_interval: float | None = None  # seconds
    expected_duration: float | None = None  # seconds
    planned: Planned | None = None  # None: not known


@dataclass(frozen=True, slots=True)
class Selection:
    """The agents that this exporter reads: those of the configuration, and those found that the globs choose.

    `include` None: nothing is to be found. `shard` (index, total) is this exporter's part of them.
    """

    listed: Sequence[Target]
    include: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    refresh_interval: float = 300.0  # seconds
    shard: tuple[int, int] = (0, 1)

    @property
    def discovers(self) -> bool:
        """Whether the list of agents is to be asked for."""
        return self.include is not None

    def choose(self, found: Sequence[Agent], planned: Mapping[int, Planned] = NOTHING) -> list[Target]:
        """The configured agents and those found that are wanted, each once, if they are this shard's.

        `planned` is what is known of their schedules.
        """
        targets = {target.id: target for target in self.listed}
        for agent in found:
            listed = targets.get(agent.id)
            if listed or self._wants(agent):
                targets[agent.id] = replace(
                    listed or Target(agent.id),
                    name=agent.name,
                    type=agent.type,
                    enabled=agent.is_enabled,
                    planned=planned.get(agent.id),
                )
        index, total = self.shard
        return [targets[id_] for id_ in sorted(targets) if shard_of(id_, total) == index]

    def _wants(self, agent: Agent) -> bool:
        if agent.status == "deleted" or agent.deleted_at:
            return False
        matches = [
            any(fnmatchcase(agent.name, glob) for glob in globs)
            for globs in (self.include or (), self.exclude)
        ]
        return matches == [True, False]


class Discovery:
    """The list of agents as of the last time that it could be read, whole; None before."""

    def __init__(self, refresh_interval: float) -> None:
        self.found: list[Agent] | None = None
        self.answered = False  # whether the API answered the newest attempt at all
        self._refresh_interval = refresh_interval  # seconds
        self._refreshed = -math.inf  # monotonic seconds
        self.problem = ""  # why it could not be read at the newest attempt: one line

    def is_due(self, now: float) -> bool:
        """Whether the list is to be read again; `now` is monotonic seconds."""
        return self.found is None or now - self._refreshed >= self._refresh_interval

    def refresh(self, ask: Ask, now: float) -> None:
        """Read the list, all pages of it; when that fails the last one stays in use. Raises nothing."""
        self._refreshed = now
        try:
            found = list_agents(ask)
        except Exception as exc:
            error = ApiError.of(exc)
            self.answered = error.answered
            if not self.problem:
                why = fields(**error.told)
                log.error("the agents cannot be listed: those known stay in use", extra=why)
            self.problem = error.line
            return
        if self.problem or self.found is None or len(found) != len(self.found):
            log.info("agents listed", extra=fields(listed=len(found)))
        self.answered, self.problem, self.found = True, "", found


def list_agents(ask: Ask) -> list[Agent]:
    """Read all pages of the agents list; it is whole or it is an ApiError."""
    agents: dict[int, Agent] = {}
    for page in pages(ask):
        agents |= {agent.id: agent for agent in page.agents}
        if len(agents) > MAX_AGENTS:
            raise ApiError("bad_response", f"the list of agents never ends: more than {MAX_AGENTS}")
    return list(agents.values())


def shard_of(agent_id: int, total: int) -> int:
    """The one shard of `total` that reads an agent; by rendezvous hashing few move when `total` changes."""

    def weight(shard: int) -> bytes:
        return hashlib.blake2b(f"{agent_id}/{shard}".encode(), digest_size=8).digest()

    return max(range(total), key=weight) if total > 1 else 0
