"""A state file of version 0.1.0 goes on: nothing is lost, nothing counted twice."""

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from exporter.demo.simulator import SimulatedModus, SimulatedRun
from exporter.modus.model import kept_id
from exporter.runs.store import LedgerError, read_state
from tests.simulation import BOUNDS, DAY, START, Clock, Exporter, finished, settings

AGENT = 7
SCHEMA_OF_0_1_0 = """
BEGIN;
PRAGMA application_id = 1297040466;
PRAGMA user_version = 1;
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 1), state TEXT NOT NULL);
CREATE TABLE account (agent_id INTEGER PRIMARY KEY, state TEXT NOT NULL);
CREATE TABLE counted (
    agent_id INTEGER NOT NULL, run_id TEXT NOT NULL, start REAL NOT NULL, PRIMARY KEY (agent_id, run_id)
) WITHOUT ROWID;
COMMIT;
"""


class World:
    """An agent that version 0.1.0 counted: three runs, one forgotten, one waiting, the last read at START."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.clock = Clock(START - 2 * DAY)
        self.modus = SimulatedModus(fleet={}, clock=self.clock)
        self.modus.add_agent(AGENT, "Any agent")
        self.forgotten = self.modus.start_run(AGENT, lasts=20.0)
        self.waiting = self.modus.start_run(
            AGENT, at=START - 1.5 * DAY, waits_from=0.0, workflow_id="v" * 300
        )
        long = self.modus.start_run(AGENT, at=START - 3600, lasts=20.0, trigger="api", workflow_id="w" * 300)
        self.counted = [long, self.run(START - 1800), self.run(START - 900, "error")]
        self.clock.now = START

    def run(self, at: float, outcome: str = "completed", lasts: float = 20.0) -> SimulatedRun:
        return self.modus.start_run(AGENT, at=at, lasts=lasts, outcome=outcome, trigger="api")

    def account(self, **more: object) -> dict[str, object]:
        exemplar = {"run_id": self.counted[1].id, "duration": 20.0, "end": START - 1780}
        totals = {
            "created": START - 3 * DAY,
            "durations_created": START - 3 * DAY,
            "buckets": [0, 0, 3, 0, 0],
            "exemplars": [None, None, exemplar, None, None],
            "duration_sum": 60.0,
            "finished": {
                "completed": {"api": 2, "manual": 1},
                "error": {"api": 1, "manual": 0},
                "cancelled": {"api": 0, "manual": 0},
            },
            "last_end": {"completed": START - 1780, "error": START - 880},
        }
        opened = {
            "workflow_id": self.waiting.workflow_id,
            "temporal_run_id": self.waiting.temporal_run_id,
            "start": self.waiting.start,
            "status": "awaiting_human",
            "seen": START,
        }
        return {
            "totals": totals,
            "name": "Any agent",
            "type": "task",
            "cursor": {"newest": START - 900, "first_seen": START - 880, "floor": START - 899.9, "gaps": []},
            "open": {self.waiting.id: opened},
            "opens_listed": True,
            "horizon": self.forgotten.start,
            "late": {},
            "last_start": START - 900,
        } | more

    def write(self, **more: object) -> None:
        meta = {"bounds": BOUNDS, "written": START, "shard": [0, 1]}
        rows = [(AGENT, run.id, run.start) for run in self.counted]
        with closing(sqlite3.connect(self.path)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(SCHEMA_OF_0_1_0)
            db.execute("INSERT INTO meta VALUES (1, ?)", (json.dumps(meta).encode(),))
            account = json.dumps(self.account(**more)).encode()
            db.execute("INSERT INTO account VALUES (?, ?)", (AGENT, account))
            db.executemany("INSERT INTO counted VALUES (?, ?, ?)", rows)
            db.commit()
        Path(f"{self.path}.lock").touch()

    def exporter(self, **limits: object) -> Exporter:
        return Exporter(self.modus, self.path, settings(AGENT, reconcile_interval=3600.0, **limits))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(str(tmp_path / "state.db"))


def test_totals_go_on_where_they_were_and_no_run_counts_twice(world: World) -> None:
    world.write()
    world.clock.advance(60)
    with closing(world.exporter()) as exporter:
        for _ in range(3):
            agent = exporter.scrape()[AGENT]
            assert +Counter(finished(agent)) == Counter(completed=3, error=1)
            assert agent.totals is not None
            assert agent.totals.created == START - 3 * DAY
            durations = agent.totals.durations
            assert (durations.buckets, durations.sum) == ([0, 0, 3, 0, 0], 60.0)
            assert durations.native.count == 3
            exemplar = durations.exemplars[2]  # type: ignore[index]
            assert exemplar is not None
            assert exemplar.run_id == world.counted[1].id
            assert not agent.backlog
            world.clock.advance(4000)


def test_what_ended_meanwhile_counts_and_an_open_run_from_before_too(world: World) -> None:
    world.write()
    world.clock.advance(3 * DAY)  # longer than the lookback
    for n in range(30):
        world.run(START + 3600 * n)
    world.modus.end_run(world.waiting, "cancelled")
    with closing(world.exporter()) as exporter:
        for _ in range(4):
            agent = exporter.scrape()[AGENT]
            world.clock.advance(60)
    assert +Counter(finished(agent)) == Counter(completed=3 + 30, error=1, cancelled=1)
    assert agent.totals is not None
    assert not any(agent.totals.missed.values())


def test_a_backlog_is_read_on(world: World) -> None:
    new = [world.run(START - 800 + 10 * n, lasts=1.0) for n in range(40)]
    token = {"floor": START - 899.9, "size": 10, "token": None, "pages": 1, "since": None}
    cursor = {"newest": new[-1].start, "first_seen": START, "floor": new[-1].start - 120, "gaps": [token]}
    world.counted += new[30:]  # they were on the first page
    totals: dict[str, object] = world.account()["totals"]  # type: ignore[assignment]
    counted = totals["finished"] | {"completed": {"api": 12, "manual": 1}}  # type: ignore[operator]
    totals |= {"finished": counted, "buckets": [10, 0, 3, 0, 0]}
    world.write(cursor=cursor, totals=totals)
    world.clock.advance(60)
    with closing(world.exporter(page_size=10, max_pages=2)) as exporter:
        assert exporter.ledger.shown(AGENT) is not None
        for _ in range(8):
            agent = exporter.scrape()[AGENT]
            world.clock.advance(60)
    assert not agent.backlog
    assert +Counter(finished(agent)) == Counter(completed=3 + 40, error=1)


def test_a_forgotten_run_that_comes_back_in_the_list_does_not_count_again(world: World) -> None:
    world.write()
    world.clock.advance(60)
    with closing(world.exporter(lookback=30 * DAY)) as exporter:
        for _ in range(3):
            agent = exporter.scrape()[AGENT]
            world.clock.advance(4000)
    assert +Counter(finished(agent)) == Counter(completed=3, error=1)


def test_the_file_is_of_todays_schema_after_one_commit_and_goes_on_after_a_restart(world: World) -> None:
    world.write()
    world.clock.advance(60)
    with closing(world.exporter()) as exporter:
        exporter.scrape()
    state = read_state(world.path)
    assert state.meta.version == 2
    assert state.counted[AGENT].keys() == {kept_id(run.id) for run in world.counted}
    with closing(sqlite3.connect(world.path)) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"meta", "agent", "counted"}
    world.run(START + 100)
    world.clock.advance(300)
    with closing(world.exporter()) as exporter:
        assert +Counter(finished(exporter.scrape()[AGENT])) == Counter(completed=4, error=1)


def test_a_process_that_dies_before_its_first_commit_leaves_the_old_file_as_it_was(world: World) -> None:
    world.write()
    before = read_state(world.path)
    world.clock.advance(60)
    exporter = world.exporter()
    exporter.ledger._store.close()  # type: ignore[union-attr]
    exporter.ledger._store = None
    assert read_state(world.path) == before
    with closing(world.exporter()) as again:
        assert +Counter(finished(again.scrape()[AGENT])) == Counter(completed=3, error=1)
    exporter.collector.close()


def test_other_buckets_than_the_old_file_has_are_refused(world: World) -> None:
    world.write()
    with closing(sqlite3.connect(world.path)) as db:
        meta = {"bounds": [1.0, 2.0], "written": START, "shard": [0, 1]}
        db.execute("UPDATE meta SET state = ?", (json.dumps(meta).encode(),))
        db.commit()
    with pytest.raises(LedgerError, match="other buckets"):
        world.exporter()
