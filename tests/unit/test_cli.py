"""What a user meets on the command line: exit codes, one line per mistake, and tables."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter import __version__
from exporter.demo.simulator import Request, SimulatedModus
from tests.e2e.harness import Exporter, ended, exporter, get, wait_for

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.servers


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
    state = "" if "state:" in more else "state: {path: null}\n"
    path.write_text(f"modus: {{base_url: '{modus.url}', token: '{modus.token}'}}\n{state}{more}\n")
    return str(path)


def test_the_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["modus-exporter", __version__])


def test_a_variable_of_the_environment_stands_for_its_flag_and_a_given_flag_wins() -> None:
    assert "--log.level" in run(MODUS_EXPORTER_LOG_LEVEL="loud").stderr
    shard = {"MODUS_EXPORTER_SHARD": "2", "MODUS_EXPORTER_TOTAL_SHARDS": "2"}
    assert "expected less than --total-shards (2), got 2" in run(**shard).stderr
    assert "expected less than --total-shards (1), got 2" in run("--total-shards=1", **shard).stderr
    assert "MODUS_EXPORTER_DEMO: expected true or false, got 'yes'" in run(MODUS_EXPORTER_DEMO="yes").stderr


def test_a_variable_that_names_a_version_is_not_a_flag() -> None:
    done = run(
        "--config.file", "/no/such/file.yaml", MODUS_EXPORTER_VERSION="1.2.3", MODUS_EXPORTER_HELP="true"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "/no/such/file.yaml" in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--no.such.flag"], "unrecognized arguments: --no.such.flag; see modus-exporter --help"),
        (["--web.listen-adress=:1"], "--web.listen-adress=:1; did you mean --web.listen-address?"),
        (["--log.level", "loud"], "--log.level"),
        (["--shard", "2", "--total-shards", "2"], "--shard: expected less than --total-shards (2), got 2"),
        (["--total-shards", "none"], "expected a whole number from 1 on, got 'none'"),
        (
            ["--demo", "--web.telemetry-path", "metrics"],
            "--web.telemetry-path: expected a path like /metrics",
        ),
        (["--demo", "--web.listen-address", "nowhere"], "expected host:port or :port"),
        (["--config.check", "--audit"], "argument --audit: not allowed with argument --config.check; see"),
        (["--audit", "--state.import=a"], "argument --state.import: not allowed with argument --audit; see"),
        (["--config.check", "--state.import=a"], "not allowed with argument --config.check; see"),
        (["--demo", "--state.import=state.db"], "--state.import: the demo's state goes when it ends; see"),
        (["--demo", "--config.file=any.yaml"], "--config.file: the demo has a configuration of its own; see"),
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


@pytest.mark.parametrize("url", ["mysql://modus:hunter2@h/db", "PostgreSQL://modus:hunter2@h/db"])
def test_a_url_that_cannot_be_imported_is_not_shown(modus: SimulatedModus, tmp_path: Path, url: str) -> None:
    file = config(tmp_path, modus, f"agents: [101]\nstate: {{path: '{tmp_path}/state.db'}}")
    done = run("--config.file", file, "--state.import", url)
    expected = "--state.import: expected the path of a state file or a postgresql:// URL"
    assert (done.returncode, done.stderr) == (2, f"modus-exporter: {expected}\n")
    assert not (tmp_path / "state.db").exists()


@pytest.mark.parametrize("more", [[], ["--config.check"], ["--audit"]])
def test_a_shard_of_exporters_that_share_their_state_is_refused(
    modus: SimulatedModus, tmp_path: Path, more: list[str]
) -> None:
    """Each would lease half of the agents and leave the others to nobody."""
    file = config(tmp_path, modus, "agents: [101]\nstate: {url: 'postgresql://modus@127.0.0.1:1/modus'}")
    done = run("--config.file", file, "--shard=1", "--total-shards=2", *more)
    expected = "--total-shards: with state.url exporters share the agents by themselves; leave it out"
    assert (done.returncode, done.stderr) == (2, f"modus-exporter: {expected}\n")


@pytest.mark.parametrize(
    "flags",
    [[], ["--config.file={}"], ["--demo", "--web.config.file=web.yml"]],
    ids=["default", "file", "web"],
)
def test_a_working_directory_that_was_deleted_is_one_line(
    modus: SimulatedModus, tmp_path: Path, flags: list[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"modus: {{base_url: '{modus.url}', token: '{modus.token}'}}\nagents: [101]\n")
    gone = tmp_path / "gone"
    gone.mkdir()
    command = [sys.executable, "-m", "exporter", *(flag.format(file) for flag in flags)]
    command = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *command]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MODUS_API_KEY": "modus_pat_any"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=gone, env=env)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "the working directory was deleted; start in one that is there" in done.stderr


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
    done = run("--config.file", str(file), "--web.listen-address", "127.0.0.1:0")
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
    assert "give the token the scope agents:invoke" in done.stdout


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


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("agents: [42, {id: 43, expected_interval: daily}]", "agents[1].expected_interval: "),
        ("runs: {page_sise: 5}", "runs.page_sise: "),
        ("modus: {token: '${NO_SUCH_NAME}'}", "modus.token: "),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_file_and_key_path(
    tmp_path: Path, text: str, key: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    done = run("--config.file", str(file), MODUS_API_KEY="x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"modus-exporter: {file}: {key}")
    assert len(done.stderr.splitlines()) == 1


def test_the_help_names_each_flag_once_with_what_it_does() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    flags = re.findall(r"^  (?:-h, )?(--[\w.-]+)", done.stdout, re.M)
    assert len(flags) == len(set(flags)) == 19


def closed_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def piped(stdout: int | None, *flags: str, stderr: int = subprocess.PIPE, **env: str) -> tuple[int, str]:
    """Exit code and standard error with this standard output, None for a closed one, and no terminal."""
    command = [sys.executable, "-m", "exporter", *flags]
    if stdout is None:
        command = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(
        command, stdout=stdout, stderr=stderr, cwd=ROOT, timeout=60, check=False, env={"PATH": "", **env}
    )
    if stdout is not None:
        os.close(stdout)
    return done.returncode, (done.stderr or b"").decode()


BUFFERINGS: list[dict[str, str]] = [{}, {"PYTHONUNBUFFERED": "1"}]


@pytest.mark.parametrize("env", BUFFERINGS, ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("stdout", [closed_pipe, lambda: None], ids=["pipe", "closed"])
@pytest.mark.parametrize(("agents", "code"), [("[101, 102]", 0), ("[101, 999]", 1)], ids=["good", "bad"])
def test_who_does_not_read_the_table_gets_the_verdict_all_the_same(
    modus: SimulatedModus,
    tmp_path: Path,
    stdout: Callable[[], int | None],
    agents: str,
    code: int,
    env: dict[str, str],
) -> None:
    file = config(tmp_path, modus, f"agents: {agents}")
    done = piped(stdout(), "--config.check", "--config.file", file, "--log.level", "error", **env)
    assert done == (code, "")


@pytest.mark.parametrize("env", BUFFERINGS, ids=["buffered", "unbuffered"])
def test_a_table_that_the_disk_does_not_take_is_one_line_and_no_success(
    modus: SimulatedModus, tmp_path: Path, env: dict[str, str]
) -> None:
    flags = "--config.check", "--config.file", config(tmp_path, modus), "--log.level", "error"
    full = os.open("/dev/full", os.O_WRONLY)
    says = "modus-exporter: cannot write to standard output: No space left on device\n"
    assert piped(full, *flags, **env) == (1, says)


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_who_does_not_read_the_help_is_no_failure(flag: str) -> None:
    assert piped(closed_pipe(), flag) == (0, "")
    assert piped(None, flag) == (0, "")


@pytest.mark.parametrize("flags", [["--config.file", "/no/such/file.yaml"], ["--no.such.flag"]])
def test_a_mistake_that_nobody_can_be_told_of_is_still_exit_code_2(flags: list[str]) -> None:
    pipe = closed_pipe()
    assert piped(os.open(os.devnull, os.O_WRONLY), *flags, stderr=pipe) == (2, "")
    os.close(pipe)


def test_a_name_that_the_terminals_encoding_does_not_have_is_escaped(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    modus.rename(101, "東京")
    done = run("--config.file", config(tmp_path, modus), "--config.check", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "\\u6771\\u4eac" in done.stdout


def test_the_demo_takes_its_state_with_it_when_it_ends(tmp_path: Path) -> None:
    with exporter(tmp_path, "--demo", env={"TMPDIR": str(tmp_path)}) as demo:
        (directory,) = tmp_path.glob("modus-exporter-demo-*")
        demo.scrape()
        assert (directory / "state.db").stat().st_size > 0
        assert demo.stop() == 0
    assert list(tmp_path.glob("modus-exporter-demo-*")) == []


def test_the_demo_runs_where_a_variable_names_the_configuration(tmp_path: Path) -> None:
    with exporter(tmp_path, "--demo", env={"MODUS_EXPORTER_CONFIG_FILE": "/no/such.yaml"}) as demo:
        assert "modus_up 1" in demo.exposition()


def test_the_demo_asks_no_proxy(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    with exporter(tmp_path, "--demo", env=nowhere) as demo:
        assert demo.scrape().value("modus_up") == 1


def test_a_demo_without_a_place_for_its_state_is_one_line(tmp_path: Path) -> None:
    program = "import tempfile; from exporter.cli import main; tempfile.tempdir = '/proc'; main(['--demo'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stderr.splitlines() == [
        "modus-exporter: --demo: no temporary directory: No such file or directory; set TMPDIR"
    ]


def test_every_line_of_a_json_log_is_json_and_says_where_it_listens(tmp_path: Path) -> None:
    command = ["--demo", "--log.format", "json", "--web.listen-address", "127.0.0.1:0"]
    with ended(
        subprocess.Popen(
            [sys.executable, "-m", "exporter", *command], stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    ) as demo:
        assert demo.stderr is not None
        lines = []
        while not lines or lines[-1]["msg"] != "listening":
            lines.append(json.loads(demo.stderr.readline()))
        demo.terminate()
        lines += [json.loads(line) for line in demo.stderr]
        assert demo.wait(10) == 0
    assert re.fullmatch(r"127\.0\.0\.1:\d+", next(line["address"] for line in lines if "address" in line))


def test_the_start_says_whether_the_token_works_and_where_to_look(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    with exporter(tmp_path, "--config.file", config(tmp_path, modus), "--web.route-prefix=/modus") as good:
        wait_for("the line", lambda: 'msg="the API takes the token"' in good.said())
        assert f"tls=false url={good.url}/modus/\n" in good.said()
        assert get(f"{good.url}/modus/-/ready").startswith("modus-exporter is ready.\nThe API answered ")


def test_an_api_that_hangs_neither_stops_nor_delays_the_start(modus: SimulatedModus, tmp_path: Path) -> None:
    asked, release = threading.Event(), threading.Event()

    def hang(request: Request) -> None:
        asked.set()
        release.wait(60)

    modus.fault = hang
    with exporter(tmp_path, "--config.file", config(tmp_path, modus)) as running:
        assert asked.wait(20)
        assert get(f"{running.url}/-/ready") == "modus-exporter is ready.\nThe API has not been asked yet.\n"
        assert running.stop(within=5) == 0
    release.set()


@pytest.mark.parametrize(
    "flags",
    [
        ["--web.listen-address", "nowhere"],
        ["--web.listen-address", "127.0.0.1:{taken}"],
        ["--web.telemetry-path", "/-/ready"],
        ["--web.external-url", "modus"],
        ["--web.route-prefix", "/a b"],
        ["--web.config.file", "/no/such/web.yaml"],
    ],
    ids=lambda flags: " ".join(flags),
)
def test_flags_are_judged_before_the_state_is_opened(
    modus: SimulatedModus, tmp_path: Path, flags: list[str]
) -> None:
    file = config(
        tmp_path, modus, f"discovery: {{enabled: true}}\nstate: {{path: '{tmp_path}/state/state.db'}}"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = [flag.format(taken=taken.getsockname()[1]) for flag in flags]
        done = run("--config.file", file, *flags)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("modus-exporter: ")
    assert len(done.stderr.splitlines()) == 1
    assert flags[0] in done.stderr or flags[1] in done.stderr
    assert not (tmp_path / "state").exists()


def test_the_check_judges_the_flags_too_but_takes_no_port(modus: SimulatedModus, tmp_path: Path) -> None:
    file = config(tmp_path, modus)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run("--config.check", "--config.file", file, "--web.listen-address", address).returncode == 0
    wrong = run("--config.check", "--config.file", file, "--web.listen-address", "nowhere")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--web.listen-address" in wrong.stderr


def test_a_second_exporter_on_one_state_file_or_address_is_refused_with_one_line(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    file = Path(config(tmp_path, modus))
    file.write_text(file.read_text().replace("path: null", f"path: '{tmp_path}/state.db'"))
    with exporter(tmp_path, "--config.file", str(file)) as first:
        second = run("--config.file", str(file), "--web.listen-address", "127.0.0.1:0")
        assert second.returncode == 1
        assert second.stderr.startswith(f"modus-exporter: {tmp_path}/state.db: ")
        assert len(second.stderr.splitlines()) == 1

        address = first.url.removeprefix("http://")
        third = run("--demo", "--web.listen-address", address)
        assert third.returncode == 1
        (*log, line) = third.stderr.splitlines()
        assert line.startswith("modus-exporter: ")
        assert address in line
        assert [each for each in log if not each.startswith("time=")] == []


@pytest.mark.parametrize("listed", ["agents: [101, 102]", "discovery: {enabled: true}"])
@pytest.mark.parametrize("flag", ["--config.check", "--audit"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_table_at_once_and_is_no_success(
    modus: SimulatedModus, tmp_path: Path, flag: str, listed: str, number: signal.Signals
) -> None:
    file = config(tmp_path, modus, f"{listed}\nstate: {{path: '{tmp_path}/state.db'}}")
    with exporter(tmp_path, "--config.file", file) as running:
        running.scrape()
    asked, release = threading.Event(), threading.Event()

    def hang(request: Request) -> None:
        asked.set()
        release.wait(60)

    modus.fault = hang
    command = [sys.executable, "-m", "exporter", flag, "--config.file", file]
    with ended(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)) as check:
        assert asked.wait(60)
        check.send_signal(number)
        assert check.wait(5) == 128 + number  # a request may take ten seconds
        assert check.stderr is not None
        assert check.stderr.read() == ""
    release.set()


LOADING = """
import os, runpy, signal, sys
class Loading:
    def find_spec(self, name, *_):
        if name == "exporter.cli":
            os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Loading())
