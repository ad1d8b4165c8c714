"""A YAML document as plain values that remember where they stand: file, line and column of every key.

Scalars follow YAML 1.2: only ``true`` and ``false`` are booleans, ``1e-4`` is a number, dates and ``1:30`` stay text. Keys are
text and stand once per mapping. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from connectors.errors import ConfigError

__all__ = ["Document", "KeyPath", "Problem", "dotted", "parse_scalar_or_flow", "raise_problems"]

_MOST_BYTES = 1 << 20
_MOST_VALUES = 100_000
"""Far beyond any pipeline; aliases of aliases would otherwise multiply a few lines into more than a memory holds."""

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the root of the document to a value."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a document."""

    path: KeyPath
    message: str
    where: str | None = None
    """Place, where it is not that of ``path``."""


@dataclass
class Document:
    """A parsed file, or the values of a Python dict."""

    values: dict[str, Any]
    base: Path
    """Folder that relative paths start from."""
    name: str
    """What messages call the document."""
    marks: dict[KeyPath, str] = field(default_factory=dict)
    """Key path → ``file.yaml:12:5`` or ``--set key=value``."""
    nulls: set[KeyPath] = field(default_factory=set)
    """Where a null was spelled out, not just left empty."""
    bases: dict[KeyPath, Path] = field(default_factory=dict)
    """Key path → folder for relative paths, where it is not ``base``."""
    problems: list[Problem] = field(default_factory=list)

    @staticmethod
    def read(path: Path) -> Document:
        """Read a YAML file. Raise ``ConfigError`` where it cannot be read or is no mapping; duplicate keys become problems."""
        try:
            with path.open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise ConfigError(f"{path}: the pipeline file is larger than {_MOST_BYTES} bytes; is it the right file?")
            text = content.decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"{path}: the pipeline file cannot be read: {reason}") from error
        document = Document({}, path.resolve().parent, str(path))
        try:
            node = yaml.compose(text, Loader=_Loader)
            values = _Reader(document).read(node, ()) if node is not None else None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
            raise ConfigError(f"{where}  not valid YAML: {error.problem or error.context}") from error
        except RecursionError as error:
            raise ConfigError(f"{path}  not valid YAML: {_TOO_DEEP}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}  not valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path}: a pipeline file is a mapping with the keys name, state, sources, operators and sinks; "
                + ("this file is empty" if node is None else f"this one holds {type(values).__name__} at the top")
            )
        document.values = values
        return document

    @staticmethod
    def of(values: Mapping[str, Any], base: Path, name: str) -> Document:
        """Wrap a Python mapping; ``name`` stands in messages where a file's name and line would."""
        return Document(_copy(values), base, name)

    def set(self, key: str, value: Any, where: str, base: Path) -> None:
        """Put ``value`` at the dotted ``key``, making mappings on the way. Raise ``ConfigError`` where that cannot be."""
        parts = key.split(".")
        if not all(parts):
            raise ConfigError(f"{where}: {key!r} is not a key path; write keys joined by dots, as in operators.detect.seed")
        target = self.values
        for depth, part in enumerate(parts[:-1]):
            if target.get(part) is None:
                target[part] = {}
                self.marks[tuple(parts[: depth + 1])] = where
            below = target[part]
            if not isinstance(below, dict):
                at = ".".join(parts[: depth + 1])
                raise ConfigError(f"{where}: {at!r} is {below!r}, not a mapping, so {parts[depth + 1]!r} cannot be set in it")
            target = below
        path: KeyPath = tuple(parts)
        self.marks = {known: mark for known, mark in self.marks.items() if known[: len(path)] != path}
        self.nulls = {known for known in self.nulls if known[: len(path)] != path}
        self.marks[path] = where
        self.bases[path] = base
        target[parts[-1]] = _copy(value)

    def where(self, path: KeyPath) -> str:
        """Return the place of ``path``, or of the nearest key around it."""
        for length in range(len(path), 0, -1):
            mark = self.marks.get(path[:length])
            if mark is not None:
                return mark
        return self.name

    def base_of(self, path: KeyPath) -> Path:
        """Return the folder that relative paths at ``path`` start from."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.bases:
                return self.bases[path[:length]]
        return self.base

    def report(self, path: Sequence[str | int], message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(tuple(path), message))


def dotted(path: Sequence[str | int]) -> str:
    """Write a key path as ``sources.clips.path[2]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def parse_scalar_or_flow(text: str, where: str) -> Any:
    """Parse the value of a ``--set``: a YAML scalar, ``[list]`` or ``{mapping}``. Raise ``ConfigError`` where it is none."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _Reader(Document({}, Path(), where)).read(node, ())
    except (yaml.YAMLError, RecursionError) as error:
        problem = _TOO_DEEP if isinstance(error, RecursionError) else getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: the value {text!r} is not valid YAML: {problem}; quote it as '\"...\"'") from error


def raise_problems(document: Document) -> None:
    """Raise one ``ConfigError`` that lists all problems of a document in the order of the file, if there are any."""
    if not document.problems:
        return
    order = {path: number for number, path in enumerate(document.marks)}

    def place(problem: Problem) -> int:
        paths = (problem.path[:length] for length in range(len(problem.path), 0, -1))
        return next((order[path] for path in paths if path in order), -1)

    lines = []
    for problem in sorted(document.problems, key=place):
        key = dotted(problem.path)
        line = f"{problem.where or document.where(problem.path)}  {key + ': ' if key else ''}{problem.message}"
        if line not in lines:
            lines.append(line)
    raise ConfigError("\n".join(lines))


class _Loader(yaml.SafeLoader):
    """A composer with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's interface)


