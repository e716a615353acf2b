"""Which file imports which: data flows one way, and only `cli` knows all the parts."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "exporter"
EVERYTHING = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__", "cli"}
MAY_IMPORT = {
    "__init__": set(),
    "__main__": {"cli"},
    "cli": EVERYTHING,
    "web": {"door", "webconfig"},
    "door": {"webconfig"},
    "webconfig": set(),
    "collector": {"discovery", "metrics", "model", "reader"},
    "reader": {"history", "model"},
    "discovery": {"model"},
    "ledger": {"model", "state"},
    "state": {"model"},
    "client": {"model", "transport"},
    "transport": {"model"},
    "history": {"model"},
    "metrics": {"model"},
    "check": {"discovery", "model"},
    "audit": {"check", "model", "state"},
    "config": set(),
    "model": set(),
    "demo": set(),
    "log": set(),
}


def imported(path: Path) -> set[str]:
    """The package's modules that a file needs when it runs; those for type checkers only do not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "exporter":
            found |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("exporter."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("exporter.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_a_file_imports_only_what_its_place_allows(path: Path) -> None:
    assert imported(path) <= MAY_IMPORT[path.stem]


def test_the_table_of_arrows_names_exactly_the_files_there_are() -> None:
    assert MAY_IMPORT.keys() == {path.stem for path in PACKAGE.glob("*.py")}


def test_each_library_that_is_imported_is_declared_and_none_besides() -> None:
    """Also those that another library brings along: it may stop to."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    libraries = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"exporter"}
    known = importlib.metadata.packages_distributions()
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=]", dependency)[0] for dependency in project["dependencies"]}
    assert {known[library][0].lower().replace("_", "-") for library in libraries} == declared
