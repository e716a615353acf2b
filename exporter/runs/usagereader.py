"""Reads the usage report beside the scrapes: one request for agents and one for models, now and then."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from exporter.deadline import Deadline
from exporter.log import fields
from exporter.modus.errors import ApiError
from exporter.modus.model import Agent
from exporter.modus.usage import GROUPINGS, Grouping, UsageReport
from exporter.runs.committer import Committer
from exporter.runs.periodic import PeriodicWork
from exporter.runs.usage import HOUR, REVISED, UsageAccount, summed

if TYPE_CHECKING:  # both are handed in
    from exporter.modus.client import ModusClient
    from exporter.runs.ledger import Ledger

RECENT = 2 * HOUR  # seconds before the open hour that are read each time; once an hour it is REVISED
LONGEST = 31 * 24  # hours that are asked for at once, at first
AT_ONCE = 1000  # buckets that are counted while the ledger is held
LOOK_AGAIN = 3600.0  # seconds until it is looked whether the token may read the report by now

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UsageSettings:
    """The `usage` section; `enabled` is auto (when the token may), true or false."""

    enabled: str = "false"
    refresh_interval: float = 300.0  # seconds
    budget: float | None = None  # credits a month, of all agents
    budgets: Mapping[int, float] = field(default_factory=dict)  # likewise, of an agent

    @property
    def is_on(self) -> bool:
        """Whether the report is to be asked for at all."""
        return self.enabled != "false"


class UsageReader:
    """Reads the report into the ledger, beside the scrapes.

    The first report takes the ledger's lookback of the past. What the `earlier` reader knew, before a reload,
    holds until the report is read anew.
    """

    def __init__(
        self,
        api: "ModusClient",
        ledger: "Ledger",
        committer: Committer,
        beside: Callable[[float], PeriodicWork],
        settings: UsageSettings,
        earlier: "UsageReader | None" = None,
    ) -> None:
        self.last_read: float | None = None  # when all of a report was read, by our clock
        self._api, self._ledger, self._committer = api, ledger, committer
        self._settings = settings
        self._periodic = beside(settings.refresh_interval)
        self._whole_hour = -1  # in which all that may be revised was read last
        self._longest = LONGEST  # hours of one request
        self._account: UsageAccount | None = None  # of the report that is read: its lease may end meanwhile
        self._failure: ApiError | None = None  # of the newest attempt
        if earlier and settings.is_on:
            self.last_read, self._failure = earlier.last_read, earlier._failure
        self._told_malformed = False

    @property
    def up(self) -> bool | None:
        """Whether the newest report could be read; None while nothing is known, or it is off."""
        if not self._settings.is_on or (self._failure is None and self.last_read is None):
            return None
        if self._failure is None:
            return True
        return None if self._settings.enabled == "auto" and _is_off(self._failure) else False

    def start(self, now: float, known_agents: Callable[[], Sequence[Agent] | None]) -> None:
        """Begin to read the report if it is time; `now` is the API's clock.

        `known_agents` tells those that are listed, to be matched by id, slug or name; None while that is
        unknown.
        """
        if not self._settings.is_on or not self._periodic.is_due or (agents := known_agents()) is None:
            return
        self._periodic.begin(partial(self.read, now, agents))

    def close(self) -> None:
        """Cut off what is being read."""
        self._periodic.close()

    def read(self, now: float, agents: Sequence[Agent], deadline: Deadline) -> None:
        """Read the report now, in this thread. Raises nothing."""
        find, in_use = finder_of(agents), {str(agent.id) for agent in agents}
        hour = int(now // HOUR) * HOUR
        failure = None
        with self._ledger.usage() as account:
            self._account = account
        try:
            for grouping in GROUPINGS:
                self._read_grouping(grouping, hour, find, in_use, deadline)
        except Exception as error:
            failure = ApiError.of(error)
        else:
            self._whole_hour, self.last_read = hour, self._ledger.clock()
        finally:
            self._committer.request()
            if not self._periodic.closed:
                self._note(failure)

    def _read_grouping(
        self,
        grouping: Grouping,
        hour: int,
        find: Callable[[str], str | None],
        in_use: set[str],
        deadline: Deadline,
    ) -> None:
        """Read all hours that may have changed, the oldest first. Raises ApiError."""
        with self._ledger.usage(self._account) as account:
            read_until = account.read_until(grouping)
        if read_until is None:
            begin = hour - int(self._ledger.lookback // HOUR) * HOUR
        else:
            begin = min(read_until, hour) - (RECENT if self._whole_hour == hour else REVISED)
        end = hour + HOUR
        while begin < end:
            until = min(begin + self._longest * HOUR, end)
            try:
                report = self._api.usage(grouping, begin, until, deadline=deadline)
            except ApiError as error:
                if not error.too_large or until - begin <= HOUR:
                    raise
                self._longest = (until - begin) // HOUR // 2 or 1
                continue
            self._count(grouping, report, find)
            begin = until
            with self._ledger.usage(self._account) as account:
                account.close_hours(grouping, min(until, hour), in_use.__contains__)
        with self._ledger.usage(self._account) as account:
            account.end_base(grouping)

    def _count(self, grouping: Grouping, report: UsageReport, find: Callable[[str], str | None]) -> None:
        given = dict.fromkeys(bucket.group for bucket in report.buckets)
        with self._ledger.usage(self._account) as account:
            names = account.names(grouping, given, find, self._ledger.clock())
        sums = iter(summed(report.buckets, names))
        while piece := list(islice(sums, AT_ONCE)):
            with self._ledger.usage(self._account) as account:
                account.record(grouping, piece)
        if report.malformed and not self._told_malformed:
            self._told_malformed = True
            log.warning("buckets of the usage report cannot be read", extra=fields(number=report.malformed))

    def _note(self, failure: ApiError | None) -> None:
        """Say what has changed, in one line."""
        before, self._failure = self._failure, failure
        if failure is None:
            if before is not None:
                log.info("the usage report can be read again")
            return
        if _is_off(failure):
            self._periodic.put_off(LOOK_AGAIN)
        if before is not None and before.reason == failure.reason:
            return
        if _is_off(failure) and self._settings.enabled == "auto":
            why = fields(reason=failure.reason, error=str(failure))
            log.info("no usage is read: the token may not, or the API has no such report", extra=why)
        else:
            log.warning("the usage report cannot be read", extra=fields(**failure.told))


def _is_off(failure: ApiError) -> bool:
    """Whether the token lacks the scope, or the API the report."""
    return failure.reason in ("forbidden", "not_found")


def finder_of(agents: Iterable[Agent]) -> Callable[[str], str | None]:
    """What finds an agent's id by what the report calls it: its id, its slug or its name."""
    ids: dict[str, str] = {}
    for agent in agents:
        ids.setdefault(agent.name, str(agent.id))
    ids |= {agent.slug: str(agent.id) for agent in agents if agent.slug}
    ids.pop("", None)
    return lambda group: str(int(group)) if group.isascii() and group.isdecimal() else ids.get(group)
