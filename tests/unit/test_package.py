"""What is published: a wheel that explains itself, and an sdist from which the tests run."""

import re
import shutil
import subprocess
import sys
import tarfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

from exporter import __version__

ROOT = Path(__file__).parents[2]
PROJECT = "modus-exporter/modus-exporter"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel, unpacked in `wheel`, and the sdist."""
    directory = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    wheel = directory / f"modus_exporter-{__version__}-py3-none-any.whl"
    shutil.unpack_archive(wheel, directory / "wheel", "zip")
    return directory


def metadata(dist: Path) -> Message:
    text = (dist / "wheel" / f"modus_exporter-{__version__}.dist-info" / "METADATA").read_text()
    return HeaderParser().parsestr(text)


def test_the_wheel_holds_the_package_its_types_a_sample_configuration_and_the_unit(dist: Path) -> None:
    wheel, name = dist / "wheel", f"modus_exporter-{__version__}"
    assert {path.name for path in wheel.iterdir()} == {"exporter", f"{name}.dist-info", f"{name}.data"}
    unit = ROOT / "deploy/systemd/modus-exporter.service"
    shared = wheel / f"{name}.data" / "data/share/modus-exporter/modus-exporter.service"
    assert shared.read_bytes() == unit.read_bytes()
    assert (wheel / "exporter" / "py.typed").is_file()
    assert (wheel / "exporter" / "config.yaml").read_bytes() == (ROOT / "config.yaml").read_bytes()


def test_the_help_of_what_was_installed_names_the_sample_configuration(dist: Path, tmp_path: Path) -> None:
    env = {"PATH": "", "PYTHONPATH": str(dist / "wheel"), "COLUMNS": "60"}
    help_ = [sys.executable, "-m", "exporter", "--help"]
    done = subprocess.run(help_, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    (sample,) = re.findall(r"^A configuration with every key: (\S+)$", done.stdout, re.M)
    assert Path(sample) == dist / "wheel" / "exporter" / "config.yaml"


def test_the_description_has_no_link_and_no_picture_that_leads_nowhere_on_pypi(dist: Path) -> None:
    description = str(metadata(dist).get_payload())
    code = re.compile(r"^```.*?^```|^    .*?$", re.M | re.S)
    links = re.findall(r"(!?)\[[^]]*\]\(([^)]+)\)", code.sub("", description))
    to_files = [(picture, url) for picture, url in links if PROJECT in url]
    assert [url for _, url in links if not re.match("https?:|#", url)] == []
    assert sum(bool(picture) for picture, _ in to_files) >= 3
    raw = f"https://raw.githubusercontent.com/{PROJECT}/v{__version__}/"
    page = f"https://github.com/{PROJECT}/blob/v{__version__}/"
    for picture, url in to_files:
        assert url.startswith(raw if picture else page)
        assert (ROOT / url.removeprefix(raw).removeprefix(page).partition("#")[0]).exists()


def test_the_project_page_leads_on(dist: Path) -> None:
    urls = dict(url.split(", ") for url in metadata(dist).get_all("Project-URL", []))
    assert urls.keys() == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}


def test_the_sdist_has_all_that_the_tests_read(dist: Path) -> None:
    with tarfile.open(dist / f"modus_exporter-{__version__}.tar.gz") as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    folders = (".ci", ".github", "benchmarks", "deploy", "docs", "exporter", "grafana", "prometheus", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.suffix in (".md", ".lock", ".toml", ".yaml")]
    needed = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert len(needed) > 200
    assert needed - held == set()


def test_the_version_is_in_the_changelog_with_its_release() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.M)
    for version in re.findall(r"^## \[([\d.]+)\]", changelog, re.M):
        assert f"\n[{version}]: https://github.com/{PROJECT}/releases/tag/v{version}\n" in changelog