_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
_MOST_DIGITS = 400
_TOO_DEEP = "it is nested too deeply"
_SCALARS = (
    ("tag:yaml.org,2002:null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?\d[\d_]*|0o[0-7]+|0x[\da-fA-F]+"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        list("-+.0123456789"),
    ),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern.pattern})\Z"), _first)


class _Reader:
    """Turns composed nodes into values and notes their places."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._open: set[int] = set()
        self._values = 0

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"there are more than {_MOST_VALUES} values, those that aliases repeat included",
                problem_mark=node.start_mark,
            )
        if node.tag not in _TAGS:
            raise yaml.MarkedYAMLError(problem=f"the tag {node.tag!r} is not allowed", problem_mark=node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            value = self._scalar(node)
            if value is None and node.value == "null":
                self._document.nulls.add(path)
            return value
        if id(node) in self._open:
            raise yaml.MarkedYAMLError(problem="an alias stands inside its own anchor", problem_mark=node.start_mark)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                values = []
                for number, item in enumerate(node.value):
                    self._mark((*path, number), item)
                    values.append(self.read(item, (*path, number)))
                return values
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem="a key must be text; put it in quotes", problem_mark=key_node.start_mark)
            key = key_node.value
            here = (*path, key)
            if key in values:
                first = self._document.marks[here].rpartition(":")[0].rpartition(":")[2]
                message = f"the key {key!r} stands twice, first in line {first}; remove one of them"
                self._document.problems.append(Problem(here, message, self._place(key_node)))
                continue
            self._mark(here, key_node)
            values[key] = self.read(value_node, here)
        return values

    def _mark(self, path: KeyPath, node: yaml.Node) -> None:
        self._document.marks[path] = self._place(node)

    def _place(self, node: yaml.Node) -> str:
        return f"{self._document.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    @staticmethod
    def _scalar(node: yaml.ScalarNode) -> Any:
        text, kind = node.value, node.tag
        if kind == _TAG + "str":
            return text
        pattern = next((pattern for tag, pattern, _ in _SCALARS if tag == kind), None)
        if pattern is None or not pattern.fullmatch(text):  # a tag that was written out
            raise yaml.MarkedYAMLError(problem=f"{text[:40]!r} is no {kind.removeprefix(_TAG)}", problem_mark=node.start_mark)
        if kind == _TAG + "null":
            return None
        if kind == _TAG + "bool":
            return text.lower() == "true"
        if kind == _TAG + "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        digits = text.replace("_", "")
        if len(digits) > _MOST_DIGITS:
            raise yaml.MarkedYAMLError(
                problem=f"the number {text[:40]!r} has {len(digits)} digits", problem_mark=node.start_mark
            )
        return int(digits, 0) if text[:2] in ("0o", "0x") else int(digits)


def _copy(value: Any) -> Any:
    """Copy mappings and lists; Paths become text and tuples lists, so that Python values look as if read from a file."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return str(value) if isinstance(value, Path) else value
