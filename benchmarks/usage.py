"""What usage costs: a scrape with and without it, and a report that is read beside the scrapes.

    python -m benchmarks.usage [AGENTS]

All of the exporter but its web server, in this process, as in `benchmarks.inside`. Each agent used something
in each of the last 25 hours. Scrapes with and without usage are made in turn; CPU in milliseconds, medians.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from benchmarks.inside import running, shown
from exporter.modus.model import Agent
from exporter.modus.usage import decode_report, iso
from exporter.runs.usagereader import UsageReader, UsageSettings

HOUR = 3600
TURNS = 15


def report(agents: int, grouping: str, since: float, until: float, grown: int) -> bytes:
    """The body of an answer, as the vendor's description has it."""
    groups = [str(n) for n in range(1, agents + 1)] if grouping == "agent" else ["large", "small", "tiny"]
    bucket = (
        '{"bucket":"%s","group_value":"%s","call_count":%d,"input_tokens":%d,'
        '"output_tokens":%d,"credits":%d.5}'
    )
    amounts = 9 + grown, 12_345 + grown, 2_345 + grown, 17 + grown
    hours = range(int(since), int(until), HOUR)
    buckets = ",".join(bucket % (iso(hour), group, *amounts) for hour in hours for group in groups)
    return b'{"buckets":[%s],"totals":{}}' % buckets.encode()


def cpu(work: Callable[[], object]) -> float:
    """CPU milliseconds of all threads."""
    begin = time.process_time()
    work()
    return (time.process_time() - begin) * 1000


def measure(agents: int) -> None:
    """Print what was measured."""
    grown, size = 0, 0

    def answer(grouping: str, since: float, until: float, *, deadline: object) -> Any:
        nonlocal size
        body = bodies.setdefault((grouping, since, grown), report(agents, grouping, since, until, grown))
        size = max(size, len(body))
        return decode_report(body)

    bodies: dict[tuple[str, float, int], bytes] = {}
    with running(agents, still=True) as (ledger, collector):
        committer: Any = SimpleNamespace(request=lambda: None)
        api: Any = SimpleNamespace(usage=answer)
        reader = UsageReader(api, ledger, committer, collector.beside, UsageSettings("true"))
        listed = [Agent(n) for n in range(1, agents + 1)]
        now = time.time() // HOUR * HOUR + 600
        without = UsageReader(api, ledger, committer, collector.beside, UsageSettings())
        first = cpu(lambda: reader.read(now, listed))
        ledger.commit()
        scrapes: dict[bool, list[float]] = {True: [], False: []}
        reports, commits = [], []
        for grown in range(1, TURNS + 1):  # noqa: B007 - `answer` looks at it
            for on in (True, False):
                collector._usage = reader if on else without
                usage = UsageSettings("true" if on else "false")
                collector._settings = replace(collector._settings, usage=usage)
                scrapes[on].append(cpu(lambda: shown(collector.scrape(60.0))))
                assert len(collector.scrape(60.0).usage.agents) == (agents if on else 0)
            for grouping in ("agent", "model"):  # made before it is timed
                answer(grouping, now - 600 - 2 * HOUR, now - 600 + HOUR, deadline=None)
            reports.append(cpu(lambda: reader.read(now, listed)))
            commits.append(cpu(ledger.commit))
            bodies.clear()
    on, off = (statistics.median(scrapes[with_it]) for with_it in (True, False))
    later, commit = statistics.median(reports), statistics.median(commits)
    print(f"{agents} agents: a scrape {off:.0f} ms, with usage {on:.0f} ms ({on / off:.2f} times)")  # noqa: T201
    print(f"beside the scrapes: the first report {first:.0f} ms, of {size / 1e6:.2f} MB")  # noqa: T201
    print(f"a later one, of three hours: {later:.0f} ms, and {commit:.0f} ms for its commit")  # noqa: T201


if __name__ == "__main__":
    measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
