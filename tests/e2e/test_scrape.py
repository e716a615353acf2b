"""The real process while many ask for a scrape at once, or something is scarce: nobody spoils it."""

import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from exporter.demo.simulator import Answer, Request, SimulatedModus
from tests.e2e.harness import OPENMETRICS, Exporter, Scrape, audit, config, exporter, of_a_scrape, wait_for
from tests.e2e.scarce import Fsync, few_threads
from tests.simulation import ILL, WELL

pytestmark = pytest.mark.servers
ROOT = str(Path(__file__).parents[2])
HANG = 30.0  # seconds: only a protection that is gone takes this long
NONSENSE = ("1e10", "1e400", "inf", "nan", "-1", "0", "0x10", "ten", "")


def ask(running: Exporter, timeout: float | str | None, within: float = HANG) -> requests.Response:
    """The answer to a scraper who says that it waits `timeout` seconds, and waits for `within`."""
    headers = {"Accept": OPENMETRICS}
    if timeout is not None:
        headers["X-Prometheus-Scrape-Timeout-Seconds"] = str(timeout)
    return requests.get(f"{running.url}/metrics", headers=headers, timeout=within)


def in_time(running: Exporter, timeout: float) -> Scrape:
    """What a scraper gets who gives up after `timeout` seconds."""
    answer = ask(running, timeout, timeout)
    answer.raise_for_status()
    return Scrape(answer.text)


@contextmanager
def in_a_loop(*work: Callable[[], object]) -> Iterator[None]:
    """Each of these again and again, in a thread of its own; what one of them raises is raised at the end."""
    over, problems = threading.Event(), list[BaseException]()

    def run(each: Callable[[], object]) -> None:
        try:
            while not over.is_set():
                each()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(HANG * 2)
    if problems:
        raise problems[0]


def up(scrape: Scrape, agent_id: int) -> float:
    return scrape.value("modus_agent_up", agent_id=str(agent_id))


def completed(scrape: Scrape, agent_id: int) -> int:
    return scrape.finished(agent_id)["completed"]


def hangs(
    release: threading.Event, agent_id: int, seconds: float = HANG
) -> Callable[[Request], Answer | None]:
    """The API does not answer for one agent before it is released."""

    def fault(request: Request) -> Answer | None:
        if request.agent_id == agent_id:
            release.wait(seconds)
        return None

    return fault


# --- many who ask ---


def test_a_nonsense_timeout_in_a_loop_beside_the_scraper_is_as_none_and_counts_stay_exact(
    tmp_path: Path,
) -> None:
    agents = range(1, 25)
    modus = SimulatedModus(fleet={}, latency=0.02).start()
    for agent_id in agents:
        modus.add_agent(agent_id, f"Agent {agent_id}")
    file = config(tmp_path, modus.url, *agents)

    def exact(scrape: Scrape) -> None:
        counted = {agent_id: completed(scrape, agent_id) for agent_id in agents}
        assert counted == {agent_id: len(modus.runs(agent_id)) for agent_id in agents}

    with exporter(tmp_path, "--config.file", str(file)) as running:
        running.scrape()
        with in_a_loop(*(lambda value=value: ask(running, value).raise_for_status() for value in NONSENSE)):
            for _ in range(12):
                for agent_id in agents:
                    modus.start_run(agent_id, lasts=0.0)
                ask(running, 10).raise_for_status()
        scrape = running.scrape()
        assert scrape.value("modus_exporter_scrape_complete") == 1
        exact(scrape)
    with exporter(tmp_path, "--config.file", str(file)) as running:
        exact(running.scrape())
        assert audit(file)[0] == 0


@pytest.mark.parametrize("interval", ["0s", "10s"])
def test_impatient_scrapers_take_nothing_from_one_with_time(
    modus: SimulatedModus, tmp_path: Path, interval: str
) -> None:
    modus.fault = hangs(threading.Event(), ILL, 0.7)  # a page and two lists of open runs at the first sight
    file = config(tmp_path, modus.url, ILL, WELL, scrape=f"{{min_interval: {interval}}}")
    with exporter(tmp_path, "--config.file", str(file)) as running:
        assert up(in_time(running, 1), ILL) == 0
        with in_a_loop(*(lambda value=value: ask(running, value) for value in (0.001, 1))):
            for _ in range(5):
                scrape = in_time(running, 20)
                assert (up(scrape, ILL), up(scrape, WELL)) == (1, 1)
                assert scrape.value("modus_exporter_scrape_complete") == 1
        assert scrape.value("modus_agent_read_errors_total", reason="internal") == 0


