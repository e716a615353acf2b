"""The Helm chart, and the plain manifest that is made of it."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from exporter import __version__
from exporter.config import Config, load
from tests.chart import CHART, FLAG_VARIABLES, MANIFEST, ROOT, against_restricted, pod, variables

DASHBOARDS = sorted((ROOT / "grafana/dashboards").glob("*.json"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


# The same files everywhere


def test_the_charts_rules_and_dashboards_are_the_originals() -> None:
    rules = [ROOT / "prometheus/modus.template.yml", ROOT / "prometheus/settings.yaml"]
    original = {path.name: path for path in [*rules, *DASHBOARDS]}
    shipped = {path.name: path for path in (CHART / "files").iterdir()}
    assert {name: path.read_bytes() for name, path in shipped.items()} == {
        name: path.read_bytes() for name, path in original.items()
    }
    assert {name: path.resolve() for name, path in shipped.items()} == original  # links: nothing can drift


def test_the_charts_templates_take_every_one_of_these_files() -> None:
    rules = (CHART / "templates/prometheusrule.yaml").read_text()
    assert re.findall(r'\.Files\.Get "files/([^"]+)"', rules) == ["settings.yaml", "modus.template.yml"]
    assert '.Files.Glob "files/*.json"' in (CHART / "templates/dashboards.yaml").read_text()


def test_the_servicemonitor_scrapes_as_prometheus_yml_does_under_the_job_that_the_rules_know() -> None:
    original = yaml.safe_load((ROOT / "prometheus/prometheus.yml").read_text())
    assert VALUES["serviceMonitor"]["interval"] == original["global"]["scrape_interval"]
    template = (CHART / "templates/servicemonitor.yaml").read_text()
    [job] = [each["job_name"] for each in original["scrape_configs"]]
    assert re.search(rf"- targetLabel: job .*\n +replacement: {job}\n", template)


def test_every_limit_of_the_rules_is_a_value_of_the_chart() -> None:
    settings = yaml.safe_load((ROOT / "prometheus/settings.yaml").read_text())
    thresholds = SCHEMA["properties"]["prometheusRule"]["properties"]["thresholds"]["properties"]
    assert thresholds.keys() == settings.keys() - {"job", "grafana_url", "runbook_url", "modus_agent_url"}


# The manifest


def test_chart_and_manifest_are_of_the_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert pod()["containers"][0]["image"] == f"ghcr.io/modus-exporter/modus-exporter:{__version__}"


def test_the_manifests_configuration_loads_and_its_paths_are_mounted(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(MANIFEST["ConfigMap"]["data"]["config.yaml"])
    config = load(str(path), {})
    mounts = {Path(mount["mountPath"]): mount for mount in pod()["containers"][0]["volumeMounts"]}
    token, state = Path(config.modus.token_file or ""), Path(config.state.path or "")
    assert mounts[token.parent]["readOnly"]
    assert "subPath" not in mounts[token.parent]  # with it, a new token would not show
    assert not mounts[state.parent].get("readOnly")
    assert mounts[state.parent]["name"] in [
        claim["metadata"]["name"] for claim in MANIFEST["StatefulSet"]["spec"]["volumeClaimTemplates"]
    ]


def test_the_pods_index_is_the_shard() -> None:
    [container] = pod()["containers"]
    flags = variables(container)
    assert flags.keys() <= FLAG_VARIABLES
    assert flags["MODUS_EXPORTER_TOTAL_SHARDS"] == str(MANIFEST["StatefulSet"]["spec"]["replicas"])
    path = flags["MODUS_EXPORTER_SHARD"]["fieldRef"]["fieldPath"]
    assert path == "metadata.labels['apps.kubernetes.io/pod-index']"


def test_an_upgrade_changes_nothing_of_the_statefulset_that_kubernetes_lets_nobody_change() -> None:
    """As in 0.1.0, for a release with the name of the manifest."""
    spec = MANIFEST["StatefulSet"]["spec"]
    assert spec["serviceName"] == "modus-exporter"
    assert spec["podManagementPolicy"] == "Parallel"
    assert spec["selector"] == {
        "matchLabels": {
            "app.kubernetes.io/name": "modus-exporter",
            "app.kubernetes.io/instance": "modus-exporter",
        }
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    assert spec["volumeClaimTemplates"] == [{"metadata": {"name": "state"}, "spec": claim}]


def test_the_pod_may_do_nothing_that_it_need_not() -> None:
    assert against_restricted(pod()) == []
    assert pod()["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    assert pod()["automountServiceAccountToken"] is False
    assert MANIFEST["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_chart_takes_every_section_of_the_configuration() -> None:
    assert SCHEMA["properties"]["config"]["properties"].keys() == set(Config.__struct_fields__)


def unknown(values: Any, schema: Any, path: str = "") -> list[str]:
    """The values that the schema refuses by name."""
    if schema.get("additionalProperties") is not False:
        return []
    known = schema["properties"]
    wrong = [path + name for name in values if name not in known]
    inside = [name for name in values if name in known]
    return wrong + [each for name in inside for each in unknown(values[name], known[name], f"{path}{name}.")]


def test_the_values_schema_knows_every_value_and_no_other() -> None:
    assert unknown(VALUES, SCHEMA) == []
    assert SCHEMA["properties"].keys() - VALUES.keys() == {"global"}


def test_every_value_that_the_readme_sets_is_one_of_the_chart() -> None:
    readme = (ROOT / "README.md").read_text()
    names = re.findall(r"--set ([\w.]+)=", readme) + re.findall(r"`([a-z]\w+\.[a-z]+[A-Z]\w+)`", readme)
    assert len(names) >= 10
    for name in names:
        found = VALUES
        for part in name.split("."):
            assert part in found or found == {}, name  # {}: labels and the like, with names of one's own
            found = found.get(part, {})
