"""A soak of the real process: `python -m tests.soak --minutes 10`, from the root of the checkout.

Two exporters read one simulated API. The API, their state files and their configuration fail at random;
the first exporter is killed and restarted all the time, the second one lives through it all and shows
whether memory stays flat. Every scrape is checked: answered in time, counters that never step back. In
the end each run must have been counted once, by both, and `--audit` must agree. Exit code 0 or 1.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import requests

from exporter.demo.simulator import Answer, Request, SimulatedModus, SimulatedRun
from exporter.modus.model import OPEN_STATUSES
from exporter.runs.store import read_state
from tests.e2e.harness import OPENMETRICS, Exporter, Scrape, audit, config, wait_for

AGENTS = range(1, 21)
TIMEOUT = 2.0  # seconds that a scrape may take
SPARE = 1.0  # seconds: the machine may be busy with other things
PAUSE = 0.25  # seconds between two scrapes of one exporter
GROWTH = 1.10  # of the memory, from the second fifth of the soak to the last one


class World:
    """The API's agents, whose runs start and end at random, and what is wrong with it right now."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.modus = SimulatedModus(fleet={}).start()
        self.open: list[SimulatedRun] = []
        self.told: Counter[str] = Counter()
        for agent_id in AGENTS:
            self.modus.add_agent(agent_id, f"Agent {agent_id}")

    def live(self) -> None:
        """A moment of the agents' lives."""
        rng, modus = self.rng, self.modus
        for _ in range(rng.randrange(4)):
            shown = modus.clock() + rng.choice([0, 0, 0, 1, 5])  # the index may be late
            run = modus.start_run(rng.choice(AGENTS), visible_from=shown)
            self.open.append(run)
        while len(self.open) > 100 or (self.open and rng.random() < 0.7):
            self.end(self.open.pop(rng.randrange(len(self.open))))
        if self.open and rng.random() < 0.1:
            modus.change(rng.choice(self.open), waits_from=modus.clock())

    def end(self, run: SimulatedRun) -> None:
        self.modus.end_run(run, self.rng.choice(["completed", "completed", "error", "cancelled"]))

    def fail(self) -> None:
        """Choose what is wrong with the API from now on."""
        modus, rng = self.modus, self.rng
        share, ill = rng.choice([0.05, 0.3, 1.0]), rng.choice(AGENTS)
        page = b"<html>Bad gateway</html>"
        kinds: dict[str, Callable[[], Answer | None]] = {
            "healthy": lambda: None,
            "500": lambda: modus.error(500),
            "401": lambda: modus.error(401),
            "429": lambda: modus.error(429, **{"Retry-After": "2"}),
            "hang up": lambda: Answer(0, {}, b""),
            "html": lambda: Answer(502, {"Content-Type": "text/html"}, page),
            "truncated": lambda: Answer(200, {"Content-Length": "9", "Connection": "close"}, b"{"),
            "slow": lambda: time.sleep(1),
            "one agent is gone": lambda: None,
        }
        kind = rng.choice(list(kinds))
        chance = random.Random(rng.random())  # noqa: S311 - the server's threads ask it

        def fault(request: Request) -> Answer | None:
            if kind == "one agent is gone":
                return modus.error(404) if request.agent_id == ill else None
            return kinds[kind]() if chance.random() < share else None

        self.told[f"api: {kind}"] += 1
        modus.fault = fault

    def ended(self) -> dict[int, set[str]]:
        return {
            agent_id: {run.id for run in self.modus.runs(agent_id) if run.listed not in OPEN_STATUSES}
            for agent_id in AGENTS
        }


