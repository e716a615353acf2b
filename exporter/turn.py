"""Of the threads that read one computes at a time, so that the interpreter is free for others soon."""

import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = 1.0  # seconds in which nobody took a turn: then whoever has it hangs, and others go on without


class Turn:
    """What a thread holds while it computes, and gives up while it waits.

    Without it hundreds of threads may want the interpreter at once, which serves them in turn: whoever else
    wants it, as the web server does, waits for all of them each time. What may block belongs into `wait`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._taken = 0  # turns, ever
        self._own = threading.local()  # `inside`: whether this thread is within the block

    def __enter__(self) -> None:  # noqa: D105 - the class says it
        self._own.inside = True
        self._take()

    def __exit__(self, *_: object) -> None:  # noqa: D105 - the class says it
        self._own.inside = False
        self._give_up()

    def wait(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns, which mostly waits: others compute meanwhile, if this thread takes turns."""
        if not getattr(self._own, "inside", False):
            return work(*args, **kwargs)
        self._give_up()
        try:
            return work(*args, **kwargs)
        finally:
            self._take()

    def sleep(self, seconds: float) -> None:
        """Sleep, and let others compute."""
        self.wait(time.sleep, seconds)

    def _take(self) -> None:
        before = self._taken
        while not self._lock.acquire(timeout=PATIENCE):
            if self._taken == before:
                return
            before = self._taken
        self._taken += 1
        self._holder = threading.get_ident()

    def _give_up(self) -> None:
        if self._holder == threading.get_ident():
            self._holder = None
            self._lock.release()


TURN = Turn()  # of the process, as the interpreter's lock is
