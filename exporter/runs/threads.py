"""Threads that are kept for later work, and a commit that holds nobody up longer than they can wait."""

import concurrent.futures
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from exporter.log import described, fields

if TYPE_CHECKING:  # handed in
    from exporter.runs.ledger import Ledger

log = logging.getLogger(__name__)

SLOW = 1.0  # seconds after which a commit that is under way counts as one that hangs


class KeptThreads:
    """At most `limit` threads, started as they are needed.

    Where the system refuses more, those that are there do the work; the first starts at once, so that one is
    there. They are kept: a new one each time would leave memory of its own behind. They end with the process.
    """

    def __init__(self, limit: int, name: str, cpu: int | None = None) -> None:
        self._limit = limit
        self._name = name
        self._cpu = cpu
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._waiting = 0  # threads without work, less work without a thread
        self._start()

    def submit(self, work: Callable[[], None]) -> bool:
        """Have a thread do `work`, which must not raise; False when there is none to do it."""
        with self._lock:
            if self._waiting <= 0 and self._started < self._limit:
                self._start()
            if not self._started:
                return False
            self._waiting -= 1
        self._work.put(work)
        return True

    def close(self) -> None:
        """Let the threads end when their work is done; no more is taken."""
        with self._lock:
            for _ in range(self._started):
                self._work.put(None)
            self._limit = self._started = 0

    def _start(self) -> None:
        with suppress(RuntimeError):  # the system has no thread for us: slower, not wrong
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
            self._started += 1
            self._waiting += 1

    def _run(self) -> None:
        stay_on_cpu(self._cpu)
        while work := self._work.get():
            try:
                work()
            except Exception as error:  # the thread is needed for what comes next
                text = described(error)
                log.error("a thread's work failed", extra=fields(thread=self._name, error=text))
            with self._lock:
                self._waiting += 1


class Committer:
    """Commits of the ledger, in a thread of their own."""

    def __init__(self, ledger: "Ledger", monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._monotonic = monotonic
        self._thread = KeptThreads(1, "commit")
        self._lock = threading.Lock()
        self._asked: Future[None] | None = None  # the next commit, of what is recorded until it begins
        self._began: float | None = None  # of the piece that is under way
        self._failed = False  # the newest one, in a way that nobody foresaw
        self._told = False  # that commits hang
        self.took = 0.0  # seconds, the newest piece that was written

    def request(self) -> "Future[None]":
        """Have all that was recorded so far committed; what is returned is done when it was, well or not."""
        with self._lock:
            asked = self._asked = self._asked or Future()
            busy = self._began is not None
            if not busy:
                self._began = self._monotonic()
        if not busy and not self._thread.submit(self._commit):
            self._commit()
        return asked

    def tell_if_slow(self) -> None:
        """Say once that a commit hangs, if it does: somebody could not wait for it any longer."""
        with self._lock:
            if self._hangs and not self._told:
                self._told = True
                slow = "the state is written slowly: what is shown is as of the last commit that ended"
                log.error(slow, extra=fields(path=self._ledger.place))

    @property
    def up(self) -> bool:
        """Whether commits succeed, and no piece has been under way for longer than any should take."""
        with self._lock:
            return self._ledger.up and not self._failed and not self._hangs

    def close(self, patience: float) -> bool:
        """Commit the rest, and whether that was done in so many seconds; then the thread ends."""
        commit = self.request()
        concurrent.futures.wait([commit], patience)
        self._thread.close()
        return commit.done()

    @property
    def _hangs(self) -> bool:
        return self._began is not None and self._monotonic() - self._began > SLOW

    def _commit(self) -> None:
        while True:
            with self._lock:
                asked, self._asked = self._asked, None
                if asked is None:
                    self._began = None
                    return
            while self._commit_piece():
                pass
            asked.set_result(None)

    def _commit_piece(self) -> bool:
        """Commit a piece; returns whether there is more."""
        with self._lock:
            self._began = began = self._monotonic()
        more, failure = False, ""
        try:
            more = self._ledger.commit_piece()
        except Exception as error:  # who waits must not wait for ever
            failure = described(error)
            log.error("a commit failed", extra=fields(path=self._ledger.place, error=failure))
        with self._lock:
            self._failed = bool(failure)
            self.took = self._monotonic() - began if more or failure else self.took
            if self._told and self._monotonic() - began <= SLOW:
                self._told = False
                log.info("the state is written in time again", extra=fields(path=self._ledger.place))
        return more


def any_cpu() -> int | None:
    """One of the CPUs that this process may use; None where the system does not say which."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return random.choice(sorted(os.sched_getaffinity(0)))  # noqa: S311 - by chance: shards shall spread


def stay_on_cpu(cpu: int | None) -> None:
    """Keep this thread on one CPU, as all that read: the interpreter runs one at a time anyway.

    Handing its lock from CPU to CPU costs a fifth of the reading's CPU or more (benchmarks/RESULTS.md). Nor
    does a thread that wakes up there drive out the one that computes (SCHED_BATCH): it would wait for that.
    """
    if cpu is not None:
        with suppress(OSError):  # a sandbox forbids it, or the CPU was taken away: dearer, not wrong
            os.sched_setaffinity(0, {cpu})
            if hasattr(os, "SCHED_BATCH"):  # Linux
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
