"""The part of `--audit` about usage: what was counted of the last day, held against the API's own totals."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from exporter.deadline import Deadline
from exporter.modus.errors import ApiError
from exporter.modus.usage import GROUPINGS, Used
from exporter.runs.report import table
from exporter.runs.state import UsageState
from exporter.runs.usage import HOUR, REVISED

if TYPE_CHECKING:  # handed in
    from exporter.modus.client import ModusClient

HEAD = ("usage by", "since", "amount", "in the api", "counted", "missing", "taken back")
OPEN = 2 * HOUR  # seconds before the last report that are left out: they still grow
SLACK = 1e-6  # of an amount: sums of decimals differ in their last digits


def compare_usage(client: "ModusClient", usage: UsageState, deadline: Deadline, out: TextIO) -> bool:
    """Print a line per grouping and amount; whether nothing is missing.

    What Modus took back is no fault: a counter cannot fall. What was revised since the last report may be
    missing until the next one.
    """
    rows: list[tuple[str, ...]] = []
    complete = True
    for grouping in GROUPINGS:
        until = usage.read_until.get(grouping, 0) - OPEN
        since = until + OPEN - REVISED
        try:
            totals = client.usage(grouping, since, until, deadline=deadline).totals
        except ApiError as error:
            out.write(f"usage by {grouping}: cannot be read: {error.line}\n")
            complete = False
            continue
        groups = usage.groups.get(grouping, {}).values()
        hours = [used for group in groups for hour, used in group.hours.items() if since <= hour < until]
        counted = [sum(amounts) for amounts in zip(Used(), *hours, strict=True)]
        when = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for amount, in_api, ours in zip(Used._fields, totals, counted, strict=True):
            gap = in_api - ours if abs(in_api - ours) > SLACK * max(in_api, 1.0) else 0.0
            complete = complete and gap <= 0
            numbers = in_api, ours, max(0.0, gap), max(0.0, -gap)
            rows.append((grouping, when, amount.replace("_", " "), *(f"{number:.10g}" for number in numbers)))
    out.write(table(HEAD, rows) if rows else "")
    return complete
