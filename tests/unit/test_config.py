"""config.yaml: what it means, and the one line that every mistake in it gives."""

import os
import re
import textwrap
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.config import (
    AgentBudget,
    AgentConfig,
    Budget,
    Config,
    ConfigError,
    Discovery,
    Modus,
    State,
    defaults,
    load,
    refuse_same_file,
)
from exporter.modus.urls import api_base
from exporter.scalars import Positive, Secret
from exporter.tokens import TokenError, token_source
from exporter.yamlfile import MAX_BYTES

BAD = Path(__file__).parent / "bad_config"
EXAMPLE = Path(__file__).parents[2] / "config.yaml"
ENVIRON = {
    "MODUS_API_KEY": "key",
    "SECRET": "hunter2",
    "FIVE": "5",
    "MANY": "101",
    "NOTHING": "",
    "NIL": "null",
}
AMOUNT = "expected a number above 0 and below 1000000000"
AGENT = "expected an agent's id or a mapping with its id"
URL = "modus.base_url: expected an http(s) URL without user, password, query and fragment"
PORT = "modus.base_url: expected an http(s) URL with a port from 1 to 65535, or with none"
HOST = "modus.base_url: expected an http(s) URL with the name or address of a host"
PATH = "state.path: expected the path of a file, got a URL: that of a database is state.url"