sys.argv = ["modus-exporter", "--version"]
{start}
"""


@pytest.mark.parametrize(
    "start",
    [
        "runpy.run_module('exporter', run_name='__main__', alter_sys=True)",
        "from exporter.__main__ import run; run()",
    ],
    ids=["module", "script"],
)
@pytest.mark.parametrize(("name", "goes_on"), [("SIGHUP", True), ("SIGTERM", False), ("SIGINT", False)])
def test_a_signal_while_the_modules_load_is_as_one_before_it_listens(
    name: str, goes_on: bool, start: str
) -> None:
    program = LOADING.format(name=name, start=start)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("modus-exporter 0") is goes_on


HALF_MADE = """
import os, signal, sys
from exporter import cli
class Half:
    def __del__(self):
        raise AttributeError("not made whole")
def in_the_middle(args, stack):
    half = Half()
    os.kill(os.getpid(), signal.SIGTERM)
cli._run = in_the_middle
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("flags", "code"), [([], 0), (["--demo"], 0), (["--state.import=state.db"], 128 + signal.SIGTERM)]
)
def test_what_a_signal_leaves_half_made_does_not_complain(flags: list[str], code: int) -> None:
    command = [sys.executable, "-c", HALF_MADE, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_a_log_names_no_token(modus: SimulatedModus, tmp_path: Path) -> None:
    modus.token = "modus_pat_secret"  # noqa: S105
    file = config(tmp_path, modus)
    modus.token = "another"  # noqa: S105
    running = Exporter(tmp_path, "--config.file", file, "--log.level", "debug")
    shown = running.exposition()
    assert "modus_exporter_scrape_complete 0.0" in shown
    assert "modus_up 1.0" in shown  # a refusal is an answer
    assert running.stop() == 0
    assert "401" in running.said()
    assert "secret" not in running.said()


# --- what goes wrong: one line that says what, where and what to do ---


def said(*flags: str, directory: Path, **env: str) -> tuple[int, str]:
    """Exit code and the one line that it says, in an empty directory and on no terminal."""
    command = [sys.executable, "-m", "exporter", *flags]
    env = {"PATH": "", "PYTHONPATH": str(ROOT), **env}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=directory, env=env)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("time=")]
    assert len(lines) == 1, lines
    return done.returncode, lines[0].removeprefix("modus-exporter: ")


