"""README, example configuration and Makefile say what the code does."""

import re
from pathlib import Path
from typing import Any

import pytest
import requests

from benchmarks import native
from exporter.cli import _parser, from_environment
from exporter.config import load
from exporter.demo.simulator import SimulatedModus
from exporter.metrics.table import TABLE
from tests.dashboards import selectors
from tests.simulation import ILL, WELL

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_metrics_table_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(modus_\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", README, re.M)
    documented = [
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)), text.strip()) for name, kind, labels, text in rows
    ]
    assert documented == [(row.name, row.kind, row.labels, row.help) for row in TABLE]


@pytest.mark.parametrize(
    "flag", [action.option_strings[-1] for action in _parser()._actions if action.dest != "help"]
)
def test_every_flag_is_in_the_readme(flag: str) -> None:
    assert f"`{flag}`" in README


@pytest.mark.parametrize("action", [a for a in _parser()._actions if a.dest not in ("help", "version")])
def test_every_flag_has_its_environment_variable(action: Any) -> None:
    flag = action.option_strings[-1]
    name = "MODUS_EXPORTER_" + flag.removeprefix("--").replace(".", "_").replace("-", "_").upper()
    value = "true" if action.nargs == 0 else next(iter(action.choices or ("1",)))
    expected = flag if action.nargs == 0 else f"{flag}={value}"
    assert from_environment(_parser(), [], {name: value}) == [expected]


def test_the_environment_variables_that_the_readme_names_set_a_flag() -> None:
    named = re.findall(r"`(MODUS_EXPORTER_\w+)(?:=(\w+))?`", README)
    assert len(named) >= 3
    for name, value in named:
        assert from_environment(_parser(), [], {name: value or "json"}), name


def test_the_code_of_the_readme_embeds_the_collector_in_another_program(
    modus: SimulatedModus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(
        f"modus: {{base_url: '{modus.url}', token: {modus.token}}}\ndiscovery: {{enabled: true}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORT", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    program: dict[str, Any] = {}
    exec(code, program)  # noqa: S102 - our own
    server, thread = program["server"], program["thread"]
    try:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with requests.Session() as session:
            session.trust_env = False
            lines = session.get(url, timeout=20).text.splitlines()
        for agent_id in (ILL, WELL):
            assert f'modus_agent_run_duration_seconds_count{{agent_id="{agent_id}"}} 3.0' in lines
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        program["app"].close()


def test_the_queries_of_the_readme_parse_and_name_metrics_that_exist() -> None:
    start = README.index("## PromQL to start from")
    section = README[start : README.index("\n## ", start)]
    queries = re.findall(r"(?:^    .+\n)+", section, re.M)
    assert len(queries) > 5
    exposed = {row.name for row in TABLE} | {"modus_agent_run_duration_seconds_bucket"}
    for query in queries:
        names = {selector.name for selector in selectors(query)}
        assert names, query
        assert names <= exposed, query


def test_the_headings_that_the_readme_links_to_exist() -> None:
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall("^#+ (.+)$", README, re.M)
    }
    links = set(re.findall(r"\]\(#([^)]+)\)", README))
    assert links
    assert links <= headings


def test_the_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = set(re.findall(r"`make ([\w-]+)`", README + (ROOT / "CONTRIBUTING.md").read_text()))
    assert {"run", "test"} <= commands <= targets


def test_the_example_configuration_loads() -> None:
    config = load(str(ROOT / "config.yaml"), {"MODUS_API_KEY": "x"})
    assert config.discovery.enabled


def test_the_files_that_the_readme_links_to_exist() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tests_that_the_table_of_faults_names_exist() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "faults.md").read_text())
    assert len(named) > 100
    there = {
        (path.name, name)
        for path in (ROOT / "tests").glob("*/test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert set(named) - there == set()


def test_the_errors_of_percentiles_in_the_readme_are_those_that_the_benchmark_finds() -> None:
    rows = native.errors()
    assert len(rows) == 8
    assert "\n".join(rows) in README