MISTAKES = {
    "unknown_section": "agent: unknown key; did you mean agents?",
    "unknown_key": "modus.base-url: unknown key; did you mean base_url?",
    "unknown_key_of_an_agent": "agents[1].interval: unknown key; did you mean expected_interval?",
    "unknown_key_like_no_other": "state.zzz: unknown key; known here: path, url, password_file",
    "duration_is_a_word": "agents[1].expected_interval: expected a duration like 1h30m, got 'daily'",
    "duration_without_unit": "modus.timeout: expected a duration with a unit like 30s, got 10",
    "duration_with_fraction": "modus.timeout: expected a duration with a unit like 30s, got '1.5'",
    "duration_sexagesimal": "modus.timeout: expected a duration like 1h30m, got '1:30'",
    "duration_in_wrong_order": "modus.timeout: expected a duration like 1h30m, got '30m1h'",
    "duration_negative": "scrape.min_interval: expected a duration like 1h30m, got '-1s'",
    "duration_beyond_all_bounds": "runs.lookback: expected a duration like 1h30m, got '300y'",
    "duration_is_a_list": "runs.lookback: expected a duration like 1h30m, got a list",
    "duration_is_null": "runs.lookback: expected a duration like 1h30m, got null",
    "timeout_of_zero": "modus.timeout: expected a duration above 0s, got '0s'",
    "lookback_of_zero": "runs.lookback: expected a duration above 0s, got 0",
    "expected_interval_of_zero": "agents[0].expected_interval: expected a duration above 0s, got '0s'",
    "page_size_too_small": "runs.page_size: expected a whole number >= 1, got 0",
    "page_size_too_large": "runs.page_size: expected a whole number <= 100, got 101",
    "page_size_octal": "runs.page_size: expected a whole number, got '010'",
    "page_size_is_true": "runs.page_size: expected a whole number, got true",
    "max_pages_of_zero": "runs.max_pages: expected a whole number >= 1, got 0",
    "concurrency_of_zero": "modus.concurrency: expected a whole number >= 1, got 0",
    "concurrency_too_large": "modus.concurrency: expected a whole number <= 1024, got 1025",
    "resource_unknown": "modus.resource: expected auto, agents or workflows, got 'agent'",
    "timeframe_is_a_list": "runs.timeframe: expected text, got a list",
    "state_path_and_url": "state: expected path or url, got both",
    "state_url_of_the_web": "state.url: expected a URL like postgresql://user@host:5432/database",
    "state_password_file_without_url": "state.password_file: expected state.url beside it, which it is for",
    "state_path_is_a_url": PATH,
    "state_path_is_another_url": PATH,
    "state_path_empty": "state.path: expected text that is not empty, got ''",
    "buckets_empty": "histogram.buckets: expected a list that is not empty, got a list",
    "buckets_not_ascending": "histogram.buckets[2]: expected a bound above the one before it",
    "buckets_twice_the_same": "histogram.buckets[1]: expected a bound above the one before it",
    "bucket_of_zero": "histogram.buckets[0]: expected a duration above 0s, got '0s'",
    "bucket_without_unit": "histogram.buckets[1]: expected a duration with a unit like 30s, got 5",
    "no_agents": "agents: list at least one agent's id, or set discovery.enabled to true",
    "empty": "agents: list at least one agent's id, or set discovery.enabled to true",
    "agents_is_a_number": "agents: expected a list, got 42",
    "agent_is_a_name": f"agents[0]: {AGENT}, got 'Invoice triage'",
    "agent_without_id": f"agents[0]: {AGENT}, got a mapping",
    "agent_is_true": f"agents[0]: {AGENT}, got true",
    "agent_of_zero": "agents[1].id: expected a whole number >= 1, got 0",
    "agent_id_beyond_64_bits": f"agents[0]: {AGENT}, got '99999999999999999999'",
    "agent_listed_twice": "agents[2]: agent 42 is listed twice",
    "usage_enabled_is_often": "usage.enabled: expected auto, true or false, got 'often'",
    "usage_budget_is_zero": f"usage.budget.total: {AMOUNT}, got 0",
    "usage_budget_twice": "usage.budget.agents[1]: agent 42 is listed twice",
    "usage_budget_without_credits": "usage.budget.agents[0].credits: expected a value, got none",
    "discovery_is_yes": "discovery.enabled: expected true or false, got 'yes'",
    "include_is_no_list": "discovery.include: expected a list, got '*'",
    "include_empty": "discovery.include: expected a list that is not empty, got a list",
    "include_holds_a_number": "discovery.include[0]: expected text, got 7",
    "section_is_a_list": "runs: expected a mapping, got a list",
    "section_is_null_inside": "runs.page_size: expected a whole number, got null",
    "token_and_token_file": "modus: expected token or token_file, got both",
    "token_with_a_space": "modus.token: expected a token in printable ASCII without spaces",
    "token_empty": "modus.token: expected a token in printable ASCII without spaces",
    "token_without_a_space_behind_the_colon": "modus: expected a mapping",
    "token_as_key": "modus.modus_pat_***: unknown key; "
    "known here: base_url, token, token_file, ca_file, resource, timeout, concurrency, "
    "max_requests_per_second",
    "token_file_is_a_list": "modus.token_file: expected text",
    "base_url_with_password": URL,
    "base_url_with_query": URL,
    "base_url_without_scheme": "modus.base_url: expected an http(s) URL: write https:// in front",
    "base_url_without_scheme_but_with_port": "modus.base_url: "
    "expected an http(s) URL: write https:// in front",
    "base_url_https_on_the_http_port": "modus.base_url: "
    "expected another scheme for port 80, which speaks http",
    "base_url_http_on_the_https_port": "modus.base_url: "
    "expected another scheme for port 443, which speaks https",
    "ca_file_empty": "modus.ca_file: expected text that is not empty, got ''",
    "rate_of_zero": f"modus.max_requests_per_second: {AMOUNT}, got 0",
    "rate_of_zero_point_zero": f"modus.max_requests_per_second: {AMOUNT}, got '0.0'",
    "rate_negative": f"modus.max_requests_per_second: {AMOUNT}, got -1",
    "rate_is_a_word": f"modus.max_requests_per_second: {AMOUNT}, got 'fast'",
    "rate_with_unit": f"modus.max_requests_per_second: {AMOUNT}, got '5/s'",
    "rate_is_true": f"modus.max_requests_per_second: {AMOUNT}, got true",
    "reconcile_interval_without_unit": "runs.reconcile_interval: "
    "expected a duration with a unit like 30s, got 3600",
    "created_is_a_word": "exposition.created: expected true or false, got 'on'",
    "unknown_key_of_exposition": "exposition.create: unknown key; did you mean created?",
    "state_path_is_the_token_file": "state.path: "
    "expected another file than modus.token_file, got the same one",
    "ca_file_is_the_token_file": "modus.ca_file: "
    "expected another file than modus.token_file, got the same one",
    "variable_is_no_number": "runs.page_size: expected a whole number, got '${SECRET}'",
    "variable_is_no_id": "agents[0].id: expected a whole number, got '${SECRET}'",
    "variable_is_no_switch": "discovery.enabled: expected true or false, got '${SECRET}'",
    "variable_in_quotes_is_text": "runs.page_size: expected a whole number, got '${FIVE}'",
    "variable_is_too_large": "runs.page_size: expected a whole number <= 100, got '${MANY}'",
    "variable_that_says_null_is_no_token": "modus: expected token or token_file, got neither",
    "variable_that_is_empty_turns_nothing_off": "state.path: "
    "expected text that is not empty, got '${NOTHING}'",
    "variable_as_key": "line 2: expected a key like base_url",
    "variable_without_name_in_a_list": "line 1: expected ',' or ']', but got '{'",
    "base_url_of_a_file": "modus.base_url: expected an http(s) URL: begin it with https://",
    "base_url_with_impossible_port": PORT,
    "base_url_with_port_0": PORT,
    "base_url_of_many_hosts": HOST,
    "base_url_of_a_host_without_a_name": HOST,
    "base_url_with_broken_escape": HOST,
    "base_url_with_broken_address": URL,
    "variable_not_set": "state.path: the environment variable NOT_SET is not set",
    "variable_not_set_in_a_list": "discovery.include[1]: the environment variable NOT_SET is not set",
    "variable_without_name": "state.path: expected the name of an environment variable between ${ and }",
    "variable_without_end": "state.path: expected the name of an environment variable between ${ and }",
    "variable_value_is_not_shown": "modus.timeout: expected a duration like 1h30m, got '${SECRET}'",
    "variable_value_is_not_shown_in_a_choice": "modus.resource: "
    "expected auto, agents or workflows, got '${SECRET}'",
    "control_character": "state.path: expected text without control characters",
    "lone_surrogate": "state.path: expected text without control characters",
    "offset_eats_the_timeout": "scrape.timeout_offset: expected less than scrape.default_timeout",
    "long_value_is_cut": f"modus.timeout: expected a duration like 1h30m, got '{'x' * 40}...'",
    "enum_that_looks_like_a_path": "modus.resource: expected auto, agents or workflows, got 'x - at `$.y`'",
    "duplicate_key": "line 4: the key page_size is given twice",
    "duplicate_section": "line 3: the key runs is given twice",
    "key_is_a_list": "line 2: expected a key like base_url",
    "merge_key": "line 3: expected a key like base_url",
    "alias": "line 2: expected no alias and no tag",
    "tag": "line 1: expected no alias and no tag",
    "syntax_tab": "line 3: found character '\\t' that cannot start any token",
    "syntax_colon": "line 3: mapping values are not allowed here",
    "syntax_unclosed": "line 2: expected ',' or ']', but got ':'",
    "two_documents": "line 2: but found another document",
    "text_only": "expected a mapping with keys like agents and discovery",
    "list_only": "expected a mapping with keys like agents and discovery",
    "escape_out_of_range": "expected YAML, got a number out of range",
}


