"""The real process while the API, the disk, an operator or a file is at fault, and what is left then."""

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path

import bcrypt
import pytest
import requests

from exporter.demo.simulator import Answer, Request, SimulatedModus
from exporter.modus.model import Run
from exporter.runs.ledger import Ledger
from exporter.runs.reader import Memory, Reading
from exporter.runs.state import Watermark
from exporter.runs.store import read_state
from tests.e2e.harness import (
    OPENMETRICS,
    Exporter,
    Process,
    Scrape,
    audit,
    config,
    ended,
    exporter,
    free_port,
    get,
    of_a_scrape,
    wait_for,
)
from tests.e2e.scarce import Fsync, few_threads, no_room, small_disk
from tests.simulation import ILL, WELL
from tests.wire import Wire, answering, page, response

pytestmark = pytest.mark.servers
COMMAND = (sys.executable, "-m", "exporter", "--web.listen-address", "127.0.0.1:0")
ROOT = str(Path(__file__).parents[2])
LIVE = (
    "modus_agent_runs",
    "modus_agent_executions",
    "modus_agent_oldest_open_run_start_timestamp_seconds",
)
WITHIN = 5.0  # seconds in which a signal must have ended the process


def labels(agent_id: int) -> dict[str, str]:
    return {"agent_id": str(agent_id)}


def up(scrape: Scrape, agent_id: int) -> float:
    return scrape.value("modus_agent_up", **labels(agent_id))


def complete(scrape: Scrape) -> float:
    return scrape.value("modus_exporter_scrape_complete")


def completed(scrape: Scrape, agent_id: int = WELL) -> int:
    return scrape.finished(agent_id)["completed"]


def lines(running: Process, *parts: str) -> list[str]:
    return [line for line in running.said().splitlines() if all(part in line for part in parts)]


# --- the API ---


