"""The dashboards are what the generator writes, complete, and they ask only for what the exporter exposes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from exporter.metrics.table import TABLE
from tests import dashboards

GRAFANA = Path(__file__).parents[2] / "grafana"
PROMETHEUS = GRAFANA.parent / "prometheus"
SELECTIONS = (dashboards.ALL, "101", "(101|102)")
OF_PROMETHEUS = re.compile(r"up|ALERTS|process_\w+")
EXPOSED = {
    name
    for row in TABLE
    for name in (
        [f"{row.name}_{part}" for part in ("bucket", "count", "sum")]
        if row.kind == "histogram"
        else [row.name]
    )
}

every_dashboard = pytest.mark.parametrize("name", dashboards.NAMES)


def written(folder, settings=()):
    """What the generator writes, by file, with these texts of the rules replaced."""
    shutil.copytree(GRAFANA, folder / "grafana", ignore=shutil.ignore_patterns("*.json", "__pycache__"))
    shutil.copytree(PROMETHEUS, folder / "prometheus")
    rules = folder / "prometheus" / "rules" / "modus.yml"
    for before, after in dict(settings).items():
        assert rules.read_text().count(before) == 1
        rules.write_text(rules.read_text().replace(before, after))
    subprocess.run([sys.executable, folder / "grafana" / "generate.py"], check=True)
    return {path.stem: path.read_text() for path in (folder / "grafana" / "dashboards").iterdir()}


def test_the_committed_dashboards_are_what_the_generator_writes(tmp_path):
    committed = {path.stem: path.read_text() for path in dashboards.FOLDER.iterdir()}
    assert committed == written(tmp_path)
    assert committed.keys() == set(dashboards.NAMES)


def test_the_limits_of_the_dashboards_are_those_of_the_rules(tmp_path):
    texts = written(tmp_path, {"vector(0.95)": "vector(0.9)", "vector(0.2)": "vector(5 * 0.07)"})
    assert "an objective of 90%" in texts["agent"]
    assert "Dashed: 10%, what the objective allows, and 35%" in texts["fleet"]


@every_dashboard
def test_every_panel_says_what_it_shows_in_which_unit_and_what_no_data_means(name):
    for panel in dashboards.panels(dashboards.load(name)):
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["fieldConfig"]["defaults"]["noValue"]


@every_dashboard
def test_panel_ids_are_unique_and_panels_do_not_overlap(name):
    dashboard = dashboards.load(name)
    ids = [panel["id"] for panel in [*dashboards.panels(dashboard), *dashboard["panels"]]]
    rows = [panel["id"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert len(set(ids)) == len(list(dashboards.panels(dashboard))) + len(rows)
    taken = set()
    for panel in dashboards.panels(dashboard):
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


@every_dashboard
@pytest.mark.parametrize("agent", SELECTIONS)
def test_every_query_parses_and_names_only_metrics_that_are_exposed(name, agent):
    dashboard = dashboards.load(name)
    asked = [(query.panel, query.expr) for query in dashboards.queries(dashboard, agent=agent)]
    asked += [(variable, query) for variable, query, _ in dashboards.variable_queries(dashboard)]
    for title, expr in asked:
        metrics = {selector.name for selector in dashboards.selectors(expr)}
        assert metrics, title
        unknown = {metric for metric in metrics - EXPOSED if not OF_PROMETHEUS.fullmatch(metric)}
        assert not unknown, f"{title}: {unknown}"


@every_dashboard
def test_every_selector_is_limited_to_the_chosen_jobs_and_agents(name):
    per_agent = {row.name for row in TABLE if row.per_agent}
    for query in dashboards.queries(dashboards.load(name), job="chosen", agent="101"):
        for selector in dashboards.selectors(query.expr):
            limits = {(each.name, each.value) for each in selector.matchers.matchers}
            assert ("job", "chosen") in limits, query.panel
            if selector.name.removesuffix("_bucket") in per_agent:
                assert ("agent_id", "101") in limits, query.panel


@every_dashboard
def test_windows_do_not_depend_on_the_distance_between_two_points(name):
    for panel in dashboards.panels(dashboards.load(name)):
        for target in panel["targets"]:
            windows = set(re.findall(r"\[([^\]]+)\]", target["expr"]))
            assert windows <= {"1h", "6h", "15m", "$__range", "$__rate_interval"}, panel["title"]
            if "modus_agent_" in target["expr"]:
                assert windows <= {"1h", "6h", "$__range"}, f"{panel['title']}: runs are sparse"


@every_dashboard
def test_only_tables_and_limited_queries_show_agents_one_by_one(name):
    for panel in dashboards.panels(dashboards.load(name)):
        for target in panel["targets"]:
            single = "{{agent_name}}" in target["legendFormat"] or panel["type"] == "table"
            if single and (name, panel["title"]) != ("fleet", "Agents"):
                assert re.search(r"topk( by \(status\))? ?\(\d+", target["expr"]), panel["title"]


@every_dashboard
def test_links_lead_to_dashboards_that_exist(name):
    uids = {dashboards.load(each)["uid"] for each in dashboards.NAMES}
    text = (dashboards.FOLDER / f"{name}.json").read_text()
    linked = set(re.findall(r"/d/([\w-]+)", text))
    assert linked <= uids
    assert linked >= uids - {f"modus-{name}"}


@every_dashboard
def test_variables_are_a_chain_of_datasource_job_and_agent(name):
    dashboard = dashboards.load(name)
    datasource, job, agent = dashboard["templating"]["list"]
    assert [each["name"] for each in (datasource, job, agent)] == ["datasource", "job", "agent"]
    assert 'job=~"$job"' in agent["query"]["query"]
    for each in (job, agent):
        assert (each["multi"], each["includeAll"], each["allValue"], each["refresh"]) == (True, True, ".+", 2)
        assert each["datasource"]["uid"] == "${datasource}"
    assert "__inputs" not in dashboard
    assert 39 <= dashboard["schemaVersion"] <= 41


@pytest.mark.parametrize(
    "agent_name", ["Invoice triage", 'Support "EU" \\ Zürich 東京', "{a} 1 2", "two\nlines", ""]
)
def test_the_agent_variable_offers_the_name_and_passes_the_id(agent_name):
    agent = dashboards.load("agent")["templating"]["list"][2]
    assert dashboards.choices(agent, [{"agent_id": "109", "agent_name": agent_name}]) == {"109": agent_name}


def test_a_row_of_the_fleet_leads_to_its_agent_with_the_same_time_range():
    for panel in dashboards.panels(dashboards.load("fleet")):
        if panel["type"] == "table":
            overrides = {
                each["matcher"]["options"]: each["properties"] for each in panel["fieldConfig"]["overrides"]
            }
            [link] = overrides["Agent"][0]["value"]
            assert link["url"].startswith("/d/modus-agent/")
            assert "var-agent=${__data.fields.agent_id}" in link["url"]
            assert "${__url_time_range}" in link["url"]


def test_the_data_source_is_named_by_a_variable_and_provisioned():
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["uid"]) == ("prometheus", "prometheus")
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/modus.yaml").read_text())["providers"]
    assert provider["type"] == "file"
