"""The one way to read a list of the API page by page."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from exporter.modus.errors import ApiError

LARGEST_PAGE = 100  # items; fewer where such a page is too large
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


class PageSize:
    """The size of the pages of a list: smaller from then on where one is too large to take."""

    def __init__(self) -> None:
        self._size = LARGEST_PAGE

    def ask(self, ask: Callable[[str | None, int], P], token: str | None) -> P:
        """What `ask` answers for the token and a size. Raises what it raises at the smallest one."""
        while True:
            try:
                return ask(token, self._size)
            except ApiError as error:
                if not error.too_large or self._size == 1:
                    raise
                self._size = max(self._size // 4, 1)
