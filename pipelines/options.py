"""Options dataclasses (``connectors.options``) checked with pydantic: from plain values to an instance, every error at once.

Strict: text is no number and a number no text, though a whole number may stand for a float. Knows nothing of files: problems
carry key paths, and whoever read the values knows where those stand.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from connectors.errors import ConfigError, nearest
from connectors.options import BOUNDS
from pipelines.document import KeyPath, Problem

__all__ = ["OptionInfo", "former_names", "option_infos", "parse_options", "parse_values", "show_value", "unknown_keys"]

_ERROR_WORDS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
}
"""pydantic's error type → what is allowed, in words."""


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option as ``describe`` shows it and as the checks use it."""

    name: str
    annotation: Any
    default: Any
    """``dataclasses.MISSING`` where the option must be given."""
    doc: str
    unit: str | None
    bounds: Mapping[str, float]
    choices: tuple[Any, ...] | None
    secret: bool
    path: bool
    """The value is a path, or several, relative to the pipeline file."""
    was: tuple[str, ...]
    """Its former names."""
    variants: Mapping[str, type]
    """The value is a mapping with options of its own: its ``type`` → which; empty for every other option."""

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is dataclasses.MISSING

    @property
    def allowed(self) -> str:
        """What values are allowed, in words."""
        if self.variants:
            words = f"a mapping with a type, one of {', '.join(map(repr, self.variants))}"
            return words + (" or null" if type(None) in get_args(self.annotation) else "")
        if self.choices is not None:
            words = ", ".join(show_value(choice) for choice in self.choices)
            return f"a list of {words}" if get_origin(self.annotation) is list else f"one of {words}"
        limits = " and ".join(f"{BOUNDS[kind][0]} {bound:g}" for kind, bound in self.bounds.items())
        words = " or ".join(_type_words(member) for member in _members(self.annotation))
        return words + (f", {limits}" if limits else "") + (f" ({self.unit})" if self.unit else "")


@lru_cache(maxsize=256)
def option_infos(cls: type) -> tuple[OptionInfo, ...]:
    """Return the options of a dataclass in the order of their declaration."""
    hints = get_type_hints(cls)
    infos = []
    for f in dataclasses.fields(cls):
        if not f.init:
            continue
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        meta = f.metadata
        infos.append(
            OptionInfo(
                name=f.name,
                annotation=hints[f.name],
                default=default,
                doc=meta.get("doc", ""),
                unit=meta.get("unit"),
                bounds=meta.get("bounds", {}),
                choices=_choices(hints[f.name]),
                secret=meta.get("secret", False),
                path=meta.get("path", False) or Path in (hints[f.name], *get_args(hints[f.name])),
                was=meta.get("was", ()),
                variants=_variants(hints[f.name]),
            )
        )
    return tuple(infos)


def parse_options(cls: type, values: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    """Return an instance of ``cls`` and no problems, or None and every problem. Unknown keys are not looked at here.

    ``values`` are plain (as from YAML). What ``__post_init__`` refuses is a problem too, found only when all else is right.
    """
    infos = {info.name: info for info in option_infos(cls)}
    problems = [
        Problem((info.name,), f"is missing; {_sentence(info.doc)} Allowed: {info.allowed}")
        for info in infos.values()
        if info.required and info.name not in values
    ]
    checked, wrong = parse_values(cls, values)
    problems += wrong
    if problems:
        return None, problems
    try:
        return cls(**checked), []
    except ConfigError as error:
        return None, [_post_init_problem(str(error), infos)]


def parse_values(cls: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return those ``values`` that are options of ``cls``, converted, and the problems with them. None need be there."""
    checked: dict[str, Any] = {}
    problems: list[Problem] = []
    for info in option_infos(cls):
        if info.name in values:
            checked[info.name], wrong = _parse_one(info, cls, values[info.name])
            problems += wrong
    return checked, problems


