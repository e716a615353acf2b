"""What shared state costs: `python -m benchmarks.shared`, with PostgreSQL installed; some minutes.

Prints bytes per run, transactions a scrape and a renewal, and how fast a member takes over agents. The last
two lines scale them to 100,000 agents and 12 members; tests/unit/test_leases.py simulates that fleet.
"""

import argparse
import statistics
import sys
import time
from contextlib import closing
from datetime import UTC, datetime

from exporter.deadline import Deadline
from exporter.modus.model import Run
from exporter.runs.ledger import Ledger
from exporter.runs.reader import Memory, Reading
from exporter.runs.state import Watermark
from tests.e2e.harness import wait_for
from tests.postgres import Postgres, running

BOUNDS = (1.0, 10.0, 60.0, 600.0, 3600.0)
DAY = 86400.0
SCRAPE = 30.0  # seconds
REST = 20.0  # seconds that are looked at
MEMBERS, AGENTS = 12, 100_000  # of the fleet that is sized


def iso(instant: float) -> str:
    """As the API writes it."""
    return datetime.fromtimestamp(instant, UTC).isoformat()


def record(ledger: Ledger, agent_id: int, first: int, number: int) -> None:
    """Let so many runs of the agent have ended."""
    now = ledger.clock()
    runs = [
        Run(
            id=f"agent-{agent_id}-run-{n:012d}:3f6c1a52-9f0e-4b60-a2dc-{n:012d}",
            workflow_id=f"agent-{agent_id}-run-{n:012d}",
            status="completed",
            started_at=iso(now - 60),
            ended_at=iso(now - 30),
            duration_ms=30_000,
            trigger_type="schedule",
        )
        for n in range(first, first + number)
    ]
    memory = Memory(epoch=ledger.known(agent_id).epoch)
    ledger.record(agent_id, Reading(Watermark(), memory, runs=runs, now=now))


def open_ledger(server: Postgres, agents: int) -> tuple[Ledger, float]:
    """A member that has all agents, and the seconds until it had them."""
    ledger = Ledger(server.database, BOUNDS, lookback=DAY)
    began = time.monotonic()
    assert ledger.leases
    while not all(map(ledger.leases.holds, range(1, agents + 1))):
        ledger.leases.want(frozenset(range(1, agents + 1)), Deadline(1.0))
        time.sleep(0.01)
    return ledger, time.monotonic() - began


def number(server: Postgres, query: str) -> float:
    """The one value that the query gives."""
    value = server.ask(query)[0][0]
    assert isinstance(value, int | float)
    return float(value)


def transactions(server: Postgres) -> float:
    """Committed in a time of rest, those of the questions included."""
    query = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'modus'"
    before = number(server, query)
    time.sleep(REST)
    return number(server, query) - before


def stop_vacuum(server: Postgres) -> None:
    """The database tidies up after the commits: that is no transaction of ours."""
    with server.connect("postgres") as db:
        db.execute("ALTER SYSTEM SET autovacuum = off")
        db.execute("SELECT pg_reload_conf()")
        query = (
            "SELECT FROM pg_stat_activity WHERE backend_type IN ('autovacuum launcher', 'autovacuum worker')"
        )
        wait_for("it has ended", lambda: not db.execute(query).fetchall())


def size(server: Postgres, table: str) -> float:
    """Bytes, indexes included."""
    return number(server, f"SELECT pg_total_relation_size('{table}')")


def measure(agents: int, runs: int) -> None:
    """All numbers, for so many agents with so many runs."""
    with running() as server:
        ledger, _ = open_ledger(server, agents)
        with closing(ledger):
            for agent_id in range(1, agents + 1):
                record(ledger, agent_id, 0, runs)
            began = time.monotonic()
            ledger.commit()
            first = time.monotonic() - began
            commits = []
            for turn in range(20):
                for agent_id in range(1, agents // 10 + 1):  # one agent in ten has a new run
                    record(ledger, agent_id, runs + turn, 1)
                began = time.monotonic()
                ledger.commit()
                commits.append(time.monotonic() - began)
        per_run = size(server, "modus_counted") / (agents * runs + 20 * (agents // 10))
        per_agent = (size(server, "modus_agent") + size(server, "modus_lease")) / agents
        stop_vacuum(server)
        nobody = transactions(server)
        ledger, took = open_ledger(server, agents)
        with closing(ledger):
            time.sleep(2)
            renewals = max(transactions(server) - nobody, 0.0) / REST
    share, rows = AGENTS / MEMBERS / (MEMBERS - 1), AGENTS * runs
    gib = (rows * per_run + AGENTS * per_agent) / 2**30
    sys.stdout.write(
        f"{agents} agents with {runs} runs each\n"
        f"database: {per_run:.0f} bytes a run, {per_agent:.0f} bytes an agent\n"
        f"first commit of all: {first:.1f} s; of a new run of every tenth agent: "
        f"{statistics.median(commits) * 1000:.0f} ms, without waiting for a disk\n"
        f"a member at rest: {renewals:.1f} transactions a second\n"
        f"taken over by a new member in {took:.1f} s: {agents / took:.0f} agents, "
        f"{agents * runs / took:.0f} runs a second\n"
        f"{AGENTS} agents, {MEMBERS} members: {rows:,} rows, {gib:.1f} GiB, "
        f"{MEMBERS * (renewals + 1 / SCRAPE):.0f} transactions a second\n"
        f"one of them dies: {share:.0f} agents for each other one, loaded in {share * took / agents:.1f} s\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What shared state costs.")
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=100, help="of each agent, within the lookback")
    options = parser.parse_args()
    measure(options.agents, options.runs)
