"""Which pages are read: as few as possible, and none too few, whatever the list does meanwhile."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.demo.simulator import iso
from exporter.modus.errors import ApiError
from exporter.modus.model import Cursor, Gap, Run, RunsPage
from exporter.runs.paging import (
    MARGIN,
    MAX_FRUITLESS,
    MAX_GAPS,
    Ask,
    catch_up,
    list_open,
    next_page_size,
    read_newest,
)

NOW = 1_790_000_000.0
HOUR, DAY = 3600.0, 86400.0


def a_run(start: float | None, status: str = "completed", name: str = "") -> Run:
    started = None if start is None else iso(start)
    return Run(id=name or f"run at {start}", workflow_id="wf", status=status, started_at=started)


class RunsList:
    """An agent's runs, newest first, in pages found by offset: they shift when runs arrive."""

    def __init__(self, *starts: float) -> None:
        self.now = NOW
        self.starts = sorted(starts, reverse=True)
        self.asked: list[tuple[str | None, int]] = []
        self.expired: set[str] = set()

    def add(self, *starts: float) -> None:
        self.starts = sorted([*self.starts, *starts], reverse=True)

    def ask(self, token: str | None, size: int) -> RunsPage:
        self.asked.append((token, size))
        if token in self.expired:
            self.expired.remove(token)  # the walk that follows gets new ones
            raise ApiError("bad_response", "the page token is not valid", status=400)
        begin = int(token or 0)
        end = begin + size
        runs = [a_run(start) for start in self.starts[begin:end]]
        return RunsPage(runs, {}, str(end) if end < len(self.starts) else None, self.now)

    def newest(self, cursor: Cursor, size: int = 10, lookback: float = DAY) -> tuple[RunsPage, Cursor]:
        self.asked.clear()
        return read_newest(cursor, self.ask, size=size, full_size=10, lookback=lookback)

    def read(self, cursor: Cursor, *, size: int = 10, lookback: float = DAY) -> tuple[set[float], Cursor]:
        """The starts read by one whole reading, and the cursor after it."""
        page, cursor = self.newest(cursor, size, lookback)
        further, cursor = walk(cursor, self.ask)
        return set(starts_of(page)) | set(further), cursor


def starts_of(page: RunsPage) -> list[float]:
    return [run.start for run in page.runs if run.start is not None]


def walk(cursor: Cursor, ask: Ask, max_pages: int = 1000) -> tuple[list[float], Cursor]:
    """The starts that a walk reads, and the cursor after it."""
    pages = list(catch_up(cursor, ask, max_pages=max_pages))
    return [start for page, _ in pages for start in starts_of(page)], pages[-1][1] if pages else cursor


def every(seconds: float, count: int, until: float = NOW) -> list[float]:
    return [until - seconds * number for number in range(1, count + 1)]


def settled(runs: RunsList) -> Cursor:
    """The cursor when all is known and the newest run has been known for longer than the margin."""
    _, cursor = runs.read(Cursor())
    runs.now += MARGIN
    return runs.read(cursor)[1]


def test_at_the_first_sight_all_of_the_lookback_is_read_and_hardly_more() -> None:
    runs = RunsList(*every(HOUR, 100))
    starts, cursor = runs.read(Cursor())
    assert starts >= {start for start in runs.starts if start >= NOW - DAY}
    assert [token for token, _ in runs.asked] == [None, "10", "20"]
    assert cursor.gaps == ()


def test_an_agent_without_runs_is_at_its_first_sight_until_one_comes() -> None:
    runs = RunsList()
    _, cursor = runs.read(Cursor())
    assert cursor == Cursor()
    runs.add(*every(60, 25))
    assert len(runs.read(cursor)[0]) == 25


def test_once_the_newest_run_is_settled_one_page_is_enough() -> None:
    runs = RunsList(*every(1, 100))
    runs.newest(settled(runs), size=5)
    assert runs.asked == [(None, 5)]


