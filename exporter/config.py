"""config.yaml as one frozen `Config`: defaults filled in, everything checked, mistakes told in one line.

Relative paths are relative to the working directory.
"""

import os
import re
from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from exporter import baseurl, yamlfile
from exporter.scalars import Amount, Count, DatabaseUrl, Duration, Positive, Secret, Switch, Text, decode
from exporter.yamlfile import YamlError


class ConfigError(YamlError):
    """A configuration that cannot be used; the text is one line: file, key path, what was expected."""


class Modus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach the API. After `load` exactly one of `token` and `token_file` is set."""

    base_url: str = "https://api.getmodus.com"
    token: Secret | None = None
    token_file: Text | None = None
    ca_file: Text | None = None  # None: the authorities of the environment, or those of certifi
    resource: Literal["auto", "agents", "workflows"] = "auto"
    timeout: Positive = Positive(10)
    concurrency: Annotated[int, Meta(ge=1, le=1024)] = 32
    max_requests_per_second: Amount | None = None


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An agent listed by id, and what is expected of it, in seconds: a run should start at least every
    `expected_interval`, and take no longer than `expected_duration`.
    """

    id: Count
    expected_interval: Positive | None = None
    expected_duration: Positive | None = None


class Discovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to list the agents the token may use; globs on their names."""

    enabled: bool = False
    refresh_interval: Positive = Positive(300)
    include: Annotated[tuple[str, ...], Meta(min_length=1)] = ("*",)
    exclude: tuple[str, ...] = ()


class Runs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the lists of runs are read; `max_pages` is per agent and scrape, `reconcile_interval` 0: never.

    `log`: which ended runs get a line in the log, with what the task said when it failed if `log_task_error`.
    """

    page_size: Annotated[int, Meta(ge=1, le=100)] = 100
    lookback: Positive = Positive(86_400)
    max_pages: Count = 20
    timeframe: Text | None = None
    reconcile_interval: Duration = Duration(3600)
    log: Literal["off", "failed", "all"] = "off"
    log_task_error: bool = False


class AgentBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Credits a calendar month (UTC) of one agent."""

    id: Count
    credits: Amount


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Credits a calendar month (UTC): of all agents together, and of single ones."""

    total: Amount | None = None
    agents: tuple[AgentBudget, ...] = ()


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the usage report is read (auto: when the token may), how often, and what may be used."""

    enabled: Switch = Switch("auto")
    refresh_interval: Positive = Positive(300)
    budget: Budget = Budget()


_BOUNDS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 86_400)


class Histogram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds of the duration buckets in seconds, ascending, without +Inf."""

    buckets: Annotated[tuple[Positive, ...], Meta(min_length=1)] = tuple(map(Positive, _BOUNDS))


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the ledger is: a file, whose path None keeps it in memory, or a database that several share.

    `password_file` holds the password for the URL's user; without it the URL, or libpq's own means.
    """

    path: Text | None = "data/modus-exporter.db"
    url: DatabaseUrl | None = None
    password_file: Text | None = None

    @property
    def file(self) -> str | None:
        """Its absolute path, so that what is said of it names the directory."""
        return self.path and _absolute(self.path)


class Scrape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The time a scrape may take, and how young the last one must be to be served again."""

    timeout_offset: Duration = Duration(0.5)
    default_timeout: Positive = Positive(10)
    min_interval: Duration = Duration(0)


class Exposition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is exposed; `created`: whether OpenMetrics has `_created` series."""

    created: bool = False


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `Config()` has the defaults without token and agents; only `load` insists on those."""

    modus: Modus = Modus()
    agents: tuple[AgentConfig, ...] = ()
    discovery: Discovery = Discovery()
    runs: Runs = Runs()
    usage: Usage = Usage()
    histogram: Histogram = Histogram()
    state: State = State()
    scrape: Scrape = Scrape()
    exposition: Exposition = Exposition()


def load(path: str, environ: Mapping[str, str]) -> Config:
    """Read and check the file; `${NAME}` in its values comes from `environ`, without surrounding whitespace.

    Raises ConfigError. Its text never holds the token, the base URL or text from the environment.
    """
    try:
        config = _config(yamlfile.parse(_read(path), Config), environ)
        refuse_same_file({"the configuration file": path} | _paths(config))
    except YamlError as error:
        raise _config_error(f"{path}: {error}") from None
    return config


def defaults(environ: Mapping[str, str]) -> Config:
    """What runs without a file: every default, with discovery. Raises ConfigError, as `load` does."""
    if not environ.get("MODUS_API_KEY"):
        raise ConfigError(
            "no configuration: set MODUS_API_KEY, name a file with --config.file, or try --demo"
        )
    try:
        return _config({"discovery": {"enabled": True}}, environ)
    except YamlError as error:
        raise _config_error(f"without a configuration file: {error}") from None


