"""When a schedule is due: held against another cron library and another library of time zones."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from croniter import croniter
from dateutil import tz

from exporter.modus.schedule import Schedule, schedule_of

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago")
BEGIN, END = datetime(2026, 1, 1, 12), datetime(2027, 1, 1, 12)  # local time; every zone changes its clocks
HOURLY = {"frequency": "hourly", "time_of_day": "00:30"}
DAILY = {"frequency": "daily", "time_of_day": "02:15"}
NIGHTLY = {"frequency": "daily", "time_of_day": "00:00"}
WEEKLY = {"frequency": "weekly", "time_of_day": "01:45", "weekdays": ["sunday", "wednesday"]}
MONTHLY = {"frequency": "monthly", "time_of_day": "09:00", "day_of_month": 31}
CUSTOM = {"frequency": "custom", "cron_expressions": ["*/20 1-3 * * *", "0 9 * * 1-5", "5 4 29 2 *"]}
CRON = {
    "hourly": (HOURLY, ["30 * * * *"]),
    "daily": (DAILY, ["15 2 * * *"]),
    "nightly": (NIGHTLY, ["0 0 * * *"]),
    "weekly": (WEEKLY, ["45 1 * * 0,3"]),
    "monthly": (MONTHLY, ["0 9 31 * *"]),
    "custom": (CUSTOM, CUSTOM["cron_expressions"]),
}


def trigger(details: dict[str, Any], timezone: str = "UTC") -> dict[str, Any]:
    return {"trigger_type": "schedule", "schedule": details | {"timezone": timezone}}


def instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def due_by_the_other_libraries(expressions: list[str], timezone: str) -> list[float]:
    """All local times of the year that exist, each once: the first time that it comes."""
    zone, times = tz.gettz(timezone), set()
    for expression in expressions:
        dates = croniter(expression, BEGIN - timedelta(minutes=1))
        while (time := dates.get_next(datetime)) <= END:
            if tz.datetime_exists(time, zone):
                times.add(time.replace(tzinfo=zone, fold=0).astimezone(UTC).timestamp())
    return sorted(times)


@pytest.mark.parametrize("timezone", ZONES)
@pytest.mark.parametrize("name", CRON)
def test_a_year_of_due_times_is_that_of_another_library(name: str, timezone: str) -> None:
    details, expressions = CRON[name]
    schedule = schedule_of(trigger(details, timezone))
    assert schedule
    expected = due_by_the_other_libraries(expressions, timezone)
    assert len(expected) >= 6
    for before, due in pairwise(expected):
        for at in (before, (before + due) / 2, due - 0.001):
            assert schedule.around(at) == (before, due)


@pytest.mark.parametrize("timezone", ZONES)
def test_what_is_remembered_does_not_depend_on_the_order_of_asking(timezone: str) -> None:
    begin = instant("2026-01-01T00:00:00+00:00")
    times = [begin + n * 3571.0 for n in range(0, 8800, 7)]
    one = Schedule(["*/20 1-3 * * *"], timezone)
    forwards = [one.around(at) for at in times]
    assert forwards == [one.around(at) for at in reversed(times)][::-1]


def test_a_local_time_that_the_clocks_leave_out_is_not_due_and_one_that_comes_twice_is_due_once() -> None:
    schedule = Schedule(["30 2 * * *"], "Europe/Berlin")
    spring = schedule.around(instant("2026-03-29T12:00:00+02:00"))
    assert spring == (instant("2026-03-28T02:30:00+01:00"), instant("2026-03-30T02:30:00+02:00"))
    first, second = instant("2026-10-25T02:30:00+02:00"), instant("2026-10-25T02:30:00+01:00")
    tomorrow = instant("2026-10-26T02:30:00+01:00")
    assert (
        schedule.around(first) == schedule.around(second) == schedule.around(second + 60) == (first, tomorrow)
    )


def test_the_31st_is_due_in_months_that_have_it() -> None:
    schedule = schedule_of(trigger(MONTHLY))
    assert schedule
    at = instant("2026-04-30T12:00:00+00:00")
    assert schedule.around(at) == (instant("2026-03-31T09:00:00+00:00"), instant("2026-05-31T09:00:00+00:00"))


def test_what_nothing_names_is_never_due() -> None:
    assert Schedule(["0 0 29 2 1#5"], "UTC").around(instant("2999-01-01T00:00:00+00:00"))[0] is not None
    with pytest.raises(ValueError, match="Bad day-of-month"):
        Schedule(["0 0 30 2 *"], "UTC")


@pytest.mark.parametrize("kind", ["webhook", "api", "slack", "manual", None, 7])
def test_a_trigger_of_another_kind_has_no_schedule(kind: object) -> None:
    assert schedule_of({"trigger_type": kind, "schedule": DAILY}) is None


@pytest.mark.parametrize("odd", [None, [], "schedule", 7, {}])
def test_a_trigger_that_is_none_has_no_schedule(odd: object) -> None:
    assert schedule_of(odd) is None


@pytest.mark.parametrize(
    ("details", "problem"),
    [
        ({"frequency": "yearly", "time_of_day": "09:00"}, "an unknown frequency"),
        ({"frequency": ["daily"], "time_of_day": "09:00"}, "an unknown frequency"),
        ({"frequency": "daily"}, "expected a time_of_day like 09:00"),
        ({"frequency": "daily", "time_of_day": "24:00"}, "expected a time_of_day like 09:00"),
        ({"frequency": "daily", "time_of_day": 9}, "expected a time_of_day like 09:00"),
        ({"frequency": "weekly", "time_of_day": "09:00"}, "expected weekdays like monday"),
        ({"frequency": "weekly", "time_of_day": "09:00", "weekdays": []}, "expected weekdays like monday"),
        ({"frequency": "weekly", "time_of_day": "09:00", "weekdays": [{}]}, "expected weekdays like monday"),
        ({"frequency": "monthly", "time_of_day": "09:00"}, "expected a day_of_month from 1 to 31"),
        (MONTHLY | {"day_of_month": 32}, "expected a day_of_month from 1 to 31"),
        (MONTHLY | {"day_of_month": 1.5}, "expected a day_of_month from 1 to 31"),
        (MONTHLY | {"day_of_month": float("inf")}, "expected a day_of_month from 1 to 31"),
        ({"frequency": "custom"}, "expected a list of cron_expressions"),
        ({"frequency": "custom", "cron_expressions": [7]}, "expected a list of cron_expressions"),
        ({"frequency": "custom", "cron_expressions": []}, "expected one to 50 cron expressions"),
        ({"frequency": "custom", "cron_expressions": ["* * * * *"] * 51}, "expected one to 50"),
        ({"frequency": "custom", "cron_expressions": ["* * * * * *"]}, "a cron expression has five fields"),
        ({"frequency": "custom", "cron_expressions": ["@daily"]}, "a cron expression has five fields"),
        (
            {"frequency": "custom", "cron_expressions": ["61 * * * *"]},
            "a cron expression is none: Bad minute",
        ),
    ],
)
def test_a_schedule_that_is_none_says_why(details: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        schedule_of(trigger(details))


@pytest.mark.parametrize("timezone", ["Nowhere/Else", "../../etc/passwd", "Europe", "x" * 5000, "a\0b"])
def test_a_zone_that_is_none_says_so(timezone: str) -> None:
    with pytest.raises(ValueError, match="an unknown time zone"):
        schedule_of(trigger(DAILY, timezone))


def test_agents_of_one_schedule_share_it() -> None:
    assert schedule_of(trigger(DAILY)) is schedule_of(trigger(dict(DAILY)))
