"""Which pages are read: as few as possible, and none too few, whatever the list does meanwhile."""

import itertools
import math
from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.demo.wire import iso
from exporter.modus.errors import ApiError, Reason
from exporter.modus.model import Run, RunsPage
from exporter.modus.pages import MAX_FRUITLESS
from exporter.runs.paging import (
    MARGIN,
    MAX_BACKLOGS,
    REPEATS,
    TAIL,
    Ask,
    catch_up,
    next_page_size,
    read_newest,
)
from exporter.runs.state import Backlog, Watermark

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

    def newest(self, mark: Watermark, size: int = 10, lookback: float = DAY) -> tuple[RunsPage, Watermark]:
        self.asked.clear()
        return read_newest(mark, self.ask, size=size, full_size=10, lookback=lookback)

    def read(self, mark: Watermark, *, size: int = 10, lookback: float = DAY) -> tuple[set[float], Watermark]:
        """The starts read by one whole reading, and the mark after it."""
        page, mark = self.newest(mark, size, lookback)
        further, mark = walk(mark, self.ask)
        return set(starts_of(page)) | set(further), mark


def starts_of(page: RunsPage) -> list[float]:
    return [run.start for run in page.runs if run.start is not None]


def walk(
    mark: Watermark, ask: Ask, max_pages: int = 1000, known: Iterable[float] = ()
) -> tuple[list[float], Watermark]:
    """The starts that a walk reads, and the watermark after it."""
    met, starts = set(known), list[float]()
    for page, after in catch_up(mark, ask, max_pages=max_pages, is_known=lambda run: run.start in met):
        mark = after
        starts += starts_of(page)
        met.update(starts_of(page))
    return starts, mark


def every(seconds: float, count: int, until: float = NOW) -> list[float]:
    return [until - seconds * number for number in range(1, count + 1)]


def settled(runs: RunsList) -> Watermark:
    """The mark when all is known and the newest run has been known for longer than the margin."""
    _, mark = runs.read(Watermark())
    runs.now += MARGIN
    return runs.read(mark)[1]


def test_at_the_first_sight_all_of_the_lookback_is_read_and_hardly_more() -> None:
    runs = RunsList(*every(HOUR, 100))
    starts, mark = runs.read(Watermark())
    assert starts >= {start for start in runs.starts if start >= NOW - DAY}
    assert [token for token, _ in runs.asked] == [None, "10", "20"]
    assert mark.backlogs == ()


def test_an_agent_without_runs_is_at_its_first_sight_until_one_comes() -> None:
    runs = RunsList()
    _, mark = runs.read(Watermark())
    assert mark == Watermark()
    runs.add(*every(60, 25))
    assert len(runs.read(mark)[0]) == 25


def test_once_the_newest_run_is_settled_one_page_is_enough() -> None:
    runs = RunsList(*every(1, 100))
    runs.newest(settled(runs), size=5)
    assert runs.asked == [(None, 5)]


def test_what_is_settled_stays_so_when_a_newer_run_comes() -> None:
    runs = RunsList(*every(1, 300))
    mark = settled(runs)
    runs.add(NOW + 5)
    for _ in range(2):
        runs.now += 10
        _, mark = runs.newest(mark, size=5)
        assert runs.asked == [(None, 5)]
        assert mark.backlogs == ()


def test_what_was_read_once_is_not_read_again() -> None:
    runs = RunsList(*every(60, 50))
    mark = settled(runs)
    runs.now += HOUR
    runs.add(*every(10, 30, until=runs.now))
    for _ in range(2):
        _, mark = runs.read(mark)
        runs.now += MARGIN
    runs.newest(mark, size=5)
    assert runs.asked == [(None, 5)]


def test_until_then_the_page_reaches_the_margin_below_it() -> None:
    runs = RunsList(*every(1, 300))
    _, mark = runs.read(Watermark())
    runs.now += MARGIN - 1
    starts, _ = runs.read(mark)
    assert min(starts) <= runs.starts[0] - MARGIN


@pytest.mark.parametrize("late_by", [1.0, 60.0, MARGIN - 1])
def test_a_run_that_appears_late_below_the_newest_is_read(late_by: float) -> None:
    runs = RunsList(*every(5, 200, until=NOW - 1))
    _, mark = runs.read(Watermark())
    hidden = NOW - 1.5  # below the newest run that was read, but not yet in the list
    for _ in range(3):
        runs.now += late_by / 3
        runs.add(runs.now - 0.1)
        _, mark = runs.read(mark)
    runs.add(hidden)
    assert hidden in runs.read(mark)[0]


