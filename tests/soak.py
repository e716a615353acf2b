"""A soak of the real process: `python -m tests.soak --minutes 10`, from the root of the checkout.

Two exporters read one simulated API; a crowd of scrapers, patient, impatient, odd and slow, asks both. The
API, the disks, the limits of the processes and their configuration go wrong at random. The first exporter is
killed and restarted all the time; the second one lives through it all and shows whether memory stays flat.
Every answer is checked: in its caller's time, and no counter steps back. In the end each run must have been
counted once, by both, also after a restart, and `--audit` must agree. Exit code 0 or 1.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from exporter.demo.simulator import Answer, Request, SimulatedModus, SimulatedRun
from exporter.modus.model import OPEN_STATUSES
from exporter.runs.ids import MALFORMED
from exporter.runs.store import LedgerError, read_state
from tests.e2e.harness import OPENMETRICS, Exporter, Scrape, audit, config, free_port, wait_for
from tests.e2e.scarce import Fsync, few_threads

ROOT = str(Path(__file__).parents[1])
AGENTS = range(1, 21)
TIMEOUT = 2.0  # seconds that a scrape may take
SPARE = 1.0  # seconds: the machine may be busy with other things
PAUSE = 0.25  # seconds between two scrapes of one exporter
GROWTH = 1.10  # of the memory, from the third fifth of the soak to the last: caches fill up before that
LATE = 500  # of so many answers one may come more than SPARE after its time, as no machine is only ours
HEALTH = 0.1  # seconds in which 19 of 20 looks at the health are answered, beyond our own lag
OUTCOMES = ("completed", "completed", "completed", "error", "cancelled", "timed_out", "skipped")
ODD: tuple[dict[str, object], ...] = (
    {"startedAt": None}, {"startedAt": "soon"}, {"startedAt": "2001-01-01T00:00:00Z"}, {"durationMs": "long"},
    {"endedAt": "1970-01-01T00:00:00Z"}, {"agentName": None}, {"triggerType": 7}, {"summary": "x" * 100_000},
)  # fmt: skip
MISTAKES = ("Traceback", "a scrape failed", "a thread's work failed", "a commit failed", "internal")


class World:
    """The API's agents, whose runs start and end at random, and what is wrong with it right now."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.modus = SimulatedModus(fleet={}).start()
        self.open: list[SimulatedRun] = []
        self.malformed: Counter[int] = Counter()
        self.told: Counter[str] = Counter()
        self.began = time.monotonic()
        for agent_id in AGENTS:
            self.modus.add_agent(agent_id, f"Agent {agent_id}")

    def tell(self, event: str) -> None:
        """Say what happens, and count it."""
        self.told[event] += 1
        sys.stderr.write(f"{time.monotonic() - self.began:7.1f} s: {event}\n")

    def live(self) -> None:
        """A moment of the agents' lives."""
        rng, modus = self.rng, self.modus
        for _ in range(rng.randrange(4)):
            shown = modus.clock() + rng.choice([0, 0, 0, 1, 5])  # the index may be late
            agent_id, odd = rng.choice(AGENTS), rng.random()
            run = modus.start_run(agent_id, visible_from=shown, override=rng.choice(ODD) if odd < 0.1 else {})
            if odd > 0.95:
                self.malformed[agent_id] += 1
                number = sum(self.malformed.values())
                modus.change(run, raw=rng.choice([b'{"id": "bad %d"}', b'[%d, "no run"]']) % number)
            self.open.append(run)
        while len(self.open) > 100 or (self.open and rng.random() < 0.7):
            self.end(self.open.pop(rng.randrange(len(self.open))))
        if self.open and rng.random() < 0.1:
            modus.change(rng.choice(self.open), waits_from=modus.clock())

    def end(self, run: SimulatedRun) -> None:
        self.modus.end_run(run, self.rng.choice(OUTCOMES))

    def fail(self, kind: str = "") -> None:
        """Choose what is wrong with the API from now on, or have all requests fail in that way."""
        modus, rng = self.modus, self.rng
        share, ill = 1.0 if kind else rng.choice([0.05, 0.3, 1.0]), rng.choice(AGENTS)
        page = b"<html>Bad gateway</html>"
        kinds: dict[str, Callable[[], Answer | None]] = {
            "healthy": lambda: None,
            "500": lambda: modus.error(500),
            "401": lambda: modus.error(401),
            "429": lambda: modus.error(429, **{"Retry-After": "2"}),
            "503": lambda: modus.error(503, **{"Retry-After": "1"}),
            "hang up": lambda: Answer(0, {}, b""),
            "html": lambda: Answer(502, {"Content-Type": "text/html"}, page),
            "truncated": lambda: Answer(200, {"Content-Length": "9", "Connection": "close"}, b"{"),
            "slow": lambda: time.sleep(1),
            "hangs": lambda: time.sleep(5),
            "too many items": lambda: Answer(200, {}, b'{"runs":[' + b"{}," * 120_000 + b"{}]}"),
            "one agent is gone": lambda: None,
            "one agent's date is odd": lambda: None,
        }
        kind = kind or rng.choice(list(kinds))
        chance = random.Random(rng.random())  # noqa: S311 - the server's threads ask it

        def fault(request: Request) -> Answer | None:
            if kind == "one agent is gone":
                return modus.error(404) if request.agent_id == ill else None
            return kinds[kind]() if chance.random() < share else None

        ahead = rng.choice([-modus.clock(), 10 * 365 * 86400.0, 86400.0, -3600.0])
        odd = kind == "one agent's date is odd"
        modus.date_offset = lambda request: ahead if odd and request.agent_id == ill else 0.0
        self.tell(f"api: {kind}")
        modus.fault = fault

    def heal(self) -> None:
        """End all runs, and let the API answer as it should."""
        self.modus.fault, self.modus.date_offset = None, 0.0
        for run in self.open:
            self.end(run)

    def ended(self) -> dict[int, set[str]]:
        """What has to be counted: ids of ended runs by agent."""
        return {
            agent_id: {
                run.id for run in self.modus.runs(agent_id) if run.listed not in OPEN_STATUSES and not run.raw
            }
            for agent_id in AGENTS
        }


