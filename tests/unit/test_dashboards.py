"""The dashboards are what the generator writes, complete, and they ask only for what the exporter exposes."""

import json
import re
from pathlib import Path

import pytest
import yaml

from exporter.metrics.table import TABLE
from tests import dashboards, mixin

GRAFANA = Path(__file__).parents[2] / "grafana"
PROMETHEUS = GRAFANA.parent / "prometheus"
SELECTIONS = (dashboards.ALL, "101", "(101|102)")
OF_PROMETHEUS = re.compile(r"up|ALERTS|process_\w+")
EXPOSED = {
    name
    for row in TABLE
    for name in (
        [row.name, *(f"{row.name}_{part}" for part in ("bucket", "count", "sum"))]
        if row.kind == "histogram"
        else [row.name]
    )
}

every_dashboard = pytest.mark.parametrize("name", dashboards.NAMES)


def test_the_committed_dashboards_are_what_the_generator_writes(tmp_path):
    committed = {path.name: path.read_text(encoding="utf-8") for path in dashboards.FOLDER.iterdir()}
    assert committed == mixin.rendered(mixin.DASHBOARDS, tmp_path)


def test_the_limits_of_the_dashboards_are_those_of_the_rules(tmp_path):
    own = {"objective_ratio": 0.9, "failure_limit_ratio": 0.35, "failing_after_seconds": 7200}
    texts = mixin.rendered(mixin.DASHBOARDS, tmp_path, own)
    assert "an objective of 90%" in texts["agent.json"]
    assert "Dashed: 10%, what the objective allows, and 35%" in texts["fleet.json"]
    assert "have not succeeded for 120 min" in texts["fleet.json"]


def test_a_row_of_an_agent_leads_to_its_page_in_modus_where_its_address_is_set(tmp_path):
    own = {"modus_agent_url": "https://modus.example/agents/{agent_id}?tab=runs"}
    assert "in Modus" not in (dashboards.FOLDER / "fleet.json").read_text()
    for name, text in mixin.rendered(mixin.DASHBOARDS, tmp_path, own).items():
        if name in ("fleet.json", "agent.json", "cost.json"):
            assert "https://modus.example/agents/${__data.fields.agent_id}?tab=runs" in text


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
    chosen = {"cluster": "east", "namespace": "ai", "job": "chosen", "agent": "101"}
    for query in dashboards.queries(dashboards.load(name), **chosen):
        for selector in dashboards.selectors(query.expr):
            limits = {(each.name, each.value) for each in selector.matchers.matchers}
            assert limits >= {("cluster", "east"), ("namespace", "ai"), ("job", "chosen")}, query.panel
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
def test_every_sum_and_join_of_agents_tells_two_installations_apart(name):
    for query in dashboards.queries(dashboards.load(name)):
        for names in re.findall(r"(?:by|on) \(([^)]*)\)", query.expr):
            if "agent_id" in names:
                assert names.startswith("cluster, namespace, job, agent_id"), query.panel


@every_dashboard
def test_names_are_joined_from_the_info_alone(name):
    for query in dashboards.queries(dashboards.load(name)):
        if "agent_name" in query.expr and query.ref:
            joined = r"group_left \(agent_name\) topk by \([\w, ]+\) \(1, max by \([\w, ]+, agent_name\) "
            assert re.search(joined + r"\(modus_agent_info", query.expr), query.panel


@every_dashboard
def test_variables_are_a_chain_from_the_data_source_to_the_agent(name):
    dashboard = dashboards.load(name)
    datasource, *chain = dashboard["templating"]["list"]
    assert datasource["name"] == "datasource"
    names = ["cluster", "namespace", "job", "agent"]
    assert [each["name"] for each in chain] == names
    for position, each in enumerate(chain):
        assert re.findall(r'=~"\$(\w+)"', each["query"]["query"]) == names[:position]
        assert (each["multi"], each["refresh"]) == (True, 2)
        assert each["datasource"]["uid"] == "${datasource}"
    assert [each["allValue"] for each in chain[:3]] == [".*", ".*", None]
    assert "__inputs" not in dashboard
    assert 39 <= dashboard["schemaVersion"] <= 41


def test_the_agent_dashboard_opens_on_one_agent_and_the_others_on_all():
    for name in dashboards.NAMES:
        agent = dashboards.load(name)["templating"]["list"][-1]
        opens = (agent["includeAll"], agent["current"].get("value"))
        assert opens == ((False, None) if name == "agent" else (True, ["$__all"]))


@every_dashboard
def test_an_id_or_a_name_is_never_shown_in_the_unit_of_the_numbers(name):
    for panel in dashboards.panels(dashboards.load(name)):
        if panel["type"] == "table":
            units = {
                each["matcher"]["options"]: value["value"]
                for each in panel["fieldConfig"]["overrides"]
                for value in each["properties"]
                if value["id"] == "unit"
            }
            organize = panel["transformations"][-1]["options"]
            titles = organize["renameByName"]
            labels = [name for name in organize["indexByName"] if not name.startswith("Value")]
            assert {titles.get(name, name): "string" for name in labels}.items() <= units.items()


def test_titles_are_short_enough_for_the_width_of_their_panels_at_1366_pixels():
    for name in dashboards.NAMES:
        for panel in dashboards.panels(dashboards.load(name)):
            pixels = panel["gridPos"]["w"] * 1366 / 24 - 40  # padding, and the sign of the description
            assert len(panel["title"]) * 8 <= pixels, panel["title"]


@every_dashboard
def test_the_first_column_of_a_table_has_room_for_names_at_1366_pixels(name):
    """Columns without a width share what the others leave."""
    for panel in dashboards.panels(dashboards.load(name)):
        if panel["type"] == "table":
            properties = {
                each["matcher"]["options"]: {value["id"]: value["value"] for value in each["properties"]}
                for each in panel["fieldConfig"]["overrides"]
            }
            organize = panel["transformations"][-1]["options"]
            titles = organize["renameByName"]
            shown = [titles[column] for column in organize["indexByName"] if column in titles]
            shown = [each for each in shown if not properties.get(each, {}).get("custom.hidden")]
            shown = [each for each in shown if each not in ("Cluster", "Namespace")]  # where there are any
            first, *others = [properties.get(each, {}).get("custom.width") for each in shown]
            left = panel["gridPos"]["w"] * 1366 / 24 - 40 - (first or 0) - sum(filter(None, others))
            share = left / (others.count(None) + (first is None))
            assert (first or share) >= 115, panel["title"]
            assert share >= 100, panel["title"]


@every_dashboard
def test_a_ratio_of_few_runs_is_not_painted_red(name):
    """A number of fewer than min_runs runs has another name, and under it no limits."""
    for panel in dashboards.panels(dashboards.load(name)):
        if panel["type"] == "stat" and panel["fieldConfig"]["defaults"]["unit"] == "percentunit":
            enough, few = panel["targets"]
            assert re.search(r" and round\(.*\) >= 10$", enough["expr"])
            assert re.search(r" unless round\(.*\) >= 10$", few["expr"])
            [override] = panel["fieldConfig"]["overrides"]
            assert override["matcher"]["options"] == few["legendFormat"] != enough["legendFormat"]
            assert "red" not in json.dumps(override)


@pytest.mark.parametrize(
    "agent_name", ["Invoice triage", 'Support "EU" \\ Zürich 東京', "{a} 1 2", "two\nlines", ""]
)
def test_the_agent_variable_offers_the_name_and_passes_the_id(agent_name):
    agent = dashboards.load("agent")["templating"]["list"][-1]
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