def test_a_run_that_appears_late_is_read_also_when_no_newer_one_comes() -> None:
    runs = RunsList(*every(5, 200, until=NOW - 1))
    _, mark = runs.read(Watermark())
    for _ in range(3):
        runs.now += 30
        _, mark = runs.read(mark)
    hidden = NOW - 62  # further down than a page reaches
    runs.add(hidden)
    assert hidden in runs.read(mark)[0]


def test_a_small_page_that_does_not_reach_what_is_known_is_asked_for_again_in_full() -> None:
    runs = RunsList(*every(60, 100))
    mark = settled(runs)
    runs.add(*every(0.1, 7, until=runs.now))
    runs.newest(mark, size=5)
    assert runs.asked == [(None, 5), (None, 10)]


def test_after_a_downtime_longer_than_the_lookback_the_walk_ends_where_the_reading_stopped() -> None:
    runs = RunsList(*every(HOUR, 50))
    mark = settled(runs)
    known = set(runs.starts)
    runs.now += 10 * DAY
    runs.add(*every(HOUR, 200, until=runs.now))
    starts, _ = runs.read(mark)
    assert set(runs.starts) - known <= starts
    assert len(starts - known) == 200
    assert len(starts) <= 210


def test_a_clock_of_the_api_that_was_ahead_once_hides_no_run_afterwards() -> None:
    runs = RunsList(*every(HOUR, 30))
    mark = settled(runs)
    missed = runs.now - 0.5
    runs.now += 365 * DAY
    _, mark = runs.read(mark)
    runs.now -= 365 * DAY
    runs.add(missed, *every(0.01, 15, until=runs.now))  # a page does not reach it
    assert missed in runs.read(mark)[0]


def test_a_start_in_the_future_hides_no_later_run() -> None:
    runs = RunsList(NOW + 10 * DAY, *every(60, 5))
    _, mark = runs.read(Watermark())
    runs.now += HOUR
    runs.read(mark)
    runs.add(*every(60, 50, until=runs.now))
    assert set(every(60, 50, until=runs.now)) <= runs.read(mark)[0]


def test_runs_without_a_start_neither_end_a_walk_nor_move_the_cursor() -> None:
    page = RunsPage([a_run(None)], {}, "more", NOW)
    _, mark = read_newest(Watermark(), lambda token, size: page, size=10, full_size=10, lookback=DAY)
    assert (mark.newest, mark.floor) == (None, None)
    assert mark.backlogs == (Backlog(NOW - DAY, 10, "more", pages=1),)


def test_a_walk_that_is_cut_at_any_page_goes_on_there() -> None:
    runs = RunsList(*every(60, 95))
    page, mark = runs.newest(Watermark())
    starts = starts_of(page)
    while mark.backlogs:
        further, mark = walk(mark, runs.ask, max_pages=1)
        starts += further
    assert starts == runs.starts
    assert len(runs.asked) == 10


def test_no_more_pages_than_allowed_are_read() -> None:
    runs = RunsList(*every(60, 95))
    _, mark = runs.newest(Watermark())
    runs.asked.clear()
    walk(mark, runs.ask, 3)
    assert len(runs.asked) == 3


def test_of_pages_that_only_repeat_what_is_known_no_more_are_read_than_ten_times_as_many() -> None:
    for walks in (1, 2):  # of each
        runs = RunsList(*every(60, 500))
        mark = Watermark(NOW, NOW, NOW, backlogs=(Backlog(-math.inf, 10),) * walks)
        walk(mark, runs.ask, 2, runs.starts)
        assert len(runs.asked) == walks * 2 * REPEATS


def test_a_page_token_of_an_earlier_walk_that_is_refused_costs_a_walk_from_the_top() -> None:
    runs = RunsList(*every(60, 95))
    _, mark = runs.newest(Watermark())
    _, mark = walk(mark, runs.ask, max_pages=2)
    runs.expired.add("30")
    runs.asked.clear()
    starts, mark = walk(mark, runs.ask)
    assert starts == runs.starts
    assert mark.backlogs == ()
    assert [token for token, _ in runs.asked[:4]] == ["30", None, "10", "20"]


