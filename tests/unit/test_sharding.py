"""Several exporters: which agents each reads, what a change of their number costs, what they ask the API."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.demo.simulator import SimulatedModus
from exporter.modus.discovery import shard_of
from tests.simulation import Clock, Exporter, finished, settings

AGENTS = range(1, 1001)
MOVES = next(id_ for id_ in AGENTS if shard_of(id_, 2) == 0 and shard_of(id_, 3) == 2)
STAYS = next(id_ for id_ in AGENTS if shard_of(id_, 2) == 0 and shard_of(id_, 3) == 0)


class Shard(Exporter):
    """An exporter that reads what of MOVES and STAYS is its own, and counts its requests."""

    def __init__(
        self, modus: SimulatedModus, path: Path, shard: tuple[int, int], min_interval: float
    ) -> None:
        chosen = settings(MOVES, STAYS)
        chosen = replace(chosen, selection=replace(chosen.selection, shard=shard), min_interval=min_interval)
        super().__init__(modus, str(path), chosen, monotonic=modus.clock)
        self.requests = 0
        self.api.before = self._count_request
        self.running = True

    def close(self) -> None:
        self.running = False
        super().close()

    def _count_request(self) -> None:
        self.requests += 1

    def counted(self, agent_id: int = MOVES) -> int:
        return sum(finished(self.scrape()[agent_id]).values())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def modus(clock: Clock) -> SimulatedModus:
    modus = SimulatedModus(fleet={}, clock=clock)
    for agent_id in (MOVES, STAYS):
        modus.add_agent(agent_id, f"Agent {agent_id}")
    return modus


class Start:
    """Starts exporters, each with its state in a directory of its index; the test's end stops them."""

    def __init__(self, modus: SimulatedModus, directory: Path) -> None:
        self.modus = modus
        self.directory = directory
        self.all: list[Shard] = []

    def __call__(self, index: int, total: int, *, name: str = "", min_interval: float = 0.0) -> Shard:
        path = self.directory / (name or str(index)) / "state.db"
        self.all.append(Shard(self.modus, path, (index, total), min_interval))
        return self.all[-1]


@pytest.fixture
def start(modus: SimulatedModus, tmp_path: Path) -> Iterator[Start]:
    start = Start(modus, tmp_path)
    yield start
    for shard in start.all:
        if shard.running:
            shard.close()


@pytest.fixture
def a_run_ends(modus: SimulatedModus, clock: Clock) -> Callable[[int], None]:
    def one(agent_id: int) -> None:
        modus.start_run(agent_id, lasts=5)
        clock.advance(30)

    return one


@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_every_agent_is_on_exactly_one_shard(total: int) -> None:
    everybody = settings(*AGENTS).selection
    chosen = [[t.id for t in replace(everybody, shard=(i, total)).choose([])] for i in range(total)]
    assert sorted(id_ for ids in chosen for id_ in ids) == list(AGENTS)
    assert all(len(ids) > len(AGENTS) / total * 0.8 for ids in chosen)


@pytest.mark.parametrize("total", [1, 2, 5, 9])
def test_one_more_shard_takes_its_part_and_moves_nothing_else(total: int) -> None:
    moved = [id_ for id_ in AGENTS if shard_of(id_, total) != shard_of(id_, total + 1)]
    assert {shard_of(id_, total + 1) for id_ in moved} == {total}
    assert 0.8 < len(moved) * (total + 1) / len(AGENTS) < 1.2


def test_the_new_owner_counts_no_run_that_the_old_one_counted(
    start: Start, a_run_ends: Callable[[int], None]
) -> None:
    old = start(0, 2)
    old.scrape()
    for _ in range(3):
        a_run_ends(MOVES)
    assert old.counted() == 3
    old.close()

    new, rest = start(2, 3), start(0, 3)
    assert new.counted() == 0
    a_run_ends(MOVES)
    assert new.counted() == 1
    assert set(rest.scrape()) == {STAYS}


def test_a_run_that_is_open_during_the_change_is_counted_by_the_new_owner(
    start: Start, modus: SimulatedModus, clock: Clock
) -> None:
    run = modus.start_run(MOVES)
    clock.advance(60)
    old = start(0, 2)
    assert old.counted() == 0
    old.close()
    new = start(2, 3)
    assert new.counted() == 0
    clock.advance(60)
    modus.end_run(run)
    clock.advance(30)
    assert new.counted() == 1