def unknown_keys(
    values: Mapping[str, Any],
    allowed: Iterable[str],
    what: str,
    *,
    hint: Iterable[str] | None = None,
    former: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Return a problem for every key that is not ``allowed``.

    ``what`` is what messages call a key: option, section. ``hint``, if given, are the ones that a message lists. ``former``
    says what replaced keys of earlier versions (``former_names``).
    """
    names = sorted(allowed)
    listed = ", ".join(names if hint is None else hint) or "none"
    problems = []
    for key in values:
        if key not in names:
            unknown = f"unknown {what} {key!r}{nearest(key, names)}; allowed: {listed}"
            problems.append(Problem((key,), (former or {}).get(key, unknown)))
    return problems


def former_names(cls: type) -> dict[str, str]:
    """Return former option of a dataclass → what to write now, a sentence for messages."""
    renamed = {old: f"was renamed to {info.name}; write '{info.name}: ...'" for info in option_infos(cls) for old in info.was}
    removed = {old: f"is no longer an option; {now}" for old, now in getattr(cls, "removed", {}).items()}
    return renamed | removed


def show_value(value: Any) -> str:
    """Write a value as YAML would, shortened."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _parse_one(info: OptionInfo, cls: type, value: Any) -> tuple[Any, list[Problem]]:
    """Check type, choices and bounds of one option."""
    if info.variants and value is not None:
        parsed, problems = _parse_variant(info, value)
        return parsed, [Problem((info.name, *problem.path), problem.message) for problem in problems]
    try:
        encoded = json.dumps(value)
    except (TypeError, ValueError):
        return None, [Problem((info.name,), f"must be {info.allowed}, got {_shown(info, value)}")]
    try:
        # In JSON mode a strict check still takes text for a Path and a list for a tuple.
        parsed = _adapter(cls, info.name).validate_json(encoded, strict=True)
    except ValidationError as error:
        return None, _type_problems(info, value, error)
    problems = []
    shown = value if isinstance(parsed, float) else parsed  # 1 stays 1, also where it was taken as 1.0
    for path, item in _scalars((info.name,), shown):
        if info.choices is not None and item is not None and item not in info.choices:
            problems.append(Problem(path, _choice_problem(info, info.choices, item)))
        if item != item:
            problems.append(Problem(path, "must be a number, got nan"))
        elif isinstance(item, int | float) and not isinstance(item, bool):
            for kind, bound in info.bounds.items():
                words, holds = BOUNDS[kind]
                if not holds(item, bound):
                    unit = f" ({info.unit})" if info.unit else ""
                    problems.append(Problem(path, f"must be {words} {bound:g}{unit}, got {_shown(info, item)}"))
    return parsed, problems


def _parse_variant(info: OptionInfo, value: Any) -> tuple[Any, list[Problem]]:
    """Return an instance of the options class that the ``type`` of a mapping names; paths of problems begin within it."""
    if not isinstance(value, Mapping):
        example = next(iter(info.variants))
        return None, [Problem((), f"must be {info.allowed}, as in {{type: {example}}}, got {_shown(info, value)}")]
    given = {key: item for key, item in value.items() if key != "type"}
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in info.variants:
        if "type" not in value:
            return None, [Problem(("type",), f"is missing; allowed: {', '.join(info.variants)}")]
        return None, [Problem(("type",), _choice_problem(info, tuple(info.variants), kind))]
    cls = info.variants[kind]
    options, problems = parse_options(cls, given)
    names = [own.name for own in option_infos(cls)]
    return options, unknown_keys(given, [*names, "type"], f"option of {kind}", hint=names, former=former_names(cls)) + problems


@lru_cache(maxsize=4096)
def _adapter(cls: type, name: str) -> TypeAdapter[Any]:
    return TypeAdapter(next(info.annotation for info in option_infos(cls) if info.name == name))


def _type_problems(info: OptionInfo, value: Any, error: ValidationError) -> list[Problem]:
    """Say what is wrong in our words. Of a union only the whole is judged: which member was meant cannot be known."""
    hint = "; {env: ...} and {file: ...} are for secret options only" if _is_reference(value) and not info.secret else ""
    if len(_members(info.annotation)) > 1:
        return [Problem((info.name,), f"must be {info.allowed}, got {_shown(info, value)}{hint}")]
    problems = []
    for detail in error.errors(include_url=False, include_context=False):
        path = (info.name, *detail["loc"])
        if detail["type"] == "literal_error" and info.choices is not None and isinstance(detail["input"], str):
            problems.append(Problem(path, _choice_problem(info, info.choices, detail["input"])))
        elif len(path) == 1:
            problems.append(Problem(path, f"must be {info.allowed}, got {_shown(info, value)}{hint}"))
        else:
            words = _ERROR_WORDS.get(detail["type"])
            message = f"must be {words}" if words else detail["msg"][:1].lower() + detail["msg"][1:]
            problems.append(Problem(path, f"{message}, got {_shown(info, detail['input'])}"))
    return problems


def _choice_problem(info: OptionInfo, choices: tuple[Any, ...], item: Any) -> str:
    """Say what is allowed in place of ``item``, and which choice its writer may have meant."""
    hint = nearest(item, [choice for choice in choices if isinstance(choice, str)]) if isinstance(item, str) else ""
    allowed = ", ".join(show_value(choice) for choice in choices)
    return f"must be one of {allowed}; got {_shown(info, item)}{hint}"


def _post_init_problem(message: str, infos: Mapping[str, OptionInfo]) -> Problem:
    """Attach what a dataclass refused to the option that its message begins with: ``name: ...`` or ``name=...``."""
    start = re.match(r"(\w+)(: |=| is )", message)
    if start is None or start[1] not in infos:
        return Problem((), message)
    return Problem((start[1],), message.removeprefix(f"{start[1]}: "))


def _scalars(path: KeyPath, value: Any) -> Iterable[tuple[KeyPath, Any]]:
    """Yield a value, or the items of a list, with their paths."""
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield (*path, number), item
    elif not isinstance(value, dict):
        yield path, value


def _shown(info: OptionInfo, value: Any) -> str:
    return "a value that is not shown" if info.secret else show_value(value)


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in ("env", "file")


def _sentence(doc: str) -> str:
    return doc if not doc or doc.endswith(".") else doc + "."


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union but None; of any other type itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for member in get_args(annotation) if member is not type(None)]
    return [annotation]


