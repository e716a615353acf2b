"""One call of the API and its answer, as values: from what is asked for to what that holds, or a fault."""

from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

from exporter.modus.errors import BodyTooLargeError, Fault, excerpt, refusal
from exporter.modus.secret import Secret

Decoded = TypeVar("Decoded")


class Call(NamedTuple, Generic[Decoded]):
    """What is asked for, and what is to be made of the answer."""

    operation: str
    suffix: str  # of the route
    decode: Callable[[bytes], Decoded]
    most: int  # bytes of the answer
    agent_id: int  # -1: none
    route: str | None = None  # None: that of agents, whichever works


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    now: float  # the API's clock, Unix seconds
    skew: float  # by how much it is ahead of ours, seconds
    silenced: bool  # it asked for silence


def read(answer: Answer, call: "Call[Decoded]", secret: Secret) -> "tuple[Decoded, Answer] | Fault":
    """What the answer holds, or why it is of no use."""
    if answer.status != 200:
        fault = refusal(answer.status, answer.headers, answer.body, secret)
        return fault._replace(
            status=answer.status, transient=fault.reason == "server_error" and not answer.silenced
        )
    try:
        return call.decode(answer.body), answer
    except (ValueError, RecursionError) as exc:
        text = f"{secret.quoted(str(exc))}: {excerpt(answer.headers, answer.body, secret)}"
        return Fault("bad_response", text, status=200, too_large=isinstance(exc, BodyTooLargeError))
