"""Simulated months with bad days: every run is counted once or told as missed, and the state stays small."""

import random
from collections import Counter
from pathlib import Path

from exporter.demo.simulator import Answer, Request, SimulatedModus
from tests.simulation import DAY, START, Clock, Exporter, finished, settings

AGENT = 7
HOUR = 3600.0


class Months:
    """Days of an agent's life, scraped; `totals` must never step back."""

    def __init__(self, path: Path, retention: float) -> None:
        self.rng = random.Random(3)  # noqa: S311 - repeatable on purpose
        self.clock, self.offset = Clock(), 0.0
        self.modus = SimulatedModus(fleet={}, clock=lambda: self.clock.now + self.offset, retention=retention)
        self.modus.add_agent(AGENT, "Any agent")
        self.path = path
        self.settings = settings(AGENT, reconcile_interval=HOUR)
        self.started: Counter[str] = Counter()
        self.shown: Counter[str] = Counter()
        self.sizes: list[int] = []
        self.ids: list[int] = []
        self.start()

    def start(self) -> None:
        path = str(self.path / "state.db")
        self.exporter = Exporter(self.modus, path, self.settings, monotonic=self.clock, clock=self.clock)

    def restart(self) -> None:
        self.exporter.close()
        self.start()

    def runs(self, number: int) -> None:
        """Runs of the day to come; one in 200 outlives the lookback."""
        for _ in range(number):
            status = self.rng.choice(
                ["completed", "completed", "completed", "error", "cancelled", "timed_out"]
            )
            lasts = 2 * DAY if self.rng.random() < 0.005 else self.rng.choice([1.0, 60.0, HOUR])
            at = self.modus.clock() + self.rng.random() * DAY
            late = at + self.rng.choice([0.0, 0.0, 0.0, 90.0, 500.0])
            self.modus.start_run(AGENT, at=at, lasts=lasts, outcome=status, visible_from=late)
            self.started[status] += 1

    def scrapes(self, number: int, apart: float) -> None:
        for _ in range(number):
            self.clock.advance(apart)
            totals = self.exporter.scrape()[AGENT].totals
            if totals is not None:
                by_status = totals.finished.items()
                counted = Counter({status: sum(by_trigger.values()) for status, by_trigger in by_status})
                assert counted >= self.shown, "a counter stepped back"
                self.shown = counted
        self.sizes.append(sum(file.stat().st_size for file in self.path.iterdir()))
        self.ids.append(self.exporter.ledger.agents()[AGENT].ids_number)


def test_three_months_with_bad_days_end_with_each_run_counted_once(tmp_path: Path) -> None:
    world = Months(tmp_path, retention=7 * DAY)
    rng, modus = world.rng, world.modus

    def some_fail(request: Request) -> Answer | None:
        return modus.error(rng.choice([429, 500, 503])) if rng.random() < 0.2 else None

    world.scrapes(2, 60.0)
    for day in range(91):
        world.runs(60)
        modus.fault = some_fail if day % 5 == 1 else None
        modus.single_run = day % 6 != 2
        modus.token_life = 50.0 if day % 7 == 3 else float("inf")
        modus.replica_lags = (0.0, 45.0) if day % 4 == 3 else (0.0,)
        if day % 10 == 4:
            world.offset += (
                rng.choice([-HOUR, -600.0, 600.0, HOUR]) if abs(world.offset) < HOUR else -world.offset
            )
        if day % 30 == 20:  # two days down, one of them with runs, with a lookback of one
            world.exporter.close()
            world.clock.advance(2 * DAY)
            world.start()
        if day % 9 == 6:
            world.restart()
        world.scrapes(24, HOUR)
    modus.fault = None
    world.scrapes(72, HOUR)
    shown = world.exporter.scrape()[AGENT]
    world.exporter.close()
    assert +Counter(finished(shown)) == world.started
    assert shown.totals is not None
    assert set(shown.totals.missed.values()) == {0}
    assert world.clock() - START > 90 * DAY


def test_the_state_stays_bounded_over_weeks_of_a_thousand_runs_a_day(tmp_path: Path) -> None:
    world = Months(tmp_path, retention=7 * DAY)
    world.scrapes(1, 60.0)
    for day in range(16):
        world.runs(1000)
        world.scrapes(24, HOUR)
        if day % 7 == 6:
            world.restart()
    world.scrapes(60, HOUR)  # until the last one ended
    world.exporter.close()
    assert world.shown == world.started
    assert max(world.ids) < 2500
    assert max(world.sizes) <= 1.2 * max(world.sizes[:6])
