"""What Helm makes of the chart: skipped as a whole where there is no helm."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.chart import CHART, MANIFEST, ROOT, against_restricted, pod, variables

HELM = shutil.which("helm") or pytest.skip("helm is not on PATH", allow_module_level=True)

CLAIM = {"claimName": "mine"}
EXTRA = {"name": "ca", "configMap": {"name": "company-ca"}}
MOUNT = {"name": "ca", "mountPath": "/etc/company", "readOnly": True}
MONITORED = {"enabled": True, "labels": {"release": "kube-prometheus-stack"}}
PASSWORD = {"username": {"name": "scraper", "key": "user"}, "password": {"name": "scraper", "key": "word"}}
CA = {"ca": {"secret": {"name": "modus-tls", "key": "ca.crt"}}}


def helm(values: Any) -> "subprocess.CompletedProcess[str]":
    """What `helm template` makes of the chart with these values."""
    command = [HELM, "template", "modus-exporter", str(CHART), "--values", "-"]
    return subprocess.run(command, input=yaml.safe_dump(values), capture_output=True, text=True, check=False)


def render(**values: Any) -> dict[str, Any]:
    """The objects by kind; of the dashboards' ConfigMaps the last one is there as `Dashboard`."""
    run = helm(values)
    assert run.returncode == 0, run.stderr
    documents = [document for document in yaml.safe_load_all(run.stdout) if document]
    return {
        "Dashboard"
        if any(name.endswith(".json") for name in document.get("data", {}))
        else document["kind"]: document
        for document in documents
    }


def test_the_manifest_is_that_of_the_default_values() -> None:
    rendered = render()
    for document in [*rendered.values(), rendered["StatefulSet"]["spec"]["template"]]:
        document["metadata"]["labels"].pop("app.kubernetes.io/managed-by")
    assert rendered == MANIFEST


@pytest.mark.parametrize(
    ("values", "where", "expected"),
    [
        ({"podSecurityContext": {"fsGroup": 7}}, "securityContext.fsGroup", 7),
        ({"podSecurityContext": {"runAsUser": None}}, "securityContext.runAsUser", None),  # OpenShift
        ({"securityContext": {"runAsUser": 7}}, "containers.0.securityContext.runAsUser", 7),
        ({"priorityClassName": "high"}, "priorityClassName", "high"),
        ({"extraArgs": ["--log.format=json"]}, "containers.0.args", ["--log.format=json"]),
        ({"extraEnv": [{"name": "A", "value": "b"}]}, "containers.0.env.-1", {"name": "A", "value": "b"}),
        ({"extraVolumes": [EXTRA]}, "volumes.-1", EXTRA),
        ({"extraVolumeMounts": [MOUNT]}, "containers.0.volumeMounts.-1", MOUNT),
        ({"persistence": {"enabled": False}}, "volumes.-1", {"name": "state", "emptyDir": {}}),
        ({"persistence": {"existingClaim": "mine"}}, "volumes.-1.persistentVolumeClaim", CLAIM),
        ({"livenessProbe": None}, "containers.0.livenessProbe", None),
        ({"startupProbe": {"periodSeconds": 2}}, "containers.0.startupProbe.httpGet.path", "/-/healthy"),
        ({"readinessProbe": {"exec": {"command": ["x"]}}}, "containers.0.readinessProbe.httpGet", None),
        (
            {"livenessProbe": {"httpGet": {"path": "/modus/-/healthy"}}},
            "containers.0.livenessProbe.httpGet",
            {"path": "/modus/-/healthy", "port": "metrics", "scheme": "HTTP"},
        ),
        ({"shards": 3}, "containers.0.env.2.value", "3"),
        ({"serviceAccount": {"create": False}}, "serviceAccountName", "default"),
    ],
)
def test_a_value_comes_out_where_the_pod_has_it(values: Any, where: str, expected: object) -> None:
    made = found = pod(render(**values))
    for name in where.split("."):
        found = found[int(name)] if isinstance(found, list) else found.get(name)
    assert found == expected
    assert against_restricted(made) == []


@pytest.mark.parametrize(
    ("persistence", "claims"),
    [
        ({"enabled": False}, None),
        ({"existingClaim": "mine"}, None),
        ({"storageClassName": "fast"}, {"storageClassName": "fast"}),
        ({"storageClassName": "-"}, {"storageClassName": ""}),
        ({}, {}),
    ],
)
def test_the_state_is_in_the_volume_that_the_values_say(persistence: Any, claims: Any) -> None:
    spec = render(persistence=persistence)["StatefulSet"]["spec"]
    if claims is None:
        assert "volumeClaimTemplates" not in spec
    else:
        [claim] = spec["volumeClaimTemplates"]
        assert {key: claim["spec"][key] for key in claim["spec"] if key == "storageClassName"} == claims