class Disk:
    """Where an exporter keeps its state, and what is wrong with that right now."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.state = directory / "state" / "state.db"
        self.rng = rng
        self.ill = ""
        self.unsafe = False  # what was counted may be in memory alone: a kill would lose it
        self.fsync = Fsync.build(directory)
        self.state.parent.mkdir()
        self.small = os.geteuid() == 0 and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(self.state.parent)],
            capture_output=True, check=False,
        ).returncode  # fmt: skip
        self._other: sqlite3.Connection | None = None

    @property
    def env(self) -> dict[str, str]:
        return self.fsync.env if self.fsync else {}

    def fail(self) -> str:
        """Begin a fault; returns what it is called."""
        kinds = ["locked", *(["slow fsync", "EIO"] if self.fsync else []), *(["full"] if self.small else [])]
        self.ill = self.rng.choice(kinds)
        self.unsafe = self.unsafe or self.ill != "slow fsync"
        if self.ill == "slow fsync":
            assert self.fsync
            self.fsync.slow(self.rng.choice([0.1, 1.0, 3.0, 10.0]))
        elif self.ill == "EIO":
            assert self.fsync
            self.fsync.failing()
        elif self.ill == "full":
            with suppress(OSError), self._filler.open("wb") as filler:  # it may be full already
                while True:
                    filler.write(b"x" * 65536)
        else:
            with suppress(sqlite3.Error):  # it is being written right now
                self._other = sqlite3.connect(self.state, isolation_level=None, timeout=1.0)
                self._other.execute("BEGIN IMMEDIATE")
        return f"disk of {self.state.parents[1].name}: {self.ill}"

    def heal(self) -> None:
        """End the fault."""
        if self.fsync:
            self.fsync.well()
        self._filler.unlink(missing_ok=True)
        if self._other:
            self._other.close()
        self._other, self.ill = None, ""

    def lose(self, *, garbage: bool) -> None:
        """Delete the state file under the process, or put another one in its place."""
        for suffix in ("-wal", "-shm", ""):
            Path(f"{self.state}{suffix}").unlink(missing_ok=True)
        if garbage:
            self.state.write_bytes(os.urandom(8192))

    def close(self) -> None:
        if self.small:
            subprocess.run(["umount", "--lazy", str(self.state.parent)], check=False)

    @property
    def _filler(self) -> Path:
        return self.state.with_name("filler")


@dataclass
class Seen:
    """What one exporter was seen to do."""

    problems: list[str] = field(default_factory=list)
    took: list[float] = field(default_factory=list)  # seconds of each scrape
    memory: list[float] = field(default_factory=list)  # MiB
    shown: dict[tuple[str, ...], float] = field(default_factory=dict)  # the durable counters
    process: dict[tuple[str, ...], float] = field(default_factory=dict)  # those that begin with the process
    late: list[str] = field(default_factory=list)  # answers that came more than SPARE after their time
    incomplete: int = 0


class Watched:
    """An exporter with a state file, scraped all the time in a thread, and what was seen of it."""

    def __init__(self, directory: Path, world: World) -> None:
        directory.mkdir()
        self.directory, self.world = directory, world
        self.disk = Disk(directory, world.rng)
        self.file = config(directory, world.modus.url, *AGENTS)
        self.good = self.file.read_text()
        self.port = free_port()
        self.seen = Seen()
        self.usable = threading.Lock()  # held while it is restarted
        self.over = threading.Event()
        self.start()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def start(self, limit: str = "") -> None:
        """Start it, with few `threads` or `descriptors` where that is the limit."""
        env, prefix = dict(self.disk.env), tuple[str, ...]()
        if limit == "threads":
            env |= few_threads(self.directory / "few", 12, ROOT)
        if limit == "descriptors":
            prefix = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
        flags = "--config.file", str(self.file), "--web.enable-lifecycle"
        self.seen.process = {}
        self.running = Exporter(self.directory, *flags, port=self.port, env=env, prefix=prefix)

    def _watch(self) -> None:
        while not self.over.wait(PAUSE):
            with self.usable:
                try:
                    self.scrape()
                except Exception as error:
                    self.seen.problems.append(f"{type(error).__name__}: {error}")

    def scrape(self) -> None:
        headers = {"Accept": OPENMETRICS, "X-Prometheus-Scrape-Timeout-Seconds": str(TIMEOUT)}
        began, seen, was_ill = time.monotonic(), self.seen, self.disk.ill
        try:
            answer = requests.get(f"{self.running.url}/metrics", headers=headers, timeout=30)
        except requests.RequestException as error:
            seen.problems.append(f"no answer: {error}")
            return
        took = time.monotonic() - began
        seen.took.append(took)
        if answer.status_code != 200:
            seen.problems.append(f"{answer.status_code} after {took:.2f} s: {answer.text[:100]}")
            return
        scrape = Scrape(answer.text)
        if took > TIMEOUT + SPARE:
            own = scrape.value("modus_exporter_scrape_duration_seconds")
            seen.late.append(
                f"{began - self.world.began:.1f} s: answered after {took:.2f} s, reading took {own:.2f}"
            )
        seen.incomplete += scrape.value("modus_exporter_scrape_complete") == 0
        if not was_ill and scrape.value("modus_exporter_ledger_up") == 1:
            self.disk.unsafe = bool(self.disk.ill) and self.disk.ill != "slow fsync"
        self._compare(scrape)
        status = Path(f"/proc/{self.running.popen.pid}/status").read_text()
        seen.memory.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)

    def _compare(self, scrape: Scrape) -> None:
        """No counter steps back: the durable ones never, the others not while the process lives."""
        for sample in scrape.samples:
            if not sample.name.startswith("modus_") or not sample.name.endswith(
                ("_total", "_count", "_bucket", "_sum")
            ):
                continue
            durable = sample.name.startswith(("modus_agent_runs_", "modus_agent_run_duration"))
            known = self.seen.shown if durable else self.seen.process
            key = sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            if sample.value < known.get(key, 0.0):
                self.seen.problems.append(f"stepped back: {key} from {known[key]} to {sample.value}")
            known[key] = sample.value

    def is_durable(self) -> bool:
        """Whether the file holds all that was shown: a kill would else lose it for good, as documented."""
        if self.disk.unsafe or self.disk.ill not in ("", "slow fsync"):
            return False
        try:
            agents = read_state(str(self.disk.state)).agents
        except LedgerError:
            return False
        held = {
            id_: sum(sum(n.values()) for n in agent.totals.finished.values()) for id_, agent in agents.items()
        }
        return all(held.get(id_, 0) >= self._sum("modus_agent_runs_finished_total", id_) for id_ in AGENTS)

    def restart(self, number: signal.Signals) -> None:
        """End it whatever it is doing, a scrape of ours included, and start it again."""
        limit = self.world.rng.choice(["", "threads", "descriptors"])
        self.world.tell(f"limit: {limit or 'none'}")
        with self.usable:
            if number == signal.SIGKILL:
                busy = threading.Thread(target=self._scrape_unchecked, daemon=True)
                busy.start()
                time.sleep(self.world.rng.random() * 0.2)
                self.running.kill()
                busy.join(30)
            else:
                began = time.monotonic()
                code = self.running.stop(number, within=30)
                if code or time.monotonic() - began > 5:
                    took = time.monotonic() - began
                    self.seen.problems.append(f"{number.name}: exit {code} after {took:.1f} s")
            self.read_log()
            self.start(limit)

    def _scrape_unchecked(self) -> None:
        with suppress(requests.RequestException):
            requests.get(f"{self.running.url}/metrics", timeout=30)

    def read_log(self) -> None:
        """Look for what must not be in the log of the process that is about to go."""
        for line in self.running.said().splitlines():
            if any(mistake in line for mistake in MISTAKES):
                self.seen.problems.append(f"in the log: {line[:300]}")

    def reload(self, *, good: bool) -> None:
        concurrency = self.world.rng.choice([1, 4, 16])
        text = self.good.replace("token: demo", f"token: demo, concurrency: {concurrency}")
        self.file.write_text(text if good else text + "nonsense: 1\n")
        if self.world.rng.random() < 0.5:
            self.running.popen.send_signal(signal.SIGHUP)
            return
        # it waits for the scrape in flight, which may be that of a patient one
        answer = requests.post(f"{self.running.url}/-/reload", timeout=330)
        if (answer.status_code == 200) != good:
            self.seen.problems.append(f"reload of a {'good' if good else 'bad'} file: {answer.status_code}")

    def lose_state(self, *, garbage: bool) -> None:
        with self.usable:
            self.disk.lose(garbage=garbage)
            self.disk.unsafe = True  # a kill before it was written again loses the totals for good
            for _ in range(3):
                self.scrape()

    def verify(self) -> Iterator[str]:
        """What is wrong with the totals: before a restart, in the file, and after it."""
        ended, malformed = self.world.ended(), self.world.malformed
        self.file.write_text(self.good)
        for when in ("at the end", "after a restart"):
            with suppress(AssertionError):
                wait_for("all is shown", lambda: self.scrape() or self._all_shown(), 30)
            for agent_id in AGENTS:
                for name, wanted in (
                    ("modus_agent_runs_finished_total", len(ended[agent_id])),
                    ("modus_agent_runs_missed_total", malformed[agent_id]),
                ):
                    shown = self._sum(name, agent_id)
                    if shown != wanted:
                        yield f"{when}: agent {agent_id}: {name} is {shown:g}, and not {wanted}"
            code, table = audit(self.file)
            if code:
                yield f"{when}: the audit is not clean:\n{table}"
            self.running.stop()
            self.read_log()
            yield from self._in_file(ended)
            self.seen.shown = {}
            self.start()
        self.running.stop()

    def _in_file(self, ended: dict[int, set[str]]) -> Iterator[str]:
        try:
            counted = read_state(str(self.disk.state)).counted
        except LedgerError as error:
            yield str(error)
            return
        for agent_id, wanted in ended.items():
            found = {id_ for id_ in counted.get(agent_id, {}) if not id_.startswith(MALFORMED)}
            if wrong := wanted ^ found:
                which = f"{len(wanted - found)} lost, {len(found - wanted)} made up"
                yield f"agent {agent_id}: {which}: {sorted(wrong)[:3]}"

    def _sum(self, name: str, agent_id: int) -> float:
        shown = self.seen.shown.items()
        return sum(n for key, n in shown if key[0] == name and f"agent_id={agent_id}" in key)

    def _all_shown(self) -> bool:
        ended = sum(map(len, self.world.ended().values()))
        return sum(self._sum("modus_agent_runs_finished_total", agent_id) for agent_id in AGENTS) == ended


@contextmanager
def crowd(what: str, *targets: str) -> Iterator[dict[str, Any]]:
    """A crowd in a process of its own; its report is there when it has gone."""
    report: dict[str, Any] = {}
    command = [sys.executable, "-m", "tests.crowd", what, *targets]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as popen:
        try:
            yield report
            out, _ = popen.communicate(timeout=120)
            report.update(json.loads(out))
        finally:
            popen.kill()


def run(world: World, killed: Watched, steady: Watched, ends: float) -> None:
    """Let things happen until it ends."""
    rng, both = world.rng, [killed, steady]
    events: dict[str, Callable[[Watched], None]] = {
        "SIGKILL": lambda _: killed.restart(signal.SIGKILL),
        "SIGTERM": lambda _: killed.restart(signal.SIGTERM),
        "reload, good file": lambda watched: watched.reload(good=True),
        "reload, bad file": lambda _: steady.reload(good=False),
        "state file deleted": lambda watched: watched.lose_state(garbage=False),
        "state file replaced": lambda watched: watched.lose_state(garbage=True),
    }
    while time.monotonic() < ends:
        for _ in range(rng.randrange(4, 12)):
            world.live()
            time.sleep(0.2)
        world.fail()
        for watched in both:
            if watched.disk.ill:
                if rng.random() < 0.5:
                    watched.disk.heal()
            elif rng.random() < 0.15:
                world.tell(watched.disk.fail())
        event, watched = rng.choice(list(events)), rng.choice(both)
        unsafe = event.startswith("SIG") and not killed.is_durable()
        if rng.random() < 0.6 and not unsafe and not (event.startswith("state") and watched.disk.ill):
            world.tell(event)
            events[event](watched)


def soak(minutes: float, seed: int, directory: Path) -> int:
    """Run for so long; returns the exit code."""
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    world = World(rng)
    both = {name: Watched(directory / name, world) for name in ("killed", "steady")}
    killed, steady = both.values()
    targets = f"127.0.0.1:{steady.port}", f"127.0.0.1:{killed.port}/mortal"
    try:
        world.fail("too many items")  # what a thread keeps of the largest page, all have from now on
        wait_for("all threads have met it", lambda: len(steady.seen.took) > 30)
        with crowd("callers", *targets) as callers, crowd("health", targets[0]) as health:
            run(world, killed, steady, time.monotonic() + minutes * 60)
            world.heal()
            for watched in both.values():
                watched.disk.heal()
        time.sleep(6)  # for the runs that the index shows late, and the pause of a 429
        problems = [*callers["problems"], *health["problems"], *_health(health)]
        memory = list(steady.seen.memory)
        for name, watched in both.items():
            watched.over.set()
            watched.thread.join(60)
            problems += [f"{name}: {problem}" for problem in watched.verify()]
            problems += [f"{name}: {problem}" for problem in watched.seen.problems]
    finally:
        for watched in both.values():
            watched.running.kill()
            watched.disk.close()
        world.modus.close()
    number = len(callers["shares"]) + sum(len(watched.seen.took) for watched in both.values())
    late = [
        *callers["late"],
        *(f"{name}: {each}" for name, watched in both.items() for each in watched.seen.late),
    ]
    problems += [f"{len(late)} of {number} answers were late"] if len(late) * LATE > number + LATE else []
    problems += _growth(memory)
    report = _told(world, seed, minutes)
    report += [f"{name}: {_scrapes(watched.seen)}" for name, watched in both.items()]
    report += [
        f"answers to the crowd: {dict(sorted(callers['answers'].items()))}",
        f"after their timeout: {len(callers['beyond'])}, by seconds: {_spread(callers['beyond'])}",
        *(f"late: {each}" for each in late[:100]),
        f"health, seconds: {_spread(health['health'])}; our own lag: {_spread(health['lag'])}",
        f"memory of the steady one, MiB: {_spread(memory)}",
    ]
    report += problems[:100] or ["clean: every run counted once, the audits agree, memory is flat"]
    sys.stdout.write("\n".join(report) + "\n")
    return 1 if problems else 0


def _told(world: World, seed: int, minutes: float) -> list[str]:
    ended, malformed = sum(map(len, world.ended().values())), world.malformed.total()
    head = f"seed {seed}, {minutes:g} minutes, {ended} runs ended, {malformed} were malformed"
    return [head, *(f"{name}: {number}" for name, number in sorted(world.told.items()))]


def _scrapes(seen: Seen) -> str:
    took = _spread(seen.took)
    return f"{len(seen.took)} scrapes of {TIMEOUT:g} s, {seen.incomplete} incomplete, seconds: {took}"


def _health(report: dict[str, Any]) -> list[str]:
    beyond = [took - max(lag, 0.0) for took, lag in zip(report["health"], report["lag"], strict=True)]
    if (late := sum(each > HEALTH for each in beyond)) * 20 <= len(beyond):
        return []
    return [f"{late} of {len(beyond)} looks at the health took over {HEALTH:g} s"]


def _growth(memory: list[float]) -> list[str]:
    fifth = len(memory) // 5
    medians = [statistics.median(memory[n * fifth : (n + 1) * fifth]) for n in range(5)]
    sys.stderr.write(f"medians of the memory by fifth: {medians}\n")
    middle, late = medians[2], medians[-1]
    return [f"memory grows: {middle:.1f}, then {late:.1f} MiB"] if late > middle * GROWTH else []


def _spread(values: list[float]) -> str:
    if not values:
        return "none"
    values = sorted(values)
    parts = {"half": 0.5, "9 of 10": 0.9, "99 of 100": 0.99}
    return ", ".join(
        [*(f"{name} below {values[int(part * (len(values) - 1))]:.3f}" for name, part in parts.items()),
         f"at most {values[-1]:.3f}"]
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    code = soak(args.minutes, args.seed, directory)
    if code:
        sys.stdout.write(f"logs and state files: {directory}\n")
    else:
        shutil.rmtree(directory)
    return code


if __name__ == "__main__":
    sys.exit(main())
