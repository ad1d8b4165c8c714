"""The way of a question or a prompt through a pipeline: which operator takes it, which source brings it there, which sink shows
the answer.

Knows the pipeline file only, not whether the pipeline runs. What is missing is reported as lines to add to the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from connectors.base import Shown, Sink, Source
from connectors.errors import ConfigError, nearest
from connectors.records import KEY_FIELDS
from connectors.sources.columns import type_name
from pipelines import registry
from pipelines.outputs import address_of, node_of
from pipelines.spec import OperatorSpec, PipelineSpec, SinkSpec, SourceSpec

if TYPE_CHECKING:
    from operators.base import Operator

__all__ = ["PROMPT", "QUESTION", "Request", "Route", "find_route"]

_KEYS = frozenset(field.name for field in KEY_FIELDS)


@dataclass(frozen=True, slots=True)
class Request:
    """A kind of control row that somebody puts and gets an answer to."""

    word: str
    """What messages call it."""
    column: str
    """Of the control row: by it one knows operators that take such rows."""
    id_column: str
    """Of the control row and of the answer: tells which answer belongs to which row."""


QUESTION = Request("question", "question", "question_id")
PROMPT = Request("prompt", "kind", "prompt_id")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes in and where its answer comes out."""

    operator: OperatorSpec
    source: SourceSpec
    inlet: Source
    """Made of ``source``: takes the request."""
    answers: str
    """Address of the operator's output that holds answers."""
    sink: SinkSpec
    outlet: Sink
    """Made of ``sink``: shows the answer."""
    request: Request
    values: pa.Schema
    """Columns of the control row besides the keys."""


def find_route(spec: PipelineSpec, request: Request, *, operator: str | None = None, sink: str | None = None) -> Route:
    """Find the way of a request. ``operator`` and ``sink`` say which, where there are several.

    Raise ``ConfigError`` where there is no way.
    """
    word, id_column = request.word, request.id_column
    node = _operator(spec, request, operator)
    schema: pa.Schema = registry.load("operator", node.type).control_schema
    if id_column not in schema.names:
        raise ConfigError(
            f"operators.{node.name}: its control rows have no column {id_column!r}, so no answer can be told to belong to a "
            f"{word}; they have {', '.join(schema.names)}"
        )
    values = pa.schema([field for field in schema if field.name not in _KEYS])
    if node.align_s is not None and node.align_control:
        raise ConfigError(
            f"operators.{node.name}: align_s would hold a {word} back until the data have come to the present; add to this "
            "node:\n  align_control: false"
        )
    source, inlet = _source(spec, node, word, values)
    answers = _answers(node, id_column)
    if not answers:
        raise ConfigError(
            f"operators.{node.name}: none of its outputs has a column {id_column!r}, so no answer can be told to belong to a "
            f"{word}"
        )
    shown_by, outlet = _sink(spec, answers, node, id_column, sink)
    answer = next(up for up in shown_by.inputs if up in answers)
    return Route(node, source, inlet, answer, shown_by, outlet, request, values)


def _operator(spec: PipelineSpec, request: Request, wanted: str | None) -> OperatorSpec:
    word, column = request.word, request.column
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
            raise ConfigError(f"--operator {wanted}: this operator takes no {word}; those that do: {', '.join(able) or 'none'}")
        raise ConfigError(
            f"--operator {wanted}: there is no such operator{nearest(wanted, names)}; allowed: {', '.join(names)}"
        )
    if not able:
        raise ConfigError(
            f"pipeline {spec.name!r} has no operator with a control column {column!r}; it has: {', '.join(names) or 'none'}"
        )
    if len(able) > 1:
        raise ConfigError(f"several operators take a {word}: {', '.join(able)}; say which by --operator NAME")
    return next(iter(able.values()))


def _source(spec: PipelineSpec, operator: OperatorSpec, word: str, values: pa.Schema) -> tuple[SourceSpec, Source]:
    """Return the source of the operator's control rows that one can put rows into."""
    problems = []
    for node in map(spec.node, map(node_of, operator.control)):
        if not isinstance(node, SourceSpec):
            continue
        source = node.build()
        try:
            source.require_puttable()
        except ConfigError as error:
            problems.append(f"\n  sources.{node.name}: {error}")
        else:
            return node, source
    columns = ", ".join(f"{field.name}: {_quoted(type_name(field.type))}" for field in values)
    there = f"where no {word} can be put:{''.join(problems)}\nadd" if problems else "nothing; add"
    raise ConfigError(
        f"operators.{operator.name}: its control rows come from {there} to the pipeline file\n"
        f"sources:\n  {word}s: {{type: requests, path: {word}s, stay: true, columns: {{{columns}}}}}\n"
        f"operators:\n  {operator.name}: {{control: {_list([*operator.control, f'{word}s'])}, ...}}"
    )


def _answers(operator: OperatorSpec, id_column: str) -> list[str]:
    """Return the addresses of the operator's outputs that may hold answers: those that have the column of ids."""
    kind: type[Operator] = registry.load("operator", operator.type)
    if not kind.outputs:
        return [operator.name]
    schemas = {"": getattr(kind, "output_schema", None), **kind.outputs}
    return [
        address_of(operator.name, name) for name, schema in schemas.items() if schema is not None and id_column in schema.names
    ]


def _sink(
    spec: PipelineSpec, answers: Sequence[str], operator: OperatorSpec, id_column: str, wanted: str | None
) -> tuple[SinkSpec, Sink]:
    """Return where to read answers: the sink that shows them first, of several such the first one of the file."""
    readers = {node.name: node for node in spec.sinks if not set(answers).isdisjoint(node.inputs)}
    if wanted is not None and wanted not in readers:
        raise ConfigError(
            f"--sink {wanted}: no sink of this name takes the rows of {' or '.join(map(repr, answers))}"
            f"{nearest(wanted, readers)}; allowed: {', '.join(readers) or 'none'}"
        )
    usable: list[tuple[Shown, SinkSpec, Sink]] = []
    problems: dict[str, str] = {}
    for node in readers.values():
        sink = node.build()
        try:
            usable.append((sink.shown(id_column), node, sink))
        except ConfigError as error:
            problems[node.name] = str(error)
    if wanted is not None:
        if wanted in problems:
            raise ConfigError(f"--sink {wanted}: no answer can be read there: {problems[wanted]}")
        usable = [entry for entry in usable if entry[1].name == wanted]
    if not usable:
        listed = "".join(f"\n  sinks.{name}: {problem}" for name, problem in problems.items())
        raise ConfigError(
            f"operators.{operator.name}: its answers cannot be read from any sink{':' if listed else ''}{listed}\nadd to "
            f"the pipeline file\nsinks:\n  answers: {{type: jsonl, input: {answers[0]}, path: answers}}"
        )
    _, node, sink = min(usable, key=lambda entry: entry[0])
    return node, sink


def _quoted(name: str) -> str:
    return f'"{name}"' if "," in name else name


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"
