"""config.yaml as one frozen `Config`: defaults filled in, everything checked, mistakes told in one line.

PyYAML reads the file with a narrow loader: no aliases, tags or duplicate keys, and only null, true, false
and decimal whole numbers are anything but text, so `yes`, `010` and `1:30` cannot turn into something else.
msgspec then types it. Relative paths are relative to the working directory.
"""

import difflib
import os
import re
import stat
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Meta

MAX_BYTES = 1 << 20  # a file that lists 10,000 agents has a tenth of this
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_TOKEN = re.compile("[!-~]{1,4096}")  # what an HTTP header can carry
_UNITS = {
    "y": 31_536_000_000,
    "w": 604_800_000,
    "d": 86_400_000,
    "h": 3_600_000,
    "m": 60_000,
    "s": 1000,
    "ms": 1,
}
_DURATION = re.compile("".join(f"(?:([0-9]{{1,15}}){unit})?" for unit in _UNITS))
_MAX_MILLISECONDS = (1 << 63) // 1_000_000  # Prometheus keeps durations as 64-bit nanoseconds: 292 years


class ConfigError(Exception):
    """A configuration that cannot be used; the text is one line: file, key path, what was expected."""


class TokenError(Exception):
    """A token file that gives no token; the text is one line that names the file."""


class Secret(str):
    """Text that does not show in a repr."""

    __slots__ = ()

    def __repr__(self) -> str:  # noqa: D105 - the class says it
        return "'***'"


class Duration(float):
    """Seconds; in the file a Prometheus duration (1h30m, 500ms, 1d, 0s)."""


class Positive(Duration):
    """A duration above zero."""


Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]


class Modus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach the API. After `load` exactly one of `token` and `token_file` is set."""

    base_url: str = "https://api.getmodus.com"
    token: Secret | None = None
    token_file: Text | None = None
    resource: Literal["auto", "agents", "workflows"] = "auto"
    timeout: Positive = Positive(10)
    concurrency: Annotated[int, Meta(ge=1, le=1024)] = 32


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An agent listed by id; a run of it should start at least every `expected_interval` seconds."""

    id: Count
    expected_interval: Positive | None = None


class Discovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether to list the agents the token may use; globs on their names."""

    enabled: bool = False
    refresh_interval: Positive = Positive(300)
    include: Annotated[tuple[str, ...], Meta(min_length=1)] = ("*",)
    exclude: tuple[str, ...] = ()


class Runs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the lists of runs are read; `max_pages` is per agent and scrape."""

    page_size: Annotated[int, Meta(ge=1, le=100)] = 100
    lookback: Positive = Positive(86_400)
    max_pages: Count = 20
    timeframe: Text | None = None


_BOUNDS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 86_400)


class Histogram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds of the duration buckets in seconds, ascending, without +Inf."""

    buckets: Annotated[tuple[Positive, ...], Meta(min_length=1)] = tuple(map(Positive, _BOUNDS))


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ledger's file; None keeps it in memory."""

    path: Text | None = "data/modus-exporter.db"


class Scrape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The time a scrape may take, and how young the last one must be to be served again."""

    timeout_offset: Duration = Duration(0.5)
    default_timeout: Positive = Positive(10)
    min_interval: Duration = Duration(0)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `Config()` has the defaults without token and agents; only `load` insists on those."""

    modus: Modus = Modus()
    agents: tuple[AgentConfig, ...] = ()
    discovery: Discovery = Discovery()
    runs: Runs = Runs()
    histogram: Histogram = Histogram()
    state: State = State()
    scrape: Scrape = Scrape()


def load(path: str, environ: Mapping[str, str]) -> Config:
    """Read and check the file; `${NAME}` in its strings comes from `environ`, without surrounding whitespace.

    Raises ConfigError. Its text never holds the token, the base URL or a value from the environment.
    """
    try:
        raw = _with_defaults(_parse(_read(path)), environ)
        try:
            config = msgspec.convert(_expand(raw, "", environ), Config, dec_hook=_decode)
        except msgspec.ValidationError as error:
            raise ConfigError(_explain(str(error), raw)) from None
        _check(config)
    except ConfigError as error:
        line = _CONTROL.sub(lambda match: repr(match[0])[1:-1], f"{path}: {error}")
        # a token in the wrong place, as in `token:modus_pat_...`, must not be quoted back
        raise ConfigError(re.sub(r"modus_pat_[\w-]+", "modus_pat_***", line)) from None
    return config


