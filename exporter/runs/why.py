"""Why a run did not complete: its own route says more than the list does, and is asked within a budget.

Runs that waited for a human are always asked about: an approval that timed out is not the agent's failure.
"""

from typing import TYPE_CHECKING

from exporter.modus.errors import ApiError
from exporter.modus.model import Run, RunDetails
from exporter.runs.opens import MAX_SINGLE_RUNS, SingleRunRoute, single_run
from exporter.runs.state import OpenRun
from exporter.tokenbucket import TokenBucket

if TYPE_CHECKING:  # `reader` calls this module
    from exporter.runs.reader import AgentApi, Known, Reading

# requests for runs that did not wait for a human, over all agents: no more than 60 in any minute
BURST, INTERVAL = 30, 2.0  # at once; seconds after which there is one more

APPROVAL_TIMEOUT = "approval_timeout"  # the one reason that the vendor documents


def ask_why(
    api: "AgentApi",
    known: "Known",
    reading: "Reading",
    route: SingleRunRoute,
    budget: TokenBucket | None,
) -> None:
    """Add to the runs of a reading why they did not complete, as far as the budget goes.

    Without a `budget` only runs that waited for a human are asked about. The past of an agent that is seen
    for the first time is left alone. Raises nothing: a run counts also when nobody says why.
    """
    if known.last_reconciled is None:
        return
    asked: dict[str, RunDetails] = {}
    for run in reading.runs:
        if run.id in asked or len(asked) >= MAX_SINGLE_RUNS or not _is_news(run, known):
            continue
        before = known.open.get(run.id)
        waited = before is not None and before.status == "awaiting_human"
        if not waited and not (budget and budget.take(api.deadline.monotonic())):
            continue
        try:
            answer = single_run(api, OpenRun.of(run, reading.now), route)
        except ApiError:  # no time is left
            break
        if answer is None:
            break
        if answer.id == run.id:
            asked[run.id] = run.explained(answer.status_reason, answer.task_error)
    if asked:
        reading.runs = [asked.get(run.id, run) if run.ended else run for run in reading.runs]


def _is_news(run: Run, known: "Known") -> bool:
    """Whether it ended otherwise than completed, is to be counted, and was not asked about."""
    if run.status == "completed" or not run.ended or isinstance(run, RunDetails):
        return False
    return run.id in known.open or known.is_new(run)