def refuse_same_file(paths: Mapping[str, str | None]) -> None:
    """Raise ConfigError when two of the paths (what each is -> where, None for nowhere) are one file."""
    real = {what: os.path.realpath(_absolute(path)) for what, path in paths.items() if path}
    for (first, one), (second, other) in combinations(real.items(), 2):
        if one == other:
            raise ConfigError(f"{second}: expected another file than {first}, got the same one")


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: the working directory was deleted; start in one that is there") from None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # a pipe will do: it is read once
            return file.read(yamlfile.MAX_BYTES + 1)
    except OSError as error:
        raise YamlError(f"cannot read the file: {error.strerror}") from None


def _config_error(text: str) -> ConfigError:
    # a token in the wrong place, as in `token:modus_pat_...`, must not be quoted back
    return ConfigError(re.sub(r"modus_pat_[\w-]+", "modus_pat_***", yamlfile.escaped(text)))


def _config(raw: dict[str, Any], environ: Mapping[str, str]) -> Config:
    """The configuration that a parsed file gives. Raises YamlError."""

    def variable(path: str, name: str) -> str:
        if path == "modus.token" and name == "MODUS_API_KEY" and not environ.get(name):
            raise YamlError(f"{path}: set {name}, give modus.token_file, or try --demo")
        if name not in environ:
            raise YamlError(f"{path}: the environment variable {name} is not set")
        return environ[name].strip()

    raw = _with_defaults(raw, environ)
    _check_state(raw.get("state"))
    data = yamlfile.expand(raw, variable)
    config = yamlfile.convert(data, Config, decode, raw=raw, secret=_MAY_BE_SECRET.__contains__)
    _check(config, raw)
    return config


def _with_defaults(raw: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Write out what the file may leave unsaid: agents as bare ids, and what the environment gives."""
    if isinstance(raw.get("agents"), list):
        raw["agents"] = [_agent(i, agent) for i, agent in enumerate(raw["agents"])]
    modus = raw.setdefault("modus", {})
    if isinstance(modus, dict):
        if modus.get("token") is None and modus.get("token_file") is None:
            modus["token"] = "${MODUS_API_KEY}"  # noqa: S105 - the name, not the token
        if environ.get("MODUS_BASE_URL"):
            modus.setdefault("base_url", "${MODUS_BASE_URL}")
    return raw


def _agent(i: int, agent: object) -> object:
    if type(agent) is int or isinstance(agent, yamlfile.Plain):
        return {"id": agent}
    if isinstance(agent, dict) and ("id" in agent or agent.keys() - set(AgentConfig.__struct_fields__)):
        return agent
    raise YamlError(
        f"agents[{i}]: expected an agent's id or a mapping with its id, got {yamlfile.got(agent)}"
    )


def _check_state(raw: object) -> None:
    """Raise YamlError for two places at once; the path has a default, so the values do not tell."""
    if not isinstance(raw, dict) or raw.get("url") is None:
        if isinstance(raw, dict) and raw.get("password_file") is not None:
            raise YamlError("state.password_file: expected state.url beside it, which it is for")
    elif raw.get("path") is not None:
        raise YamlError("state: expected path or url, got both")


# what stands there may be a secret
_MAY_BE_SECRET = ("state", "state.url", "modus", "modus.token", "modus.token_file", "modus.base_url")


def _check(config: Config, raw: Mapping[str, Any]) -> None:
    """What no single value shows; `raw` is what the file says. Raises YamlError."""
    for path, agent_ids in (
        ("agents", [agent.id for agent in config.agents]),
        ("usage.budget.agents", [agent.id for agent in config.usage.budget.agents]),
    ):
        seen: set[int] = set()
        for i, agent_id in enumerate(agent_ids):
            if agent_id in seen:
                raise YamlError(f"{path}[{i}]: agent {agent_id} is listed twice")
            seen.add(agent_id)
    if not config.agents and not config.discovery.enabled:
        raise YamlError("agents: list at least one agent's id, or set discovery.enabled to true")
    if config.modus.token is not None and config.modus.token_file is not None:
        raise YamlError("modus: expected token or token_file, got both")
    if config.modus.token is None and config.modus.token_file is None:  # both are variables that say null
        raise YamlError("modus: expected token or token_file, got neither")
    if problem := baseurl.problem(config.modus.base_url):
        raise YamlError(f"modus.base_url: expected {problem}{yamlfile.origin(raw['modus'].get('base_url'))}")
    if "://" in (config.state.path or ""):
        raise YamlError("state.path: expected the path of a file, got a URL: that of a database is state.url")
    for i, (lower, upper) in enumerate(pairwise(config.histogram.buckets), 1):
        if upper <= lower:
            raise YamlError(f"histogram.buckets[{i}]: expected a bound above the one before it")
    if config.scrape.timeout_offset >= config.scrape.default_timeout:
        raise YamlError("scrape.timeout_offset: expected less than scrape.default_timeout")


def _paths(config: Config) -> dict[str, str | None]:
    modus = config.modus
    return {
        "modus.token_file": modus.token_file,
        "modus.ca_file": modus.ca_file,
        "state.path": None if config.state.url else config.state.path,
        "state.password_file": config.state.password_file,
    }
