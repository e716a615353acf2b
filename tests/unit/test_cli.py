"""What a user meets on the command line: exit codes, one line per mistake, and tables."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter import __version__
from exporter.demo import SimulatedModus

ROOT = Path(__file__).parents[2]


def run(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "exporter", *flags]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env={"PATH": "", **env}
    )


@pytest.fixture
def modus() -> Iterator[SimulatedModus]:
    modus = SimulatedModus().start()
    yield modus
    modus.close()


def config(directory: Path, modus: SimulatedModus, more: str = "discovery: {enabled: true}") -> str:
    path = directory / "config.yaml"
    path.write_text(
        f"modus: {{base_url: '{modus.url}', token: '{modus.token}'}}\nstate: {{path: null}}\n{more}\n"
    )
    return str(path)


def test_the_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["modus-exporter", __version__])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--no.such.flag"], "unrecognized arguments: --no.such.flag"),
        (["--log.level", "loud"], "--log.level"),
        (["--shard", "2", "--total-shards", "2"], "--shard: expected less than --total-shards (2), got 2"),
        (["--total-shards", "none"], "expected a whole number from 1 on, got 'none'"),
        (["--web.telemetry-path", "metrics"], "expected a path like /metrics"),
        (["--demo", "--web.listen-address", "nowhere"], "expected host:port or :port"),
        (["--config.file", "/no/such/file.yaml"], "/no/such/file.yaml: "),
        (["--demo", "--web.config.file", "/no/such/web.yaml"], "/no/such/web.yaml"),
    ],
)
def test_a_mistake_of_use_is_one_line_and_exit_code_2(flags: list[str], says: str) -> None:
    done = run(*flags)
    assert done.returncode == 2
    (*log, line) = done.stderr.splitlines()
    assert says in line
    assert line.startswith("modus-exporter: ")
    assert [each for each in log if not each.startswith("time=")] == []


def test_without_a_token_the_line_says_where_one_comes_from() -> None:
    done = run()
    assert done.returncode == 2
    assert "MODUS_API_KEY" in done.stderr
    assert "token_file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_state_file_in_a_place_that_cannot_be_is_one_line_and_exit_code_1(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    file = Path(config(tmp_path, modus))
    file.write_text(file.read_text().replace("path: null", "path: /dev/null/state.db"))
    done = run("--config.file", str(file))
    assert done.returncode == 1
    assert done.stderr.startswith("modus-exporter: /dev/null/state.db: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_check_shows_each_agent(modus: SimulatedModus, tmp_path: Path) -> None:
    done = run("--config.file", config(tmp_path, modus), "--config.check")
    assert done.returncode == 0
    head, *rows, last = done.stdout.splitlines()
    assert head.split()[:3] == ["AGENT", "NAME", "REACHABLE"]
    assert len(rows) == 10
    assert rows[0].split() == ["101", "Invoice", "triage", "yes", rows[0].split()[-1]]
    assert int(rows[0].split()[-1]) > 200
    assert last == "10 agents, 0 cannot be read"


def test_the_check_says_that_an_id_is_unknown(modus: SimulatedModus, tmp_path: Path) -> None:
    done = run("--config.file", config(tmp_path, modus, "agents: [101, 999]"), "--config.check")
    assert done.returncode == 1
    assert "999" in done.stdout
    assert "this id or route is unknown" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 agents, 1 cannot be read"


def test_the_check_names_the_scope_that_is_missing(modus: SimulatedModus, tmp_path: Path) -> None:
    modus.scopes = ("agents:read",)
    done = run("--config.file", config(tmp_path, modus, "agents: [101]"), "--config.check")
    assert done.returncode == 1
    assert "give the token the missing scope (agents:invoke" in done.stdout


def test_the_check_shows_no_token(modus: SimulatedModus, tmp_path: Path) -> None:
    modus.token = "modus_pat_secret"  # noqa: S105
    file = config(tmp_path, modus, "agents: [101]")
    modus.token = "another"  # noqa: S105
    done = run("--config.file", file, "--config.check")
    assert done.returncode == 1
    assert "check the token" in done.stdout
    assert "modus_pat_secret" not in done.stdout + done.stderr


def test_an_audit_without_a_state_file_says_so(modus: SimulatedModus, tmp_path: Path) -> None:
    done = run("--config.file", config(tmp_path, modus), "--audit")
    assert done.returncode == 1
    assert "state.path is null" in done.stderr