def test_until_then_the_page_reaches_the_margin_below_it() -> None:
    runs = RunsList(*every(1, 300))
    _, cursor = runs.read(Cursor())
    runs.now += MARGIN - 1
    starts, _ = runs.read(cursor)
    assert min(starts) <= runs.starts[0] - MARGIN


@pytest.mark.parametrize("late_by", [1.0, 60.0, MARGIN - 1])
def test_a_run_that_appears_late_below_the_newest_is_read(late_by: float) -> None:
    runs = RunsList(*every(5, 200, until=NOW - 1))
    _, cursor = runs.read(Cursor())
    hidden = NOW - 1.5  # below the newest run that was read, but not yet in the list
    for _ in range(3):
        runs.now += late_by / 3
        runs.add(runs.now - 0.1)
        _, cursor = runs.read(cursor)
    runs.add(hidden)
    assert hidden in runs.read(cursor)[0]


def test_a_run_that_appears_late_is_read_also_when_no_newer_one_comes() -> None:
    runs = RunsList(*every(5, 200, until=NOW - 1))
    _, cursor = runs.read(Cursor())
    for _ in range(3):
        runs.now += 30
        _, cursor = runs.read(cursor)
    hidden = NOW - 62  # further down than a page reaches
    runs.add(hidden)
    assert hidden in runs.read(cursor)[0]


def test_a_small_page_that_does_not_reach_what_is_known_is_asked_for_again_in_full() -> None:
    runs = RunsList(*every(60, 100))
    cursor = settled(runs)
    runs.add(*every(0.1, 7, until=runs.now))
    runs.newest(cursor, size=5)
    assert runs.asked == [(None, 5), (None, 10)]


def test_after_a_long_downtime_the_walk_ends_at_the_lookback() -> None:
    runs = RunsList(*every(HOUR, 50))
    cursor = settled(runs)
    runs.now += 10 * DAY
    runs.add(*every(HOUR, 200, until=runs.now))
    starts, _ = runs.read(cursor)
    assert min(starts) < runs.now - DAY
    assert len(starts) == 30


def test_a_clock_of_the_api_that_was_ahead_once_hides_no_run_afterwards() -> None:
    runs = RunsList(*every(HOUR, 30))
    cursor = settled(runs)
    missed = runs.now - 0.5
    runs.now += 365 * DAY
    _, cursor = runs.read(cursor)
    runs.now -= 365 * DAY
    runs.add(missed, *every(0.01, 15, until=runs.now))  # a page does not reach it
    assert missed in runs.read(cursor)[0]


def test_a_start_in_the_future_hides_no_later_run() -> None:
    runs = RunsList(NOW + 10 * DAY, *every(60, 5))
    _, cursor = runs.read(Cursor())
    runs.now += HOUR
    runs.read(cursor)
    runs.add(*every(60, 50, until=runs.now))
    assert set(every(60, 50, until=runs.now)) <= runs.read(cursor)[0]


def test_runs_without_a_start_neither_end_a_walk_nor_move_the_cursor() -> None:
    page = RunsPage([a_run(None)], {}, "more", NOW)
    _, cursor = read_newest(Cursor(), lambda token, size: page, size=10, full_size=10, lookback=DAY)
    assert (cursor.newest, cursor.floor) == (None, None)
    assert cursor.gaps == (Gap(NOW - DAY, 10, "more", pages=1),)


def test_a_walk_that_is_cut_at_any_page_goes_on_there() -> None:
    runs = RunsList(*every(60, 95))
    page, cursor = runs.newest(Cursor())
    starts = starts_of(page)
    while cursor.gaps:
        further, cursor = walk(cursor, runs.ask, max_pages=1)
        starts += further
    assert starts == runs.starts
    assert len(runs.asked) == 10


def test_no_more_pages_than_allowed_are_read() -> None:
    runs = RunsList(*every(60, 95))
    _, cursor = runs.newest(Cursor())
    assert len(list(catch_up(cursor, runs.ask, max_pages=3))) == 3


