"""The shipped rules name only what exists, say what to do, and do what their own promtool tests say."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from exporter.metrics.table import TABLE
from exporter.modus.errors import REASONS
from exporter.modus.model import OPEN_STATUSES, TERMINAL_STATUSES
from tests.dashboards import selectors
from tests.e2e.harness import program

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "prometheus"
RULES_FILE = PROMETHEUS / "rules" / "modus.yml"
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
    "ModusAgentSlowerThanUsual",
    "ModusApiUnreachable",
    "ModusTokenRejected",
    "ModusApiRateLimited",
    "ModusDataStale",
    "ModusBacklog",
    "ModusLedgerDown",
    "ModusExporterDown",
}
VALUES = {"status": set(OPEN_STATUSES + TERMINAL_STATUSES), "reason": set(REASONS)}

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
    labels = {"up": {"job", "instance"}}
    for row in TABLE:
        own = {"job", "instance", *row.all_labels}
        if row.kind == "histogram":
            labels |= {f"{row.name}_sum": own, f"{row.name}_count": own, f"{row.name}_bucket": own | {"le"}}
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


@every_alert
def test_an_alert_says_whom_it_concerns_and_where_to_look(rule):
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url", "dashboard_url"}
    assert re.fullmatch(r"[A-Z][^.{]+\.", notes["summary"])  # one sentence, no value
    about_agent = "agent_name" in rule["expr"]
    named = (
        ["agent_name", "agent_id"]
        if about_agent
        else ["instance"]
        if "instance" in notes["description"]
        else ["job"]
    )
    for label in named:
        assert f"$labels.{label}" in notes["description"]
    dashboard = "modus-agent/modus-agent" if about_agent else "modus-exporter/modus-exporter"
    assert f"/d/{dashboard}?var-job={{{{ $labels.job | urlquery }}}}" in notes["dashboard_url"]
    assert ("&var-agent={{ $labels.agent_id | urlquery }}" in notes["dashboard_url"]) == about_agent
    assert notes["runbook_url"] == (
        f"https://github.com/modus-exporter/modus-exporter/blob/main/docs/runbooks/{rule['alert']}.md"
    )


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


def test_promtool_accepts_the_configuration_and_the_rules():
    checked = run(program("promtool"), "check", "config", PROMETHEUS / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(RULES)} rules found" in checked.stdout


def test_amtool_accepts_the_alertmanager_configuration():
    checked = run(program("amtool"), "check-config", PROMETHEUS / "alertmanager.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: file.stem)
def test_the_rules_pass_their_promtool_tests(file):
    tested = run(program("promtool"), "test", "rules", file)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_objective_is_one_line_and_a_low_one_can_still_burn(tmp_path):
    """Half the error budget times 14.4 or 6 is more than every run: without a bound it could never fire."""
    rules = RULES_FILE.read_text(encoding="utf-8")
    assert rules.count("vector(0.95)") == 1
    (tmp_path / "rules.yml").write_text(rules.replace("vector(0.95)", "vector(0.5)"), encoding="utf-8")
    labels = 'job="modus",instance="a",agent_id="1",agent_name="one"'
    finished = f'modus_agent_runs_finished_total{{{labels},status="%s",trigger_type="api"}}'
    firing = 'count(ALERTS{alertname="ModusErrorBudgetBurnFast",alertstate="firing"})'
    test = {
        "interval": "1m",
        "input_series": [
            {"series": f"modus_agent_up{{{labels}}}", "values": "1x10"},
            {"series": finished % "error", "values": "0+95x10"},
            {"series": finished % "completed", "values": "0+5x10"},
        ],
        "promql_expr_test": [
            {"expr": firing, "eval_time": "9m", "exp_samples": [{"labels": "{}", "value": 1}]},
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]})
    )
    tested = run(program("promtool"), "test", "rules", file)
    assert tested.returncode == 0, tested.stdout + tested.stderr
