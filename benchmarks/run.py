"""`make bench`: the real exporter against static pages, beside what else could do the job, in one run.

    python -m benchmarks.run [--quick | --all]

Every number is of the exporter as a user starts it: its own process, scraped over HTTP with the headers of
Prometheus (OpenMetrics, gzip). CPU is the kernel's count for that process, peak memory its VmHWM. The
comparisons ask the same upstream for the same pages. Writes benchmarks/RESULTS.md.
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import first
from benchmarks.frugal import frugal_table
from benchmarks.processes import ROOT, api, certificate, cpu_seconds, exporter, peak_mib

#        agents, latency, in flight, scrapes, TLS, gzip
SCENARIOS = [
    (10, 0.05, 32, 20, True, True),
    (100, 0.05, 32, 10, True, True),
    (1_000, 0.0, 32, 5, False, False),
    (1_000, 0.05, 32, 5, False, False),
    (1_000, 0.05, 32, 5, True, True),
    (10_000, 0.05, 256, 2, True, True),
]
SLOW = [  # the long test of memory runs beside them
    (1_000, 0.2, 32, 2, True, True),
    (10_000, 0.05, 32, 1, True, True),
]


def measured(pid: int, work: Callable[[], object], times: int) -> tuple[float, float]:
    """Wall and CPU seconds of `work()`, of each the median of `times`."""
    walls, cpus = [], []
    for _ in range(times):
        wall, cpu = time.perf_counter(), cpu_seconds(pid)
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(cpu_seconds(pid) - cpu)
    return statistics.median(walls), statistics.median(cpus)


def rival(kind: str, url: str, agents: int, concurrency: int, cafile: str | None) -> tuple[float, float]:
    """Wall and CPU seconds of one pass of benchmarks/rivals.py over these agents, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.rivals", kind, url, str(agents), str(concurrency)]
    environment = os.environ | ({"REQUESTS_CA_BUNDLE": cafile} if cafile else {})
    wall, cpu = json.loads(subprocess.check_output(command, cwd=ROOT, text=True, env=environment))
    return wall, cpu


def scrape_rows(
    tls: tuple[str, str, str], scenarios: list[tuple[int, float, int, int, bool, bool]]
) -> tuple[list[str], dict[object, tuple[float, ...]]]:
    """The table of scrapes and, by scenario, (wall / limit, CPU seconds, peak MiB, wall)."""
    rows, kept = [], {}
    for agents, latency, in_flight, times, secure, zipped in scenarios:
        with (
            api(latency, tls if secure else None, zipped) as upstream,
            exporter(upstream.url, agents, in_flight, tls[0] if secure else None) as running,
        ):
            before = upstream.served()
            wall, cpu = measured(running.pid, running.scrape, times)
            after = upstream.served()
            peak = peak_mib(running.pid)
            floor, _ = rival("floor", upstream.url, agents, in_flight, tls[0] if secure else None)
        limit = math.ceil(agents / in_flight) * latency
        asked, sent = ((b - a) / times / agents for a, b in zip(before, after, strict=True))
        ratio = f"{wall / limit:.2f}" if limit else "-"
        wire = f"{'HTTPS' if secure else 'HTTP'}{', gzip' if zipped else ''}"
        rows.append(
            f"| {agents:,} | {latency * 1000:.0f} ms | {in_flight} | {wire} | {wall:.2f} s | {limit:.2f} s "
            f"| {ratio} | {floor:.2f} s | {cpu:.3f} s | {cpu / agents * 1e3:.2f} ms "
            f"| {asked:.2f} | {sent:,.0f} | {peak:.0f} MiB |"
        )
        kept[agents, latency, in_flight, secure, zipped] = (wall / (limit or wall), cpu, peak, wall)
        sys.stdout.write(rows[-1] + "\n")
        sys.stdout.flush()
    return rows, kept


