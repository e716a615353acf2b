"""The schedules of all agents: what is shown of them, and how often they are asked for."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from exporter.demo.simulator import Request, SimulatedModus
from exporter.modus.discovery import Selection
from exporter.modus.errors import ApiError
from exporter.modus.model import Agent, AgentsPage, Variation
from exporter.modus.schedules import Schedules
from tests.simulation import Clock, Exporter, settings
from tests.webserver import awaited

HOURLY = {"frequency": "hourly", "time_of_day": "00:00", "timezone": "UTC"}
NOON = 1_790_078_400.0  # 2026-09-22T12:00:00Z


def planned(schedule: object = HOURLY) -> dict[str, Any]:
    return {"trigger_type": "schedule", "schedule": schedule}


def listed(schedule: object = HOURLY, *, enabled: bool = True, updated: str | None = None) -> Agent:
    return Agent(7, is_enabled=enabled, updated_at=updated, variation=Variation(planned(schedule)))


def pages(*agents: Agent) -> Any:
    return lambda token, size: AgentsPage(list(agents))


@pytest.fixture
def modus() -> SimulatedModus:
    modus = SimulatedModus(fleet={}, clock=Clock(NOON + 600))
    modus.add_agent(7, "Seven").trigger = planned()
    modus.agents[7].updated = NOON - 86400
    return modus


@pytest.fixture
def exporter(modus: SimulatedModus) -> Iterator[Exporter]:
    exporter = Exporter(modus, None, replace(settings(), selection=Selection([], ["*"])))
    yield exporter
    exporter.close()


def due(exporter: Exporter) -> tuple[float | None, float | None]:
    """What is shown once the schedules have been read beside a scrape."""
    awaited(lambda: exporter.scrape()[7].next_due is not None)
    agent = exporter.scrape()[7]
    return agent.last_due, agent.next_due


def test_a_scheduled_agent_shows_when_it_was_and_will_be_due(
    exporter: Exporter, modus: SimulatedModus
) -> None:
    assert due(exporter) == (NOON, NOON + 3600)
    modus.clock.advance(3000)  # type: ignore[attr-defined]
    assert due(exporter) == (NOON + 3600, NOON + 7200)


def test_instants_are_shown_by_our_clock_as_those_of_runs_are(modus: SimulatedModus) -> None:
    ours = Clock(NOON + 600 - 120)
    exporter = Exporter(modus, None, replace(settings(), selection=Selection([], ["*"])), clock=ours)
    assert due(exporter) == (NOON - 120, NOON + 3480)
    exporter.close()


def test_an_agent_that_is_switched_off_is_not_due(exporter: Exporter, modus: SimulatedModus) -> None:
    assert due(exporter) == (NOON, NOON + 3600)
    modus.agents[7].enabled = False
    exporter.collector.reload(lambda: exporter.api, replace(settings(), selection=Selection([], ["*"])))  # type: ignore[arg-type,return-value]
    awaited(lambda: exporter.scrape()[7].enabled is False)
    agent = exporter.scrape()[7]
    assert (agent.last_due, agent.next_due) == (None, None)


def test_a_due_time_from_before_the_schedule_was_set_is_not_shown(
    exporter: Exporter, modus: SimulatedModus
) -> None:
    """Nobody knows whether the agent was to run then."""
    modus.agents[7].updated = NOON + 60
    assert due(exporter) == (None, NOON + 3600)


def test_a_reload_keeps_the_schedules_while_they_are_read_anew(
    exporter: Exporter, modus: SimulatedModus
) -> None:
    assert due(exporter) == (NOON, NOON + 3600)
    modus.fault = lambda request: modus.error(500) if "includeVariation" in request.query else None
    exporter.collector.reload(lambda: exporter.api, replace(settings(), selection=Selection([], ["*"])))  # type: ignore[arg-type,return-value]
    assert due(exporter) == (NOON, NOON + 3600)


def test_a_list_with_schedules_that_fails_or_hangs_costs_no_scrape(
    exporter: Exporter, modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(request: Request) -> Any:
        return modus.error(400, "Unknown parameter.") if "includeVariation" in request.query else None

    modus.fault = fault
    assert exporter.scrape()[7].up
    awaited(lambda: "the schedules cannot be read" in caplog.text)
    agent = exporter.scrape()[7]
    assert (agent.up, agent.enabled, agent.next_due) == (True, True, None)


def test_a_mistake_of_ours_is_said_and_those_known_stay(caplog: pytest.LogCaptureFixture) -> None:
    schedules = Schedules()
    schedules.refresh(pages(listed()))
    schedules.refresh(lambda token, size: {}[token])  # type: ignore[index]
    assert schedules.known.keys() == {7}
    assert "the schedules cannot be read" in caplog.text


@pytest.mark.parametrize(("interval", "after"), [(300.0, 900.0), (3600.0, 3600.0)])
def test_the_larger_list_is_asked_for_every_quarter_of_an_hour_at_most(
    modus: SimulatedModus, interval: float, after: float
) -> None:
    monotonic = Clock(0.0)
    selection = Selection([], ["*"], refresh_interval=interval)
    exporter = Exporter(modus, None, replace(settings(), selection=selection), monotonic)
    try:
        asked = [number_of_plans(exporter)]
        for seconds in (after - 1, 1.0, 1.0):
            monotonic.advance(seconds)
            asked.append(number_of_plans(exporter))
        assert asked == [1, 1, 2, 2]
    finally:
        exporter.close()


def number_of_plans(exporter: Exporter) -> int:
    """How often the schedules were asked for, once a scrape and what it began beside it are over."""
    exporter.scrape()
    over = threading.Event()
    assert exporter.collector.beside.submit(over.set)
    assert over.wait(10)
    return sum("includeVariation" in request.query for request in exporter.api.modus.requests)


def test_a_page_with_too_much_of_what_is_deployed_is_asked_for_in_smaller_ones() -> None:
    sizes = []

    def ask(token: str | None, size: int) -> AgentsPage:
        sizes.append(size)
        if size > 6:
            raise ApiError("bad_response", "too large", too_large=True)
        return AgentsPage([listed()])

    schedules = Schedules()
    schedules.refresh(ask)
    assert sizes == [100, 25, 6]
    assert 7 in schedules.known
    schedules.refresh(ask)
    assert sizes[3:] == [6]


def test_a_changed_schedule_holds_from_the_change_on_and_an_unchanged_one_as_before() -> None:
    schedules = Schedules()
    schedules.refresh(pages(listed(updated="2026-09-22T10:00:00Z")))
    assert schedules.known[7].due(NOON + 60) == (NOON, NOON + 3600)
    # somebody changed its name: the schedule is the same
    schedules.refresh(pages(listed(updated="2026-09-22T12:00:30Z")))
    assert schedules.known[7].due(NOON + 60) == (NOON, NOON + 3600)
    daily = HOURLY | {"frequency": "daily", "time_of_day": "11:30"}
    schedules.refresh(pages(listed(daily, updated="2026-09-22T12:00:30Z")))
    assert schedules.known[7].due(NOON + 60) == (None, NOON - 1800 + 86400)
    schedules.refresh(pages(listed(daily, enabled=False)))
    schedules.refresh(pages(listed(daily, updated="2026-09-22T12:30:00Z")))
    assert schedules.known[7].due(NOON + 3600) == (None, NOON - 1800 + 86400)


def test_pages_that_were_read_before_an_error_count_and_the_others_stay() -> None:
    schedules = Schedules()
    schedules.refresh(pages(listed(), Agent(8, is_enabled=True)))

    def ask(token: str | None, size: int) -> AgentsPage:
        if token:
            raise ApiError("server_error", "500")
        return AgentsPage([Agent(7, is_enabled=False)], "next")

    schedules.refresh(ask)
    assert (schedules.known[7].enabled, schedules.known[8].enabled) == (False, True)
    schedules.refresh(pages(listed()))
    assert schedules.known.keys() == {7}


def test_a_schedule_that_is_not_understood_is_said_once_and_costs_only_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    schedules = Schedules()
    odd = Agent(
        8, is_enabled=True, variation=Variation(planned({"frequency": "lunar", "time_of_day": "09:00"}))
    )
    for _ in range(2):
        schedules.refresh(pages(listed(), odd))
    assert caplog.text.count("schedule is not understood") == 1
    assert schedules.known[7].due(NOON)[1] == NOON + 3600
    assert schedules.known[8].due(NOON) == (None, None)
