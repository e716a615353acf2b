"""Threads that are kept for later work."""

import logging
import os
import queue
import random
import threading
from collections.abc import Callable
from contextlib import suppress

from exporter.log import described, fields

log = logging.getLogger(__name__)


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
                why = fields(thread=self._name, error=described(error))
                log.error("a thread's work failed", extra=why)
            with self._lock:
                self._waiting += 1


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
