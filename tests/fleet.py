"""A soak of exporters that share their state: `python -m tests.fleet --minutes 10`, from the root.

Three or four processes and a Prometheus, on one PostgreSQL and one simulated API whose runs start and end all
the time. Members are killed, stopped, stood still for longer than a lease, added and taken away; the database
restarts, crashes, hangs, and cuts connections. At every look all members are asked at once: no agent is shown
but by its owner, of whom there is one, no total steps back, no agent is missing for longer than half a minute
while the database is there. In the end the sum over all equals the API's list, and no series in Prometheus
was reset. Exit code 0 or 1.
"""

import argparse
import math
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import requests
import yaml

from exporter.demo.simulator import SimulatedModus
from exporter.runs.leases import TERM, TICK
from exporter.runs.state import USAGE_ID
from tests.e2e.harness import Exporter, Prometheus, Scrape, config, free_port, wait_for
from tests.postgres import Postgres

ROOT = Path(__file__).parents[1]
AGENTS = range(1, 31)
OUTCOMES = ("completed", "completed", "error", "cancelled")
LOOK = 0.5  # seconds between two looks at all members
GONE = 30.0  # seconds that an agent may be missing while the database is there
TAKEN_OVER = TERM + 3 * TICK  # seconds after which others have what a member does not renew
TOTAL = "modus_agent_runs_finished_total"
SUM = (
    f"sum(max_over_time({TOTAL}[2m]))"  # a busy machine misses scrapes, which makes series stale for a moment
)
# the database itself notes who had which lease from when on
HISTORY = (
    "CREATE TABLE history (agent_id bigint, owner text, since double precision)",
    "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO history SELECT "
    "NEW.agent_id, (SELECT name FROM modus_member WHERE id = NEW.owner), "
    "extract(epoch FROM clock_timestamp()); RETURN NULL; END $$",
    "CREATE TRIGGER note AFTER UPDATE OF owner ON modus_lease FOR EACH ROW EXECUTE FUNCTION note()",
)
MISTAKES = ("Traceback", "a scrape failed", "a thread's work failed", "a commit failed", "internal")


class World:
    """The API's agents, whose runs start and end."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.modus = SimulatedModus(fleet={}).start()
        for agent_id in AGENTS:
            self.modus.add_agent(agent_id, f"Agent {agent_id}")

    def live(self) -> None:
        for _ in range(self.rng.randrange(5)):
            lasts, outcome = self.rng.random() * 2, self.rng.choice(OUTCOMES)
            self.modus.start_run(self.rng.choice(AGENTS), lasts=lasts, outcome=outcome)

    def ended(self) -> dict[int, Counter[str]]:
        runs = {agent_id: self.modus.runs(agent_id) for agent_id in AGENTS}
        return {id_: Counter(run.listed or "" for run in found) for id_, found in runs.items()}


@dataclass
class Answer:
    """What one member answered, and between which instants it made that: Unix seconds."""

    member: str  # as the database calls it
    scrape: Scrape
    asked: float
    received: float

    def shown(self) -> dict[int, float]:
        """The agents in it, and from when on it was made, as far as is known."""
        read = {
            int(sample.labels["agent_id"]): sample.value
            for sample in self.scrape.all("modus_agent_last_read_timestamp_seconds")
        }
        agents = [int(sample.labels["agent_id"]) for sample in self.scrape.all("modus_agent_up")]
        agents += [USAGE_ID] * bool(self.scrape.all("modus_usage_up"))
        return {agent_id: max(self.asked, read.get(agent_id, 0.0)) for agent_id in agents}


class Owners:
    """Who had which agent when, as the database noted it."""

    def __init__(self, rows: list[tuple[object, ...]]) -> None:
        self._by_agent: dict[int, list[tuple[float, str | None]]] = {}
        for agent_id, owner, since in rows:
            self._by_agent.setdefault(int(agent_id), []).append((float(since), owner))  # type: ignore[call-overload,arg-type]

    def had(self, member: str, agent_id: int, since: float, until: float) -> bool:
        """Whether the agent was the member's at any moment between these."""
        noted = [*self._by_agent.get(agent_id, []), (math.inf, None)]
        return any(
            owner == member and began <= until and ended >= since
            for (began, owner), (ended, _) in pairwise(noted)
        )

    @property
    def handovers(self) -> int:
        """How often an agent came to another member than the one before."""
        owners = [[owner for _, owner in noted if owner] for noted in self._by_agent.values()]
        return sum(one != other for each in owners for one, other in pairwise(each))


