"""Panels of Grafana's classic dashboard schema, as plain dictionaries."""

from typing import Any

from settings import settings as own_settings

Json = dict[str, Any]
At = tuple[int, int, int, int]  # x, y, width, height on a grid 24 wide; y from the top of the block
Head = tuple[int, str, str, At]  # id (for good), title, unit, place

# Red: act now. Orange: soon. Green: fine. Blue and purple: neutral. Grey: nothing can be said.
RED, ORANGE, GREEN, BLUE, PURPLE, GREY = "red", "orange", "green", "blue", "purple", "#8e8e8e"
NO_DATA = "No data: is Prometheus scraping modus-exporter?"
LABEL_WIDTHS = {"status": 130, "version": 80}  # pixels
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
AGENT_LINK = {
    "title": "Details of this agent",
    "url": "/d/modus-agent/modus-agent?${datasource:queryparam}&${cluster:queryparam}"
    "&${namespace:queryparam}&${job:queryparam}&var-agent=${__data.fields.agent_id}&${__url_time_range}",
}
_IN_MODUS = {
    "title": "This agent in Modus",
    "url": str(own_settings()["modus_agent_url"]).replace("{agent_id}", "${__data.fields.agent_id}"),
    "targetBlank": True,
}
AGENT_LINKS = [AGENT_LINK, *([_IN_MODUS] if _IN_MODUS["url"] else [])]
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


def wide(pixels: int | None, **settings: Any) -> Json:
    """The settings of a column that is so wide; columns without a width share what is left."""
    return settings | ({"custom__width": pixels} if pixels else {})


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


def stat(head: Head, description: str, *queries: Json, steps: Json, rows: bool = False, **more: Any) -> Json:
    """Numbers in the colours of their thresholds: names above them, with `rows` beside them."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "horizontal" if rows else "auto",
        "textMode": "auto",
        "wideLayout": rows,
        "text": {"titleSize": 12, "valueSize": 16} if rows else {"titleSize": 14},  # of a size to read
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
    name_width: int | None = None,
    **more: Any,
) -> Json:
    """A row per agent, or per set of `labels` (label: column title).

    `columns` maps a column's title to its query and the settings of its cells. Labels without a title are
    hidden but stay in the data: the link to the agent's dashboard takes agent_id from there, and rows of two
    installations stay two. A label is text, whatever the unit: an id looks like a number. `name_width` is the
    first column's, in pixels.
    """
    labels = labels or {"agent_name": "Agent"}
    hidden = [name for name in ("cluster", "namespace", "job", "agent_id") if name not in labels]
    queries = [{**now(expr), "format": "table"} for expr, _ in columns.values()]
    values = [f"Value #{ref}" for ref in "ABCDEFGHIJ"[: len(columns)]] if len(columns) > 1 else ["Value"]
    cells = [override(name, **settings) for name, (_, settings) in columns.items() if settings]
    first, *others = labels  # the first names the row
    cells += [override(labels[first], **wide(name_width, unit="string", custom__minWidth=130))]
    cells += [override(labels[label], **wide(LABEL_WIDTHS.get(label), unit="string")) for label in others]
    cells += [override(name, unit="string", **HIDDEN) for name in hidden]
    link = [override("Agent", links=AGENT_LINKS)]
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


def collapsed_row(key: int, title: str, panels: list[Json]) -> list[Json]:
    """A heading that opens to show its panels, as a block of `stacked`."""
    row: Json = {
        "id": key,
        "type": "row",
        "title": title,
        "collapsed": True,
        "gridPos": {"x": 0, "y": 0, "w": 24, "h": 1},
    }
    return [row | {"panels": _lowered(panels, 1)}]


def stacked(*blocks: list[Json]) -> list[Json]:
    """The panels of blocks that lie one below the other; the places in each count from its own top."""
    placed: list[Json] = []
    for block in blocks:
        placed += _lowered(block, max((_bottom(each) for each in placed), default=0))
    return placed


def _bottom(panel: Json) -> int:
    at = panel["gridPos"]
    own: int = at["y"] + at["h"]
    return max([own, *(_bottom(each) for each in panel.get("panels", []))])


def _lowered(panels: list[Json], rows: int) -> list[Json]:
    return [
        each
        | {"gridPos": each["gridPos"] | {"y": each["gridPos"]["y"] + rows}}
        | ({"panels": _lowered(each["panels"], rows)} if "panels" in each else {})
        for each in panels
    ]
