"""Work that holds no thread while it waits: a generator that yields what it waits for."""

import concurrent.futures
from collections.abc import Generator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
# yields a future and how many seconds to wait for it at most, done or not; returns its result
Waits = Generator[tuple["Future[None]", float], None, T]


def waited(waits: Waits[T]) -> T:
    """What `waits` returns, or raises, once it has waited in this thread."""
    while True:
        try:
            future, seconds = next(waits)
        except StopIteration as end:
            result: T = end.value
            return result
        concurrent.futures.wait([future], seconds)