@dataclass
class Seen:
    """What the members showed so far, and what was wrong with it."""

    totals: dict[int, Counter[str]] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)  # when an agent was shown
    shown: list[tuple[str, int, float, float]] = field(
        default_factory=list
    )  # by whom, which agent, since, until
    problems: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    usage: bool = False  # whether somebody shows what the whole organisation used
    looks: int = 0
    began: float = field(default_factory=time.time)

    def problem(self, text: str) -> None:
        self.problems.append(f"{time.time() - self.began:.1f} s: {text}")

    def note(self, answers: list[Answer], *, excused: bool) -> None:
        """Take over one look at all members; `excused`: the database was not there."""
        now, all_shown = time.monotonic(), set[int]()
        self.looks += 1
        for answer in sorted(answers, key=lambda answer: answer.received):
            for agent_id in self.note_shown(answer):
                all_shown.add(agent_id)
                if agent_id != USAGE_ID:
                    self._note_totals(agent_id, Counter(answer.scrape.finished(agent_id)))
        self.usage = USAGE_ID in all_shown
        for agent_id in AGENTS:
            gap = now - self.last.setdefault(agent_id, now)
            if agent_id in all_shown:
                self.last[agent_id] = now
                if gap > 2 * LOOK:
                    self.gaps.append(gap)
            elif excused:
                self.last[agent_id] = now
            elif gap > GONE:
                self.problem(f"agent {agent_id} is shown by nobody for {gap:.0f} s")
                self.last[agent_id] = now

    def note_shown(self, answer: Answer) -> Collection[int]:
        """Keep who showed what, to be judged in the end; returns the agents."""
        shown = answer.shown()
        self.shown += [(answer.member, agent_id, since, answer.received) for agent_id, since in shown.items()]
        return shown

    def judge(self, owners: Owners) -> None:
        """Find what was shown by members whose it was not while they made that."""
        for member, agent_id, since, until in self.shown:
            if not owners.had(member, agent_id, since, until):
                self.problems.append(
                    f"{since - self.began:.1f} to {until - self.began:.1f} s: agent {agent_id} "
                    f"is shown by {member}, whose it was not"
                )

    def _note_totals(self, agent_id: int, totals: Counter[str]) -> None:
        before = self.totals.get(agent_id, Counter())
        if totals and not totals >= before:
            self.problem(f"agent {agent_id} stepped back: {dict(before)} -> {dict(totals)}")
        self.totals[agent_id] = totals | before


def _name(member: Exporter) -> str:
    """As the member calls itself in the database."""
    return f"{socket.gethostname()}:{member.popen.pid}"