def test_labels_and_annotations_are_on_every_object_and_cannot_move_a_selector() -> None:
    everywhere = {"team": "agents", "app.kubernetes.io/name": "other"}
    rendered = render(
        commonLabels=everywhere,
        commonAnnotations={"owner": "us"},
        annotations={"on": "statefulset"},
        podLabels={"on": "pod", "app.kubernetes.io/instance": "other"},
        podAnnotations={"on": "pod"},
        service={"labels": {"on": "service"}, "annotations": {"on": "service"}},
        serviceAccount={"annotations": {"on": "account"}},
        networkPolicy={"annotations": {"on": "policy"}},
        persistence={"labels": {"on": "claim"}, "annotations": {"on": "claim"}},
        serviceMonitor={"enabled": True, "labels": {"on": "monitor"}, "annotations": {"on": "monitor"}},
        prometheusRule={"enabled": True, "labels": {"on": "rule"}, "annotations": {"on": "rule"}},
        dashboards={"enabled": True, "labels": {"on": "dashboard"}, "annotations": {"on": "dashboard"}},
    )
    metadata = {kind: document["metadata"] for kind, document in rendered.items()}
    spec = rendered["StatefulSet"]["spec"]
    metadata["Pod"] = spec["template"]["metadata"]
    for each in metadata.values():
        assert each["labels"]["team"] == "agents"
        assert each["annotations"]["owner"] == "us"
    assert {kind: each["annotations"]["on"] for kind, each in metadata.items() if kind != "ConfigMap"} == {
        "StatefulSet": "statefulset",
        "Pod": "pod",
        "Service": "service",
        "ServiceAccount": "account",
        "NetworkPolicy": "policy",
        "ServiceMonitor": "monitor",
        "PrometheusRule": "rule",
        "Dashboard": "dashboard",
    }
    labelled = {kind: each["labels"]["on"] for kind, each in metadata.items() if "on" in each["labels"]}
    assert labelled.keys() == {"Pod", "Service", "ServiceMonitor", "PrometheusRule", "Dashboard"}
    assert spec["volumeClaimTemplates"][0]["metadata"] == {
        "name": "state",
        "labels": {"on": "claim"},
        "annotations": {"on": "claim"},
    }
    assert spec["selector"]["matchLabels"].items() <= metadata["Pod"]["labels"].items()


@pytest.mark.parametrize(
    ("values", "scheme", "probe"),
    [
        ({}, "http", "HTTP"),
        ({"webConfig": {"secretName": "web"}}, "https", "HTTPS"),
        ({"webConfig": {"secretName": "web", "tls": False}}, "http", "HTTP"),
        ({"serviceMonitor": {"scheme": "https", "tlsConfig": CA}}, "https", "HTTP"),
        # the kubelet has neither password nor certificate
        ({"webConfig": {"secretName": "web"}, "serviceMonitor": {"basicAuth": PASSWORD}}, "https", None),
        (
            {"webConfig": {"secretName": "web"}, "serviceMonitor": {"tlsConfig": {"cert": {}, **CA}}},
            "https",
            "HTTPS",
        ),
        (
            {"webConfig": {"secretName": "web"}, "serviceMonitor": {"tlsConfig": {"cert": CA["ca"], **CA}}},
            "https",
            None,
        ),
    ],
)
def test_a_web_configuration_switches_probes_and_servicemonitor(
    values: Any, scheme: str, probe: str | None
) -> None:
    values = {**values, "serviceMonitor": {"enabled": True, **values.get("serviceMonitor", {})}}
    rendered = render(**values)
    [endpoint] = rendered["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["scheme"] == scheme
    assert endpoint.get("tlsConfig", {}).get("serverName") == (
        "modus-exporter.default.svc" if scheme == "https" else None
    )
    assert endpoint.get("basicAuth") == values["serviceMonitor"].get("basicAuth")
    [container] = pod(rendered)["containers"]
    for each in (container["livenessProbe"], container["readinessProbe"]):
        assert each.get("httpGet", {}).get("scheme") == probe
        assert ("tcpSocket" in each) == (probe is None)
    given = "webConfig" in values
    file = variables(container).get("MODUS_EXPORTER_WEB_CONFIG_FILE")
    assert file == ("/etc/modus-exporter-web/web.yml" if given else None)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "web-config"]
    assert mounts == (["/etc/modus-exporter-web"] if given else [])