def token_source(modus: Modus) -> Callable[[], str]:
    """A function that gives the token of the moment, for any thread.

    A token file is read again when it changes, symlink swaps included. The function raises TokenError while
    the file is missing, unreadable or without a token; an earlier token is not used then.
    """
    path = modus.token_file
    if path is None:
        token = modus.token or ""
        return lambda: token
    known: tuple[tuple[int, ...], str] = ((), "")  # replaced as a whole: threads need no lock

    def read() -> str:
        nonlocal known
        try:
            identity, token = known
            if _identity(os.stat(path)) != identity:
                with open(path, "rb") as file:
                    identity = _identity(
                        os.fstat(file.fileno())
                    )  # first: a write during the read shows next time
                    token = file.read(8192).decode("ascii", "replace").strip()
                if not _TOKEN.fullmatch(token):
                    raise TokenError(
                        "it holds no token (one line of printable ASCII)" if token else "it is empty"
                    )
                known = identity, token
        except (OSError, TokenError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise TokenError(f"cannot read the token file {path}: {reason}") from None
        return token

    return read


def _identity(status: os.stat_result) -> tuple[int, ...]:
    if not stat.S_ISREG(status.st_mode):  # a pipe would block every request
        raise TokenError("it is not a regular file")
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError("expected at most 1 MiB, got more")
        return content.decode()
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"expected UTF-8 text, got something else at byte {error.start}") from None


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - where PyYAML looks; filled below

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise _problem("expected no alias and no tag", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key.value, str) or not re.fullmatch(r"[\w.-]{1,100}", key.value):
                raise _problem("expected a key like base_url", key)
            if key.value in mapping:
                raise _problem(f"the key {key.value} is given twice", key)
            mapping[key.value] = self.construct_object(value, deep=True)
        return mapping


def _problem(text: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=at.start_mark)


for _tag, _pattern, _first in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", "-?(0|[1-9][0-9]{0,17})", [*"-0123456789"]),  # longer ones would not fit into SQLite's integers
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"({_pattern})\Z"), _first)


