"""The one way to read a list of the API page by page."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from exporter.modus.errors import ApiError

MAX_FRUITLESS = 10  # pages in a row that bring nothing new; pages that shift repeat a few items


class Page(Protocol):
    """A page of the API: its items' ids, and the token of the page behind it (None on the last)."""

    @property
    def ids(self) -> Iterable[object]: ...  # noqa: D102 - the class says it
    @property
    def next_page_token(self) -> str | None: ...  # noqa: D102


P = TypeVar("P", bound=Page)


def pages(ask: Callable[[str | None], P], token: str | None = None) -> Iterator[P]:
    """The pages from `token` on (None: the first one) until the last, as `ask` answers for their tokens.

    Raises what `ask` raises, and ApiError `bad_response` for a list that never ends: its page tokens
    repeat, or its pages bring nothing new.
    """
    tokens: set[str | None] = {token}
    met: set[object] = set()
    fruitless = 0
    while True:
        page = ask(token)
        yield page
        token = page.next_page_token
        if token is None:
            return
        if token in tokens:
            raise ApiError("bad_response", "the page token repeats: the list never ends")
        tokens.add(token)
        ids = set(page.ids)
        fruitless = fruitless + 1 if ids <= met else 0
        met |= ids
        if fruitless >= MAX_FRUITLESS:
            raise ApiError(
                "bad_response", f"{fruitless} pages in a row brought nothing new: the list never ends"
            )
