"""The state file: whose it is, who may write it, and what happens when it breaks."""

import hashlib
import json
import logging
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from exporter.runs.ledger import Ledger
from exporter.runs.store import LedgerError, read_state
from tests.simulation import START, Clock
from tests.unit.test_ledger import AGENT, a_run, finished, ledger, record


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "state.db")


@pytest.fixture
def book(path: str, clock: Clock) -> Ledger:
    book = ledger(path, clock)
    record(book, a_run("wf:1"))
    book.commit()
    return book


def test_a_second_process_is_refused_with_one_line_that_names_the_file(
    book: Ledger, path: str, clock: Clock
) -> None:
    with pytest.raises(LedgerError) as refused:
        ledger(path, clock)
    assert str(refused.value).startswith(f"{path}: in use by another process")
    book.close()
    ledger(path, clock).close()


def test_the_file_is_in_use_under_its_other_name_too(book: Ledger, path: str, clock: Clock) -> None:
    other_name = Path(path).with_name("link.db")
    other_name.symlink_to(path)
    with pytest.raises(LedgerError, match=r"link\.db: in use by another process"):
        ledger(str(other_name), clock)
    book.close()


def test_what_is_no_regular_file_is_refused_and_stays_as_it_is(tmp_path: Path, clock: Clock) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o644)
    pipe.chmod(0o644)
    for path in (pipe, tmp_path):
        before = path.stat().st_mode
        with pytest.raises(LedgerError, match=r"not a regular file; check state\.path$"):
            ledger(str(path), clock)
        assert path.stat().st_mode == before
    assert list(tmp_path.iterdir()) == [pipe]


def test_the_file_can_be_read_beside_its_writer(book: Ledger, path: str) -> None:
    assert read_state(path).counted == {AGENT: {"wf:1": START - 70}}
    record(book, a_run("wf:2"))
    book.commit()
    assert len(read_state(path).counted[AGENT]) == 2
    book.close()


def test_an_empty_file_is_a_new_one(path: str, clock: Clock) -> None:
    Path(path).parent.mkdir()
    Path(path).touch()
    ledger(path, clock).close()
    assert read_state(path).agents == {}


def test_another_programs_file_is_refused_and_left_alone(path: str, clock: Clock) -> None:
    Path(path).parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = Path(path).read_bytes()
    with pytest.raises(LedgerError, match="not a state file of modus-exporter"):
        ledger(path, clock)
    assert Path(path).read_bytes() == before


def test_a_file_that_was_never_ours_is_not_moved_even_when_it_is_no_database(path: str, clock: Clock) -> None:
    Path(path).parent.mkdir()
    Path(path).write_text("my shopping list, longer than a header of SQLite would be\n" * 40)
    with pytest.raises(LedgerError, match="not usable as state file"):
        ledger(path, clock)
    assert Path(path).exists()


def test_a_newer_file_is_refused(book: Ledger, path: str, clock: Clock) -> None:
    book.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
        newer = json.loads(db.execute("SELECT state FROM meta").fetchone()[0]) | {"version": 99}
        content = json.dumps(newer).encode()
        checksum = hashlib.blake2b(content, digest_size=8, key=b"0").digest()
        db.execute("UPDATE meta SET state = ?, checksum = ?", (content, checksum))
        db.commit()
    with pytest.raises(LedgerError, match="newer modus-exporter"):
        ledger(path, clock)