def rival_rows(
    tls: tuple[str, str, str],
) -> tuple[list[str], list[tuple[float, float, float, float]]]:
    """CPU per agent beside the others, in three rounds; ratios of the exporter to them, and the latency."""
    rows, ratios = [], []
    for secure in (False, True):
        cafile = tls[0] if secure else None
        for latency in (0.0, 0.05):
            with (
                api(latency, tls if secure else None, False) as upstream,
                exporter(upstream.url, 1000, 32, cafile) as running,
            ):
                costs: dict[str, list[float]] = {}
                for _ in range(2 if latency else 3):
                    costs.setdefault("exporter", []).append(
                        measured(running.pid, running.scrape, 3)[1] / 1000
                    )
                    for kind, n in (("session", 50), ("threads", 1000), ("naive", 50), ("floor", 1000)):
                        costs.setdefault(kind, []).append(rival(kind, upstream.url, n, 32, cafile)[1] / n)
            cost = {kind: statistics.median(values) * 1e3 for kind, values in costs.items()}
            ours = cost["exporter"]
            ratios.append((ours / cost["session"], ours / cost["threads"], cost["naive"] / ours, latency))
            rows.append(
                f"| {'HTTPS' if secure else 'HTTP'} | {latency * 1000:.0f} ms | {ours:.2f} "
                f"| {cost['session']:.2f} ({ratios[-1][0]:.2f}) "
                f"| {cost['threads']:.2f} ({ratios[-1][1]:.2f}) "
                f"| {cost['naive']:.2f} ({1 / ratios[-1][2]:.3f}) | {cost['floor']:.2f} |"
            )
            sys.stdout.write(rows[-1] + "\n")
            sys.stdout.flush()
    return rows, ratios


def carrier_rows(tls: tuple[str, str, str]) -> list[str]:
    """CPU per request of the adapter of `requests` and of the pool behind it, median of three rounds."""
    rows = []
    for secure in (False, True):
        costs: dict[str, list[float]] = {"adapter": [], "pool": []}
        with api(0.0, tls if secure else None, True) as upstream:
            for _ in range(3):
                for kind, values in costs.items():
                    cpu = rival(kind, upstream.url, 2000, 1, tls[0] if secure else None)[1]
                    values.append(cpu / 2000 * 1e6)
        adapter, pool = (statistics.median(values) for values in costs.values())
        rows.append(
            f"| {'HTTPS' if secure else 'HTTP'}, gzip | {adapter:.0f} | {pool:.0f} | {adapter - pool:.0f} |"
        )
        sys.stdout.write(rows[-1] + "\n")
    return rows


def first_rows(
    tls: tuple[str, str, str], scenarios: Sequence[first.Scenario]
) -> tuple[list[str], float, float]:
    """The table of the first scrapes; the slowest answer to its timeout, and the slowest `/-/healthy`, ms."""
    found = []
    for scenario in scenarios:
        found.append(first.first_scrapes(tls, *scenario))
        sys.stdout.write(found[-1].row + "\n")
        sys.stdout.flush()
    slowest = max((each.slowest for each in found), default=0.0)
    healthy = max((each.healthy for each in found), default=0.0)
    return [each.row for each in found], slowest, healthy * 1000