class Watched:
    """An exporter with a state file, scraped all the time in a thread, and what was seen of it."""

    def __init__(self, directory: Path, world: World) -> None:
        directory.mkdir()
        self.directory, self.world = directory, world
        self.file = config(directory, world.modus.url, *AGENTS)
        self.good = self.file.read_text()
        self.state = directory / "state" / "state.db"
        self.problems: list[str] = []
        self.scrapes = self.failed = 0
        self.slowest = 0.0
        self.memory: list[float] = []  # MiB
        self.shown: dict[tuple[str, ...], float] = {}
        self.usable = threading.Lock()  # held while it is restarted
        self.over = threading.Event()
        self.start()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def start(self) -> None:
        self.running = Exporter(self.directory, "--config.file", str(self.file), "--web.enable-lifecycle")

    def _watch(self) -> None:
        while not self.over.wait(PAUSE):
            with self.usable:
                self.scrape()

    def scrape(self) -> None:
        headers = {"Accept": OPENMETRICS, "X-Prometheus-Scrape-Timeout-Seconds": str(TIMEOUT)}
        began = time.monotonic()
        self.scrapes += 1
        try:
            answer = requests.get(f"{self.running.url}/metrics", headers=headers, timeout=30)
        except requests.RequestException as error:
            self.problems.append(f"no answer: {error}")
            return
        took = time.monotonic() - began
        self.slowest = max(self.slowest, took)
        if answer.status_code != 200:
            self.problems.append(f"{answer.status_code} after {took:.2f} s: {answer.text[:100]}")
            return
        scrape = Scrape(answer.text)
        if took > TIMEOUT + SPARE:
            own = scrape.value("modus_exporter_scrape_duration_seconds")
            self.problems.append(f"answered after {took:.2f} s, of which the exporter names {own:.2f}")
        self.failed += scrape.value("modus_exporter_scrape_complete") == 0
        for sample in scrape.samples:
            if not sample.name.startswith(("modus_agent_runs_finished_total", "modus_agent_run_duration")):
                continue
            key = sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            if not sample.name.endswith("_created"):
                if sample.value < self.shown.get(key, 0.0):
                    self.problems.append(f"stepped back: {key} from {self.shown[key]} to {sample.value}")
                self.shown[key] = sample.value
        status = Path(f"/proc/{self.running.popen.pid}/status").read_text()
        self.memory.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)

    def restart(self, number: signal.Signals) -> None:
        """End it whatever it is doing, a scrape of ours included, and start it again."""
        if number == signal.SIGKILL:
            with self.usable:
                busy = threading.Thread(target=self._scrape_unchecked, daemon=True)
                busy.start()
                time.sleep(self.world.rng.random() * 0.2)
                self.running.kill()
                busy.join(30)
                self.start()
            return
        with self.usable:
            began = time.monotonic()
            code = self.running.stop(number, within=30)
            if code or time.monotonic() - began > 5:
                self.problems.append(f"{number.name}: exit {code} after {time.monotonic() - began:.1f} s")
            self.start()

    def _scrape_unchecked(self) -> None:
        try:
            requests.get(f"{self.running.url}/metrics", timeout=30)
        except requests.RequestException:
            self.failed += 1

    def reload(self, good: bool) -> None:
        concurrency = self.world.rng.choice([1, 4, 16])
        text = self.good.replace("token: demo", f"token: demo, concurrency: {concurrency}")
        self.file.write_text(text if good else text + "nonsense: 1\n")
        if self.world.rng.random() < 0.5:
            self.running.popen.send_signal(signal.SIGHUP)
            return
        with self.usable:
            answer = requests.post(f"{self.running.url}/-/reload", timeout=30)
        if (answer.status_code == 200) != good:
            self.problems.append(f"reload of a {'good' if good else 'bad'} file: {answer.status_code}")

    def lose_state(self, garbage: bool) -> None:
        """Delete the state file under the process, or put another one in its place."""
        with self.usable:
            for suffix in ("-wal", "-shm", ""):
                Path(f"{self.state}{suffix}").unlink(missing_ok=True)
            if garbage:
                self.state.write_bytes(os.urandom(8192))
            for _ in range(3):
                self.scrape()  # what it does about it; a kill before that loses the totals for good


