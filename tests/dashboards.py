"""The dashboards' queries as Grafana would send them, for tests that ask a parser or a real Prometheus."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "grafana" / "dashboards"
ALL = ".+"  # the allValue of the variables


def load(name: str) -> dict[str, Any]:
    """A committed dashboard: fleet, agent or exporter."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Its panels, those in collapsed rows too, the rows themselves not."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def substitute(text: str, *, agent: str = ALL, job: str = ALL, time_range: str = "1h") -> str:
    """The text with Grafana's variables replaced; several agents are `(101|102)`, as Grafana writes them.

    `time_range` is the length of the dashboard's time range as a Prometheus duration.
    """
    values = {"agent": agent, "job": job, "__range": time_range, "__rate_interval": "2m"}
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values[match[1]], text)


def queries(dashboard: dict[str, Any], agent: str = ALL, time_range: str = "1h") -> list[tuple[str, str]]:
    """(panel title, query) of every panel and of the annotations."""
    found = [(panel["title"], target["expr"]) for panel in panels(dashboard) for target in panel["targets"]]
    found += [(each["name"], each["expr"]) for each in dashboard["annotations"]["list"]]
    return [(title, substitute(expr, agent=agent, time_range=time_range)) for title, expr in found]


def variable_queries(dashboard: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(variable, series or query, label): with a label, its values there; without, what is found."""
    found = []
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            function, argument = re.fullmatch(r"(\w+)\((.*)\)", variable["query"]["query"]).groups()
            query, label = argument.rsplit(", ", 1) if function == "label_values" else (argument, "")
            found.append((variable["name"], substitute(query), label))
    return found


def choices(variable: dict[str, Any], samples: list[dict[str, str]]) -> dict[str, str]:
    """value -> text that Grafana offers for the labels of what a `query_result` variable's query found."""
    pattern = variable["regex"].strip("/").replace("(?<", "(?P<")
    texts = [
        "{" + ",".join(f'{k}="{v}"' for k, v in sorted(each.items())) + "} 1 1700000000000"
        for each in samples
    ]
    matches = [match for text in texts if (match := re.search(pattern, text))]
    return {match["value"]: match["text"] for match in matches}