@pytest.fixture
def config(tmp_path):
    """Load YAML text from a real file."""

    def from_text(text, environ=ENVIRON):
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        return load(str(path), environ)

    return from_text


def refused(path, environ=ENVIRON):
    """The text of the error without the file name it starts with."""
    with pytest.raises(ConfigError) as caught:
        load(str(path), environ)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_one_line_that_says_where_and_what_was_expected(name):
    error = refused(BAD / f"{name}.yaml")
    assert error == MISTAKES[name]
    assert "hunter2" not in error


def test_every_bad_file_has_its_line():
    assert {path.stem for path in BAD.iterdir()} == set(MISTAKES)


# --- files that are no configuration ---


def test_a_missing_file_is_told(tmp_path):
    assert refused(tmp_path / "none.yaml") == "cannot read the file: No such file or directory"


def test_a_directory_is_told(tmp_path):
    assert refused(tmp_path) == "cannot read the file: Is a directory"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"agents: [42]\n# caf\xe9\n", "expected UTF-8 text, got something else at byte 18"),
        (b"agents: [42]\n\0\0\0", "line 2: special characters are not allowed"),
        (b"[" * 10_000_000, "expected at most 1 MiB, got more"),
        (b"[" * 100_000, "expected YAML of 20 levels at most, got more"),
        (b"{a: " * 100_000, "expected YAML of 20 levels at most, got more"),
        (b"a: &a [1]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b]", "line 2: expected no alias and no tag"),
    ],
    ids=["latin-1", "binary", "ten megabytes", "nested lists", "nested mappings", "anchors bomb"],
)
def test_a_file_that_is_no_configuration_is_told(tmp_path, content, error):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert refused(path) == error