def test_pages_that_repeat_what_is_known_do_not_count_as_pages_of_this_scrape() -> None:
    """Else a list whose tokens expire from one scrape to the next is never read to its end."""
    runs = RunsList(*every(60, 95))
    page, mark = runs.newest(Watermark())
    starts, mark = walk(mark, runs.ask, max_pages=8)
    known = {*starts, *starts_of(page)}
    runs.expired.add("90")
    starts, mark = walk(mark, runs.ask, 1, known)
    assert set(starts) | known == set(runs.starts)
    assert mark.backlogs == ()


def test_a_token_that_is_refused_without_any_progress_since_the_last_time_is_an_error() -> None:
    runs = RunsList(*every(60, 95))
    page, mark = runs.newest(Watermark())
    known = set(starts_of(page))

    def ask(token: str | None, size: int) -> RunsPage:
        if token == "10":  # noqa: S105 - a page token
            raise ApiError("bad_response", "the page token is not valid", status=400)
        return runs.ask(token, size)

    with pytest.raises(ApiError, match="not valid"):
        walk(mark, ask, 100, known)


def test_tokens_that_live_shorter_than_a_walk_do_not_keep_it_from_its_end() -> None:
    """Each walk from the top gets a page further than the one before, since what is known is not counted."""
    runs = RunsList(*every(60, 95))
    page, mark = runs.newest(Watermark())
    known = set(starts_of(page))
    for _ in range(10):
        runs.expired = {backlog.token for backlog in mark.backlogs if backlog.token}
        starts, mark = walk(mark, runs.ask, 1, known)
        known.update(starts)
        assert all(backlog.pages == int(backlog.token or 0) / 10 for backlog in mark.backlogs)
    assert mark.backlogs == ()
    assert known == set(runs.starts)


# --- what cannot be relied on ---


def test_an_odd_start_at_the_end_of_a_page_ends_no_walk() -> None:
    runs = RunsList(*every(60, 60))
    odd = a_run(NOW - 2 * DAY, name="queued for two days")

    def ask(token: str | None, size: int) -> RunsPage:
        page = runs.ask(token, size)
        return RunsPage([*page.runs, odd] if token is None else page.runs, {}, page.next_page_token, NOW)

    page, mark = read_newest(Watermark(), ask, size=10, full_size=10, lookback=DAY)
    starts, _ = walk(mark, ask)
    assert {*starts, *starts_of(page)} >= set(runs.starts)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("odd", range(6))
def test_an_odd_start_on_pages_of_few_runs_ends_no_walk_either(odd: int, size: int) -> None:
    items = [a_run(start) for start in every(60, 60)]
    items.insert(odd, a_run(NOW - 2 * DAY, name="queued for two days"))

    def ask(token: str | None, size: int) -> RunsPage:
        begin = int(token or 0)
        return RunsPage(items[begin : begin + size], {}, str(begin + size), NOW)

    page, mark = read_newest(
        Watermark(NOW - HOUR, NOW - HOUR, NOW - 1800), ask, size=size, full_size=size, lookback=DAY
    )
    met = set(starts_of(page))
    while mark.backlogs:  # a page in each scrape
        starts, mark = walk(mark, ask, max_pages=1, known=met)
        assert starts
        met.update(starts)
    assert {start for start in every(60, 60) if start >= NOW - 1800} <= met
    assert min(met - {NOW - 2 * DAY}) >= NOW - 1800 - 60 * (TAIL + size)


@pytest.mark.parametrize(
    "items", [[], [a_run(None), a_run(None, name="b"), a_run(NOW - 2 * DAY)]], ids=["empty", "hardly a start"]
)
def test_a_page_that_tells_little_ends_no_walk(items: list[Run]) -> None:
    runs = RunsList(*every(60, 25))

    def ask(token: str | None, size: int) -> RunsPage:
        page = runs.ask(token, size)
        return RunsPage(items if token is None else page.runs, {}, page.next_page_token, NOW)

    _, mark = read_newest(Watermark(), ask, size=10, full_size=10, lookback=DAY)
    assert walk(mark, ask)[0] == runs.starts[10:]


