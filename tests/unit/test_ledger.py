"""What counts, once, and what stays when a process, a file or a clock does not."""

import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from exporter.modus.discovery import shard_of
from exporter.modus.errors import ApiError
from exporter.modus.model import Run, kept_id
from exporter.runs import account
from exporter.runs.account import MAX_STATUSES
from exporter.runs.ledger import Ledger
from exporter.runs.reader import Memory, Reading
from exporter.runs.schema import checksum_of
from exporter.runs.state import AgentState, Totals, Watermark
from exporter.runs.store import LedgerError, read_state
from tests.simulation import BOUNDS, DAY, START, Clock

AGENT = 7


def iso(instant: float) -> str:
    return datetime.fromtimestamp(instant, UTC).isoformat()


def a_run(
    id_: str = "wf:1",
    status: str = "completed",
    start: float | None = START - 100,
    end: float | None = START - 70,
    duration_ms: float | None = 30_000,
    trigger: str | None = "schedule",
) -> Run:
    return Run(
        id=id_,
        workflow_id="wf",
        status=status,
        started_at=None if start is None else iso(start),
        ended_at=None if end is None else iso(end),
        duration_ms=duration_ms,
        trigger_type=trigger,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state.db")


def ledger(path: str | None, clock: Clock, lookback: float = DAY, **more: object) -> Ledger:
    return Ledger(path, BOUNDS, lookback=lookback, clock=clock, **more)  # type: ignore[arg-type]


def reading(*runs: Run, now: float = START, **more: object) -> Reading:
    return Reading(Watermark(), Memory(), runs=list(runs), now=now, **more)  # type: ignore[arg-type]


def record(book: Ledger, *runs: Run, now: float | None = None) -> None:
    book.record(AGENT, reading(*runs, now=book.clock() if now is None else now))


def totals(book: Ledger) -> Totals:
    return book.agents()[AGENT].totals


def finished(book: Ledger) -> int:
    return finished_in(book.agents()[AGENT])


def finished_in(state: AgentState) -> int:
    return sum(n for by_trigger in state.totals.finished.values() for n in by_trigger.values())


def test_a_run_is_counted_once_however_often_it_is_seen(clock: Clock) -> None:
    book = ledger(None, clock)
    record(book)
    clock.advance(200)
    record(book, a_run(end=START + 50), a_run(end=START + 50))
    record(book, a_run(end=START + 50))
    assert finished(book) == 1


def test_two_temporal_runs_of_one_workflow_are_two(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run("wf:1", "error"), a_run("wf:2"))
    assert finished(book) == 2


def test_known_series_are_there_at_zero_from_the_first_sight(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book)
    finished_by = totals(book).finished
    assert {status: set(by.values()) for status, by in finished_by.items()} == {
        "completed": {0},
        "error": {0},
        "cancelled": {0},
    }
    assert set(finished_by["error"]) == {"schedule", "webhook", "api", "slack", "manual"}


def test_a_restart_goes_on_where_the_last_commit_was(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run("wf:1"), a_run("wf:2", "running", end=None, duration_ms=None))
    book.close()
    again = ledger(path, clock)
    record(again, a_run("wf:1"), a_run("wf:2"), a_run("wf:3"))
    assert finished(again) == 3
    assert totals(again).created == START - DAY
    again.close()


def test_nothing_shown_before_the_commit_survives_a_crash_and_all_after_it_does(
    tmp_path: Path, clock: Clock
) -> None:
    book = ledger(str(tmp_path / "before" / "state.db"), clock)
    record(book, a_run("wf:1"))
    book.commit()
    record(book, a_run("wf:2"))  # and no commit
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    book.close()
    with closing(ledger(str(tmp_path / "after" / "state.db"), clock)) as again:
        assert finished(again) == 1
        record(again, a_run("wf:1"), a_run("wf:2"))
        assert finished(again) == 2


def test_in_memory_only_runs_that_end_after_the_start_are_counted(clock: Clock) -> None:
    book = ledger(None, clock)
    record(book, a_run("wf:old"), a_run("wf:open", "running", end=None, duration_ms=None))
    assert finished(book) == 0
    clock.advance(60)
    record(book, a_run("wf:old"), a_run("wf:open", end=START + 10), a_run("wf:new", end=START + 20))
    assert finished(book) == 2
    assert totals(book).created == START


@pytest.mark.parametrize(
    ("was_open", "start", "counts"),
    [(False, START - 100, 0), (False, None, 0), (False, START + 10, 1), (True, START - 100, 1)],
)
def test_in_memory_a_run_without_an_end_counts_if_it_cannot_have_ended_before_the_start(
    clock: Clock, was_open: bool, start: float | None, counts: int
) -> None:
    book = ledger(None, clock)
    record(book, *([a_run("wf:1", "running", start=start, end=None)] if was_open else []))
    clock.advance(60)
    record(book, a_run("wf:1", "error", start=start, end=None, duration_ms=None))
    assert finished(book) == counts


def test_a_run_first_seen_after_the_lookback_is_not_counted_but_one_seen_open_is(
    path: str, clock: Clock
) -> None:
    book = ledger(path, clock)
    old = START - 2 * DAY
    record(book, a_run("wf:ended", start=old), a_run("wf:waits", "awaiting_human", start=old, end=None))
    assert finished(book) == 0
    record(book, a_run("wf:waits", start=old))
    assert finished(book) == 1
    book.close()


def test_a_longer_lookback_counts_no_forgotten_run_again(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run("wf:1"))
    book.commit()
    for _ in range(4):  # ids are looked through once an hour, and kept while a step back may be unknown
        clock.advance(1.2 * DAY)
        record(book)
    assert book.agents()[AGENT].ids_number == 0
    book.close()
    longer = ledger(path, clock, lookback=30 * DAY)
    assert finished(longer) == 1
    record(longer, a_run("wf:1"))
    assert finished(longer) == 1
    longer.close()


def test_what_may_come_back_is_not_forgotten(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    for _ in range(20):
        record(book, a_run("wf:1"))
        clock.advance(4000)
    assert finished(book) == 1
    assert book.agents()[AGENT].ids_number == 1
    book.close()


def test_a_longer_lookback_counts_no_forgotten_run_again_in_whatever_order_they_came(
    path: str, clock: Clock
) -> None:
    book = ledger(path, clock)
    book.commit()  # and no more before the ids are forgotten
    runs = a_run("wf:1"), a_run("wf:2", start=START - 7200, end=START - 7000)
    record(book, *runs)
    for _ in range(2):
        clock.advance(1.2 * DAY)
        record(book)
    book.lookback = 30 * DAY
    record(book, *runs)
    assert finished(book) == 2
    book.close()


def test_a_run_counted_late_in_its_life_is_not_followed_again_from_a_stale_list(
    path: str, clock: Clock
) -> None:
    book = ledger(path, clock)
    old = START - 5 * DAY
    record(book, a_run("wf:1", "running", start=old, end=None))
    record(book, a_run("wf:1", start=old))
    record(book, a_run("wf:1", "running", start=old, end=None))
    assert book.agents()[AGENT].open == {}
    book.close()


@pytest.mark.parametrize(
    ("duration_ms", "end", "counts"),
    [
        (30_000.0, START - 70, True),
        (0.0, START - 100, True),
        (None, START - 70, True),  # the end minus the start
        (None, None, False),
        (-1.0, START - 70, False),
        (float("nan"), START - 70, False),
        (float("inf"), START - 70, False),
        (400 * DAY * 1000, START - 70, False),
    ],
)
def test_an_odd_duration_counts_as_finished_and_stays_out_of_the_histogram(
    path: str,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    duration_ms: float | None,
    end: float | None,
    counts: bool,
) -> None:
    book = ledger(path, clock)
    with caplog.at_level(logging.WARNING):
        record(book, a_run(duration_ms=duration_ms, end=end))
        record(book, a_run(duration_ms=duration_ms, end=end))
    assert finished(book) == 1
    assert sum(totals(book).durations.buckets) == int(counts)
    assert len(caplog.records) == (0 if counts else 1)
    book.close()


def test_a_run_with_an_end_alone_has_no_duration(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run(start=None, duration_ms=None))
    assert finished(book) == 1
    assert sum(totals(book).durations.buckets) == 0
    book.close()


def test_a_run_that_names_its_start_only_while_it_is_open_has_a_duration(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    for start, sum_ in ((None, 30), (START - 90, 50)):
        record(book, a_run(f"wf:{start}", "running", end=None, duration_ms=None))
        record(book, a_run(f"wf:{start}", start=start, duration_ms=None))
        assert totals(book).durations.sum == sum_  # where it names one then, that counts
    book.close()


def test_a_duration_alone_is_enough(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run(start=None, end=None))
    assert (finished(book), totals(book).durations.sum) == (1, 30)
    assert not any(totals(book).durations.exemplars or ())  # which would need an instant
    book.close()


def test_durations_are_those_of_completed_runs(
    path: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    book = ledger(path, clock)
    record(book, a_run("wf:1", "error"), a_run("wf:2", "cancelled", duration_ms=-1))
    assert (finished(book), sum(totals(book).durations.buckets)) == (2, 0)
    assert not caplog.records
    book.close()


def test_the_last_end_is_the_newest_in_whatever_order_they_come(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run("wf:1", end=START - 10), a_run("wf:2", end=START - 50))
    assert totals(book).last_end == {"completed": START - 10}
    book.close()


def test_a_duration_on_a_bound_is_in_that_bucket(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run("a", duration_ms=1000), a_run("b", duration_ms=1001), a_run("c", duration_ms=601_000))
    assert totals(book).durations.buckets == [1, 1, 0, 0, 1]
    book.close()


def test_the_exemplar_of_a_bucket_is_its_newest_run(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run("new", end=START - 10), a_run("old", end=START - 50))
    exemplar = totals(book).durations.exemplars[2]
    assert exemplar is not None
    assert exemplar.run_id == "new"
    book.close()


def test_trigger_types_beyond_twenty_become_other_and_that_is_said_once(
    path: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    book = ledger(path, clock)
    with caplog.at_level(logging.WARNING):
        record(book, *(a_run(f"wf:{n}", trigger=f"trigger {n}") for n in range(1000)))
    by_trigger = totals(book).finished["completed"]
    assert len(by_trigger) == 21
    assert by_trigger["other"] == 1000 - 15
    record(book, a_run("wf:known", trigger="trigger 3"))
    assert totals(book).finished["completed"]["trigger 3"] == 2
    assert len(caplog.records) == 1
    book.close()


def test_a_snapshot_keeps_the_totals_it_was_given(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run("wf:1"))
    book.commit()
    shown = book.shown(AGENT)[1]  # type: ignore[index]
    record(book, a_run("wf:2"))
    assert sum(shown.durations.buckets) == 1  # type: ignore[union-attr]
    assert sum(totals(book).durations.buckets) == 2
    book.close()


def test_other_buckets_are_refused_with_one_line_until_the_histogram_is_reset(
    path: str, clock: Clock
) -> None:
    book = ledger(path, clock)
    record(book, a_run("wf:1"))
    book.close()
    with pytest.raises(LedgerError, match=r"other buckets; .* --state\.reset-histogram"):
        Ledger(path, (1.0, 2.0), lookback=DAY, clock=clock)
    clock.advance(60)
    anew = Ledger(path, (1.0, 2.0), lookback=DAY, reset_histogram=True, clock=clock)
    durations = totals(anew).durations
    assert (durations.buckets, finished(anew), durations.created) == ([0, 0, 0], 1, START + 60)
    shown = anew.shown(AGENT)[1]  # type: ignore[index]
    assert shown is not None
    assert shown.durations.buckets == [0, 0, 0]
    anew.close()
    Ledger(path, (1.0, 2.0), lookback=DAY, clock=clock).close()


def test_native_buckets_go_on_over_a_restart_and_begin_in_a_file_that_has_none(
    path: str, clock: Clock
) -> None:
    with closing(ledger(path, clock)) as book:
        record(book, a_run("wf:1"), a_run("wf:2", duration_ms=0), a_run("wf:3", duration_ms=2_500))
        counted = totals(book).durations.native
        assert (counted.zero, counted.first, len(counted.observed)) == (1, 11, 30)  # 2.5 s to 30 s
    with closing(ledger(path, clock)) as book:
        assert totals(book).durations.native == counted
    with closing(sqlite3.connect(path)) as db, db:
        state = msgspec.json.decode(db.execute("SELECT state FROM agent").fetchone()[0])
        del state["totals"]["durations"]["native"]
        old = msgspec.json.encode(state)
        db.execute("UPDATE agent SET state = ?, checksum = ?", (old, checksum_of(old, AGENT)))
    with closing(ledger(path, clock)) as book:
        for number in (3, 4):
            durations = totals(book).durations
            assert durations.native.count == sum(durations.buckets) == number
            record(book, a_run("wf:4", duration_ms=100_000))
        assert durations.native.first + len(durations.native.observed) - 1 == 54


@pytest.mark.parametrize("skew", [0.0, 3600.0, -3600.0])
def test_an_agent_that_comes_from_another_shard_is_counted_from_then_on_by_the_clock_of_the_api(
    path: str, clock: Clock, skew: float
) -> None:
    stays = next(n for n in range(100) if shard_of(n, 3) == 0 and shard_of(n, 2) == 0)
    comes = next(n for n in range(100) if shard_of(n, 3) == 2 and shard_of(n, 2) == 0)
    before = ledger(path, clock, shard=(0, 3))
    for agent_id in (stays, comes):  # `comes` was here once, then on shard 2
        before.record(agent_id, reading(now=clock() + skew, skew=skew))
    before.close()
    clock.advance(600)
    after = ledger(path, clock, shard=(0, 2))
    clock.advance(60)
    meanwhile = a_run("wf:1", start=START + skew + 100, end=START + skew + 500)
    later = a_run("wf:2", start=START + skew + 100, end=START + skew + 650)
    for agent_id in (stays, comes):
        after.record(agent_id, reading(meanwhile, later, now=clock() + skew, skew=skew))
    counts = {n: sum(after.agents()[n].totals.finished["completed"].values()) for n in (stays, comes)}
    assert counts == {stays: 2, comes: 1}
    after.close()


def test_a_run_in_a_status_nobody_can_list_is_followed_no_longer_than_the_lookback(
    path: str, clock: Clock
) -> None:
    book = ledger(path, clock)
    paused = a_run("wf:1", "paused", end=None, duration_ms=None)
    record(book, paused, a_run("wf:2", "running", end=None))
    clock.advance(DAY / 2)
    record(book)
    assert book.agents()[AGENT].open.keys() == {"wf:1", "wf:2"}
    clock.advance(DAY)
    record(book)
    assert book.agents()[AGENT].open.keys() == {"wf:2"}
    assert totals(book).missed["vanished"] == 1
    clock.advance(60)
    record(book, paused)  # there it is again
    clock.advance(2 * DAY)
    record(book)
    assert book.agents()[AGENT].open.keys() == {"wf:2"}
    assert totals(book).missed["vanished"] == 1
    book.close()


def test_a_run_is_not_counted_a_second_time_when_its_start_is_exactly_at_the_edge_of_what_is_forgotten(
    path: str, clock: Clock
) -> None:
    book = ledger(path, clock, lookback=DAY)
    twins = [a_run("wf:1"), a_run("wf:2")]
    record(book, *twins)
    for _ in range(2):
        clock.advance(1.2 * DAY)
        record(book)
    book.lookback = 30 * DAY  # as a reload may do
    record(book, *twins)
    assert finished(book) == 2
    book.close()


def test_statuses_without_end_of_runs_that_do_not_count_are_bounded(clock: Clock) -> None:
    book = ledger(None, clock)
    for number in range(100):
        record(book, a_run(f"wf:{number}", f"status {number}", START - 9 * DAY, START - 9 * DAY + 60))
    assert finished(book) == 0
    assert len(totals(book).last_end) <= MAX_STATUSES + 1
    assert totals(book).last_end["other"] == START - 9 * DAY + 60


def test_open_runs_without_end_are_followed_up_to_a_bound_and_count_when_they_end(
    path: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(account, "MAX_OPEN", 5)
    book = ledger(path, clock)
    for number in range(20):
        record(book, a_run(f"wf:{number}", "running", end=None, duration_ms=None))
    assert len(book.agents()[AGENT].open) == 5
    assert [line.getMessage() for line in caplog.records] == [
        "more open runs than one agent can have: further ones are not followed"
    ]
    record(book, a_run("wf:1", "awaiting_human", end=None, duration_ms=None))
    assert book.agents()[AGENT].open["wf:1"].status == "awaiting_human"
    record(book, a_run("wf:1"), a_run("wf:19"))
    assert finished(book) == 2
    book.close()


def test_lines_about_single_runs_are_few_in_a_scrape_however_many_agents_have_them(
    path: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    book = ledger(path, clock)
    for _ in range(2):
        caplog.clear()
        for agent_id in range(100):
            odd = a_run(f"wf:{clock()}", duration_ms=-1)
            book.record(agent_id, reading(odd, malformed=[f"odd {clock()}"], now=clock()))
        book.end_scrape(range(100))
        assert len(caplog.records) == 2 * (account.MAX_LINES + 1)
        clock.advance(60)
    book.close()


def test_an_attempt_that_brings_no_answer_is_noted_until_the_next_answer(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run("wf:1"))
    for now, error in ((0.0, "timeout"), (START + 60, "timeout"), (START + 60, None)):
        clock.advance(60)
        book.record(AGENT, reading(now=now, error=error and ApiError("timeout", "no answer")))
        book.commit()
        assert read_state(path).agents[AGENT].unread is bool(error)
        assert book.agents()[AGENT].last_read == (START if error else clock())
    book.close()


def test_an_open_run_that_ends_without_counting_is_open_no_longer_also_after_a_restart(
    path: str, clock: Clock
) -> None:
    book = ledger(path, clock, shard=(0, 2))  # what ended before the start, another shard may have counted
    record(book, a_run("wf:1", "running", end=None, duration_ms=None), a_run("wf:0", end=START - 1))
    book.commit()
    record(book, a_run("wf:1", end=START - 5))
    book.close()
    state = read_state(path).agents[AGENT]
    assert state.open == {}
    assert finished_in(state) == 0


def test_a_run_from_before_the_lookback_counts_only_when_it_is_known_to_have_ended_since(
    path: str, clock: Clock
) -> None:
    book = ledger(path, clock)
    record(book)
    clock.advance(60)
    old = START - 2 * DAY
    record(
        book,
        a_run("wf:1", start=old, end=None, duration_ms=None),
        a_run("wf:2", start=old, end=START - 5),
        a_run("wf:3", start=old, end=START + 5),
    )
    assert finished(book) == 1
    book.close()


def test_name_and_type_of_an_agent_are_those_of_its_newest_run(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    for name, kind in (("Triage", "workflow"), ("Invoice triage", "agent"), ("", "")):
        newest = msgspec.structs.replace(a_run(), agent_name=name, agent_type=kind)
        book.record(AGENT, reading(newest, now=clock(), newest=newest))
    state = book.agents()[AGENT]
    assert (state.name, state.type) == ("Invoice triage", "agent")
    book.record(AGENT, reading(now=clock(), newest=a_run(start=None)))
    assert book.agents()[AGENT].last_start == START - 100
    book.close()


def test_where_the_api_names_no_end_it_is_the_start_and_the_duration(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book)
    clock.advance(60)
    record(book, a_run(start=START - 2 * DAY, end=None, duration_ms=1000 * (2 * DAY + 30)))
    assert totals(book).last_end == {"completed": START + 30}
    assert finished(book) == 1
    book.close()


@pytest.mark.parametrize("ahead", [30 * DAY, -30 * DAY])
def test_an_end_is_ahead_when_it_is_by_both_clocks(path: str, clock: Clock, ahead: float) -> None:
    book = ledger(path, clock)
    start, end = START + ahead, START + max(ahead, 0.0) - 5
    record(book, a_run("wf:1", start=start, end=end, duration_ms=1), now=START + ahead)
    assert totals(book).last_end == {"completed": end}
    book.close()


@pytest.mark.parametrize(("ahead", "known"), [(0.9 * DAY, True), (1.1 * DAY, False)])
def test_an_end_further_ahead_than_a_day_is_none(path: str, clock: Clock, ahead: float, known: bool) -> None:
    book = ledger(path, clock)
    record(book, a_run("wf:1", "error", end=START + ahead), a_run("wf:2", end=START - 5))
    assert finished(book) == 2
    assert ("error" in totals(book).last_end) is known
    assert len(totals(book).failures) == known
    book.close()


def test_items_that_cannot_be_read_are_told_apart_by_all_of_their_ids(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    for _ in range(2):
        names = [kept_id("w" * length + f":{n}") for length in (210, 300) for n in range(3)]
        book.record(AGENT, reading(now=clock(), malformed=names))
    assert totals(book).missed["malformed"] == 6
    assert not any(map(book.known(AGENT).is_unread, names))
    book.close()


def test_items_that_cannot_be_read_are_remembered_up_to_a_bound_and_that_is_said_once(
    path: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(account, "MAX_MALFORMED", 5)
    for first in (0, 3):  # also over a restart
        book = ledger(path, clock)
        for number in range(first, first + 10):
            book.record(AGENT, reading(malformed=[f"never the same {number}"], now=clock()))
        book.close()
    assert totals(book).missed["malformed"] == 5
    assert len(read_state(path).counted[AGENT]) == 5
    said = [line.getMessage() for line in caplog.records if "more missed runs" in line.getMessage()]
    assert len(said) == 2  # once by each process
    with closing(ledger(path, clock)) as book:
        book.record(AGENT, reading(malformed=["one too many"], now=clock()))
        for _ in range(100):  # until they are forgotten
            clock.advance(DAY)
            record(book)
        book.record(AGENT, reading(malformed=["another"], now=clock()))
        assert totals(book).missed["malformed"] == 6


def test_an_open_run_and_what_becomes_of_it_is_written(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book)
    book.commit()
    for status in ("running", "awaiting_human"):
        record(book, a_run("wf:1", status, end=None, duration_ms=None))
        book.commit()
        assert read_state(path).agents[AGENT].open["wf:1"].status == status
    book.close()


def test_a_trigger_type_of_the_base_is_shown_with_its_value_at_once(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run("wf:1", trigger="carrier pigeon"), a_run("wf:2", trigger=None))
    book.commit()
    by_trigger = book.shown(AGENT)[1].finished["completed"]  # type: ignore[index, union-attr]
    assert (by_trigger["carrier pigeon"], by_trigger["unknown"]) == (1, 1)
    book.close()


def test_what_was_shown_does_not_change_when_more_is_recorded(path: str, clock: Clock) -> None:
    book = ledger(path, clock)
    record(book, a_run("wf:1", "running", end=None, duration_ms=None))
    record(book, a_run("wf:2", "error", end=START - 50))
    shown = book.shown(AGENT)
    assert shown is not None
    before = msgspec.json.encode(shown[0])
    record(book, a_run("wf:1"), a_run("wf:3", "error", end=START - 10))
    assert msgspec.json.encode(shown[0]) == before
    assert finished_in(shown[0]) == 1
    book.close()


def test_what_ends_after_the_clock_of_the_api_stepped_back_counts_whatever_start_it_names(
    path: str, clock: Clock
) -> None:
    book = ledger(path, clock)
    record(book)
    stepped = reading(a_run(start=START - 2 * DAY, end=START - 3590), now=START - 3500)
    stepped.skew = -3600.0
    clock.advance(100)
    book.record(AGENT, stepped)
    assert finished(book) == 1
    book.close()


def test_what_is_much_is_committed_and_shown_in_pieces_of_whole_agents(
    path: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.runs.ledger.PIECE", 100)
    book = ledger(path, clock)
    book.commit()  # what is there by then makes the file
    for agent_id in range(5):
        book.record(agent_id, reading(*(a_run(f"wf:{n}") for n in range(90)), now=clock()))

    def shown() -> int:
        return sum((book.shown(agent_id) or (None, None))[1] is not None for agent_id in range(5))

    assert book.commit_piece()
    assert 0 < shown() < 5
    book.commit()
    assert shown() == 5
    book.close()


def changeable(value: object) -> Iterator[object]:
    """What can be changed of a value, and in it: never empty, else nothing would tell it from another."""
    if isinstance(value, dict | list | set):
        assert value
        yield value
        for each in (*value, *(value.values() if isinstance(value, dict) else ())):
            yield from changeable(each)
    elif isinstance(value, msgspec.Struct) and not value.__struct_config__.frozen:
        yield value
        for name in value.__struct_fields__:
            yield from changeable(getattr(value, name))


def test_totals_that_are_shown_share_nothing_with_those_that_go_on_counting(clock: Clock) -> None:
    book = ledger(None, clock)
    clock.advance(600)
    record(book, a_run("wf:1", end=START + 10), a_run("wf:2", "error", end=START + 20))
    counted = totals(book)
    counted.unshown |= {("error", "api")}
    copied = counted.copied()
    assert copied == counted
    assert len(list(changeable(counted))) > 10
    assert not {*map(id, changeable(counted))} & {*map(id, changeable(copied))}