def test_a_file_of_exactly_the_largest_size_is_read(config):
    text = b"agents: [42]\n#"
    assert config(text + b"x" * (MAX_BYTES - len(text))).agents == (AgentConfig(42),)


def test_ten_thousand_agents_fit(config):
    assert len(config("agents:\n" + "".join(f"  - {i}\n" for i in range(1, 10_001))).agents) == 10_000


def test_a_file_name_with_a_line_feed_stays_on_one_line(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(r"no\nfile.yaml: cannot read the file")):
        load(str(tmp_path / "no\nfile.yaml"), ENVIRON)


# --- what a file means ---


def test_what_the_file_leaves_out_has_its_default(config):
    assert config("agents: [42]") == Config(modus=Modus(token=Secret("key")), agents=(AgentConfig(42),))


def test_the_example_at_the_root_works_and_states_the_defaults_but_for_discovery():
    expected = Config(modus=Modus(token=Secret("key")), discovery=Discovery(enabled=True))
    assert load(str(EXAMPLE), ENVIRON) == expected


def test_the_example_at_the_root_names_every_key():
    words = set(re.findall(r"^[ #-]*([a-z_]+):", EXAMPLE.read_text(), re.MULTILINE))
    sections = [
        AgentConfig,
        AgentBudget,
        Budget,
        *(type(getattr(Config(), name)) for name in Config.__struct_fields__),
    ]
    keys = {key for section in sections if section is not tuple for key in section.__struct_fields__}
    assert words == keys | set(Config.__struct_fields__)


def test_the_defaults_serve_without_a_file():
    demo = Config(
        modus=Modus(base_url="http://127.0.0.1:1", token=Secret("demo")),
        agents=(AgentConfig(107, expected_interval=Positive(3600)),),
        state=State(path=None),
    )
    assert (demo.modus.concurrency, demo.runs.lookback, demo.scrape.timeout_offset) == (32, 86_400, 0.5)


def test_a_configuration_cannot_be_changed(config):
    with pytest.raises(AttributeError):
        config("agents: [42]").runs.page_size = 1


def test_agents_are_ids_or_mappings(config):
    text = "agents: [42, {id: 43, expected_interval: 1d}, {id: 44, expected_duration: 90s}]"
    assert config(text).agents == (
        AgentConfig(42),
        AgentConfig(43, Positive(86_400)),
        AgentConfig(44, expected_duration=Positive(90)),
    )


def test_discovery_replaces_the_list_of_agents(config):
    assert config("discovery: {enabled: true, exclude: ['Test *']}").discovery.exclude == ("Test *",)


def test_a_section_with_every_key_commented_out_has_its_defaults(config):
    assert config("agents: [42]\nruns:\n  # page_size: 10\nmodus:\n").runs == Config().runs


def test_the_state_may_be_in_a_database_whose_url_shows_in_no_repr(config):
    text = "agents: [42]\nstate: {url: 'postgresql://modus:${DB}@db/modus?sslmode=verify-full'}"
    loaded = config(text, {**ENVIRON, "DB": "s3cret-word"}).state
    assert loaded.url == "postgresql://modus:s3cret-word@db/modus?sslmode=verify-full"
    assert "s3cret-word" not in repr(loaded)


def test_null_turns_off_the_state_file(config):
    assert config("agents: [42]\nstate: {path: null}").state.path is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1m", 60),
        ("1d", 86_400),
        ("1w", 604_800),
        ("1y", 31_536_000),
        ("1y2w3d4h5m6s7ms", 33_019_506.007),
        ("90s", 90),
        ("292y", 292 * 31_536_000),
    ],
)
def test_durations_are_those_of_prometheus(config, text, seconds):
    assert config(f"agents: [42]\nmodus: {{timeout: {text}}}").modus.timeout == seconds


