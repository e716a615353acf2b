"""What a program that is started has to do without: threads that the system refuses, a disk that answers."""

import shutil
import subprocess
from pathlib import Path

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
