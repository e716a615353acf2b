"""The collector: one scrape in flight for all who ask meanwhile, each of whom has a deadline of its own."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from exporter import __version__
from exporter.deadline import Deadline
from exporter.log import fields
from exporter.metrics.bound import BoundCollector
from exporter.metrics.exposition import describe
from exporter.metrics.readerrors import ReadErrors
from exporter.metrics.settings import Settings
from exporter.metrics.snapshot import Snapshot, agent_snapshot
from exporter.metrics.status import Pass
from exporter.metrics.tail import SPARE, Tail
from exporter.metrics.usage import UsageSnapshot, usage_snapshot
from exporter.modus.discovery import Target
from exporter.modus.errors import ApiError
from exporter.modus.requeststats import REQUEST_BUCKETS
from exporter.runs.committer import Committer
from exporter.runs.periodic import PeriodicWork
from exporter.runs.reader import AgentReader
from exporter.runs.reconcile import Turns
from exporter.runs.scrape import STRAGGLER, Means, Scrape
from exporter.runs.state import USAGE_ID
from exporter.runs.targets import Targets
from exporter.runs.threads import KeptThreads, any_cpu
from exporter.runs.usagereader import UsageReader
from exporter.waits import Waits, waited

if TYPE_CHECKING:  # both are handed in
    from exporter.modus.client import ModusClient
    from exporter.runs.ledger import Ledger

MAX_TIMEOUT = 300.0  # seconds a scrape may take, whatever a scraper says
SAME_CLOCK = 2.0  # seconds: the API tells its time in whole ones, so that readings of one skew differ
TICK = 0.5  # seconds after which who waits looks again how much is to be kept free
SHORTEST = 1.0  # seconds that a scraper must allow for what it misses to count as missed
RECONCILED = 20  # one agent in so many, at most, has a page of its lookback compared in a scrape

log = logging.getLogger(__name__)


class RunsCollector(Collector):
    """Reads all agents when it is collected; `within` gives a collector bound to one caller's time.

    It can be registered in any registry of prometheus_client: registering reads nothing. `reload_state` tells
    whether the last load of the configuration succeeded and when one last did.
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
        self.leases = ledger.leases
        self._reload_state = reload_state
        self._clock = clock
        self._monotonic = monotonic
        self._created = clock()
        self._errors = ReadErrors()
        self._skew = 0.0  # by how much the API's clock is ahead of ours, seconds
        self._lock = threading.Lock()  # guards the scrape in flight
        self._scrape: Scrape | None = None
        self._turns = Turns()
        self.newest: Pass | None = None  # to be looked at by people
        self._in_use: Sequence[Target] = ()  # as of the newest scrape that found out
        self._answered = False  # whether somebody saw all of the last scrape
        self.tail = Tail()
        self._reading = threading.Lock()  # one pass, or one change of the settings, at a time
        self._closing = False
        self._leader = KeptThreads(1, "scrape")
        self.beside = KeptThreads(1, "beside")  # for what no scrape waits for
        self.committer = Committer(ledger, monotonic)
        self._use(api, settings)

    def describe(self) -> Iterable[Metric]:
        """The families without samples: what a registry wants to know at registration."""
        return describe()

    def collect(self) -> Iterable[Metric]:
        """The families of a scrape within the default timeout."""
        return self.within(None).collect()

    def within(self, timeout: float | None) -> BoundCollector:
        """A collector for one caller who waits `timeout` seconds; None is the default timeout."""
        return BoundCollector(self, timeout)

    def scrape(self, timeout: float | None) -> Snapshot:
        """Everything to show: what `reading` found out, as of now."""
        return self.snapshot(waited(self.reading(timeout)))

    def reading(self, timeout: float | None) -> Waits[Scrape]:
        """Read all agents within `timeout` seconds less the offset and what follows the reading.

        Concurrent calls share one pass over the API, and so do those within `min_interval` of it; who has
        less time than it takes gets what is known by then, and who has more is not cut short by others.
        """
        allowed = min(self._settings.default_timeout if timeout is None else timeout, MAX_TIMEOUT)
        offset = min(self._settings.timeout_offset, allowed / 2)
        caller = Deadline(allowed - offset, self._monotonic)
        patience = Deadline(allowed - offset + min(2 * STRAGGLER, offset / 2), self._monotonic)
        scrape = self._join(caller)
        while not scrape.finished.done():
            if (seconds := patience.left() - min(self._reserve(scrape), allowed / 2)) <= 0:
                break
            yield scrape.finished, min(seconds, TICK)
        if not scrape.finished.done() and allowed >= SHORTEST:
            self._errors.leave_out(scrape)
        commit = self.committer.request()
        yield commit, max(patience.left() - self.tail.seconds(len(scrape.targets)), 0.0)
        if commit.done():
            scrape.committed = True
        else:
            self.committer.tell_if_slow()
        return scrape

    def reload(self, connect: Callable[[], "ModusClient"], settings: Settings) -> None:
        """Use what `connect` returns and other settings from the next scrape on; nothing counted is lost.

        It is called between passes: its client can take over all counts. What it raises changes nothing.
        """
        with self._reading:
            api = connect()
            self._means.threads.close()
            self._ledger.lookback = settings.limits.lookback
            self._targets.close()
            self._usage.close()
            self._use(api, settings, self._targets, self._usage)

    def close(self, patience: float = 3.0) -> bool:
        """Cut a pass short, count what it read, read no more; whether that was committed in time."""
        self._closing = True
        with self._lock:
            if self._scrape:
                self._scrape.cut_short()
        with self._reading:
            self._targets.close()
            self._usage.close()
            for threads in (self._means.threads, self._leader, self.beside):
                threads.close()
        return self.committer.close(patience)

    def _use(
        self,
        api: "ModusClient",
        settings: Settings,
        targets: Targets | None = None,
        usage: UsageReader | None = None,
    ) -> None:
        self._api = api
        self._settings = settings
        self._reader = AgentReader(api, settings.limits, asks_why=settings.run_log.which != "off")
        self._ledger.run_log = settings.run_log
        self._ledger.reconciles = settings.reconcile_interval > 0
        threads = KeptThreads(settings.concurrency, "read", any_cpu())
        self._means = Means(self._ledger, self.committer, threads, settings.concurrency, {})
        beside = partial(PeriodicWork, self.beside, self._monotonic)
        listing = settings.selection, threads, beside, settings.default_timeout
        self._targets = Targets(api, self._ledger, *listing, targets)
        self._usage = UsageReader(api, self._ledger, self.committer, beside, settings.usage, usage)

    # --- the scrape in flight ---

    def _reserve(self, scrape: Scrape) -> float:
        """Seconds to keep free for what follows the reading, the last piece of the commit included."""
        return min(self.tail.seconds(len(scrape.targets)) + self.committer.took * SPARE, scrape.granted / 2)

    def _join(self, caller: Deadline) -> Scrape:
        """The scrape in flight, which gets this caller's time, or a new one."""
        with self._lock:
            scrape = self._scrape
            if scrape and not scrape.finished.done() and not scrape.deadline.passed():
                scrape.extend(caller.left(), self._reserve(scrape))
                return scrape
            if scrape and scrape.finished.done() and self._serves(scrape, caller):
                return scrape
            # an impatient caller leaves, the scrape goes on
            least = self._settings.default_timeout - self._settings.timeout_offset
            scrape = self._scrape = Scrape(max(caller.left(), least), self._monotonic)
        if not self._leader.submit(partial(self._lead, scrape)):
            self._lead(scrape)
        return scrape

    def _serves(self, scrape: Scrape, caller: Deadline) -> bool:
        """Whether the last scrape is young enough, and not cut shorter than this caller's time allows."""
        if self._monotonic() - scrape.began >= self._settings.min_interval:
            return False
        errors = [outcome.error for outcome in scrape.outcomes.values() if outcome.error]
        return scrape.granted >= caller.left() or all(error.reason != "deadline" for error in errors)

    def _lead(self, scrape: Scrape) -> None:
        try:
            with self._reading:
                if self._closing:
                    return
                if self._answered:  # not before: a series is born when somebody saw it at 0
                    self._ledger.mark_shown()
                    self._answered = False
                targets = self._targets.find(scrape.deadline)
                with self._lock:
                    self._in_use = scrape.targets = targets
                    scrape.deadline.shorten(self._reserve(scrape))
                scrape.read(self._reader, self._means, self._due(scrape.targets))
                self._settle(scrape)
        except Exception as error:  # what was counted is shown, what was not is marked
            log.error("a scrape failed", extra=fields(error=str(ApiError.internal(error))))
        finally:
            scrape.finished.set_result(None)

    def _settle(self, scrape: Scrape) -> None:
        """Take over what a pass found out."""
        skews = sorted(outcome.skew for outcome in scrape.outcomes.values() if outcome.now)
        if skews and abs(skews[len(skews) // 2] - self._skew) > SAME_CLOCK:
            self._skew = skews[len(skews) // 2]
        if self.newest and self.leases.holds(USAGE_ID):  # for all; by now the API's time is known
            self._usage.start(self._clock() + self._skew, self._targets.known_agents)
        self._errors.note(scrape)
        told = self._errors.failing, self._targets.problem
        self.newest = Pass(self._clock(), scrape.duration, scrape.targets, *told)
        self._ledger.end_scrape(scrape.outcomes.keys() if self._targets.certain else None)
        for agent_id in self._means.memories.keys() - scrape.outcomes.keys():
            del self._means.memories[agent_id]

    def _due(self, targets: Sequence[Target]) -> Collection[int]:
        """The agents of which a page of the lookback is compared: of those that are due, some in turn."""
        interval, now = self._settings.reconcile_interval, self._clock() + self._skew
        states = self._ledger.agents() if interval else {}
        due = [
            target.id
            for target in targets
            if (state := states.get(target.id))
            if not 0 <= now - (state.last_reconciled or 0.0) < interval
            if not self._errors.is_failing(target.id)
        ]
        begun = {id_ for id_ in due if (memory := self._means.memories.get(id_)) and memory.walk}
        return self._turns.take(due, begun, max(1, len(targets) // RECONCILED))

    def snapshot(self, scrape: Scrape) -> Snapshot:
        """What a scrape and those before it found out, as of now."""
        now, outcomes, leases = self._clock(), scrape.so_far(), self.leases
        agents = [
            agent_snapshot(
                target,
                outcomes.get(target.id),
                self._ledger.shown(target.id),
                self._errors.of(target.id),
                created=self._created,
                now=now,
                skew=self._skew,
                reconciles=self._settings.reconcile_interval > 0,
            )
            for target in scrape.targets or self._in_use
            if leases.holds(target.id)
        ]
        finished = scrape.finished.done()
        self._answered = self._answered or finished
        stats = self._api.stats()
        reload_successful, reloaded = self._reload_state()
        with self._ledger.usage() as account:
            used = account.show()
        return Snapshot(
            agents=agents,
            bounds=self._ledger.bounds,
            complete=finished
            and self._targets.listed
            and bool(agents or leases.shared)  # others may have them all
            and all(agent.up for agent in agents),
            up=scrape.answered or self._targets.answered,
            show_created=self._settings.show_created,
            duration=scrape.duration,
            ledger_up=self.committer.up,
            lease_changes=leases.changes if leases.shared else None,
            version=__version__,
            created=self._created,
            requests=stats.requests,
            request_bounds=REQUEST_BUCKETS,
            request_durations=stats.durations,
            reload_successful=reload_successful,
            reloaded=reloaded,
            usage=usage_snapshot(self._usage, used, self._settings.usage, [agent.id for agent in agents], now)
            if leases.holds(USAGE_ID)
            else UsageSnapshot(),
        )