@pytest.mark.parametrize("text", ["0s", "0", "'0'", "0h0m"])
def test_zero_is_a_duration_with_or_without_unit(config, text):
    assert config(f"agents: [42]\nscrape: {{min_interval: {text}}}").scrape.min_interval == 0


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "0x10", "0o17", "1_000", "2026-11-24", "1:30", "1e3", "=", ".inf"]
)
def test_yaml_does_not_turn_text_into_something_else(config, text):
    assert config(f"agents: [42]\nruns: {{timeframe: {text}}}").runs.timeframe == text


# --- the environment ---


def test_variables_are_replaced_in_any_string(config):
    text = """
        discovery: {enabled: true, include: ['${TEAM}-*', 'a ${TEAM} ${N}']}
        scrape: {min_interval: '${N}s'}
    """
    loaded = config(text, {**ENVIRON, "TEAM": "sales", "N": "7"})
    assert loaded.discovery.include == ("sales-*", "a sales 7")
    assert loaded.scrape.min_interval == 7


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${ONE}", 1),
        ("${ONE}${ZERO}", 10),
        ("${ONE}0", 10),
        ("  ${ONE} # a comment", 1),
    ],
)
def test_a_variable_may_be_a_number(config, text, value):
    loaded = config(f"agents: [42]\nruns:\n  page_size: {text}", {**ENVIRON, "ONE": " 1\n", "ZERO": "0"})
    assert loaded.runs.page_size == value


@pytest.mark.parametrize(("value", "enabled"), [("true", True), ("True", True), ("false", False)])
def test_a_variable_may_be_a_switch(config, value, enabled):
    loaded = config("agents: [42]\ndiscovery: {enabled: ${ON}}", {**ENVIRON, "ON": value})
    assert loaded.discovery.enabled is enabled


@pytest.mark.parametrize(
    "text", ["agents: [${AGENT}, 44]", "agents:\n- ${AGENT}\n- id: 44", "agents: [{id: ${AGENT}}, {id: 44}]"]
)
def test_a_variable_may_be_the_id_of_an_agent(config, text):
    assert config(text, {**ENVIRON, "AGENT": "43"}).agents == (AgentConfig(43), AgentConfig(44))


def test_a_variable_may_be_null(config):
    text = "agents: [42]\nmodus: {max_requests_per_second: ${RATE}}\nstate: {path: ${FILE}}"
    loaded = config(text, {**ENVIRON, "RATE": "null", "FILE": "~"})
    assert (loaded.modus.max_requests_per_second, loaded.state.path) == (None, None)


@pytest.mark.parametrize("text", ["0123", "123", "1e3"])
def test_a_token_of_digits_is_a_token(config, text):
    assert config("agents: [42]\nmodus: {token: ${T}}", {"T": text}).modus.token == text


def test_what_a_variable_holds_is_not_replaced_again(config):
    text = "agents: [42]\nstate: {path: '${A}'}"
    assert config(text, {**ENVIRON, "A": "${SECRET}"}).state.path == "${SECRET}"


def test_a_dollar_alone_is_a_dollar(config):
    assert config("agents: [42]\nstate: {path: 'a$b $$ $'}").state.path == "a$b $$ $"


def test_the_token_is_the_api_key_of_the_environment_without_the_line_feed_of_a_secret(config):
    assert config("agents: [42]", {"MODUS_API_KEY": "modus_pat_x\n"}).modus == Modus(
        token=Secret("modus_pat_x")
    )


@pytest.mark.parametrize("environ", [{}, {"MODUS_API_KEY": ""}])
@pytest.mark.parametrize("text", ["agents: [42]", "agents: [42]\nmodus: {token: '${MODUS_API_KEY}'}"])
def test_without_a_token_both_ways_to_give_one_are_named(tmp_path, text, environ):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    expected = "modus.token: set MODUS_API_KEY, give modus.token_file, or try --demo"
    assert refused(path, environ) == expected