def test_a_page_token_of_an_earlier_walk_that_is_refused_costs_a_walk_from_the_top() -> None:
    runs = RunsList(*every(60, 95))
    _, cursor = runs.newest(Cursor())
    _, cursor = walk(cursor, runs.ask, max_pages=2)
    runs.expired.add("30")
    runs.asked.clear()
    starts, cursor = walk(cursor, runs.ask)
    assert starts == runs.starts
    assert cursor.gaps == ()
    assert [token for token, _ in runs.asked[:4]] == ["30", None, "10", "20"]


def test_the_pages_read_again_for_a_refused_token_do_not_count_as_pages_of_this_scrape() -> None:
    runs = RunsList(*every(60, 95))
    _, cursor = runs.newest(Cursor())
    _, cursor = walk(cursor, runs.ask, max_pages=8)
    runs.expired.add("90")
    _, cursor = walk(cursor, runs.ask, max_pages=1)  # else a list that expires its tokens is never read
    assert cursor.gaps == ()


def test_a_page_token_of_this_walk_that_is_refused_is_an_error() -> None:
    runs = RunsList(*every(60, 95))
    _, cursor = runs.newest(Cursor())
    runs.expired.add("20")
    with pytest.raises(ApiError, match="not valid"):
        list(catch_up(cursor, runs.ask, max_pages=100))


def test_another_error_ends_a_walk_and_what_was_read_stays_read() -> None:
    runs = RunsList(*every(60, 95))
    _, cursor = runs.newest(Cursor())

    def ask(token: str | None, size: int) -> RunsPage:
        if token == "30":  # noqa: S105 - a page token
            raise ApiError("server_error", "the API answered 500")
        return runs.ask(token, size)

    reached: list[Cursor] = []
    with pytest.raises(ApiError, match="500"):
        reached.extend(after for _, after in catch_up(cursor, ask, max_pages=100))
    assert reached[-1].gaps[0].token == "30"  # noqa: S105


def test_only_a_refused_token_begins_a_walk_anew() -> None:
    runs = RunsList(*every(60, 95))
    _, cursor = runs.newest(Cursor())
    asked = []

    def ask(token: str | None, size: int) -> RunsPage:
        asked.append(token)
        raise ApiError("server_error", "the API answered 500")

    with pytest.raises(ApiError, match="500"):
        list(catch_up(cursor, ask, max_pages=100))
    assert asked == ["10"]


def test_a_page_token_that_repeats_is_an_error() -> None:
    runs = RunsList(*every(1, 100))
    _, cursor = runs.newest(Cursor())

    def ask(token: str | None, size: int) -> RunsPage:
        page = runs.ask(token, size)
        return RunsPage(page.runs, {}, "20", NOW)

    with pytest.raises(ApiError, match="page token repeats"):
        list(catch_up(cursor, ask, max_pages=100))


def test_pages_that_bring_nothing_new_under_ever_new_tokens_are_an_error() -> None:
    runs = RunsList(*every(1, 100))
    _, cursor = runs.newest(Cursor())
    numbers = iter(range(1000))

    def ask(token: str | None, size: int) -> RunsPage:
        return RunsPage([a_run(NOW - 1)], {}, f"token {next(numbers)}", NOW)

    with pytest.raises(ApiError, match=f"{MAX_FRUITLESS} pages in a row brought no new run"):
        list(catch_up(cursor, ask, max_pages=100))
    assert next(numbers) == MAX_FRUITLESS + 1


def test_when_more_comes_than_is_read_the_gaps_stay_few_and_nothing_is_skipped() -> None:
    runs = RunsList(*every(60, 5))
    cursor = settled(runs)
    seen: set[float] = set()
    for _ in range(3 * MAX_GAPS):  # 25 new runs at a time, of which ten are read
        runs.now += 2 * MARGIN
        runs.add(*every(1, 25, until=runs.now))
        page, cursor = runs.newest(cursor)
        seen |= set(starts_of(page))
        assert len(cursor.gaps) <= MAX_GAPS
    further, cursor = walk(cursor, runs.ask)
    assert cursor.gaps == ()
    assert set(runs.starts[:-5]) <= seen | set(further)


