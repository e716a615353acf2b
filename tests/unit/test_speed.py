"""What was won is not lost: calls, requests, statements and bytes are counted, never seconds."""

import json
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from exporter.deadline import Deadline
from exporter.demo.simulator import SimulatedModus
from exporter.metrics.table import Snapshot, expose
from exporter.modus.client import ModusClient
from tests.oracle import expected
from tests.simulation import Clock, Exporter, settings
from tests.unit.test_ledger import a_run, ledger, record

AGENTS = range(1, 41)


def calls(work: Callable[[], object]) -> int:
    """Function calls of this thread, those into C included."""
    counted = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


class World:
    """Forty agents with runs, and the exporter, its state in a file."""

    def __init__(self, directory: Path, runs: int = 20) -> None:
        self.clock = Clock()
        self.modus = SimulatedModus(fleet={}, clock=self.clock)
        for agent_id in AGENTS:
            self.modus.add_agent(agent_id, f"Agent {agent_id}")
            for n in range(runs):
                self.modus.start_run(agent_id, self.clock() - 3600 - 60 * n, lasts=30.0)
        self.exporter = Exporter(self.modus, str(directory / "state.db"), settings(*AGENTS))

    def scrape(self) -> Snapshot:
        return self.exporter.collector.scrape(None)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.exporter.close()


def test_an_agent_costs_one_request_when_nothing_happened(world: World) -> None:
    world.scrape()
    world.modus.requests.clear()
    world.scrape()
    assert len(world.modus.requests) == len(AGENTS)


def test_two_scrapers_within_the_minimal_interval_cost_what_one_does(world: World) -> None:
    world.exporter.collector.reload(lambda: world.exporter.api, replace(settings(*AGENTS), min_interval=60.0))
    world.scrape()
    world.modus.requests.clear()
    assert world.scrape() is world.scrape()
    assert not world.modus.requests


def test_a_scrape_in_which_nothing_happened_writes_no_account_and_no_run(world: World) -> None:
    for _ in range(3):
        world.clock.advance(60)
        world.scrape()
    statements: list[str] = []
    world.exporter.ledger._file._db.set_trace_callback(statements.append)
    world.clock.advance(60)
    world.scrape()
    written = {statement.split()[4] for statement in statements if statement.startswith("INSERT")}
    assert written == {"meta"}


def test_rendering_takes_a_fortieth_of_the_librarys_function_calls(world: World) -> None:
    world.scrape()
    snapshot = world.scrape()
    list(expose(snapshot, True))  # label texts are made once
    ours = calls(lambda: list(expose(snapshot, True)))
    assert ours < calls(lambda: expected(snapshot, True)) / 40


def test_a_request_takes_fewer_function_calls_than_a_plain_session() -> None:
    modus = SimulatedModus(fleet={}).start()
    modus.add_agent(1, "Any agent")
    for n in range(5):
        modus.start_run(1, time.time() - 3600 - n, lasts=30.0)
    client = ModusClient(modus.url, lambda: modus.token)
    url = f"{modus.url}/api/v1/agents/1/runs?pageSize=5"
    headers = {"Authorization": f"Bearer {modus.token}"}
    try:
        with requests.Session() as session:

            def ours() -> None:
                client.runs(1, deadline=Deadline(60), page_size=5)

            def plain() -> None:
                json.loads(session.get(url, headers=headers, timeout=10).content)

            for each in (ours, plain):
                each()  # connects
            assert calls(ours) < calls(plain) * 0.25
    finally:
        client.close()
        modus.close()


def test_the_exposition_comes_in_pieces_that_do_not_grow_with_the_fleet(world: World) -> None:
    snapshot = world.scrape()
    large = replace(snapshot, agents=list(snapshot.agents) * 25)
    pieces = [len(piece) for piece in expose(large, True)]
    assert sum(pieces) > 5_000_000
    assert max(pieces) < 3_000_000


def test_runs_are_let_go_as_soon_as_they_are_counted(tmp_path: Path) -> None:
    world = World(tmp_path, runs=100)
    tracemalloc.start()
    try:
        world.scrape()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        world.exporter.close()
    assert kept > 170 * 100 * len(AGENTS)  # the ids: what was counted
    assert peak - kept < 400_000  # not the 4,000 runs of the first pages, at once


def test_a_commit_makes_no_copy_of_what_it_writes(tmp_path: Path) -> None:
    book = ledger(str(tmp_path / "state.db"), Clock())
    tracemalloc.start()
    try:
        record(book, *(a_run(f"wf:{n}") for n in range(4000)))
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        book.commit()
        assert tracemalloc.get_traced_memory()[1] - before < 50_000
        assert before < 4000 * 150  # bytes, of which the id itself takes the most
    finally:
        tracemalloc.stop()
        book.close()


def test_a_pass_hands_work_to_its_threads_once_not_once_per_agent(world: World) -> None:
    world.scrape()
    assert calls(world.scrape) < 45 * len(AGENTS)  # in the thread that leads; the agents are read in others


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind threads to CPUs")
def test_all_threads_that_read_stay_on_one_cpu_that_the_process_may_use(world: World) -> None:
    world.exporter.collector.reload(lambda: world.exporter.api, replace(settings(*AGENTS), concurrency=8))
    others = threading.enumerate()
    world.scrape()
    readers = [thread for thread in threading.enumerate() if thread not in others]
    cpus = [os.sched_getaffinity(thread.native_id or 0) for thread in readers]
    assert readers
    assert len(cpus[0]) == 1
    assert cpus == cpus[:1] * len(cpus)
    assert cpus[0] <= os.sched_getaffinity(0)