def test_a_token_file_needs_no_variable(config):
    modus = config("agents: [42]\nmodus: {token_file: /run/secrets/modus}", {}).modus
    assert (modus.token, modus.token_file) == (None, "/run/secrets/modus")


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("", {}, "https://api.getmodus.com"),
        ("", {"MODUS_BASE_URL": ""}, "https://api.getmodus.com"),
        ("", {"MODUS_BASE_URL": "https://api.staging.getmodus.com"}, "https://api.staging.getmodus.com"),
        ("base_url: http://[::1]:8080/modus", {"MODUS_BASE_URL": "https://x"}, "http://[::1]:8080/modus"),
    ],
)
def test_the_base_url_is_that_of_the_file_or_of_the_environment_or_production(
    config, text, environ, expected
):
    loaded = config(f"agents: [42]\nmodus:\n  timeout: 1s\n  {text}", {**ENVIRON, **environ})
    assert loaded.modus.base_url == expected


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("https://api.getmodus.com/api", "https://api.getmodus.com"),
        ("https://api.getmodus.com/api/", "https://api.getmodus.com"),
        ("https://api.getmodus.com/api/v1", "https://api.getmodus.com"),
        ("https://api.getmodus.com/api/v1//", "https://api.getmodus.com"),
        ("https://api.getmodus.com/", "https://api.getmodus.com"),
        ("http://gateway:8080/modus/api/v1", "http://gateway:8080/modus"),
        ("http://api/api/v1", "http://api"),
        ("http://gateway/rapi", "http://gateway/rapi"),
        ("http://gateway/api/v2", "http://gateway/api/v2"),
    ],
)
def test_a_base_url_with_the_path_of_the_api_is_understood(config, url, root):
    for modus in (
        config(f"agents: [42]\nmodus: {{base_url: '{url}'}}").modus,
        config("agents: [42]", {**ENVIRON, "MODUS_BASE_URL": url}).modus,
    ):
        assert api_base(modus.base_url)[0] == f"{root}/api/v1/"


@pytest.mark.parametrize(
    "url", ["https://x:443", "http://x:80", "https://x:8080", "http://x:8443", "HTTPS://x", "http://api"]
)
def test_any_other_port_goes_with_any_scheme(config, url):
    assert config(f"agents: [42]\nmodus: {{base_url: '{url}'}}").modus.base_url == url


@pytest.mark.parametrize(
    ("text", "rate"),
    [("0.5", 0.5), ("'0.5'", 0.5), ("20", 20), ("1000.25", 1000.25), ("0.001", 0.001), ("null", None)],
)
def test_requests_a_second_are_a_whole_or_a_decimal_number(config, text, rate):
    loaded = config(f"agents: [42]\nmodus: {{max_requests_per_second: {text}}}")
    assert loaded.modus.max_requests_per_second == rate


def test_no_reconciling_is_an_interval_of_zero(config):
    assert config("agents: [42]\nruns: {reconcile_interval: 0s}").runs.reconcile_interval == 0
    assert config("agents: [42]").runs.reconcile_interval == 3600


def test_created_series_are_exposed_on_demand(config):
    assert config("agents: [42]\nexposition: {created: true}").exposition.created
    assert not config("agents: [42]").exposition.created


def test_a_bundle_of_authorities_may_be_named(config):
    assert config("agents: [42]\nmodus: {ca_file: /etc/company.pem}").modus.ca_file == "/etc/company.pem"


# --- without a file ---


def test_without_a_file_the_key_in_the_environment_is_enough():
    environ = {"MODUS_API_KEY": "key\n", "MODUS_BASE_URL": "https://api.staging.getmodus.com"}
    assert defaults(environ) == Config(
        modus=Modus(base_url="https://api.staging.getmodus.com", token=Secret("key")),
        discovery=Discovery(enabled=True),
    )


@pytest.mark.parametrize("environ", [{}, {"MODUS_API_KEY": ""}])
def test_without_a_file_and_a_key_all_ways_out_are_named(environ):
    with pytest.raises(ConfigError) as caught:
        defaults(environ)
    for way in ("MODUS_API_KEY", "--config.file", "--demo"):
        assert way in str(caught.value)


