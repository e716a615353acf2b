"""YAML files as typed values, and every mistake in them as one line with the line or the key path.

PyYAML reads, msgspec types. Of the two kinds of scalars a quoted one is text. What a plain one means is up
to the file: in the narrow kind only null, true, false and decimal whole numbers are anything but text, so
`yes`, `010` and `1:30` cannot turn into something else, and there are no aliases and tags; in the ordinary
kind each plain scalar but null stays text, for whoever takes the value to type.
"""

import difflib
import re
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
import yaml
from msgspec import inspect

MAX_BYTES = 1 << 20  # a file that lists 10,000 agents has a tenth of this
_MAX_DEPTH = 20
_TAG = "tag:yaml.org,2002:"
_KEY = re.compile(r"[\w.-]{1,100}")
_HALF = re.compile("[\ud800-\udfff]")  # of a pair of UTF-16: no text has it, but an escape can ask for it
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# `[${NAME}]`, a scalar that YAML does not know: private characters stand for the braces while PyYAML reads
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_STAND_IN = re.compile("\ue000([A-Za-z_][A-Za-z0-9_]*)\ue001")
_TRUTH = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_NULL = ("", "~", "null", "Null", "NULL")
_WHOLE = re.compile("0|-?[1-9][0-9]{0,17}")  # longer ones would not fit into SQLite's integers
_WORDS = {"int": "a whole number", "bool": "true or false", "array": "a list", "object": "a mapping"}

T = TypeVar("T", bound=msgspec.Struct)


class YamlError(Exception):
    """What is wrong in a file: its line or key path, and what was expected there."""


class Plain(str):
    """A plain scalar that names a variable: what it means shows when that is replaced."""

    __slots__ = ()


def escaped(text: str) -> str:
    """The text with its control characters escaped."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def parse(content: bytes, kind: type[msgspec.Struct], *, ordinary: bool = False) -> dict[str, Any]:
    """The mapping that the file holds, in the file's own words; sections without value are left out.

    `kind` is what it will be converted to. Raises YamlError.
    """
    if len(content) > MAX_BYTES:
        raise YamlError("expected at most 1 MiB, got more")
    try:
        text = content.decode()
        narrow = _VARIABLE.sub("\ue000\\1\ue001", text)
        data = (_Loader(text) if ordinary else _NarrowLoader(narrow)).get_single_data()
    except UnicodeDecodeError as error:
        raise YamlError(f"expected UTF-8 text, got something else at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        problem = re.sub("'([^']*)'", _harmless, error.problem or "expected YAML")
        problem += ": check the indentation" if "<block" in problem else ""
        raise YamlError(f"line {line + 1}: {problem}") from None
    except yaml.reader.ReaderError as error:
        raise YamlError(f"line {text.count(chr(10), 0, error.position) + 1}: {error.reason}") from None
    except (ValueError, OverflowError):  # int() and chr() inside PyYAML, for absurd versions and escapes
        raise YamlError("expected YAML, got a number out of range") from None
    if not isinstance(data, dict | None):
        raise YamlError(f"expected a mapping with keys like {' and '.join(kind.__struct_fields__[1:3])}")
    # a section without value is one whose keys are all commented out
    return {key: value for key, value in (data or {}).items() if value is not None}


def typed(text: str) -> Any:
    """What a plain scalar of the narrow kind means: None, a bool, an int, or the text itself."""
    if text in _NULL:
        return None
    return int(text) if _WHOLE.fullmatch(text) else _TRUTH.get(text, text)


def expand(value: Any, variable: Callable[[str, str], str], path: str = "") -> Any:
    """The same tree with every `${NAME}` replaced by `variable(key path, NAME)`. Raises YamlError.

    A plain scalar is typed afterwards as the file's own are; but an empty one stays text, so that an empty
    variable turns nothing off.
    """
    if isinstance(value, dict):
        return {key: expand(item, variable, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, variable, f"{path}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*\}", match[1]):
            raise YamlError(f"{path}: expected the name of an environment variable between ${{ and }}")
        return variable(path, match[1][:-1])

    text = re.sub(r"\$\{([^}]*\}?)", replaced, value)
    if _CONTROL.search(text):
        raise YamlError(f"{path}: expected text without control characters{origin(value)}")
    return typed(text) if isinstance(value, Plain) and text else text


def convert(
    data: object,
    kind: type[T],
    decode: Callable[[type, Any], Any],
    *,
    raw: object,
    secret: Callable[[str], bool],
) -> T:
    """`data` as a `kind`; `decode` is msgspec's hook for what msgspec does not know.

    `raw` is the same tree as the file has it: a mistake quotes its values, but for those at key paths that
    are `secret`. Raises YamlError.
    """
    try:
        return msgspec.convert(data, kind, dec_hook=decode)
    except msgspec.ValidationError as error:
        raise YamlError(_explain(str(error), kind, raw, secret)) from None


def origin(value: object) -> str:
    """Where a value of the file that is nothing but a variable comes from, for the end of a message."""
    return f", got {value}" if isinstance(value, str) and _VARIABLE.fullmatch(value) else ""


def got(value: object) -> str:
    """A value of the file as a message may quote it."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:40]}...")
    names = {dict: "a mapping", list: "a list", bool: str(value).lower(), type(None): "null"}
    return names.get(type(value), str(value))


