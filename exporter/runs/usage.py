"""What agents and models used, each bucket of the usage report counted once.

A bucket may grow and be revised for some hours. Of each the highest value that was counted is kept, and what
is more is added: a total never falls, and it does not matter how often or in which order reports come.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from exporter.log import fields
from exporter.modus.usage import GROUPINGS, Bucket, Grouping, Used
from exporter.runs.state import USAGE_ID, GroupUse, RunLine, UsageState

HOUR = 3600
REVISED = 24 * HOUR  # seconds after which a bucket is taken to be final
IDLE = 35 * 24 * HOUR  # seconds without use after which what is not in use is forgotten
MOST_GROUPS: Mapping[str, int] = {"agent": 50_000, "model": 500}
WAIT = 900.0  # seconds in which an agent that is new or was renamed has to be listed
OTHER = "other"  # what more than these count as
MAX_LINES = 10  # log lines of one kind and one report

log = logging.getLogger(__name__)


Summed = Iterable[tuple[tuple[str, int], Used]]  # name of an agent or model, hour -> what it used in it


class UsageShown(NamedTuple):
    """What was used so far: by grouping, then agent id or model; and the agents' credits of a month."""

    totals: Mapping[str, Mapping[str, Used]]
    created: float  # instant from which is counted, Unix seconds
    month: int
    month_credits: Mapping[str, float]
    new: frozenset[tuple[str, str]]  # groupings and groups that no scrape has shown yet

    def credits_of(self, now: float) -> Mapping[str, float]:
        """Credits of each agent since the month of `now` began."""
        is_this = self.month == month_of(now)
        return self.month_credits if is_this else dict.fromkeys(self.month_credits, 0.0)