def test_a_mistake_in_the_environment_is_told_without_its_value():
    with pytest.raises(ConfigError) as caught:
        defaults({"MODUS_API_KEY": "key", "MODUS_BASE_URL": "https://u:hunter2@x"})
    assert str(caught.value) == f"without a configuration file: {URL}, got ${{MODUS_BASE_URL}}"


# --- a path said twice ---


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("state: {path: '%s'}", "state.path"),
        ("modus: {token_file: '%s'}", "modus.token_file"),
        ("modus: {ca_file: '%s'}", "modus.ca_file"),
    ],
)
@pytest.mark.parametrize("name", ["config.yaml", "../here/config.yaml", "link.yaml"])
def test_the_configuration_file_is_no_other_file_too(tmp_path, text, key, name):
    directory = tmp_path / "here"
    directory.mkdir()
    path = directory / "config.yaml"
    (directory / "link.yaml").symlink_to(path)
    path.write_text("agents: [42]\n" + text % (directory / name))
    assert refused(path) == f"{key}: expected another file than the configuration file, got the same one"


def test_any_two_paths_can_be_compared_and_none_is_no_path(tmp_path):
    paths = {
        "state.path": str(tmp_path / "a"),
        "--web.config.file": None,
        "modus.ca_file": str(tmp_path / "b"),
    }
    refuse_same_file(paths)
    with pytest.raises(ConfigError, match=r"^--web.config.file: expected another file than state.path"):
        refuse_same_file(paths | {"--web.config.file": str(tmp_path / "x" / ".." / "a")})