def _parse(text: str) -> dict[str, Any]:
    try:
        data = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        raise ConfigError(f"line {line + 1}: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"line {text.count(chr(10), 0, error.position) + 1}: {error.reason}") from None
    except RecursionError:
        raise ConfigError("expected YAML of three levels at most, got far too many") from None
    except (ValueError, OverflowError):  # int() and chr() inside PyYAML, for absurd versions and escapes
        raise ConfigError("expected YAML, got a number out of range") from None
    if not isinstance(data, dict | None):
        raise ConfigError("expected a mapping with keys like agents and discovery")
    # a section without value is one whose keys are all commented out
    return {key: value for key, value in (data or {}).items() if value is not None}


def _with_defaults(raw: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Write out what the file may leave unsaid: agents as bare ids, and what the environment gives."""
    if isinstance(raw.get("agents"), list):
        raw["agents"] = [{"id": agent} if type(agent) is int else agent for agent in raw["agents"]]
    modus = raw.setdefault("modus", {})
    if isinstance(modus, dict):
        if modus.get("token") is None and modus.get("token_file") is None:
            modus["token"] = "${MODUS_API_KEY}"  # noqa: S105 - the name, not the token
        if environ.get("MODUS_BASE_URL"):
            modus.setdefault("base_url", "${MODUS_BASE_URL}")
    return raw


def _expand(value: Any, path: str, environ: Mapping[str, str]) -> Any:
    """The same tree with every `${NAME}` replaced."""
    if isinstance(value, dict):
        return {key: _expand(item, f"{path}.{key}".lstrip("."), environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{path}[{i}]", environ) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        name = match[1].removesuffix("}")
        if path == "modus.token" and name == "MODUS_API_KEY" and not environ.get(name):
            raise ConfigError(f"{path}: set the environment variable {name}, or give modus.token_file")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*\}", match[1]):
            raise ConfigError(f"{path}: expected the name of an environment variable between ${{ and }}")
        if name not in environ:
            raise ConfigError(f"{path}: the environment variable {name} is not set")
        return environ[name].strip()

    text = re.sub(r"\$\{([^}]*\}?)", variable, value)
    if _CONTROL.search(text):
        raise ConfigError(f"{path}: expected text without control characters")
    return text


def _decode(kind: type, value: Any) -> Any:
    """msgspec's hook for Secret and the durations; `_explain` adds to its errors where, and what was got."""
    text = str(value) if type(value) in (int, str) else ""
    if kind is Secret:
        if not _TOKEN.fullmatch(text):
            raise ValueError("expected a token in printable ASCII without spaces")
        return Secret(text)
    if text == "0":  # the one that Prometheus takes without a unit
        text = "0s"
    elif re.fullmatch("-?[0-9.]+", text):
        raise ValueError("expected a duration with a unit like 30s")
    match = _DURATION.fullmatch(text)
    numbers = match.groups("0") if text and match else ()
    milliseconds = sum(int(number) * unit for number, unit in zip(numbers, _UNITS.values(), strict=False))
    if not numbers or milliseconds > _MAX_MILLISECONDS:
        raise ValueError("expected a duration like 1h30m")
    if kind is Positive and not milliseconds:
        raise ValueError("expected a duration above 0s")
    return kind(milliseconds / 1000)


_WORDS = {"int": "a whole number", "bool": "true or false", "array": "a list", "object": "a mapping"}
_UNQUOTED = (
    "modus",
    "modus.token",
    "modus.token_file",
    "modus.base_url",
)  # what stands there may be a secret


def _explain(text: str, raw: Any) -> str:
    """msgspec's message in the words of the file; values as written there, before any `${NAME}`."""
    text, path = re.fullmatch(r"(.*?)(?: - at `\$\.?([^`]*)`)?", text).groups("")  # type: ignore[union-attr]
    if unknown := re.fullmatch("Object contains unknown field `(.*)`", text):
        sections: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Config)}
        known = AgentConfig if path.startswith("agents[") else sections.get(path, Config)
        near = difflib.get_close_matches(unknown[1], known.__struct_fields__, 1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known.__struct_fields__)}"
        return f"{path}.{unknown[1]}: unknown key; {hint}".lstrip(".")
    value = raw
    for part in re.findall(r"[^.\[\]]+", path):
        value = value[int(part) if isinstance(value, list) else part]
    expected = text.partition(", got ")[0].replace("Expected", "expected")
    expected = re.sub(r"`(\w+)( \| null)?`", lambda match: _WORDS.get(match[1], "text"), expected)
    expected = expected.replace("of length >= 1", "that is not empty")
    if text.startswith("Invalid enum value"):
        expected = "expected auto, agents or workflows"
    elif re.fullmatch(r"agents\[\d+\]", path):
        expected = "expected an agent's id or a mapping with its id"
    return f"{path}: {expected}" if path in _UNQUOTED else f"{path}: {expected}, got {_got(value)}"


def _got(value: Any) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:40]}...")
    names = {dict: "a mapping", list: "a list", bool: str(value).lower(), type(None): "null"}
    return names.get(type(value), str(value))


def _check(config: Config) -> None:
    """What no single value shows. Raises ConfigError."""
    seen: set[int] = set()
    for i, agent in enumerate(config.agents):
        if agent.id in seen:
            raise ConfigError(f"agents[{i}]: agent {agent.id} is listed twice")
        seen.add(agent.id)
    if not seen and not config.discovery.enabled:
        raise ConfigError("agents: list at least one agent's id, or set discovery.enabled to true")
    if config.modus.token is not None and config.modus.token_file is not None:
        raise ConfigError("modus: expected token or token_file, got both")
    if not _is_base_url(config.modus.base_url):
        raise ConfigError(
            "modus.base_url: expected an http(s) URL without user, password, query and fragment"
        )
    for i, (lower, upper) in enumerate(pairwise(config.histogram.buckets), 1):
        if upper <= lower:
            raise ConfigError(f"histogram.buckets[{i}]: expected a bound above the one before it")
    if config.scrape.timeout_offset >= config.scrape.default_timeout:
        raise ConfigError("scrape.timeout_offset: expected less than scrape.default_timeout")


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a broken IPv6 address or port
        return False
    return usable and not re.search(r"[\s\\@?#]", text)