@pytest.mark.parametrize(
    ("interval", "timeout"),
    [("30s", "25s"), ("1m", "50s"), ("1m30s", "75s"), ("45s", "37500ms"), ("1h", "3000s")],
)
def test_the_scrape_timeout_follows_the_interval(interval: str, timeout: str) -> None:
    monitor = render(serviceMonitor={"enabled": True, "interval": interval})["ServiceMonitor"]
    [endpoint] = monitor["spec"]["endpoints"]
    assert (endpoint["interval"], endpoint["scrapeTimeout"]) == (interval, timeout)


def test_the_default_scrape_timeout_is_that_of_prometheus_yml() -> None:
    original = yaml.safe_load((ROOT / "prometheus/prometheus.yml").read_text())
    [endpoint] = render(serviceMonitor=MONITORED)["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["scrapeTimeout"] == original["global"]["scrape_timeout"]


def test_the_servicemonitor_relabels_as_told_after_job_and_instance() -> None:
    own = {"targetLabel": "cluster", "replacement": "prod"}
    drop = {"action": "drop", "sourceLabels": ["__name__"], "regex": "python_.*"}
    monitor = render(serviceMonitor={**MONITORED, "relabelings": [own], "metricRelabelings": [drop]})
    [endpoint] = monitor["ServiceMonitor"]["spec"]["endpoints"]
    assert [each["targetLabel"] for each in endpoint["relabelings"]] == ["job", "instance", "cluster"]
    assert endpoint["metricRelabelings"] == [drop]


def test_the_rules_have_the_limits_labels_and_addresses_of_the_values() -> None:
    rule = {
        "enabled": True,
        "additionalRuleLabels": {"team": "agents"},
        "grafanaUrl": "https://grafana.example.com/",
        "runbookUrl": "https://wiki.example.com/modus",
        "thresholds": {"stuck_after_seconds": 4321},
    }
    groups = render(prometheusRule=rule)["PrometheusRule"]["spec"]["groups"]
    alerts = {each["alert"]: each for group in groups for each in group["rules"] if "alert" in each}
    for alert in alerts.values():
        assert alert["labels"]["team"] == "agents"
        assert alert["annotations"]["runbook_url"].startswith("https://wiki.example.com/modus/")
        assert re.match(r"https://grafana\.example\.com/\w", alert["annotations"]["dashboard_url"])
    assert re.search(r"\b4321\b", alerts["ModusAgentRunStuck"]["expr"])


def test_the_rules_are_those_of_prometheus_rules() -> None:
    settings = yaml.safe_load((ROOT / "prometheus/settings.yaml").read_text())
    rule = {"enabled": True, "grafanaUrl": settings["grafana_url"]}
    original = yaml.safe_load((ROOT / "prometheus/rules/modus.yml").read_text())
    assert render(prometheusRule=rule)["PrometheusRule"]["spec"] == original


def test_without_an_address_of_grafana_alerts_have_no_link_to_it() -> None:
    groups = render(prometheusRule={"enabled": True})["PrometheusRule"]["spec"]["groups"]
    assert "dashboard_url" not in json.dumps(groups)


def test_the_network_policy_lets_out_to_the_dns_ports_and_the_api_alone() -> None:
    policy = render(networkPolicy={"dnsPorts": [53, 5353], "apiPort": 3128})["NetworkPolicy"]["spec"]
    names, api = policy["egress"]
    assert [(each["port"], each["protocol"]) for each in names["ports"]] == [
        (53, "UDP"),
        (53, "TCP"),
        (5353, "UDP"),
        (5353, "TCP"),
    ]
    assert api == {"ports": [{"port": 3128}]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"config": {"modus": {"token": "modus_pat_x"}}},
            "config.modus.token: everybody who may read ConfigMaps",
        ),
        (
            {"config": {"modus": {"token_file": "/x"}}},
            "config.modus.token_file: the Secret of token.secretName",
        ),
        ({"token": {"secretName": ""}}, "token.secretName: name the Secret with the API token"),
        ({"config": {"state": {"path": "/x"}}}, "config.state: the chart says where the state is"),
        (
            {"shards": 2, "persistence": {"existingClaim": "x"}},
            "one claim cannot hold the state of several shards",
        ),
        (
            {"persistence": {"enabled": False, "existingClaim": "x"}},
            "persistence.existingClaim: it is not used",
        ),
        (
            {"serviceMonitor": {"scrapeTimeout": "1m"}},
            "serviceMonitor.scrapeTimeout: 1m is more than the interval, 30s",
        ),
        ({"serviceMonitor": {"tlsConfig": CA}}, "serviceMonitor.tlsConfig: the exporter is scraped by http"),
        ({"shards": 0}, "shards"),
        ({"persistence": {"size": "5GB"}}, "size"),
        ({"podLabels": {"on": True}}, "podLabels"),
        ({"serviceMonitor": {"interval": "30"}}, "interval"),
        ({"serviceMonitor": {"basicAuth": {"password": {"name": "x"}}}}, "key"),
        ({"prometheusRule": {"thresholds": {"stuck": 1}}}, "stuck"),
        ({"config": {"run": {}}}, "run"),
        ({"replica": 2}, "replica"),
    ],
)
def test_values_that_cannot_work_are_refused_with_their_name(values: Any, message: str) -> None:
    run = helm(values)
    assert run.returncode != 0
    assert message in run.stderr
    assert "modus_pat_x" not in run.stderr


