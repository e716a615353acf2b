"""Which agents are in use: those listed in the configuration, those discovered, or both."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from fnmatch import fnmatchcase

from exporter.modus.errors import ApiError
from exporter.modus.model import Agent, AgentsPage

MAX_PAGES = 1000

log = logging.getLogger("exporter.modus.discovery")

Ask = Callable[[str | None], AgentsPage]  # page token -> page; raises ApiError


@dataclass(frozen=True, slots=True)
class Target:
    """An agent to read; the name is the one the agents list shows, if that was asked."""

    id: int
    name: str = ""
    type: str = ""
    expected_interval: float | None = None  # seconds


class Discovery:
    """The agents of the token whose names match `include` and not `exclude` (globs).

    The list is read again every `refresh_interval` seconds, in the background of scrapes, and kept
    when that fails.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str], refresh_interval: float) -> None:
        self._include = include
        self._exclude = exclude
        self._refresh_interval = refresh_interval
        self._refreshed: float | None = None
        self._found: list[Agent] | None = None
        self._refresh: Future[list[Agent]] | None = None
        self._failing = False

    def agents(
        self, ask: Ask, executor: Executor, now: float, wait: Callable[[Future[list[Agent]]], None]
    ) -> list[Agent] | None:
        """The agents as of the last refresh that succeeded, None before one did; `now` is monotonic seconds.

        Has `wait` wait for the first list, as long as it likes; later ones are awaited by nobody.
        """
        if self._refresh is None and (
            self._found is None or self._refreshed is None or now - self._refreshed >= self._refresh_interval
        ):
            self._refreshed = now
            self._refresh = executor.submit(list_agents, ask)
        if self._refresh and self._found is None:
            wait(self._refresh)
        if self._refresh and self._refresh.done():
            self._take(self._refresh)
            self._refresh = None
        return self._found

    def _take(self, refresh: Future[list[Agent]]) -> None:
        try:
            agents = refresh.result()
        except ApiError as error:
            if not self._failing:
                log.error(
                    "the agents cannot be listed: those known stay in use",
                    extra={"fields": {"reason": error.reason, "error": str(error)}},
                )
            self._failing = True
            return
        found = self.choose(agents)
        if self._failing or self._found is None or len(found) != len(self._found):
            log.info("agents listed", extra={"fields": {"listed": len(agents), "in_use": len(found)}})
        self._failing = False
        self._found = found

    def choose(self, agents: Sequence[Agent]) -> list[Agent]:
        """Those of `agents` that are wanted: not deleted, included, not excluded."""
        return [agent for agent in agents if self._wanted(agent)]

    def _wanted(self, agent: Agent) -> bool:
        if agent.status == "deleted" or agent.deleted_at:
            return False
        matches = [
            any(fnmatchcase(agent.name, glob) for glob in globs) for globs in (self._include, self._exclude)
        ]
        return matches == [True, False]


def list_agents(ask: Ask) -> list[Agent]:
    """Read all pages of the agents list; it is whole or it is an ApiError."""
    agents: dict[int, Agent] = {}
    tokens: set[str] = set()
    token = None
    for _ in range(MAX_PAGES):
        page = ask(token)
        agents |= {agent.id: agent for agent in page.agents}
        token = page.next_page_token
        if token is None:
            return list(agents.values())
        if token in tokens:
            break
        tokens.add(token)
    raise ApiError(
        "bad_response", "the list of agents never ends: its page token repeats or goes on for ever"
    )