def _variants(annotation: Any) -> dict[str, type]:
    """Return the options classes of a union by their ``type``."""
    classes = [member for member in _members(annotation) if isinstance(member, type) and dataclasses.is_dataclass(member)]
    return {str(vars(cls)["type"]): cls for cls in classes}


def _choices(annotation: Any) -> tuple[Any, ...] | None:
    """Return the values of ``Literal[...]``, also where None or a list of them is allowed; None for every other type."""
    members = _members(annotation)
    if all(get_origin(member) is Literal for member in members):
        return tuple(choice for member in members for choice in get_args(member))
    if len(members) == 1 and get_origin(members[0]) is list:
        return _choices(get_args(members[0])[0])
    return None


def _type_words(annotation: Any) -> str:
    """Say in words what a type takes."""
    if get_origin(annotation) in (Union, types.UnionType):
        words = [_type_words(member) for member in _members(annotation)]
        return " or ".join([*words, "null"] if type(None) in get_args(annotation) else words)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(show_value(choice) for choice in args)
    if origin in (list, tuple, set):
        items = [arg for arg in args if arg is not Ellipsis]
        return f"a list of {_PLURALS.get(items[0], _type_words(items[0]))}" if items and items[0] is not Any else "a list"
    if origin is dict or annotation is dict:
        return "a mapping"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    list: "a list",
    Any: "anything",
}
_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}