def test_an_agent_that_comes_back_is_not_counted_for_the_time_it_was_elsewhere(
    start: Start, a_run_ends: Callable[[int], None]
) -> None:
    home = start(0, 2)
    home.scrape()
    a_run_ends(MOVES)
    assert home.counted() == 1
    home.close()

    away, home = start(2, 3), start(0, 3)
    away.scrape()
    home.scrape()
    a_run_ends(MOVES)
    assert away.counted() == 1
    home.close()

    home = start(0, 2)
    assert home.counted() == 1  # the second run is in the other's counter
    a_run_ends(MOVES)
    assert home.counted() == 2


def test_while_old_and_new_owner_run_side_by_side_each_counts_every_run_so_that_the_larger_is_right(
    start: Start, a_run_ends: Callable[[int], None]
) -> None:
    old = start(0, 2)
    old.scrape()
    a_run_ends(MOVES)
    new = start(2, 3)
    before = old.counted(), new.counted()
    a_run_ends(MOVES)
    a_run_ends(MOVES)
    assert (old.counted() - before[0], new.counted() - before[1]) == (2, 2)


def test_a_run_that_ends_between_the_old_owner_and_the_new_one_is_not_counted(
    start: Start, a_run_ends: Callable[[int], None]
) -> None:
    old = start(0, 2)
    old.scrape()
    old.close()
    a_run_ends(MOVES)
    assert start(2, 3).counted() == 0  # it cannot know whether the old one did


def test_agents_that_stay_lose_nothing_when_the_number_of_shards_changes(
    start: Start, a_run_ends: Callable[[int], None]
) -> None:
    before = start(0, 2)
    before.scrape()
    a_run_ends(STAYS)
    assert before.counted(STAYS) == 1
    before.close()
    a_run_ends(STAYS)
    assert start(0, 3).counted(STAYS) == 2


def test_a_shard_that_restarts_catches_up(start: Start, a_run_ends: Callable[[int], None]) -> None:
    shard = start(0, 2)
    shard.scrape()
    shard.close()
    a_run_ends(MOVES)
    a_run_ends(STAYS)
    shard = start(0, 2)
    assert (shard.counted(MOVES), shard.counted(STAYS)) == (1, 1)


# Two Prometheus servers on one exporter, and two exporters for the same agents


def steady(exporter: Shard, clock: Clock) -> None:
    """Past the first scrapes, which also list the open runs."""
    for _ in range(2):
        exporter.scrape()
        clock.advance(30)
    exporter.requests = 0


@pytest.mark.parametrize(("min_interval", "requests"), [(0.0, 4 * 2), (10.0, 2 * 2)])
def test_min_interval_keeps_a_second_prometheus_from_doubling_the_requests(
    start: Start, clock: Clock, min_interval: float, requests: int
) -> None:
    exporter = start(0, 1, min_interval=min_interval)
    steady(exporter, clock)
    for _ in range(2):  # two intervals of 30 s; the second server scrapes 7 s after the first
        exporter.scrape()
        clock.advance(7)
        exporter.scrape()
        clock.advance(23)
    assert exporter.requests == requests  # for two agents


def test_the_second_prometheus_gets_the_same_counts_within_min_interval(
    start: Start, clock: Clock, a_run_ends: Callable[[int], None]
) -> None:
    exporter = start(0, 1, min_interval=40.0)
    first = exporter.counted()
    a_run_ends(MOVES)
    assert exporter.counted() == first
    clock.advance(10)
    assert exporter.counted() == first + 1


def test_two_replicas_ask_twice_and_both_count_every_run(
    start: Start, clock: Clock, a_run_ends: Callable[[int], None]
) -> None:
    replicas = [start(0, 1, name=name, min_interval=10.0) for name in "ab"]
    for replica in replicas:
        steady(replica, clock)
    a_run_ends(MOVES)
    assert [replica.counted() for replica in replicas] == [1, 1]
    assert sum(replica.requests for replica in replicas) == 2 * 2  # two agents
