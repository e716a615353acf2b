"""Every ended run counted once: the totals, and in SQLite what it takes to keep them true.

Memory holds the whole state and is what a scrape shows; `commit` makes it durable in one
transaction before the scrape is answered. What is written is the state, never a difference, so a
commit that failed, or of which nobody knows whether it failed, is simply written again.
"""

import copy
import logging
import math
import sqlite3
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from msgspec.structs import replace

from exporter.modus.model import (
    OPEN_STATUSES,
    TERMINAL_STATUSES,
    Cursor,
    Exemplar,
    Gap,
    OpenRun,
    Run,
    Totals,
    label,
    shard_of,
)
from exporter.runs.store import Account, LedgerError, Meta, State, StateFile

TRIGGER_TYPES = ("schedule", "webhook", "api", "slack", "manual")
MAX_TRIGGER_TYPES = 20
MAX_STATUSES = 10  # of ended runs, also such as nobody documented
LONGEST_DURATION = 366 * 86400.0  # seconds; what is beyond is no duration
KEEP = 3600.0  # seconds an id is kept at least: an index may show a stale status for a while

log = logging.getLogger("exporter.runs.ledger")


class Ledger:
    """The accounts of all agents, kept in the SQLite file `path`, or in memory when that is None.

    `bounds` are the upper bounds of the histogram's buckets, `lookback` is how long after its start
    a run may be seen first, both in seconds. Without a file, and for agents that come to this `shard`
    (index, total) of several, only runs that end from now on are counted: the others may have been
    counted before. Raises LedgerError when the file is of another program, of a newer version, in
    use, or made with other bounds and not `reset_histogram`.
    """

    def __init__(
        self,
        path: str | None,
        bounds: Sequence[float],
        *,
        lookback: float,
        shard: tuple[int, int] = (0, 1),
        reset_histogram: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.bounds = tuple(map(float, bounds))
        self.lookback = lookback
        self.accounts: dict[int, Account] = {}
        self.counted: dict[int, dict[str, float]] = {}  # agent -> run id -> start of the run
        self.up = True
        self._clock = clock
        self._shard = shard
        self._started = clock()
        self._only_new = path is None or shard[1] > 1
        self._changed: set[int] = set()
        self._new: dict[int, list[str]] = {}  # agent -> run ids
        self._gone: set[tuple[int, str]] = set()
        self._owned: set[int] = set()  # agents whose totals no snapshot has yet
        self._moved: set[int] = set()  # from another shard, and not read since
        self._pruned: dict[int, float] = {}
        self._warned: set[tuple[int, str]] = set()
        self._file = StateFile(path, clock) if path is not None else None
        if self._file:
            try:
                self._load(self._file.load(self._meta()), self._file.path, reset_histogram)
            except LedgerError:
                self._file.close()
                raise

    def account(self, agent_id: int, now: float, skew: float = 0.0) -> Account:
        """The agent's account, opened at its first sight; `now` and `skew` are of the API's clock."""
        if agent_id not in self.accounts:
            ended_after = self._started + skew if self._only_new else None
            created = now - self.lookback if ended_after is None else ended_after
            buckets = len(self.bounds) + 1
            totals = Totals(created, created, [0] * buckets, [None] * buckets)
            totals.finished = {status: dict.fromkeys(TRIGGER_TYPES, 0) for status in TERMINAL_STATUSES}
            self.accounts[agent_id] = Account(totals, ended_after=ended_after)
            self._changed.add(agent_id)
        account = self.accounts[agent_id]
        if agent_id in self._moved:
            self._moved.remove(agent_id)
            account.ended_after = self._started + skew
            self._changed.add(agent_id)
        return account

    def record(
        self, agent_id: int, runs: Iterable[Run], cursor: Cursor, now: float, searched: Iterable[Gap] = ()
    ) -> None:
        """Count those of `runs` that ended and were not counted, follow those that are open.

        `now` is the API's clock, Unix seconds; `searched` are the searches for open runs that came to
        their end. Nothing is durable before `commit`.
        """
        account = self.accounts[agent_id]
        counted = self.counted.setdefault(agent_id, {})
        for run in runs:
            if run.id in counted:
                continue  # also when the index still shows it as open
            if run.ended:
                self._count(agent_id, account, run, now)
            else:
                self._follow(agent_id, account, run, now)
        for search in searched:
            self._forget_vanished(agent_id, account, search)
        if cursor != account.cursor:
            account.cursor = cursor
            self._changed.add(agent_id)
        if now - self._pruned.setdefault(agent_id, now) > KEEP:
            self._pruned[agent_id] = now
            self._prune(agent_id, account, now)

    def seen(self, agent_id: int, *, name: str, type: str, start: float | None) -> None:  # noqa: A002
        """Note the names and the start of the agent's newest run."""
        account = self.accounts[agent_id]
        news = (name, type, start)
        if (account.name, account.type, account.last_start) != news:
            account.name, account.type, account.last_start = news
            self._changed.add(agent_id)

    def read(self, agent_id: int, when: float) -> None:
        """Note that the agent was read successfully at `when`, Unix seconds of our clock."""
        account = self.accounts[agent_id]
        account.last_read = when
        if account.unread:
            account.unread = False
            self._changed.add(agent_id)

    def opens_listed(self, agent_id: int) -> None:
        """Note that the agent's open runs are known completely."""
        if not self.accounts[agent_id].opens_listed:
            self.accounts[agent_id].opens_listed = True
            self._changed.add(agent_id)

    def unread(self, agent_id: int) -> None:
        """Note that the newest attempt to read the agent failed."""
        account = self.accounts.get(agent_id)
        if account and not account.unread:
            account.unread = True
            self._changed.add(agent_id)

    def commit(self) -> None:
        """Make the state durable; on failure `up` is False, and the next call tries again."""
        self._owned = set()
        if self._file is None:
            return
        try:
            anew = self._file.open_again()
            if anew:
                self._everything_changed()
            changed = ((agent, msgspec.json.encode(self.accounts[agent])) for agent in self._changed)
            self._file.write(self._meta(), changed, self._newly_counted(), self._gone, anew=anew)
        except (sqlite3.Error, OSError, LedgerError) as error:
            if self.up:
                log.error(
                    "the state cannot be written: counting goes on in memory",
                    extra={"fields": {"path": self._file.path, "error": str(error)}},
                )
            self.up = False
            return
        if not self.up:
            log.info("the state can be written again", extra={"fields": {"path": self._file.path}})
        self.up = True
        self._changed, self._new, self._gone = set(), {}, set()

    def _newly_counted(self) -> Iterator[tuple[int, str, float]]:
        """What a commit adds; one by one, because the first one has the whole lookback of all agents."""
        for agent_id, ids in self._new.items():
            counted = self.counted[agent_id]
            yield from ((agent_id, id_, counted[id_]) for id_ in ids if id_ in counted)

    def close(self) -> None:
        """Commit what is not yet durable and let go of the file."""
        self.commit()
        if self._file:
            self._file.close()

    def _everything_changed(self) -> None:
        self._changed, self._gone = set(self.accounts), set()
        self._new = {agent_id: list(ids) for agent_id, ids in self.counted.items()}

    def _meta(self) -> Meta:
        return Meta(self.bounds, self._clock(), self._shard)

    def _load(self, state: State, path: str, reset_histogram: bool) -> None:
        self.counted = state.counted
        for agent_id, account in state.accounts.items():
            if not account.unread:
                account.last_read = state.meta.written
            if (
                state.meta.shard != self._shard
                and shard_of(agent_id, state.meta.shard[1]) != state.meta.shard[0]
            ):
                account.ended_after = self._started  # another shard counted it in the meantime
                self._moved.add(agent_id)
                self._changed.add(agent_id)
            self.accounts[agent_id] = account
        if state.meta.bounds != self.bounds:
            if not reset_histogram:
                raise LedgerError(
                    f"{path}: the histogram was counted in other buckets; put the old histogram.buckets "
                    "back, or start once with --state.reset-histogram to count it anew"
                )
            self._reset_histogram()

    def _reset_histogram(self) -> None:
        buckets = len(self.bounds) + 1
        for account in self.accounts.values():
            totals = account.totals
            totals.durations_created, totals.duration_sum = self._clock(), 0.0
            totals.buckets, totals.exemplars = [0] * buckets, [None] * buckets
        self._changed.update(self.accounts)

    def _count(self, agent_id: int, account: Account, run: Run, now: float) -> None:
        was_open = account.open.pop(run.id, None)
        run = replace(run, status=_final_status(account.totals, run))
        start = run.start if run.start is not None or was_open is None else was_open.start
        duration = _duration(run, start)
        end = run.end
        if end is None and start is not None and duration is not None:
            end = start + duration
        if not self._counts(account, was_open is not None, start, end, now):
            if was_open or _is_later(account.totals.last_end, run.status, end):
                self._note_end(self._own_totals(agent_id, account), run.status, end, now)
            return
        totals = self._own_totals(agent_id, account)
        self._note_end(totals, run.status, end, now)
        since = start if start is not None else end
        self.counted[agent_id][run.id] = math.inf if since is None else since
        self._new.setdefault(agent_id, []).append(run.id)
        if since is not None and since < now - self.lookback:
            account.late[run.id] = now + KEEP
        totals.finished.setdefault(run.status, dict.fromkeys(totals.finished["completed"], 0))
        trigger = self._trigger(agent_id, totals, run)
        totals.finished[run.status][trigger] += 1
        if run.status == "completed":
            self._add_duration(agent_id, totals, run, duration, end)

    def _counts(
        self, account: Account, was_open: bool, start: float | None, end: float | None, now: float
    ) -> bool:
        """Whether a run that just turned out to have ended is one to count."""
        if account.ended_after is not None:
            if end is not None and end <= account.ended_after:
                return False
            if end is None and not was_open and (start is None or start <= account.ended_after):
                return False  # it may have ended and been counted before
        since = start if start is not None else end
        return was_open or since is None or (since >= now - self.lookback and since > account.horizon)

    def _own_totals(self, agent_id: int, account: Account) -> Totals:
        """Totals that may be changed: a snapshot that was handed out keeps the old ones."""
        self._changed.add(agent_id)
        if agent_id not in self._owned:
            self._owned.add(agent_id)
            account.totals = copy.deepcopy(account.totals)
        return account.totals

    @staticmethod
    def _note_end(totals: Totals, status: str, end: float | None, now: float) -> None:
        if end is not None and _is_later(totals.last_end, status, end):
            totals.last_end[status] = min(end, now)

    def _add_duration(
        self, agent_id: int, totals: Totals, run: Run, duration: float | None, end: float | None
    ) -> None:
        if duration is None:
            log.warning(
                "a run has no usable duration: it counts as finished and stays out of the histogram",
                extra={"fields": {"agent_id": agent_id, "run_id": run.id, "duration_ms": run.duration_ms}},
            )
            return
        bucket = bisect_left(self.bounds, duration)
        totals.buckets[bucket] += 1
        totals.duration_sum += duration
        newest = totals.exemplars[bucket]
        if end is not None and (newest is None or end >= newest.end):
            totals.exemplars[bucket] = Exemplar(run.id, duration, end)

    def _trigger(self, agent_id: int, totals: Totals, run: Run) -> str:
        """The trigger type as a label value; a new one starts at 0 in every status."""
        trigger = label(run.trigger_type or "unknown")
        known = totals.finished[run.status]
        if trigger not in known and len(known) >= MAX_TRIGGER_TYPES:
            if (agent_id, "trigger") not in self._warned:
                self._warned.add((agent_id, "trigger"))
                log.warning(
                    "more trigger types than one agent can have: further ones count as other",
                    extra={
                        "fields": {"agent_id": agent_id, "trigger_type": trigger, "limit": MAX_TRIGGER_TYPES}
                    },
                )
            trigger = "other"
        for by_trigger in totals.finished.values():
            by_trigger.setdefault(trigger, 0)
        return trigger

    def _follow(self, agent_id: int, account: Account, run: Run, now: float) -> None:
        known = account.open.get(run.id)
        if known is None or known.status != run.status:
            self._changed.add(agent_id)
        account.open[run.id] = OpenRun.of(run, now)

    def _forget_vanished(self, agent_id: int, account: Account, search: Gap) -> None:
        """Give up open runs that a search should have met: the platform no longer has them."""
        for id_, run in list(account.open.items()):
            if run.seen < (search.since or 0.0) and run.start is not None and run.start >= search.floor:
                del account.open[id_]
                self._changed.add(agent_id)
                log.warning(
                    "an open run is gone from the API: it is not counted",
                    extra={"fields": {"agent_id": agent_id, "run_id": id_}},
                )

    def _prune(self, agent_id: int, account: Account, now: float) -> None:
        """Forget ids that cannot come back as uncounted, and runs in a status nobody can follow."""
        counted = self.counted[agent_id]
        account.late = {id_: until for id_, until in account.late.items() if until >= now}
        old = now - self.lookback - KEEP
        for id_ in [id_ for id_, start in counted.items() if start < old and id_ not in account.late]:
            account.horizon = max(account.horizon, counted.pop(id_))
            self._gone.add((agent_id, id_))
            self._changed.add(agent_id)
        for id_, run in list(account.open.items()):
            if run.status not in OPEN_STATUSES and run.seen < now - self.lookback:
                del account.open[id_]
                self._changed.add(agent_id)


def _is_later(ends: dict[str, float], status: str, end: float | None) -> bool:
    return end is not None and end > ends.get(status, -math.inf)


def _duration(run: Run, start: float | None) -> float | None:
    """Seconds from the API's durationMs, else from end and start; None when that is no usable number."""
    if run.duration_ms is not None:
        duration = run.duration_ms / 1000
    elif start is not None and run.end is not None:
        duration = run.end - start
    else:
        return None
    return abs(duration) if 0 <= duration <= LONGEST_DURATION else None  # -0.0 is shown as 0.0


def _final_status(totals: Totals, run: Run) -> str:
    """The status as a label value; of those that nobody documented an agent can have a few."""
    status = label(run.status)
    return status if status in totals.finished or len(totals.finished) < MAX_STATUSES else "other"
