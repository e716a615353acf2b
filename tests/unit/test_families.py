"""Our metric families in prometheus_client's own registries, and its families in our text."""

import urllib.request
from collections.abc import Iterable, Iterator

import pytest
from prometheus_client import (
    CollectorRegistry,
    Enum,
    Info,
    PlatformCollector,
    ProcessCollector,
    Summary,
    generate_latest,
    make_wsgi_app,
    start_http_server,
)
from prometheus_client.core import GaugeHistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics_format
from prometheus_client.registry import Collector

from exporter.metrics.exposition import describe, families, write
from exporter.metrics.snapshot import Snapshot
from exporter.modus.errors import REASONS
from exporter.runs.state import MISSED
from tests.golden.test_exposition import CASES
from tests.oracle import expected

ONE_AGENT = CASES["one-agent"]
FINISHED = "modus_agent_runs_finished_total"


class Shown(Collector):
    """A collector as ours is, of one snapshot."""

    def __init__(self, snapshot: Snapshot = ONE_AGENT) -> None:
        self.snapshot = snapshot
        self.scrapes = 0

    def describe(self) -> Iterable[Metric]:
        return describe()

    def collect(self) -> Iterator[Metric]:
        self.scrapes += 1
        return iter(list(families(self.snapshot)))


class Odd(Collector):
    """Families of kinds that ours are not of."""

    def collect(self) -> Iterator[Metric]:
        odd = GaugeHistogramMetricFamily("queue_seconds", 'Ages, "quoted" \\ and\nbroken.', labels=["queue"])
        odd.add_metric(['a "quoted" \\ one\n'], buckets=[("1.0", 3), ("+Inf", 4)], gsum_value=9.5)
        return iter([odd])


@pytest.fixture
def registry() -> CollectorRegistry:
    """One with ours in the midst of others."""
    made = CollectorRegistry()
    PlatformCollector(registry=made)
    Info("build", "The build.", registry=made).info({"version": "1"})
    made.register(Shown())
    Enum("state", "The state.", states=["up", "down"], registry=made)
    Summary("size_bytes", "Sizes.", registry=made).observe(5)
    made.register(Odd())
    return made


def samples(text: bytes) -> list[str]:
    return [line for line in text.decode().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("openmetrics", [False, True], ids=["text", "openmetrics"])
def test_one_registry_is_written_as_the_library_writes_it_ours_and_others(
    registry: CollectorRegistry, openmetrics: bool
) -> None:
    encode = openmetrics_format.generate_latest if openmetrics else generate_latest
    assert b"".join(write(registry.collect(), openmetrics)) == encode(registry)


def test_the_instants_from_which_is_counted_are_shown_right_behind_what_was_counted_when_asked_for() -> None:
    shown = b"".join(write(families(CASES["created"]), True)).decode().splitlines()
    born = [n for n, line in enumerate(shown) if "_created" in line]
    assert len(born) == 1 + 4 + len(MISSED) + 1 + len(REASONS) + 2 + 1
    for n in born:
        name, _, labels = shown[n].rpartition(" ")[0].partition("_created")
        assert shown[n - 1].startswith((f"{name}_total{labels} ", f"{name}_sum{labels} "))
    assert b"_created" not in b"".join(write(families(CASES["created"]), False))
    assert b"_created" not in b"".join(write(families(ONE_AGENT), True))


@pytest.mark.parametrize("openmetrics", [False, True], ids=["text", "openmetrics"])
def test_the_end_mark_is_there_once_and_last(openmetrics: bool) -> None:
    registry = CollectorRegistry()
    registry.register(Shown())
    ProcessCollector(registry=registry)
    text = b"".join(write(registry.collect(), openmetrics))
    assert text.count(b"# EOF") == openmetrics
    assert text.endswith(b"# EOF\n") == openmetrics
    assert b"process_cpu_seconds_total" in text
    assert b"".join(write([], openmetrics)) == (b"# EOF\n" if openmetrics else b"")


def test_a_registry_knows_our_names_without_a_scrape() -> None:
    registry, ours = CollectorRegistry(auto_describe=True), Shown()
    registry.register(ours)
    assert ours.scrapes == 0
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(Shown())


@pytest.mark.parametrize("case", CASES)
def test_what_is_described_has_the_names_and_types_of_what_is_collected(case: str) -> None:
    described = {(metric.name, metric.type): metric for metric in describe()}
    assert [metric.samples for metric in described.values()] == [[]] * len(described)
    shown = {(metric.name, metric.type) for metric in families(CASES[case])}
    assert shown
    assert shown <= described.keys()


def test_a_family_without_a_sample_is_left_out() -> None:
    assert all(metric.samples for metric in families(CASES["empty"]))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("modus_up", 1),
        (FINISHED, 4),
        ("modus_agent_run_duration_seconds_bucket", 3),
        ("modus_agent_run_duration_seconds_sum", 1),
        ("modus_nothing", 0),
    ],
)
def test_a_restricted_registry_shows_only_what_was_asked_for(
    registry: CollectorRegistry, name: str, lines: int
) -> None:
    whole = b"".join(write(registry.collect(), True))
    shown = b"".join(write(registry.restricted_registry([name]).collect(), True))
    assert samples(shown) == [line for line in samples(whole) if line.startswith((name + "{", name + " "))]
    assert len(samples(shown)) == lines


def test_the_library_serves_our_families_by_its_own_server(registry: CollectorRegistry) -> None:
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics?name[]={FINISHED}&name[]=modus_up"
        with urllib.request.urlopen(url) as answer:
            assert len(samples(answer.read())) == 5
        accept = urllib.request.Request(
            f"http://127.0.0.1:{server.server_port}/metrics",
            headers={"Accept": "application/openmetrics-text; version=1.0.0"},
        )
        with urllib.request.urlopen(accept) as answer:  # noqa: S310 - likewise
            assert answer.read() == b"".join(write(registry.collect(), True))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_librarys_wsgi_application_serves_our_families() -> None:
    registry = CollectorRegistry()
    registry.register(Shown())
    answers: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/metrics",
        "QUERY_STRING": "",
        "HTTP_ACCEPT": "application/openmetrics-text; version=1.0.0",
    }
    app = make_wsgi_app(registry)
    body = b"".join(app(environ, lambda status, headers: answers.append(status)))
    assert answers == ["200 OK"]
    assert body == expected(ONE_AGENT, openmetrics=True)


def test_a_value_is_found_by_name_and_labels(registry: CollectorRegistry) -> None:
    labels = {"agent_id": "42", "status": "error", "trigger_type": "api"}
    assert registry.get_sample_value(FINISHED, labels) == 2