class ByClose(RunsList):
    """Runs in Temporal's own order: open ones first, then by their end, newest first."""

    def __init__(self, *runs: Run) -> None:
        super().__init__()
        self.runs = sorted(runs, key=lambda run: run.end or math.inf, reverse=True)

    def ask(self, token: str | None, size: int) -> RunsPage:
        begin = int(token or 0)
        more = str(begin + size) if begin + size < len(self.runs) else None
        return RunsPage(self.runs[begin : begin + size], {}, more, self.now)


@settings(max_examples=100)
@given(lasts=st.lists(st.floats(1, DAY / 2).map(lambda value: round(value, 3)), min_size=40, max_size=120))
def test_in_the_order_of_ends_all_of_the_lookback_is_read(lasts: list[float]) -> None:
    made = [
        Run(
            id=str(n),
            workflow_id="wf",
            status="completed" if NOW - 600 * n + length <= NOW else "running",
            started_at=iso(NOW - 600 * n),
            ended_at=iso(NOW - 600 * n + length) if NOW - 600 * n + length <= NOW else None,
        )
        for n, length in enumerate(lasts)
    ]
    runs = ByClose(*made)
    lookback = 600.0 * 30
    page, mark = read_newest(Watermark(), runs.ask, size=10, full_size=10, lookback=lookback)
    starts, _ = walk(mark, runs.ask)
    wanted = {run.start for run in made if run.start is not None and run.start >= NOW - lookback}
    assert wanted - {*starts, *starts_of(page)} == set()


def test_an_order_that_the_larger_page_tells_holds_for_that_page_already() -> None:
    def ended(n: int, start: float) -> Run:
        times = {"started_at": iso(start), "ended_at": iso(NOW - n)}
        return Run(id=str(n), workflow_id="wf", status="completed", **times)  # type: ignore[arg-type]

    short = [ended(n, NOW - 20 - n) for n in range(5)]
    long = [ended(5 + n, NOW - DAY + n) for n in range(5)]
    runs = ByClose(*short, *long, ended(10, NOW - 25), *(ended(1000 + n, NOW - 2 * DAY) for n in range(9)))
    mark = Watermark(NOW - 100, NOW - 300, NOW - 100)
    assert runs.newest(mark, size=5)[1].backlogs != ()


@pytest.mark.parametrize("mark", [Watermark(), Watermark(NOW - HOUR, NOW - HOUR, NOW - HOUR, by_start=False)])
def test_the_order_is_learned_at_the_first_sight_and_where_it_was_mistaken(mark: Watermark) -> None:
    lasts = itertools.cycle([30.0, 900.0])
    runs = [
        Run(
            id=f"run at {start}",
            workflow_id="wf",
            status="completed",
            started_at=iso(start),
            ended_at=iso(start + next(lasts)),
        )
        for start in every(60, 10, until=NOW - 1000)
    ]
    page = RunsPage(runs, {}, "10", NOW)
    _, mark = read_newest(mark, lambda token, size: page, size=10, full_size=10, lookback=DAY)
    assert mark.by_start is True


def test_a_clock_of_the_api_that_steps_back_hides_no_new_run() -> None:
    runs = RunsList(*every(20, 300))
    mark = settled(runs)
    runs.now -= HOUR
    new = [runs.now + 0.5 * number for number in range(100)]
    for start in new:  # in the list they stand among those of an hour ago
        runs.add(start)
    runs.now += 60
    starts, _ = runs.read(mark)
    assert set(new) <= starts


def test_two_backlogs_are_worked_off_in_turn_so_that_neither_starves() -> None:
    runs = RunsList(*every(1, 400))
    newer, older = Backlog(NOW - 150, 10, "10"), Backlog(NOW - 380, 10, "200")
    mark = Watermark(NOW - 1, NOW, NOW - 1, backlogs=(newer, older))
    walk(mark, runs.ask, 6)
    assert [token for token, _ in runs.asked] == ["10", "200", "20", "210", "30", "220"]


def test_another_error_ends_a_walk_and_what_was_read_stays_read() -> None:
    runs = RunsList(*every(60, 95))
    _, mark = runs.newest(Watermark())

    def ask(token: str | None, size: int) -> RunsPage:
        if token == "30":  # noqa: S105 - a page token
            raise ApiError("timeout", "no whole answer within 500 s")
        return runs.ask(token, size)

    reached = [mark]
    walked = catch_up(mark, ask, max_pages=100, is_known=lambda _: False)
    with pytest.raises(ApiError, match="500"):
        reached.extend(after for _, after in walked)
    assert reached[-1].backlogs[0].token == "30"  # noqa: S105


