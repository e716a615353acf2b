"""What was won is not lost: calls, requests, statements and bytes are counted, never seconds."""

import gc
import http.client
import os
import socket
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from exporter.deadline import Deadline
from exporter.demo.simulator import Request, SimulatedModus
from exporter.metrics import protobuf
from exporter.metrics.exposition import Family, families, write
from exporter.metrics.kept import Kept
from exporter.metrics.snapshot import Snapshot
from exporter.modus.client import ModusClient
from exporter.modus.model import RunsPage
from exporter.modus.response import Response
from exporter.runs.committer import Committer
from exporter.runs.ids import CountedIds
from exporter.runs.store import read_state
from exporter.runs.threads import KeptThreads
from tests.e2e.harness import wait_for
from tests.simulation import Clock, Exporter, settings
from tests.unit.test_ledger import a_run, ledger, reading
from tests.wire import Wire, answering, page, response, run

AGENTS = range(1, 41)


def calls(work: Callable[[], object]) -> int:
    """Function calls of this thread, those into C included: to be compared within one interpreter only."""
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


def test_a_run_is_looked_up_once_when_nothing_happened(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the counted ones: those of a large fleet are in no cache of a CPU."""
    for _ in range(2):
        world.scrape()
    world.modus.requests.clear()
    looked_up: list[str] = []
    find = CountedIds._find

    def counted(ids: CountedIds, id_: str) -> int:
        looked_up.append(id_)
        return find(ids, id_)

    monkeypatch.setattr(CountedIds, "_find", counted)
    world.scrape()
    shown = sum(int(request.query["pageSize"]) for request in world.modus.requests)
    assert len(looked_up) == len(set(looked_up)) == shown


def test_two_scrapers_within_the_minimal_interval_cost_what_one_does(world: World) -> None:
    world.exporter.collector.reload(lambda: world.exporter.api, replace(settings(*AGENTS), min_interval=60.0))
    world.scrape()
    world.modus.requests.clear()
    world.scrape()
    assert not world.modus.requests


def test_a_scrape_in_which_nothing_happened_writes_nothing(world: World, tmp_path: Path) -> None:
    for _ in range(3):
        world.clock.advance(60)
        world.scrape()
    log = tmp_path / "state.db-wal"
    before = log.stat()
    world.clock.advance(60)
    world.scrape()
    assert (log.stat().st_size, log.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_the_text_of_labels_is_made_once_and_not_for_each_agent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.scrape()
    snapshot = world.scrape()
    made: list[tuple[str, tuple[str, ...]]] = []
    own_labels = Family._own_labels

    def counted(family: Family, values: tuple[str, ...]) -> tuple[str, list[str]]:
        made.append((family.name, values))
        return own_labels(family, values)

    monkeypatch.setattr(Family, "_own_labels", counted)
    lines = b"".join(write(families(snapshot), True)).count(b"\n")
    assert len(made) == len(set(made))
    assert len(made) < lines / 10


def test_an_exchange_is_one_write_one_read_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire = Wire(answering(lambda _: response(page(run()))))
    client = ModusClient(wire.url, lambda: "token")
    done: Counter[str] = Counter()

    def count(name: str) -> None:
        original = getattr(socket.socket, name)

        def counted(sock: socket.socket, *args: object) -> object:
            if sock.getpeername()[1] == wire.port:  # else it is the server's, in a thread of its own
                done[name] += 1
            return original(sock, *args)

        monkeypatch.setattr(socket.socket, name, counted, raising=False)

    def ask() -> None:
        client.runs(1, deadline=Deadline(60), page_size=5)

    ask()  # connects
    for name in ("send", "sendall", "sendmsg", "recv", "recv_into", "recvmsg", "settimeout"):
        count(name)
    monkeypatch.setattr(http.client, "parse_headers", None)  # the parser for mail
    gc.collect()  # what other tests left
    gc.disable()
    try:
        for _ in range(10):
            ask()
        assert not [each for each in gc.get_objects() if isinstance(each, Response)]
    finally:
        gc.enable()
    assert done == Counter(send=10, recv=10)


def test_the_exposition_comes_in_pieces_that_do_not_grow_with_the_fleet(world: World) -> None:
    snapshot = world.scrape()
    large = replace(snapshot, agents=list(snapshot.agents) * 25)
    pieces = [len(piece) for piece in write(families(large), True)]
    assert sum(pieces) > 3_000_000
    assert max(pieces) < 1_000_000


def test_protobuf_comes_in_pieces_too(world: World) -> None:
    snapshot = world.scrape()
    large = replace(snapshot, agents=list(snapshot.agents) * 25)
    pieces = [len(piece) for piece in protobuf.write(families(large))]
    assert sum(pieces) > 2_000_000
    assert max(pieces) < 1_000_000


FORMATS = {
    "text": partial(write, openmetrics=False),
    "openmetrics": partial(write, openmetrics=True),
    "protobuf": protobuf.write,
}


@pytest.mark.parametrize("form", FORMATS)
def test_what_an_agent_adds_up_to_is_not_written_anew_until_it_changes(world: World, form: str) -> None:
    kept, write = Kept(), FORMATS[form]
    first = calls(lambda: list(write(families(world.scrape()), kept=kept)))
    scraped = world.scrape()
    again = calls(lambda: list(write(families(scraped), kept=kept)))
    assert again < first - 10 * len(AGENTS)
    world.modus.start_run(1, world.clock() - 100, lasts=30.0)
    for snapshot in (scraped, world.scrape(), replace(scraped, show_created=True), scraped):
        assert b"".join(write(families(snapshot), kept=kept)) == b"".join(write(families(snapshot)))


def test_runs_are_let_go_as_soon_as_they_are_counted(tmp_path: Path) -> None:
    world = World(tmp_path, runs=100)
    tracemalloc.start()
    try:
        world.scrape()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        world.exporter.close()
    assert kept > 80 * 100 * len(AGENTS)  # the ids: what was counted
    assert kept < 250 * 100 * len(AGENTS)  # packed, and no runs
    assert peak < 500 * 100 * len(AGENTS)  # nor were they there at once: ids to be written, a page


def test_a_pass_keeps_little_of_an_agent_that_the_collector_of_circles_looks_through(world: World) -> None:
    """It stops everything meanwhile, and there is nothing for it to find."""
    for _ in range(2):
        world.scrape()
    world.exporter.collector.reload(lambda: world.exporter.api, replace(settings(*AGENTS), concurrency=1))
    tracked: list[int] = []

    def count(request: Request) -> None:
        tracked.append(len(gc.get_objects()))

    world.modus.fault = count
    gc.collect()
    gc.disable()
    try:
        world.scrape()
    finally:
        gc.enable()
    assert len(tracked) == len(AGENTS)
    assert (tracked[-1] - tracked[9]) / (len(AGENTS) - 10) < 4


def test_a_commit_copies_no_more_than_a_piece_of_what_it_writes(tmp_path: Path) -> None:
    book = ledger(str(tmp_path / "state.db"), Clock())
    tracemalloc.start()
    try:
        for agent_id in range(20):
            book.record(agent_id, reading(*(a_run(f"wf:{n}") for n in range(4000))))
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        book.commit()
        assert tracemalloc.get_traced_memory()[1] - before < 24_000 * 50
        assert tracemalloc.get_traced_memory()[0] < 80_000 * 45  # bytes: the ids are short here
    finally:
        tracemalloc.stop()
        book.close()


def test_a_commit_writes_the_runs_of_an_agent_in_few_statements(tmp_path: Path) -> None:
    """Behind each one it waits for the interpreter, and 256 threads that read want that too."""
    clock, statements = Clock(), list[str]()
    book = ledger(str(tmp_path / "state.db"), clock)
    book.commit()  # makes the tables
    book._store._db.set_trace_callback(statements.append)  # type: ignore[union-attr]
    book.record(1, reading(*(a_run(f"wf:{n}") for n in range(1000))))
    book.commit()
    assert 10 <= len(statements) <= 20
    statements.clear()
    clock.advance(3 * 86400)
    for _ in range(8):
        book.record(1, reading(now=clock()))
        clock.advance(2 * 3600)
    book.commit()
    assert 10 <= len(statements) <= 20
    book.close()
    assert not read_state(str(tmp_path / "state.db")).counted[1]


def test_a_pass_commits_before_its_end_what_changed_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each commit looks at all agents."""
    monkeypatch.setattr("exporter.runs.scrape.PIECE", 100)
    requests: list[int] = []
    request = Committer.request

    def counted(committer: Committer) -> int:
        requests.append(request(committer))
        return requests[-1]

    monkeypatch.setattr(Committer, "request", counted)
    world.scrape()
    assert len(requests) > len(AGENTS) / 4
    for changed in (0, 1):
        if changed:
            world.modus.start_run(1, world.clock() - 100, lasts=30.0)
        requests.clear()
        world.scrape()
        assert len(requests) == 1


def pages() -> list[RunsPage]:
    """Those in memory."""
    return [each for each in gc.get_objects() if isinstance(each, RunsPage)]


def test_pages_are_let_go_with_the_last_who_uses_them(tmp_path: Path) -> None:
    """Where they wait for the collector of circles, those of a hundred agents are in memory at once."""
    world = World(tmp_path, runs=150)
    before = pages()  # of other tests
    gc.disable()
    try:
        world.scrape()
        wait_for("no page is left", lambda: len(pages()) <= len(before))  # a thread may be about to return
    finally:
        gc.enable()
        world.exporter.close()


def test_a_pass_hands_work_to_its_threads_once_not_once_per_agent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = 4
    world.exporter.collector.reload(
        lambda: world.exporter.api, replace(settings(*AGENTS), concurrency=threads)
    )
    handed: list[object] = []
    submit = KeptThreads.submit

    def counted(kept: KeptThreads, work: Callable[[], None]) -> bool:
        handed.append(work)
        return submit(kept, work)

    monkeypatch.setattr(KeptThreads, "submit", counted)
    world.scrape()
    assert 0 < len(handed) <= threads + 3  # the scrape itself, and its commits


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind threads to CPUs")
def test_all_threads_that_read_stay_on_one_cpu_and_let_each_other_compute(world: World) -> None:
    world.exporter.collector.reload(lambda: world.exporter.api, replace(settings(*AGENTS), concurrency=8))
    others = threading.enumerate()
    world.scrape()
    readers = [thread for thread in threading.enumerate() if thread not in others and thread.name == "read"]
    cpus = [os.sched_getaffinity(thread.native_id or 0) for thread in readers]
    assert readers
    assert len(cpus[0]) == 1
    assert cpus == cpus[:1] * len(cpus)
    assert cpus[0] <= os.sched_getaffinity(0)
    if hasattr(os, "SCHED_BATCH"):
        assert {os.sched_getscheduler(thread.native_id or 0) for thread in readers} == {os.SCHED_BATCH}
        assert os.sched_getscheduler(0) != os.SCHED_BATCH  # who serves others may drive them out
