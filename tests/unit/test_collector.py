"""One scrape of all agents: what each fault costs, within which time, and what stays."""

import dataclasses
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from exporter import turn
from exporter.deadline import Deadline
from exporter.demo.simulator import Answer, SimulatedModus
from exporter.metrics.collector import RunsCollector
from exporter.metrics.readerrors import MAX_LINES
from exporter.metrics.settings import Settings
from exporter.metrics.snapshot import AgentSnapshot, Snapshot
from exporter.modus.client import ModusClient
from exporter.modus.discovery import Selection
from exporter.modus.errors import ApiError
from exporter.modus.model import LONGEST_LABEL, AgentsPage, RunsPage
from exporter.modus.routes import LOOK_AGAIN
from exporter.runs.ledger import Ledger
from exporter.runs.scrape import STRAGGLER
from exporter.turn import TURN
from exporter.waits import waited
from tests.e2e.harness import wait_for
from tests.simulation import BOUNDS, ILL, START, WELL, Clock, DirectApi, finished, settings

HOUR = 3600.0
HANG = 20.0  # seconds: only a protection that is gone takes this long


class NoDate(SimulatedModus):
    """An API, or a proxy before it, that does not tell the time."""

    def _json(self, status: int, body: object, **headers: str) -> Answer:
        answer = super()._json(status, body, **headers)
        del answer.headers["Date"]
        return answer


class Exporter:
    """Collector, ledger and client over real HTTP, with a clock of their own."""

    def __init__(self, modus: SimulatedModus, path: str | None, chosen: Settings, **client: Any) -> None:
        self.modus = modus
        self.clock: Callable[[], float] = client.pop("clock", modus.clock)
        monotonic = client.get("monotonic", time.monotonic)
        options = {"resource": "agents", "sleep": lambda _: None} | client
        self.client = ModusClient(modus.url, lambda: "demo", clock=self.clock, **options)
        self.ledger = Ledger(path, BOUNDS, lookback=chosen.limits.lookback, clock=self.clock)
        self.collector = RunsCollector(
            self.client,
            self.ledger,
            chosen,
            reload_state=lambda: (True, 0.0),
            clock=self.clock,
            monotonic=monotonic,
        )

    def scrape(self, timeout: float | None = HANG) -> dict[int, AgentSnapshot]:
        return {agent.id: agent for agent in self.collector.scrape(timeout).agents}

    def close(self) -> None:
        self.collector.close()
        self.ledger.close()
        self.client.close()


@contextmanager
def serving(modus: SimulatedModus) -> Iterator[SimulatedModus]:
    modus.start()
    try:
        yield modus
    finally:
        modus.close()


def parallel(chosen: Settings, **changes: Any) -> Settings:
    return dataclasses.replace(chosen, **({"concurrency": 4} | changes))