@pytest.mark.parametrize("reason", ["deadline", "timeout", "connection", "rate_limited"])
def test_an_answer_that_does_not_come_says_nothing_about_the_token(reason: Reason) -> None:
    runs = RunsList(*every(60, 95))
    _, mark = runs.newest(Watermark())
    asked = []

    def ask(token: str | None, size: int) -> RunsPage:
        asked.append(token)
        raise ApiError(reason, "no answer")

    with pytest.raises(ApiError, match="no answer"):
        walk(mark, ask, 100)
    assert asked == ["10"]


@pytest.mark.parametrize("reason", ["bad_response", "not_found", "forbidden", "server_error"])
def test_a_token_that_is_refused_with_whatever_status_costs_a_walk_from_the_top(reason: Reason) -> None:
    runs = RunsList(*every(60, 95))
    _, mark = runs.newest(Watermark())
    asked = []

    def ask(token: str | None, size: int) -> RunsPage:
        asked.append(token)
        if asked == ["10"]:
            raise ApiError(reason, "refused")
        return runs.ask(token, size)

    starts, mark = walk(mark, ask, 100)
    assert starts == runs.starts
    assert asked[:3] == ["10", None, "10"]


def test_a_page_token_that_repeats_is_an_error() -> None:
    runs = RunsList(*every(1, 100))
    _, mark = runs.newest(Watermark())

    def ask(token: str | None, size: int) -> RunsPage:
        page = runs.ask(token, size)
        return RunsPage(page.runs, {}, "20", NOW)

    with pytest.raises(ApiError, match="page token repeats"):
        walk(mark, ask, 100)


def test_pages_that_bring_nothing_new_under_ever_new_tokens_are_an_error() -> None:
    runs = RunsList(*every(1, 100))
    _, mark = runs.newest(Watermark())
    numbers = iter(range(1000))

    def ask(token: str | None, size: int) -> RunsPage:
        return RunsPage([a_run(NOW - 1)], {}, f"token {next(numbers)}", NOW)

    with pytest.raises(ApiError, match=f"{MAX_FRUITLESS} pages in a row brought nothing new"):
        walk(mark, ask, 100)
    assert next(numbers) == MAX_FRUITLESS + 1


def test_when_more_comes_than_is_read_the_gaps_stay_few_and_nothing_is_skipped() -> None:
    runs = RunsList(*every(60, 5))
    mark = settled(runs)
    seen: set[float] = set()
    for _ in range(3 * MAX_BACKLOGS):  # 25 new runs at a time, of which ten are read
        runs.now += 2 * MARGIN
        runs.add(*every(1, 25, until=runs.now))
        page, mark = runs.newest(mark)
        seen |= set(starts_of(page))
        assert len(mark.backlogs) <= MAX_BACKLOGS
    further, mark = walk(mark, runs.ask)
    assert mark.backlogs == ()
    assert set(runs.starts[:-5]) <= seen | set(further)


def test_two_stretches_that_become_one_are_both_read() -> None:
    runs = RunsList(*every(1, 1000))
    stretches = [range(100 * n + 10, 100 * n + 50) for n in range(1, MAX_BACKLOGS + 1)]
    backlogs = (Backlog(runs.starts[part[-1]], 10, str(part[0]), pages=1) for part in stretches)
    page, mark = runs.newest(Watermark(NOW - 30, NOW, NOW - 30, backlogs=tuple(backlogs)))
    assert len(mark.backlogs) == MAX_BACKLOGS
    read = {*starts_of(page), *walk(mark, runs.ask)[0]}
    assert read >= {runs.starts[n] for part in (range(30), *stretches) for n in part}


