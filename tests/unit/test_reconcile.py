"""Whose lookback is compared when, how often a debt is looked into, and what the comparison makes good."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from exporter.runs.reconcile import FIRST_RETRY, LATEST_INDEX, SIDE_BY_SIDE, Checksum, Turns
from tests.simulation import DAY
from tests.unit.test_reader import AGENT, Recorded

NOW = 1_790_000_000.0


def test_the_comparisons_under_way_have_a_page_each_in_turn() -> None:
    turns = Turns()
    taken = [turns.take(range(6), range(6), 2) for _ in range(3)]
    assert set.union(*taken) == set(range(6))
    assert all(len(each) == 2 for each in taken)


def test_no_more_comparisons_are_begun_than_may_go_on_side_by_side() -> None:
    turns, begun = Turns(), set[int]()
    for _ in range(3 * SIDE_BY_SIDE):
        begun |= turns.take(range(3 * SIDE_BY_SIDE), begun, 1)
    assert len(begun) == SIDE_BY_SIDE


def test_of_fewer_that_are_due_than_have_their_turn_each_is_taken_once() -> None:
    assert Turns().take([7, 8], set(), 5) == {7, 8}
    assert Turns().take([], set(), 5) == set()


def test_runs_that_a_lagging_count_names_later_pay_for_its_growth() -> None:
    checksum = Checksum(100).after(100, new=3, now=NOW)
    assert checksum.after(103, new=0, now=NOW + 60).owed == 0
    assert checksum.after(104, new=0, now=NOW + 60).owed == 1


def test_runs_met_longer_ago_than_the_index_may_lag_pay_for_no_growth() -> None:
    later = NOW + LATEST_INDEX + 1
    checksum = Checksum(100).after(100, new=3, now=NOW).after(100, new=0, now=later)
    assert checksum.after(103, new=0, now=later + 60).owed == 3


def test_a_debt_is_as_old_as_its_first_run() -> None:
    checksum = Checksum(100).after(101, new=0, now=NOW).after(102, new=0, now=NOW + 60)
    assert (checksum.owed, checksum.since) == (2, NOW)
    paid = checksum.after(102, new=2, now=NOW + 120)
    assert paid.after(105, new=0, now=NOW + 180).since == NOW + 180


def test_an_answer_without_a_count_owes_nothing() -> None:
    assert Checksum(100).after(None, new=0, now=NOW) == Checksum(None)


@pytest.fixture
def world(tmp_path: Path) -> Recorded:
    world = Recorded(tmp_path, page_size=10)
    world.history(40, apart=60)
    world.scrapes(3)
    world.scrapes(1, apart=LATEST_INDEX)
    return world


def walks(world: Recorded, scrapes: int, apart: float = 30.0) -> list[int]:
    """The scrapes, by their number, that read further pages than the newest."""
    found = []
    for number in range(scrapes):
        world.scrapes(1, apart)
        if any("pageToken" in request.query for request in world.modus.requests):
            found.append(number)
    return found


def test_a_debt_is_looked_into_at_once_and_then_less_and_less_often(world: Recorded) -> None:
    world.modus.counts_fault = lambda counts: counts | {"all_executions": counts["all_executions"] + 1}
    at = walks(world, 18)
    assert at[0] == 0
    assert [later - earlier for earlier, later in pairwise(at)] == [
        FIRST_RETRY / 30,
        2 * FIRST_RETRY / 30,
    ]
    world.exporter.close()


def test_once_a_debt_is_paid_the_next_one_is_looked_into_at_once(world: Recorded) -> None:
    world.modus.counts_lag = -300.0  # the counts are ahead of the list
    for _ in range(2):
        world.modus.start_run(AGENT, at=world.clock(), lasts=1.0, visible_from=world.clock() + 160)
        assert walks(world, 6) == [0, 4]  # at last the newest page has it
    world.exporter.close()


def test_a_run_that_the_first_of_several_pages_brought_pays_once(world: Recorded) -> None:
    world.modus.counts_fault = lambda counts: counts | {"all_executions": counts["all_executions"] + 2}
    world.modus.start_run(AGENT, at=world.clock() - LATEST_INDEX - 600, lasts=1.0)
    world.scrapes(30)
    assert world.missed == {"unreachable": 2}
    world.exporter.close()


def test_what_the_counts_name_later_than_the_list_is_no_debt_also_after_a_restart(world: Recorded) -> None:
    world.modus.counts_lag = 90.0
    world.scrapes(3)
    world.history(5, apart=1)
    world.scrapes(1, apart=20)
    world.restart()
    assert world.scrapes(30) == Counter(completed=45)
    assert world.missed == {}
    world.exporter.close()


def test_what_was_caught_up_pays_for_nothing_that_comes_late_afterwards(tmp_path: Path) -> None:
    world = Recorded(tmp_path, reconcile_interval=0.0, page_size=10, max_pages=2)
    world.scrapes(2)
    world.exporter.close()
    world.history(100, apart=20)
    world.clock.advance(LATEST_INDEX)
    world.start()
    while world.scrapes(1, apart=10).total() < 100:
        assert world.agent.backlog
    world.modus.start_run(AGENT, at=world.clock() - 2 * LATEST_INDEX, lasts=1.0)
    assert world.scrapes(10, apart=10) == Counter(completed=101)
    world.exporter.close()


def test_a_clock_of_the_api_that_steps_back_puts_off_no_debt(tmp_path: Path) -> None:
    world, step = Recorded(tmp_path, reconcile_interval=0.0, page_size=10), 7200.0
    for n in range(40):
        world.modus.start_run(AGENT, at=world.clock() - step - 60 * n, lasts=1.0)
    world.scrapes(2)
    world.modus.counts_fault = lambda counts: counts | {"all_executions": counts["all_executions"] + 1}
    world.scrapes(8, apart=30)
    world.offset = -step
    world.scrapes(10, apart=30)
    world.modus.start_run(AGENT, at=world.modus.clock() - 1800, lasts=1.0)  # in the midst of the others
    assert world.scrapes(10, apart=30) == Counter(completed=41)
    world.exporter.close()


def test_what_was_late_before_a_downtime_is_found_also_when_that_was_longer_than_the_lookback(
    tmp_path: Path,
) -> None:
    world = Recorded(tmp_path, page_size=10)
    world.history(3, apart=60)
    world.scrapes(2)
    world.modus.start_run(AGENT, at=world.clock() - 200, lasts=1.0, visible_from=world.clock() + 590)
    for _ in range(30):
        world.history(1, apart=1)
        world.scrapes(1, apart=15)
    world.exporter.close()
    world.clock.advance(3 * DAY)
    world.start()
    assert world.scrapes(10) == Counter(completed=34)
    world.exporter.close()


def test_what_was_late_before_a_pause_longer_than_the_lookback_is_found_by_the_counts_too(
    tmp_path: Path,
) -> None:
    world = Recorded(tmp_path, page_size=10, reconcile_interval=0.0)
    world.history(40, apart=20)
    world.scrapes(2)
    world.modus.start_run(AGENT, at=world.clock() - 600, lasts=1.0, visible_from=world.clock() + 300)
    world.clock.advance(3 * DAY)  # nobody scrapes
    assert world.scrapes(20) == Counter(completed=41)
    assert world.missed == {}
    world.exporter.close()


def test_what_was_late_before_a_downtime_is_found_also_when_it_is_compared_long_after(tmp_path: Path) -> None:
    world = Recorded(tmp_path, 12 * 3600.0, lookback=3600.0, page_size=3)
    for _ in range(30):
        world.history(1, apart=1)
        world.scrapes(1)
    world.modus.start_run(AGENT, at=world.clock() - 900, lasts=1.0, visible_from=world.clock() + 300)
    world.exporter.close()
    world.history(20, apart=600)
    world.start()
    assert world.scrapes(900) == Counter(completed=51)
    world.exporter.close()


@pytest.mark.parametrize("interval", [0.0, 3600.0])
def test_ids_are_kept_for_a_lookback_and_until_they_were_compared(tmp_path: Path, interval: float) -> None:
    world = Recorded(tmp_path, interval, lookback=3600.0)
    for _ in range(60):
        world.history(1, apart=1)
        world.scrapes(1, apart=600)
    state = world.exporter.ledger.agents()[AGENT]
    assert state.forgotten > 40
    assert state.ids_number + state.forgotten == 60
    world.exporter.close()


def test_an_agent_that_has_a_backlog_at_every_other_scrape_is_compared_too(tmp_path: Path) -> None:
    world = Recorded(tmp_path, page_size=10, max_pages=1, order="close")
    for n in range(6):
        world.modus.start_run(AGENT, lasts=(5.0, 900.0)[n % 2])
        world.clock.advance(400)
    for _ in range(130):  # which are on top of the list, and are read at every scrape
        world.modus.start_run(AGENT)
    world.scrapes(150, apart=120)
    reconciled = world.exporter.ledger.agents()[AGENT].last_reconciled
    assert reconciled is not None
    assert world.clock() - reconciled < 2 * 3600
    world.exporter.close()
