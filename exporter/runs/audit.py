"""`--audit`: the whole lookback of every agent, read from the API and compared with the ledger run by run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from exporter.deadline import Deadline
from exporter.modus.errors import ApiError
from exporter.modus.model import OPEN_STATUSES, Run
from exporter.runs.check import find_targets, side_by_side, table
from exporter.runs.store import Account, LedgerError, read_state

if TYPE_CHECKING:  # handed in
    from exporter.metrics.collector import Settings
    from exporter.modus.client import ModusClient

PATIENCE = 3600.0  # seconds for all of it
FRESH = 60.0  # seconds before the ledger's last read in which the API's index may still have lagged


def run(client: "ModusClient", settings: "Settings", path: str | None, out: TextIO) -> int:
    """Print a line per agent to `out`; returns 0 when each run was counted once, else 1.

    Works beside the exporter that writes `path`. Runs that ended after its last scrape are left out,
    and so are counted ones older than all that the platform has kept.
    Raises LedgerError and, when the agents cannot be listed, ApiError.
    """
    if path is None:
        raise LedgerError("state.path is null: there is no file to compare with")
    deadline = Deadline(PATIENCE)
    targets = find_targets(client, settings, deadline)
    state = read_state(path)
    lookback, size = settings.limits.lookback, settings.limits.page_size

    def compare(agent_id: int) -> tuple[str, ...]:
        account = state.accounts.get(agent_id)
        if account is None:
            return str(agent_id), "", "", "", "", "not counted yet: no scrape has read it"
        try:
            runs, counts, now, skew = _read_all(client, agent_id, lookback, size, deadline)
        except ApiError as error:
            return str(agent_id), "", "", "", "", f"cannot be read: {error}"
        since = max(now - lookback, account.totals.created, account.horizon)
        if account.ended_after is not None:
            since = now - lookback
        last_read = (account.last_read if account.unread else state.meta.written) or 0.0
        ended = {run.id for run in runs.values() if _should_be_counted(run, account, since, last_read + skew)}
        listed = {run.id for run in runs.values() if run.ended}
        starts = state.counted.get(agent_id, {})
        counted = {id_ for id_, start in starts.items() if since <= start < 1e18}
        oldest = min((run.start for run in runs.values() if run.start is not None), default=now)
        removed = {id_ for id_ in counted - listed if starts[id_] < oldest}
        numbers = len(ended), len(counted), len(ended - counted), len(counted - listed - removed)
        return str(agent_id), *map(str, numbers), _note(runs, counts, len(removed))

    rows = side_by_side(compare, [target.id for target in targets], settings.concurrency)
    out.write(table(("agent", "runs in the api", "counted", "missing", "extra", "note"), rows))
    bad = [row for row in rows if row[3:5] != ("0", "0")]
    out.write(f"{len(rows)} agents, {len(bad)} not in order\n")
    return 1 if bad else 0


def _read_all(
    client: "ModusClient", agent_id: int, lookback: float, size: int, deadline: Deadline
) -> tuple[dict[str, Run], Mapping[str, int], float, float]:
    page = client.runs(agent_id, deadline=deadline, page_size=size)
    counts, now, skew = page.counts, page.now, page.skew
    runs = {run.id: run for run in page.runs}
    tokens: set[str] = set()
    while page.next_page_token and not any((run.start or now) < now - lookback for run in page.runs):
        if page.next_page_token in tokens:
            raise ApiError("bad_response", "the page token repeats: the list of runs never ends")
        tokens.add(page.next_page_token)
        page = client.runs(agent_id, deadline=deadline, page_size=size, page_token=page.next_page_token)
        runs = {run.id: run for run in page.runs} | runs
    return runs, counts, now, skew


def _should_be_counted(run: Run, account: Account, since: float, last_read: float) -> bool:
    end = run.end
    if not run.ended or run.start is None or run.start < since:
        return False
    if account.ended_after is not None and (run.start if end is None else end) <= account.ended_after:
        return False
    return end is None or end < last_read - FRESH


def _note(runs: Mapping[str, Run], counts: Mapping[str, int], removed: int) -> str:
    """What the API no longer lists, or where it contradicts itself: more open runs listed than counted."""
    if removed:
        return f"{removed} counted are older than all that the API still lists"
    for status in OPEN_STATUSES:
        listed = sum(run.status == status for run in runs.values())
        if status in counts and listed > counts[status]:
            return f"the API lists {listed} {status} runs and counts {counts[status]}"
    return ""
