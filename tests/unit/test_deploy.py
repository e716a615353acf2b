"""Image, compose stack, systemd unit and workflows: the original files, nothing loose."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter import __version__
from exporter.cli import _parser
from exporter.config import load
from tests.chart import FLAG_VARIABLES

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
OURS = {name for name, service in COMPOSE.items() if service["image"] == "modus-exporter"}
DOCKERFILE = (ROOT / "Dockerfile").read_text()
UNIT = (ROOT / "deploy/systemd/modus-exporter.service").read_text()
FLAGS = {option for action in _parser()._actions for option in action.option_strings}
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")
}


def flags(arguments: list[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}


# The same files everywhere


@pytest.mark.parametrize(
    ("service", "source", "target"),
    [
        ("exporter", "config.yaml", "/etc/modus-exporter/config.yaml"),
        ("member-1", "deploy/compose/member.yaml", "/etc/modus-exporter/config.yaml"),
        ("member-2", "deploy/compose/member.yaml", "/etc/modus-exporter/config.yaml"),
        ("prometheus", "prometheus/prometheus.yml", "/etc/modus/prometheus.yml"),
        ("prometheus", "prometheus/rules", "/etc/modus/rules"),
        ("alertmanager", "prometheus/alertmanager.yml", "/etc/modus/alertmanager.yml"),
        ("grafana", "grafana/provisioning", "/etc/grafana/provisioning"),
        ("grafana", "grafana/dashboards", "/var/lib/grafana/dashboards/modus"),
    ],
)
def test_the_compose_stack_mounts_the_originals(service: str, source: str, target: str) -> None:
    assert f"./{source}:{target}:ro" in COMPOSE[service]["volumes"]
    assert (ROOT / source).exists()


def test_the_provisioned_dashboards_and_data_source_are_where_the_compose_stack_has_them() -> None:
    provider = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/modus.yaml").read_text())
    [target] = [
        v.split(":")[1] for v in COMPOSE["grafana"]["volumes"] if v.startswith("./grafana/dashboards")
    ]
    assert provider["providers"][0]["options"]["path"] == target
    assert COMPOSE["grafana"]["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"


def compose_prometheus_config() -> Any:
    """prometheus.yml as the container's own command changes it, by the real shell and sed."""
    script = COMPOSE["prometheus"]["entrypoint"][2].replace("$$", "$")
    edit = script.partition("&&\nexec")[0].replace(
        "/etc/modus/prometheus.yml", shlex.quote(str(ROOT / "prometheus/prometheus.yml"))
    )
    edit = edit.replace(">>/prometheus/modus.yml", "").replace(">/prometheus/modus.yml", "")
    return yaml.safe_load(subprocess.run(["sh", "-c", edit], check=True, capture_output=True).stdout)


def test_the_compose_stacks_prometheus_differs_from_the_original_in_its_addresses_only() -> None:
    expected = yaml.safe_load((ROOT / "prometheus/prometheus.yml").read_text())
    [alertmanager] = expected["alerting"]["alertmanagers"]
    [job] = expected["scrape_configs"]
    alertmanager["static_configs"] = [{"targets": ["alertmanager:9093"]}]
    job["static_configs"] = [{"targets": ["exporter:10371"]}]
    expected["rule_files"] = ["/etc/modus/rules/*.yml"]
    made = compose_prometheus_config()
    made["scrape_configs"].pop()  # that of the profile ha
    assert made == expected
    assert {"alertmanager", "exporter"} <= COMPOSE.keys()


# One version, pinned images


@pytest.mark.parametrize("service", sorted(COMPOSE.keys() - OURS))
def test_an_image_of_the_compose_stack_is_pinned_by_version(service: str) -> None:
    assert re.search(r":v?\d+\.\d+(\.\d+)?$", COMPOSE[service]["image"])  # PostgreSQL's have two parts