def test_without_key_and_file_the_line_names_all_three_ways_to_start(tmp_path: Path) -> None:
    for flags in ([], ["--config.check"], ["--audit"]):
        code, line = said(*flags, directory=tmp_path)
        assert code == 2
        assert line == "no configuration: set MODUS_API_KEY, name a file with --config.file, or try --demo"


KEY = {"MODUS_API_KEY": "modus_pat_key"}
AWAY = {**KEY, "MODUS_BASE_URL": "http://127.0.0.1:9"}


NOT_LISTED = "the agents cannot be listed: GET"
DEFAULTS = "without a configuration file: modus"
MISTAKES = [
    (
        ["--audit"],
        AWAY,
        1,
        "{cwd}/data/modus-exporter.db: there is no state file yet: "
        "start the exporter first, or check state.path",
    ),
    (
        ["--audit", "--demo"],
        {},
        2,
        "--audit: the demo keeps nothing that could be compared; see modus-exporter --help",
    ),
    (
        ["--config.check"],
        AWAY,
        1,
        f"{NOT_LISTED} http://127.0.0.1:9/api/v1/agents: connection refused: "
        "check modus.base_url, the network and the proxy",
    ),
    (
        ["--config.check"],
        {**KEY, "https_proxy": "http://u:hidden@127.0.0.1:9"},
        1,
        f"{NOT_LISTED} https://api.getmodus.com/api/v1/agents: the proxy 127.0.0.1:9: connection refused: "
        "check https_proxy and http_proxy",
    ),
    (
        ["--config.check"],
        {**KEY, "https_proxy": "socks5://127.0.0.1:9"},
        1,
        "SOCKS proxies are not supported: name an HTTP proxy in https_proxy",
    ),
    (
        ["--config.check"],
        {**KEY, "MODUS_BASE_URL": "api.getmodus.com"},
        2,
        DEFAULTS + ".base_url: expected an http(s) URL: write https:// in front, got ${{MODUS_BASE_URL}}",
    ),
    (
        ["--config.check"],
        {**KEY, "SSL_CERT_FILE": "/no/such.pem"},
        1,
        "cannot read the CA bundle /no/such.pem: No such file or directory: check SSL_CERT_FILE",
    ),
    (
        ["--config.check"],
        {"MODUS_API_KEY": "one\ntwo"},
        2,
        DEFAULTS + ".token: expected text without control characters, got ${{MODUS_API_KEY}}",
    ),
    (
        ["--config.check"],
        {"MODUS_API_KEY": "Bearer x"},
        2,
        DEFAULTS + ".token: expected a token in printable ASCII without spaces, got ${{MODUS_API_KEY}}",
    ),
    (["--config.file", "."], KEY, 2, ".: cannot read the file: Is a directory"),
    (["--web.config.file", "."], KEY, 2, ".: cannot read the file: it is not a regular file"),
    (
        [],
        {"MODUS_EXPORTER_SHARD": "x"},
        2,
        "MODUS_EXPORTER_SHARD: argument --shard: expected a whole number from 0 on, got 'x'; "
        "see modus-exporter --help",
    ),
]


