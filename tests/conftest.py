"""What all tests share: whatever a test leaves open, also when it fails, is closed when it is over."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from exporter.demo.simulator import SimulatedModus
from exporter.metrics.collector import RunsCollector
from exporter.modus.client import ModusClient
from exporter.runs.sqlite import StateFile
from tests.e2e.harness import Process, Webhook
from tests.e2e.scarce import Fsync
from tests.simulation import ILL, WELL
from tests.webfiles import Authority
from tests.wire import Wire

if TYPE_CHECKING:
    from tests.postgres import Postgres

# the same examples each time; `--hypothesis-profile=new` looks for new ones; none fails because it is slow
in_any_time = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", in_any_time, derandomize=True, database=None)
settings.register_profile("new", in_any_time)
settings.load_profile("repeatable")

# class, the method that opens, the one that closes; in the order in which they are closed
OPENED: tuple[tuple[type, str, str], ...] = (
    (Process, "__init__", "kill"),
    (Wire, "__init__", "close"),
    (Webhook, "__init__", "close"),
    (SimulatedModus, "start", "close"),
    (RunsCollector, "__init__", "close"),
    (ModusClient, "__init__", "close"),
    (StateFile, "__init__", "close"),
)


@pytest.fixture(autouse=True)
def nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes what this test opened; what a fixture of a module opened before is that fixture's."""
    still_open: dict[tuple[type, int], Any] = {}

    def watch(kind: type, opens: str, closes: str) -> None:
        open_, close = getattr(kind, opens), getattr(kind, closes)

        def opened(self: Any, *args: Any, **options: Any) -> Any:
            done = open_(self, *args, **options)
            still_open[kind, id(self)] = self
            return done

        def closed(self: Any, *args: Any) -> Any:
            still_open.pop((kind, id(self)), None)
            return close(self, *args)

        monkeypatch.setattr(kind, opens, opened)
        monkeypatch.setattr(kind, closes, closed)

    for each in OPENED:
        watch(*each)
    yield
    for kind, _, closes in OPENED:
        for key in [key for key in still_open if key[0] is kind]:
            getattr(still_open[key], closes)()


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    """A certificate authority, with a certificate for a server."""
    authority = Authority(tmp_path)
    authority.issue("server")
    return authority


@pytest.fixture
def fsync(tmp_path: Path) -> Fsync:
    """A disk whose fsync does as it is told, in a program that is started with its `env`."""
    fsync = Fsync.build(tmp_path)
    if fsync is None:
        pytest.skip("no C compiler to make fsync slow: apt-get install gcc")
    return fsync


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write the web configuration file, at once: the server looks at it all the time; returns its path."""

    def write_file(text: str) -> Path:
        (tmp_path / "web.yml.new").write_text(text)
        return (tmp_path / "web.yml.new").replace(tmp_path / "web.yml")

    return write_file


@pytest.fixture
def modus() -> SimulatedModus:
    """The simulated API over HTTP, with three completed runs and an open one of each of two agents."""
    modus = SimulatedModus(fleet={}).start()
    for agent_id in (ILL, WELL):
        modus.add_agent(agent_id, f"Agent {agent_id}")
        modus.start_run(agent_id, at=modus.clock() - 100)
        for ago in (400, 300, 200):
            modus.start_run(agent_id, at=modus.clock() - ago, lasts=5.0)
    return modus


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Postgres]":
    """A PostgreSQL of the tests' own."""
    from tests.postgres import running

    with running() as server:
        yield server
