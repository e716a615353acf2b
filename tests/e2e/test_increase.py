"""What ended is what `increase()` says, in a real Prometheus with the shipped configuration and rules.

Once as shipped, and once with `_created` series and a Prometheus that is told to make zeros of them (an old
one cannot: then it is the same once more). The world lives through everything; each test looks at one thing.
"""

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from exporter.demo.simulator import Answer, Request, SimulatedModus
from tests.e2e.harness import Exporter, Prometheus, config, free_port, program, shipped, wait_for

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("increase")]
AGENTS = STEADY, RENAMED, TRIGGERED, LIMITED, FAILING, BUSY = tuple(range(41, 47))
PAST = 300  # runs of BUSY before it is seen: twelve pages, of which a scrape reads four
NAMES = ("Triage", "Invoice triage", "Triage of invoices")  # of RENAMED, one after the other
AS_FAST = {  # in the shipped configuration
    "scrape_interval: 30s": "scrape_interval: 1s",
    "scrape_timeout: 25s": "scrape_timeout: 1s",
    "evaluation_interval: 15s": "evaluation_interval: 500ms",
}
AS_SOON = {  # in the shipped rules
    "interval: 1m\n": "interval: 1s\n",
    "for: 2m\n": "for: 2s\n",
    "for: 5m\n": "for: 3s\n",
}
REFUSED = 'modus_api_requests_total{code="429"}'
FINISHED = "modus_agent_runs_finished_total"


def of(agent_id: int, metric: str = FINISHED) -> str:
    return f'{metric}{{agent_id="{agent_id}"}}'


class World:
    """A simulated API, the exporter over it, and a Prometheus that scrapes it every second."""

    def __init__(self, directory: Path, cleanup: ExitStack, *, created: bool) -> None:
        self.directory = directory
        self.ended = Counter[int]()  # runs by agent, since it was seen first
        self.modus = SimulatedModus(fleet={}).start()
        cleanup.callback(self.modus.close)
        for agent_id in AGENTS:
            self.modus.add_agent(agent_id, f"Agent {agent_id}")
        self.modus.agents[BUSY].deleted_at = 0.0  # not there, for the time being
        self.file = config(
            directory,
            self.modus.url,
            discovery="{enabled: true, refresh_interval: 500ms}",
            runs="{page_size: 25, max_pages: 4}",
            exposition=f"{{created: {str(created).lower()}}}",
        )
        self.start(free_port())
        cleanup.callback(lambda: self.exporter.stop())
        features = ["created-timestamp-zero-ingestion"] if created else []
        self.prometheus = Prometheus(directory, directory / "prometheus.yml", *features)
        cleanup.callback(self.prometheus.stop)

    def start(self, port: int) -> None:
        """Start the exporter, also on this port; what is shipped to scrape it is written for that."""
        self.exporter = Exporter(self.directory, "--config.file", str(self.file), port=port)
        self.port = port
        self.ship("prometheus.yml", {"localhost:10371": f"127.0.0.1:{port}", **AS_FAST})
        self.ship("rules/modus.yml", AS_SOON)

    def ship(self, name: str, changes: dict[str, str]) -> None:
        """Put a shipped file in place, with these changes."""
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(shipped(name, changes))

    # --- what happens ---

    def live(self) -> None:
        """Everything there is to bear."""
        self.all_seen(AGENTS[:-1])
        self.busy_agent_appears()
        for number, upheaval in enumerate((self.restart, self.die, self.move)):
            trigger = f"carrier pigeon {number}"
            self.end(3, trigger)
            self.all_seen(AGENTS)
            self.modus.rename(RENAMED, NAMES[number])
            self.end(2, trigger)  # of which a first sample may tell, or none
            upheaval()
            self.end(1, trigger)
            self.all_seen(AGENTS)
        self.too_many_requests()
        for _ in range(12):
            self.modus.start_run(FAILING, lasts=0.0, outcome="error")
        self.ended[FAILING] += 12
        self.all_seen(AGENTS)

    def end(self, number: int, trigger: str) -> None:
        """So many runs of each agent end well now, but for one that never had a good one."""
        for agent_id in {*AGENTS} - {FAILING}:
            self.ended[agent_id] += number
            for _ in range(number):
                fields = {"trigger": trigger if agent_id == TRIGGERED else "manual"}
                self.modus.start_run(agent_id, at=self.modus.clock() - 1, lasts=1.0, **fields)

    def busy_agent_appears(self) -> None:
        now = self.modus.clock()
        for n in range(PAST):
            outcome = "error" if n < PAST / 2 else "completed"
            self.modus.start_run(BUSY, at=now - 10 * (PAST - n), lasts=1.0, outcome=outcome)
        self.modus.agents[BUSY].deleted_at = float("inf")
        self.all_seen([BUSY])

    def restart(self) -> None:
        self.exporter.stop()
        self.end(4, "manual")
        self.start(self.port)

    def die(self) -> None:
        self.exporter.stop(signal.SIGKILL)
        self.end(4, "manual")
        self.start(self.port)

    def move(self) -> None:
        self.exporter.stop()
        self.end(4, "manual")
        self.start(free_port())
        self.prometheus.popen.send_signal(signal.SIGHUP)

    def too_many_requests(self) -> None:
        answered: list[Answer] = []

        def refuse(request: Request) -> Answer | None:
            if request.agent_id != LIMITED or len(answered) == 2:
                return None
            answered.append(self.modus.error(429, **{"Retry-After": "1"}))
            return answered[-1]

        self.modus.fault = refuse
        wait_for("both were seen", lambda: self.prometheus.number(f"sum({REFUSED})") == 2)

    def all_seen(self, agents: "tuple[int, ...] | list[int]") -> None:
        """Wait until Prometheus has every run that ended."""
        for agent_id in agents:
            number = self.ended[agent_id] + (PAST if agent_id == BUSY else 0)
            query = f"sum({of(agent_id)})"
            wait_for(f"{query} is {number}", lambda q=query, n=number: self.prometheus.number(q) == n)  # type: ignore[misc]

    # --- what Prometheus made of it ---

    def increase(self, series: str) -> float:
        """Over all that was scraped: from a moment before the first sample to the last."""
        stored = self.prometheus.query(f"{series}[1h]")
        instants = [sample[0] for each in stored for sample in each["values"]]
        window = round((max(instants) - min(instants)) * 1000) + 1
        query = f"sum(increase({series}[{window}ms]))"
        found = self.prometheus.ask("query", query=query, time=max(instants))["result"]
        return float(found[0]["value"][1])

    def alerts(self, state: str) -> set[tuple[str, str]]:
        """By name and agent, those that ever were in this state."""
        found = self.prometheus.query(f'count_over_time(ALERTS{{alertstate="{state}"}}[1h])')
        return {_named(each["metric"]) for each in found}

    def firing(self) -> set[tuple[str, str]]:
        """By name and agent, those that Prometheus says are firing now."""
        found = self.prometheus.ask("alerts")["alerts"]
        return {_named(each["labels"]) for each in found if each["state"] == "firing"}