def soak(minutes: float, seed: int, directory: Path) -> int:
    """Run for so long; returns the exit code."""
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    world = World(rng)
    killed, steady = Watched(directory / "killed", world), Watched(directory / "steady", world)
    events: dict[str, Callable[[], None]] = {
        "SIGKILL": lambda: killed.restart(signal.SIGKILL),
        "SIGTERM": lambda: killed.restart(signal.SIGTERM),
        "reload, good file": lambda: rng.choice([killed, steady]).reload(good=True),
        "reload, bad file": lambda: steady.reload(good=False),
        "state file deleted": lambda: rng.choice([killed, steady]).lose_state(garbage=False),
        "state file replaced": lambda: rng.choice([killed, steady]).lose_state(garbage=True),
    }
    ends = time.monotonic() + minutes * 60
    while time.monotonic() < ends:
        for _ in range(rng.randrange(4, 12)):
            world.live()
            time.sleep(0.2)
        world.fail()
        if rng.random() < 0.5:
            event = rng.choice(list(events))
            events[event]()
            world.told[event] += 1
    world.modus.fault = None
    for run in world.open:
        world.end(run)
    time.sleep(6)  # for the runs that the index shows late, and the pause of a 429
    problems, both = [], {"killed": killed, "steady": steady}
    for name, watched in both.items():
        watched.over.set()
        watched.thread.join(60)
        watched.file.write_text(watched.good)
        wait_for("all is read", lambda w=watched: w.scrape() or _is_complete(w))  # type: ignore[misc]
        code, table = audit(watched.file)
        if code:
            problems.append(f"{name}: the audit is not clean:\n{table}")
        watched.running.stop()
        counted = {agent_id: set(ids) for agent_id, ids in read_state(str(watched.state)).counted.items()}
        for agent_id, ended in world.ended().items():
            if wrong := ended ^ counted.get(agent_id, set()):
                problems.append(
                    f"{name}: agent {agent_id}: {len(wrong)} runs lost or made up: {sorted(wrong)[:3]}"
                )
            shown = sum(n for key, n in watched.shown.items() if _is_finished(key, agent_id))
            if shown != len(ended):
                problems.append(f"{name}: agent {agent_id}: {shown:g} counted, {len(ended)} ended")
        problems += [f"{name}: {problem}" for problem in watched.problems]
    fifth = len(steady.memory) // 5
    early, late = (
        statistics.median(part) for part in (steady.memory[fifth : 2 * fifth], steady.memory[-fifth:])
    )
    if late > early * GROWTH:
        problems.append(f"memory grows: {early:.1f} MiB early, {late:.1f} MiB late")
    report = [f"seed {seed}, {minutes:g} minutes, {sum(map(len, world.ended().values()))} runs ended"]
    report += [f"{name}: {number}" for name, number in sorted(world.told.items())]
    for name, watched in both.items():
        seen = f"{watched.scrapes} scrapes, {watched.failed} of them incomplete"
        report.append(f"{name}: {seen}, slowest {watched.slowest:.2f} s")
    report.append(
        f"memory of the steady one, MiB: {early:.1f} early, {late:.1f} late, {max(steady.memory):.1f} at most"
    )
    report += problems or ["clean: every run counted once, the audits agree, memory is flat"]
    sys.stdout.write("\n".join(report) + "\n")
    world.modus.close()
    return 1 if problems else 0


def _is_complete(watched: Watched) -> bool:
    scrape = watched.running.scrape()
    backlog = scrape.value("modus_agent_backlog")
    whole = scrape.value("modus_exporter_scrape_complete")
    return whole == 1 and backlog == 0 and scrape.value("modus_exporter_ledger_up") == 1


def _is_finished(key: tuple[str, ...], agent_id: int) -> bool:
    return key[0] == "modus_agent_runs_finished_total" and f"agent_id={agent_id}" in key


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        return soak(args.minutes, args.seed, Path(directory))


if __name__ == "__main__":
    sys.exit(main())