def test_a_search_from_the_top_still_begins_there_when_it_is_joined_with_another_gap() -> None:
    search = Gap(NOW - DAY, 10, since=NOW - 5)
    gaps = (*(Gap(NOW - HOUR, 10, str(number)) for number in range(1, MAX_GAPS)), search)
    runs = RunsList(*every(1, 100))
    _, cursor = runs.newest(Cursor(newest=NOW - 2 * HOUR, floor=NOW - 2 * HOUR, gaps=gaps))
    assert len(cursor.gaps) == MAX_GAPS
    assert cursor.gaps[-1] == search


@settings(max_examples=100, deadline=None)
@given(
    arrivals=st.lists(st.lists(st.floats(0, 60).map(lambda ago: round(ago, 3)), max_size=15), max_size=20),
    cut=st.integers(1, 3),
)
def test_every_run_of_a_list_that_grows_while_it_is_walked_is_read(
    arrivals: list[list[float]], cut: int
) -> None:
    runs = RunsList(*every(60, 40))
    cursor, seen = Cursor(), set()
    coming = deque(arrivals)

    def ask(token: str | None, size: int) -> RunsPage:
        page = runs.ask(token, size)
        runs.now += 7
        runs.add(*(runs.now - ago for ago in (coming.popleft() if coming else [])))  # late
        return page

    for _ in range(300):
        quiet = not coming
        page, cursor = read_newest(cursor, ask, size=5, full_size=5, lookback=DAY)
        further, cursor = walk(cursor, ask, max_pages=cut)
        seen |= {*starts_of(page), *further}
        runs.now += 30
        if quiet and not cursor.gaps:
            break
    assert cursor.gaps == ()
    assert set(runs.starts) - seen == set()


def test_the_lists_of_open_runs_are_read_whole_and_what_has_ended_meanwhile_is_left_out() -> None:
    pages = {
        ("running", None): RunsPage([a_run(NOW, "running", "a")], {}, "2", NOW),
        ("running", "2"): RunsPage([a_run(NOW, "completed", "b"), a_run(NOW, "running", "c")], {}, None, NOW),
        ("awaiting_human", None): RunsPage([a_run(NOW, "awaiting_human", "d")], {}, None, NOW),
    }
    found = list_open(lambda status, token: pages[status, token], max_pages=20)
    assert sorted(found) == ["a", "c", "d"]


def test_the_lists_of_open_runs_are_read_no_further_than_allowed() -> None:
    asked = []

    def ask(status: str, token: str | None) -> RunsPage:
        asked.append(status)
        return RunsPage([a_run(NOW, status, f"{status} {len(asked)}")], {}, f"token {len(asked)}", NOW)

    assert len(list_open(ask, max_pages=3)) == 6
    assert asked == ["running"] * 3 + ["awaiting_human"] * 3


@pytest.mark.parametrize(("new", "size"), [(0, 5), (1, 5), (2, 10), (5, 25), (12, 50), (30, 100)])
def test_the_next_page_is_as_large_as_it_must_be_if_as_much_happens_again(new: int, size: int) -> None:
    before = Cursor(newest=NOW - HOUR, first_seen=NOW, floor=NOW - HOUR)
    after = Cursor(newest=NOW, first_seen=NOW, floor=NOW - MARGIN)
    page = RunsPage([a_run(start) for start in every(1, new)] + [a_run(NOW - 2 * HOUR)], {}, None, NOW)
    assert next_page_size(page, before, after, 100) == size


def test_the_first_page_of_an_agent_is_a_full_one_and_none_is_larger_than_configured() -> None:
    page = RunsPage([a_run(start) for start in every(1, 3)], {}, None, NOW)
    cursor = Cursor(newest=NOW - HOUR, first_seen=NOW, floor=NOW - HOUR)
    assert next_page_size(page, Cursor(), cursor, 100) == 100
    assert next_page_size(page, cursor, cursor, 7) == 7
