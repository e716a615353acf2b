"""Any history of the usage report, any kill: each use is counted once, and no counter ever falls."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.deadline import Deadline
from exporter.demo.simulator import SimulatedModus, SimulatedUse
from exporter.modus.errors import ApiError
from exporter.modus.model import Agent
from exporter.modus.usage import Used
from exporter.runs.ledger import Ledger
from exporter.runs.periodic import PeriodicWork
from exporter.runs.sqlite import StateFile
from exporter.runs.state import Meta
from exporter.runs.store import Change
from exporter.runs.threads import KeptThreads
from exporter.runs.usagereader import UsageReader, UsageSettings
from tests.simulation import BOUNDS, DAY, Clock, DirectApi

HOUR = 3600.0
AGENTS = [Agent(7, "Seven", slug="agent-7"), Agent(8, "Eight", slug="agent-8")]
MOMENTS = ["first answer", "second answer", "before the commit", "in the commit", "after the commit"]


class Killed(BaseException):
    """The process ends here."""


class World:
    """The simulated report, and an exporter's usage part that may be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.modus = SimulatedModus(fleet={}, clock=self.clock)
        for agent in AGENTS:
            self.modus.add_agent(agent.id, agent.name)
        self.path = str(directory / "state.db")
        self.kill_at = ""
        self.fails = False
        self.shown: dict[tuple[str, str], Used] = {}
        self.start()

    def start(self) -> None:
        self.ledger = Ledger(self.path, BOUNDS, lookback=DAY, clock=self.clock)
        api = DirectApi(self.modus)
        api.before = self.before_an_answer
        committer: Any = SimpleNamespace(request=self.commit)
        beside = partial(PeriodicWork, KeptThreads(1, "beside"), time.monotonic)
        self.reader = UsageReader(api, self.ledger, committer, beside, UsageSettings())  # type: ignore[arg-type]
        self.answers = 0

    def before_an_answer(self) -> None:
        self.answers += 1
        if self.kill_at == ["first answer", "second answer", ""][min(self.answers, 3) - 1] != "":
            raise Killed
        if self.fails and self.answers % 2 == 0:
            raise ApiError("server_error", "500")

    def commit(self) -> None:
        if self.kill_at in ("first answer", "second answer"):
            raise Killed
        self.ledger.commit()

    def read(self, kill_at: str = "", *, fails: bool = False) -> None:
        self.kill_at, self.fails, self.answers = kill_at, fails, 0
        try:
            self.reader.read(self.clock(), AGENTS, Deadline())
            self.scrape()
        except Killed:
            self.kill_at = ""
            assert self.ledger._store
            self.ledger._store.close()
            self.start()

    def scrape(self) -> None:
        """What is shown never falls, over restarts too."""
        self.ledger.mark_shown()
        self.ledger.commit()
        with self.ledger.usage() as account:
            shown = account.show()
        for grouping, used in shown.totals.items() if shown else ():
            for name, total in used.items():
                before = self.shown.get((grouping, name), Used())
                assert all(now >= then for now, then in zip(total, before, strict=True)), (
                    name,
                    before,
                    total,
                )
                self.shown[grouping, name] = total

    def totals(self, grouping: str) -> dict[str, Used]:
        return {name: used for (kind, name), used in self.shown.items() if kind == grouping}


class KilledFile(StateFile):
    """A state file of a process that is killed at a moment of its commit."""

    world: World

    def write(self, meta: Meta, changes: Iterable[Change], *, anew: bool) -> None:
        def killed_in_between() -> Iterable[Change]:
            yield from changes
            self.die("in the commit")

        self.die("before the commit")
        super().write(meta, killed_in_between(), anew=anew)
        self.die("after the commit")

    def die(self, moment: str) -> None:
        if KilledFile.world.kill_at == moment:
            raise Killed


uses = st.builds(
    lambda agent, model, ago, late, tokens, spent: ("use", agent, model, ago, late, tokens, spent),
    st.sampled_from([7, 8, 9]),  # nobody lists the last one
    st.sampled_from(["large", "small"]),
    st.floats(0, 20 * HOUR),
    st.sampled_from([0.0, 0.0, HOUR / 2, 3 * HOUR, 20 * HOUR]),
    st.integers(0, 5000),
    st.floats(0, 100),
)
steps = st.lists(
    st.one_of(
        uses,
        uses,
        st.tuples(st.just("wait"), st.sampled_from([60.0, 1800.0, HOUR, 5 * HOUR, 70 * HOUR])),
        st.tuples(st.just("read"), st.just("")),
        st.tuples(st.just("read"), st.sampled_from(MOMENTS)),
        st.tuples(st.just("fail"), st.just("")),
        st.tuples(st.just("restart"), st.just("")),
    ),
    max_size=30,
)


@given(steps, st.sampled_from(["id", "slug", "name"]))
@settings(max_examples=150)
def test_counters_are_the_final_sums_and_never_fall(history: list[tuple[Any, ...]], names: str) -> None:
    with tempfile.TemporaryDirectory() as directory, patch("exporter.runs.sqlite.StateFile", KilledFile):
        KilledFile.world = world = World.__new__(World)
        world.__init__(Path(directory))  # type: ignore[misc]
        world.modus.usage_names = names
        world.read()
        for step, *arguments in history:
            take(world, step, arguments)
        world.clock.advance(21 * HOUR)  # all that is late is known by then
        world.read()
        world.clock.advance(1000.0)  # and so is that nobody lists one of the agents
        world.read()
        world.scrape()
        agents: dict[str, Counter[str]] = {}
        models: dict[str, Counter[str]] = {}
        for use in world.modus.uses:
            amounts = Counter(calls=use.calls, tokens=use.input_tokens, credits=use.credits)  # type: ignore[arg-type]
            agents.setdefault(str(use.agent_id), Counter()).update(amounts)
            models.setdefault(use.model, Counter()).update(amounts)
        for expected, grouping in ((agents, "agent"), (models, "model")):
            totals = world.totals(grouping)
            assert totals.keys() >= expected.keys()
            for name, amounts in expected.items():
                total = totals[name]
                assert (total.calls, total.input_tokens) == (amounts["calls"], amounts["tokens"]), name
                assert totals[name].credits == pytest.approx(amounts["credits"], abs=1e-3)
        world.ledger.close()


def take(world: World, step: str, arguments: list[Any]) -> None:
    if step == "use":
        agent, model, ago, late, tokens, spent = arguments
        at = world.clock() - ago
        known = world.clock() if at + late < world.clock() else at + late
        world.modus.uses.append(
            SimulatedUse(agent, model, at, known, 1, tokens, tokens // 2, round(spent, 3))
        )
    elif step == "wait":
        world.clock.advance(arguments[0])
    elif step == "restart":
        world.ledger.close()
        world.start()
    else:
        world.read(arguments[0], fails=step == "fail")
