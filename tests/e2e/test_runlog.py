"""The real command is killed fifty times: the log and the ledger name the same runs, each once."""

import random
import re
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from exporter.demo.simulator import SimulatedModus
from exporter.runs.store import read_state
from tests.e2e.harness import Exporter, wait_for

KILLS = 50
AGENT = 7

pytestmark = pytest.mark.servers


def said(log: str) -> list[str]:
    return re.findall(r'msg="run ended" .*run_id=(\S+)', log)


def scrape_on(exporter: Exporter, seconds: float) -> None:
    """Scrape again and again for that long; the one under way is not waited for."""
    ending = time.monotonic() + seconds

    def scrape() -> None:
        try:
            while time.monotonic() < ending:
                exporter.exposition(timeout=5)
        except OSError:  # it was killed
            return

    threading.Thread(target=scrape, daemon=True).start()
    time.sleep(seconds)


def test_after_fifty_kills_each_counted_run_has_one_line(tmp_path: Path) -> None:
    modus = SimulatedModus(fleet={}).start()
    modus.add_agent(AGENT, "Seven")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"modus: {{base_url: '{modus.url}', token: demo}}\nagents: [{AGENT}]\n"
        "runs: {log: all}\nstate: {path: state.db}\n"
    )
    rng, ending = random.Random(1), threading.Event()  # noqa: S311 - repeatable on purpose

    def runs_end() -> None:
        while not ending.wait(0.1):
            modus.start_run(AGENT, lasts=0.0, outcome=rng.choice(["completed", "error"]))

    lines: list[str] = []
    first = Exporter(tmp_path, "--config.file", str(config))
    first.scrape()  # the first sight, of an agent without a past
    runs = threading.Thread(target=runs_end)
    runs.start()
    try:
        for number in range(KILLS):
            exporter = Exporter(tmp_path, "--config.file", str(config)) if number else first
            scrape_on(exporter, rng.uniform(0.02, 0.4))
            exporter.kill()
            lines += said(exporter.said())
    finally:
        ending.set()
        runs.join()
    last = Exporter(tmp_path, "--config.file", str(config))
    ended = {run.id for run in modus.runs(AGENT)}
    wait_for("all runs are counted", lambda: last.scrape() and len(lines + said(last.said())) >= len(ended))
    assert last.stop() == 0
    lines += said(last.said())
    assert set(read_state(str(tmp_path / "state.db")).counted[AGENT]) == ended
    assert len(ended) > KILLS
    assert Counter(lines) == Counter(ended)
