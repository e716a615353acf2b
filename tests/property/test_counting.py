"""Any history of an agent, any crash, any fault of the API: every ended run is counted once, or as missed."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from exporter.demo.simulator import SimulatedModus, SimulatedRun
from exporter.demo.wire import ABSENT, iso
from exporter.metrics.snapshot import AgentSnapshot
from exporter.modus.errors import ApiError
from exporter.modus.model import OPEN_STATUSES
from exporter.runs.paging import TAIL
from exporter.runs.sqlite import StateFile
from exporter.runs.state import Meta
from exporter.runs.store import Change
from tests.simulation import BOUNDS, Clock, Exporter
from tests.simulation import settings as exporter_settings

AGENT, OTHER = 7, 8
HOUR = 3600.0
LOOKBACK = 6 * HOUR
PERIOD = 120.0  # seconds between two scrapes while all settles
INFINITE = float("inf")
TERMINAL = st.sampled_from(["completed", "completed", "error", "cancelled", "timed_out"])
TRIGGERS = st.sampled_from(["schedule", "api", None, "carrier pigeon"])
REFUSALS = [400, 401, 403, 404, 410, 422, 500, 503]
COUNTS: dict[str, Callable[[dict[str, int]], object]] = {
    "true": lambda counts: counts,
    "missing": lambda counts: None,
    "odd": lambda counts: counts | {"all_executions": str(counts["all_executions"]), "running": 3.5},
    "too many": lambda counts: {name: count + 3 for name, count in counts.items()},
}
Series = dict[tuple[str, str], int]


class KilledFile(StateFile):
    """A state file of which a copy is taken at one moment of the next commit: as a kill there leaves it."""

    moment = ""
    copy_to: Path | None = None

    def write(self, meta: Meta, changes: Iterable[Change], *, anew: bool) -> None:
        wal = Path(f"{self.place}-wal")
        before = wal.stat().st_size if wal.exists() else 0

        def changes_and_copy() -> Iterable[Change]:
            yield from changes
            self.copy_at("in")

        self.copy_at("before")
        super().write(meta, changes_and_copy(), anew=anew)
        copied = self.copy_at("torn")
        if copied and (size := wal.stat().st_size) > before:
            with open(copied / wal.name, "r+b") as file:
                file.truncate((before + size) // 2)
        self.copy_at("after")

    def copy_at(self, moment: str) -> Path | None:
        if KilledFile.moment != moment or KilledFile.copy_to is None or KilledFile.copy_to.exists():
            return None
        shutil.copytree(Path(self.place).parent, KilledFile.copy_to)
        return KilledFile.copy_to


class Counting(RuleBasedStateMachine):
    """A simulated API, the exporter on top of it, and what a naive model says of the runs that ended."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.generation = 0
        self.shown: Series | None = None
        self.open: list[SimulatedRun] = []
        self.paused: list[SimulatedRun] = []
        self.ended: dict[str, str] = {}  # all that the list ever showed as ended: id -> status
        self.before_sight: set[str] = set()
        self.vanished = self.malformed = self.odd_starts = self.paused_ever = 0
        self.offset = 0.0  # of the API's clock

    @initialize(
        page_tokens=st.sampled_from(["offset", "key"]),
        single_run=st.sampled_from([True, True, False, 403, 500]),
        order=st.sampled_from(["start", "start", "close"]),
        lags=st.sampled_from([(0.0,), (0.0,), (0.0, 30.0), (5.0, 0.0, 110.0)]),
        counts=st.sampled_from([*COUNTS, "true", "true"]),
        counts_lag=st.sampled_from([0.0, 0.0, 90.0, -60.0]),
        token_life=st.sampled_from([INFINITE, INFINITE, 50.0]),
        token_refusal=st.sampled_from(REFUSALS),
        page_size=st.sampled_from([3, 10, 100]),
        max_pages=st.sampled_from([1, 2, 5]),
        before=st.integers(0, 12),
    )
    def begin(
        self,
        page_tokens: str,
        single_run: bool | int,
        order: str,
        lags: tuple[float, ...],
        counts: str,
        counts_lag: float,
        token_life: float,
        token_refusal: int,
        page_size: int,
        max_pages: int,
        before: int,
    ) -> None:
        if order == "close":  # the open ones are read at every scrape
            page_size = max(page_size, 10)
        self.clock = Clock()
        self.modus = SimulatedModus(
            fleet={},
            clock=lambda: self.clock.now + self.offset,
            page_tokens=page_tokens,
            single_run=single_run,
            order=order,  # type: ignore[arg-type]
            replica_lags=lags,
            counts_fault=COUNTS[counts],
            counts_lag=counts_lag,
            token_life=token_life,
            token_refusal=token_refusal,
        )
        self.true_counts = counts == "true" and counts_lag == 0 and len(lags) == 1
        self.modus.add_agent(AGENT, "Any agent")
        self.modus.add_agent(OTHER, "Another agent")
        for n in range(before):
            self.modus.start_run(AGENT, at=self.clock.now - 600 + 30 * n, lasts=20)
        beyond = self.modus.start_run(AGENT, at=self.clock.now - 2 * LOOKBACK, lasts=60)
        self.before_sight = {beyond.id}
        self.waiting = [self.modus.start_run(AGENT, at=self.clock.now - 1.5 * LOOKBACK, waits_from=0.0)]
        self.settings = exporter_settings(
            AGENT, page_size=page_size, max_pages=max_pages, lookback=LOOKBACK, reconcile_interval=HOUR
        )
        self.exporter = self.start()
        self.base = sum(self.model().values())

    def start(self) -> Exporter:
        path = str(self.directory / str(self.generation) / "state.db")
        with patch("exporter.runs.sqlite.StateFile", KilledFile):
            return Exporter(self.modus, path, self.settings, monotonic=self.clock, clock=self.clock)

    def start_run(self, **fields: object) -> SimulatedRun:
        return self.modus.start_run(AGENT, **fields)  # type: ignore[arg-type]

    def model(self) -> Counter[str]:
        """What the list shows as ended, by status."""
        unreadable = {run.id for run in self.paused} | self.before_sight
        ended = {
            run.id: run.listed or ""
            for run in self.modus.runs(AGENT)
            if run.listed not in OPEN_STATUSES and run.raw is None and run.id not in unreadable
        }
        self.ended |= ended
        return Counter(ended.values())

    def pass_time(self, seconds: float) -> None:
        self.model()
        self.clock.advance(seconds)
        self.model()

    @property
    def sighted(self) -> bool:
        return AGENT in self.exporter.ledger.agents()

    # what the agent does

    @rule(number=st.integers(1, 25), trigger=TRIGGERS, apart=st.sampled_from([0.0, 0.1, 20.0]))
    def runs_start(self, number: int, trigger: str | None, apart: float) -> None:
        for _ in range(number):
            self.open.append(self.start_run(trigger=trigger))
            self.clock.advance(apart)

    @rule(number=st.integers(1, 8), lasts=st.sampled_from([0.5, 5.0, 45.0]), status=TERMINAL)
    def short_runs(self, number: int, lasts: float, status: str) -> None:
        for _ in range(number):
            self.start_run(lasts=lasts, outcome=status)
            self.clock.advance(10.0)

    @rule(delay=st.floats(0, 600), lasts=st.sampled_from([0.5, 5.0, 90.0, INFINITE]))
    def a_run_starts_and_is_indexed_late(self, delay: float, lasts: float) -> None:
        run = self.start_run(lasts=lasts, visible_from=self.modus.clock() + delay)
        if lasts == INFINITE:
            self.open.append(run)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0), status=TERMINAL)
    def a_run_ends(self, which: int, status: str) -> None:
        self.modus.end_run(self.open.pop(which % len(self.open)), status)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0))
    def a_run_asks_a_human(self, which: int) -> None:
        self.modus.change(self.open[which % len(self.open)], waits_from=self.modus.clock())

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0))
    def a_run_fails_and_is_retried(self, which: int) -> None:
        run = self.open.pop(which % len(self.open))
        self.modus.end_run(run, "error")
        self.open.append(self.start_run(workflow_id=run.workflow_id))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0))
    def a_run_gets_a_status_that_nobody_documented_and_no_end(self, which: int) -> None:
        run = self.open.pop(which % len(self.open))
        self.paused.append(run)
        self.paused_ever += 1
        override: dict[str, object] = {"endedAt": ABSENT, "durationMs": ABSENT}
        self.modus.change(run, outcome="paused", end=self.modus.clock(), override=override)

    @precondition(lambda self: self.paused)
    @rule(status=TERMINAL)
    def and_then_it_ends(self, status: str) -> None:
        run = self.paused.pop()
        self.modus.change(run, outcome=status, end=self.modus.clock(), override={})

    @rule(lasts=st.sampled_from([0.5, 90.0]), start=st.sampled_from([ABSENT, "nonsense", None]))
    def a_run_without_times(self, lasts: float, start: object) -> None:
        override = {"startedAt": start, "endedAt": start, "durationMs": None}
        self.start_run(lasts=lasts, override=override)

    @precondition(lambda self: self.shown is not None and self.odd_starts < TAIL - 1)
    @rule(hours=st.sampled_from([-48.0, -7.0, -1.0, 1.0, 48.0]), lasts=st.sampled_from([5.0, 400.0]))
    def a_run_with_an_odd_start(self, hours: float, lasts: float) -> None:
        """One that was queued, say: its place in the list is not that of its `startedAt`."""
        self.odd_starts += 1
        self.start_run(
            lasts=lasts, override={"startedAt": iso(self.modus.clock() + hours * HOUR), "durationMs": 1}
        )

    @rule(raw=st.sampled_from([b'{"id": %d}', b'{"id": "x%d", "status": null}', b"[%d]"]))
    def a_run_that_cannot_be_read(self, raw: bytes) -> None:
        self.malformed += 1
        self.start_run(lasts=5.0, raw=raw % self.malformed)
        self.clock.advance(10.0)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0))
    def an_open_run_vanishes(self, which: int) -> None:
        self.vanished += 1
        self.modus.change(self.open.pop(which % len(self.open)), hidden=True)

    @rule(name=st.sampled_from(["Any agent", "Another name", "A third name"]))
    def a_rename(self, name: str) -> None:
        self.modus.rename(AGENT, name)

    # what time, the network and the API do

    @rule(seconds=st.sampled_from([1.0, 15.0, 60.0, 700.0, 7200.0]))
    def time_passes(self, seconds: float) -> None:
        self.pass_time(seconds if self.sighted else min(seconds, 60.0))

    @precondition(lambda self: self.sighted)
    @rule(hours=st.sampled_from([3, 10, 30]), apart=st.sampled_from([300.0, 900.0, 5000.0]))
    def an_outage_while_runs_go_on(self, hours: float, apart: float) -> None:
        for _ in range(min(int(hours * HOUR / apart), 40)):
            self.start_run(lasts=5.0)
            self.pass_time(apart)

    @precondition(lambda self: self.sighted)
    @rule(seconds=st.sampled_from([-3600.0, -600.0, -5.0, 5.0, 600.0, 3600.0]))
    def the_clock_of_the_api_steps(self, seconds: float) -> None:
        self.model()
        if abs(self.offset + seconds) <= 2 * HOUR:
            self.offset += seconds
        self.model()

    @rule()
    def all_page_tokens_are_forgotten(self) -> None:
        self.modus.forget_tokens()

    @rule(seconds=st.sampled_from([0.0, 1.0, 60.0]))
    def a_scrape(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.scrape()

    @rule(number=st.integers(2, 12), apart=st.sampled_from([15.0, 60.0, 300.0]))
    def some_scrapes(self, number: int, apart: float) -> None:
        for _ in range(number):
            self.clock.advance(apart if self.sighted else 1.0)
            self.scrape()

    @rule(at=st.integers(1, 6), new=st.integers(0, 12), end=st.booleans())
    def pages_shift_while_they_are_read(self, at: int, new: int, end: bool) -> None:
        left = at

        def shift() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.open += [self.start_run() for _ in range(new)]
                if end and self.open:
                    self.modus.end_run(self.open.pop(0))

        self.exporter.api.before = shift
        self.scrape()
        self.exporter.api.before = lambda: None

    @rule(at=st.integers(1, 6), reason=st.sampled_from(["server_error", "bad_response", "timeout"]))
    def a_request_fails(self, at: int, reason: str) -> None:
        left = at

        def fail() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise ApiError(reason, "it was told to")  # type: ignore[arg-type]

        self.exporter.api.before = fail
        self.scrape()
        self.exporter.api.before = lambda: None

    @precondition(lambda self: self.shown is not None)
    @rule(scrapes=st.integers(1, 5), apart=st.sampled_from([60.0, 1000.0]))
    def the_agent_is_not_in_use_for_a_while(self, scrapes: int, apart: float) -> None:
        self.scrape()
        others = exporter_settings(OTHER, lookback=LOOKBACK, reconcile_interval=HOUR)
        self.exporter.collector.reload(lambda: self.exporter.api, others)  # type: ignore[arg-type]
        for _ in range(scrapes):
            self.exporter.scrape()
            self.pass_time(apart)
        self.exporter.collector.reload(lambda: self.exporter.api, self.settings)  # type: ignore[arg-type]

    @rule(moment=st.sampled_from(["before", "in", "torn", "after"]))
    def a_kill_at_the_commit_of_a_scrape(self, moment: str) -> None:
        """What the killed scrape found was never shown."""
        self.kill(moment)

    def kill(self, moment: str) -> None:
        """The new process finds what was on disk then."""
        here, there = (self.directory / str(self.generation + n) for n in (0, 1))
        KilledFile.moment, KilledFile.copy_to = moment, there
        self.exporter.scrape()
        KilledFile.copy_to = None
        if not there.exists():  # nothing was written
            shutil.copytree(here, there)
        self.exporter.close()
        self.generation += 1
        self.exporter = self.start()

    def scrape(self) -> AgentSnapshot:
        self.model()
        agent = self.exporter.scrape()[AGENT]
        self.model()
        if agent.totals is None:
            assert self.shown is None, "what was shown is not shown any more"
            return agent
        totals = agent.totals
        series = {(s, t): n for s, triggers in totals.finished.items() for t, n in triggers.items()}
        if self.shown is None:
            whole = len(self.modus.replica_lags) > 1 or sum(series.values()) >= self.base
            assert whole, "the first sample is not the whole base"
        else:
            assert all(n >= self.shown.get(key, 0) for key, n in series.items()), "a counter stepped back"
            assert all(n == 0 for key, n in series.items() if key not in self.shown), "not born at 0"
            assert series.keys() >= self.shown.keys(), "a series is gone"
        counted = Counter[str]()
        for (status, _), number in series.items():
            counted[status] += number
        assert counted <= Counter(self.ended.values()), "a run was counted that did not end, or twice"
        assert sum(totals.durations.buckets) <= sum(self.ended[id_] == "completed" for id_ in self.ended)
        assert len(totals.durations.buckets) == len(BOUNDS) + 1
        assert totals.durations.native.count == sum(totals.durations.buckets)
        assert totals.missed["malformed"] <= self.malformed, "an item was missed that there is not, or twice"
        if self.true_counts:
            assert totals.missed["unreachable"] <= self.vanished
        self.shown = series
        if agent.open_starts is not None:
            self.open += self.waiting  # from its first sight on it may end at any time
            self.waiting = []
        return agent

    def settle(self) -> AgentSnapshot:
        """Scrape until the whole lookback was compared once more, and what that found is shown."""
        self.pass_time(700.0)  # what the index shows late is there
        began = self.modus.clock()
        for _ in range(600):
            self.clock.advance(PERIOD)
            agent = self.scrape()
            reconciled = self.exporter.ledger.agents()[AGENT].last_reconciled or 0.0
            if agent.up and reconciled > began + HOUR:  # the first sight counts as one comparison
                break
        else:
            raise AssertionError(f"it does not settle: {agent.errors}, backlog {agent.backlog}, {reconciled}")
        for _ in range(12):
            self.clock.advance(PERIOD)
            agent = self.scrape()
        return agent

    def teardown(self) -> None:
        KilledFile.copy_to = None
        if not hasattr(self, "exporter"):
            return
        with closing(self.exporter):
            agent = self.settle()
            totals = agent.totals
            assert totals is not None
            counted = {status: sum(by_trigger.values()) for status, by_trigger in totals.finished.items()}
            model = self.model()
            assert +Counter(counted) <= model, "a run was counted twice"
            lost = sum((model - Counter(counted)).values())
            given_up = min(totals.missed["vanished"], self.paused_ever)  # those in a status nobody can list
            assert lost <= given_up, "a run was lost, and nothing tells"
            assert sum(totals.durations.buckets) <= counted["completed"]
            assert totals.missed["malformed"] == self.malformed
            assert totals.missed["vanished"] <= self.vanished + self.paused_ever
        shutil.rmtree(self.directory)


def test_every_run_is_counted_once_whatever_happens() -> None:
    run_state_machine_as_test(
        Counting,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
