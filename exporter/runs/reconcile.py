"""Is the list complete? The API's own count is a checksum, and the whole lookback is read again now and then.

When the count of all runs grows by more than the new runs that were met, something was indexed late, and the
lookback is read at once. Besides that it is done for every agent from time to time.
"""

from collections.abc import Container, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from exporter.modus.model import TOTAL_COUNT, Run
from exporter.runs import paging
from exporter.runs.state import Backlog, Watermark

if TYPE_CHECKING:  # `reader` calls this module
    from exporter.runs.reader import AgentApi, Known, Limits, Reading

LATEST_INDEX = 600.0  # seconds after which a run that the counts name is in the list, or never will be
SIDE_BY_SIDE = 100  # comparisons under way at once, at least: each holds the ids that it met
FIRST_RETRY = (
    120.0  # seconds until the lookback is read once more for a run that was not found; doubled each time
)


class Checksum(msgspec.Struct, frozen=True, gc=False):
    """The API's count of all runs, held against the runs that were met.

    `owed` runs were counted by the API and not met; it may be below 0 by those that were met within
    `LATEST_INDEX` and that a lagging count may still name. Of the runs that were met with the first count
    nobody knows which it holds: the `young` ones of them are looked for, but not said to be missing.
    """

    executions: int | None = None
    met: tuple[tuple[float, int], ...] = ()  # (instant, runs met first at it), newest last
    owed: int = 0
    since: float = 0.0  # when the debt arose
    began: float = 0.0  # when the first count was taken
    young: int = 0

    def after(self, executions: int | None, new: int, now: float) -> "Checksum":
        """The checksum after an answer at `now` (API's clock) that names `executions` and `new` runs met."""
        entries = (*self.met, (now, new)) if new else self.met
        met = tuple([entry for entry in entries if abs(now - entry[0]) < LATEST_INDEX])
        if executions is None or self.executions is None:
            return Checksum(executions, met)
        owed = max(self.owed + executions - self.executions - new, -sum([number for _, number in met]))
        since = self.since if self.owed > 0 else now
        young = self.young if since - self.began < LATEST_INDEX else 0
        return Checksum(executions, met, owed, since, self.began, young)


class Turns:
    """Whose lookback is compared in a scrape: a page of each in turn, and not of too many side by side."""

    def __init__(self) -> None:
        self._turn = 0

    def take(self, due: Sequence[int], begun: Container[int], number: int) -> set[int]:
        """The next `number` agents of those that are `due`; comparisons that were `begun` go on."""
        others = (agent_id for agent_id in due if agent_id not in begun)
        walking = [agent_id for agent_id in due if agent_id in begun]
        walking += islice(others, max(0, max(number, SIDE_BY_SIDE) - len(walking)))
        self._turn += number
        return {walking[(self._turn + n) % len(walking)] for n in range(min(number, len(walking)))}


class Walk(msgspec.Struct, frozen=True, gc=False):
    """A comparison of the whole lookback with the list, over as many scrapes as it takes."""

    backlog: Backlog
    began: float  # the API's clock
    met: frozenset[str] = frozenset()  # ids on those pages
    restarted: bool = False  # page tokens do not live from one scrape to the next


def check_sum(known: "Known", reading: "Reading", counts: Mapping[str, int], before: Checksum) -> None:
    """Hold the new runs against the growth of the API's own count."""
    memory = reading.memory
    if known.watermark.backlogs or reading.watermark.backlogs or before.executions is None:
        oldest = reading.now - LATEST_INDEX
        young = len({run.id for run in reading.met if run.start is None or run.start > oldest})
        memory.checksum = Checksum(counts.get(TOTAL_COUNT), began=reading.now, young=young)
        return
    memory.checksum = before.after(counts.get(TOTAL_COUNT), len(reading.new(known)), reading.now)
    if memory.checksum.owed <= 0:
        memory.retry_in = memory.retry_at = 0.0


def reconcile(api: "AgentApi", known: "Known", reading: "Reading", limits: "Limits", *, wanted: bool) -> None:
    """Read on in the comparison of the whole lookback, or begin one where it is due.

    After a downtime it goes as far back as was not compared yet: the index may have been late then.
    """
    memory, now = reading.memory, reading.now
    due = now >= memory.retry_at or now < memory.retry_at - memory.retry_in  # or the clock stepped back
    urgent = memory.checksum.owed > 0 and (memory.walk is not None or due)
    if reading.watermark.unread or not (wanted or urgent):
        return
    floor = now - limits.lookback
    if known.last_reconciled is not None:
        floor = min(floor, known.last_reconciled - LATEST_INDEX)
    walk = memory.walk or Walk(Backlog(floor, limits.page_size), now)
    mark = Watermark(by_start=reading.watermark.by_start, backlogs=(walk.backlog,))
    pages = limits.max_pages if urgent or walk.restarted else 1
    met, new = set(walk.met), reading.new(known)

    def met_before(run: Run) -> bool:
        return run.id in met

    read_on = paging.catch_up(mark, api.runs, max_pages=pages, is_known=met_before)
    for page, mark in read_on:
        reading.add(page, known)
        reading.watermark = replace(reading.watermark, by_start=mark.by_start)
        met.update(run.id for run in page.runs)
        walk = _after(walk, mark, frozenset(met))
        found = reading.new(known) - new
        new |= found
        memory.walk = walk
        memory.checksum = memory.checksum.after(memory.checksum.executions, len(found), now)
    if not mark.backlogs:
        _end_walk(reading, walk)


def _end_walk(reading: "Reading", walk: Walk) -> None:
    """Note that the whole lookback was compared; what is still owed then comes late, or never."""
    memory, checksum = reading.memory, reading.memory.checksum
    reading.reconciled = walk.began
    memory.walk = None
    memory.retry_in = (memory.retry_in * 2 or FIRST_RETRY) if checksum.owed > 0 else 0.0
    if checksum.owed > 0 and walk.began - checksum.since >= LATEST_INDEX:
        reading.unreachable = max(checksum.owed - checksum.young, 0)
        memory.checksum, memory.retry_in = replace(checksum, owed=0, young=0), 0.0
    memory.retry_at = reading.now + memory.retry_in


def _after(walk: Walk, mark: Watermark, met: frozenset[str]) -> Walk:
    backlog = mark.backlogs[0] if mark.backlogs else walk.backlog
    restarted = walk.restarted or (bool(mark.backlogs) and backlog.pages <= walk.backlog.pages)
    return Walk(backlog, walk.began, met, restarted)
