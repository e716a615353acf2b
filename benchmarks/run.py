"""`make bench`: the real exporter beside 0.1.0 and what else could do the job, in one run.

    python -m benchmarks.run [--quick | --all]

Every number is of the exporter as a user starts it: its own process, scraped over HTTP with the headers of
Prometheus (OpenMetrics, gzip). CPU is the kernel's count for that process, peak memory its VmHWM. Each part
adds rows and goals to the Report, which is written to benchmarks/RESULTS.md.
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
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import first
from benchmarks.frugal import frugal_table
from benchmarks.processes import ROOT, Tls, api, certificate, cpu_seconds, exporter, peak_mib, release

ROUNDS = 7  # of the pairs: each has one scrape of ours and one of 0.1.0
JSON_EXPORTER = {"HTTP": 1 / 0.84, "HTTPS": 1 / 0.46}  # its CPU to that of 0.1.0: see results.template


class Scenario(NamedTuple):
    """Scrapes of one fleet over HTTPS with gzip, and the goals for them."""

    agents: int
    latency: float  # seconds
    in_flight: int
    scrapes: int
    limit: float = math.inf  # of the wall to the latency limit
    wall: float = math.inf  # seconds
    peak: float = math.inf  # MiB


SCENARIOS = [
    Scenario(100, 0.05, 32, 5),
    Scenario(1_000, 0.05, 32, 5, limit=1.10, peak=90),
    Scenario(1_000, 0.2, 32, 3, limit=1.05),
    Scenario(10_000, 0.05, 128, 2),
    Scenario(10_000, 0.05, 256, 2, wall=3, peak=360),
]


class Report:
    """What becomes RESULTS.md: rows and numbers by the name that they have in the template."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.missed = 0
        self._began = time.monotonic()

    def row(self, table: str, *cells: str) -> None:
        """Add a row to a table."""
        row = f"| {' | '.join(cells)} |"
        self.fields[table] = "\n".join(filter(None, (self.fields.get(table), row)))
        sys.stdout.write(row + "\n")
        sys.stdout.flush()

    def goal(self, text: str, value: float, bound: float, form: str = "{:.2f}") -> None:
        """Add a row to the table of goals, unless nobody set a bound."""
        if bound < math.inf:
            verdict = "met" if value <= bound else f"missed by {(value / bound - 1) * 100:.0f} %"
            self.row("goals", text, form.format(bound), form.format(value), verdict)

    def write(self) -> None:
        """Write the file."""
        about = {"machine": machine(), "date": datetime.date.today().isoformat()}
        minutes = f"{(time.monotonic() - self._began) / 60:.1f}"
        template = (ROOT / "benchmarks" / "results.template").read_text()
        text = template.format(**about, minutes=minutes, **self.fields)
        (ROOT / "benchmarks" / "RESULTS.md").write_text(text)
        sys.stdout.write(f"{minutes} minutes\n")


def machine() -> str:
    """What it ran on, Python's own build included: it makes a third of a difference."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    options = str(sysconfig.get_config_var("CONFIG_ARGS"))
    flags = {"PGO": "--enable-optimizations", "LTO": "--with-lto"}
    build = " and ".join(f"{'with' if flag in options else 'without'} {name}" for name, flag in flags.items())
    return (
        f"{os.cpu_count()} CPUs ({model[1] if model else platform.machine()}), {memory:.0f} GiB, "
        f"Linux {platform.release().partition('-')[0]}, {platform.python_implementation()} "
        f"{platform.python_version()} by {platform.python_compiler().strip()}, {build}"
    )


def measured(pid: int, work: Callable[[], object], times: int = 1) -> tuple[float, float]:
    """Wall and CPU seconds of `work()`, of each the median of `times`."""
    walls, cpus = [], []
    for _ in range(times):
        wall, cpu = time.perf_counter(), cpu_seconds(pid)
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(cpu_seconds(pid) - cpu)
    return statistics.median(walls), statistics.median(cpus)


def rival(kind: str, url: str, agents: int, in_flight: int, cafile: str | None) -> tuple[float, float]:
    """Wall and CPU seconds of one pass of benchmarks/rivals.py over these agents, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.rivals", kind, url, str(agents), str(in_flight)]
    environment = os.environ | ({"REQUESTS_CA_BUNDLE": cafile} if cafile else {})
    wall, cpu = json.loads(subprocess.check_output(command, cwd=ROOT, text=True, env=environment))
    return wall, cpu