def test_a_caller_with_all_the_time_of_the_world_holds_up_no_other(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    release = threading.Event()
    modus.fault = hangs(release, ILL)
    file = config(tmp_path, modus.url, ILL, WELL)
    with exporter(tmp_path, "--config.file", str(file)) as running:
        patient = threading.Thread(target=lambda: ask(running, 1e5), daemon=True)
        patient.start()
        wait_for("a scrape is under way", lambda: any(map(of_a_scrape, modus.requests)))
        for _ in range(3):
            scrape = in_time(running, 3)
            assert (up(scrape, ILL), up(scrape, WELL)) == (0, 1)
        release.set()
        patient.join(HANG)
        assert not patient.is_alive()


def test_a_scrape_that_eight_signals_interrupt_goes_on_and_the_newest_file_is_in_force(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    release, entered = threading.Event(), threading.Event()
    waits = hangs(release, ILL)

    def wait(request: Request) -> Answer | None:
        if of_a_scrape(request):
            entered.set()
        return waits(request)

    modus.fault = wait
    file = config(tmp_path, modus.url, ILL)
    good = file.read_text()
    with exporter(tmp_path, "--config.file", str(file)) as running:
        scrape = threading.Thread(target=running.scrape, daemon=True)
        scrape.start()
        assert entered.wait(HANG)
        for number in range(8):
            new = file.with_suffix(".new")
            new.write_text(good.replace("[1]", "[1, 2]" if number == 7 else "[1]"))
            new.replace(file)  # at once: a reload may be reading it
            running.popen.send_signal(signal.SIGHUP)
            requests.get(f"{running.url}/-/healthy", timeout=HANG).raise_for_status()  # it took the signal
        release.set()
        scrape.join(HANG)
        wait_for("the newest file is in force", lambda: up_agents(running) == {"1", "2"})
        assert "reload failed" not in running.said()
        assert running.said().count("configuration loaded") <= 2


def up_agents(running: Exporter) -> set[str]:
    return {sample.labels["agent_id"] for sample in running.scrape().all("modus_agent_up") if sample.value}


# --- one agent, one disk, one thread too few ---


@pytest.mark.parametrize("date", ["Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "today"])
def test_an_agent_whose_answers_bear_an_odd_date_spoils_nothing(
    modus: SimulatedModus, tmp_path: Path, date: str
) -> None:
    class Odd(SimulatedModus):
        def answer(self, *args: object) -> Answer:  # type: ignore[override]
            answer = super().answer(*args)  # type: ignore[arg-type]
            if f"/{ILL}/" in str(args[1]):
                answer.headers["Date"] = date
            return answer

    modus.__class__ = Odd
    with exporter(tmp_path, "--config.file", str(config(tmp_path, modus.url, ILL, WELL))) as running:
        for number in range(3, 7):
            scrape = running.scrape()
            assert scrape.value("modus_exporter_scrape_complete") == 1
            assert (completed(scrape, ILL), completed(scrape, WELL)) == (number, number)
            for agent_id in (ILL, WELL):
                read = scrape.value("modus_agent_last_read_timestamp_seconds", agent_id=str(agent_id))
                assert abs(read - time.time()) < HANG
                modus.start_run(agent_id, lasts=0.0)


def test_a_disk_that_takes_longer_than_a_scrape_may_costs_no_scrape_its_timeout(
    modus: SimulatedModus, tmp_path: Path, fsync: Fsync
) -> None:
    file = config(tmp_path, modus.url, WELL)
    with exporter(tmp_path, "--config.file", str(file), env=fsync.env) as running:
        assert completed(running.scrape(), WELL) == 3
        fsync.slow(HANG / 2)
        shown = list[int]()
        for _ in range(3):
            modus.start_run(WELL, lasts=0.0)
            scrape = in_time(running, 2)
            assert up(scrape, WELL) == 1
            shown.append(completed(scrape, WELL))
        assert shown == [3, 3, 3]  # the last durable commit
        assert scrape.value("modus_exporter_ledger_up") == 0
        assert running.said().count("the state is written slowly") == 1
        running.kill()
    fsync.well()
    with exporter(tmp_path, "--config.file", str(file), env=fsync.env) as running:
        scrape = running.scrape()
        assert (completed(scrape, WELL), scrape.value("modus_exporter_ledger_up")) == (6, 1)


def test_threads_that_the_system_refuses_make_it_slower_and_nothing_else(tmp_path: Path) -> None:
    agents = range(1, 41)
    modus = SimulatedModus(fleet={}, latency=0.05).start()
    for agent_id in agents:
        modus.add_agent(agent_id, f"Agent {agent_id}")
        modus.start_run(agent_id, at=modus.clock() - 60, lasts=5.0)
    file = config(tmp_path, modus.url, *agents)
    file.write_text(file.read_text().replace("token: demo", "token: demo, concurrency: 32"))
    env = few_threads(tmp_path / "few", 12, ROOT)
    with exporter(tmp_path, "--config.file", str(file), env=env) as running:
        for _ in range(3):
            with in_a_loop(
                *(lambda value=value: ask(running, value).raise_for_status() for value in range(20, 28))
            ):
                scrape = running.scrape()
            assert scrape.value("modus_exporter_scrape_complete") == 1
            assert [completed(scrape, agent_id) for agent_id in agents] == [1] * 40
        with open(f"/proc/{running.popen.pid}/status") as status:
            assert int(status.read().partition("Threads:")[2].split()[0]) < 20  # and not 40
        requests.get(f"{running.url}/-/healthy", timeout=HANG).raise_for_status()


def test_patient_scrapers_of_an_api_that_hangs_hold_up_no_other_though_threads_are_few(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    over = threading.Event()
    modus.fault = lambda request: over.wait(HANG) and None  # type: ignore[func-returns-value]
    env = few_threads(tmp_path / "few", 12, ROOT)
    with (
        exporter(tmp_path, "--config.file", str(config(tmp_path, modus.url, ILL, WELL)), env=env) as running,
        ThreadPoolExecutor(8) as pool,
    ):
        patient = [pool.submit(ask, running, 100 + number) for number in range(8)]
        for _ in range(3):
            assert up(in_time(running, 2), ILL) == 0
        assert not any(each.done() for each in patient)
        over.set()
        assert all(up(Scrape(each.result(HANG).text), WELL) == 1 for each in patient)


# --- many agents ---


def test_every_scrape_of_a_large_fleet_is_whole_in_time_and_reads_on_while_health_is_answered(
    tmp_path: Path,
) -> None:
    agents, runs, timeout = range(1, 301), 120, 4.0
    modus = SimulatedModus(fleet={}, latency=0.2).start()
    for agent_id in agents:
        modus.add_agent(agent_id, f"Agent {agent_id}")
        for number in range(runs):
            modus.start_run(agent_id, at=modus.clock() - 60.0 - number * 600, lasts=5.0)
    file = config(tmp_path, modus.url, *agents, scrape="{timeout_offset: 1s}")
    health: list[float] = []  # seconds
    scraping = threading.Event()
    with exporter(tmp_path, "--config.file", str(file)) as running:

        def probe() -> None:
            if not scraping.wait(0.1):
                return
            began = time.monotonic()
            requests.get(f"{running.url}/-/healthy", timeout=HANG).raise_for_status()
            health.append(time.monotonic() - began)
            time.sleep(0.05)

        read = [0]
        with in_a_loop(probe):
            while read[-1] < len(agents):
                scraping.set()
                answer = ask(running, timeout, timeout)
                scraping.clear()
                scrape = Scrape(answer.text)
                read.append(len(scrape.all("modus_agent_last_read_timestamp_seconds")))
                assert read[-1] > read[-2]
        wait_for("all is counted", lambda: not in_time(running, timeout).value("modus_agent_backlog"))
        scrape = in_time(running, timeout)
        assert scrape.value("modus_agent_runs_finished_total") == len(agents) * runs
        assert len(read) > 2  # else the time sufficed for all of them, and nothing was shown here
        assert statistics.quantiles(health, n=4)[2] < 0.1
