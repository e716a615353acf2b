"""What a program has to do without: threads, file descriptors, a disk that answers, or has room."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

# as if `pthread_create` failed: what Python raises then
THREADS = """
import _thread, threading
def limited(start):
    def start_if_allowed(*args, **options):
        if _thread._count() >= {limit}:
            raise RuntimeError("can't start new thread")
        return start(*args, **options)
    return start_if_allowed
for name in ("_start_new_thread", "_start_joinable_thread"):
    if hasattr(threading, name):
        setattr(threading, name, limited(getattr(threading, name)))
"""
# fsync as the control file says at that moment: microseconds to wait, then whether to fail
FSYNC = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static int as_told(const char *name, int fd) {
    unsigned wait = 0;
    int fails = 0;
    FILE *told = fopen(getenv("FSYNC_CONTROL"), "re");
    if (told) {
        if (fscanf(told, "%u %d", &wait, &fails) < 1) wait = 0;
        fclose(told);
    }
    usleep(wait);
    if (fails) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}
int fsync(int fd) { return as_told("fsync", fd); }
int fdatasync(int fd) { return as_told("fdatasync", fd); }
"""


def few_threads(directory: Path, limit: int, root: str) -> dict[str, str]:
    """The environment of a Python that gets no more than `limit` threads beside its first one."""
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(THREADS.format(limit=limit))
    return {"PYTHONPATH": f"{directory}:{root}"}


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def small_disk(directory: Path, owner: int = 0) -> Iterator[Path]:
    """A disk of 1 MiB at this directory, of this user; without the right to mount the test is skipped."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("a small disk is mounted by root, with mount")
    directory.mkdir()
    options = f"size=1m,mode=700,uid={owner},gid={owner}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {' '.join(done.stderr.split())}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)  # also when a file is left open


@contextmanager
def no_room(directory: Path) -> Iterator[None]:
    """All of its disk is taken."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    yield
    filler.unlink()


class Fsync:
    """How fsync behaves in a program started with `env`; None without a C compiler to make that."""

    def __init__(self, directory: Path, library: Path) -> None:
        self._control = directory / "fsync"
        self.well()
        self.env = {"LD_PRELOAD": str(library), "FSYNC_CONTROL": str(self._control)}

    @classmethod
    def build(cls, directory: Path) -> "Fsync | None":
        """Made in this directory."""
        source, library = directory / "fsync.c", directory / "fsync.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            return None
        source.write_text(FSYNC)
        made = subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"],
            capture_output=True,
            check=False,
        )
        return None if made.returncode else cls(directory, library)

    def well(self) -> None:
        """As the disk is."""
        self._tell(0.0, fails=False)

    def slow(self, seconds: float) -> None:
        """Every call takes so long."""
        self._tell(seconds, fails=False)

    def failing(self) -> None:
        """Every call is EIO."""
        self._tell(0.0, fails=True)

    def _tell(self, seconds: float, *, fails: bool) -> None:
        new = self._control.with_suffix(".new")
        new.write_text(f"{round(seconds * 1e6)} {int(fails)}\n")
        new.replace(self._control)
