"""PromQL of the dashboards: what is failing, stuck, waiting and silent, and the sums behind the graphs.

Raw metrics only, so that the dashboards work without the recording rules; definitions are those of
prometheus/modus.template.yml, limits those of settings.py. Four habits keep the numbers true:

- Agent 42 of two installations is two agents: everything goes by cluster, namespace, job and agent_id.
- Replicas of the exporter show the same agents: the largest instance counts, never the sum of them.
- Names are in `modus_agent_info` alone and are joined at the end, one per agent: a rename breaks nothing.
- Runs are sparse: windows are an hour or the dashboard's time range, never the step between two points.
"""

from pathlib import Path

import yaml
from settings import settings

_PROMETHEUS = Path(__file__).parent.parent / "prometheus"
_CONFIG = yaml.safe_load((_PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
_LIMITS = settings()

STUCK = _LIMITS["stuck_after_seconds"]  # a run that has been running for longer is stuck
WAITING_LONG = _LIMITS["waiting_after_seconds"]  # a run that has been waiting for longer is orange
FAILING_AFTER = _LIMITS["failing_after_seconds"]  # an agent that succeeded since is not failing
OBJECTIVE = _LIMITS["objective_ratio"]  # share of runs that should succeed
FAILURE_LIMIT = _LIMITS["failure_limit_ratio"]  # from here red; orange from what the objective allows
RECONCILE_OVERDUE = _LIMITS["reconcile_overdue_seconds"]  # not compared with the list for longer: orange
MIN_RUNS = _LIMITS["min_runs"]  # no ratio of fewer runs is coloured
# failures of an hour and of six, over what the objective allows
BURN_1H, BURN_6H = _LIMITS["burn_1h_factor"], _LIMITS["burn_6h_factor"]
SILENT_FACTOR, SILENT_GRACE = _LIMITS["silent_factor"], _LIMITS["silent_grace_seconds"]
MISSED_START = _LIMITS["missed_start_seconds"]
STALE = _LIMITS["stale_after_seconds"]  # not read for longer: orange
SCRAPE_TIMEOUT = int(_CONFIG["global"]["scrape_timeout"].removesuffix("s"))  # seconds
TOP = 10  # agents that one panel draws, however many are selected

BUDGET = round(1 - OBJECTIVE, 6)
INSTALLATION = "cluster, namespace, job"
KEY = f"{INSTALLATION}, agent_id"  # what an agent is known by
JOB = 'cluster=~"$cluster",namespace=~"$namespace",job=~"$job"'
AGENT = f'{JOB},agent_id=~"$agent"'
HOUR, RANGE = "1h", "$__range"
JUDGED = 'status=~"completed|error"'  # somebody's decision to cancel is no failure, and no success
ERROR = 'status="error"'


def _selector(metric: str, match: str = "") -> str:
    return f"{metric}{{{','.join(filter(None, (AGENT, match)))}}}"


def _key(also: str) -> str:
    return ", ".join(filter(None, (KEY, also)))


def gauge(metric: str, match: str = "", also: str = "", pick: str = "max") -> str:
    """One value per agent, and per label `also`, whatever the number of exporters that show it."""
    return f"{pick} by ({_key(also)}) ({_selector(metric, match)})"


def increase(metric: str, window: str, also: str = "", match: str = "", at: str = "") -> str:
    """The growth of a counter per agent, and per label `also`: that of the exporter with the largest."""
    grown = f"increase({_selector(metric, match)}[{window}]{at})"
    return f"max by ({_key(also)}) (sum by ({_key(also)}, instance) ({grown}))"


def ended(window: str, also: str = "", match: str = "", at: str = "") -> str:
    """Ended runs per agent."""
    return increase("modus_agent_runs_finished_total", window, also, match, at)


def failure_ratio(window: str, by: str = "") -> str:
    """Errors among the runs that completed or failed; absent where there were none."""
    total = f"sum by ({by})" if by else "sum"
    return f"{total} ({ended(window, match=ERROR)}) / ({total} ({ended(window, match=JUDGED)}) > 0)"


def enough(expr: str, window: str, by: str = "") -> str:
    """The ratio where it is one of at least MIN_RUNS runs."""
    return f"{expr} and {_judged(window, by)} >= {MIN_RUNS}"


def few(expr: str, window: str) -> str:
    """The ratio where it is one of fewer runs: nothing to be alarmed about."""
    return f"{expr} unless {_judged(window)} >= {MIN_RUNS}"


def _judged(window: str, by: str = "") -> str:
    total = f"sum by ({by})" if by else "sum"
    return f"round({total} ({ended(window, match=JUDGED)}))"


def durations(window: str, by: str = "", match: str = "") -> tuple[str, str]:
    """The histogram of the completed runs' durations, native and classic: of all agents, or one `by` labels.

    `match` limits the agents. No maximum of two native histograms can be taken: of several exporters the one
    with more runs counts.
    """
    metric = "modus_agent_run_duration_seconds"
    grown = f"increase({_selector(metric)}[{window}])"
    most = f"topk by ({KEY}) (1, sum by ({KEY}, instance) (histogram_count({grown})))"
    native, classic = f"{grown} and on ({KEY}, instance) {most}", increase(f"{metric}_bucket", window, "le")
    total = f"sum by ({by})" if by else "sum"
    buckets = f"sum by ({', '.join(filter(None, (by, 'le')))})"
    return f"{total} ({native}{match})", f"{buckets} ({classic}{match})"


def quantile(q: float, histograms: tuple[str, str]) -> str:
    """Seconds that a share `q` stayed below, by the native histogram or else the classic one."""
    return " or ".join(f"histogram_quantile({q}, {histogram}) >= 0" for histogram in histograms)


def share_in_time(window: str) -> str:
    """The share of the completed runs that took no longer than is expected of their agent.

    From the native histogram. Else, in every version of Prometheus, from the bucket that ends there (its `le`
    is the number of seconds with `.0` behind it), or else, from 3.4 on, by interpolation.
    """
    native, classic = durations(window, match=f" and on ({KEY}) {EXPECTED_DURATION}")
    fraction = f"histogram_fraction(0, scalar(max({EXPECTED_DURATION})), %s) >= 0"
    bucket = "modus_agent_run_duration_seconds_bucket"
    ends = f'label_join(count_values by ({KEY}) ("le", {EXPECTED_DURATION}), "le", ".0", "le", "no_label")'
    within = f"{increase(bucket, window, 'le')} and on ({KEY}, le) {ends}"
    known = f"""{increase(bucket, window, match='le="+Inf"')} and on ({KEY}) ({within})"""
    return f"{fraction % native} or sum ({within}) / (sum ({known}) > 0) or {fraction % classic}"


def latency(q: float, by: str = "") -> str:
    """Seconds that a share `q` of the requests to the API stayed below."""
    rate = f"rate(modus_api_request_duration_seconds{{{JOB}}}[15m])"
    buckets = f"sum by ({', '.join(filter(None, (by, 'le')))}) ({rate.replace('{', '_bucket{', 1)})"
    return quantile(q, (f"sum by ({by}) ({rate})" if by else f"sum ({rate})", buckets))


def age(timestamp: str) -> str:
    """Seconds since; 0 where two clocks disagree about which was first."""
    return f"clamp_min(time() - {timestamp}, 0)"


def named(expr: str, at: str = "") -> str:
    """The vector, by KEY, with each agent's name; ` @ end()` for the last name at every point."""
    names = f"max by ({KEY}, agent_name) ({_selector('modus_agent_info')}{at})"
    return f"({expr}) * on ({KEY}) group_left (agent_name) topk by ({KEY}) (1, {names})"


def called(expr: str, at: str = "") -> str:
    """As `named`; who is used and not read has no name, and is called by its id."""
    with_id = f'label_join({expr}, "agent_name", "", "agent_id")'
    return f"{named(expr, at)} or {with_id} unless on ({KEY}) {_selector('modus_agent_info')}{at}"


def used(metric: str, window: str, also: str = "", at: str = "") -> str:
    """What agents used, read by this exporter or not."""
    return increase(metric, window, also, at=at)


def of_models(metric: str, window: str) -> str:
    """What was used of each model, by all agents."""
    grown = f"increase({metric}{{{JOB}}}[{window}])"
    return f"max by ({INSTALLATION}, model) (sum by ({INSTALLATION}, model, instance) ({grown}))"


def top(expr: str, by: str = "", agents: int = TOP) -> str:
    """The agents with the largest values, as of now."""
    return f"topk{f' by ({by})' if by else ''} ({agents}, {named(expr)})"


def of(shown: str, expr: str) -> str:
    """The vector with names, of the agents that are `shown` (a limited query) only."""
    return f"{named(expr)} and on ({KEY}) {shown}"


def most_errors(expr: str, count: int = TOP, least: str = ">= 0") -> str:
    """The vector of the agents with the most errors in the time range: the same ones at every point."""
    errors = ended(RANGE, match=ERROR, at=" @ end()")
    return named(f"({expr}) and on ({KEY}) topk({count}, {errors} {least})", " @ end()")


def count(expr: str) -> str:
    """How many agents: 0 when none of the known agents is meant, absent when none is known."""
    return f"count({expr}) or 0 * count({UP})"


_OPEN = "modus_agent_oldest_open_run_start_timestamp_seconds"
_END = "modus_agent_last_run_end_timestamp_seconds"
UP = gauge("modus_agent_up")
ENABLED = gauge("modus_agent_enabled")
BACKLOG = gauge("modus_agent_backlog")
LAST_READ = gauge("modus_agent_last_read_timestamp_seconds")
LAST_RECONCILED = gauge("modus_agent_last_reconciled_timestamp_seconds")
STARTED = gauge("modus_agent_last_run_start_timestamp_seconds")
SUCCEEDED = gauge(_END, 'status="completed"')
FAILED = gauge(_END, ERROR)
IN_A_ROW = gauge("modus_agent_consecutive_failures")
MISSED = increase("modus_agent_runs_missed_total", RANGE)
OPEN = gauge(_OPEN, pick="min")
OPEN_BY_STATUS = gauge(_OPEN, also="status", pick="min")
OPEN_COUNTS = gauge("modus_agent_runs", 'status=~"running|awaiting_human"', also="status")
NOT_READ = f"{UP} == 0"
# of all agents, selected or not
MONTH_OF_ALL = f"sum by ({INSTALLATION}) (max by ({KEY}) (modus_agent_month_credits{{{JOB}}}))"
BUDGET_OF_ALL = f"max by ({INSTALLATION}) (modus_budget_credits{{{JOB}}})"
LAST_DUE = gauge("modus_agent_schedule_last_due_timestamp_seconds")
NEXT_DUE = gauge("modus_agent_schedule_next_due_timestamp_seconds", pick="min")
ENDED_LAST = gauge("modus_agent_last_run_end_timestamp_seconds")
# As the alert ModusAgentStartMissed, but without its patience: due, and nothing has started or ended since.
MISSED_FOR = (
    f"clamp_min({LAST_READ} - ({LAST_DUE} unless {STARTED} >= {LAST_DUE} unless {ENDED_LAST} >= {LAST_DUE} "
    f"unless {OPEN}), 0)"
)

# As the alert ModusAgentLastRunFailed: an agent that succeeded lately is left to the failure ratio.
FAILING = f"{FAILED} unless {SUCCEEDED} >= {FAILED} unless time() - {SUCCEEDED} <= {FAILING_AFTER}"
NO_SUCCESS_FOR = f"{age(SUCCEEDED)} and ({FAILING}) or 0 * ({FAILING}) - 1"  # -1: never succeeded
RUNNING = age(gauge(_OPEN, 'status="running"', pick="min"))
IS_STUCK = f"{RUNNING} > {STUCK}"
WAITING = age(gauge(_OPEN, 'status="awaiting_human"', pick="min"))
# Up to the last read, not up to now: one that cannot be read is not silent, nor one that is switched off.
EXPECTED = gauge("modus_agent_expected_interval_seconds")
EXPECTED_DURATION = gauge("modus_agent_expected_duration_seconds")
OFF = f"{ENABLED} == 0"
SILENT = f"clamp_min({LAST_READ} - {STARTED}, 0) > {SILENT_FACTOR} * {EXPECTED} + {SILENT_GRACE} unless {OFF}"

# The worst that applies is an agent's state: code, name, colour, query.
STATES = (
    (8, "Failing", "red", FAILING),
    (7, "Stuck", "red", IS_STUCK),
    (6, "Silent", "orange", SILENT),
    (5, "Not readable", "#8e8e8e", NOT_READ),
    (4, "Waiting long", "orange", f"{WAITING} > {WAITING_LONG}"),
    (3, "Waiting", "blue", WAITING),
    (2, "Switched off", "#8e8e8e", OFF),
    (1, "No runs yet", "#8e8e8e", f"{UP} unless {STARTED}"),
    (0, "OK", "green", UP),
)
STATE = " or ".join(f"0 * ({expr}) + {code}" for code, _, _, expr in STATES)
READ = f"{UP} * (1 + {BACKLOG}) or {UP}"  # 0 failed, 1 read, 2 read and older pages to come
