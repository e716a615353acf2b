"""Which agents could not be read: counted by reason, and said in the log when that changes."""

import logging
import threading
from collections import Counter
from collections.abc import Mapping

from exporter.log import fields
from exporter.modus.errors import ApiError
from exporter.runs.scrape import Scrape

MAX_LINES = 10  # log lines about agents that changed their state in one scrape

log = logging.getLogger(__name__)


class ReadErrors:
    """Per agent and reason, the scrapes in which it could not be read. Safe to share between threads."""

    def __init__(self) -> None:
        self._counts: dict[int, Counter[str]] = {}
        self._shown: set[int] = set()
        self.failing: Mapping[int, ApiError] = {}  # the agents that the newest scrape could not read
        self._unread: set[int] = set()  # of them those without a page
        self._left_out: tuple[Scrape | None, set[int]] = (None, set())
        self._lock = threading.Lock()

    def of(self, agent_id: int) -> Mapping[str, int]:
        """The agent's errors by reason, to be shown; an agent that is shown first has none.

        A counter that is born at 1 is invisible to `increase()`.
        """
        with self._lock:
            if agent_id not in self._shown:
                self._shown.add(agent_id)
                return {}
            return dict(self._counts.get(agent_id, {}))

    def is_failing(self, agent_id: int) -> bool:
        """Whether the newest scrape could not read so much as the agent's newest page."""
        return agent_id in self._unread

    def leave_out(self, scrape: Scrape) -> None:
        """Count the agents that a caller has to leave unread, once in a scrape however many leave."""
        outcomes = scrape.so_far()
        with self._lock:
            if self._left_out[0] is not scrape:
                self._left_out = (scrape, set())
            for target in scrape.targets:
                if target.id not in outcomes and target.id not in self._left_out[1]:
                    self._left_out[1].add(target.id)
                    self._counts.setdefault(target.id, Counter())["deadline"] += 1

    def note(self, scrape: Scrape) -> None:
        """Count and log the errors of a scrape that is over; agents no longer in use are forgotten."""
        errors = {agent_id: outcome.error for agent_id, outcome in scrape.outcomes.items()}
        with self._lock:
            told = self._left_out[1] if self._left_out[0] is scrape else set()
            for agent_id, error in errors.items():
                if error and not (error.reason == "deadline" and agent_id in told):
                    self._counts.setdefault(agent_id, Counter())[error.reason] += 1
            for agent_id in self._counts.keys() - errors.keys():
                del self._counts[agent_id]
            self._shown &= errors.keys()
        self._log_transitions(errors)
        self.failing = {agent_id: error for agent_id, error in errors.items() if error}
        self._unread = {agent_id for agent_id in self.failing if scrape.outcomes[agent_id].counts is None}

    def _log_transitions(self, errors: Mapping[int, ApiError | None]) -> None:
        """Log which agents became unreadable or readable again, one line each, not one per scrape."""
        changed = [(id_, error) for id_, error in errors.items() if (id_ in self.failing) == (error is None)]
        for agent_id, error in changed[:MAX_LINES]:
            if error is None:
                log.info("agent can be read again", extra=fields(agent_id=agent_id))
            else:
                log.warning("agent cannot be read", extra=fields(agent_id=agent_id, **error.told))
        if len(changed) > MAX_LINES:
            unreadable = sum(error is not None for error in errors.values())
            more = fields(more=len(changed) - MAX_LINES, unreadable=unreadable)
            log.warning("more agents changed between readable and unreadable", extra=more)
