"""Any history of an agent, any crash, any fault: every ended run is counted once."""

import shutil
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from exporter.demo.simulator import SimulatedModus, SimulatedRun
from exporter.modus.errors import ApiError
from tests.simulation import BOUNDS, DAY, Clock, Exporter, finished
from tests.simulation import settings as exporter_settings

AGENT = 7
LOOKBACK = 30 * DAY  # longer than any history here, but for the runs that were over or open before
TERMINAL = st.sampled_from(["completed", "completed", "error", "cancelled"])
TRIGGERS = st.sampled_from(["schedule", "api", None, "carrier pigeon"])


class Counting(RuleBasedStateMachine):
    """A model API, the exporter on top of it, and a set of the runs that ended."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.generation = 0
        self.shown = Counter[str]()
        self.open: list[SimulatedRun] = []

    @initialize(
        page_tokens=st.sampled_from(["offset", "key"]),
        single_run=st.booleans(),
        page_size=st.sampled_from([3, 10, 100]),
        max_pages=st.sampled_from([1, 2, 5]),
        before=st.integers(0, 12),
    )
    def begin(self, page_tokens: str, single_run: bool, page_size: int, max_pages: int, before: int) -> None:
        self.clock = Clock()
        self.modus = SimulatedModus(
            fleet={}, clock=self.clock, page_tokens=page_tokens, single_run=single_run
        )
        self.modus.add_agent(AGENT, "Any agent")
        for n in range(before):
            self.modus.start_run(AGENT, at=self.clock.now - 600 + 30 * n, lasts=20)
        self.modus.start_run(AGENT, at=self.clock.now - 2 * LOOKBACK, lasts=60)  # beyond the lookback
        self.waiting = [self.modus.start_run(AGENT, at=self.clock.now - 1.5 * LOOKBACK, waits_from=0.0)]
        self.settings = exporter_settings(AGENT, page_size=page_size, max_pages=max_pages, lookback=LOOKBACK)
        self.exporter = self.start()

    def start(self) -> Exporter:
        return Exporter(self.modus, str(self.directory / str(self.generation) / "state.db"), self.settings)

    def ended(self) -> Counter[str]:
        """The naive model: all runs that ended, but the one that was over before the lookback."""
        runs = self.modus.runs(AGENT)[:-1]
        return Counter(run.listed for run in runs if run.listed in ("completed", "error", "cancelled"))

    @rule(number=st.integers(1, 25), trigger=TRIGGERS, apart=st.sampled_from([0.0, 0.1, 20.0]))
    def runs_start(self, number: int, trigger: str | None, apart: float) -> None:
        for _ in range(number):
            self.open.append(self.modus.start_run(AGENT, trigger=trigger))
            self.clock.advance(apart)

    @rule(delay=st.floats(0, 60), lasts=st.sampled_from([0.5, 5.0, 90.0, float("inf")]))
    def a_run_starts_and_is_indexed_late(self, delay: float, lasts: float) -> None:
        run = self.modus.start_run(AGENT, lasts=lasts, visible_from=self.clock.now + delay)
        if lasts == float("inf"):
            self.open.append(run)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0), status=TERMINAL)
    def a_run_ends(self, which: int, status: str) -> None:
        self.modus.end_run(self.open.pop(which % len(self.open)), status)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0))
    def a_run_asks_a_human(self, which: int) -> None:
        self.modus.change(self.open[which % len(self.open)], waits_from=self.clock.now)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0))
    def a_run_fails_and_is_retried(self, which: int) -> None:
        run = self.open.pop(which % len(self.open))
        self.modus.end_run(run, "error")
        self.open.append(self.modus.start_run(AGENT, workflow_id=run.workflow_id))

    @rule(seconds=st.sampled_from([1.0, 15.0, 60.0, 700.0, 7200.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def a_scrape(self) -> None:
        before = self.ended()
        agent = self.exporter.scrape()[AGENT]
        assert agent.up
        self.check(Counter(finished(agent)), before, self.ended(), settled=not agent.backlog)

    @rule(at=st.integers(1, 6), new=st.integers(0, 12), end=st.booleans())
    def pages_shift_while_they_are_read(self, at: int, new: int, end: bool) -> None:
        before = self.ended()
        left = at

        def shift() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.open += [self.modus.start_run(AGENT) for _ in range(new)]
                if end and self.open:
                    self.modus.end_run(self.open.pop(0))

        self.exporter.api.before = shift
        agent = self.exporter.scrape()[AGENT]
        self.exporter.api.before = lambda: None
        self.check(Counter(finished(agent)), before, self.ended(), settled=not agent.backlog)

    @rule(at=st.integers(1, 6), reason=st.sampled_from(["server_error", "deadline", "bad_response"]))
    def a_request_fails(self, at: int, reason: str) -> None:
        left = at

        def fail() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise ApiError(reason, "it was told to")

        self.exporter.api.before = fail
        agent = self.exporter.scrape()[AGENT]
        self.exporter.api.before = lambda: None
        if agent.totals:
            self.check(Counter(finished(agent)), Counter(), self.ended(), settled=False)

    @rule(moment=st.sampled_from(["before", "in", "after"]))
    def a_kill_at_the_commit_of_a_scrape(self, moment: str) -> None:
        """The new process finds what was on disk then; what the killed scrape found was never shown."""
        here, there = (self.directory / str(self.generation + n) for n in (0, 1))

        def copy(statement: str = "COMMIT") -> None:
            if statement == "COMMIT" and not there.exists():
                shutil.copytree(here, there)

        if moment == "before":
            copy()
        elif moment == "in":
            database = self.exporter.ledger._file._db
            if database:
                database.set_trace_callback(copy)
        self.exporter.scrape()
        if database := self.exporter.ledger._file._db:
            database.set_trace_callback(None)
        copy()
        self.exporter.close()
        self.generation += 1
        self.exporter = self.start()

    def check(self, counted: Counter[str], least: Counter[str], most: Counter[str], settled: bool) -> None:
        assert counted >= self.shown, "a counter stepped back"
        assert counted <= most, "a run was counted that did not end, or was counted twice"
        if settled:
            assert counted >= least, "a run was lost"
            self.open += self.waiting  # from its first sight on it may end at any time
            self.waiting = []
        self.shown = counted

    @invariant()
    def the_histogram_holds_the_completed_runs(self) -> None:
        if not hasattr(self, "exporter"):
            return
        for account in self.exporter.ledger.accounts.values():
            completed = sum(account.totals.finished["completed"].values())
            assert sum(account.totals.buckets) == completed
            assert len(account.totals.buckets) == len(BOUNDS) + 1

    def teardown(self) -> None:
        if not hasattr(self, "exporter"):
            return

        for _ in range(1000):
            self.clock.advance(60)
            agent = self.exporter.scrape()[AGENT]
            if agent.up and not agent.backlog:
                break
        assert agent.up, str(agent.errors)
        assert not agent.backlog, str(
            (self.exporter.ledger.accounts[AGENT].cursor, self.clock.now, len(self.modus.runs(AGENT)))
        )
        assert +Counter(finished(agent)) == self.ended()
        self.exporter.close()
        shutil.rmtree(self.directory)


def test_every_run_is_counted_once_whatever_happens() -> None:
    run_state_machine_as_test(
        Counting,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
