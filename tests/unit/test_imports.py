"""Which file imports which: data flows one way."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "exporter"
FILES = sorted(PACKAGE.rglob("*.py"))
FOR_ALL = {"config", "deadline", "histogram", "log", "watch", "yamlfile"}
# a folder imports those below it, and files of its own
MAY_IMPORT = {
    "web": {"metrics", "runs", "modus"},
    "metrics": {"runs", "modus"},
    "runs": {"modus"},
    "modus": set(),
    "demo": set(),
}


def imported(path: Path) -> set[str]:
    """The parts of the package that a file needs when it runs; those for type checkers only do not count."""
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


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.parent != PACKAGE],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_a_folder_imports_only_those_below_it(path: Path) -> None:
    folder = path.parent.name
    shared = set() if folder == "demo" else FOR_ALL
    assert imported(path) <= {folder} | MAY_IMPORT[folder] | shared


def test_each_library_that_is_imported_is_declared_and_none_besides() -> None:
    """Also those that another library brings along: it may stop to."""
    trees = [ast.parse(path.read_text()) for path in FILES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    libraries = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"exporter"}
    known = importlib.metadata.packages_distributions()
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=]", dependency)[0] for dependency in project["dependencies"]}
    assert {known[library][0].lower().replace("_", "-") for library in libraries} == declared
