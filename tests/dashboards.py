"""The dashboards' queries as Grafana would send them, for tests that ask a parser or a real Prometheus."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser

FOLDER = Path(__file__).parent.parent / "grafana" / "dashboards"
NAMES = sorted(file.stem for file in FOLDER.iterdir())
ALL = ".+"  # the allValue of the variables


class Query(NamedTuple):
    """A query of a panel, or of the annotations (without a ref): of one instant, or over the time range."""

    panel: str
    ref: str
    expr: str
    instant: bool


def load(name: str) -> dict[str, Any]:
    """A committed dashboard, one of NAMES."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Its panels, those in collapsed rows too, the rows themselves not."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def substitute(
    text: str,
    *,
    agent: str = ALL,
    job: str = ALL,
    cluster: str = ".*",
    namespace: str = ".*",
    time_range: str = "1h",
) -> str:
    """The text with Grafana's variables replaced; several agents are `(101|102)`, as Grafana writes them.

    `time_range` is the length of the dashboard's time range as a Prometheus duration.
    """
    values = {"agent": agent, "job": job, "cluster": cluster, "namespace": namespace}
    values |= {"__range": time_range, "__rate_interval": "2m"}
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values[match[1]], text)


def queries(dashboard: dict[str, Any], **variables: str) -> list[Query]:
    """Those of every panel and of the annotations, `variables` as in `substitute`."""
    found = [
        (panel["title"], target["refId"], target["expr"], target["instant"])
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]
    found += [(each["name"], "", each["expr"], False) for each in dashboard["annotations"]["list"]]
    return [Query(title, ref, substitute(expr, **variables), instant) for title, ref, expr, instant in found]


def selectors(expr: str) -> list[promql_parser.VectorSelector]:
    """The vector selectors in a query; ValueError when it is not PromQL."""
    found = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expr), visit)
    return found


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
