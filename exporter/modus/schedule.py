"""An agent's schedule in Modus, and the instants at which it is due.

A schedule is in the local time of its zone. A local time that the zone leaves out, as when its clocks go
forward, is never due, and neither is the 31st of a short month; one that comes twice is due the first time.
The vendor is silent about these: so nobody is told that a run is missing which Modus may rightly leave out.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

MOST_EXPRESSIONS = 50  # of one schedule
LONGEST_EXPRESSION = 200  # characters
LEFT_OUT = 3000  # local times in a row that a zone may leave out: the minutes of two days
WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")  # cron's 0 to 6
_TIME = re.compile("([01]?[0-9]|2[0-3]):([0-5][0-9])")
_DAY, _MINUTE = timedelta(days=1), timedelta(minutes=1)


class Schedule:
    """Cron expressions in a time zone; due is what any of them names.

    Raises ValueError for what is no schedule. Safe to share between threads.
    """

    def __init__(self, expressions: Iterable[str], timezone: str) -> None:
        self._expressions = tuple(expressions)
        if not 1 <= len(self._expressions) <= MOST_EXPRESSIONS:
            raise ValueError(f"expected one to {MOST_EXPRESSIONS} cron expressions")
        for expression in self._expressions:
            if len(expression) > LONGEST_EXPRESSION or len(expression.split()) != 5:
                raise ValueError("a cron expression has five fields")
            try:
                CronSim(expression, datetime.min)
            except CronSimError as error:
                raise ValueError(f"a cron expression is none: {error}") from None
        try:
            self._zone = ZoneInfo(timezone)
        except (OSError, ValueError, LookupError):
            raise ValueError("an unknown time zone") from None
        self._known = math.inf, -math.inf  # the instants around the one that was asked for last

    def around(self, now: float) -> tuple[float | None, float | None]:
        """When it was due last, at `now` at the latest, and is due next, in Unix seconds; None for never."""
        last, coming = self._known
        if not last <= now < coming:
            last = max(self._nearest(now, reverse=True), default=-math.inf)
            coming = min(self._nearest(now, reverse=False), default=math.inf)
            self._known = last, coming
        return (last if last > -math.inf else None), (coming if coming < math.inf else None)

    def _nearest(self, now: float, *, reverse: bool) -> Iterator[float]:
        """The instant of each expression that is the first one after `now`, or the last one until then."""
        moment = datetime.fromtimestamp(now, UTC)
        local = moment.astimezone(self._zone).replace(tzinfo=None, fold=0)
        offsets = [(moment + days).astimezone(self._zone).utcoffset() or _DAY for days in (-_DAY, _DAY)]
        margin = abs(offsets[0] - offsets[1]) + _MINUTE  # a local time that comes twice lies behind and ahead
        begin = local + margin if reverse else local - margin
        for expression in self._expressions:
            for time in islice(CronSim(expression, begin, reverse=reverse), LEFT_OUT):
                due = time.replace(tzinfo=self._zone).astimezone(UTC)
                is_there = due.astimezone(self._zone).replace(tzinfo=None, fold=0) == time
                if is_there and (due <= moment) == reverse:
                    yield due.timestamp()
                    break


def schedule_of(trigger: object) -> Schedule | None:
    """The schedule of an agent's trigger as the API gives it, free-form; None for one without a schedule.

    Raises ValueError for a schedule that cannot be understood; the text is one line.
    """
    if not isinstance(trigger, Mapping) or trigger.get("trigger_type") != "schedule":
        return None
    schedule = trigger.get("schedule")
    if not isinstance(schedule, Mapping):
        raise ValueError("it has no details")
    return _schedule(tuple(_expressions(schedule)), str(schedule.get("timezone") or "UTC"))


@lru_cache(maxsize=10_000)
def _schedule(expressions: tuple[str, ...], timezone: str) -> Schedule:
    """One for all agents of the same schedule: what is due is found once for them."""
    return Schedule(expressions, timezone)


def _expressions(schedule: Mapping[str, Any]) -> list[str]:
    frequency = schedule.get("frequency")
    if frequency == "custom":
        expressions = schedule.get("cron_expressions")
        if not isinstance(expressions, list) or not all(isinstance(each, str) for each in expressions):
            raise ValueError("expected a list of cron_expressions")
        return expressions
    found = _TIME.fullmatch(str(schedule.get("time_of_day")))
    if not found:
        raise ValueError("expected a time_of_day like 09:00")
    hour, minute = map(int, found.groups())
    match frequency:
        case "hourly":
            return [f"{minute} * * * *"]
        case "daily":
            return [f"{minute} {hour} * * *"]
        case "weekly":
            return [f"{minute} {hour} * * {_weekdays(schedule.get('weekdays'))}"]
        case "monthly":
            return [f"{minute} {hour} {_day(schedule.get('day_of_month'))} * *"]
    raise ValueError("an unknown frequency")


def _weekdays(names: object) -> str:
    if not isinstance(names, list) or not names or any(name not in WEEKDAYS for name in names):
        raise ValueError("expected weekdays like monday")
    return ",".join(str(WEEKDAYS.index(name)) for name in names)


def _day(number: object) -> int:
    if not isinstance(number, int | float) or number not in range(1, 32):
        raise ValueError("expected a day_of_month from 1 to 31")
    return int(number)
