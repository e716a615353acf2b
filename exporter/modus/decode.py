"""From the bytes of an answer to values, item by item: one that is odd costs itself, never its page.

What is sound is decoded typed and at once. Only a page that is not goes the long way, in bounded size and
time: the interpreter runs nothing else while it parses.
"""

import hashlib
import json
import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec

from exporter.modus.errors import BodyTooLargeError
from exporter.modus.model import (
    LARGEST_ID,
    LONGEST_ID,
    LONGEST_LABEL,
    LONGEST_TIME,
    LONGEST_TOKEN,
    OPEN_STATUSES,
    TERMINAL_STATUSES,
    TOTAL_COUNT,
    Agent,
    AgentsPage,
    Label,
    Run,
    RunDetails,
    Variation,
    kept_id,
)

USUAL = 2048  # bytes of an item; a page of no more than this for each is decoded before its items are counted
MOST_COMMAS = 250_000  # of a larger page: what lies between two of them can be an object each
TOLERANT = 1 << 20  # bytes that may be decoded tolerantly: some hundredths of a second
MOST_COUNTS = 64  # of one page; of more than these only the documented ones are kept
LARGEST_COUNT = 2**53

Page = TypeVar("Page", "RunItems", AgentsPage)
Item = TypeVar("Item", Run, RunDetails, Agent)
Token = Annotated[str, msgspec.Meta(max_length=LONGEST_TOKEN)]


class RunItems(msgspec.Struct, rename="camel", gc=False):
    """What a page of runs holds; `malformed` names the items that could not be read."""

    runs: list[Run]
    counts: dict[Label, Annotated[int, msgspec.Meta(ge=0, le=LARGEST_COUNT)]] = {}
    next_page_token: Token | None = None
    malformed: list[str] = []


class _RawItems(msgspec.Struct, rename="camel"):
    runs: list[msgspec.Raw] = []
    agents: list[msgspec.Raw] = []
    counts: msgspec.Raw = msgspec.Raw(b"null")
    next_page_token: msgspec.Raw = msgspec.Raw(b"null")


class _RawRuns(_RawItems):
    runs: list[msgspec.Raw] | None = None  # type: ignore[assignment]


class _RawAgents(_RawItems, kw_only=True):
    agents: list[msgspec.Raw]


_RUNS = msgspec.json.Decoder(RunItems)
_AGENTS = msgspec.json.Decoder(AgentsPage)
_RUN = msgspec.json.Decoder(Run)
_DETAILS = msgspec.json.Decoder(RunDetails)
_AGENT = msgspec.json.Decoder(Agent)
_RAW_RUNS = msgspec.json.Decoder(_RawRuns)
_RAW_AGENTS = msgspec.json.Decoder(_RawAgents)


def runs_page(body: bytes, page_size: int) -> RunItems:
    """A page of at most `page_size` runs.

    Raises ValueError when it is none, and BodyTooLargeError when a smaller one might do.
    """
    page = _typed(body, page_size, _RUNS)
    if page is not None and not page.malformed and len(page.counts) <= MOST_COUNTS:
        _check(len(page.runs), page_size, "runs")
        return page
    raw = _raw(body, page_size, _RAW_RUNS)
    counts = _counts(raw.counts)
    if raw.runs is None and TOTAL_COUNT not in counts:
        raise ValueError("no runs, and no count of them")
    items = raw.runs or []
    _check(len(items), page_size, "runs")
    runs, malformed = _each(items, _RUN, _loose_run)
    return RunItems(runs, counts, _token(raw.next_page_token), malformed)


def agents_page(body: bytes, page_size: int) -> AgentsPage:
    """A page of at most `page_size` agents. Raises as `runs_page` does."""
    page = _typed(body, page_size, _AGENTS)
    if page is not None and not page.malformed:
        _check(len(page.agents), page_size, "agents")
        return AgentsPage(page.agents, page.next_page_token or None)
    raw = _raw(body, page_size, _RAW_AGENTS)
    _check(len(raw.agents), page_size, "agents")
    agents, malformed = _each(raw.agents, _AGENT, _loose_agent)
    return AgentsPage(agents, _token(raw.next_page_token), malformed)


def one_run(body: bytes) -> RunDetails:
    """One run by itself. Raises ValueError when it is none."""
    runs, malformed = _each([msgspec.Raw(body)], _DETAILS, _loose_details)
    if malformed:
        raise ValueError("this is no run: it has no usable id and status")
    return runs[0]


def _typed(body: bytes, page_size: int, decoder: "msgspec.json.Decoder[Page]") -> Page | None:
    """The page decoded at once; None for one that is odd, or too large for that before it is looked at."""
    if len(body) > (page_size + 32) * USUAL:
        return None
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError):
        return None


def _raw(body: bytes, page_size: int, decoder: "msgspec.json.Decoder[Any]") -> Any:
    """The page with its items undecoded. Raises ValueError."""
    if len(body) > (page_size + 32) * USUAL and body.count(b",") > MOST_COMMAS:
        raise BodyTooLargeError(f"an answer of more than {MOST_COMMAS} values")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError:
        raise
    except ValueError:
        pass
    return decoder.decode(sound(body))


