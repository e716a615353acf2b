"""One pass over all agents, shared by all who ask meanwhile; it ends at one moment."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec

from exporter.deadline import Deadline
from exporter.modus.discovery import Target
from exporter.modus.errors import ApiError
from exporter.runs.committer import Committer
from exporter.runs.ledger import AGENT_WEIGHT, Ledger
from exporter.runs.reader import AgentReader, Memory, Reading
from exporter.runs.state import Watermark
from exporter.runs.threads import KeptThreads
from exporter.turn import TURN

STRAGGLER = 0.25  # seconds past the deadline for what was read up to it
PIECE = 10_000  # runs, or the like of them, after which a long pass has them committed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Means:
    """What a pass works with, and what outlasts it."""

    ledger: Ledger
    committer: Committer
    threads: KeptThreads
    concurrency: int
    memories: dict[int, Memory]


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a scrape keeps of a reading once its runs are counted: those of all agents are too many."""

    error: ApiError | None
    counts: Mapping[str, int] | None
    now: float  # the API's clock at the first answer; 0 when there was none
    skew: float  # seconds by which it is ahead of ours
    duration: float  # seconds


class Scrape:
    """The scrape in flight.

    `deadline` may be extended while it runs. Once it is `finished` nothing changes any more: a request
    that is still under way is cut off, and what it brings is thrown away.
    """

    def __init__(self, seconds: float, monotonic: Callable[[], float]) -> None:
        self.deadline = Deadline(seconds, monotonic)
        self.granted = seconds  # what the most patient caller allows, from the beginning on
        self.began = monotonic()
        self.targets: Sequence[Target] = ()
        self.outcomes: dict[int, Outcome] = {}
        self.finished: Future[None] = Future()
        self.committed = False  # whether somebody saw the commit of what was read end, well or not
        self._means: Means  # set when it is its turn: a reload before that brings others
        self._lock = threading.Lock()  # guards `outcomes` and `_over`
        self._over = False
        self._all_read = threading.Event()
        self._left: deque[int] = deque()
        self._number = self._uncommitted = 0
        self._ended: float | None = None  # monotonic seconds

    @property
    def duration(self) -> float:
        """Seconds that it took, or takes so far."""
        return (self._ended or self.deadline.monotonic()) - self.began

    def so_far(self) -> dict[int, Outcome]:
        """What came of the readings until now, by agent."""
        with self._lock:
            return dict(self.outcomes)

    @property
    def answered(self) -> bool:
        """Whether the API answered at all so far."""
        with self._lock:
            return any(
                outcome.now or (outcome.error and outcome.error.answered)
                for outcome in self.outcomes.values()
            )

    def extend(self, seconds: float, reserve: float) -> None:
        """Give it at least `seconds` more, of which `reserve` is for what follows the reading."""
        self.deadline.extend(seconds - reserve)
        self.granted = max(self.granted, self.deadline.monotonic() - self.began + seconds)

    def read(self, reader: AgentReader, means: Means, reconcile: Collection[int]) -> None:
        """Read the targets side by side and count each as soon as it is read, until the deadline.

        Those that an earlier pass left out come first; of those in `reconcile` more than the news are read.
        """
        self._means, memories, threads = means, means.memories, means.threads
        agent_ids = [target.id for target in self.targets]
        self._number = len(agent_ids)
        first = sorted(agent_ids, key=lambda agent_id: memories.get(agent_id, Memory()).attempted)
        self._left.extend(first)

        def work() -> None:
            with TURN:  # until all are read: what it asks next is under way before others compute
                while not self._over and self._left:
                    try:
                        agent_id = self._left.popleft()
                    except IndexError:  # another thread was quicker
                        return
                    self._read_one(agent_id, reader, reconcile=agent_id in reconcile)

        if not agent_ids:
            return
        started = [threads.submit(work) for _ in range(min(means.concurrency, self._number))]
        if not any(started):
            work()
        while not self._all_read.wait(self.deadline.left()):
            if self.deadline.passed():  # else somebody extended it
                self._all_read.wait(STRAGGLER)
                break
        self._end(agent_ids)

    def cut_short(self) -> None:
        """End it now."""
        self.deadline.end()
        self._all_read.set()

    def _read_one(self, agent_id: int, reader: AgentReader, *, reconcile: bool) -> None:
        memory = self._means.memories.get(agent_id, Memory())
        try:
            known = self._means.ledger.known(agent_id)
            if memory.epoch != known.epoch:
                memory = Memory(memory.attempted, known.epoch)
            reading = reader.read(agent_id, known, memory, self.deadline, compare=reconcile)
        except Exception as error:  # what goes wrong with one agent stays with it
            reading = Reading(Watermark(), memory, error=ApiError.internal(error))
        if reading.error and reading.error.reason == "deadline" and not self.deadline.passed():
            self._left.append(agent_id)  # the deadline was extended meanwhile
            return
        with self._lock:
            if not self._over:
                self._record(agent_id, reading)

    def _record(self, agent_id: int, reading: Reading) -> None:
        try:
            if self._means.ledger.record(agent_id, reading):
                self._uncommitted += AGENT_WEIGHT + len(reading.runs)
        except Exception as error:
            reading = Reading(reading.watermark, reading.memory, error=ApiError.internal(error))
        self._means.memories[agent_id] = reading.memory
        self.outcomes[agent_id] = Outcome(
            reading.error, reading.counts, reading.now, reading.skew, reading.duration
        )
        if self._uncommitted >= PIECE:
            self._uncommitted = 0
            self._means.committer.request()
        if len(self.outcomes) == self._number:
            self._all_read.set()

    def _end(self, agent_ids: Collection[int]) -> None:
        with self._lock:
            self._over, self._ended = True, self.deadline.monotonic()
            self.deadline.end()
            late = ApiError("deadline", "the scrape's time was over before this agent's answer was there")
            for agent_id in agent_ids:
                if agent_id not in self.outcomes:
                    memory = self._means.memories.get(agent_id, Memory())
                    self._record(agent_id, Reading(Watermark(), memory, error=late))
