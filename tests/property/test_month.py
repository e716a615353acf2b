"""A simulated month of 1,000 runs a day: nothing is lost, and the state stays as small as after a week."""

import random
from collections import Counter
from pathlib import Path

from exporter.demo.simulator import SimulatedModus
from exporter.runs.store import read_state
from tests.simulation import DAY, Clock, Exporter, finished, settings

AGENT = 7
RUNS_A_DAY = 1000
SCRAPE_INTERVAL = 3600.0


def test_the_state_stays_bounded_over_a_month_of_a_thousand_runs_a_day(tmp_path: Path) -> None:
    rng = random.Random(3)  # noqa: S311
    clock = Clock()
    modus = SimulatedModus(fleet={}, clock=clock, retention=7 * DAY)
    modus.add_agent(AGENT, "Any agent")
    path = str(tmp_path / "state.db")
    exporter = Exporter(modus, path, settings(AGENT))
    started: Counter[str] = Counter()
    sizes, ids = [], []
    for day in range(30):
        for _ in range(RUNS_A_DAY):
            status = rng.choice(["completed", "completed", "completed", "error", "cancelled"])
            lasts = rng.choice([1.0, 60.0, 3600.0])
            if rng.random() < 0.005:
                lasts = 2 * DAY  # it outlives the lookback
            modus.start_run(AGENT, at=clock() + rng.random() * DAY, lasts=lasts, outcome=status)
            started[status] += 1
        for _ in range(round(DAY / SCRAPE_INTERVAL)):
            clock.advance(SCRAPE_INTERVAL)
            exporter.scrape()
        if day % 7 == 6:  # a restart a week
            exporter.close()
            exporter = Exporter(modus, path, settings(AGENT))
        sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
        ids.append(len(exporter.ledger.counted[AGENT]))
    clock.advance(2 * DAY)  # until the last one ended
    shown = exporter.scrape()[AGENT]
    exporter.close()
    assert Counter(finished(shown)) == started
    assert max(ids) < 2 * RUNS_A_DAY
    assert max(sizes) <= 1.2 * max(sizes[:6])  # until the first restart, which takes the write-ahead log away
    assert read_state(path).counted[AGENT].keys() == exporter.ledger.counted[AGENT].keys()
