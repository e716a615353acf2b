"""Which files changed since they were read."""

import os

import pytest

from exporter import watch
from exporter.watch import Watched
from tests.e2e.scarce import no_descriptors


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"first")
    return path


def test_a_file_that_stays_has_not_changed(file):
    watched = Watched([str(file)])
    assert not watched.changed()
    assert not watched.changed()


def aged(path):
    """Write the same number of bytes and set the old time of change."""
    then = path.stat().st_mtime_ns
    path.write_bytes(b"other")
    os.utime(path, ns=(then, then))


def replaced(path):
    path.with_name("new").write_bytes(b"first")
    path.with_name("new").replace(path)


@pytest.mark.parametrize(
    "change",
    [lambda path: path.write_bytes(b"longer"), aged, replaced, lambda path: path.unlink()],
    ids=["longer", "the same size and time", "replaced by its like", "gone"],
)
def test_a_change_is_told_once(file, change):
    watched = Watched([str(file)])
    change(file)
    assert [watched.changed(), watched.changed()] == [True, False]


def test_a_file_that_comes_is_a_change(tmp_path):
    watched = Watched([str(tmp_path / "later")])
    assert not watched.changed()
    (tmp_path / "later").touch()
    assert watched.changed()


def test_a_swapped_symlink_is_a_change(tmp_path):
    """Kubernetes mounts a secret as file -> ..data/file, ..data -> ..<date>, and swaps ..data."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("the same")
        os.utime(tmp_path / name / "file", (1, 1))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "file").symlink_to("..data/file")
    watched = Watched()
    assert watched.read(str(tmp_path / "file")) == b"the same"
    (tmp_path / "swap").symlink_to("two")
    (tmp_path / "swap").rename(tmp_path / "..data")
    assert watched.changed()


def test_what_is_read_is_watched_from_before_it_was_read(file):
    watched = Watched()
    assert (watched.read(str(file)), watched.read(str(file), 2)) == (b"first", b"fi")
    assert not watched.changed()
    file.write_bytes(b"second")
    assert watched.changed()


def test_what_could_not_be_read_is_watched_too(tmp_path):
    watched = Watched()
    with pytest.raises(FileNotFoundError):
        watched.read(str(tmp_path / "later"))
    (tmp_path / "later").touch()
    assert watched.changed()


def test_what_could_not_be_read_is_due_again_after_a_while(file, monkeypatch):
    watched = Watched([str(file)])
    assert not watched.due()
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        watched.read(str(file))
    assert not watched.changed()
    assert not watched.due()
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.0)
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        watched.read(str(file))
    assert [watched.due(), watched.due()] == [True, False]


def test_what_changed_meanwhile_is_not_due_as_well(file, monkeypatch):
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.0)
    watched = Watched([str(file)])
    watched.look_again()
    file.write_bytes(b"other")
    assert [watched.changed(), watched.due()] == [True, False]


def test_any_of_several_files_counts(file, tmp_path):
    other = tmp_path / "other"
    other.touch()
    watched = Watched([str(file), str(other)])
    other.write_text("x")
    assert watched.changed()


def test_a_pipe_is_refused_at_once_and_leaves_no_descriptor(tmp_path):
    """Opening one for reading waits for a writer, for ever."""
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="it is not a regular file"):
        Watched().read(str(tmp_path / "pipe"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_name_that_no_file_can_have_is_no_file():
    assert not Watched(["a\0b"]).changed()
