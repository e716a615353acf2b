"""The state file: whose it is, who may write it, and what happens when it breaks."""

import logging
import os
import sqlite3
from pathlib import Path

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


def test_the_file_can_be_read_beside_its_writer(book: Ledger, path: str) -> None:
    assert read_state(path).counted == {AGENT: {"wf:1": START - 100}}
    record(book, a_run("wf:2"))
    book.commit()
    assert len(read_state(path).counted[AGENT]) == 2
    book.close()


def test_an_empty_file_is_a_new_one(path: str, clock: Clock) -> None:
    Path(path).parent.mkdir()
    Path(path).touch()
    ledger(path, clock).close()
    assert read_state(path).accounts == {}


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
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LedgerError, match="newer modus-exporter"):
        ledger(path, clock)


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
    assert fresh.accounts == {}
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
        other.execute("UPDATE counted SET start = start + 1")  # noticed: the file is written again whole
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
    book._file._db.execute("PRAGMA busy_timeout = 0")  # type: ignore[union-attr]
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.INFO):
        for number in (2, 3):
            record(book, a_run(f"wf:{number}"))
            book.commit()
            assert not book.up
            if book._file._db:  # type: ignore[union-attr]
                book._file._db.execute("PRAGMA busy_timeout = 0")  # type: ignore[union-attr]
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


def test_the_commit_is_durable(book: Ledger) -> None:
    database = book._file._db  # type: ignore[union-attr]
    assert database is not None
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)
    book.close()
