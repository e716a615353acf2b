"""One scrape: all agents side by side, within one deadline, each answer counted by the ledger."""

import itertools
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from exporter import __version__
from exporter.deadline import Deadline
from exporter.metrics.table import AgentSnapshot, Snapshot
from exporter.modus.discovery import Discovery, Target
from exporter.modus.errors import ApiError
from exporter.modus.model import OPEN_STATUSES, Agent, AgentsPage, Cursor, Totals, label, shard_of
from exporter.runs.reader import AgentReader, Known, Limits, Reading, SingleRunRoute

if TYPE_CHECKING:  # both are handed in
    from exporter.modus.client import ModusClient
    from exporter.runs.ledger import Ledger

MAX_LINES = 10  # log lines about agents that changed their state in one scrape
SAME_TIME = 600.0  # seconds between the last reads of agents that were in use together
STRAGGLER = 0.25  # seconds past the deadline after which nobody waits for a request any more
SAME_CLOCK = 2.0  # seconds: the API tells its time in whole ones, so that readings of one skew differ

log = logging.getLogger("exporter.metrics.collector")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a reload may change; times in seconds."""

    targets: Sequence[Target]
    discovery: Discovery | None
    limits: Limits
    concurrency: int
    timeout_offset: float
    default_timeout: float
    min_interval: float
    request_bounds: Sequence[float]
    shard: tuple[int, int] = (0, 1)  # index, total

    def choose(self, found: Sequence[Agent]) -> list[Target]:
        """The configured agents and those found, each once, as far as they are this shard's."""
        targets = {target.id: target for target in self.targets}
        for agent in found:
            interval = targets[agent.id].expected_interval if agent.id in targets else None
            targets[agent.id] = Target(agent.id, agent.name, agent.type, interval)
        index, total = self.shard
        return [targets[id_] for id_ in sorted(targets) if shard_of(id_, total) == index]