def _named(labels: dict[str, str]) -> tuple[str, str]:
    return labels["alertname"], labels.get("agent_id", "")


@pytest.fixture(scope="module", params=[False, True], ids=["shipped", "created"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    program("prometheus")
    with ExitStack() as cleanup:
        world = World(tmp_path_factory.mktemp("increase"), cleanup, created=request.param)
        world.live()
        yield world


@pytest.mark.parametrize("metric", [FINISHED, "modus_agent_run_duration_seconds_count"])
def test_restarts_a_kill_and_a_move_neither_lose_nor_double_runs(world: World, metric: str) -> None:
    assert world.increase(of(STEADY, metric)) == pytest.approx(world.ended[STEADY], rel=0.001)
    assert len(world.prometheus.query(f"{of(STEADY, 'modus_agent_up')}[1h]")) == 1


@pytest.mark.parametrize("metric", [FINISHED, "modus_agent_run_duration_seconds_count"])
def test_renames_neither_lose_nor_double_runs(world: World, metric: str) -> None:
    assert world.increase(of(RENAMED, metric)) == pytest.approx(world.ended[RENAMED], rel=0.001)
    names = {each["metric"]["agent_name"] for each in world.prometheus.query(of(RENAMED, "modus_agent_info"))}
    assert names == {NAMES[-1]}


def test_a_new_trigger_type_is_an_increase_from_its_first_run_on(world: World) -> None:
    assert world.increase(of(TRIGGERED)) == pytest.approx(world.ended[TRIGGERED], rel=0.001)


def test_the_first_429_is_an_increase(world: World) -> None:
    assert world.increase(REFUSED) == pytest.approx(2, rel=0.001)


@pytest.mark.parametrize("metric", [FINISHED, "modus_agent_run_duration_seconds_count"])
def test_the_past_of_an_agent_that_is_seen_for_the_first_time_is_no_increase(
    world: World, metric: str
) -> None:
    """Its first sample is the whole base, however many scrapes reading it took."""
    assert world.increase(of(BUSY, metric)) == pytest.approx(world.ended[BUSY], rel=0.001)


def test_nothing_is_told_but_the_truth(world: World) -> None:
    """An agent fails; all others were renamed, restarted, moved, refused or seen first, and are well."""
    failing = "ModusAgentLastRunFailed", "ModusAgentFailureRatioHigh", "ModusErrorBudgetBurnFast"
    truth = {(name, str(FAILING)) for name in failing}
    wait_for("it is told", lambda: world.firing() >= truth)
    assert world.firing() == world.alerts("firing") == truth
    # true for a scrape or two, or until the usage, refused with all else, is asked for again
    passing = {"ModusBacklog", "ModusExporterDown", "ModusNothingToRead", "ModusUsageUnreadable"}
    pending = {(name, agent) for name, agent in world.alerts("pending") if name not in passing}
    assert {agent for _, agent in pending} == {str(FAILING)}
