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
FOR_ALL = {
    "baseurl",
    "config",
    "deadline",
    "descriptors",
    "histogram",
    "log",
    "scalars",
    "tokenbucket",
    "tokens",
    "turn",
    "waits",
    "watch",
    "yamlfile",
}
# a folder imports those below it, and files of its own
BELOW = {
    "web": {"metrics", "runs", "modus"},
    "metrics": {"runs", "modus"},
    "runs": {"modus"},
    "modus": set(),
}
ALLOWED: dict[str, set[str]] = {
    **{folder: {folder} | below | FOR_ALL for folder, below in BELOW.items()},
    **dict.fromkeys(FOR_ALL, FOR_ALL),
    "demo": {"demo"},  # so that it cannot mirror a bug of the parser
    "app": {*BELOW, "demo"} | FOR_ALL,
    "cli": {*BELOW, "demo", "app"} | FOR_ALL,
    "__main__": {"cli"},
    "__init__": set(),
}


def imported(path: Path) -> set[str]:
    """The parts of the package that a file names in an import, also in one for type checkers only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute: else this test does not see them"
            if node.module == "exporter":
                found |= {alias.name for alias in node.names if alias.name != "__version__"}
            elif (node.module or "").startswith("exporter."):
                found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("exporter.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_is_below_it_or_for_all(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")  # a folder, or a file beside the folders
    assert imported(path) <= ALLOWED[part]


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: number for name, number in lines.items() if number > 300} == {}


def test_each_library_that_is_imported_is_declared_and_none_besides() -> None:
    """Also those that another library brings along: it may stop to."""
    trees = [ast.parse(path.read_text()) for path in FILES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    libraries = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"exporter"}
    known = importlib.metadata.packages_distributions()
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    dependencies = [*project["dependencies"], *project["optional-dependencies"]["postgres"]]
    declared = {re.split(r"[\[<>=]", dependency)[0] for dependency in dependencies}
    read_by_the_standard_library = {"tzdata"}  # where the system has no time zones
    imported = {known[library][0].lower().replace("_", "-") for library in libraries}
    assert imported | read_by_the_standard_library == declared
