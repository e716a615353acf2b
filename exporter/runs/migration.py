"""State files of version 0.1.0 (schema 1): read once, then written anew in today's schema."""

import math
import sqlite3
from collections import defaultdict

import msgspec

from exporter.histogram import Exemplar, Histogram
from exporter.modus.model import kept_id
from exporter.runs.ids import CountedIds, add_checksum
from exporter.runs.state import AgentState, Backlog, Corruption, Meta, OpenRun, State, Totals, Watermark


class _Exemplar(msgspec.Struct):
    run_id: str
    duration: float
    end: float


class _Totals(msgspec.Struct):
    created: float
    durations_created: float
    buckets: list[int]
    exemplars: list[_Exemplar | None]
    duration_sum: float = 0.0
    finished: dict[str, dict[str, int]] = {}
    last_end: dict[str, float] = {}


class _Gap(msgspec.Struct, frozen=True):
    floor: float
    size: int
    token: str | None = None
    pages: int = 0
    since: float | None = None


class _Cursor(msgspec.Struct, frozen=True):
    newest: float | None = None
    first_seen: float = 0.0
    floor: float | None = None
    gaps: tuple[_Gap, ...] = ()


class _Account(msgspec.Struct):
    totals: _Totals
    name: str = ""
    type: str = ""
    cursor: _Cursor = _Cursor()
    open: dict[str, OpenRun] = {}
    opens_listed: bool = False
    ended_after: float | None = None
    horizon: float = 0.0
    last_start: float | None = None
    last_read: float | None = None
    unread: bool = False


def read_version_1(db: sqlite3.Connection) -> State:
    """All that a file of schema 1 holds, in today's values. Raises Corruption, and what SQLite raises.

    That schema knew runs by their starts only and forgot them by these. So an id that is kept counts as over
    at the file's newest commit, and a run from before the forgotten ones counts only when it ended after it.
    """
    row = db.execute("SELECT state FROM meta").fetchone()
    if row is None:
        raise Corruption("it is empty")
    meta = msgspec.json.decode(row[0], type=Meta)
    counted: defaultdict[int, CountedIds] = defaultdict(CountedIds)
    for agent_id, run_id, start in db.execute("SELECT agent_id, run_id, start FROM counted"):
        counted[agent_id].add(kept_id(run_id), max(min(start, 1e12), meta.written))
    agents = {
        agent_id: _state(msgspec.json.decode(state, type=_Account), counted[agent_id], meta)
        for agent_id, state in db.execute("SELECT agent_id, state FROM account")
    }
    return State(meta, agents, counted)


def _state(account: _Account, counted: CountedIds, meta: Meta) -> AgentState:
    old, cursor = account.totals, account.cursor
    exemplars = [Exemplar(each.run_id, each.duration, each.end) if each else None for each in old.exemplars]
    durations = Histogram(old.buckets, old.durations_created, old.duration_sum, exemplars)
    checksum = 0
    for run_id, over in counted.items():
        checksum = add_checksum(checksum, run_id, over)
    finished = sum(sum(by_trigger.values()) for by_trigger in old.finished.values())
    gaps = tuple(Backlog(gap.floor, gap.size, gap.token, gap.pages, gap.since) for gap in cursor.gaps)
    return AgentState(
        Totals(old.created, durations, old.finished, last_end=old.last_end),
        base=max(old.created, math.nextafter(account.horizon, math.inf)),
        watched_since=meta.written,
        name=account.name,
        type=account.type,
        watermark=Watermark(cursor.newest, cursor.first_seen, cursor.floor, backlogs=gaps),
        open={kept_id(run_id): run for run_id, run in account.open.items()},
        opens_listed=account.opens_listed,
        base_read=True,
        ended_after=account.ended_after,
        ids_number=len(counted),
        ids_sum=checksum,
        forgotten=finished - len(counted),
        last_start=account.last_start,
        last_read=account.last_read if account.unread else meta.written,
        unread=account.unread,
    )