def test_an_action_of_the_workflows_is_pinned_by_digest_with_its_version_beside_it() -> None:
    workflows = "".join(path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml"))
    actions = re.findall(r"uses: (.+)", workflows)
    assert actions
    pinned = re.compile(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert [action for action in actions if not pinned.fullmatch(action)] == []
    digests = {action.split("@")[0]: set() for action in actions}
    for action in actions:
        digests[action.split("@")[0]].add(action.split("@")[1])
    assert {name: pins for name, pins in digests.items() if len(pins) > 1} == {}


# The image


def test_the_images_base_can_be_chosen_and_is_the_same_for_building_and_running() -> None:
    assert re.match(r"(#.*\n)*ARG BASE=python:3\.\d+-slim", DOCKERFILE)
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.M) == ["${BASE}", "${BASE}"]


def test_the_image_installs_from_the_hash_lock_only() -> None:
    instructions = re.sub(r"^#.*$", "", DOCKERFILE, flags=re.M).replace("\\\n", "")
    [install] = re.findall(r"-m pip [^&\n]* install [^&\n]*", instructions)
    assert {"--require-hashes", "-r requirements.lock"} <= set(
        re.findall(r"--require-hashes|-r \S+", install)
    )
    assert re.findall(r"\bapt|\bcurl\b|\bwget\b", instructions) == []


def test_the_image_runs_the_exporter_itself_without_root() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    user = re.search(r"^USER (\d+):(\d+)$", final, re.M)
    assert user
    assert user.groups() == ("65532", "65532")
    [command] = re.findall(r"^ENTRYPOINT (.*)", final, re.M)
    assert json.loads(command) == [
        "/opt/modus-exporter/bin/modus-exporter"
    ]  # no shell that keeps the signals


def test_arguments_to_the_image_keep_its_configuration() -> None:
    assert not re.search(r"^CMD", DOCKERFILE, re.M)  # arguments would take its place
    variables = dict(re.findall(r"(MODUS_EXPORTER_\w+)=(\S+)", DOCKERFILE))
    assert variables.keys() <= FLAG_VARIABLES
    assert re.search(rf"^COPY config.yaml {variables['MODUS_EXPORTER_CONFIG_FILE']}$", DOCKERFILE, re.M)


def test_the_images_state_can_be_written_by_any_user() -> None:
    [volume] = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.M)
    assert re.search(rf"^RUN install -d -o 65532 -g 0 -m 1777 {volume}$", DOCKERFILE, re.M)
    assert re.search(rf"^WORKDIR {volume}$", DOCKERFILE, re.M)


def test_the_images_health_check_needs_no_shell_and_no_curl() -> None:
    [check] = re.findall(r"HEALTHCHECK .*\\\n +CMD (.*)", DOCKERFILE)
    assert Path(json.loads(check)[0]).name == "python"


def test_the_image_is_built_from_what_the_dockerignore_lets_through() -> None:
    allowed = re.findall(r"^!(\w[\w.]*)", (ROOT / ".dockerignore").read_text(), re.M)
    copied = re.findall(r"^COPY (?!--from)(\S+)", DOCKERFILE, re.M)
    assert sorted(copied) == sorted(allowed)


# Compose


@pytest.mark.parametrize("service", sorted(OURS))
def test_the_compose_exporter_is_as_locked_up_as_it_can_be(service: str) -> None:
    exporter = COMPOSE[service]
    assert exporter["read_only"]
    assert (exporter["cap_drop"], exporter["security_opt"]) == (["ALL"], ["no-new-privileges"])