def test_whatever_the_api_does_to_one_agent_the_others_are_read_and_counters_stay(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    faults: dict[str, Callable[[], Answer]] = {
        "unauthorized": lambda: modus.error(401),
        "forbidden": lambda: modus.error(403),
        "not_found": lambda: modus.error(404),
        "server_error": lambda: modus.error(500),
        "connection": lambda: Answer(0, {}, b""),
        "bad_response": lambda: Answer(200, {}, b"<html>"),
    }
    file = config(tmp_path, modus.url, ILL, WELL)
    with exporter(tmp_path, "--config.file", str(file)) as running:
        for name in LIVE:
            assert running.scrape().all(name, **labels(ILL))
        for number, (reason, answer) in enumerate(faults.items(), 4):
            fault = answer
            modus.fault = lambda request, fault=fault: fault() if request.agent_id == ILL else None  # type: ignore[misc]
            modus.start_run(WELL, lasts=0.0)
            scrape = running.scrape()
            assert (up(scrape, ILL), up(scrape, WELL), complete(scrape), scrape.value("modus_up")) == (
                0,
                1,
                0,
                1,
            )
            errors = {
                sample.labels["reason"]: sample.value
                for sample in scrape.all("modus_agent_read_errors_total", **labels(ILL))
            }
            assert errors[reason] == 1
            assert sum(errors.values()) == number - 3
            assert not any(scrape.all(name, **labels(ILL)) for name in LIVE)
            assert all(scrape.all(name, **labels(WELL)) for name in LIVE)
            assert (completed(scrape, ILL), completed(scrape, WELL)) == (3, number)
        modus.fault = None
        scrape = running.scrape()
        assert (up(scrape, ILL), complete(scrape)) == (1, 1)
        modus.close()  # connection refused
        scrape = running.scrape()
        assert (up(scrape, ILL), up(scrape, WELL), completed(scrape, ILL)) == (0, 0, 3)
        assert (scrape.value("modus_up"), len(scrape.all("modus_agent_info"))) == (0, 2)
        assert scrape.value("modus_agent_read_errors_total", reason="connection", **labels(WELL)) == 1


@pytest.mark.parametrize("limit", ["ulimit -Sn 64", "ulimit -n 64"], ids=["soft", "hard"])
def test_with_few_descriptors_all_agents_are_read_by_as_many_requests_as_there_can_be(
    tmp_path: Path, limit: str
) -> None:
    """A system's soft limit is no limit; at the hard one fewer are under way, beside clients that stay."""

    def answer(_: str) -> bytes:
        time.sleep(0.2)
        return response(page())

    file = tmp_path / "config.yaml"
    with closing(Wire(answering(answer))) as wire, ExitStack() as stack:
        file.write_text(
            f"agents: {list(range(1, 101))}\nstate: {{path: state.db}}\nusage: {{enabled: false}}\n"
            f"modus: {{base_url: '{wire.url}', token: any, resource: agents, concurrency: 100}}\n"
        )
        prefix = "sh", "-c", f'{limit}; exec "$@"', "sh"
        running = stack.enter_context(exporter(tmp_path, "--config.file", str(file), prefix=prefix))
        host, port = running.url.removeprefix("http://").split(":")
        for _ in range(20):
            stack.enter_context(socket.create_connection((host, int(port))))
        for _ in range(2):
            scrape = running.scrape()
            assert (scrape.value("modus_agent_up"), complete(scrape)) == (100, 1)
            assert scrape.value("modus_exporter_ledger_up") == 1
        warned = lines(running, "too few file descriptors for modus.concurrency", "ulimit -n")
        assert (len(warned), wire.connections > 64) == ((0, True) if "-S" in limit else (1, False))


def test_the_answer_is_there_before_the_scraper_gives_up(modus: SimulatedModus, tmp_path: Path) -> None:
    release = threading.Event()
    modus.fault = lambda request: release.wait(30) and None if request.agent_id == ILL else None  # type: ignore[func-returns-value]
    file = config(tmp_path, modus.url, ILL, WELL)
    with exporter(tmp_path, "--config.file", str(file)) as running:
        headers = {"Accept": OPENMETRICS, "X-Prometheus-Scrape-Timeout-Seconds": "2"}
        scrape = Scrape(get(f"{running.url}/metrics", headers, timeout=2))
        assert (up(scrape, ILL), up(scrape, WELL)) == (0, 1)
        again = Scrape(get(f"{running.url}/metrics", headers, timeout=2))
        assert again.value("modus_agent_read_errors_total", reason="deadline", **labels(ILL)) >= 1
        release.set()


def test_hundreds_of_trigger_types_are_twenty_and_other_and_one_line(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    for number in range(300):
        modus.start_run(WELL, at=modus.clock() - 100, lasts=1.0, trigger=f"trigger {number}")
    with exporter(tmp_path, "--config.file", str(config(tmp_path, modus.url, WELL))) as running:
        for _ in range(2):
            scrape = running.scrape()
        samples = scrape.all("modus_agent_runs_finished_total", status="completed")
        assert len(samples) == 21
        assert completed(scrape) == 303
        assert scrape.value("modus_agent_runs_finished_total", status="completed", trigger_type="other") > 200
        assert len(lines(running, "more trigger types")) == 1


# --- the state file ---


def without_override() -> tuple[str, ...]:
    """A program that starts another one for which, root or not, the permissions of files count."""
    if os.geteuid() != 0:
        return ()
    if not (setpriv := shutil.which("setpriv")):
        pytest.skip("root ignores permissions, and setpriv (util-linux) is not there to make it obey them")
    less = "-dac_override,-dac_read_search"
    return (setpriv, f"--bounding-set={less}", f"--inh-caps={less}")


def all_files(path: Path) -> list[Path]:
    return [file for file in path.parent.iterdir() if not file.name.endswith(".lock")]


@contextmanager
def full_disk(running: Exporter, path: Path) -> Iterator[None]:
    with no_room(path.parent):
        yield


@contextmanager
def failing_fsync(running: Exporter, path: Path) -> Iterator[None]:
    if not (strace := shutil.which("strace")):
        pytest.skip("strace is not there to make fsync fail: apt-get install strace")
    calls = "fsync,fdatasync"
    command = [strace, "-f", "-p", str(running.popen.pid), f"-etrace={calls}", f"-einject={calls}:error=EIO"]
    tracer = Process([*command, "-o", os.devnull], path.parents[1])
    try:
        wait_for("strace is attached", lambda: tracer.popen.poll() is not None or "attached" in tracer.said())
        if tracer.popen.poll() is not None:
            pytest.skip(f"strace may not attach here: {tracer.said().strip()}")
        yield
    finally:
        tracer.stop(signal.SIGINT)


@contextmanager
def read_only_directory(running: Exporter, path: Path) -> Iterator[None]:
    for file in all_files(path):
        file.unlink()
    path.parent.chmod(0o555)
    yield
    path.parent.chmod(0o755)


def deleted(running: Exporter, path: Path) -> AbstractContextManager[None]:
    for file in all_files(path):
        file.unlink()
    return nullcontext()


def replaced_by_an_old_copy(running: Exporter, path: Path) -> AbstractContextManager[None]:
    other = path.parents[1] / "other.db"
    Ledger(str(other), (1.0,), lookback=60).close()
    os.replace(other, path)
    return nullcontext()


@contextmanager
def replaced_by_another_programs(running: Exporter, path: Path) -> Iterator[None]:
    theirs = path.parents[1] / "theirs.db"
    with closing(sqlite3.connect(theirs)) as db:
        db.execute("CREATE TABLE theirs (x)")
    os.replace(theirs, path)
    yield
    path.unlink()


@contextmanager
def replaced_by_garbage(running: Exporter, path: Path) -> Iterator[None]:
    garbage = path.with_suffix(".new")
    garbage.write_bytes(os.urandom(16384))
    os.replace(garbage, path)
    yield


def cut_to_nothing(running: Exporter, path: Path) -> AbstractContextManager[None]:
    for file in all_files(path):
        if not file.name.endswith("-shm"):  # it is mapped: the kernel would kill whoever touches it
            os.truncate(file, 0)
    return nullcontext()


@contextmanager
def overwritten_by_garbage(running: Exporter, path: Path) -> Iterator[None]:
    for file in all_files(path):
        if not file.name.endswith("-shm"):
            with file.open("r+b") as opened:
                opened.write(os.urandom(file.stat().st_size))
    yield


@contextmanager
def damaged_at_its_end(running: Exporter, path: Path) -> Iterator[None]:
    with other_program(path, "PRAGMA wal_checkpoint(TRUNCATE)"), path.open("r+b") as opened:
        opened.seek(-4096, os.SEEK_END)
        opened.write(os.urandom(4096))
    yield


@contextmanager
def other_program(path: Path, statement: str) -> Iterator[None]:
    """A program that has the file open, having said this to SQLite."""
    script = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "db.execute(sys.argv[2]).fetchall(); print('done', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(path), statement]
    with ended(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        yield
        other.communicate()


def locked(running: Exporter, path: Path) -> AbstractContextManager[None]:
    return other_program(path, "BEGIN IMMEDIATE")


def changed_by_another_program(running: Exporter, path: Path) -> AbstractContextManager[None]:
    return other_program(path, "DELETE FROM counted")


Fault = Callable[[Exporter, Path], AbstractContextManager[None]]
DOWN: list[Fault] = [full_disk, failing_fsync, read_only_directory, replaced_by_another_programs, locked]
HEALED: list[Fault] = [
    deleted,
    replaced_by_an_old_copy,
    replaced_by_garbage,
    cut_to_nothing,
    overwritten_by_garbage,
    damaged_at_its_end,
    changed_by_another_program,
]


@pytest.fixture
def small_state(tmp_path: Path) -> Iterator[Path]:
    """A small disk where the exporter keeps its state."""
    with small_disk(tmp_path / "state") as disk:
        yield disk


@pytest.mark.parametrize(
    "fault",
    [pytest.param(each, marks=[pytest.mark.root] * (each is full_disk)) for each in (*DOWN, *HEALED)],
    ids=lambda fault: fault.__name__,
)
def test_a_fault_of_the_disk_stops_no_scrape_and_counts_nothing_twice(
    modus: SimulatedModus, tmp_path: Path, request: pytest.FixtureRequest, fault: Fault
) -> None:
    if fault is full_disk:
        request.getfixturevalue("small_state")
    prefix = without_override() if fault is read_only_directory else ()
    file, path = config(tmp_path, modus.url, WELL), tmp_path / "state" / "state.db"
    flags = "--config.file", str(file)
    running = Exporter(tmp_path, *flags, prefix=prefix)
    try:
        assert completed(running.scrape()) == 3
        with fault(running, path):
            for number in (4, 5):
                modus.start_run(WELL, lasts=0.0)
                scrape = running.scrape()
                assert (completed(scrape), complete(scrape)) == (number, 1)
                if fault in DOWN:
                    assert scrape.value("modus_exporter_ledger_up") == 0
        for _ in range(2):
            scrape = running.scrape()
        assert (completed(scrape), scrape.value("modus_exporter_ledger_up")) == (5, 1)
        assert len(read_state(str(path)).counted[WELL]) == 5
        told = lines(running, "the state cannot be written"), lines(running, "the state can be written again")
        assert [len(each) for each in told] == ([1, 1] if fault in DOWN else [len(told[1])] * 2)
    finally:
        running.kill()  # no last commit
    with exporter(tmp_path, *flags) as running:
        modus.start_run(WELL, lasts=0.0)
        scrape = running.scrape()
        assert (completed(scrape), scrape.value("modus_exporter_ledger_up")) == (6, 1)
        code, table = audit(file)
        assert code == 0, table
        assert len(read_state(str(path)).counted[WELL]) == 6


def test_a_state_file_that_breaks_while_nobody_looks_is_moved_aside_at_the_start(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    file, path = config(tmp_path, modus.url, WELL), tmp_path / "state" / "state.db"
    with exporter(tmp_path, "--config.file", str(file)) as running:
        running.scrape()
    path.write_bytes(os.urandom(path.stat().st_size))
    with exporter(tmp_path, "--config.file", str(file)) as running:
        scrape = running.scrape()
        assert (completed(scrape), scrape.value("modus_exporter_ledger_up")) == (3, 1)
        assert len(lines(running, "level=error", "moved aside", f"{path}.corrupt-")) == 1
    aside = [
        name for name in os.listdir(path.parent) if re.fullmatch(r"state\.db\.corrupt-\d{8}T\d{6}Z", name)
    ]
    assert len(aside) == 1


@pytest.mark.root
def test_wherever_the_disk_gets_full_a_fresh_file_is_whole_in_the_end(small_state: Path) -> None:
    path = small_state / "state.db"
    now = time.time()
    run = Run("wf:1", "wf", "completed", started_at="2026-01-01T00:00:00Z", duration_ms=1.0)
    for left in range(0, 96 * 1024, 4096):
        book = Ledger(str(path), (1.0,), lookback=1e12)
        book.record(WELL, Reading(Watermark(), Memory(), runs=[run], now=now))
        book.commit()
        for file in all_files(path):
            file.unlink()
        with full_disk(None, path):  # type: ignore[arg-type]
            os.truncate(small_state / "filler", os.path.getsize(small_state / "filler") - left)
            for _ in range(2):
                book.commit()
        for _ in range(2):
            book.commit()
        assert book.up
        assert read_state(str(path)).counted == {WELL: {"wf:1": 1767225600.0}}
        book.close()


def test_another_program_that_took_the_file_keeps_what_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    book = Ledger(str(path), (1.0,), lookback=60)
    book.commit()
    new = sqlite3.connect(tmp_path / "theirs.db")
    new.executescript("PRAGMA journal_mode = WAL; CREATE TABLE theirs (x)")
    new.close()
    os.replace(tmp_path / "theirs.db", path)
    book.commit()
    theirs = sqlite3.connect(path)
    with theirs:
        theirs.execute("INSERT INTO theirs VALUES (1)")
    for _ in range(3):
        book.commit()
        assert not book.up
        assert Path(f"{path}-wal").stat().st_size
    theirs.close()
    with closing(sqlite3.connect(path)) as again:
        assert again.execute("SELECT x FROM theirs").fetchall() == [(1,)]
    book.close()


# --- the log ---


def test_a_log_that_nobody_reads_holds_up_neither_scrapes_nor_the_end(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):  # once it is full
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    address = f"127.0.0.1:{free_port()}"
    file = config(tmp_path, modus.url, WELL)
    command = [*COMMAND[:-1], address, "--config.file", str(file)]
    environ = {**os.environ, "PYTHONPATH": ROOT}
    with ended(subprocess.Popen(command, stderr=writer, env=environ, cwd=tmp_path)) as popen:
        os.close(writer)
        wait_for("it is ready", lambda: get(f"http://{address}/-/ready"))
        assert completed(Scrape(get(f"http://{address}/metrics", {"Accept": OPENMETRICS}))) == 3
        popen.terminate()
        assert popen.wait(WITHIN) == 0
    os.close(reader)


# --- signals ---


def ends_in_time(running: Exporter) -> None:
    """SIGTERM ends it with exit code 0, and soon."""
    began = time.monotonic()
    assert running.stop(signal.SIGTERM, within=WITHIN * 3) == 0
    assert time.monotonic() - began < WITHIN


@pytest.mark.parametrize("discovers", [False, True], ids=["agents", "discovery"])
def test_sigterm_in_the_middle_of_a_scrape_ends_in_time_and_what_was_read_is_counted(
    modus: SimulatedModus, tmp_path: Path, discovers: bool
) -> None:
    entered, release = threading.Event(), threading.Event()

    def fault(request: Request) -> Answer | None:
        wanted = request.agent_id == ILL or (discovers and request.agent_id is None)
        if wanted and of_a_scrape(request):
            entered.set()
            release.wait(30)
        return None

    modus.fault = fault
    agents = () if discovers else (ILL, WELL)
    more = {"discovery": "{enabled: true}"} if discovers else {}
    file = config(tmp_path, modus.url, *agents, scrape="{default_timeout: 30s}", **more)
    running = Exporter(tmp_path, "--config.file", str(file))
    with ThreadPoolExecutor(1) as pool:
        scrape = pool.submit(requests.get, f"{running.url}/metrics", timeout=30)
        assert entered.wait(30)
        if not discovers:
            wait_for("the other agent is read", lambda: sum(r.agent_id == WELL for r in modus.requests) == 3)
            time.sleep(0.2)
        ends_in_time(running)
        release.set()
        scrape.exception(30)
    assert "Traceback" not in running.said()
    if not discovers:
        assert len(read_state(str(tmp_path / "state" / "state.db")).counted[WELL]) == 3


def test_sigterm_while_the_disk_hangs_ends_in_time_and_says_what_is_not_durable(
    modus: SimulatedModus, tmp_path: Path, fsync: Fsync
) -> None:
    file = config(tmp_path, modus.url, WELL)
    running = Exporter(tmp_path, "--config.file", str(file), env=fsync.env)
    assert completed(running.scrape()) == 3
    fsync.slow(60.0)
    modus.start_run(WELL, lasts=0.0)
    headers = {"Accept": OPENMETRICS, "X-Prometheus-Scrape-Timeout-Seconds": "2"}
    assert completed(Scrape(get(f"{running.url}/metrics", headers))) == 3
    ends_in_time(running)
    assert len(lines(running, "the state cannot be written in time")) == 1
    with exporter(tmp_path, "--config.file", str(file)) as running:
        assert completed(running.scrape()) == 4


def test_sigterm_while_the_disk_is_slow_ends_in_time_with_all_of_it_durable(
    modus: SimulatedModus, tmp_path: Path, fsync: Fsync
) -> None:
    file = config(tmp_path, modus.url, WELL)
    running = Exporter(tmp_path, "--config.file", str(file), env=fsync.env)
    assert completed(running.scrape()) == 3
    modus.start_run(WELL, lasts=0.0)
    fsync.slow(2.8)  # the commit is in time, what follows it may not be
    assert completed(running.scrape()) == 4
    ends_in_time(running)
    assert not lines(running, "the state cannot be written in time")
    with exporter(tmp_path, "--config.file", str(file)) as running:
        assert completed(running.scrape()) == 4


def test_a_sighup_before_the_server_is_up_does_not_end_the_exporter(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    text = config(tmp_path, modus.url, WELL).read_text()
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    command = [
        sys.executable,
        "-m",
        "exporter",
        "--web.listen-address",
        "127.0.0.1:0",
        "--config.file",
        str(pipe),
    ]
    running = Process(command, tmp_path, {"PYTHONPATH": ROOT})
    with pipe.open("w") as opened:  # waits until the exporter reads it
        running.popen.send_signal(signal.SIGHUP)
        opened.write(text)
    try:
        wait_for("it listens", lambda: running.popen.poll() is not None or "listening" in running.said())
    finally:
        assert running.stop() == 0


# --- reload ---


def reloaded(scrape: Scrape) -> tuple[float, float]:
    return (
        scrape.value("modus_exporter_config_last_reload_successful"),
        scrape.value("modus_exporter_config_last_reload_success_timestamp_seconds"),
    )


def counters(scrape: Scrape) -> dict[tuple[str, ...], float]:
    """What must never step back, by name and labels."""
    kinds = ("_total", "_count", "_sum", "_bucket")
    return {
        (sample.name, *sorted(f"{name}={value}" for name, value in sample.labels.items())): sample.value
        for sample in scrape.samples
        if sample.name.startswith("modus_") and sample.name.endswith(kinds)
    }


def test_a_good_file_takes_effect_and_a_bad_one_keeps_the_old_and_no_counter_is_lost(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    modus.fault = lambda request: modus.error(403) if request.agent_id == ILL else None
    file = config(tmp_path, modus.url, ILL)
    good = file.read_text()
    with exporter(tmp_path, "--config.file", str(file), "--web.enable-lifecycle") as running:
        reload = f"{running.url}/-/reload"

        def refuse(text: str, says: str) -> None:
            file.write_text(text)
            answer = requests.post(reload, timeout=30)
            assert answer.status_code == 500
            assert answer.text.count("\n") == 1
            assert says in answer.text
            scrape = running.scrape()
            assert reloaded(scrape) == (0, before)
            assert scrape.all("modus_agent_up", **labels(ILL))

        running.scrape()
        scrape = running.scrape()
        successful, before = reloaded(scrape)
        assert successful == 1
        assert scrape.value("modus_agent_read_errors_total", reason="forbidden") >= 1
        shown = counters(scrape)

        refuse("modus: [", "config.yaml: line")
        refuse(good + "nonsense: 1\n", "config.yaml: nonsense: unknown key")
        refuse(good.replace("state.db", "else.db"), "state.path: cannot change while the exporter runs")
        refuse(good + "histogram: {buckets: [1s]}\n", "histogram.buckets: cannot change while")
        assert not (tmp_path / "state" / "else.db").exists()
        running.popen.send_signal(signal.SIGHUP)  # the last of the bad ones
        wait_for("it is refused", lambda: len(lines(running, "reload failed")) == 5)

        for number, send in enumerate(
            (
                lambda: running.popen.send_signal(signal.SIGHUP),
                lambda: requests.post(reload, timeout=30).raise_for_status(),
            )
        ):
            concurrency = f"token: demo, concurrency: {number + 7}"  # another client
            file.write_text(good.replace("[1]", "[1, 2]").replace("token: demo", concurrency))
            send()
            wait_for("it is loaded", lambda: len(lines(running, "configuration loaded")) == number + 1)  # noqa: B023
            scrape = running.scrape()
            successful, when = reloaded(scrape)
            assert successful == 1
            assert when > before
            assert up(scrape, WELL) == 1
            now = counters(scrape)
            assert all(now[key] >= value for key, value in shown.items())
            assert sum(now.values()) > sum(shown.values())
            shown = now


def test_a_reload_does_not_break_the_silence_that_the_api_asked_for(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    modus.fault = lambda request: modus.error(429, **{"Retry-After": "300"})
    file = config(tmp_path, modus.url, WELL)
    with exporter(tmp_path, "--config.file", str(file), "--web.enable-lifecycle") as running:
        wait_for("the first request was answered", lambda: "429" in running.said())
        running.scrape()
        requests.post(f"{running.url}/-/reload", timeout=30).raise_for_status()
        scrape = running.scrape()
        assert scrape.value("modus_agent_read_errors_total", reason="rate_limited") == 2
        assert len(modus.requests) == 1


def test_a_pipe_in_place_of_the_file_is_refused_by_a_reload_and_holds_up_no_later_one(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    file = config(tmp_path, modus.url, WELL)
    kept = file.rename(tmp_path / "kept.yaml")
    file.symlink_to(kept)
    with exporter(tmp_path, "--config.file", str(file), "--web.enable-lifecycle") as running:
        reload = f"{running.url}/-/reload"
        os.mkfifo(tmp_path / "pipe")
        swap(file, tmp_path / "pipe")
        for _ in range(2):
            answer = requests.post(reload, timeout=30)
            assert answer.status_code == 500
            assert "config.yaml: cannot read the file: it is not a regular file" in answer.text
        swap(file, kept)
        requests.post(reload, timeout=30).raise_for_status()
        assert reloaded(running.scrape())[0] == 1


# --- secrets ---


def swap(link: Path, target: Path) -> None:
    """As Kubernetes changes a mounted secret."""
    new = link.with_suffix(".new")
    new.symlink_to(target)
    os.replace(new, link)


def test_a_token_file_is_followed_through_symlinks_and_a_missing_one_is_told_not_died_of(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    for name, token in (("old", "modus_pat_old"), ("new", "modus_pat_new")):
        (tmp_path / name).write_text(f"{token}\n")
    link = tmp_path / "token"
    swap(link, tmp_path / "old")
    modus.token = "modus_pat_old"  # noqa: S105
    file = config(tmp_path, modus.url, WELL)
    file.write_text(file.read_text().replace("token: demo", f"token_file: '{link}'"))
    with exporter(tmp_path, "--config.file", str(file)) as running:
        assert up(running.scrape(), WELL) == 1
        modus.token = "modus_pat_new"  # noqa: S105
        assert up(running.scrape(), WELL) == 0
        swap(link, tmp_path / "new")
        assert up(running.scrape(), WELL) == 1
        link.unlink()
        for _ in range(2):
            scrape = running.scrape()
        assert up(scrape, WELL) == 0
        assert scrape.value("modus_agent_read_errors_total", reason="unauthorized") == 3
        assert len(lines(running, "cannot read the token file", "No such file")) == 1
        swap(link, tmp_path / "new")
        assert up(running.scrape(), WELL) == 1
        assert "modus_pat_" not in running.said()


def test_no_secret_is_on_any_page_in_any_metric_or_in_any_line_of_the_log(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    token, password = "modus_pat_org_prefix_verysecret", "correct horse battery"
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    web = tmp_path / "web.yaml"
    web.write_text(f"basic_auth_users: {{prometheus: '{hashed}'}}\n")
    file = config(tmp_path, modus.url, ILL, WELL)
    good = file.read_text().replace("token: demo", "token: '${MODUS_API_KEY}'")
    file.write_text(good)
    modus.token = token
    flags = "--config.file", str(file), "--web.config.file", str(web), "--web.enable-lifecycle"
    seen: list[str] = []
    with exporter(tmp_path, *flags, "--log.level", "debug", env={"MODUS_API_KEY": token}) as running:
        auth = "prometheus", password

        def visit() -> None:
            for path in ("/", "/metrics", "/-/healthy", "/-/ready", "/config", "/debug", "/-/reload"):
                for method, credentials in (("GET", auth), ("GET", ("prometheus", "wrong")), ("POST", auth)):
                    answer = requests.request(method, running.url + path, auth=credentials, timeout=30)
                    seen.append(f"{answer.headers}\n{answer.text}")

        def echo(request: Request) -> Answer:
            """A server that says back all it was told."""
            told = request.headers["authorization"]
            if request.agent_id == ILL:
                return modus.error(500, f"You said {told}")
            return Answer(next(statuses), {"X-Told": told, "Location": f"http://x/{told}"}, told.encode())

        visit()
        statuses = iter([200, 302, 401, 500] * 1000)
        modus.fault = echo
        visit()
        modus.fault = None
        for bad in (
            good.replace("${MODUS_API_KEY}", f"[{token}]"),
            f"{token}: 1\n",
            f"token:{token}",
            good + token,
        ):
            file.write_text(bad)
            visit()
        web.write_text(f"basic_auth_users: {{prometheus: 'x{hashed}'}}\n")
        visit()
        web.write_text(f"basic_auth_users: {{prometheus: ['{hashed}']}}\n")
        visit()
    seen.append(running.said())
    assert any("modus_agent_up" in text for text in seen)
    assert any("reload failed" in text for text in seen)
    for secret in (token, "verysecret", password, hashed, hashed[7:]):
        assert [text for text in seen if secret in text] == []


# --- the start ---


def start(directory: Path, *flags: str, prefix: tuple[str, ...] = (), **env: str) -> tuple[int, list[str]]:
    """Exit code and the lines on standard error of an exporter that cannot start."""
    command = [*prefix, *COMMAND, *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, cwd=directory,
        env={**os.environ, "PYTHONPATH": ROOT, **env},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if "level=" not in line]


def no_configuration(directory: Path, file: Path) -> tuple[str, ...]:
    file.unlink()
    return ()


def port_in_use(directory: Path, file: Path) -> tuple[str, ...]:
    of_the_api = re.search(r"127\.0\.0\.1:\d+", file.read_text())
    assert of_the_api
    return ("--web.listen-address", of_the_api[0])


def no_web_configuration(directory: Path, file: Path) -> tuple[str, ...]:
    return ("--web.config.file", str(directory / "missing.yaml"))


def state_is_a_directory(directory: Path, file: Path) -> tuple[str, ...]:
    (directory / "state" / "state.db").mkdir(parents=True)
    return ()


def other_buckets(directory: Path, file: Path) -> tuple[str, ...]:
    (directory / "state").mkdir()
    Ledger(str(directory / "state" / "state.db"), (1.0,), lookback=60).close()
    return ()


def read_only_state_directory(directory: Path, file: Path) -> tuple[str, ...]:
    (directory / "state").mkdir(mode=0o555)
    return ()


def unreadable_state_directory(directory: Path, file: Path) -> tuple[str, ...]:
    (directory / "state").mkdir(mode=0o000)
    return ()


def unreadable_configuration(directory: Path, file: Path) -> tuple[str, ...]:
    file.chmod(0o000)
    return ()


@pytest.mark.parametrize(
    ("arrange", "code", "says"),
    [
        (no_configuration, 2, "config.yaml: cannot read the file: No such file"),
        (unreadable_configuration, 2, "config.yaml: cannot read the file: Permission denied"),
        (no_web_configuration, 2, "missing.yaml"),
        (port_in_use, 1, "the port is in use"),
        (state_is_a_directory, 1, "state.db: not a regular file"),
        (other_buckets, 1, "state.db: the histogram was counted in other buckets"),
        (read_only_state_directory, 1, "state.db: cannot be opened: Permission denied; check state.path"),
        (unreadable_state_directory, 1, "state.db: cannot be opened: Permission denied; check state.path"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_keeps_it_from_starting_is_one_line_and_an_exit_code(
    modus: SimulatedModus,
    tmp_path: Path,
    arrange: Callable[[Path, Path], tuple[str, ...]],
    code: int,
    says: str,
) -> None:
    file = config(tmp_path, modus.url, WELL)
    flags = arrange(tmp_path, file)
    prefix = without_override() if "read" in arrange.__name__ else ()
    exit_code, (line,) = start(tmp_path, "--config.file", str(file), *flags, prefix=prefix)
    assert exit_code == code
    assert line.startswith("modus-exporter: ")
    assert says in line
    for directory in tmp_path.glob("state"):
        directory.chmod(0o755)


def test_a_system_that_has_next_to_no_threads_for_it_is_one_line(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    file = config(tmp_path, modus.url, WELL)
    for limit in range(8):
        env = few_threads(tmp_path / "few", limit, ROOT)
        code, (line,) = start(tmp_path, "--config.file", str(file), **env)
        assert code == 1
        assert line.startswith("modus-exporter: the system refuses threads: allow 16 or more")


@pytest.mark.parametrize("limit", range(10, 14))
def test_a_system_that_has_next_to_no_descriptors_for_it_is_one_line(
    modus: SimulatedModus, tmp_path: Path, limit: int
) -> None:
    file = config(tmp_path, modus.url, WELL)
    prefix = ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")
    code, (line,) = start(tmp_path, "--config.file", str(file), prefix=prefix)
    assert code == 1
    assert line == "modus-exporter: the system has too few file descriptors: allow 64 or more (ulimit -n)"


def test_a_state_file_in_use_is_one_line_and_left_alone(modus: SimulatedModus, tmp_path: Path) -> None:
    file = config(tmp_path, modus.url, WELL)
    with exporter(tmp_path, "--config.file", str(file)) as running:
        code, (line,) = start(tmp_path, "--config.file", str(file))
        assert (code, "in use by another process" in line) == (1, True)
        assert running.scrape().value("modus_exporter_ledger_up") == 1


@pytest.mark.root
def test_a_disk_that_is_full_at_the_start_is_one_line(
    modus: SimulatedModus, tmp_path: Path, small_state: Path
) -> None:
    file = config(tmp_path, modus.url, WELL)
    with full_disk(None, small_state / "state.db"):  # type: ignore[arg-type]
        code, (line,) = start(tmp_path, "--config.file", str(file))
    assert code == 1
    assert "state.db" in line
    with exporter(tmp_path, "--config.file", str(file)) as running:
        assert completed(running.scrape()) == 3
