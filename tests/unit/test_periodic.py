"""Work beside the scrapes: now and then, one at a time, cut off when it is closed."""

import threading

from exporter.deadline import Deadline
from exporter.runs.periodic import PATIENCE, PeriodicWork
from exporter.runs.threads import KeptThreads
from tests.simulation import Clock

HANG = 10.0  # seconds after which a test has failed


class Worker:
    """Work that notes its deadlines, and lasts as long as `goes_on` says."""

    def __init__(self) -> None:
        self.clock = Clock(0.0)
        self.threads = KeptThreads(1, "beside")
        self.work = PeriodicWork(self.threads, self.clock, 100.0)
        self.deadlines: list[Deadline] = []
        self.goes_on = threading.Event()
        self.goes_on.set()

    def begin(self) -> int:
        """Begin it if it is time; returns how often it was done."""
        self.work.begin(self._work)
        return self.done()

    def done(self) -> int:
        over = threading.Event()
        if self.goes_on.is_set():
            assert self.threads.submit(over.set)
            assert over.wait(HANG)
        return len(self.deadlines)

    def _work(self, deadline: Deadline) -> None:
        self.deadlines.append(deadline)
        assert self.goes_on.wait(HANG)


def test_it_is_begun_once_an_interval() -> None:
    worker = Worker()
    done = []
    for seconds in (0.0, 99.0, 1.0, 250.0, 1.0):
        worker.clock.advance(seconds)
        done.append(worker.begin())
    assert done == [1, 1, 2, 3, 3]
    assert {deadline.left() for deadline in worker.deadlines[-1:]} == {PATIENCE - 1}


def test_what_is_put_off_is_begun_later_and_never_sooner() -> None:
    worker = Worker()
    worker.begin()
    worker.work.put_off(1.0)
    worker.clock.advance(99.0)
    assert worker.begin() == 1
    worker.work.put_off(500.0)
    worker.clock.advance(499.0)
    assert worker.begin() == 1
    worker.clock.advance(1.0)
    assert worker.begin() == 2


def test_it_is_not_begun_again_while_it_is_under_way() -> None:
    worker = Worker()
    worker.goes_on.clear()
    worker.begin()
    worker.clock.advance(100.0)
    worker.begin()
    worker.goes_on.set()
    assert worker.done() == 1
    assert not worker.work.is_busy
    assert worker.begin() == 2


def test_closing_cuts_it_off_whether_it_is_under_way_or_about_to_be() -> None:
    worker, other = Worker(), threading.Event()
    assert worker.threads.submit(lambda: other.wait(HANG) and None)  # the thread is busy with something else
    worker.work.begin(worker._work)
    worker.work.close()
    other.set()
    assert worker.done() == 1
    assert worker.deadlines[0].passed()
    worker.clock.advance(100.0)
    assert worker.begin() == 1

    worker = Worker()
    worker.goes_on.clear()
    worker.begin()
    worker.work.close()
    worker.goes_on.set()
    worker.done()
    assert worker.deadlines[0].passed()


def test_what_no_thread_can_do_is_not_under_way() -> None:
    worker = Worker()
    worker.threads.close()
    worker.work.begin(worker._work)
    assert not worker.work.is_busy