class RunsCollector:
    """Reads all agents at every scrape and keeps what a scrape needs of the one before.

    `reload_state` tells whether the last load of the configuration succeeded and when one last did.
    """

    def __init__(
        self,
        api: "ModusClient",
        ledger: "Ledger",
        settings: Settings,
        *,
        reload_state: Callable[[], tuple[bool, float]],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._reload_state = reload_state
        self._clock = clock
        self._monotonic = monotonic
        self._created = clock()
        self._errors: dict[int, Counter[str]] = {}
        self._failing: dict[int, str] = {}
        self._lock = threading.Lock()  # guards the pass that concurrent scrapes share
        self._pass: Future[Snapshot] | None = None
        self._began = 0.0
        self._skew = 0.0  # by how much the API's clock is ahead of ours, seconds
        self._finished = threading.Event()
        self._closing = False
        self._reading = threading.Lock()  # one pass, or one change of the settings, at a time
        self._use(api, settings)

    def scrape(self, timeout: float | None) -> Snapshot:
        """Everything to show, read within `timeout` seconds less the offset, or the default timeout.

        Concurrent calls share one pass over the API; one within `min_interval` of the last pass gets
        its snapshot. Raises TimeoutError when somebody else's pass takes longer than `timeout`.
        """
        allowed = self._settings.default_timeout if timeout is None else timeout
        with self._lock:
            shared = self._pass
            stale = self._monotonic() - self._began >= self._settings.min_interval
            if shared is None or (shared.done() and (stale or shared.exception() is not None)):
                shared = self._pass = Future()
                self._began = self._monotonic()
                leads = True
            else:
                leads = False
        if leads:
            try:
                seconds = max(allowed - self._settings.timeout_offset, allowed / 2)
                deadline = Deadline(seconds, self._monotonic)
                shared.set_result(self._read_all(deadline))
            except BaseException as error:
                shared.set_exception(error)
                raise
        return shared.result(timeout=allowed)

    def reload(self, connect: Callable[[], "ModusClient"], settings: Settings) -> None:
        """Use what `connect` returns and other settings from the next scrape on; nothing counted is lost.

        `connect` is called between two passes, so that the client it makes can take over all counts of
        the one before; what it raises changes nothing.
        """
        with self._reading:
            api = connect()
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._ledger.lookback = settings.limits.lookback
            self._use(api, settings)

    def close(self) -> None:
        """Cut a running pass short, wait until what it read is counted, and read no more."""
        self._closing = True
        self._finished.set()
        with self._reading:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _use(self, api: "ModusClient", settings: Settings) -> None:
        self._api = api
        self._settings = settings
        self._executor = ThreadPoolExecutor(
            settings.concurrency, "read", initializer=_stay_on, initargs=(_any_cpu(),)
        )
        self._route = SingleRunRoute()
        self._readers: dict[int, AgentReader] = {}

    def _read_all(self, deadline: Deadline) -> Snapshot:
        with self._reading:
            began = self._monotonic()
            targets = self._targets(deadline)
            readings = self._readings(targets, deadline)
            for agent_id in self._ledger.accounts.keys() - readings.keys():
                self._ledger.unread(agent_id)  # no longer in use
            self._ledger.commit()
            self._tell_changes({agent_id: reading.error for agent_id, reading in readings.items()})
            agents = [self._show(target, readings[target.id]) for target in targets]
            return self._snapshot(agents, self._monotonic() - began)

    def _readings(self, targets: Sequence[Target], deadline: Deadline) -> dict[int, Reading]:
        """Read all agents side by side and count each as soon as it is read: all runs at once are too many.

        Those that a scrape left out come first the next time.
        """
        readers = {target.id: self._reader(target.id) for target in targets}
        readings: dict[int, Reading] = {}
        counting, over = threading.Lock(), False

        def read_on() -> None:
            for agent_id in left:
                reading = readers[agent_id].read(self._known(agent_id), deadline)
                with counting:
                    if over:
                        return  # a straggler: the next pass reads the agent again
                    readings[agent_id] = self._record(agent_id, reading)

        left = iter(sorted(readers, key=lambda agent_id: readers[agent_id].attempted))
        threads = min(self._settings.concurrency, len(readers))
        futures = [self._executor.submit(read_on) for _ in range(threads)]
        self._wait(futures, deadline)
        with counting:
            over = True
        for future in futures:
            if not future.cancel() and future.done():
                future.result()  # raises what went wrong in it
        late = ApiError("deadline", "the scrape's time was over before this agent's answer was there")
        for agent_id in readers.keys() - readings.keys():
            readings[agent_id] = self._record(agent_id, Reading(Cursor(), error=late))
        return readings

    def _wait(self, futures: Sequence[Future[Any]], deadline: Deadline) -> None:
        """Wait until all are done; no longer than the deadline, and not once the collector closes."""
        finished = self._finished = threading.Event()  # a new one: stragglers know that of their own pass
        left = itertools.count(len(futures) - 1, -1)

        def count_down(_: Future[Any]) -> None:
            if next(left) == 0:
                finished.set()

        for future in futures:
            future.add_done_callback(count_down)
        if futures and not self._closing:
            finished.wait(deadline.left() + STRAGGLER)

    def _known(self, agent_id: int) -> Known:
        account = self._ledger.accounts.get(agent_id)
        if account is None:
            return Known()
        counted = self._ledger.counted.get(agent_id, ())
        return Known(account.cursor, account.open, counted, account.opens_listed)

    def _targets(self, deadline: Deadline) -> list[Target]:
        discovery = self._settings.discovery
        if discovery is None:
            return self._settings.choose([])
        ask = partial(self._list_agents, deadline)
        found = discovery.agents(
            ask, self._executor, self._monotonic(), wait=lambda future: self._wait([future], deadline)
        )
        return self._settings.choose(self._last_known() if found is None else found)

    def _last_known(self) -> list[Agent]:
        """The agents in use before a restart, for as long as the API cannot list them."""
        accounts = self._ledger.accounts
        newest = max((account.last_read or 0.0 for account in accounts.values()), default=0.0)
        return [
            Agent(agent_id, account.name, account.type)
            for agent_id, account in accounts.items()
            if (account.last_read or 0.0) >= newest - SAME_TIME
        ]

    def _list_agents(self, deadline: Deadline, token: str | None) -> AgentsPage:
        return self._api.agents(deadline=deadline, page_token=token)

    def _reader(self, agent_id: int) -> AgentReader:
        if agent_id not in self._readers:
            self._readers[agent_id] = AgentReader(
                agent_id, self._api, self._settings.limits, self._route, monotonic=self._monotonic
            )
        return self._readers[agent_id]

    def _record(self, agent_id: int, reading: Reading) -> Reading:
        """Have the ledger count what was read, also when an error cut it short; the runs are let go."""
        ledger = self._ledger
        errors = self._errors.setdefault(agent_id, Counter())
        if reading.now:
            if abs(reading.skew - self._skew) > SAME_CLOCK:
                self._skew = reading.skew
            account = ledger.account(agent_id, reading.now, reading.skew)
            ledger.record(agent_id, reading.runs, reading.cursor, reading.now, reading.searched)
            newest = reading.newest
            ledger.seen(
                agent_id,
                name=newest.agent_name if newest else account.name,
                type=newest.agent_type if newest else account.type,
                start=newest.start if newest else account.last_start,
            )
            if reading.opens_listed:
                ledger.opens_listed(agent_id)
        if reading.error is None:
            ledger.read(agent_id, self._clock())
        else:
            errors[reading.error.reason] += 1
            ledger.unread(agent_id)
        reading.runs, reading.newest = [], None
        return reading

    def _tell_changes(self, errors: Mapping[int, ApiError | None]) -> None:
        """Log which agents became unreadable or readable again, one line each, not one per scrape."""
        lines = 0
        for agent_id, error in errors.items():
            if (agent_id in self._failing) == (error is not None):
                continue
            lines += 1
            if error is not None:
                self._failing[agent_id] = error.reason
            else:
                del self._failing[agent_id]
            if lines > MAX_LINES:
                continue
            if error is None:
                log.info("agent can be read again", extra={"fields": {"agent_id": agent_id}})
            else:
                fields = {"agent_id": agent_id, "reason": error.reason, "error": str(error)}
                log.warning("agent cannot be read", extra={"fields": fields})
        if lines > MAX_LINES:
            fields = {"more": lines - MAX_LINES, "unreadable": len(self._failing)}
            log.warning("more agents changed between readable and unreadable", extra={"fields": fields})

    def _show(self, target: Target, reading: Reading) -> AgentSnapshot:
        account = self._ledger.accounts.get(target.id)
        up = reading.error is None
        name = label((account.name if account else "") or target.name or str(target.id))
        agent_type = label((account.type if account else "") or target.type)
        now = self._clock()

        def ours(instant: float) -> float:
            """An instant of the API by our clock, and never in its future: no age may be negative."""
            return min(instant - self._skew, now)

        open_starts: dict[str, float] = {}
        for run in account.open.values() if account else ():
            if run.status in OPEN_STATUSES and run.start is not None:
                start = ours(run.start)
                open_starts[run.status] = min(start, open_starts.get(run.status, start))
        totals: Totals | None = None
        last_start = last_read = None
        if account:
            ends = {status: ours(end) for status, end in account.totals.last_end.items()}
            totals = replace(account.totals, last_end=ends)
            last_start = None if account.last_start is None else ours(account.last_start)
            last_read = None if account.last_read is None else min(account.last_read, now)
        return AgentSnapshot(
            id=target.id,
            name=name,
            up=up,
            errors=dict(self._errors[target.id]),
            created=self._created,
            read_duration=reading.duration,
            type=agent_type if up else None,
            counts=reading.counts if up else None,
            open_starts=open_starts if up else None,
            totals=totals,
            last_start=last_start,
            last_read=last_read,
            backlog=bool(account and account.cursor.gaps),
            expected_interval=target.expected_interval,
        )

    def _snapshot(self, agents: Sequence[AgentSnapshot], duration: float) -> Snapshot:
        stats = self._api.stats()
        successful, reloaded = self._reload_state()
        return Snapshot(
            agents=agents,
            bounds=self._ledger.bounds,
            complete=bool(agents) and all(agent.up for agent in agents),
            duration=duration,
            ledger_up=self._ledger.up,
            version=__version__,
            created=self._created,
            requests=stats.requests,
            request_bounds=self._settings.request_bounds,
            request_durations={name: (each.buckets, each.sum) for name, each in stats.durations.items()},
            reload_successful=successful,
            reloaded=reloaded,
        )


def _any_cpu() -> int | None:
    """One of the CPUs that this process may use; None where the system does not say which."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return random.choice(sorted(os.sched_getaffinity(0)))  # noqa: S311 - by chance: shards shall spread


def _stay_on(cpu: int | None) -> None:
    """Keep this thread on one CPU, as all that read: the interpreter runs one at a time anyway.

    Handing its lock from CPU to CPU costs a fifth of the reading's CPU or more (benchmarks/RESULTS.md).
    """
    if cpu is not None:
        with suppress(OSError):  # a sandbox forbids it, or the CPU was taken away: dearer, not wrong
            os.sched_setaffinity(0, {cpu})
