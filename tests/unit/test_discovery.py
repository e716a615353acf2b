"""Which agents are read: those listed, those discovered, or both."""

import io
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.deadline import Deadline
from exporter.demo.simulator import Answer, SimulatedModus
from exporter.modus.discovery import Discovery, Selection, Target, list_agents
from exporter.modus.errors import ApiError
from exporter.modus.model import Agent, AgentsPage
from exporter.runs import check
from tests.simulation import DAY, Clock, DirectApi, Exporter, finished, settings


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


class Found:
    """Two agents that are found, one of them busier, and the exporter that reads them once a minute."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = Clock()
        self.modus = SimulatedModus(fleet={}, clock=self.clock)
        for agent_id in (BUSY, IDLE):
            self.modus.add_agent(agent_id, f"Agent {agent_id}")
        self.path = str(tmp_path / "state.db")
        selection = Selection([], ["*"], refresh_interval=60.0)
        self.settings = replace(settings(), selection=selection)
        self.start()

    def start(self) -> None:
        self.exporter = Exporter(self.modus, self.path, self.settings, monotonic=self.clock)

    def run(self, agent_id: int, runs: int, apart: float, scraped: bool = True) -> None:
        for _ in range(runs):
            self.modus.start_run(agent_id, lasts=1.0)
            self.clock.advance(apart)
            if scraped:
                self.exporter.scrape()

    def scrape(self, times: int = 3) -> dict[int, int]:
        """The runs that are shown, by agent; each time the list of agents is read again beside the scrape."""
        for _ in range(times):
            self.clock.advance(61)
            self.exporter.scrape()
            with self.exporter.collector._targets._refreshing:  # until it was read
                agents = self.exporter.scrape()
        return {agent_id: sum(finished(agent).values()) for agent_id, agent in agents.items() if agent.totals}


def test_a_list_of_agents_that_is_too_large_is_asked_for_in_smaller_pieces_and_from_then_on(
    tmp_path: Path,
) -> None:
    world = Found(tmp_path)
    ask, sizes = world.exporter.api.agents, list[int]()

    def agents(*, page_size: int = 100, with_variation: bool = False, **query: object) -> AgentsPage:
        if not with_variation:
            sizes.append(page_size)
            if page_size > 6:
                raise ApiError("bad_response", "more than 8 MiB", too_large=True)
        return ask(page_size=page_size, with_variation=with_variation, **query)  # type: ignore[arg-type]

    world.exporter.api.agents = agents  # type: ignore[assignment, method-assign]
    assert world.scrape(2).keys() == {BUSY, IDLE}
    assert sizes[:3] == [100, 25, 6]
    assert set(sizes[3:]) == {6}
    out = io.StringIO()
    assert check.run(world.exporter.api, world.settings.selection, 1, None, out) == 0  # type: ignore[arg-type]
    assert out.getvalue().endswith("2 agents, 0 cannot be read\n")
    world.exporter.close()


BUSY, IDLE = 1, 2
ODD_LISTS: dict[str, Answer] = {
    "503": Answer(503, {}, b'{"error": {"message": "no"}}'),
    "empty": Answer(200, {}, b'{"agents": []}'),
    "one malformed": Answer(200, {}, b'{"agents": [{"id": 1, "name": "Agent 1"}, {"id": "2"}]}'),
}


@pytest.mark.parametrize("odd", ODD_LISTS)
def test_an_odd_list_of_agents_after_a_downtime_costs_no_account(tmp_path: Path, odd: str) -> None:
    world = Found(tmp_path)
    world.run(IDLE, 1, 60)
    world.run(BUSY, 40, 60)
    world.exporter.close()
    for agent_id in (BUSY, IDLE):
        world.run(agent_id, 24, 3600, scraped=False)
    world.start()
    world.modus.fault = lambda request: ODD_LISTS[odd] if request.operation == "list_agents" else None
    world.scrape(1)
    world.modus.fault = None
    assert world.scrape() == {BUSY: 64, IDLE: 25}
    world.exporter.close()


def test_an_agent_that_failed_for_long_and_is_missing_from_one_list_goes_on(tmp_path: Path) -> None:
    world = Found(tmp_path)
    world.run(IDLE, 5, 60)
    world.modus.fault = lambda request: world.modus.error(500) if request.agent_id == IDLE else None
    world.run(IDLE, 27 * 6, 600)
    world.modus.agents[IDLE].raw = b'{"id": null}'
    world.scrape()
    world.modus.agents[IDLE].raw = world.modus.fault = None
    assert world.scrape()[IDLE] == 5 + 27 * 6
    world.exporter.close()


def test_an_agent_that_was_missing_from_one_list_of_before_an_outage_goes_on(tmp_path: Path) -> None:
    world = Found(tmp_path)
    world.run(IDLE, 5, 60)
    world.modus.agents[IDLE].raw = b'{"id": null}'
    world.scrape()
    world.modus.agents[IDLE].raw = None
    world.modus.fault = lambda request: world.modus.error(500) if request.operation == "list_agents" else None
    world.run(IDLE, 27 * 6, 600)
    world.modus.fault = None
    assert world.scrape()[IDLE] == 5 + 27 * 6
    world.exporter.close()


def test_idle_agents_stay_in_the_exposition_when_the_list_fails_after_a_restart_and_gone_ones_do_not(
    tmp_path: Path,
) -> None:
    world = Found(tmp_path)
    world.modus.add_agent(3, "Agent 3")
    world.run(IDLE, 1, 60)
    world.modus.agents[3].deleted_at = 0.0
    world.run(BUSY, 30, 3600)
    read = world.exporter.ledger.agents()[IDLE].last_read
    world.exporter.close()
    world.start()
    assert world.exporter.ledger.agents()[IDLE].last_read == read
    world.modus.fault = lambda request: world.modus.error(500) if request.operation == "list_agents" else None
    assert world.scrape(1) == {BUSY: 30, IDLE: 1}
    world.exporter.close()


def test_a_downtime_is_no_absence_also_when_a_second_one_follows(tmp_path: Path) -> None:
    world = Found(tmp_path)
    world.run(IDLE, 5, 60)
    world.modus.agents[IDLE].raw = b'{"id": null}'
    world.scrape()
    for _ in range(2):
        world.exporter.close()
        world.clock.advance(2 * DAY)
        world.start()
        world.run(BUSY, 3, 60)
    world.modus.agents[IDLE].raw = None
    assert world.scrape() == {BUSY: 6, IDLE: 5}
    world.exporter.close()


def test_agents_that_are_gone_leave_also_when_the_exporter_restarts_every_day(tmp_path: Path) -> None:
    world = Found(tmp_path)
    world.run(IDLE, 1, 60)
    world.modus.agents[IDLE].deleted_at = 0.0
    for _ in range(3):
        world.run(BUSY, 20, 3600)
        world.exporter.close()
        world.clock.advance(60)
        world.start()
    assert world.exporter.ledger.agents().keys() == {BUSY}
    world.exporter.close()
