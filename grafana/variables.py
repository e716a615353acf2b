"""The choices above every dashboard, and the marks that firing alerts leave on its graphs."""

from panels import DATASOURCE, RED, Json
from queries import JOB


def _variable(
    name: str, label: str, description: str, query: str, regex: str = "", all_value: str = ".+"
) -> Json:
    """A choice of several, All at first; with `all_value` empty one must be chosen, the first at first."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "description": description,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "regex": regex,
        "refresh": 2,  # when the time range changes
        "sort": 5,  # by text, ignoring case
        "multi": True,
        "includeAll": bool(all_value),
        "allValue": all_value or None,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]} if all_value else {},
        "options": [],
        "hide": 0,
    }


def variables(all_agents: bool) -> list[Json]:
    """Data source, then cluster, namespace and job, then agent: its value is the id, its text the name.

    Clusters and namespaces are those of a Prometheus that has such labels; `.*` also finds what has none.
    """
    datasource = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "description": "The Prometheus that scrapes modus-exporter",
        "query": "prometheus",
        "current": {},
        "options": [],
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
    }
    cluster, namespace = 'cluster=~"$cluster"', 'namespace=~"$namespace"'
    agents = f"query_result(max by (agent_id, agent_name) (modus_agent_info{{{JOB}}}))"
    # Grafana writes a result as {agent_id="1",agent_name="A "name""} 1 1700000000000: quotes are not escaped.
    id_and_name = r'/^\{agent_id="(?<value>[^"]*)",agent_name="(?<text>[\s\S]*)"\} [^"}]*$/'
    return [
        datasource,
        _variable("cluster", "Cluster", "Clusters", "label_values(modus_up, cluster)", all_value=".*"),
        _variable(
            "namespace",
            "Namespace",
            "Namespaces of the clusters",
            f"label_values(modus_up{{{cluster}}}, namespace)",
            all_value=".*",
        ),
        _variable(
            "job",
            "Job",
            "Scrape jobs of modus-exporter",
            f"label_values(modus_up{{{cluster},{namespace}}}, job)",
        ),
        _variable("agent", "Agent", "Agents by name", agents, id_and_name, ".+" if all_agents else ""),
    ]


def annotations() -> list[Json]:
    """Firing alerts: those of the selected agents, and those about no agent at all."""
    alerts = f'ALERTS{{alertstate="firing",alertname=~"Modus.+",{JOB},agent_id=~"$agent|"}}'
    firing = {
        "name": "Firing alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": RED,
        "expr": f"max by (alertname, severity, agent_name) ({alerts})",
        "step": "60s",
        "titleFormat": "{{alertname}}",
        "textFormat": "{{agent_name}}",
        "tagKeys": "severity",
    }
    return [firing]