def in_background(work: Callable[[], Any]) -> "Future[Any]":
    """Run `work` in a thread that does not outlive a failing test."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


# --- one agent that cannot be read ---


def hung(release: threading.Event) -> Answer:
    release.wait(HANG)
    return Answer(0, {}, b"")


FAULTS: dict[str, tuple[str, Callable[[SimulatedModus, threading.Event], Answer]]] = {
    "401": ("unauthorized", lambda modus, _: modus.error(401)),
    "403": ("forbidden", lambda modus, _: modus.error(403, info={"missing": ["agents:invoke"]})),
    "404": ("not_found", lambda modus, _: modus.error(404)),
    "500": ("server_error", lambda modus, _: modus.error(500)),
    "503 of a proxy": ("server_error", lambda modus, _: Answer(503, {}, b"<html>")),
    "hang up": ("connection", lambda modus, _: Answer(0, {}, b"")),
    "html": ("bad_response", lambda modus, _: Answer(200, {}, b"<html>")),
    "wrong types": ("bad_response", lambda modus, _: Answer(200, {}, b'{"runs": 5, "counts": []}')),
    "nested brackets": ("bad_response", lambda modus, _: Answer(200, {}, b"[" * 100_000)),
    "truncated": (
        "bad_response",
        lambda modus, _: Answer(200, {"Content-Length": "999", "Connection": "close"}, b'{"runs": ['),
    ),
    "redirect": (
        "bad_response",
        lambda modus, _: Answer(302, {"Location": "http://else.invalid/"}, b""),
    ),
    "no answer": ("timeout", lambda modus, release: hung(release)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_agent_that_cannot_be_read_says_why_and_keeps_its_totals_while_the_other_goes_on(
    modus: SimulatedModus, tmp_path: Path, name: str
) -> None:
    reason, answer = FAULTS[name]
    release = threading.Event()
    timeout = 1.0 if name == "no answer" else HANG
    exporter = Exporter(modus, str(tmp_path / "state.db"), parallel(settings(ILL, WELL)), timeout=timeout)
    before = exporter.scrape()
    assert all(agent.up for agent in before.values())
    modus.fault = lambda request: answer(modus, release) if request.agent_id == ILL else None
    for agent_id in (ILL, WELL):
        modus.start_run(agent_id, lasts=0.0)
    shown = exporter.scrape()
    ill, well = shown[ILL], shown[WELL]
    assert (ill.up, ill.errors) == (False, {reason: 1})
    assert (ill.counts, ill.open_starts) == (None, None)  # what is live is not known
    assert finished(ill) == finished(before[ILL]) == {"completed": 3, "error": 0, "cancelled": 0}
    assert (ill.name, ill.last_read) == ("Agent 1", before[ILL].last_read)
    assert (well.up, well.errors, finished(well)["completed"]) == (True, {}, 4)
    assert well.counts is not None
    assert well.open_starts is not None
    assert not exporter.collector.scrape(HANG).complete
    modus.fault = None
    release.set()
    again = exporter.scrape()[ILL]
    assert (again.up, again.errors, finished(again)["completed"]) == (True, {reason: 2}, 4)
    exporter.close()


def test_an_agent_that_was_read_in_part_is_not_up_but_what_was_read_counts(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    exporter = Exporter(modus, str(tmp_path / "state.db"), settings(ILL))
    modus.fault = lambda request: modus.error(403) if "status" in request.query else None
    agent = exporter.scrape()[ILL]
    assert (agent.up, agent.counts, agent.open_starts) == (False, None, None)
    assert finished(agent)["completed"] == 3
    exporter.close()


def test_an_api_that_is_not_there_leaves_only_what_was_counted(modus: SimulatedModus, tmp_path: Path) -> None:
    exporter = Exporter(modus, str(tmp_path / "state.db"), settings(ILL, WELL))
    exporter.scrape()
    modus.close()
    for agent in exporter.scrape().values():
        assert (agent.up, agent.errors, finished(agent)["completed"]) == (False, {"connection": 1}, 3)
    exporter.close()


def test_the_log_has_one_line_per_change_and_not_one_per_scrape(
    modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = Exporter(modus, None, settings(ILL, WELL))
    caplog.set_level(logging.INFO, "exporter.metrics.readerrors")
    for fault in (None, lambda _: modus.error(500), None):
        modus.fault = fault
        for _ in range(3):
            exporter.scrape()
    lines = [(record.levelname, record.message, record.fields["agent_id"]) for record in caplog.records]
    assert sorted(lines) == [
        ("INFO", "agent can be read again", ILL),
        ("INFO", "agent can be read again", WELL),
        ("WARNING", "agent cannot be read", ILL),
        ("WARNING", "agent cannot be read", WELL),
    ]
    exporter.close()


def test_the_line_of_an_agent_that_cannot_be_read_says_what_to_do(
    modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    modus.scopes = ("agents:read",)
    exporter = Exporter(modus, None, settings(ILL))
    exporter.scrape()
    exporter.close()
    (record,) = [record for record in caplog.records if record.message == "agent cannot be read"]
    told = record.fields  # type: ignore[attr-defined]
    assert (told["reason"], told["hint"]) == ("forbidden", "give the token the scope agents:invoke")


def test_c24_a_renamed_route_is_found_though_a_deleted_agent_is_always_asked_first(
    modus: SimulatedModus,
) -> None:
    uptime = Clock()
    exporter = Exporter(modus, None, settings(ILL, WELL), resource="auto", monotonic=uptime)  # one at a time
    modus.resources = ("agents",)
    assert exporter.scrape()[WELL].up
    modus.remove_agent(ILL)
    exporter.scrape()
    modus.resources = ("workflows",)
    for _ in range(3):
        uptime.advance(LOOK_AGAIN + 1)
        shown = exporter.scrape()
    assert (shown[ILL].up, shown[WELL].up) == (False, True)
    exporter.close()


def test_many_agents_that_fail_at_once_are_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    modus = SimulatedModus(fleet={}, clock=Clock())
    collector, _ = direct(modus, settings(*range(200)))
    caplog.set_level(logging.INFO, "exporter.metrics.readerrors")
    collector.scrape(None)
    assert len(caplog.records) == MAX_LINES + 1
    assert caplog.records[-1].fields == {"more": 200 - MAX_LINES, "unreadable": 200}  # type: ignore[attr-defined]


def test_a_name_without_end_is_cut_and_a_thousand_names_are_one_at_a_time(tmp_path: Path) -> None:
    modus = SimulatedModus(fleet={}, clock=(clock := Clock()))
    modus.add_agent(ILL, "x" * 100_000)
    collector, _ = direct(modus, settings(ILL), str(tmp_path / "state.db"))
    for number in range(50):
        modus.start_run(ILL, lasts=1.0)
        clock.advance(10)
        (agent,) = collector.scrape(None).agents
        assert len(agent.name) <= LONGEST_LABEL
        modus.rename(ILL, f"Name {number}")
    assert agent.name == "Name 48"
    assert finished(agent)["completed"] == 50


# --- the time of a scrape ---


class NotedApi(DirectApi):
    """Notes who was asked and until when; every request takes a second of a clock moved by hand."""

    def __init__(self, modus: SimulatedModus, monotonic: Clock) -> None:
        super().__init__(modus)
        self.asked: list[int] = []
        self.seconds: set[float] = set()  # that requests had
        self.before = lambda: monotonic.advance(1.0)

    def runs(self, agent_id: int, *, deadline: Deadline, **query: Any) -> RunsPage:
        self.asked.append(agent_id)
        self.seconds.add(deadline.left())
        return super().runs(agent_id, deadline=deadline, **query)


def direct(
    modus: SimulatedModus, chosen: Settings, path: str | None = None, **more: Any
) -> tuple[RunsCollector, Ledger]:
    ledger = more.pop("ledger", None) or Ledger(path, BOUNDS, lookback=86400, clock=modus.clock)
    api = more.pop("api", None) or DirectApi(modus)
    state = {"reload_state": lambda: (True, 0.0), "clock": modus.clock} | more
    return RunsCollector(api, ledger, chosen, **state), ledger


@pytest.mark.parametrize(("timeout", "seconds"), [(20.0, 19.5), (None, 9.5), (0.6, 9.5), (1e5, 299.5)])
def test_a_scrape_has_its_callers_time_less_the_offset_and_never_less_than_the_default(
    timeout: float | None, seconds: float
) -> None:
    modus, monotonic = SimulatedModus(fleet={}, clock=Clock()), Clock(1000.0)
    for agent_id in (ILL, WELL):
        modus.add_agent(agent_id, "Any agent")
    api = NotedApi(modus, monotonic)
    api.before = lambda: None
    chosen = dataclasses.replace(settings(ILL, WELL), default_timeout=10.0)
    collector, _ = direct(modus, chosen, api=api, monotonic=monotonic)
    collector.scrape(timeout)
    assert {round(left, 2) for left in api.seconds} == {seconds}
    assert set(api.asked) == {ILL, WELL}


def test_agents_for_which_the_time_did_not_suffice_are_marked_and_come_first_the_next_time() -> None:
    modus, monotonic = SimulatedModus(fleet={}, clock=Clock()), Clock(1000.0)
    for agent_id in range(1, 7):
        modus.add_agent(agent_id, "Any agent")
    api = NotedApi(modus, monotonic)
    chosen = dataclasses.replace(settings(*range(1, 7)), default_timeout=6.5)
    collector, _ = direct(modus, chosen, api=api, monotonic=monotonic)
    read: list[list[int]] = []
    for _ in range(3):
        snapshot = collector.scrape(6.5)  # seconds, of which an agent's first reading takes three
        read.append([agent.id for agent in snapshot.agents if agent.up])
        left = [agent for agent in snapshot.agents if not agent.up]
        assert {reason for agent in left for reason in agent.errors} <= {"deadline"}
        assert not snapshot.complete
        assert [agent.id for agent in snapshot.agents] == [1, 2, 3, 4, 5, 6]
    assert read == [[1, 2], [3, 4], [5, 6]]


def test_an_api_that_does_not_answer_holds_a_scrape_no_longer_than_its_deadline(
    modus: SimulatedModus,
) -> None:
    release = threading.Event()
    exporter = Exporter(modus, None, parallel(settings(ILL, WELL)), timeout=HANG)
    exporter.scrape()
    modus.fault = lambda request: hung(release) if request.agent_id == ILL else None
    began = time.monotonic()
    shown = exporter.scrape(1.5)
    assert time.monotonic() - began < 1.5  # when the scraper gives up
    assert (shown[ILL].errors, shown[WELL].up) == ({"deadline": 1}, True)
    release.set()
    exporter.close()


class Gates(DirectApi):
    """Requests of an agent with a gate wait for it, whatever their deadline: as a lookup in the DNS does."""

    def __init__(self, modus: SimulatedModus) -> None:
        super().__init__(modus)
        self.gates: dict[int, threading.Event | threading.Barrier] = {}
        self.waiting: list[int] = []
        self.list_gate: threading.Event | None = None

    def runs(self, agent_id: int, **query: Any) -> RunsPage:
        if gate := self.gates.get(agent_id):
            self.waiting.append(agent_id)
            TURN.wait(gate.wait, HANG)
        return super().runs(agent_id, **query)

    def agents(self, **query: Any) -> AgentsPage:
        if self.list_gate:
            self.waiting.append(0)
            self.list_gate.wait(HANG)
        return super().agents(**query)


@pytest.fixture
def gates() -> Iterator[Gates]:
    modus = SimulatedModus(fleet={}, clock=Clock())
    for agent_id in (ILL, WELL):
        modus.add_agent(agent_id, f"Agent {agent_id}")
        modus.start_run(agent_id, at=START - 60, lasts=5.0)
    gates = Gates(modus)
    yield gates
    for gate in [*gates.gates.values(), gates.list_gate]:
        if gate:
            gate.set()


class Computing(DirectApi):
    """Requests of which each computes for a moment; `most` of them did at once."""

    now = most = 0

    def runs(self, agent_id: int, **query: Any) -> RunsPage:
        self.now += 1
        self.most = max(self.most, self.now)
        threading.Event().wait(0.001)  # as when the interpreter serves another thread
        self.now -= 1
        return super().runs(agent_id, **query)


def test_one_thread_that_reads_computes_at_a_time_so_that_the_server_answers_meanwhile() -> None:
    agents, modus = range(1, 33), SimulatedModus(fleet={}, clock=Clock())
    for agent_id in agents:
        modus.add_agent(agent_id, f"Agent {agent_id}")
    api = Computing(modus)
    collector, _ = direct(modus, parallel(settings(*agents), concurrency=8), api=api)
    assert collector.scrape(HANG).complete
    assert api.most == 1


def test_threads_that_wait_for_the_api_wait_side_by_side(
    modus: SimulatedModus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "PATIENCE", HANG)
    both = threading.Barrier(2)
    modus.fault = lambda request: both.wait(HANG / 2) and None
    exporter = Exporter(modus, None, parallel(settings(ILL, WELL)))
    assert all(agent.up for agent in exporter.scrape().values())
    exporter.close()


def test_a_request_left_behind_by_one_scrape_does_not_cut_the_next_one_short(gates: Gates) -> None:
    chosen = parallel(settings(ILL, WELL), timeout_offset=0.0, default_timeout=0.2)
    collector, _ = direct(gates.modus, chosen, api=gates)
    left_behind = gates.gates[ILL] = threading.Event()
    assert [agent.up for agent in collector.scrape(0.2).agents] == [False, True]
    del gates.gates[ILL]
    slow = gates.gates[WELL] = threading.Event()
    scrape = in_background(lambda: collector.scrape(HANG))
    wait_for("the second scrape asks", lambda: gates.waiting == [ILL, WELL])
    left_behind.set()
    with pytest.raises(TimeoutError):
        scrape.result(0.5)
    slow.set()
    assert [agent.up for agent in scrape.result(HANG).agents] == [True, True]


def listing(chosen: Settings) -> Settings:
    return dataclasses.replace(chosen, selection=Selection([], ["*"]), concurrency=4)


def test_a_list_of_agents_that_does_not_come_holds_nobody_up(gates: Gates) -> None:
    gates.list_gate = threading.Event()
    collector, _ = direct(gates.modus, listing(settings()), api=gates)
    began = time.monotonic()
    snapshot = collector.scrape(0.5)
    assert time.monotonic() - began < HANG / 2
    assert (snapshot.agents, snapshot.complete) == ([], False)
    gates.list_gate.set()
    wait_for("the agents are listed", lambda: len(collector.scrape(HANG).agents) == 2)


@pytest.mark.parametrize("listed", [False, True])
def test_closing_cuts_a_scrape_short_and_what_was_read_is_counted(gates: Gates, listed: bool) -> None:
    gate = threading.Event()
    if listed:
        gates.gates[ILL] = gate
    else:
        gates.list_gate = gate
    chosen = parallel(settings(ILL, WELL)) if listed else listing(settings())
    ledger = Ledger(None, BOUNDS, lookback=86400, clock=lambda: START - HOUR)  # counts what ended since
    collector, _ = direct(gates.modus, chosen, api=gates, ledger=ledger)
    scrape = in_background(lambda: collector.scrape(HANG))
    wait_for("the scrape asks", lambda: gates.waiting)
    if listed:
        wait_for("the other agent is read", lambda: len(gates.modus.requests) == 3)
        time.sleep(0.1)  # from its answer to the end of its reading
    began = time.monotonic()
    collector.close()
    assert time.monotonic() - began < HANG / 2
    shown = {agent.id: agent for agent in scrape.result(HANG).agents}
    if listed:
        assert finished(shown[WELL])["completed"] == 1
        assert not shown[ILL].up


# --- 429 ---


def test_a_429_silences_all_requests_across_scrapes_until_its_time_has_passed(modus: SimulatedModus) -> None:
    monotonic = Clock(1000.0)
    exporter = Exporter(modus, None, settings(ILL, WELL), monotonic=monotonic)
    exporter.scrape()
    modus.requests.clear()
    modus.fault = lambda request: modus.error(429, **{"Retry-After": "40"})
    shown = exporter.scrape()
    assert [agent.errors for agent in shown.values()] == [{"rate_limited": 1}] * 2
    assert len(modus.requests) == 1
    modus.fault = None
    for passed in (10.0, 10.0, 19.0):
        monotonic.advance(passed)
        assert not any(agent.up for agent in exporter.scrape().values())
    assert len(modus.requests) == 1
    monotonic.advance(1.5)
    assert all(agent.up for agent in exporter.scrape().values())
    exporter.close()


def test_the_errors_of_an_agent_are_shown_at_0_before_the_first_one_counts(modus: SimulatedModus) -> None:
    modus.fault = lambda request: modus.error(403)
    exporter = Exporter(modus, None, settings(ILL))
    assert [exporter.scrape()[ILL].errors for _ in range(2)] == [{}, {"forbidden": 2}]


def test_the_api_is_not_up_because_it_once_listed_the_agents(modus: SimulatedModus) -> None:
    exporter = Exporter(modus, None, listing(settings()))
    assert exporter.collector.scrape(None).up
    modus.close()
    assert not exporter.collector.scrape(None).up


def test_an_api_without_agents_is_up_while_nothing_is_asked_of_it() -> None:
    modus = SimulatedModus(fleet={}).start()
    exporter = Exporter(modus, None, listing(settings()))
    assert [exporter.collector.scrape(None).up for _ in range(2)] == [True, True]


def test_a_reload_while_the_api_is_away_keeps_what_it_listed(modus: SimulatedModus) -> None:
    exporter = Exporter(modus, None, listing(settings()))
    before = exporter.scrape()
    modus.close()
    exporter.collector.reload(lambda: exporter.client, listing(settings()))
    after = exporter.scrape()
    assert {id_: agent.enabled for id_, agent in after.items()} == {
        id_: agent.enabled for id_, agent in before.items()
    }
    assert {agent.enabled for agent in after.values()} != {None}


# --- scrapes at once ---


def test_concurrent_scrapes_share_one_pass(gates: Gates) -> None:
    gate = gates.gates[ILL] = threading.Event()
    collector, _ = direct(gates.modus, parallel(settings(ILL)), api=gates)
    with ThreadPoolExecutor(5) as pool:
        scrapes = [pool.submit(collector.scrape, HANG)]
        wait_for("the first one asks", lambda: gates.waiting)
        scrapes += [pool.submit(collector.scrape, HANG) for _ in range(4)]
        gate.set()
        assert all(scrape.result(HANG).complete for scrape in scrapes)
    assert gates.waiting == [ILL] * 3  # one page and two lists of open runs, once
    assert collector.scrape(HANG).complete
    assert gates.waiting == [ILL] * 4


def test_who_has_less_time_gets_what_is_known_by_then_and_who_has_more_gets_all(gates: Gates) -> None:
    gate = gates.gates[ILL] = threading.Event()
    collector, _ = direct(gates.modus, parallel(settings(ILL, WELL)), api=gates)
    for timeout in (0.001, 1.0):
        impatient = collector.scrape(timeout)
        assert not impatient.complete
    assert [agent.up for agent in impatient.agents] == [False, True]
    patient = in_background(lambda: collector.scrape(HANG))
    impatient = collector.scrape(0.5)
    assert [agent.up for agent in impatient.agents] == [False, True]
    gate.set()
    assert patient.result(HANG).complete


def test_a_caller_with_more_time_extends_the_scrape_that_another_one_began(gates: Gates) -> None:
    gate = gates.gates[ILL] = threading.Event()
    chosen = parallel(settings(ILL, WELL), default_timeout=1.0)
    collector, _ = direct(gates.modus, chosen, api=gates)
    first = in_background(lambda: collector.scrape(1.0))
    wait_for("the first one asks", lambda: ILL in gates.waiting)
    second = in_background(lambda: collector.scrape(HANG))
    assert not first.result(HANG).complete
    time.sleep(2 * STRAGGLER)  # without the second one it would be over
    gate.set()
    assert second.result(HANG).complete
    assert gates.waiting.count(ILL) == 3  # one pass


def test_a_result_that_a_short_deadline_cut_is_not_served_again_to_who_has_more_time(gates: Gates) -> None:
    gate = gates.gates[ILL] = threading.Event()
    chosen = parallel(settings(ILL, WELL), default_timeout=0.5, min_interval=60.0)
    collector, _ = direct(gates.modus, chosen, api=gates)
    cut = waited(collector.reading(0.5))
    cut.finished.result(HANG)
    assert not collector.snapshot(cut).complete
    gate.set()
    assert collector.scrape(HANG).complete


def test_what_comes_back_after_the_end_of_a_scrape_changes_nothing(gates: Gates) -> None:
    gate = gates.gates[ILL] = threading.Event()
    chosen = parallel(settings(ILL, WELL), default_timeout=0.5, concurrency=2)
    clock = Clock()
    collector, ledger = direct(
        gates.modus, chosen, api=gates, ledger=Ledger(None, BOUNDS, lookback=86400, clock=clock)
    )
    collector.scrape(0.5)
    del gates.gates[ILL]
    assert collector.scrape(HANG).complete
    before, asked = ledger.agents()[ILL].last_read, len(gates.modus.requests)
    clock.advance(100)
    gate.set()
    wait_for("the straggler has asked for all it wants", lambda: len(gates.modus.requests) == asked + 3)
    found: list[float | None] = []
    both = threading.Barrier(2, lambda: found.append(ledger.agents()[ILL].last_read))
    gates.gates = {ILL: both, WELL: both}  # they meet when the straggler has given its thread back
    assert collector.scrape(HANG).complete
    gates.gates = {}
    assert found == [before]


def test_a_second_scraper_within_the_minimum_interval_gets_the_last_pass() -> None:
    modus, monotonic = SimulatedModus(fleet={}, clock=Clock()), Clock(1000.0)
    modus.add_agent(ILL, "Any agent")
    chosen = dataclasses.replace(settings(ILL), min_interval=10.0)
    collector, _ = direct(modus, chosen, monotonic=monotonic)
    assert collector.scrape(None).complete
    asked = len(modus.requests)
    monotonic.advance(9.9)
    assert collector.scrape(None).complete
    assert len(modus.requests) == asked
    monotonic.advance(0.1)
    assert collector.scrape(None).complete
    assert len(modus.requests) > asked


class FailsOnce(Ledger):
    failures = 1

    def commit_piece(self) -> bool:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a mistake of ours")
        return super().commit_piece()


def test_a_mistake_in_the_commit_is_one_line_and_a_metric(caplog: pytest.LogCaptureFixture) -> None:
    modus = SimulatedModus(fleet={}, clock=Clock())
    modus.add_agent(ILL, "Any agent")
    ledger = FailsOnce(None, BOUNDS, lookback=86400, clock=modus.clock)
    collector, _ = direct(modus, settings(ILL), ledger=ledger)
    assert not collector.scrape(None).ledger_up
    assert collector.scrape(None).ledger_up
    assert [record.message for record in caplog.records] == ["a commit failed"]


def mistaken(agent_id: int, *_: object) -> None:
    if agent_id == ILL:
        raise KeyError("a mistake of ours")


@pytest.mark.parametrize("where", ["known", "record"])
def test_a_mistake_with_one_agent_is_that_agents_and_names_its_place(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    modus = SimulatedModus(fleet={}, clock=Clock())
    for agent_id in (ILL, WELL):
        modus.add_agent(agent_id, "Any agent")
    ledger = Ledger(None, BOUNDS, lookback=86400, clock=modus.clock)
    right = getattr(ledger, where)
    monkeypatch.setattr(ledger, where, lambda *args: mistaken(*args) or right(*args))  # type: ignore[func-returns-value]
    collector, _ = direct(modus, settings(ILL, WELL), ledger=ledger)
    collector.scrape(None)
    ill, well = collector.scrape(None).agents
    assert (ill.up, ill.errors, well.up) == (False, {"internal": 2}, True)
    (line,) = caplog.records
    assert re.search(r"KeyError at test_collector\.py:\d+: 'a mistake of ours'", line.fields["error"])  # type: ignore[attr-defined]


class SlowDisk(Ledger):
    """Its commits wait for a gate."""

    gate = threading.Event()

    def commit_piece(self) -> bool:
        self.gate.wait(HANG)
        return super().commit_piece()


def test_a_disk_that_hangs_costs_no_scrape_its_timeout_and_shows_what_is_durable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "exporter.runs.committer")
    modus = SimulatedModus(fleet={}, clock=Clock())
    modus.add_agent(ILL, "Any agent")
    ledger = SlowDisk(str(tmp_path / "state.db"), BOUNDS, lookback=86400, clock=modus.clock)
    ledger.gate = threading.Event()
    ledger.gate.set()
    collector, _ = direct(modus, settings(ILL), ledger=ledger)
    assert collector.scrape(None).ledger_up
    ledger.gate.clear()
    modus.start_run(ILL, lasts=0.0)
    shown = collector.scrape(3.0)
    assert not shown.ledger_up
    assert finished(shown.agents[0])["completed"] == 0
    ledger.gate.set()
    again = collector.scrape(HANG)
    assert again.ledger_up
    assert finished(again.agents[0])["completed"] == 1
    slow = "the state is written slowly: what is shown is as of the last commit that ended"
    assert [record.message for record in caplog.records] == [slow, "the state is written in time again"]
    collector.close()
    ledger.close()


# --- reload ---


def test_a_reload_waits_for_the_pass_and_takes_all_of_its_counts_along(modus: SimulatedModus) -> None:
    exporter = Exporter(modus, None, settings(ILL))
    entered, release = threading.Event(), threading.Event()
    modus.fault = lambda request: entered.set() or (release.wait(HANG) and None)  # type: ignore[func-returns-value]
    scrape = in_background(lambda: exporter.collector.scrape(HANG))
    assert entered.wait(HANG)
    connected: list[ModusClient] = []

    def connect() -> ModusClient:
        client = ModusClient(
            modus.url, lambda: "demo", resource="agents", requests_so_far=exporter.client.requests_so_far
        )
        connected.append(client)
        return client

    reload = in_background(lambda: exporter.collector.reload(connect, settings(ILL, WELL)))
    with pytest.raises(TimeoutError):
        reload.result(0.2)
    release.set()
    before: Snapshot = scrape.result(HANG)
    reload.result(HANG)
    assert before.requests == {("list_runs", "200"): 0}  # born
    after = exporter.collector.scrape(HANG)
    assert after.requests["list_runs", "200"] == 3 + 1 + 3
    connected[0].close()
    exporter.close()


@contextmanager
def under_way(collector: RunsCollector, gates: Gates, chosen: Settings) -> Iterator[None]:
    """A reload that connects for as long as this lasts, and is over afterwards."""
    connecting, release = threading.Event(), threading.Event()

    def connect() -> Any:
        connecting.set()
        release.wait(HANG)
        return gates

    reload = in_background(lambda: collector.reload(connect, chosen))
    assert connecting.wait(HANG)
    yield
    release.set()
    reload.result(HANG)


def test_who_leaves_before_a_scrape_knows_its_agents_is_shown_those_of_the_last_one(gates: Gates) -> None:
    collector, _ = direct(gates.modus, settings(ILL, WELL), api=gates)
    collector.scrape(None)
    with under_way(collector, gates, settings(ILL, WELL)):
        shown = collector.scrape(0.05).agents
    assert [(agent.id, agent.up) for agent in shown] == [(ILL, False), (WELL, False)]


def test_a_scrape_that_begins_during_a_reload_reads_with_what_the_reload_brings(gates: Gates) -> None:
    collector, _ = direct(gates.modus, settings(ILL), api=gates)
    assert collector.scrape(HANG).complete
    with under_way(collector, gates, settings(ILL, WELL)):
        collector.scrape(0.001)  # it begins, and waits for the reload
        scrape = in_background(lambda: collector.scrape(HANG))
    assert [agent.up for agent in scrape.result(HANG * 2).agents] == [True, True]


def test_a_reload_loses_no_counter(modus: SimulatedModus, tmp_path: Path) -> None:
    exporter = Exporter(modus, str(tmp_path / "state.db"), settings(ILL, WELL))
    modus.fault = lambda request: modus.error(403) if request.agent_id == ILL else None
    exporter.scrape()
    before = exporter.scrape()
    exporter.collector.reload(lambda: exporter.client, settings(ILL, WELL, page_size=10))
    modus.fault = None
    after = exporter.scrape()
    assert after[ILL].errors == before[ILL].errors == {"forbidden": 2}
    assert finished(after[WELL]) == finished(before[WELL])
    assert finished(after[ILL])["completed"] == 3
    exporter.close()


def test_a_client_that_cannot_be_made_changes_nothing(modus: SimulatedModus) -> None:
    exporter = Exporter(modus, None, settings(ILL))
    exporter.scrape()

    def connect() -> ModusClient:
        return ModusClient("http://[", lambda: "demo")

    with pytest.raises(ApiError):
        exporter.collector.reload(connect, settings(WELL))
    assert exporter.scrape()[ILL].up
    exporter.close()


# --- clocks ---


def ages(agent: AgentSnapshot, now: float) -> dict[str, float]:
    """Seconds since everything that the agent shows as an instant."""
    assert agent.totals is not None
    assert agent.open_starts is not None
    instants: dict[str, float | None] = {"last start": agent.last_start, "last read": agent.last_read}
    instants |= {f"open {status}": start for status, start in agent.open_starts.items()}
    instants |= {f"end {status}": end for status, end in agent.last_end.items()}
    return {name: now - instant for name, instant in instants.items() if instant is not None}


@pytest.mark.parametrize("dated", [True, False], ids=["date", "no-date"])
@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["api-ahead", "api-behind"])
def test_clocks_that_differ_by_an_hour_lose_no_run_and_make_no_age_negative(
    tmp_path: Path, ahead: float, dated: bool
) -> None:
    ours, path, chosen = Clock(), str(tmp_path / "state.db"), settings(ILL)
    world = (SimulatedModus if dated else NoDate)(fleet={}, clock=lambda: ours() + ahead)
    with serving(world) as modus:
        modus.add_agent(ILL, "Any agent")
        for ago in range(3600, 60, -60):
            modus.start_run(ILL, at=modus.clock() - ago, lasts=5.0)
        stuck = modus.start_run(ILL, at=modus.clock() - 1800)
        exporter = Exporter(modus, path, chosen, clock=ours)
        for minute in range(1, 91):
            modus.start_run(ILL, lasts=20.0, visible_from=modus.clock() + 30, outcome="error")
            ours.advance(60)
            if minute == 45:
                exporter.close()
                exporter = Exporter(modus, path, chosen, clock=ours)
            agent = exporter.scrape()[ILL]
            assert min(ages(agent, ours()).values()) >= 0
            if dated:
                truth = modus.clock() - stuck.start
                assert abs(ages(agent, ours())["open running"] - truth) <= 2
                assert abs(ages(agent, ours())["end error"] - 40) <= 2
        assert finished(agent) == {"completed": 59, "error": 90, "cancelled": 0}
        exporter.close()


@pytest.mark.parametrize("dated", [True, False], ids=["date", "no-date"])
@pytest.mark.parametrize("jump", [-HOUR, HOUR], ids=["back", "forward"])
def test_a_clock_that_is_set_while_we_run_loses_no_run_and_makes_no_age_negative(
    tmp_path: Path, jump: float, dated: bool
) -> None:
    ours, theirs = Clock(), Clock()
    with serving((SimulatedModus if dated else NoDate)(fleet={}, clock=theirs)) as modus:
        modus.add_agent(ILL, "Any agent")
        modus.start_run(ILL)
        exporter = Exporter(modus, str(tmp_path / "state.db"), settings(ILL), clock=ours)
        for minute in range(90):
            if minute == 30:
                ours.advance(jump)
            modus.start_run(ILL, lasts=20.0)
            ours.advance(60)
            theirs.advance(60)
            modus.fault = (lambda _: modus.error(403)) if minute == 30 else None
            agent = exporter.scrape()[ILL]
            if minute == 30:
                assert agent.last_read is not None
                assert agent.last_read <= ours()
            else:
                assert min(ages(agent, ours()).values()) >= 0
        assert finished(agent)["completed"] == 90
        exporter.close()


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=["api-ahead", "api-behind"])
def test_without_a_state_file_the_start_of_counting_is_meant_by_the_clock_of_the_api(ahead: float) -> None:
    ours = Clock()
    with serving(SimulatedModus(fleet={}, clock=lambda: ours() + ahead)) as modus:
        modus.add_agent(ILL, "Any agent")
        exporter = Exporter(modus, None, settings(ILL), clock=ours)
        modus.start_run(ILL, at=modus.clock() - 120, lasts=60.0)
        ours.advance(60)
        modus.start_run(ILL, at=modus.clock() - 20, lasts=10.0)
        assert finished(exporter.scrape()[ILL])["completed"] == 1
        exporter.close()


def test_of_two_ends_the_later_one_stays_the_later_one_by_any_clock(tmp_path: Path) -> None:
    """Whether the newest run failed is asked by comparing them: both cut to now would be a tie."""
    ours = Clock()
    with serving(SimulatedModus(fleet={}, clock=lambda: ours() + HOUR)) as modus:
        modus.add_agent(ILL, "Any agent")
        modus.start_run(ILL, at=modus.clock() - 600, lasts=5.0)
        modus.start_run(ILL, at=modus.clock() - 300, lasts=5.0, outcome="error")
        exporter = Exporter(modus, str(tmp_path / "state.db"), settings(ILL), clock=ours)
        ends = exporter.scrape()[ILL].last_end
        assert ends["error"] - ends["completed"] == 300
        assert ends["error"] <= ours()
        exporter.close()


# --- the same for several ---


def test_who_is_shown_the_same_scrape_has_the_same_key_and_who_leaves_earlier_has_not(
    modus: SimulatedModus,
) -> None:
    release = threading.Event()
    exporter = Exporter(modus, None, parallel(settings(ILL, WELL), min_interval=HOUR))
    within = exporter.collector.within
    try:
        modus.fault = lambda request: hung(release) if request.agent_id == ILL else None
        patient = in_background(lambda: waited(within(HANG).reading()))
        early = waited(within(0.5).reading())
        assert early != waited(within(0.5).reading())  # neither has seen the end of it
        modus.fault = None
        release.set()
        late = [waited(within(seconds).reading()) for seconds in (HANG, 2 * HANG)]
        assert early != patient.result(HANG) == late[0] == late[1]
    finally:
        release.set()
        exporter.close()
