"""The shipped rules name only what exists, say what to do, and do what their own promtool tests say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from exporter.metrics.table import TABLE
from exporter.modus.errors import REASONS
from exporter.modus.model import OPEN_STATUSES, TERMINAL_STATUSES
from tests import mixin
from tests.dashboards import selectors
from tests.e2e.harness import program

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "prometheus"
RULES_FILE = PROMETHEUS / "rules" / "modus.yml"
TEMPLATE = (PROMETHEUS / "modus.template.yml").read_text(encoding="utf-8")
SETTINGS = yaml.safe_load((PROMETHEUS / "settings.yaml").read_text(encoding="utf-8"))
TEST_FILES = sorted((PROMETHEUS / "tests").glob("*.yml"))
RUNBOOKS = ROOT / "docs" / "runbooks"
ALERTS = {
    "ModusAgentLastRunFailed",
    "ModusAgentFailureRatioHigh",
    "ModusErrorBudgetBurnFast",
    "ModusErrorBudgetBurnSlow",
    "ModusAgentRunStuck",
    "ModusAgentApprovalWaiting",
    "ModusAgentNotRunLately",
    "ModusAgentStartMissed",
    "ModusAgentSlowerThanUsual",
    "ModusAgentDurationObjectiveMissed",
    "ModusAgentSpendUnusual",
    "ModusAgentBudgetSoonSpent",
    "ModusBudgetSoonSpent",
    "ModusApiUnreachable",
    "ModusTokenRejected",
    "ModusApiRateLimited",
    "ModusUsageUnreadable",
    "ModusDataStale",
    "ModusBacklog",
    "ModusRunsMissed",
    "ModusReconciliationOverdue",
    "ModusNothingToRead",
    "ModusLedgerDown",
    "ModusLeasesUnstable",
    "ModusNoAgentLeased",
    "ModusConfigNotReloaded",
    "ModusExporterDown",
}
VALUES = {"status": set(OPEN_STATUSES + TERMINAL_STATUSES), "reason": set(REASONS)}
AGENT = {"cluster", "namespace", "job", "agent_id"}  # what an agent is known by

RULES = [
    rule
    for group in yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTING = [rule for rule in RULES if "alert" in rule]
every_alert = pytest.mark.parametrize(
    "rule", ALERTING, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}"
)


def exposed_labels():
    """Metric name as in PromQL -> its labels, those that Prometheus adds included."""
    given = {"cluster", "namespace", "job", "instance"}
    labels = {"up": given}
    for row in TABLE:
        own = given | set(row.all_labels)
        if row.kind == "histogram":
            labels |= {f"{row.name}_sum": own, f"{row.name}_count": own, f"{row.name}_bucket": own | {"le"}}
            labels[row.name] = own  # native
        else:
            labels[row.name] = own
    return labels


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_selects_only_metrics_labels_and_values_that_exist(rule):
    exposed = exposed_labels()
    records = {rule["record"] for rule in RULES if "record" in rule}
    for selector in selectors(rule["expr"]):
        name = selector.name
        assert name in exposed.keys() | records
        for matcher in selector.matchers.matchers:
            assert name in records or matcher.name in exposed[name]
            assert set(matcher.value.split("|")) <= VALUES.get(matcher.name, {*matcher.value.split("|")})


def test_there_is_every_alert_and_every_runbook_and_no_other():
    assert {rule["alert"] for rule in ALERTING} == ALERTS
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == ALERTS


def test_every_record_is_read_by_another_rule():
    read = {
        selector.name
        for rule in RULES
        for selector in selectors(rule["expr"])
        if selector.name != rule.get("record")
    }
    assert {rule["record"] for rule in RULES if "record" in rule} - read == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_tells_two_installations_apart(rule):
    """Every `by` and `on` names cluster, namespace and job, and one that names an agent all four."""
    lists = re.findall(r"\b(by|on) \(([^)]*)\)", rule["expr"])
    known = [{name.strip() for name in names.split(",")} for _, names in lists]
    renamed_job = {"cluster", "namespace"}
    allowed = [names for names in known if names == renamed_job]
    assert len(allowed) == (rule.get("alert") == "ModusExporterDown" and "unless on" in rule["expr"])
    for names in known:
        assert names >= AGENT - {"agent_id"} or names == renamed_job, rule["expr"]


def test_names_are_joined_from_the_info_alone():
    for selector in (selector for rule in RULES for selector in selectors(rule["expr"])):
        assert not {"agent_name", "agent_type"} & {each.name for each in selector.matchers.matchers}
    joins = [rule for rule in RULES if "group_left" in rule["expr"]]
    about_agents = [rule for rule in ALERTING if "agent_id" in rule["annotations"]["description"]]
    assert joins == about_agents
    assert all(rule["expr"].endswith("modus:agent_name:info\n") for rule in joins)


@every_alert
def test_an_alert_says_whom_it_concerns_and_where_to_look(rule):
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url", "dashboard_url"}
    about_agent = "agent_name" in rule["expr"]
    who = "Agent {{ $labels.agent_name }}: " if about_agent else ""
    assert notes["summary"].startswith(who)
    assert re.fullmatch(r"[a-zA-Z][^.{]+\.", notes["summary"].removeprefix(who))  # one sentence, no value
    named = (
        ["agent_name", "agent_id"]
        if about_agent
        else ["instance"]
        if "instance" in notes["description"]
        else ["job"]
    )
    for label in named:
        assert f"$labels.{label}" in notes["description"]
    page = "modus-agent" if about_agent else "modus-exporter"
    page = "modus-cost" if "credits" in notes["summary"] else page
    variables = {"cluster": "cluster", "namespace": "namespace", "job": "job"}
    variables |= {"agent": "agent_id"} if about_agent else {}
    assert notes["dashboard_url"] == f"{SETTINGS['grafana_url']}/d/{page}/{page}?" + "&".join(
        f"var-{variable}={{{{ $labels.{label} | urlquery }}}}" for variable, label in variables.items()
    )
    assert notes["runbook_url"] == f"{SETTINGS['runbook_url']}/{rule['alert']}.md"


def test_the_committed_rules_are_what_the_template_and_the_settings_give(tmp_path):
    assert mixin.rendered(mixin.RULES, tmp_path) == {"modus.yml": RULES_FILE.read_text(encoding="utf-8")}


def test_a_file_of_ones_own_has_only_the_settings_that_differ(tmp_path):
    own = {"grafana_url": "https://grafana.example", "min_runs": 7}
    text = mixin.rendered(mixin.RULES, tmp_path, own)["modus.yml"]
    assert "https://grafana.example/d/modus-agent/" in text
    assert "modus:agent_judged:increase6h >= 7\n" in text
    assert SETTINGS["runbook_url"] in text


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"min_run": 7}, "min_run: no such setting; there are job, grafana_url"),
        ({"min_runs": "7"}, "min_runs: expected something like 10"),
        ({"job": 7}, "job: expected something like modus"),
        ([7], "expected settings, such as min_runs: 20"),
    ],
)
@pytest.mark.parametrize("script", [mixin.RULES, mixin.DASHBOARDS], ids=["rules", "dashboards"])
def test_settings_that_are_of_no_use_are_refused_in_one_line(tmp_path, script, own, problem):
    done = mixin.run(script, tmp_path, own)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path}/mine.yaml: {problem}")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_file_of_settings_that_is_not_there_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXIN_SETTINGS", str(tmp_path / "none.yaml"))
    done = run(sys.executable, mixin.RULES)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "none.yaml" in done.stderr


def test_every_setting_has_its_place_in_the_rules_and_no_address_is_written_there():
    assert set(re.findall(r"<(\w+)>", TEMPLATE)) == SETTINGS.keys() - {
        "modus_agent_url"
    }  # that is for the dashboards
    assert "://" not in TEMPLATE
    assert not re.search(r"localhost|github", TEMPLATE)


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_a_runbook_says_what_it_means_how_to_check_and_what_to_do(alert):
    page = (RUNBOOKS / f"{alert}.md").read_text(encoding="utf-8")
    title, *sections = re.split(r"^#+ (.+)\n", page, flags=re.MULTILINE)[1:]
    assert title == alert
    headings = sections[1::2]
    assert headings == ["Meaning", "How to check", "What to do"]
    assert all(len(text.strip()) > 80 for text in sections[2::2])


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_alert_is_shown_to_fire_just_not_to_fire_and_to_resolve(alert):
    shown = False
    for test in (test for file in TEST_FILES for test in yaml.safe_load(file.read_text())["tests"]):
        cases = [case for case in test.get("alert_rule_test", []) if case["alertname"] == alert]
        # written out: to promtool a missing or misspelt key is an expectation of nothing
        assert all(case.keys() == {"alertname", "eval_time", "exp_alerts"} for case in cases)
        minutes = {int(case["eval_time"].removesuffix("m")): bool(case["exp_alerts"]) for case in cases}
        fires = [minute for minute, firing in minutes.items() if firing]
        shown |= bool(fires) and minutes.get(fires[0] - 1) is False and minutes[max(minutes)] is False
    assert shown


@pytest.mark.servers
def test_promtool_accepts_the_configuration_and_the_rules():
    checked = run(program("promtool"), "check", "config", PROMETHEUS / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(RULES)} rules found" in checked.stdout


@pytest.mark.servers
def test_amtool_accepts_the_alertmanager_configuration():
    checked = run(program("amtool"), "check-config", PROMETHEUS / "alertmanager.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.servers
@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: file.stem)
def test_the_rules_pass_their_promtool_tests(file):
    promtool = program("promtool")
    if file.stem == "native" and "version 2." in str(run(promtool, "--version")):
        pytest.skip("promtool 2 cannot write native histograms; tests/e2e/test_native.py has them there too")
    tested = run(promtool, "test", "rules", file)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.servers
def test_a_low_objective_is_one_setting_and_can_still_burn(tmp_path):
    """Half the error budget times 14.4 or 6 is more than every run: without a bound it could never fire."""
    mixin.rendered(mixin.RULES, tmp_path, {"objective_ratio": 0.5})
    labels = 'job="modus",instance="a",agent_id="1"'
    finished = f'modus_agent_runs_finished_total{{{labels},status="%s",trigger_type="api"}}'
    firing = 'count(ALERTS{alertname="ModusErrorBudgetBurnFast",alertstate="firing"})'
    test = {
        "interval": "1m",
        "input_series": [
            {"series": f'modus_agent_info{{{labels},agent_name="one",agent_type="x"}}', "values": "1x10"},
            {"series": finished % "error", "values": "0+95x10"},
            {"series": finished % "completed", "values": "0+5x10"},
        ],
        "promql_expr_test": [
            {"expr": firing, "eval_time": "9m", "exp_samples": [{"labels": "{}", "value": 1}]},
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(
        yaml.safe_dump(
            {
                "rule_files": ["rules/modus.yml"],
                "evaluation_interval": "1m",
                "group_eval_order": ["modus-hours", "modus"],
                "tests": [test],
            }
        )
    )
    tested = run(program("promtool"), "test", "rules", file)
    assert tested.returncode == 0, tested.stdout + tested.stderr
