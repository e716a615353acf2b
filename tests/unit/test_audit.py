"""`--audit`: ids and totals against the API, and the instant from which it vouches."""

import io
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from exporter.demo.simulator import SimulatedModus, SimulatedRun
from exporter.demo.wire import ABSENT
from exporter.runs import audit
from exporter.runs.schema import checksum_of
from exporter.runs.state import AgentState
from exporter.runs.store import LedgerError
from tests.simulation import DAY, START, Clock, Exporter, settings

AGENT = 7


class World:
    """An agent with ten runs, scraped, and the audit of it."""

    def __init__(self, path: str, reconcile_interval: float = 3600.0) -> None:
        self.path = path
        self.clock = Clock()
        self.modus = SimulatedModus(fleet={}, clock=self.clock)
        self.modus.add_agent(AGENT, "Any agent")
        self.settings = settings(AGENT, page_size=10, reconcile_interval=reconcile_interval)
        self.first = [self.run(START - 1000 + 50 * n) for n in range(10)]
        self.exporter = Exporter(self.modus, path, self.settings, clock=self.clock, monotonic=self.clock)
        self.scrape()

    def run(self, at: float, lasts: float = 20.0, **fields: object) -> SimulatedRun:
        return self.modus.start_run(AGENT, at=at, lasts=lasts, **fields)

    def scrape(self, after: float = 0.0) -> None:
        self.clock.advance(after)
        self.exporter.scrape()

    def audit(self) -> tuple[int, list[str]]:
        """The exit code, and the cells of the agent's line; the note is the last one."""
        out = io.StringIO()
        selection, limits = self.settings.selection, self.settings.limits
        code = audit.run(self.exporter.api, selection, limits, 1, self.path, out)  # type: ignore[arg-type]
        _, line, last = out.getvalue().splitlines()
        assert last == f"1 agents, {code} not in order"
        return code, line.split(maxsplit=6)

    def edit(self, change: object) -> None:
        """Change the agent's state in the file with a checksum that fits, as a mistake of ours would."""
        self.exporter.close()
        with closing(sqlite3.connect(self.path)) as db:
            (content,) = db.execute("SELECT state FROM agent").fetchone()
            state = msgspec.json.decode(content, type=AgentState)
            change(state)  # type: ignore[operator]
            content = msgspec.json.encode(state)
            db.execute("UPDATE agent SET state = ?, checksum = ?", (content, checksum_of(content, AGENT)))
            db.commit()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(str(tmp_path / "state.db"))
    yield world
    world.exporter.collector.close()


def test_all_counted_is_exit_code_0_and_vouched_for_since_the_lookback(world: World) -> None:
    world.scrape(300)
    since = "2026-09-20T14:18:20Z"  # a lookback of a day ago
    assert world.audit() == (0, ["7", since, "10", "10", "0", "0"])


def test_it_vouches_for_no_time_before_the_first_sight_looked_back_to(world: World) -> None:
    world.settings = settings(AGENT, lookback=30 * DAY)
    world.scrape(300)
    assert world.audit()[1][1] == "2026-09-20T14:13:20Z"  # what a lookback of a day gave at the first sight


def test_it_vouches_for_no_time_of_which_ids_were_forgotten(world: World) -> None:
    for _ in range(30):
        world.scrape(3700)
    world.settings = settings(AGENT, lookback=30 * DAY)
    code, cells = world.audit()
    assert code == 0
    assert cells[1] == "2026-09-21T14:04:30Z"  # the end of the newest run that was forgotten


def test_a_run_that_was_not_counted_is_missing(tmp_path: Path) -> None:
    """Indexed late below the first page, without counts that tell and without reconciling."""
    world = World(str(tmp_path / "state.db"), reconcile_interval=0.0)
    world.modus.counts_fault = lambda counts: None
    late = world.run(world.clock(), visible_from=world.clock() + 400)
    for _ in range(20):
        world.run(world.clock())
        world.scrape(30)
    assert late.listed == "completed"
    world.scrape(300)
    code, cells = world.audit()
    assert (code, cells[4:6]) == (1, ["1", "0"])
    world.exporter.close()


def test_a_run_that_the_api_never_had_is_extra(world: World) -> None:
    world.scrape(300)
    world.modus.change(world.first[5], hidden=True)
    assert world.audit() == (1, ["7", "2026-09-20T14:18:20Z", "9", "10", "0", "1"])


def test_runs_that_retention_took_are_a_note_and_no_fault(world: World) -> None:
    world.scrape(300)
    world.modus.retention = 1100.0
    code, cells = world.audit()
    assert code == 0
    assert cells[6].endswith("counted are older than all that the API still lists")


@pytest.mark.parametrize("lasts", [600.0, 3 * DAY])
def test_a_run_longer_than_the_lookback_is_no_fault(world: World, lasts: float) -> None:
    long = world.run(world.clock(), lasts)
    world.scrape(60)
    for _ in range(int(lasts / 3000) + 2):
        world.clock.advance(3000)
        world.run(world.clock() - 100)
        world.scrape()
    assert long.listed == "completed"
    world.scrape(300)
    code, cells = world.audit()
    assert (code, cells[4:6]) == (0, ["0", "0"])


def test_runs_without_times_and_items_that_cannot_be_read_are_no_fault(world: World) -> None:
    times = {"startedAt": ABSENT, "endedAt": ABSENT, "durationMs": ABSENT}
    world.run(world.clock(), 1.0, override=times)
    world.run(world.clock(), 1.0, raw=b'{"id": "broken"}')
    world.scrape(60)
    for _ in range(30):
        world.run(world.clock(), 1.0)
        world.scrape(3700)
    world.scrape(300)
    code, cells = world.audit()
    assert (code, cells[4:6]) == (0, ["0", "0"])


def test_a_total_that_does_not_add_up_is_told(world: World) -> None:
    def one_more(state: AgentState) -> None:
        state.totals.finished["completed"]["manual"] += 1

    world.scrape(300)
    world.edit(one_more)
    code, cells = world.audit()
    assert code == 1
    assert cells[6] == "the totals are unsound: 11 runs in them, 10 were counted"


def test_a_histogram_with_more_runs_than_were_completed_is_told(world: World) -> None:
    def one_more(state: AgentState) -> None:
        state.totals.durations.buckets[0] += 1

    world.edit(one_more)
    assert world.audit() == (
        1,
        [*world.audit()[1][:6], "the totals are unsound: the histogram holds more runs than were completed"],
    )


def test_a_total_that_somebody_edited_by_hand_is_one_line(world: World) -> None:
    world.exporter.close()
    with closing(sqlite3.connect(world.path)) as db:
        (state,) = db.execute("SELECT state FROM agent").fetchone()
        db.execute("UPDATE agent SET state = ?", (state.replace(b'"manual":10', b'"manual":12'),))
        db.commit()
    with pytest.raises(LedgerError, match="a row is not what was written"):
        world.audit()


def test_what_ended_after_the_newest_scrape_is_left_out(world: World) -> None:
    world.clock.advance(300)
    world.run(world.clock() - 100)
    assert world.audit()[0] == 0


def test_an_agent_that_no_scrape_has_read_is_said(world: World) -> None:
    world.settings = settings(8)
    world.modus.add_agent(8, "Another")
    out = io.StringIO()
    audit.run(world.exporter.api, world.settings.selection, world.settings.limits, 1, world.path, out)  # type: ignore[arg-type]
    assert "not counted yet: no scrape has read it" in out.getvalue()
