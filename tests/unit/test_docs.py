"""README, example configuration and Makefile say what the code does."""

import re
from pathlib import Path

import pytest

from exporter.cli import _parser
from exporter.config import load
from exporter.metrics.table import TABLE

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
    assert len(named) > 50
    there = {
        (path.name, name)
        for path in (ROOT / "tests").glob("*/test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert set(named) - there == set()