def test_a_bad_base_url_of_the_environment_is_not_shown(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("agents: [42]")
    assert (
        refused(path, {**ENVIRON, "MODUS_BASE_URL": "https://u:hunter2@x"})
        == f"{URL}, got ${{MODUS_BASE_URL}}"
    )


def test_a_variable_with_a_control_character_is_refused_and_not_shown(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("agents: [42]")
    error = refused(path, {"MODUS_API_KEY": "hunter2\r\nX-Evil: 1"})
    assert error == "modus.token: expected text without control characters, got ${MODUS_API_KEY}"


@pytest.mark.parametrize("token", ["Bearer modus_pat_hunter2", " ", "hünter2"])
def test_a_token_of_the_environment_that_is_none_is_said_to_come_from_there(token):
    with pytest.raises(ConfigError) as caught:
        defaults({"MODUS_API_KEY": token})
    expected = "modus.token: expected a token in printable ASCII without spaces, got ${MODUS_API_KEY}"
    assert str(caught.value) == f"without a configuration file: {expected}"


# --- secrets ---


def test_the_token_shows_in_no_repr(config):
    loaded = config("agents: [42]", {"MODUS_API_KEY": "hunter2"})
    assert token_source(loaded.modus)() == "hunter2"
    for shown in (repr(loaded), str(loaded), f"{loaded.modus}", repr(msgspec.structs.asdict(loaded.modus))):
        assert "hunter2" not in shown
        assert "***" in shown


# --- the token's source ---


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


def source(path):
    return token_source(Modus(token_file=str(path)))


def replace(path, text):
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def test_a_token_given_as_such_stays_the_same():
    assert token_source(Modus(token=Secret("constant")))() == "constant"


def test_a_token_file_is_stripped(token_file):
    assert source(token_file)() == "first"


def test_a_replaced_token_file_is_read_again(token_file):
    token = source(token_file)
    assert token() == "first"
    replace(token_file, "other\n")
    assert token() == "other"


def test_a_token_file_written_in_place_is_read_again(token_file):
    token = source(token_file)
    assert token() == "first"
    token_file.write_text("second\n")
    assert token() == "second"


def test_a_token_file_behind_swapped_symlinks_is_read_again(tmp_path):
    """Kubernetes mounts a secret as token -> ..data/token, ..data -> ..<date>, and swaps ..data."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(f"{name}\n")
        os.utime(tmp_path / name / "token", (1, 1))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "token").symlink_to("..data/token")
    token = source(tmp_path / "token")
    assert token() == "one"
    (tmp_path / "swap").symlink_to("two")
    (tmp_path / "swap").rename(tmp_path / "..data")
    assert token() == "two"


def test_an_unchanged_token_file_is_not_read_again(token_file, monkeypatch):
    token = source(token_file)
    token()
    monkeypatch.setattr("builtins.open", None)
    assert token() == "first"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: replace(path, " \n"), "it is empty"),
        (lambda path: replace(path, "hunter2\nhunter2"), "it holds no token (one line of printable ASCII)"),
        (lambda path: replace(path, "hünter2"), "it holds no token (one line of printable ASCII)"),
        (lambda path: replace(path, "hunter2" * 10_000), "it holds no token (one line of printable ASCII)"),
        (lambda path: (path.unlink(), path.mkdir()), "it is not a regular file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it is not a regular file"),
    ],
    ids=["missing", "empty", "two lines", "not ASCII", "too long", "directory", "pipe"],
)
def test_a_token_file_without_a_token_is_told_and_the_earlier_token_is_not_used(token_file, spoil, reason):
    token = source(token_file)
    assert token() == "first"
    spoil(token_file)
    for _ in range(2):
        with pytest.raises(TokenError) as caught:
            token()
        assert str(caught.value) == f"cannot read the token file {token_file}: {reason}"
        assert caught.value.__suppress_context__


def test_a_token_file_that_comes_back_is_read_again(token_file):
    token = source(token_file)
    token()
    token_file.unlink()
    with pytest.raises(TokenError):
        token()
    token_file.write_text("third")
    assert token() == "third"


def test_a_token_file_that_could_not_be_opened_for_a_moment_is_read_as_soon_as_it_can(
    token_file, monkeypatch
):
    """Without a change of the file: too many open files, for instance."""
    token = source(token_file)

    def refuse(*args, **options):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        with pytest.raises(TokenError, match="Too many open files"):
            token()
    assert token() == "first"


def test_while_one_thread_reads_a_new_token_the_others_wait_for_it(token_file, monkeypatch):
    token, entered, release, really = source(token_file), Event(), Event(), open
    token()
    replace(token_file, "second")

    def slow_at_first(*args, **options):
        if not entered.is_set():
            entered.set()
            assert release.wait(20)
        return really(*args, **options)

    monkeypatch.setattr("builtins.open", slow_at_first)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(token)
        assert entered.wait(20)
        other = threads.submit(token)
        waited = wait([other], timeout=0.3).not_done == {other}  # for ever: any time will do
        release.set()
        assert (first.result(), other.result()) == ("second", "second")
    assert waited


# --- any file ---

KEYS = st.sampled_from(
    ["modus", "base_url", "token", "token_file", "resource", "timeout", "concurrency", "agents", "id",
     "expected_interval", "expected_duration", "discovery", "enabled", "include", "runs", "page_size",
     "lookback", "histogram", "buckets", "state", "path", "scrape", "min_interval", "oops"]
)  # fmt: skip
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            "1d",
            "0s",
            "${SECRET}",
            "${NOT_SET}",
            "${",
            "auto",
            "http://x",
            "2026-11-24",
            "1:30",
            "${FIVE}",
            "${NIL}",
        ]
    ),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
PIECES = st.sampled_from(
    ["agents", ": ", ":", "- ", "\n", "\n  ", "[", "]", "{", "}", ", ", "'", '"', "&a ", "*a ", "!!int ", "!",
     "!<", "%YAML 1.1\n", "--- ", "...\n", "|", ">", "? ", "<<", "#", "\t", "\\x", "\\UFFFFFFFF",
     "~", "${A}", "${FIVE}", "${SECRET}", "\ue000", "\ue001",
     "1" * 30, "modus", "`", " - at `$.", "\ufeff", "\x85", "\u2028"]
)  # fmt: skip
SNIPPETS = st.lists(PIECES | st.text(max_size=3), max_size=30).map("".join)


@settings(max_examples=400)
@given(
    st.one_of(
        st.binary(max_size=200),
        SNIPPETS.map(lambda text: text.encode("utf-8", "surrogatepass")),
        TREES.map(msgspec.json.encode),  # JSON is YAML
    )
)
def test_any_file_is_a_configuration_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        loaded = load(str(path), ENVIRON)
    except ConfigError:
        assert "hunter2" not in refused(path)
    else:
        assert loaded.agents or loaded.discovery.enabled
        assert all(agent.id >= 1 for agent in loaded.agents)