class Inside:
    """benchmarks/inside.py in a process of its own: shares of a scrape, and memory after many."""

    def __init__(self, agents: int, scrapes: int) -> None:
        command = [sys.executable, "-m", "benchmarks.inside", str(agents), str(scrapes)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def result(self) -> dict[str, float]:
        """What it found, once it is done."""
        said, _ = self._process.communicate()
        answer: dict[str, float] = json.loads(said)
        sys.stdout.write(f"{answer}\n")
        return answer


def machine() -> str:
    """What it ran on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} CPUs ({model[1] if model else platform.machine()}), {memory:.0f} GiB, "
        f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    )


def goal(text: str, value: float, bound: float, form: str = "{:.2f}") -> str:
    """A row of the table of goals."""
    met = "met" if value <= bound else f"missed by {(value / bound - 1) * 100:.0f} %"
    return f"| {text} | {form.format(bound)} | {form.format(value)} | {met} |"


def main() -> None:
    """Run everything and write RESULTS.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="up to 1,000 agents, and write no file")
    parser.add_argument("--all", action="store_true", help="the first scrapes of all fleets: 13 minutes more")
    args = parser.parse_args()
    quick = args.quick
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        tls = certificate(Path(directory))
        rivals, ratios = rival_rows(tls)
        carriers = carrier_rows(tls)
        shares = Inside(1000 if quick else 5000, 4).result()
        rows, kept = scrape_rows(tls, [each for each in SCENARIOS if not quick or each[0] <= 1000])
        memory = Inside(1000, 60 if quick else 500)
        slow_rows, slow = scrape_rows(tls, SLOW[:1] if quick else SLOW)
        rows, kept = rows + slow_rows, kept | slow
        frugal = frugal_table()
        flat = memory.result()
        chosen = first.SCENARIOS if args.all else first.TELLING
        firsts, slowest, healthy = first_rows(tls, [] if quick else chosen)
    if quick:
        return
    default = [(0.05, True), (0.2, True)]
    goals = [
        goal(
            f"wall to latency limit, 1,000 agents, {latency * 1000:.0f} ms, default settings",
            kept[1000, latency, 32, True, zipped][0],
            bound,
        )
        for (latency, zipped), bound in zip(default, (1.15, 1.1), strict=True)
    ]
    goals += [
        goal(
            f"CPU to Session().get + json.loads in {how}, {wire}, {latency * 1000:.0f} ms",
            each[index],
            1.0,
        )
        for index, how in ((0, "a plain loop"), (1, "as many threads"))
        for wire, each in zip(("HTTP", "HTTP", "HTTPS", "HTTPS"), ratios, strict=True)
        for latency in (each[3],)
    ]
    goals += [
        goal(f"CPU to the naive script, {wire}, {each[3] * 1000:.0f} ms", 1 / each[2], 1 / bound, "{:.3f}")
        for wire, bound, each in zip(("HTTP", "HTTP", "HTTPS", "HTTPS"), (3, 3, 30, 30), ratios, strict=True)
    ]
    goals += [
        goal("rendering and compression, share of the CPU", shares["render"], 0.2),
        goal("ledger's commit, share of the CPU, 5,000 agents, all changed", shares["commit"], 0.05),
        goal(
            "peak memory, 1,000 agents with 144 runs a day, MiB",
            kept[1000, 0.05, 32, True, True][2],
            100,
            "{:.0f}",
        ),
        goal(
            "peak memory, 10,000 agents with 144 runs a day, MiB",
            kept[10_000, 0.05, 256, True, True][2],
            400,
            "{:.0f}",
        ),
        goal(
            "10,000 agents at 50 ms, 256 in flight, s", kept[10_000, 0.05, 256, True, True][3], 15, "{:.1f}"
        ),
        goal(
            "10,000 agents at 50 ms, default settings, s", kept[10_000, 0.05, 32, True, True][3], 60, "{:.1f}"
        ),
        goal("memory after 500 scrapes of 1,000 agents to that after 50", flat["growth"], 1.02),
        goal("the slowest of the first scrapes to its timeout", slowest, 1.0),
        goal("`/-/healthy` during the first scrapes, ms", healthy, 100, "{:.0f}"),
    ]
    minutes = (time.monotonic() - began) / 60
    (ROOT / "benchmarks" / "RESULTS.md").write_text(
        TEXT.format(
            machine=machine(),
            date=datetime.date.today().isoformat(),
            minutes=f"{minutes:.1f}",
            goals="\n".join(goals),
            rows="\n".join(rows),
            rivals="\n".join(rivals),
            carriers="\n".join(carriers),
            firsts="\n".join(firsts),
            frugal=frugal,
            fetch=f"{(1 - shares['render'] - shares['commit'] - shares['count']) * 100:.0f} %",
            count=f"{shares['count'] * 100:.0f} %",
            render=f"{shares['render'] * 100:.0f} %",
            commit=f"{shares['commit'] * 100:.1f} %",
            steady=f"{shares['steady'] * 100:.1f} %",
            registry=f"{shares['registry'] * 1e3:.1f} ms",
            library=f"{shares['library'] * 1e3:.2f} ms",
            own=f"{shares['own'] * 1e3:.3f} ms",
            early=f"{flat['early']:.1f}",
            late=f"{flat['late']:.1f}",
        )
    )
    sys.stdout.write("\n".join(goals) + f"\n{minutes:.1f} minutes\n")


TEXT = (Path(__file__).parent / "results.template").read_text()

if __name__ == "__main__":
    main()