def sound(body: bytes) -> bytes:
    """The same as JSON that any decoder takes. Raises ValueError, and BodyTooLargeError beyond TOLERANT."""
    return json.dumps(_tolerant(body), ensure_ascii=False).encode("utf-8", "replace")


def _tolerant(body: bytes) -> Any:
    """JSON of any kind: NaN, Infinity and numbers beyond all bounds read as null. Raises ValueError."""
    if len(body) > TOLERANT:
        raise BodyTooLargeError(f"no sound JSON, and more than {TOLERANT} bytes of it")
    text = body.decode("utf-8", "replace")
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_int=_integer, parse_float=_finite)
    except RecursionError:
        raise ValueError("JSON nested without end") from None


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) < 20 else None


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _check(number: int, page_size: int, what: str) -> None:
    if number > page_size:
        raise ValueError(f"{number} {what} on a page of {page_size}")


def _each(
    raw: list[msgspec.Raw],
    decoder: "msgspec.json.Decoder[Item]",
    loose: Callable[[dict[str, Any]], Item | None],
) -> tuple[list[Item], list[str]]:
    """The items that can be read, and the names of those that cannot."""
    items, malformed = [], []
    for each in raw:
        try:
            items.append(decoder.decode(each))
            continue
        except (ValueError, RecursionError):
            pass
        body, item = bytes(each), None
        try:
            values = _tolerant(body)
        except ValueError:
            values = None
        if isinstance(values, dict):
            item = loose(values)
        if item is not None:
            items.append(item)
        else:
            id_ = _run_id(values.get("id")) if isinstance(values, dict) else None
            malformed.append(id_ or hashlib.blake2b(body, digest_size=8).hexdigest())
    return items, malformed


def _loose_run(values: dict[str, Any]) -> Run | None:
    """A run of which only id and status have to be usable."""
    id_, status = _run_id(values.get("id")), _label(values.get("status"))
    if not id_ or not status:
        return None
    return Run(
        id=id_,
        workflow_id=_id(values.get("workflowId")) or id_.partition(":")[0] or id_,
        status=status,
        agent_name=_label(values.get("agentName")) or "",
        agent_type=_label(values.get("agentType")) or "",
        temporal_run_id=_id(values.get("temporalRunId")),
        trigger_type=_label(values.get("triggerType")),
        started_at=_time(values.get("startedAt")),
        ended_at=_time(values.get("endedAt")),
        duration_ms=_number(values.get("durationMs")),
    )


def _loose_details(values: dict[str, Any]) -> RunDetails | None:
    run = _loose_run(values)
    if run is None:
        return None
    reason, error = _label(values.get("statusReason")), _text(values.get("taskError"))
    return run.explained(reason, error)


def _loose_agent(values: dict[str, Any]) -> Agent | None:
    """An agent of which only the id has to be usable."""
    id_ = _whole(values.get("id"), LARGEST_ID)
    if id_ is None:
        return None
    labels = {key: _label(values.get(key)) or "" for key in ("name", "slug", "type", "status")}
    enabled, variation = values.get("isEnabled"), values.get("variation")
    return Agent(
        id_,
        **labels,
        deleted_at=_time(values.get("deletedAt")),
        is_enabled=enabled if isinstance(enabled, bool) else None,
        updated_at=_time(values.get("updatedAt")),
        variation=Variation(variation.get("trigger")) if isinstance(variation, dict) else None,
    )


def _counts(raw: msgspec.Raw) -> dict[str, int]:
    """The counts that are whole numbers; missing or of another kind they are none at all."""
    try:
        values = _tolerant(bytes(raw))
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    if len(values) > MOST_COUNTS:
        documented = (TOTAL_COUNT, *OPEN_STATUSES, *TERMINAL_STATUSES)
        values = {name: values[name] for name in documented if name in values}
    counts = {_label(name) or "": _whole(number, LARGEST_COUNT) for name, number in values.items()}
    return {name: number for name, number in counts.items() if number is not None}


def _token(raw: msgspec.Raw) -> str | None:
    """The token of the page behind; none where the value says no in whatever way. Raises ValueError."""
    value = _tolerant(bytes(raw))
    return msgspec.convert(value, Token) if value else None


def _text(value: object) -> str | None:
    """Text that can be encoded: lone surrogates become question marks."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _id(value: object) -> str | None:
    text = _text(value)
    return text if text and len(text) <= LONGEST_ID else None


def _run_id(value: object) -> str | None:
    text = _text(value)
    return kept_id(text) if text else None


def _label(value: object) -> str | None:
    return _text(value[:LONGEST_LABEL]) if isinstance(value, str) else None


def _time(value: object) -> str | None:
    text = _text(value)
    return text if text and len(text) <= LONGEST_TIME else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: object, largest: int) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() and 0 <= number <= largest else None
