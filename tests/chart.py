"""The Helm chart, the manifest that is made of it, and what Kubernetes sees in them."""

import re
from pathlib import Path
from typing import Any

import yaml

from exporter.cli import _parser

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy/helm/modus-exporter"
FLAG_VARIABLES = {
    "MODUS_EXPORTER_" + re.sub("[.-]", "_", option.lstrip("-")).upper()
    for action in _parser()._actions
    for option in action.option_strings
}
MANIFEST = {
    document["kind"]: document
    for document in yaml.safe_load_all((ROOT / "deploy/kubernetes/modus-exporter.yaml").read_text())
}


def pod(manifest: Any = MANIFEST) -> Any:
    """What a pod of the StatefulSet is made of."""
    return manifest["StatefulSet"]["spec"]["template"]["spec"]


def variables(container: Any) -> dict[str, Any]:
    """The environment of a container by name."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def against_restricted(pod: Any) -> list[str]:
    """What of a pod the Pod Security Standard "restricted" forbids."""
    wrong = [f"{name}: true" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"}
    kinds = {kind for volume in pod["volumes"] for kind in volume.keys() - {"name"}}
    wrong += sorted(kinds - allowed - {"projected", "secret"})
    for container in pod["containers"]:
        own = {**pod["securityContext"], **container["securityContext"]}
        must = {
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "privileged": not own.get("privileged"),
            "runAsNonRoot": own.get("runAsNonRoot") is True,
            "runAsUser": own.get("runAsUser") != 0,
            "seccompProfile": own.get("seccompProfile") == {"type": "RuntimeDefault"},
            "hostPort": not any("hostPort" in port for port in container["ports"]),
        }
        wrong += [name for name, kept in must.items() if not kept]
    return wrong
