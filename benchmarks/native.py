"""How true percentiles are from classic and from native buckets, and what protobuf costs; on standard output.

    python -m benchmarks.native

Seven workloads as agents have them, 10,000 runs each, in the default `histogram.buckets`. What Prometheus'
own `histogram_quantile` makes of the buckets is computed here: between the bounds of a classic bucket on a
straight line, of a native one on an exponential curve, as Prometheus 3 does.
"""

import random
import statistics
import sys
import time
import tracemalloc
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate

from exporter.config import Config
from exporter.histogram import Exemplar, Histogram
from exporter.metrics import exposition, protobuf
from exporter.metrics.exposition import families
from exporter.metrics.kept import Kept
from exporter.metrics.snapshot import AgentSnapshot, Snapshot
from exporter.modus.model import TERMINAL_STATUSES
from exporter.runs.account import TRIGGER_TYPES
from exporter.runs.state import Totals

BOUNDS = tuple(map(float, Config().histogram.buckets))
RUNS = 10_000  # of a workload
QUANTILES = (0.5, 0.95, 0.99)
AGENTS = 1_000
RUNS_A_DAY = 144
NOW = 1_790_000_000.0

Draw = Callable[[random.Random], float]
WORKLOADS: dict[str, Draw] = {
    "quick answers, 2 s": lambda rng: rng.lognormvariate(0.7, 0.6),
    "enrichment, 12 s": lambda rng: rng.lognormvariate(2.5, 0.5),
    "steady, 90 s": lambda rng: rng.gauss(90, 5),
    "cached or not, 3 s or 45 s": lambda rng: rng.gauss(3, 0.4) if rng.random() < 0.8 else rng.gauss(45, 5),
    "one to three tries, 40 s each": lambda rng: rng.gauss(40, 4) * rng.choice((1, 1, 1, 2, 3)),
    "reports, 20 to 30 min": lambda rng: rng.uniform(1200, 1800),
    "approved by a human, 20 min": lambda rng: rng.lognormvariate(7.1, 1.2),
}


def exact(values: Sequence[float], q: float) -> float:
    """The percentile of sorted values."""
    return values[min(int(q * len(values)), len(values) - 1)]


def classic(histogram: Histogram, q: float) -> float:
    """What Prometheus makes of the classic buckets."""
    cumulative = list(accumulate(histogram.buckets))
    rank = q * cumulative[-1]
    bucket = bisect_left(cumulative, rank)
    if bucket == len(BOUNDS):
        return BOUNDS[-1]
    below, lower = (cumulative[bucket - 1], BOUNDS[bucket - 1]) if bucket else (0, 0.0)
    return lower + (BOUNDS[bucket] - lower) * (rank - below) / histogram.buckets[bucket]


def native(histogram: Histogram, q: float) -> float:
    """What Prometheus makes of the native buckets."""
    buckets = histogram.native
    cumulative = list(accumulate(buckets.observed, initial=buckets.zero))
    rank = q * cumulative[-1]
    bucket = max(bisect_left(cumulative, rank), 1)
    share = (rank - cumulative[bucket - 1]) / buckets.observed[bucket - 1]
    return float(2 ** ((buckets.first + bucket - 2 + share) / 2**buckets.schema))


def errors() -> list[str]:
    """The rows of the table: by how much each percentile is wrong, classic and native."""
    rows, worst = [], dict.fromkeys(("classic", "native"), 0.0)
    for name, draw in WORKLOADS.items():
        rng = random.Random(name)  # noqa: S311 - repeatable on purpose
        values = sorted(max(draw(rng), 0.001) for _ in range(RUNS))
        histogram = Histogram.empty(BOUNDS, NOW)
        for value in values:
            histogram.observe(BOUNDS, value)
        cells = [name]
        for q in QUANTILES:
            truth = exact(values, q)
            for kind, estimate in (("classic", classic), ("native", native)):
                error = estimate(histogram, q) / truth - 1
                worst[kind] = max(worst[kind], abs(error))
                cells.append(f"{error:+.1%}".replace("%", " %"))
        rows.append(f"| {' | '.join(cells)} |")
    last = " | ".join(f"{worst[kind]:.1%}".replace("%", " %") for kind in ("classic", "native"))
    return [*rows, f"| *the worst* | | | | | {last} |"]


def agent(number: int) -> AgentSnapshot:
    """An agent with a day of runs."""
    rng = random.Random(number)  # noqa: S311
    durations = Histogram.empty(BOUNDS, NOW - 86_400 - number, exemplars=True)
    for n in range(RUNS_A_DAY):
        value = rng.lognormvariate(rng.uniform(2, 5), 1)
        end = round(NOW - 600 * n - rng.uniform(0, 600), 3)
        durations.observe(BOUNDS, value, Exemplar(f"wf_{number}_{n}:run_{n}", value, end))
    finished = {s: {t: rng.randrange(50) for t in TRIGGER_TYPES} for s in TERMINAL_STATUSES}
    totals = Totals(durations.created, durations, finished)
    return AgentSnapshot(number, f"Agent {number}", True, {}, NOW, 0.1, totals=totals)


def cpu(work: Callable[[], object]) -> float:
    """Microseconds of CPU per agent, the median."""
    spent = []
    for _ in range(9):
        begin = time.process_time()
        work()
        spent.append(time.process_time() - begin)
    return statistics.median(spent) / AGENTS * 1e6


def packed(pieces: Iterable[bytes]) -> int:
    """The bytes of the compressed exposition."""
    packer = zlib.compressobj(level=1, wbits=31)
    return sum(len(packer.compress(piece)) for piece in pieces) + len(packer.flush())


def cost(name: str, write: Callable[..., Iterable[bytes]], shown: Snapshot) -> str:
    """Text and gzip of an agent in one format, with nothing and with everything changed."""
    packed(write(families(shown)))  # fills the caches, which are no larger for more agents
    kept = Kept()
    tracemalloc.start()
    packed(write(families(shown), kept=kept))
    memory = tracemalloc.get_traced_memory()[0] / AGENTS
    tracemalloc.stop()
    same = cpu(lambda: packed(write(families(shown), kept=kept)))
    changed = cpu(lambda: packed(write(families(shown))))
    return (
        f"{name}: {same:.0f} microseconds of CPU per agent without change, {changed:.0f} per one with; "
        f"{memory:.0f} bytes of text are kept per agent"
    )


def costs() -> list[str]:
    """What the formats cost."""
    agents = [agent(number) for number in range(1, AGENTS + 1)]
    shown = Snapshot(agents, BOUNDS, True, 1.0, True, "bench", NOW)
    native = [each.totals.durations.native for each in agents if each.totals]
    buckets = sum(sys.getsizeof(each) + sys.getsizeof(each.observed) for each in native) / AGENTS
    return [
        cost("OpenMetrics", partial(exposition.write, openmetrics=True), shown),
        cost("protobuf", protobuf.write, shown),
        f"native buckets: {buckets:.0f} bytes of memory per agent",
    ]


if __name__ == "__main__":
    head = ["workload", *(f"p{q * 100:.0f} {kind}" for q in QUANTILES for kind in ("classic", "native"))]
    table = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}", *errors()]
    sys.stdout.write("\n".join([*table, "", *costs(), ""]))
