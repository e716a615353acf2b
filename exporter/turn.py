"""Of the threads that read one computes at a time, so that the interpreter is free for others soon."""

import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = 1.0  # seconds after which a thread computes out of turn: whoever has it may hang


class Turn:
    """What a thread holds while it computes, and gives up while it waits.

    Without it hundreds of threads may want the interpreter at once, which serves them in turn: whoever else
    wants it, as the web server does, waits for all of them each time. What may block belongs into `wait`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def __enter__(self) -> None:  # noqa: D105 - the class says it
        if self._lock.acquire(timeout=PATIENCE):
            self._holder = threading.get_ident()

    def __exit__(self, *_: object) -> None:  # noqa: D105 - the class says it
        if self._holder == threading.get_ident():
            self._holder = None
            self._lock.release()

    def wait(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns, which mostly waits: others compute meanwhile, if this thread has the turn."""
        if self._holder != threading.get_ident():
            return work(*args, **kwargs)
        self.__exit__()
        try:
            return work(*args, **kwargs)
        finally:
            self.__enter__()

    def sleep(self, seconds: float) -> None:
        """Sleep, and let others compute."""
        self.wait(time.sleep, seconds)


TURN = Turn()  # of the process, as the interpreter's lock is
