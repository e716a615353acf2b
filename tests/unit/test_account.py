"""What an agent's series show: the whole base first, new ones at 0, ends as the API says, gone when it is."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from exporter.demo.simulator import SimulatedModus
from exporter.demo.wire import iso
from exporter.modus.errors import ApiError
from exporter.runs.sqlite import StateFile
from exporter.runs.state import Meta
from exporter.runs.store import Change, StoreError, read_state
from tests.simulation import DAY, Clock, Exporter, finished, settings
from tests.unit.test_ledger import AGENT, a_run, finished_in, ledger, reading
from tests.unit.test_reader import Recorded


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Recorded]:
    world = Recorded(tmp_path, page_size=100, max_pages=5)
    yield world
    world.exporter.close()


def test_c2_the_first_sample_of_a_busy_agent_is_its_whole_base(world: Recorded) -> None:
    for n in range(6000):
        at = world.clock() - DAY + 60 + 14 * n
        world.modus.start_run(AGENT, at=at, lasts=5.0, outcome="error" if n < 3000 else "completed")
    samples = []
    while not samples or samples[-1] is None:
        world.scrapes(1)
        samples.append(finished(world.agent) if world.agent.totals else None)
        assert world.agent.backlog == (samples[-1] is None)
        if len(samples) == 5:
            world.restart()
    assert len(samples) > 5
    assert samples[-1] == {"error": 3000, "completed": 3000, "cancelled": 0}


def test_c2_a_first_commit_that_is_late_shows_nothing_before_the_base(tmp_path: Path) -> None:
    clock = Clock()
    book = ledger(str(tmp_path / "state.db"), clock)
    book.record(AGENT, reading(a_run("wf:1"), now=clock()))
    assert book.shown(AGENT)[1] is None  # type: ignore[index]
    book.commit()
    totals = book.shown(AGENT)[1]  # type: ignore[index]
    assert totals is not None
    assert totals.finished["completed"]["schedule"] == 1
    book.close()


@pytest.mark.parametrize("restart", [False, True])
def test_c20_a_series_that_was_not_known_is_shown_at_0_once_and_then_rises(
    world: Recorded, restart: bool
) -> None:
    world.history(3, apart=10)
    world.scrapes(2)
    for outcome, trigger in (("completed", "carrier pigeon"), ("timed_out", "api"), ("timed_out", "manual")):
        world.modus.start_run(AGENT, lasts=1.0, outcome=outcome, trigger=trigger)
    world.scrapes(1)
    assert world.agent.totals is not None
    born = world.agent.totals.finished
    assert born["completed"]["manual"] == 3
    assert (born["completed"]["carrier pigeon"], born["timed_out"]["api"], born["timed_out"]["manual"]) == (
        0,
        0,
        0,
    )
    if restart:
        world.restart()
        world.scrapes(1)
    world.scrapes(1)
    assert world.agent.totals is not None
    risen = world.agent.totals.finished
    assert (
        risen["completed"]["carrier pigeon"],
        risen["timed_out"]["api"],
        risen["timed_out"]["manual"],
    ) == (
        1,
        1,
        1,
    )


def test_c20_a_series_whose_first_commit_came_after_the_answer_is_still_shown_at_0(tmp_path: Path) -> None:
    clock = Clock()
    book = ledger(str(tmp_path / "state.db"), clock)
    book.record(AGENT, reading(now=clock()))
    book.commit()
    book.record(AGENT, reading(a_run("wf:1", trigger="carrier pigeon"), now=clock()))
    assert "carrier pigeon" not in book.shown(AGENT)[1].finished["completed"]  # type: ignore[index, union-attr]
    book.commit()  # too late for that answer
    book.mark_shown()
    book.commit()
    assert book.shown(AGENT)[1].finished["completed"]["carrier pigeon"] == 0  # type: ignore[index, union-attr]
    book.mark_shown()
    book.commit()
    assert book.shown(AGENT)[1].finished["completed"]["carrier pigeon"] == 1  # type: ignore[index, union-attr]
    book.close()


def test_c23_the_last_ends_are_as_the_api_says_also_by_an_answer_dated_back(world: Recorded) -> None:
    world.scrapes(2)
    success, failure = world.modus.start_run(AGENT), world.modus.start_run(AGENT)
    world.clock.advance(600)
    world.modus.end_run(failure, "error", at=world.clock() - 240)
    world.modus.end_run(success)
    world.modus.date_offset = -3600.0
    for _ in range(2):
        world.scrapes(1, apart=0)
    world.modus.date_offset = 0.0
    world.scrapes(30)
    ends = world.agent.totals.last_end  # type: ignore[union-attr]
    assert ends["completed"] - ends["error"] == 240
    assert abs(world.clock() - ends["completed"] - 1800) <= 2


@pytest.mark.parametrize("on_top", ["order of ends", "odd start"])
def test_the_newest_run_and_the_names_are_those_of_the_last_start_whatever_is_on_top(
    tmp_path: Path, on_top: str
) -> None:
    world = Recorded(tmp_path, order="close" if on_top == "order of ends" else "start", page_size=10)
    long_ago = world.clock() - 2 * DAY
    for n in range(12):  # more than a page
        if on_top == "order of ends":
            world.modus.start_run(AGENT, at=long_ago + n, waits_from=0.0)
    world.modus.rename(AGENT, "Another name")
    for _ in range(5):
        newest = world.clock()
        world.history(1, apart=5)
        if on_top == "odd start":
            world.modus.start_run(AGENT, lasts=1.0, override={"startedAt": iso(long_ago)})
        world.scrapes(1)
        assert (world.agent.last_start, world.agent.name) == (newest, "Another name")
    world.modus.agents[AGENT].runs.clear()
    world.modus.start_run(AGENT, at=long_ago, lasts=1.0)  # all that is left
    world.scrapes(1)
    assert (world.agent.last_start, world.agent.name) == (newest, "Another name")
    world.exporter.close()


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_the_last_start_follows_a_clock_of_the_api_that_steps(world: Recorded, step: float) -> None:
    for offset in (0.0, step):
        world.offset = offset
        world.scrapes(5)
        world.modus.start_run(AGENT, lasts=1.0)
        newest = world.modus.clock()
        world.scrapes(5)
        state = world.exporter.ledger.agents()[AGENT]
        assert state.last_start == newest


def test_c16_agents_that_are_gone_leave_a_lookback_later(tmp_path: Path) -> None:
    clock = Clock()
    modus = SimulatedModus(fleet={}, clock=clock)
    path = str(tmp_path / "state.db")
    exporter = Exporter(modus, path, settings(lookback=3600.0))
    kept = []
    for day in range(15):
        ids = range(100 * day, 100 * day + 20)
        for agent_id in ids:
            modus.add_agent(agent_id, "Any agent")
            for _ in range(5):
                modus.start_run(agent_id, lasts=1.0)
        exporter.collector.reload(lambda: exporter.api, settings(*ids, lookback=3600.0))  # type: ignore[arg-type]
        for _ in range(4):
            clock.advance(DAY / 4)
            exporter.scrape()
        kept.append(len(exporter.ledger.agents()))
    exporter.close()
    assert max(kept) <= 40
    assert len(read_state(path).agents) == kept[-1]


@pytest.mark.parametrize("written", [False, True])
def test_an_agent_that_left_while_the_disk_failed_leaves_the_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    clock, path = Clock(), str(tmp_path / "state.db")
    book = ledger(path, clock)
    for agent_id in (1, 2):
        book.record(agent_id, reading(a_run("wf:1"), now=clock()))
    book.end_scrape({2})
    book.commit()
    clock.advance(2 * DAY)
    book.end_scrape({2})  # which stays in use, however long nobody could read it
    assert book.agents().keys() == {2}
    monkeypatch.setattr(StateFile, "write", failing_once(written))
    book.commit()
    assert not book.up
    book.commit()
    assert book.up
    book.close()
    assert read_state(path).agents.keys() == read_state(path).counted.keys() == {2}


def test_agents_that_are_not_in_use_are_known_as_unread(tmp_path: Path) -> None:
    clock, path = Clock(), str(tmp_path / "state.db")
    book = ledger(path, clock)
    for agent_id in (1, 2):
        book.record(agent_id, reading(now=clock()))
    book.end_scrape({2})
    book.close()
    assert {agent_id: state.unread for agent_id, state in read_state(path).agents.items()} == {
        1: True,
        2: False,
    }


def test_an_agent_that_is_away_for_less_than_a_lookback_goes_on(world: Recorded) -> None:
    world.history(3, apart=10)
    world.scrapes(2)
    created = world.agent.totals.created  # type: ignore[union-attr]
    world.modus.add_agent(8, "Another agent")
    world.exporter.collector.reload(lambda: world.exporter.api, settings(8))  # type: ignore[arg-type]
    for _ in range(10):
        world.history(1, apart=3600)
        world.exporter.scrape()
    world.exporter.collector.reload(lambda: world.exporter.api, world.settings)  # type: ignore[arg-type]
    assert world.scrapes(3) == Counter(completed=13)
    assert world.agent.totals.created == created  # type: ignore[union-attr]


@pytest.mark.parametrize("ahead", [0.9 * DAY, 3 * DAY])  # of which the latter is not believed at once
def test_an_api_clock_far_ahead_at_the_first_sight_costs_no_later_run(tmp_path: Path, ahead: float) -> None:
    world = Recorded(tmp_path, lookback=3600.0)
    world.offset = ahead
    world.scrapes(2)
    world.offset = 0.0
    world.scrapes(6)
    for _ in range(20):
        world.modus.start_run(AGENT, lasts=5.0)
        world.scrapes(1)
    assert world.scrapes(2) == Counter(completed=20)
    world.exporter.close()


def test_c11_pages_that_are_too_large_are_asked_for_in_smaller_pieces(world: Recorded) -> None:
    world.scrapes(1)
    world.history(100, apart=1)
    ask = world.exporter.api.runs

    def runs(agent_id: int, **query: object) -> object:
        if int(str(query["page_size"])) > 30:
            raise ApiError("bad_response", "more than 8 MiB", too_large=True)
        return ask(agent_id, **query)  # type: ignore[arg-type]

    world.exporter.api.runs = runs  # type: ignore[assignment, method-assign]
    assert world.scrapes(3) == Counter(completed=100)
    assert world.agent.up


def test_c11_what_was_too_large_is_not_asked_for_again_for_an_hour(world: Recorded) -> None:
    world.scrapes(1)
    ask, refused = world.exporter.api.runs, 0

    def runs(agent_id: int, **query: object) -> object:
        nonlocal refused
        if int(str(query["page_size"])) > 30:
            refused += 1
            raise ApiError("bad_response", "more than 8 MiB", too_large=True)
        return ask(agent_id, **query)  # type: ignore[arg-type]

    world.exporter.api.runs = runs  # type: ignore[assignment, method-assign]
    counts = []
    for _ in range(7):
        world.history(100, apart=1)
        world.scrapes(1, apart=800)
        counts.append(refused)
    assert counts == [1, 1, 1, 1, 2, 2, 2]
    assert world.agent.up


def test_c11_an_answer_that_is_too_large_whatever_is_asked_for_is_an_error(world: Recorded) -> None:
    asked: list[object] = []

    def runs(agent_id: int, **query: object) -> object:
        asked.append(query["page_size"])
        raise ApiError("bad_response", "more than 8 MiB", too_large=True)

    world.exporter.api.runs = runs  # type: ignore[assignment, method-assign]
    world.scrape()
    assert asked == [100, 25, 6, 1]
    assert not world.agent.up


def failing_once(written: bool) -> Callable[..., None]:
    """A write that fails once, when all of it is in the file or none."""
    write, failures = StateFile.write, iter([True])

    def fails_once(self: StateFile, meta: Meta, changes: Iterable[Change], *, anew: bool) -> None:
        fails = next(failures, False)
        if fails and not written:
            changes = list(changes)
        else:
            write(self, meta, changes, anew=anew)
        if fails:
            raise StoreError("nobody knows whether it was written")

    return fails_once


@pytest.mark.parametrize("written", [False, True])
def test_a_commit_that_fails_is_written_whole_by_the_next(
    world: Recorded, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    world.history(3, apart=10)
    world.scrapes(2)
    monkeypatch.setattr(StateFile, "write", failing_once(written))
    world.history(2, apart=10)
    assert world.scrapes(2) == Counter(completed=5)
    assert finished_in(read_state(world.path).agents[AGENT]) == 5
    world.restart()
    assert world.scrapes(2) == Counter(completed=5)
