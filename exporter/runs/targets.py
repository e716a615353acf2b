"""Which agents a scrape reads: they are listed beside scrapes, and the last list serves until then."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from exporter.deadline import Deadline
from exporter.modus.discovery import Discovery, Selection, Target
from exporter.modus.model import Agent, AgentsPage
from exporter.modus.pages import PageSize
from exporter.modus.schedules import INTERVAL, Schedules
from exporter.runs.periodic import PeriodicWork
from exporter.runs.state import USAGE_ID
from exporter.runs.threads import KeptThreads

if TYPE_CHECKING:  # both are handed in
    from exporter.modus.client import ModusClient
    from exporter.runs.ledger import Ledger

TICK = 0.2  # seconds after which who waits looks again


class Targets:
    """The agents in use. The list of agents gets `timeout` seconds, and is read by one thread at a time.

    Their schedules are read `beside` the scrapes, which gives periodic work of an interval.

    What `earlier` targets found, before a reload, serves until the API can be asked anew.
    """

    def __init__(
        self,
        api: "ModusClient",
        ledger: "Ledger",
        selection: Selection,
        threads: KeptThreads,
        beside: Callable[[float], PeriodicWork],
        timeout: float,
        earlier: "Targets | None" = None,
    ) -> None:
        self._api = api
        self._ledger = ledger
        self._selection = selection
        self._threads = threads
        self._timeout = timeout
        self._discovery = Discovery(selection.refresh_interval)
        self._page_size = PageSize()
        self._refreshing = threading.Lock()
        self._earlier = earlier.found if earlier else None
        self._planning = beside(max(selection.refresh_interval, INTERVAL))
        self._schedules = Schedules()
        if earlier:
            self._schedules.known = earlier._schedules.known
        self._any = False  # whether the newest scrape had an agent to read
        self.certain = not selection.discovers  # whether those that `find` left out are listed no more

    @property
    def listed(self) -> bool:
        """Whether it is known which agents there are."""
        return not self._selection.discovers or self._discovery.found is not None

    @property
    def answered(self) -> bool:
        """Whether the API answered with the list of agents in this scrape; without agents, the last time."""
        return self._discovery.answered

    @property
    def problem(self) -> str:
        """Why the agents cannot be listed: one line, or nothing."""
        return self._discovery.problem

    @property
    def found(self) -> list[Agent] | None:
        """The newest list of agents; None while there was none."""
        return self._earlier if self._discovery.found is None else self._discovery.found

    def known_agents(self) -> Sequence[Agent] | None:
        """The agents that are listed or were read, with their names; None while that is unknown."""
        if self._selection.discovers:
            return self.found
        return [Agent(agent_id, state.name) for agent_id, state in self._ledger.agents().items()]

    def find(self, deadline: Deadline) -> list[Target]:
        """The agents to read, of those that several exporters share our own.

        Only the first list of agents and the first leases are waited for, until the deadline.
        """
        targets, leases = self._in_use(deadline), self._ledger.leases
        if leases.shared and (self.listed or self._earlier is not None):
            leases.want(frozenset(target.id for target in targets) | {USAGE_ID}, deadline)
        return [target for target in targets if leases.holds(target.id)]

    def _in_use(self, deadline: Deadline) -> list[Target]:
        selection, discovery = self._selection, self._discovery
        if not selection.discovers:
            return selection.choose([])
        if self._any:
            discovery.answered = False
        if discovery.is_due(deadline.monotonic()) and self._refreshing.acquire(blocking=False):
            listed = threading.Event()
            work = partial(self._refresh, Deadline(self._timeout, deadline.monotonic), listed)
            if not self._threads.submit(work):
                work()
            while discovery.found is None and not deadline.passed():
                if listed.wait(min(deadline.left(), TICK)):  # the deadline may be moved meanwhile
                    break
        self._planning.begin(self._plan)
        self.certain = self.listed and not self.problem  # asked first: a list may come at any time
        found = self.found
        targets = selection.choose(self._last_known() if found is None else found, self._schedules.known)
        self._any = bool(targets)
        return targets

    def close(self) -> None:
        """Cut off what is read beside the scrapes."""
        self._schedules.stop()
        self._planning.close()

    def _refresh(self, deadline: Deadline, listed: threading.Event) -> None:
        def ask(token: str | None, size: int) -> AgentsPage:
            return self._api.agents(deadline=deadline, page_token=token, page_size=size)

        try:
            self._discovery.refresh(partial(self._page_size.ask, ask), deadline.monotonic())
        finally:
            self._refreshing.release()
            listed.set()

    def _plan(self, deadline: Deadline) -> None:
        def ask(token: str | None, size: int) -> AgentsPage:
            return self._api.agents(deadline=deadline, page_token=token, page_size=size, with_variation=True)

        self._schedules.refresh(ask)

    def _last_known(self) -> list[Agent]:
        """The agents in use before a restart, for as long as the API cannot list them."""
        return [
            Agent(agent_id, state.name, state.type)
            for agent_id, state in self._ledger.agents().items()
            if state.unused_since is None
        ]
