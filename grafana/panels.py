"""Panels and variables of Grafana's classic dashboard schema, as plain dictionaries."""

from typing import Any

from queries import JOB

Json = dict[str, Any]
At = tuple[int, int, int, int]  # x, y, width, height on a grid 24 wide
Head = tuple[int, str, str, At]  # id (for good), title, unit, place

# Red: act now. Orange: soon. Green: fine. Blue and purple: neutral. Grey: nothing can be said.
RED, ORANGE, GREEN, BLUE, PURPLE, GREY = "red", "orange", "green", "blue", "purple", "#8e8e8e"
NO_DATA = "No data: is Prometheus scraping modus-exporter?"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
AGENT_LINK = {
    "title": "Details of this agent",
    "url": "/d/modus-agent/modus-agent?${datasource:queryparam}&${cluster:queryparam}"
    "&${namespace:queryparam}&${job:queryparam}&var-agent=${__data.fields.agent_id}&${__url_time_range}",
}
COLOURED_CELL = {"type": "color-background", "mode": "basic"}
COLOURED_TEXT = {"type": "color-text"}
HIDDEN = {"custom__hidden": True, "custom__hideFrom": {"viz": True}}  # Grafana up to 12.1, and from 12.2 on


def thresholds(*steps: tuple[float | None, str]) -> Json:
    """Colours by value, as (from which value, colour); the first is from None."""
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]}


def mapping(*values: tuple[int, str, str]) -> list[Json]:
    """Texts for numbers, as (number, text, colour)."""
    options = {
        str(value): {"index": index, "text": text, "color": colour}
        for index, (value, text, colour) in enumerate(values)
    }
    return [{"type": "value", "options": options}]


def override(name: str, **properties: Any) -> Json:
    """Settings of one series or column, or of those a /regex/ matches; `__` in a key stands for a dot."""
    return {
        "matcher": {"id": "byRegexp" if name.startswith("/") else "byName", "options": name},
        "properties": [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()],
    }


def colours(by_name: dict[str, str]) -> list[Json]:
    """Fixed colours of series."""
    return [override(name, color={"mode": "fixed", "fixedColor": colour}) for name, colour in by_name.items()]


def now(expr: str, legend: str = "") -> Json:
    """A query of the values at the end of the time range."""
    return {"expr": expr, "legendFormat": legend, "instant": True, "range": False}


def over_time(expr: str, legend: str, **more: Any) -> Json:
    """A query of the values over the time range."""
    return {"expr": expr, "legendFormat": legend, "instant": False, "range": True, **more}


def panel(
    kind: str,
    head: Head,
    description: str,
    queries: list[Json],
    overrides: list[Json] | None = None,
    options: Json | None = None,
    interval: str | None = None,
    **defaults: Any,
) -> Json:
    """A panel; `interval` is the least step, `defaults` are the settings of all fields."""
    key, title, unit, (x, y, width, height) = head
    refs = "ABCDEFGHIJ"
    return {
        "id": key,
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "targets": [
            {"refId": refs[index], "datasource": DATASOURCE, **query} for index, query in enumerate(queries)
        ],
        "fieldConfig": {
            "defaults": {"unit": unit, "noValue": NO_DATA, **defaults},
            "overrides": overrides or [],
        },
        "options": options or {},
        **({"interval": interval} if interval else {}),
    }


def stat(
    head: Head, description: str, *queries: Json, steps: Json, text: Json | None = None, **more: Any
) -> Json:
    """Numbers in the colours of their thresholds; `text` are the sizes of names and values, in pixels."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": False,  # several values: names above them, and of a size to read
        "text": text or {"titleSize": 14},
    }
    settings: Json = {"thresholds": steps, "color": {"mode": "thresholds"}, "noValue": "no data", **more}
    grey = {"match": "null", "result": {"index": 99, "text": settings["noValue"], "color": GREY}}
    settings["mappings"] = [*settings.get("mappings", []), {"type": "special", "options": grey}]
    return panel("stat", head, description, list(queries), options=options, **settings)


def graph(
    head: Head,
    description: str,
    *queries: Json,
    limits: Json | None = None,
    bars: bool = False,
    soft_max: float | None = None,
    interval: str = "5m",
    **more: Any,
) -> Json:
    """Lines from zero, or stacked bars of an hour each; `limits` are drawn as dashed lines."""
    custom: Json = {"drawStyle": "line", "lineWidth": 2, "fillOpacity": 0, "showPoints": "auto"}
    if bars:
        interval = "1h"
        custom = {
            "drawStyle": "bars",
            "lineWidth": 0,
            "fillOpacity": 85,
            "barAlignment": -1,
            "stacking": {"mode": "normal", "group": "A"},
        }
    if limits:
        more["thresholds"], custom["thresholdsStyle"] = limits, {"mode": "dashed"}
    if soft_max is not None:
        custom["axisSoftMax"] = soft_max
    options = {
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    settings = {"min": 0, "custom": custom, "color": {"mode": "palette-classic"}, **more}
    return panel(
        "timeseries", head, description, list(queries), options=options, interval=interval, **settings
    )


def table(
    head: Head,
    description: str,
    columns: dict[str, tuple[str, Json]],
    sort: str,
    labels: dict[str, str] | None = None,
    **more: Any,
) -> Json:
    """A row per agent, or per set of `labels` (label: column title).

    `columns` maps a column's title to its query and the settings of its cells. Labels without a title are
    hidden but stay in the data: the link to the agent's dashboard takes agent_id from there, and rows of two
    installations stay two. A label is text, whatever the unit: an id looks like a number.
    """
    labels = labels or {"agent_name": "Agent"}
    hidden = [name for name in ("cluster", "namespace", "job", "agent_id") if name not in labels]
    queries = [{**now(expr), "format": "table"} for expr, _ in columns.values()]
    values = [f"Value #{ref}" for ref in "ABCDEFGHIJ"[: len(columns)]] if len(columns) > 1 else ["Value"]
    cells = [override(name, **settings) for name, (_, settings) in columns.items() if settings]
    first, *others = labels.values()  # the first names the row: it is not to be cut off
    cells += [override(first, unit="string", custom__minWidth=130)]
    cells += [override(title, unit="string") for title in others]
    cells += [override(name, unit="string", **HIDDEN) for name in hidden]
    link = [override("Agent", links=[AGENT_LINK])]
    organize = {
        "excludeByName": {"Time": True},
        "renameByName": labels | dict(zip(values, columns, strict=True)),
        "indexByName": {name: index for index, name in enumerate([*labels, *values, *hidden])},
    }
    settings: Json = {
        "thresholds": thresholds((None, BLUE)),
        "color": {"mode": "thresholds"},
        "custom": {"align": "left", "minWidth": 70},
        **more,
    }
    result = panel(
        "table",
        head,
        description,
        queries,
        overrides=[*cells, *(link if "agent_name" in labels else []), override("/.*/", noValue="-")],
        options={"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": sort, "desc": True}]},
        **settings,
    )
    merge = [{"id": "merge", "options": {}}] if len(columns) > 1 else []
    return result | {"transformations": [*merge, {"id": "organize", "options": organize}]}


def collapsed_row(key: int, title: str, y: int, panels: list[Json]) -> Json:
    """A heading that opens to show its panels."""
    return {
        "id": key,
        "type": "row",
        "title": title,
        "collapsed": True,
        "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
        "panels": panels,
    }


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