def test_when_tokens_die_one_walk_from_the_top_reads_all_stretches() -> None:
    runs = RunsList(*every(1, 200))
    backlogs = tuple(Backlog(runs.starts[n + 30], 10, f"old {n}", pages=n // 10) for n in (20, 70, 120))
    runs.expired = {"old 20", "old 70", "old 120"}
    starts, mark = walk(Watermark(NOW, NOW, NOW, backlogs=backlogs), runs.ask)
    assert set(starts) >= set(runs.starts[:150])
    assert len(starts) <= 160
    assert mark.backlogs == ()


def test_a_search_goes_on_when_a_newer_walk_has_come_further_down() -> None:
    runs = RunsList(*every(1, 200))
    newer, search = Backlog(runs.starts[90], 10, "70"), Backlog(runs.starts[80], 10, "10", since=NOW)
    starts, mark = walk(Watermark(NOW, NOW, NOW, backlogs=(newer, search)), runs.ask)
    assert set(starts) >= set(runs.starts[10:90])
    assert mark.backlogs == ()


def test_a_refusal_of_the_first_page_is_no_refusal_of_a_token() -> None:
    asked = []

    def ask(token: str | None, size: int) -> RunsPage:
        asked.append(token)
        raise ApiError("server_error", "no answer")

    with pytest.raises(ApiError, match="no answer"):
        walk(Watermark(NOW, NOW, NOW, backlogs=(Backlog(NOW - HOUR, 10),)), ask)
    assert asked == [None]


def test_a_newest_run_that_was_seen_by_a_clock_that_was_ahead_settles_all_the_same() -> None:
    runs = RunsList(*every(1, 300))
    mark = Watermark(NOW - 1, NOW + HOUR, NOW - HOUR)
    for _ in range(2):
        _, mark = runs.read(mark)
        runs.now += MARGIN
    runs.newest(mark, size=5)
    runs.newest(mark, size=5)
    assert runs.asked == [(None, 5)]


def test_a_search_from_the_top_still_begins_there_when_it_is_joined_with_another_gap() -> None:
    search = Backlog(NOW - DAY, 10, since=NOW - 5)
    backlogs = (*(Backlog(NOW - HOUR, 10, str(number)) for number in range(1, MAX_BACKLOGS)), search)
    runs = RunsList(*every(1, 100))
    _, mark = runs.newest(Watermark(newest=NOW - 2 * HOUR, floor=NOW - 2 * HOUR, backlogs=backlogs))
    assert len(mark.backlogs) == MAX_BACKLOGS
    assert mark.backlogs[-1] == search


@settings(max_examples=100)
@given(
    arrivals=st.lists(st.lists(st.floats(0, 60).map(lambda ago: round(ago, 3)), max_size=15), max_size=20),
    cut=st.integers(1, 3),
)
def test_every_run_of_a_list_that_grows_while_it_is_walked_is_read(
    arrivals: list[list[float]], cut: int
) -> None:
    runs = RunsList(*every(60, 40))
    mark, seen = Watermark(), set()
    coming = deque(arrivals)

    def ask(token: str | None, size: int) -> RunsPage:
        page = runs.ask(token, size)
        runs.now += 7
        runs.add(*(runs.now - ago for ago in (coming.popleft() if coming else [])))  # late
        return page

    for _ in range(300):
        quiet = not coming
        page, mark = read_newest(mark, ask, size=5, full_size=5, lookback=DAY)
        further, mark = walk(mark, ask, max_pages=cut)
        seen |= {*starts_of(page), *further}
        runs.now += 30
        if quiet and not mark.backlogs:
            break
    assert mark.backlogs == ()
    assert set(runs.starts) - seen == set()


@pytest.mark.parametrize(("new", "size"), [(0, 5), (1, 5), (2, 10), (5, 25), (12, 50), (30, 100)])
def test_the_next_page_is_as_large_as_it_must_be_if_as_much_happens_again(new: int, size: int) -> None:
    before = Watermark(newest=NOW - HOUR, first_seen=NOW, floor=NOW - HOUR)
    after = Watermark(newest=NOW, first_seen=NOW, floor=NOW - MARGIN)
    page = RunsPage([a_run(start) for start in every(1, new)] + [a_run(NOW - 2 * HOUR)], {}, None, NOW)
    assert next_page_size(page, before, after, 100) == size


def test_the_first_page_of_an_agent_is_a_full_one_and_none_is_larger_than_configured() -> None:
    page = RunsPage([a_run(start) for start in every(1, 3)], {}, None, NOW)
    mark = Watermark(newest=NOW - HOUR, first_seen=NOW, floor=NOW - HOUR)
    assert next_page_size(page, Watermark(), mark, 100) == 100
    assert next_page_size(page, mark, mark, 7) == 7
