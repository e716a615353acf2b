"""`--config.check`: one request per agent, and a table of what came of it."""

from typing import TYPE_CHECKING, TextIO

from exporter.deadline import Deadline
from exporter.modus.discovery import Selection, Target
from exporter.modus.errors import ApiError
from exporter.modus.model import TOTAL_COUNT
from exporter.runs.report import find_targets, side_by_side, table

if TYPE_CHECKING:  # handed in
    from exporter.modus.client import ModusClient

PATIENCE = 30.0  # seconds for all of it


def run(
    client: "ModusClient", selection: Selection, concurrency: int, timeframe: str | None, out: TextIO
) -> int:
    """Print a line per agent to `out`; returns 0 when all could be read, else 1."""
    deadline = Deadline(PATIENCE)
    try:
        targets = find_targets(client, selection, deadline)
    except ApiError as error:
        out.write(f"the agents cannot be listed: {error.line}\n")
        return 1

    def ask(target: Target) -> tuple[str, ...]:
        try:
            page = client.runs(target.id, deadline=deadline, page_size=1, timeframe=timeframe)
        except ApiError as error:
            return str(target.id), target.name, "no", "", error.line
        name = page.runs[0].agent_name if page.runs else target.name
        return str(target.id), name, "yes", str(page.counts.get(TOTAL_COUNT, len(page.runs))), ""

    rows = side_by_side(ask, targets, concurrency)
    out.write(table(("agent", "name", "reachable", "runs seen", "what is wrong and how to mend it"), rows))
    bad = sum(row[2] == "no" for row in rows)
    out.write(f"{len(rows)} agents, {bad} cannot be read\n" if rows else "no agents: nothing to read\n")
    return 1 if bad or not rows else 0