def shown(key: str) -> str:
    """A key as a message may name it: `name:hash`, without a space, is a key too, and is not shown."""
    return key if _KEY.fullmatch(key) else "***"


def _explain(text: str, kind: type, raw: Any, secret: Callable[[str], bool]) -> str:
    """msgspec's message in the words of the file."""
    match = re.fullmatch(r"(.*?)(?: - at `\$\.?([^`]*)`)?", text, re.DOTALL)
    text, path = match.groups("") if match else ("Expected YAML", "")
    parts = re.findall(r"[^.\[\]]+|\[\.\.\.\]", path)
    if unknown := re.fullmatch("Object contains unknown field `(.*)`", text, re.DOTALL):
        known = [field.name for field in _type_at(kind, parts).fields]
        near = difflib.get_close_matches(unknown[1], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{path}.{shown(unknown[1])}: unknown key; {hint}".lstrip(".")
    if missing := re.fullmatch("Object missing required field `(.*)`", text):
        return f"{path}.{missing[1]}: expected a value, got none".lstrip(".")
    expected = text.partition(", got ")[0].replace("Expected", "expected")
    expected = re.sub(r"`(\w+)( \| null)?`", lambda match: _WORDS.get(match[1], "text"), expected)
    expected = expected.replace("of length >= 1", "that is not empty")
    if text.startswith("Invalid enum value"):
        owner = get_type_hints(_type_at(kind, parts[:-1]).cls)
        *others, last = get_args(owner[parts[-1]])
        expected = f"expected {', '.join(others)} or {last}"
    value = raw
    for part in parts:  # [...] is a value of a mapping, of which msgspec does not name the key
        value = value[int(part) if isinstance(value, list) else part] if part != "[...]" else None
    return f"{path}: {expected}{origin(value) if secret(path) else f', got {got(value)}'}"


def _type_at(kind: type, parts: list[str]) -> Any:
    """What msgspec knows of the type at a key path."""
    node: Any = inspect.type_info(kind)
    for part in parts:
        if isinstance(node, inspect.StructType):
            node = next(field.type for field in node.fields if field.name == part)
        else:
            node = node.value_type if isinstance(node, inspect.DictType) else node.item_type
        if isinstance(node, inspect.UnionType):
            node = next(one for one in node.types if not isinstance(one, inspect.NoneType))
    return node


def _harmless(quoted: re.Match[str]) -> str:
    """What PyYAML quotes: a character, a token like <scalar>, or a name, which may be a bare password."""
    return quoted[0] if len(quoted[1]) <= 2 or quoted[1][0] in "<\\" else "'***'"


def _ordinary_scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    text = loader.construct_scalar(node)
    if _HALF.search(text):
        raise _problem("expected text of whole characters", node)
    return None if node.style is None and text in _NULL else text


def _narrow_scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    text = _STAND_IN.sub(r"${\1}", node.value)
    if node.style is not None:
        return text
    return Plain(text) if "${" in text else typed(text)


class _Loader(yaml.SafeLoader):
    """No key twice, whatever it is; not nested deeper than any file needs."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML looks here: the constructors type instead
    yaml_constructors = {
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (f"{_TAG}map", f"{_TAG}seq", None)
    } | {f"{_TAG}{name}": _ordinary_scalar for name in ("str", "null", "bool", "int", "float")}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.depth > _MAX_DEPTH:
            raise YamlError(f"expected YAML of {_MAX_DEPTH} levels at most, got more")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        if not isinstance(node, yaml.MappingNode):
            raise _problem("expected a mapping", node)
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not self.is_key(key.value):
                raise _problem("expected a key like base_url", key)
            if key.value in mapping:  # the last one would win: somebody might keep an old password
                raise _problem(f"the key {shown(key.value)} is given twice", key)
            mapping[key.value] = self.construct_object(value, deep=True)
        return mapping

    def is_key(self, key: object) -> bool:
        return isinstance(key, str) and not _HALF.search(key)


class _NarrowLoader(_Loader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise _problem("expected no alias and no tag", event)
        return super().compose_node(parent, index)

    def is_key(self, key: object) -> bool:
        return isinstance(key, str) and bool(_KEY.fullmatch(key))


_NarrowLoader.add_constructor(f"{_TAG}str", _narrow_scalar)


def _problem(text: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=at.start_mark)
