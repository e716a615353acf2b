"""The schedules of all agents: listed with what is deployed of each, so less often than the agents alone."""

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from exporter.log import fields
from exporter.modus.errors import ApiError
from exporter.modus.model import Agent, AgentsPage, label, seconds
from exporter.modus.pages import PageSize, pages
from exporter.modus.schedule import Schedule, schedule_of

INTERVAL = 900.0  # seconds between two readings, at least: what is deployed of an agent may be large
MAX_LINES = 10  # log lines about single agents in one reading

log = logging.getLogger(__name__)

Ask = Callable[[str | None, int], AgentsPage]  # page token and size -> page; raises ApiError


class Planned(NamedTuple):
    """An agent's schedule, and since when it is known to be the one in force (Unix seconds, API's clock)."""

    schedule: Schedule | None  # None: it has none, or one that nobody understands
    enabled: bool | None
    since: float

    def due(self, now: float) -> tuple[float | None, float | None]:
        """When it was due last while this schedule was in force, and is due next; None for never."""
        last, coming = self.schedule.around(now) if self.schedule else (None, None)
        return (last if last is not None and last >= self.since else None), coming


class Schedules:
    """The schedules as of the last time that each could be read."""

    def __init__(self) -> None:
        self.known: dict[int, Planned] = {}
        self._page_size = PageSize()
        self._failing = False
        self._odd: dict[int, str] = {}  # agents whose schedule is not understood -> why

    def refresh(self, ask: Ask) -> None:
        """Read them, page by page; those of pages that cannot be read stay as they were. Raises nothing."""
        known, odd = {}, {}
        try:
            for page in pages(partial(self._page_size.ask, ask)):
                for agent in page.agents:
                    known[agent.id], why = self._planned(agent)
                    if why:
                        odd[agent.id] = why
                self.known = self.known | known
        except Exception as error:
            if not self._failing:
                told = fields(**ApiError.of(error).told)
                log.warning("the schedules cannot be read: those known stay in use", extra=told)
            self._failing = True
        else:
            self._failing, self.known = False, known
        self._tell(odd)

    def stop(self) -> None:
        """Say nothing more about a reading that fails: it is cut off."""
        self._failing = True

    def _planned(self, agent: Agent) -> tuple[Planned, str]:
        """What is planned of an agent, and what is wrong with it."""
        schedule, why = None, ""
        try:
            schedule = schedule_of(agent.variation.trigger if agent.variation else None)
        except ValueError as error:
            why = str(error)
        before = self.known.get(agent.id)
        if before and (before.schedule, before.enabled) == (schedule, agent.is_enabled):
            return before, why
        return Planned(schedule, agent.is_enabled, seconds(agent.updated_at) or 0.0), why

    def _tell(self, odd: dict[int, str]) -> None:
        """Say whose schedule is not understood, each once."""
        new = [agent_id for agent_id in odd if self._odd.get(agent_id) != odd[agent_id]]
        for agent_id in new[:MAX_LINES]:
            log.warning(
                "an agent's schedule is not understood: missed starts are not noticed",
                extra=fields(agent_id=agent_id, error=label(odd[agent_id])),
            )
        self._odd = odd
