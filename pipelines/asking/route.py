"""The way of a question through a pipeline: which operator takes it, which source brings it there, which sink shows the answer.

Knows the pipeline file only, not whether the pipeline runs. What is missing is told as lines to add to the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from connectors.errors import ConfigError, nearest
from connectors.records import KEY_FIELDS
from connectors.sinks.flight import FlightOptions
from connectors.sinks.kafka import KafkaSinkOptions
from connectors.sources.columns import type_name
from connectors.sources.kafka import KafkaSourceOptions
from connectors.sources.requests import RequestsOptions
from pipelines import registry
from pipelines.spec import OperatorSpec, PipelineSpec, SinkSpec, SourceSpec

__all__ = ["Route", "find_route"]

_KEYS = frozenset(field.name for field in KEY_FIELDS)
_TABLES = ("parquet", "arrow", "jsonl")
"""Sinks whose committed files can be read back."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a question goes in and where its answer comes out."""

    operator: OperatorSpec
    source: SourceSpec
    sink: SinkSpec
    column: str
    """Of the control row: holds the question."""
    id_column: str
    """Of the control row and of the answer: tells which answer belongs to which question."""
    values: pa.Schema
    """Columns of the control row besides the keys."""


def find_route(spec: PipelineSpec, column: str, *, operator: str | None = None, sink: str | None = None) -> Route:
    """Find the way of a control row that has ``column`` (``question``, ``prompt``).

    ``operator`` and ``sink`` say which, where there are several. Raise ``ConfigError`` where there is no way.
    """
    node = _operator(spec, column, operator)
    id_column = f"{column}_id"
    schema: pa.Schema = registry.load("operator", node.type).control_schema
    if id_column not in schema.names:
        raise ConfigError(
            f"operators.{node.name}: its control rows have no column {id_column!r}, so no answer can be told to belong to a "
            f"{column}; they have {', '.join(schema.names)}"
        )
    values = pa.schema([field for field in schema if field.name not in _KEYS])
    if node.align_s is not None and node.align_control:
        raise ConfigError(
            f"operators.{node.name}: align_s would hold a {column} back until the data have come to the present; add to this "
            "node:\n  align_control: false"
        )
    return Route(node, _source(spec, node, column, values), _sink(spec, node, id_column, sink), column, id_column, values)


def _operator(spec: PipelineSpec, column: str, wanted: str | None) -> OperatorSpec:
    able: dict[str, OperatorSpec] = {}
    for node in spec.operators:
        schema = registry.load("operator", node.type).control_schema
        if schema is not None and column in schema.names:
            able[node.name] = node
    names = [node.name for node in spec.operators]
    if wanted is not None:
        if wanted in able:
            return able[wanted]
        if wanted in names:
            raise ConfigError(
                f"--operator {wanted}: this operator takes no {column}; those that do: {', '.join(able) or 'none'}"
            )
        raise ConfigError(
            f"--operator {wanted}: there is no such operator{nearest(wanted, names)}; allowed: {', '.join(names)}"
        )
    if not able:
        raise ConfigError(
            f"pipeline {spec.name!r} has no operator with a control column {column!r}; it has: {', '.join(names) or 'none'}"
        )
    if len(able) > 1:
        raise ConfigError(f"several operators take a {column}: {', '.join(able)}; say which by --operator NAME")
    return next(iter(able.values()))


def _source(spec: PipelineSpec, operator: OperatorSpec, column: str, values: pa.Schema) -> SourceSpec:
    """Return the source of the operator's control rows that one can put rows into."""
    sources = [node for node in map(spec.node, operator.control) if isinstance(node, SourceSpec)]
    open_ones = [node for node in sources if isinstance(node.options, RequestsOptions | KafkaSourceOptions)]
    if not open_ones:
        types = ", ".join(f"{node.name} ({node.type})" for node in sources)
        there = f"only {types}, which cannot be put into" if sources else "nothing"
        columns = ", ".join(f"{field.name}: {_quoted(type_name(field.type))}" for field in values)
        raise ConfigError(
            f"operators.{operator.name}: its control rows come from {there}; add to the pipeline file\n"
            f"sources:\n  {column}s: {{type: requests, path: {column}s, stay: true, columns: {{{columns}}}}}\n"
            f"operators:\n  {operator.name}: {{control: {_list([*operator.control, f'{column}s'])}, ...}}"
        )
    node = open_ones[0]
    if isinstance(node.options, KafkaSourceOptions):
        _require_plain(node.name, node.options)
    return node


def _require_plain(name: str, options: KafkaSourceOptions) -> None:
    """A message must say by its key and timestamp what stream and time it has: then any question can be written."""
    problem = None
    if options.format != "json":
        problem = f"format is {options.format}; only json can be written"
    elif options.stream_id not in (None, "stream_id"):
        problem = f"stream_id is {options.stream_id!r}; leave it out, so that the message's key names the stream"
    elif options.event_time is not None or "event_time" in (options.columns or {}):
        problem = "event_time is a column; leave it out, so that it is the time of the message"
    elif options.sequence is not None or "sequence" in (options.columns or {}):
        problem = "sequence is a column; leave it out, so that it is the offset of the message"
    if problem is not None:
        raise ConfigError(f"sources.{name}: no question can be put into this topic: {problem}")


def _sink(spec: PipelineSpec, operator: OperatorSpec, id_column: str, wanted: str | None) -> SinkSpec:
    """Return where to read answers: at once from Flight, else from a topic, else from committed files."""
    readers = [node for node in spec.sinks if operator.name in node.inputs]
    usable = sorted((node for node in readers if _problem(node, id_column) is None), key=_rank)
    if wanted is not None:
        node = next((node for node in readers if node.name == wanted), None)
        if node is None:
            names = [node.name for node in readers]
            raise ConfigError(
                f"--sink {wanted}: no sink of this name takes the rows of {operator.name!r}{nearest(wanted, names)}; allowed: "
                f"{', '.join(names) or 'none'}"
            )
        if node not in usable:
            raise ConfigError(f"--sink {wanted}: no answer can be read there: {_problem(node, id_column)}")
        return node
    if not usable:
        problems = "".join(f"\n  sinks.{node.name}: {_problem(node, id_column)}" for node in readers)
        raise ConfigError(
            f"operators.{operator.name}: its answers cannot be read from any sink{':' if problems else ''}{problems}\nadd to "
            f"the pipeline file\nsinks:\n  answers: {{type: jsonl, input: {operator.name}, path: answers}}"
        )
    return usable[0]


def _problem(node: SinkSpec, id_column: str) -> str | None:
    options: Any = node.options
    columns: Sequence[str] | Mapping[str, str] | None = getattr(options, "columns", None)
    kept = columns.get(id_column) == id_column if isinstance(columns, Mapping) else columns is None or id_column in columns
    if isinstance(options, FlightOptions):
        if options.port == 0:
            return "its port is 0, so nobody can know which one it is; choose a port"
        if options.client_ca is not None:
            return "it asks for a client certificate"
    elif isinstance(options, KafkaSinkOptions):
        if options.format == "frame":
            return "its messages are images"
    elif node.type not in _TABLES:
        return f"rows of a {node.type} sink cannot be read back"
    if not kept or id_column in getattr(options, "exclude", ()):
        return f"it leaves out the column {id_column!r}"
    return None


def _rank(node: SinkSpec) -> int:
    return 0 if isinstance(node.options, FlightOptions) else 1 if isinstance(node.options, KafkaSinkOptions) else 2


def _quoted(name: str) -> str:
    return f'"{name}"' if "," in name else name


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"
