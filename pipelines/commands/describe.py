"""Texts about registered types: schemas, and options with type, default, unit, bounds and meaning. Also the list of all."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from connectors import records
from connectors.errors import StreambankError
from connectors.extras import MissingExtra, install_command
from pipelines import registry
from pipelines.engine_keys import ENGINE_KEYS, RootKeys
from pipelines.options import OptionInfo, option_infos, parse_options, show_value
from pipelines.outputs import examined

__all__ = ["describe", "describe_root", "list_types", "option_lines"]

_WIDTH = 118


def list_types() -> str:
    """Return all registered types with one line each, and the ready pipelines. Imports none of them."""
    lines = []
    for kind in registry.KINDS:
        lines += [f"{kind}s", *_columns((entry.name, entry.summary) for entry in registry.entries(kind)), ""]
    ready = ((name, _first_sentence(path.read_text(encoding="utf-8"))) for name, path in registry.ready_pipelines().items())
    lines += ["ready pipelines (run them by name or copy the file)", *_columns(ready)]
    lines += ["", f"files of the ready pipelines: {registry.CONFIGS}"]
    return "\n".join(lines)


def describe(name: str) -> str:
    """Describe every type called ``name``. Raise ``ConfigError`` where there is none."""
    if ":" in name:
        return "\n\n".join(_describe_own(name))
    return "\n\n".join(_describe(entry.kind, entry.name, entry.summary) for entry in registry.find(name))


def describe_root() -> str:
    """Describe the top-level keys of a pipeline file."""
    sections = ["sources, operators, sinks: mappings of node names to nodes; see `streambank list` for their types"]
    return "\n".join(["keys of a pipeline file", *option_lines(option_infos(RootKeys)), "", *sections])


def option_lines(infos: Sequence[OptionInfo]) -> list[str]:
    """Return two lines or more per option, required ones first: what it takes and its default, then what it means."""
    if not infos:
        return ["  none"]
    lines = []
    for info in sorted(infos, key=lambda info: not info.required):
        default = "required" if info.required else f"default {show_value(info.default)}"
        lines.append(f"  {info.name}: {'a secret, {env: NAME} or {file: PATH}' if info.secret else info.allowed}; {default}")
        lines += textwrap.wrap(info.doc, _WIDTH, initial_indent="      ", subsequent_indent="      ")
        for kind, cls in info.variants.items():
            about = " ".join(inspect.cleandoc(cls.__doc__ or "").split())
            lines += textwrap.wrap(f"type: {kind}: {about}", _WIDTH, initial_indent="    ", subsequent_indent="      ")
            lines += [f"    {line}" for line in option_lines(option_infos(cls))]
    return lines


def _describe_own(name: str) -> list[str]:
    """Describe ``module:Class``, whose kind only its base class tells."""
    problems = []
    for kind in registry.KINDS:
        try:
            registry.load(kind, name)
        except StreambankError as error:
            problems.append(error)
        else:
            return [_describe(kind, name, "")]
    raise problems[-1]


def _describe(kind: registry.Kind, name: str, summary: str) -> str:
    cls = registry.load(kind, name)
    lines = [f"{name} ({kind})" + (f": {summary}" if summary else ""), ""]
    lines += textwrap.wrap(" ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split()), _WIDTH)
    if needs := registry.needs(kind, name):
        lines += ["", f"installed by: {install_command(needs)}"]
    lines += ["", *_schemas(kind, cls), "options", *option_lines(option_infos(cls.Options)), ""]
    lines += ["keys of the engine", *option_lines(option_infos(ENGINE_KEYS[kind]))]
    return "\n".join(lines)


def _schemas(kind: registry.Kind, cls: type[Any]) -> list[str]:
    if kind == "sink":
        return []
    if kind == "source":
        schema = getattr(cls, "schema", None)
        doc = " ".join(inspect.cleandoc(schema.fget.__doc__ or "").split()) if isinstance(schema, property) else ""
        lines = ["gives", *textwrap.wrap(doc, _WIDTH, initial_indent="  ", subsequent_indent="  ")]
        for known in (records.FRAME, records.RGBD, records.SAMPLE):
            lines += _fields(known) if records.schema_name(known) in doc else []
        return [*lines, ""]
    lines = ["takes", *_fields(cls.input_schema)] if hasattr(cls, "input_schema") else []
    if cls.control_schema is not None:
        lines += ["takes as control", *_fields(cls.control_schema)]
    for output, given in _outputs(cls).items():
        lines.append(f"gives as NODE.{output}" if output else "gives")
        lines += _fields(given) if given is not None else ["  what depends on the options"]
    return [*lines, ""]


def _outputs(cls: type[Any]) -> dict[str, pa.Schema | None]:
    """Return the schemas of an operator's outputs with default options, where those suffice to tell."""
    options, problems = parse_options(cls.Options, {})
    told: pa.Schema | Mapping[str, pa.Schema] | None = None
    with contextlib.suppress(MissingExtra):  # the text does not depend on what is installed here
        told = None if problems else cls.examine(options, "operator")
    declared = {"": getattr(cls, "output_schema", None), **cls.outputs}
    return {name: schema if schema is not None else declared[name] for name, schema in examined(cls, told).items()}


def _fields(schema: pa.Schema) -> list[str]:
    rows = []
    for f in schema:
        unit = (f.metadata or {}).get(b"unit", b"").decode()
        told = ("" if f.nullable else ", never null") + (", may be missing" if records.is_optional(f) else "")
        rows.append((f.name, str(f.type) + told + (f" ({unit})" if unit else "")))
    return [f"  {records.schema_name(schema)}", *_columns(rows, indent=4)]


def _columns(rows: Iterable[tuple[str, str]], indent: int = 2) -> list[str]:
    table = list(rows)
    width = max((len(left) for left, _ in table), default=0)
    lines = []
    for left, right in table:
        lead = " " * indent + left.ljust(width) + "  "
        lines += textwrap.wrap(right, _WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead)) or [lead.rstrip()]
    return lines


def _first_sentence(text: str) -> str:
    """Return how a file's comment begins, to the first period or to a colon at the end of a line."""
    words: list[str] = []
    for line in itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()):
        head, period, _ = f"{line.removeprefix('#').strip()} ".partition(". ")
        words.append(head.strip())
        if period or words[-1].endswith(":"):
            break
    return f"{' '.join(words).rstrip(':')}." if words else ""