def test_the_ports_of_the_compose_stack_are_for_this_machine_only() -> None:
    ports = [port for service in COMPOSE.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize("service", sorted(COMPOSE))
def test_every_service_of_the_compose_stack_has_a_health_check(service: str) -> None:
    assert "healthcheck" in COMPOSE[service] or (service in OURS and "\nHEALTHCHECK" in DOCKERFILE)


def test_the_profile_ha_has_exporters_that_share_a_database_and_a_job_for_them() -> None:
    ha = {name for name, service in COMPOSE.items() if service.get("profiles") == ["ha"]}
    assert ha == {"member-1", "member-2", "api", "database"}
    state = load(str(ROOT / "deploy/compose/member.yaml"), {}).state
    assert state.url == "postgresql://modus@database/modus"
    password = COMPOSE["database"]["environment"]["POSTGRES_PASSWORD"]
    assert COMPOSE["member-1"]["environment"] == {"PGPASSWORD": password}
    job = compose_prometheus_config()["scrape_configs"][1]
    assert job["job_name"] == "modus-ha"
    [found] = job["dns_sd_configs"]
    assert COMPOSE["member-1"]["networks"]["default"]["aliases"] == found["names"]
    assert job["metric_relabel_configs"]


@pytest.mark.parametrize(("key", "expected"), [("", "--demo"), ("modus_pat_x", "")])
def test_the_compose_exporter_shows_the_demo_unless_there_is_a_key(key: str, expected: str) -> None:
    _, _, script, name = COMPOSE["exporter"]["entrypoint"]
    told = script.replace("$$", "$").replace("exec modus-exporter", "echo")
    run = subprocess.run(
        ["sh", "-c", told, name], env={"MODUS_API_KEY": key}, check=True, capture_output=True
    )
    assert run.stdout.decode().strip() == expected
    assert b"modus_pat_x" not in run.stdout + run.stderr


# systemd


def setting(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.M)


def test_the_systemd_unit_starts_the_command_with_flags_that_exist() -> None:
    [command] = setting("ExecStart")
    program, *arguments = shlex.split(command)
    assert Path(program).name in re.findall(
        r'^([\w-]+) = "exporter.__main__:run"', (ROOT / "pyproject.toml").read_text(), re.M
    )
    assert arguments
    assert flags(arguments) <= FLAGS


def test_the_systemd_unit_hands_over_the_token_as_the_credential_that_its_example_reads() -> None:
    [credential] = setting("LoadCredential")
    assert f"${{CREDENTIALS_DIRECTORY}}/{credential.partition(':')[0]}" in UNIT


def test_the_systemd_unit_leaves_proc_stat_readable_for_the_process_metrics() -> None:
    assert setting("ProcSubset") == []
    assert setting("DynamicUser") == ["yes"]
    assert setting("WorkingDirectory") == [f"%S/{setting('StateDirectory')[0]}"]


# Releases


def test_the_changelog_has_a_dated_entry_for_the_version() -> None:
    assert re.search(
        rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def test_a_release_goes_to_pypi_as_a_trusted_publisher_with_attestations_and_without_a_secret() -> None:
    pypi = WORKFLOWS["release.yml"]["jobs"]["pypi"]
    assert pypi["permissions"] == {"id-token": "write"}
    assert pypi["environment"]["name"] == "pypi"
    assert pypi["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert pypi["steps"][-1]["with"] == {"attestations": True}
    assert "secrets." not in json.dumps(pypi)


def test_the_image_and_the_chart_of_a_release_are_signed_by_digest() -> None:
    image = WORKFLOWS["release.yml"]["jobs"]["image"]
    assert image["permissions"]["id-token"] == "write"
    signed = re.findall(r"cosign sign --yes (.+)", image["steps"][-1]["run"])
    assert signed == ['"$REGISTRY/modus-exporter@$IMAGE"', '"$REGISTRY/charts/modus-exporter@$CHART"']
    assert image["steps"][-1]["env"] == {
        "IMAGE": "${{ steps.image.outputs.digest }}",
        "CHART": "${{ steps.chart.outputs.digest }}",
    }


def test_what_a_workflow_may_do_is_said_for_each_job_or_is_nothing_but_to_read() -> None:
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] in ({}, {"contents": "read"}), name
        checkouts = [
            step
            for job in workflow["jobs"].values()
            for step in job["steps"]
            if step.get("uses", "").startswith("actions/checkout@")
        ]
        assert all(step["with"]["persist-credentials"] is False for step in checkouts), name