class UsageAccount:
    """The account of all usage, and whether it is written. Not safe to share: the ledger's lock guards it.

    `only_new`: what was used before the first report is in no total, since it may have been counted before.
    """

    agent_id = USAGE_ID

    def __init__(self, state: UsageState, epoch: int = 0, *, only_new: bool) -> None:
        self.state = state
        self.epoch = epoch  # of the lease under which it was loaded
        self.changed = False
        self.counted: dict[str, float] = {}  # it has no runs
        self.new: list[str] = []
        self.gone: list[str] = []
        self.shown = self.keep()  # as of the last durable commit
        self._only_new = only_new
        self._unknown: dict[str, float] = {}  # agents that are not listed -> since when they are met
        self._told: set[tuple[str, str]] = set()  # groups that were shown at 0, because they are new
        self._warned: set[tuple[str, str]] = set()

    @property
    def unsaid(self) -> list[RunLine]:
        """No lines for the log."""
        return []

    def read_until(self, grouping: Grouping) -> int | None:
        """All hours before it were read after their ends; None before the first report."""
        return self.state.read_until.get(grouping)

    def names(
        self, grouping: Grouping, given: Iterable[str], find: Callable[[str], str | None], now: float
    ) -> dict[str, str]:
        """Under which name to count what the report gives under another: an agent's id, a model, or `other`.

        `find` gives the id of an agent that is listed. Who is not listed may be soon, as one that is new or
        was renamed: until then it is left out, since the name that it gets stays for good.
        """
        names: dict[str, str] = {}
        aliases, known = self.state.aliases, set(self.state.groups.get(grouping, ()))
        unknown: list[str] = []
        for key in given:
            name: str | None = key
            if grouping == "agent" and aliases.get(key) != key:
                name = find(key) or aliases.get(key)
            if name is None and self._waits(key, now):
                continue
            if (name or key) not in known and len(known) >= MOST_GROUPS[grouping]:
                name = OTHER
            elif name is None:
                unknown.append(key)
            names[key] = name or key
            known.add(names[key])
        if grouping == "agent":
            aliases |= {key: name for key, name in names.items() if name != OTHER and not key.isdecimal()}
        self._say("usage of an agent that is not listed: it is counted under its own name", unknown)
        if OTHER in names.values():
            self._say(f"more {grouping}s than there can be: further ones count as other", [OTHER])
        return names

    def record(self, grouping: Grouping, summed: Summed) -> None:
        """Count what is more than was counted."""
        groups = self.state.groups.setdefault(grouping, {})
        shrunk: list[str] = []
        for (name, hour), used in summed:
            group = groups.get(name)
            if group is None:
                group = groups[name] = GroupUse(told=grouping not in self.state.based)
            if hour > group.horizon and not self._add(grouping, group, hour, used):
                shrunk.append(name)
        self._say(f"a bucket of the usage of one {grouping} shrank: nothing is taken back", shrunk)

    def close_hours(self, grouping: Grouping, until: int, in_use: Callable[[str], bool]) -> None:
        """Note that all hours before `until` were read after their ends, and let go of what is final."""
        state = self.state
        if until <= (state.read_until.get(grouping) or 0):
            return
        state.read_until[grouping] = until
        self.changed = True
        groups = state.groups.setdefault(grouping, {})
        for name, group in list(groups.items()):
            for hour in [hour for hour in group.hours if hour < until - REVISED]:
                del group.hours[hour]
                group.horizon = max(group.horizon, hour)
            if not group.hours and group.horizon < until - IDLE and not in_use(name):
                del groups[name]
                self.state.aliases = {key: to for key, to in self.state.aliases.items() if to != name}

    def end_base(self, grouping: Grouping) -> None:
        """Note that all of the first report has been read: from then on totals are shown."""
        if grouping not in self.state.based:
            self.state.based.append(grouping)
            self.changed = True

    def keep(self) -> UsageShown | None:
        """The totals as of now, which nothing will change any more; None while they are not to be shown."""
        if len(self.state.based) < len(GROUPINGS):
            return None
        totals = {
            grouping: {name: group.total if group.told else Used() for name, group in groups.items()}
            for grouping, groups in self.state.groups.items()
        }
        new = {
            (grouping, name)
            for grouping, groups in self.state.groups.items()
            for name, group in groups.items()
            if not group.told
        }
        agents = self.state.groups.get("agent", {})
        month = max((group.month for group in agents.values()), default=0)
        spent = {name: group.month_credits if group.month == month else 0.0 for name, group in agents.items()}
        return UsageShown(totals, self.state.created, month, spent, frozenset(new))

    def show(self) -> UsageShown | None:
        """The totals of the last durable commit; groups that are new are at 0."""
        if self.shown is not None:
            self._told |= self.shown.new
        return self.shown

    def mark_shown(self) -> None:
        """Note that a scrape has shown all there is: from the next commit on new groups have their values."""
        for grouping, name in self._told:
            group = self.state.groups[grouping].get(name)
            if group:
                group.told = self.changed = True
        self._told = set()

    def _waits(self, key: str, now: float) -> bool:
        """Whether an agent that is not listed is met for too short a time to be given up."""
        return 0 <= now - self._unknown.setdefault(key, now) < WAIT and len(self.state.based) == len(
            GROUPINGS
        )

    def _add(self, grouping: Grouping, group: GroupUse, hour: int, used: Used) -> bool:
        """Add what is more than was counted of the bucket; False when it shrank."""
        before = group.hours.get(hour, Used())
        highest = Used(*map(max, zip(before, used, strict=True)))
        if highest != before or hour not in group.hours:
            self.changed = True
            group.hours[hour] = highest
            if not (self._only_new and grouping not in self.state.based):
                more = [now - then for now, then in zip(highest, before, strict=True)]
                group.total = Used(*map(sum, zip(group.total, more, strict=True)))
                self._add_to_month(group, hour, more[3])
        return highest == used

    def _add_to_month(self, group: GroupUse, hour: int, spent: float) -> None:
        month = month_of(hour)
        if month > group.month:
            group.month, group.month_credits = month, 0.0
        if month == group.month:
            group.month_credits += spent

    def _say(self, message: str, keys: Iterable[str]) -> None:
        """A line for each group, once."""
        new = [key for key in dict.fromkeys(keys) if (message, key) not in self._warned]
        self._warned |= {(message, key) for key in new}
        for key in new[:MAX_LINES]:
            log.warning(message, extra=fields(group=key))
        if len(new) > MAX_LINES:
            log.warning(f"{message}; and more like it", extra=fields(more=len(new) - MAX_LINES))


def summed(buckets: Iterable[Bucket], names: Mapping[str, str]) -> Summed:
    """The buckets by name and hour, added up where several are of one; those without a name are left out."""
    sums: dict[tuple[str, int], Used] = {}
    for hour, given, used in buckets:
        if given in names:
            key = names[given], hour
            before = sums.get(key)
            sums[key] = Used(*map(sum, zip(before, used, strict=True))) if before else used
    return sums.items()


def month_of(instant: float) -> int:
    """The month of an instant (UTC) as a number that grows."""
    moment = datetime.fromtimestamp(instant, UTC)
    return moment.year * 12 + moment.month
