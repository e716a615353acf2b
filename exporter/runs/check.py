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
REMEDIES = {
    "unauthorized": "check the token: MODUS_API_KEY, modus.token or modus.token_file",
    "forbidden": "give the token the missing scope",
    "not_found": "check agents and modus.resource",
    "rate_limited": "the API limits this token: try again later",
    "server_error": "the API failed: try again later",
    "timeout": "the API did not answer in time: check the network, or raise modus.timeout",
    "deadline": "the API did not answer in time: check the network",
    "connection": "check modus.base_url, the network and the proxy",
    "bad_response": "this does not look like the Modus API: check modus.base_url",
    "internal": "a mistake in the exporter: report it",
}


def run(
    client: "ModusClient", selection: Selection, concurrency: int, timeframe: str | None, out: TextIO
) -> int:
    """Print a line per agent to `out`; returns 0 when all could be read, else 1."""
    deadline = Deadline(PATIENCE)
    try:
        targets = find_targets(client, selection, deadline)
    except ApiError as error:
        out.write(f"the agents cannot be listed: {error}; {REMEDIES[error.reason]}\n")
        return 1

    def ask(target: Target) -> tuple[str, ...]:
        try:
            page = client.runs(target.id, deadline=deadline, page_size=1, timeframe=timeframe)
        except ApiError as error:
            missing = f" ({', '.join(error.missing)})" if error.missing else ""
            return str(target.id), target.name, "no", "", f"{error}: {REMEDIES[error.reason]}{missing}"
        name = page.runs[0].agent_name if page.runs else target.name
        return str(target.id), name, "yes", str(page.counts.get(TOTAL_COUNT, len(page.runs))), ""

    rows = side_by_side(ask, targets, concurrency)
    out.write(table(("agent", "name", "reachable", "runs seen", "what is wrong and how to mend it"), rows))
    bad = sum(row[2] == "no" for row in rows)
    out.write(f"{len(rows)} agents, {bad} cannot be read\n" if rows else "no agents: nothing to read\n")
    return 1 if bad or not rows else 0
