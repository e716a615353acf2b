"""The choices above every dashboard, and the marks that firing alerts leave on its graphs."""

from panels import (
    DATASOURCE,
    RED,
    Json,
)
from queries import JOB


def _variable(
    name: str,
    label: str,
    description: str,
    query: str,
    regex: str = "",
    all_value: str | None = ".*",
    include_all: bool = True,
) -> Json:
    """A choice of several: All at first, or without All the first one.

    `all_value` is what All stands for in a query; None: for the values that there are.
    """
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
        "includeAll": include_all,
        "allValue": all_value if include_all else None,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]} if include_all else {},
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
        _variable("cluster", "Cluster", "Clusters", "label_values(modus_up, cluster)"),
        _variable(
            "namespace",
            "Namespace",
            "Namespaces of the clusters",
            f"label_values(modus_up{{{cluster}}}, namespace)",
        ),
        _variable(
            "job",
            "Job",
            "Scrape jobs of modus-exporter",
            f"label_values(modus_up{{{cluster},{namespace}}}, job)",
            all_value=None,  # `up` and `process_...` are there for every other job too
        ),
        _variable("agent", "Agent", "Agents by name", agents, id_and_name, ".+", include_all=all_agents),
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