SHARED = {
    "replicas": 3,
    "state": {"url": "postgresql://modus@db/modus?sslmode=require", "passwordSecret": {"name": "db"}},
}


def test_exporters_that_share_a_database_are_a_deployment_without_a_volume_of_their_own() -> None:
    rendered = render(**SHARED)
    deployment = rendered["Deployment"]
    assert "StatefulSet" not in rendered
    assert deployment["spec"]["replicas"] == 3
    made = deployment["spec"]["template"]["spec"]
    assert {volume["name"] for volume in made["volumes"]} == {"config", "token", "database"}
    assert (
        not {"MODUS_EXPORTER_SHARD", "MODUS_EXPORTER_TOTAL_SHARDS"} & variables(made["containers"][0]).keys()
    )
    config = yaml.safe_load(rendered["ConfigMap"]["data"]["config.yaml"])
    [mount] = [m for m in made["containers"][0]["volumeMounts"] if m["name"] == "database"]
    assert config["state"] == {
        "url": "postgresql://modus@db/modus?sslmode=require",
        "password_file": f"{mount['mountPath']}/password",
    }
    assert against_restricted(made) == []


def test_one_of_them_at_a_time_may_be_evicted_and_the_database_may_be_reached() -> None:
    rendered = render(**SHARED)
    budget = rendered["PodDisruptionBudget"]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == rendered["Deployment"]["spec"]["selector"]
    ports = [port for rule in rendered["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]]
    assert {"port": 5432} in ports
    assert "PodDisruptionBudget" not in render()


def test_the_series_of_an_agent_are_the_same_whichever_of_them_reads_it() -> None:
    monitor = render(serviceMonitor={"enabled": True}, **SHARED)["ServiceMonitor"]
    [endpoint] = monitor["spec"]["endpoints"]
    rules = {rule["targetLabel"]: rule for rule in endpoint["metricRelabelings"]}
    assert {label: rule["replacement"] for label, rule in rules.items()} == {
        "instance": "modus-exporter",
        "pod": "",
        "container": "",
    }
    for rule in rules.values():
        matches = re.compile(rule["regex"]).fullmatch
        assert matches("modus_agent_runs_finished_total")
        assert not matches("modus_exporter_agents")
        assert re.compile(rule["regex"]).groups == 0
    assert (
        "metricRelabelings"
        not in render(serviceMonitor={"enabled": True})["ServiceMonitor"]["spec"]["endpoints"][0]
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replicas": 2}, "replicas: several exporters need state.url"),
        ({"shards": 2, "state": {"url": "postgresql://modus@db/modus"}}, "shards: exporters with state.url"),
        ({"state": {"url": "postgresql://modus:secret@db/modus"}}, "put it into a Secret"),
        ({"state": {"url": "mysql://modus@db/modus"}}, "state"),
    ],
)
def test_what_does_not_go_together_with_a_database_is_refused(values: Any, said: str) -> None:
    run = helm(values)
    assert run.returncode
    assert said in run.stderr


def test_a_password_may_come_from_a_variable() -> None:
    render(state={"url": "postgresql://modus:${DATABASE_PASSWORD}@db/modus"})