@pytest.mark.parametrize(("flags", "env", "code", "line"), MISTAKES, ids=[line for *_, line in MISTAKES])
def test_a_mistake_that_newcomers_make_is_one_line(
    tmp_path: Path, flags: list[str], env: dict[str, str], code: int, line: str
) -> None:
    assert said(*flags, directory=tmp_path, **env) == (code, line.format(cwd=tmp_path))


def test_a_time_frame_that_the_api_refuses_is_found_by_the_check(
    modus: SimulatedModus, tmp_path: Path
) -> None:
    modus.fault = lambda request: modus.error(400) if request.query.get("timeframe") else None
    file = config(tmp_path, modus, "agents: [101]\nruns: {timeframe: last_dya}")
    done = run("--config.check", "--config.file", file)
    assert done.returncode == 1
    assert done.stdout.splitlines()[1].endswith(": the API refuses what is asked: check runs.timeframe")


def test_a_base_url_with_the_apis_own_path_is_understood(modus: SimulatedModus, tmp_path: Path) -> None:
    file = Path(config(tmp_path, modus))
    for path in ("/api", "/api/v1", "/api/v1/"):
        file.write_text(f"modus: {{base_url: '{modus.url}{path}', token: demo}}\nagents: [101]\n")
        assert run("--config.check", "--config.file", str(file)).returncode == 0
