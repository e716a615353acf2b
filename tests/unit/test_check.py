"""`--config.check`: a line per agent that says what is wrong and how to mend it, over HTTP."""

import io
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from exporter.demo.simulator import Answer, Request, SimulatedModus
from exporter.metrics.settings import Settings
from exporter.modus.client import ModusClient
from exporter.modus.discovery import Selection
from exporter.runs import check
from tests.simulation import Clock, settings

HEAD = "AGENT  NAME            REACHABLE  RUNS SEEN  WHAT IS WRONG AND HOW TO MEND IT"


@pytest.fixture
def modus() -> Iterator[SimulatedModus]:
    modus = SimulatedModus(fleet={}, clock=Clock()).start()
    modus.add_agent(7, "Any agent")
    modus.add_agent(42, "Invoice triage")
    for _ in range(3):
        modus.start_run(42, lasts=1.0)
    yield modus
    modus.close()


def checked(
    modus: SimulatedModus, chosen: Settings, resource: str = "auto", **more: object
) -> tuple[int, str]:
    """The exit code and what was printed."""
    out = io.StringIO()
    options = {"resource": resource, "timeout": 5.0, "concurrency": 2, "sleep": lambda seconds: None} | more
    client = ModusClient(modus.url, lambda: "demo", **options)  # type: ignore[arg-type]
    code = check.run(client, chosen.selection, chosen.concurrency, chosen.limits.timeframe, out)
    client.close()
    return code, out.getvalue()


def discovering(*include: str) -> Settings:
    return replace(settings(), selection=Selection([], include or ("*",), ["Skip*"]))


def problem(modus: SimulatedModus, resource: str = "auto", **more: object) -> str:
    """What the table says is wrong with agent 42, the only one."""
    code, out = checked(modus, settings(42), resource, **more)
    assert code == 1
    head, row, last = out.splitlines()
    assert row.startswith("42 ")
    assert last == "1 agents, 1 cannot be read"
    return row[head.index("WHAT") :]


def test_the_table_has_a_line_per_agent_and_a_summary(modus: SimulatedModus) -> None:
    code, out = checked(modus, settings(42, 7, 99))
    assert code == 1
    head, *rows, last = out.splitlines()
    assert head == HEAD
    assert rows[0] == "7                      yes        0"
    assert rows[1] == "42     Invoice triage  yes        3"
    assert rows[2].startswith("99                     no                    GET http://")
    assert last == "3 agents, 1 cannot be read"


def test_all_is_well_is_exit_code_0(modus: SimulatedModus) -> None:
    code, out = checked(modus, settings(42))
    assert code == 0
    assert out.splitlines()[-1] == "1 agents, 0 cannot be read"


def test_each_agent_is_asked_once_for_a_single_run(modus: SimulatedModus) -> None:
    checked(modus, settings(7, 42))
    asked = [(request.operation, request.query["pageSize"]) for request in modus.requests]
    assert asked == [("list_runs", "1")] * 2


def test_discovered_agents_are_checked_but_for_those_left_out(
    modus: SimulatedModus,
) -> None:
    modus.add_agent(50, "Skip me")
    modus.add_agent(51, "Gone").deleted_at = 0.0
    for number in range(100, 130):
        modus.add_agent(number, f"Agent {number}")
    code, out = checked(modus, discovering())
    assert code == 0
    assert out.splitlines()[1].split() == ["7", "Any", "agent", "yes", "0"]
    assert "Skip me" not in out
    assert "Gone" not in out
    assert out.splitlines()[-1] == "32 agents, 0 cannot be read"


@pytest.mark.parametrize("resource", ["agents", "workflows"])
def test_a_403_names_the_scope_that_is_missing(modus: SimulatedModus, resource: str) -> None:
    modus.scopes = ()
    assert problem(modus, resource).endswith(f": give the token the scope {resource}:invoke")


@pytest.mark.parametrize("resource", ["agents", "workflows"])
def test_a_403_of_the_list_names_the_scope_too(modus: SimulatedModus, resource: str) -> None:
    modus.scopes = (f"{resource}:invoke",)
    code, out = checked(modus, discovering(), resource)
    assert code == 1
    assert out.startswith("the agents cannot be listed: ")
    assert out.endswith(f": give the token the scope {resource}:read\n")
    assert out.count("\n") == 1


def test_a_404_says_that_the_id_is_unknown(modus: SimulatedModus) -> None:
    del modus.agents[42]
    assert "Resource not found." in problem(modus)
    assert "this id or route is unknown" in problem(modus)


@pytest.mark.parametrize("resource", ["auto", "agents"])
def test_a_404_of_the_route_points_to_the_setting(modus: SimulatedModus, resource: str) -> None:
    modus.resources = () if resource == "auto" else ("workflows",)
    assert problem(modus, resource).endswith("check agents and modus.resource")


def test_a_401_says_where_the_token_comes_from_and_shows_none(modus: SimulatedModus) -> None:
    modus.token = "modus_pat_other"  # noqa: S105 - opens nothing but the simulation
    said = problem(modus)
    come_from = "check the token: MODUS_API_KEY, modus.token or modus.token_file"
    assert said.endswith(f"{come_from}; a token of Modus begins with modus_")  # as this one does not
    assert "demo" not in said
    assert "modus_pat" not in said


def test_an_api_that_is_away_is_said_to_be(modus: SimulatedModus) -> None:
    def hang_up(request: Request) -> Answer:
        return Answer(0, {}, b"")

    modus.fault = hang_up
    assert problem(modus).endswith(": check modus.base_url, the network and the proxy")


def test_another_server_in_its_place_is_said_to_be_one(modus: SimulatedModus) -> None:
    modus.fault = lambda request: Answer(200, {"Content-Type": "text/html"}, b"<h1>Welcome</h1>")
    assert problem(modus).endswith(": this does not look like the Modus API: check modus.base_url")


@pytest.mark.parametrize(("status", "says"), [(429, "limits this token"), (500, "the API failed")])
def test_a_passing_fault_is_said_to_be_one(modus: SimulatedModus, status: int, says: str) -> None:
    modus.fault = lambda request: modus.error(status)
    said = problem(modus)
    assert says in said
    assert said.endswith("try again later")


def test_an_api_that_does_not_answer_is_left_after_the_timeout(modus: SimulatedModus) -> None:
    leave = threading.Event()

    def hang(request: Request) -> None:
        leave.wait(60)

    modus.fault = hang
    said = problem(modus, timeout=0.05)
    leave.set()
    assert said.endswith(
        "no whole answer within 0.05 s (modus.timeout): check the network, or raise modus.timeout"
    )


def test_one_bad_agent_does_not_hide_the_others(modus: SimulatedModus) -> None:
    modus.fault = lambda request: modus.error(500) if request.agent_id == 7 else None
    code, out = checked(modus, settings(7, 42))
    assert code == 1
    assert "42     Invoice triage  yes        3" in out.splitlines()


def test_without_any_agent_there_is_nothing_to_read(modus: SimulatedModus) -> None:
    code, out = checked(modus, discovering("No such*"))
    assert code == 1
    assert out.splitlines()[-1] == "no agents: nothing to read"


def test_a_row_is_one_line_and_columns_stand_below_each_other_whatever_a_name_holds() -> None:
    drawn = check.table(("id", "name", "n"), [("1", "東京", "5"), ("2", "a\nb\x1b[31m\ud800", "6")])
    assert drawn == "ID  NAME       N\n1   東京       5\n2   a b\ufffd[31m\ufffd  6\n"
