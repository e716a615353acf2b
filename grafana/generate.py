"""Writes the dashboards: run `make mixin` after a change and commit what it wrote.

Classic dashboard schema, version 41: what file provisioning accepts. A dashboard is a module with TITLE,
DESCRIPTION and panels(); queries.py has the definitions, panels.py the building blocks, looks.py the colours.
A panel draws at most a few agents, however many are selected; only the fleet's table lists them all.
"""

import json
from types import ModuleType

import agent_dashboard
import cost_dashboard
import exporter_dashboard
import fleet_dashboard
from panels import Json
from settings import write
from variables import annotations, variables

DASHBOARDS: dict[str, ModuleType] = {
    "fleet": fleet_dashboard,
    "agent": agent_dashboard,
    "cost": cost_dashboard,
    "exporter": exporter_dashboard,
}


def dashboard(name: str) -> Json:
    """One of DASHBOARDS in the classic schema."""
    this = DASHBOARDS[name]
    links = [
        {
            "type": "link",
            "title": other.TITLE,
            "url": f"/d/modus-{uid}",
            "icon": "dashboard",
            "keepTime": True,
            "includeVars": True,
            "asDropdown": False,
            "targetBlank": False,
            "tags": [],
            "tooltip": other.DESCRIPTION,
        }
        for uid, other in DASHBOARDS.items()
        if other is not this
    ]
    return {
        "uid": f"modus-{name}",
        "title": this.TITLE,
        "description": this.DESCRIPTION,
        "tags": ["modus"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # the crosshair is shared by all panels
        "refresh": "1m",
        "timezone": "browser",
        "time": {"from": "now-24h", "to": "now"},
        "templating": {"list": variables(all_agents=name != "agent")},
        "annotations": {"list": annotations()},
        "links": links,
        "panels": this.panels(),
    }


def generate() -> dict[str, str]:
    """The text of each file, by its name."""
    return {
        f"{name}.json": json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"
        for name in DASHBOARDS
    }


if __name__ == "__main__":
    write("grafana/dashboards", generate())
