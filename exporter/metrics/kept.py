"""Text that is kept from one exposition to the next: nine agents of ten add up to what they did before."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

Write = Callable[[], str]
TextOf = Callable[[object, Hashable, Write], str]  # of a value that never changes; which text, and its writer


class Kept:
    """The texts that the newest exposition had of values which never change, by their identity."""

    def __init__(self) -> None:
        self._texts: dict[tuple[int, Hashable], tuple[object, str]] = {}

    @contextmanager
    def texts(self) -> Iterator[TextOf]:
        """For one exposition, a function that gives the text of a value, and writes what is not kept.

        What it gave is kept once the block has come to its end, and nothing else.
        """
        before, now = self._texts, {}

        def text_of(value: object, kind: Hashable, write: Write) -> str:
            key = id(value), kind
            found = now[key] = before.get(key) or (value, write())  # it is held, and so is its identity
            return found[1]

        yield text_of
        self._texts = now
