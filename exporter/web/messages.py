"""What a handler gets and gives: requests and responses as plain values."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """One request; no page reads a body."""

    method: str
    path: str  # percent-decoded, without the query; empty when the target has none
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case; of several the first
    client: str = ""  # its IP address; empty on a Unix socket


@dataclass(frozen=True)
class Response:
    """One answer, whole: all who get the same one share its body."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]


def text(body: str, status: int = 200, **headers: str) -> Response:
    """An answer in plain text; in the names of headers _ stands for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(body.encode(), status, {"Content-Type": "text/plain; charset=utf-8"} | named)


class HTTPError(Exception):
    """Raised by a handler to answer with `response` instead."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


def too_busy() -> HTTPError:
    """The 503 for whoever finds all places taken."""
    return HTTPError(text("too many requests at once\n", 503, Retry_After="1"))


def too_late() -> HTTPError:
    """The 503 for whoever has no time left when his turn comes."""
    return HTTPError(text("the time for the scrape was over before it began\n", 503, Retry_After="1"))