class Team:
    """The members, the database, a Prometheus, and who looks at them all the time."""

    def __init__(self, directory: Path, world: World, stack: ExitStack, members: int = 3) -> None:
        self.directory, self.world, self.seen = directory, world, Seen()
        self.server = Postgres()
        stack.callback(self.server.close)
        self.excused_until = 0.0
        self.handovers = 0  # known at the end
        self.members: dict[str, Exporter] = {}
        stack.callback(lambda: [member.kill() for member in self.members.values()])
        self._ports: dict[str, int] = {}  # where Prometheus knows them
        self._lock = threading.Lock()  # one look, or one change of the members
        self._over = threading.Event()
        password = directory / "password"
        password.write_text("correct-horse\n")
        url = self.server.url.replace(":correct-horse", "")
        self.file = config(
            directory,
            world.modus.url,
            discovery="{enabled: true}",
            state=f"{{url: '{url}', password_file: '{password}'}}",
        )
        for number in range(members):
            self.start(f"member-{number}")
        for statement in HISTORY:  # no agent is leased before somebody asks
            self.server.do(statement)
        self.prometheus = Prometheus(directory, self._prometheus_file())
        stack.callback(self.prometheus.kill)
        self._still: set[str] = set()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._live, self._look)]
        for thread in self._threads:
            thread.start()
        stack.callback(self._over.set)

    def _prometheus_file(self) -> Path:
        """The shipped scrape configuration, with these members as targets, asked once a second."""
        shipped = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
        job = shipped["scrape_configs"][0]
        targets = [member.url.removeprefix("http://") for member in self.members.values()]
        job |= {"static_configs": [{"targets": targets}], "scrape_interval": "1s", "scrape_timeout": "1s"}
        file = self.directory / "prometheus.yml"
        file.write_text(yaml.safe_dump({"scrape_configs": [job]}))
        return file

    def start(self, name: str) -> None:
        """Start a member, at the address that it had before."""
        port = self._ports.setdefault(name, free_port())
        member = Exporter(self.directory, "--config.file", str(self.file), port=port)
        with self._lock:
            self.members[name] = member

    def remove(self, name: str) -> Exporter:
        """No longer look at a member."""
        with self._lock:
            member = self.members.pop(name)
        for line in member.said().splitlines():
            if any(mistake in line for mistake in MISTAKES):
                self.seen.problem(f"in the log: {line[:300]}")
        return member

    def _live(self) -> None:
        while not self._over.wait(0.2):
            self.world.live()

    def _look(self) -> None:
        while not self._over.wait(LOOK):
            with self._lock, ThreadPoolExecutor(len(self.members) or 1) as pool:
                moving = [member for name, member in self.members.items() if name not in self._still]
                answers = [answer for answer in pool.map(self._ask, moving) if answer]
                self.seen.note(answers, excused=time.monotonic() < self.excused_until)

    def _ask(self, member: Exporter, timeout: float = 3.0) -> Answer | None:
        asked = time.time()
        with suppress(requests.RequestException):
            text = member.exposition(timeout=timeout)
            return Answer(_name(member), Scrape(text), asked, time.time())
        return None  # it stands still, or has just been killed

    # --- what happens ---

    def kill(self, name: str) -> None:
        """It gives nothing back."""
        self.remove(name).kill()

    def stop(self, name: str) -> None:
        code = self.remove(name).stop()
        if code:
            self.seen.problem(f"{name} ended with exit code {code}")

    def stand_still(self, name: str, seconds: float) -> None:
        """For longer than a lease: who asked before has an answer of then, who asks meanwhile one of after.

        The former may come when the member wakes: Prometheus takes it for one of when it asked.
        """
        member, answers = self.members[name], list[Answer | None]()

        def ask() -> None:
            answers.append(self._ask(member, seconds + 20))

        before, meanwhile = ([threading.Thread(target=ask) for _ in range(5)] for _ in range(2))
        self._still.add(name)
        for thread in before:
            thread.start()
            time.sleep(0.01)  # at whatever point of its work it is
        member.popen.send_signal(signal.SIGSTOP)
        stopped = time.time()
        time.sleep(seconds)
        for thread in meanwhile:
            thread.start()
        time.sleep(0.2)  # the requests wait in its socket
        woken = time.time()
        member.popen.send_signal(signal.SIGCONT)
        for thread in (*before, *meanwhile):
            thread.join()
        self._still.discard(name)
        for answer in filter(None, answers):
            if answer.asked > stopped:
                answer.asked = woken
            self.seen.note_shown(answer)

    def outage(self, number: int, seconds: float) -> None:
        """The database ends as on this signal, and is back later."""
        self.excused_until = float("inf")
        self.server.stop(number)
        time.sleep(seconds)
        self.server.start()
        self.excused_until = time.monotonic() + TERM

    def hang(self, seconds: float) -> None:
        self.excused_until = float("inf")
        self.server.pause()
        time.sleep(seconds)
        self.server.go_on()
        self.excused_until = time.monotonic() + TERM

    def wait_for_even_shares(self) -> None:
        """Until each member has its part of the agents."""
        query = (
            "SELECT count(agent_id) FROM modus_member m LEFT JOIN modus_lease l ON l.owner = m.id "
            "AND agent_id <> %s GROUP BY m.id"
        )

        def even() -> bool:
            shares = [number for (number,) in self.server.ask(query, USAGE_ID)]
            return len(shares) == len(self.members) and set(shares) == {len(AGENTS) // len(shares)}

        wait_for("the shares are even", even)

    # --- the end ---

    def verify(self) -> list[str]:
        """What is wrong once no run ends any more."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        modus = self.world.modus
        ended = self.world.ended
        wait_for("all runs ended", lambda: not any(runs["running"] for runs in ended().values()))

        def counted() -> bool:
            answers = [answer for each in self.members.values() if (answer := self._ask(each))]
            self.seen.note(answers, excused=False)
            return self.seen.totals == self.world.ended() and self.seen.usage

        try:
            wait_for("the sum over all is the API's list", counted)
        except AssertionError as error:
            wrong = {
                id_: (dict(self.seen.totals.get(id_, {})), dict(ended))
                for id_, ended in self.world.ended().items()
                if self.seen.totals.get(id_) != ended
            }
            self.seen.problem(f"{error}: shown and listed: {wrong}")
        owners = Owners(self.server.ask("SELECT agent_id, owner, since FROM history ORDER BY since"))
        self.handovers = owners.handovers
        self.seen.judge(owners)
        listed = sum(len(modus.runs(agent_id)) for agent_id in AGENTS)
        try:
            wait_for("Prometheus has them all", lambda: self.prometheus.number(SUM) == listed, 30)
        except AssertionError as error:
            has = self.prometheus.number(SUM)
            self.seen.problem(f"{error}: it has {has}, the API lists {listed}")
        for series in self.prometheus.query(f"resets({TOTAL}[1h]) > 0"):
            self.seen.problem(f"a series was reset in Prometheus: {series['metric']}")
        for series in self.prometheus.query(f"count by (agent_id, status, trigger_type) ({TOTAL}) != 1"):
            self.seen.problem(f"more than one series: {series['metric']}")
        return self.seen.problems


def soak(minutes: float, seed: int, directory: Path) -> int:
    rng, began = random.Random(seed), time.monotonic()  # noqa: S311 - repeatable on purpose
    told: Counter[str] = Counter()
    with ExitStack() as stack:
        world = World(rng)
        stack.callback(world.modus.close)
        team = Team(directory, world, stack)

        def again(event: Callable[[str], None]) -> Callable[[], None]:
            def happen() -> None:
                name = rng.choice(list(team.members))
                event(name)
                time.sleep(rng.choice([0.0, 3.0, TERM + 5]))
                team.start(name)

            return happen

        def one_more() -> None:
            team.start("one more")
            time.sleep(rng.choice([3.0, 15.0]))
            rng.choice([team.stop, team.kill])("one more")

        events: dict[str, Callable[[], None]] = {
            "kill": again(team.kill),
            "stop": again(team.stop),
            "stand still for longer than a lease": lambda: team.stand_still(
                rng.choice(list(team.members)), TAKEN_OVER + rng.random() * 8
            ),
            "stand still for a moment": lambda: team.stand_still(rng.choice(list(team.members)), 3.0),
            "one more member": one_more,
            "connections cut": team.server.cut_connections,
            "the database restarts": lambda: team.outage(signal.SIGINT, rng.choice([0.0, 3.0])),
            "the database crashes": lambda: team.outage(signal.SIGQUIT, rng.choice([0.0, 20.0])),
            "the database hangs": lambda: team.hang(rng.choice([2.0, 15.0])),
        }
        while time.monotonic() - began < minutes * 60:
            time.sleep(rng.random() * 4)
            event = rng.choice(list(events))
            told[event] += 1
            sys.stderr.write(f"{time.monotonic() - began:7.1f} s: {event}\n")
            events[event]()
        problems = team.verify()
        seen = team.seen
        runs = sum(sum(each.values()) for each in seen.totals.values())
        print(f"{runs} runs, {seen.looks} looks, {team.handovers} handovers, {sum(told.values())} events")  # noqa: T201
        gaps = sorted(seen.gaps) or [0.0]
        print(f"gaps: {len(gaps)}, median {gaps[len(gaps) // 2]:.1f} s, longest {gaps[-1]:.1f} s")  # noqa: T201
        for event, number in told.most_common():
            print(f"{number:5} {event}")  # noqa: T201
        for problem in problems[:20]:
            print(problem)  # noqa: T201
        print(f"{len(problems)} problems")  # noqa: T201
    return 1 if problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak exporters that share their state.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modus-fleet-") as directory:
        return soak(options.minutes, options.seed, Path(directory))


if __name__ == "__main__":
    sys.exit(main())