def inside(*arguments: int) -> "subprocess.Popen[str]":
    """benchmarks/inside.py in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.inside", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def found(process: "subprocess.Popen[str]") -> dict[str, float]:
    """What it found, once it is done."""
    said, _ = process.communicate()
    answer: dict[str, float] = json.loads(said)
    return answer


def beside_others(report: Report, tls: Tls, earlier: Path, agents: int = 1000) -> None:
    """CPU per agent without latency, ours and that of others in turn."""
    for wire, cafile in (("HTTP", None), ("HTTPS", tls[0])):
        costs: dict[str, list[float]] = {}
        with (
            api(0.0, tls if cafile else None, True) as upstream,
            exporter(upstream.url, agents, 32, cafile) as ours,
            exporter(upstream.url, agents, 32, cafile, earlier) as before,
        ):
            for _ in range(ROUNDS):
                for name, each in (("ours", ours), ("0.1.0", before)):
                    costs.setdefault(name, []).append(measured(each.pid, each.scrape)[1] / agents)
                for name, n in (("floor", agents), ("loop", 100), ("naive", 10)):
                    costs.setdefault(name, []).append(rival(name, upstream.url, n, 1, cafile)[1] / n)
        cost = {name: statistics.median(values) * 1e6 for name, values in costs.items()}
        cost["json_exporter"] = cost["0.1.0"] * JSON_EXPORTER[wire]
        mine = cost.pop("ours")
        report.row(
            "beside", wire, f"{mine:.0f}", *(f"{cost[name]:,.0f} ({mine / cost[name]:.2f})" for name in cost)
        )
        report.goal(f"CPU to that of 0.1.0, {wire}", mine / cost["0.1.0"], 0.7)
        report.goal(f"CPU to the physical floor, {wire}", mine / cost["floor"], 13, "{:.1f}")


def scrapes(report: Report, tls: Tls, scenario: Scenario) -> None:
    """Wall, CPU and memory of the scrapes of one scenario."""
    agents, latency, in_flight, times, *_ = scenario
    with (
        api(latency, tls, True) as upstream,
        exporter(upstream.url, agents, in_flight, tls[0]) as running,
    ):
        before = upstream.served()
        wall, cpu = measured(running.pid, running.scrape, times)
        after = upstream.served()
        peak = peak_mib(running.pid)
        floor, _ = rival("floor", upstream.url, agents, in_flight, tls[0])
    limit = math.ceil(agents / in_flight) * latency
    asked, sent = ((b - a) / times / agents for a, b in zip(before, after, strict=True))
    report.row(
        "scrapes", f"{agents:,}", f"{latency * 1000:.0f} ms", f"{in_flight}",
        f"{wall:.2f} s", f"{limit:.2f} s", f"{wall / limit:.2f}", f"{floor:.2f} s",
        f"{cpu:.2f} s", f"{cpu / agents * 1e6:.0f}", f"{asked:.2f}", f"{sent:,.0f}", f"{peak:.0f} MiB",
    )  # fmt: skip
    fleet = f"{agents:,} agents, {latency * 1000:.0f} ms, {in_flight} in flight"
    report.goal(f"wall to the latency limit, {fleet}", wall / limit, scenario.limit)
    report.goal(f"a scrape of {fleet}, s", wall, scenario.wall, "{:.1f}")
    report.goal(f"peak memory, {fleet}, 144 runs a day, MiB", peak, scenario.peak, "{:.0f}")


def first_scrapes(report: Report, tls: Tls, scenarios: list[first.Scenario]) -> None:
    """The first ten scrapes of each scenario."""
    results = [first.first_scrapes(tls, *scenario) for scenario in scenarios]
    for each in results:
        report.row("firsts", *each.cells)
    report.goal("the slowest of the first scrapes to its timeout", max(each.slowest for each in results), 1.0)


def parts(report: Report, agents: int) -> None:
    """Shares of a scrape."""
    of = found(inside(agents))
    fetch = 1 - of["render"] - of["count"] - of["steady"]
    for name, share in {**of, "fetch": fetch}.items():
        report.fields[name] = f"{share * 100:.1f} %"
    report.fields |= {name: f"{of[name] * 1e6:.0f}" for name in ("own", "library")}


def main() -> None:
    """Run everything and write RESULTS.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="up to 1,000 agents, and write no file")
    parser.add_argument("--all", action="store_true", help="the first scrapes of all fleets: 13 minutes more")
    args = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory() as directory:
        tls = certificate(Path(directory))
        beside_others(report, tls, release(Path(directory)))
        parts(report, 1000 if args.quick else 5000)
        for scenario in SCENARIOS:
            if not args.quick or scenario.agents <= 1000:
                scrapes(report, tls, scenario)
        if args.quick:
            return
        first_scrapes(report, tls, first.SCENARIOS if args.all else first.TELLING)
    flat = found(inside(1000, 300))
    report.goal("memory after 300 scrapes of 1,000 agents to that after 50", flat["growth"], 1.02)
    report.fields |= {name: f"{flat[name]:.1f}" for name in ("early", "late")}
    report.fields["frugal"] = frugal_table()
    report.write()


if __name__ == "__main__":
    main()
