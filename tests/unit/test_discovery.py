"""Which agents are read: those listed, those discovered, or both."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.deadline import Deadline
from exporter.demo.simulator import SimulatedModus
from exporter.modus.discovery import Discovery, Selection, Target, list_agents
from exporter.modus.errors import ApiError
from exporter.modus.model import Agent, AgentsPage
from tests.simulation import Clock, DirectApi, Exporter, finished, settings


@pytest.fixture
def api() -> DirectApi:
    modus = SimulatedModus(fleet={}, clock=Clock())
    for number in range(1, 31):
        modus.add_agent(number, f"Agent {number}")
    return DirectApi(modus)


def ask(api: DirectApi):  # type: ignore[no-untyped-def]
    return lambda token: api.agents(deadline=Deadline(0), page_token=token)


def test_all_pages_of_the_list_are_read(api: DirectApi) -> None:
    assert len(list_agents(ask(api))) == 30
    assert len(api.modus.requests) == 2


def test_a_list_whose_page_token_repeats_is_an_error_and_not_half_a_list() -> None:
    with pytest.raises(ApiError, match="never ends"):
        list_agents(lambda token: AgentsPage([Agent(1)], "again"))


def test_deleted_agents_are_left_out_and_globs_choose(api: DirectApi) -> None:
    api.modus.agents[3].deleted_at = 0.0
    chosen = Selection([], ["Agent ?", "Agent 1?"], ["*5"]).choose(list_agents(ask(api)))
    names = [target.name for target in chosen]
    assert "Agent 3" not in names
    assert "Agent 5" not in names
    assert "Agent 20" not in names
    assert len(names) == 19 - 3


def test_the_list_is_read_again_after_the_interval_and_kept_when_that_fails(
    api: DirectApi, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = Discovery(300)

    def look(now: float) -> int:
        if discovery.is_due(now):
            discovery.refresh(ask(api), now)
        return len(discovery.found or [])

    assert look(0.0) == 30
    api.modus.add_agent(99, "New")
    assert look(299.0) == 30
    assert look(301.0) == 31
    api.modus.add_agent(100, "Newer")
    api.modus.token = "another"  # noqa: S105
    with caplog.at_level(logging.ERROR):
        assert look(602.0) == look(903.0) == 31
    assert len(caplog.records) == 1
    api.modus.token = "demo"  # noqa: S105
    assert look(1204.0) == 32


def test_a_mistake_of_ours_is_a_problem_like_any_other(
    api: DirectApi, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = Discovery(300)
    discovery.refresh(lambda token: {}[token], 0.0)  # type: ignore[index]
    assert discovery.problem.startswith("KeyError at test_discovery.py:")
    assert "the agents cannot be listed" in caplog.text
    discovery.refresh(ask(api), 1.0)
    assert (discovery.problem, len(discovery.found or [])) == ("", 30)


def test_an_agent_that_is_listed_and_found_is_read_once_and_keeps_what_is_expected_of_it() -> None:
    both = Selection([Target(7, expected_interval=60.0, expected_duration=5.0)], ["*"])
    assert both.choose([Agent(7, "Seven", "task", is_enabled=True), Agent(3, "Three")]) == [
        Target(3, "Three"),
        Target(7, "Seven", "task", True, 60.0, 5.0),
    ]


def test_an_agent_of_the_configuration_is_read_whatever_the_globs_say() -> None:
    selection = Selection([Target(7)], ["Sales *"])
    assert [target.id for target in selection.choose([Agent(7, "Seven"), Agent(8, "Eight")])] == [7]


def test_after_a_restart_during_an_outage_the_agents_of_before_stay_in_the_exposition(tmp_path: Path) -> None:
    modus = SimulatedModus(fleet={}, clock=Clock())
    modus.add_agent(7, "Seven")
    modus.start_run(7, lasts=0.0)
    discovering = replace(settings(), selection=Selection([], ["*"]))

    def start() -> Exporter:
        return Exporter(modus, str(tmp_path / "state.db"), discovering)

    before = start()
    assert before.scrape()[7].up
    before.close()
    modus.fault = lambda request: modus.error(500)
    after = start()
    agent = after.scrape()[7]
    assert (agent.up, agent.name) == (False, "Seven")
    assert finished(agent)["completed"] == 1
    after.close()
