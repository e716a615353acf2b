"""Pages of a list, found by offset or by key, and requests that are refused."""

import base64
import json
from bisect import bisect_left
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item", bound=tuple[Any, ...])


class Refusal(Exception):  # noqa: N818 - not a fault of the program: an answer other than 200
    """What is answered in place of a 200."""

    def __init__(self, status: int, message: str, info: object = None) -> None:
        super().__init__(message)
        self.status, self.info = status, info


class Tokens(NamedTuple):
    """How page tokens are made and taken."""

    kind: str  # offset or key: pages by key do not shift when runs arrive
    life: float  # seconds for which one is taken
    refusal: int  # the status that one which is not taken gets
    forgotten: int  # how often all were forgotten


def page_of(
    items: list[Item], query: dict[str, str], tokens: Tokens, now: float
) -> tuple[list[Item], str | None]:
    """One page of items that begin with their place, read from their end; the token of the next."""
    wanted, end = query.get("pageSize", "25"), len(items)
    if not wanted.isdecimal() or int(wanted) < 1:
        raise Refusal(400, "Invalid value for query parameter `pageSize`.")
    if token := query.get("pageToken"):
        end = _end_of_page(items, token, tokens, now)
    begin = max(0, end - min(int(wanted), 100))
    if begin == 0:
        return items[:end][::-1], None
    place = len(items) - begin if tokens.kind == "offset" else items[begin][0]
    token = json.dumps([place, round(now, 3), tokens.forgotten])
    return items[begin:end][::-1], base64.b64encode(token.encode()).decode()


def _end_of_page(items: list[Item], token: str, tokens: Tokens, now: float) -> int:
    with suppress(ValueError, TypeError):
        place, made_at, forgotten = json.loads(base64.b64decode(token, validate=True))
        if forgotten == tokens.forgotten and now - made_at < tokens.life:
            by_offset = tokens.kind == "offset"
            return max(0, len(items) - int(place)) if by_offset else bisect_left(items, (tuple(place),))
    raise Refusal(tokens.refusal, "Invalid value for query parameter `pageToken`.")