def test_whatever_byte_of_the_file_is_wrong_it_is_set_aside_or_read_as_it_was_written(
    book: Ledger, path: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    record(book, *(a_run(f"wf:{n}", end=START - 60 + n / 100) for n in range(300)))
    book.close()
    whole, expected = Path(path).read_bytes(), read_state(path)
    chance, state = random.Random(1), whole.index(b'{"totals":')  # noqa: S311 - repeatable on purpose
    places = {
        *range(100),
        *chance.sample(range(len(whole)), 300),
        *chance.sample(range(state, state + 500), 100),
    }
    for place in sorted(places):
        damaged = bytearray(whole)
        damaged[place] ^= chance.choice((0x01, 0xFF))  # of which the first often makes another number
        Path(path).write_bytes(damaged)
        caplog.clear()
        with closing(ledger(path, clock)) as again:
            found = again.agents()
        if found:
            assert found == expected.agents, place
            assert not caplog.records, place
        else:
            assert [entry.message for entry in caplog.records] == [
                "the state file is corrupt and was moved aside: a fresh one begins"
            ], place
        for left in Path(path).parent.glob("state.db*"):
            if left.suffix != ".lock":
                left.unlink()


@pytest.mark.parametrize("size", [0, None])
def test_a_file_that_was_deleted_or_emptied_while_nobody_looked_is_one_line(
    book: Ledger, path: str, clock: Clock, caplog: pytest.LogCaptureFixture, size: int | None
) -> None:
    book.close()
    if size is None:
        Path(path).unlink()
    else:
        os.truncate(path, size)
    ledger(path, clock).close()
    assert [entry.message for entry in caplog.records] == [
        "the state file was deleted or emptied while no exporter ran: counting begins anew"
    ]


def test_a_total_that_somebody_edited_is_told(book: Ledger, path: str, clock: Clock) -> None:
    book.close()
    with closing(sqlite3.connect(path)) as db, db:
        (state,) = db.execute("SELECT state FROM agent").fetchone()
        db.execute("UPDATE agent SET state = ?", (state.replace(b'"schedule":1', b'"schedule":2'),))
    with pytest.raises(LedgerError, match="not what was written"):
        read_state(path)


def test_only_its_owner_may_read_the_file(book: Ledger, path: str, clock: Clock) -> None:
    book.close()
    assert Path(path).stat().st_mode & 0o777 == 0o600
    Path(path).chmod(0o644)  # as earlier versions left it
    ledger(path, clock).close()
    assert Path(path).stat().st_mode & 0o777 == 0o600


def test_the_write_ahead_log_stays_small(path: str, clock: Clock) -> None:
    with closing(ledger(path, clock)) as book:
        record(book, *(a_run(f"wf:{n:0200}") for n in range(30_000)))
        book.commit()
        record(book, a_run("one more"))
        book.commit()
        assert Path(f"{path}-wal").stat().st_size <= 4 << 20


def test_nothing_is_written_when_nothing_changed(book: Ledger, path: str, clock: Clock) -> None:
    record(book, a_run("wf:1"))
    book.commit()
    before = Path(f"{path}-wal").stat()
    clock.advance(60)
    record(book, a_run("wf:1"))
    book.commit()
    after = Path(f"{path}-wal").stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    book.close()


@pytest.mark.parametrize("at", [0, 4096])
def test_a_corrupt_file_is_moved_aside_and_a_fresh_one_begins(
    book: Ledger, path: str, clock: Clock, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    book.close()
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(os.urandom(3000))
    with caplog.at_level(logging.ERROR):
        fresh = ledger(path, clock)
    assert fresh.agents() == {}
    assert len(caplog.records) == 1
    aside = [name for name in os.listdir(Path(path).parent) if ".corrupt-" in name]
    assert aside == ["state.db.corrupt-20260921T141320Z"]
    record(fresh, a_run("wf:1"))
    fresh.close()
    assert read_state(path).counted[AGENT].keys() == {"wf:1"}


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match=r"cannot be opened: .*; check state.path"):
        ledger(str(tmp_path / "file" / "state.db"), clock)


def test_a_file_deleted_under_us_is_written_again_whole(book: Ledger, path: str, clock: Clock) -> None:
    for name in os.listdir(Path(path).parent):
        if not name.endswith(".lock"):
            os.unlink(Path(path).parent / name)
    record(book, a_run("wf:2"))
    book.commit()
    assert book.up
    assert read_state(path).counted[AGENT].keys() == {"wf:1", "wf:2"}
    book.close()


def test_a_commit_after_the_end_leaves_the_file_to_who_has_it_now(
    book: Ledger, path: str, clock: Clock
) -> None:
    book.close()
    with closing(ledger(path, clock)) as later:
        record(later, a_run("wf:2"))
        later.commit()
        record(book, a_run("wf:3"))
        book.commit()
        assert read_state(path).counted[AGENT].keys() == {"wf:1", "wf:2"}


def test_a_file_replaced_by_garbage_while_we_run_ends_with_our_state_on_disk(
    book: Ledger, path: str, clock: Clock
) -> None:
    for suffix in ("-wal", "-shm"):
        os.unlink(path + suffix)
    os.unlink(path)
    Path(path).write_bytes(os.urandom(8192))
    for number in (2, 3, 4):
        record(book, a_run(f"wf:{number}"))
        book.commit()
        clock.advance(1)
    assert book.up
    assert finished(book) == 4
    book.close()
    assert len(read_state(path).counted[AGENT]) == 4


def test_who_has_the_file_open_beside_us_goes_on_seeing_what_we_write(book: Ledger, path: str) -> None:
    other = sqlite3.connect(path)
    with other:
        other.execute("UPDATE counted SET over = over + 1")  # noticed: the file is written again whole
    for number in (2, 3):
        record(book, a_run(f"wf:{number}"))
        book.commit()
        assert book.up
        assert other.execute("SELECT count(*) FROM counted").fetchone() == (number,)
    other.close()
    book.close()
    assert read_state(path).counted[AGENT].keys() == {"wf:1", "wf:2", "wf:3"}


def test_a_failing_disk_loses_nothing_and_counts_nothing_twice(
    book: Ledger, path: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The database is locked by another writer: to SQLite a failure to write like any other."""
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.INFO):
        for number in (2, 3):
            record(book, a_run(f"wf:{number}"))
            book.commit()
            assert not book.up
            if book._store._db:  # type: ignore[union-attr]
                assert finished(book) == 3
        other.rollback()
        other.close()
        book.commit()
    assert book.up
    assert [entry.levelname for entry in caplog.records] == ["ERROR", "INFO"]
    book.close()
    again = ledger(path, clock)
    record(again, *(a_run(f"wf:{number}") for number in (1, 2, 3)))
    assert finished(again) == 3
    again.close()


def test_a_commit_waits_for_the_disk(path: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        database = connect(*args, **options)
        database.set_trace_callback(statements.append)
        return database

    monkeypatch.setattr(sqlite3, "connect", traced)
    ledger(path, clock).close()
    assert {"PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"} <= set(statements)
