"""Holds operators, sources and sinks to their contracts while they run: who breaks one is named, with what was expected.

Else the fault shows elsewhere, as a ``KeyError`` in a sink or a wrong row after a restart. Everything here is checked per batch
or per epoch by whole columns, never per row. ``pipelines.testing.conformance`` checks far more, in tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from connectors.base import Position, Staged
from connectors.errors import ContractError, nearest
from connectors.records import KEY_FIELDS, encode_streams
from operators.base import Output
from pipelines.outputs import NAME, output_names

if TYPE_CHECKING:
    from operators.base import Emitted, Operator
    from operators.state import State

__all__ = ["OperatorContract", "ReaderContract", "require_splits", "require_staged"]

_CLOSED = 4096
"""Closed streams that are remembered."""


class OperatorContract:
    """What one operator shard gives back. Raises ``ContractError`` at the first thing that it must not."""

    def __init__(self, name: str, operator: Operator) -> None:
        self._who = f"operator {name!r} ({_type(operator)})"
        self.schemas = self._declared(operator)
        """Of each output, by name; the one without a name has an empty one."""
        self._statuses: Mapping[str, str] = getattr(operator, "statuses", {})
        if any("status" in schema.names for schema in self.schemas.values()) and not self._statuses:
            raise self._broken(
                "declares no statuses", "name each value of its column status with its meaning: statuses = {'ok': …}"
            )
        self._closed: dict[str, None] = {}
        self._ending: dict[str, None] = {}  # closed, but answers that they leave may come up to the end of the next flush

    def outputs(self, method: str, given: Any) -> Sequence[Emitted]:
        """Return what ``method`` has given back if it may: a list of rows of declared outputs, of no closed stream."""
        if not isinstance(given, list | tuple):
            raise self._broken(f"returned {_kind(given)} from {method}", "return a list of record batches, [] for none")
        for emitted in given:
            name, batch = ("", emitted) if isinstance(emitted, pa.RecordBatch) else self._of_output(emitted, method)
            schema = self.schemas.get(name)
            if schema is None:
                raise self._broken(*self._undeclared(name, method))
            if batch.schema is not schema and not batch.schema.equals(schema):
                problem = _difference(batch.schema, schema)
                if problem is not None:
                    raise self._broken(
                        f"returned rows {_of(name)}from {method} in which {problem}",
                        f"return the columns of {_place(name)}, in its order; OutputRows of operators.output does so",
                    )
            self._require_keys(batch, method)
            if self._closed:
                self._require_open(batch, method)
        if method == "flush" and self._ending:
            self._closed |= self._ending
            self._ending = {}
            while len(self._closed) > _CLOSED:
                del self._closed[next(iter(self._closed))]
        return given

    def _declared(self, operator: Operator) -> dict[str, pa.Schema]:
        """Return the schemas of all outputs; raise where one is not there, or not as the class or the engine needs it."""
        names = output_names(type(operator))
        named = operator.outputs
        if not isinstance(named, Mapping) or set(named) != set(type(operator).outputs):
            has = ", ".join(map(repr, named)) if isinstance(named, Mapping) else _kind(named)
            raise self._broken(
                f"has the outputs {has or 'none'}, but its class declares {', '.join(type(operator).outputs) or 'none'}",
                "declare all names in the class, from which a pipeline file is checked; an instance may change schemas only",
            )
        if "" not in names and getattr(operator, "output_schema", None) is not None:
            raise self._broken(
                "has an output_schema beside its outputs that its class does not have",
                "set output_schema in the class, too, or leave it out",
            )
        schemas: dict[str, pa.Schema] = {}
        for name in named:
            if not (isinstance(name, str) and NAME.fullmatch(name)):
                raise self._broken(f"has an output called {name!r}", "use letters, digits, '_' and '-', at most 64")
        for name in names:
            schema = named[name] if name else getattr(operator, "output_schema", None)
            if not isinstance(schema, pa.Schema):
                raise self._broken(
                    f"has the {_place(name)} {schema!r}",
                    f"set {_place(name)} in __init__ or in the class; see connectors.records",
                )
            problem = _key_problem(schema)
            if problem is not None:
                made = "connectors.records.output_schema" + (", or key_schema where it has no status" if name else "")
                raise self._broken(f"has an {_place(name)} in which {problem}", f"make it with {made}")
            schemas[name] = schema
        return schemas

    def _of_output(self, emitted: Any, method: str) -> tuple[str, pa.RecordBatch]:
        """Return name and rows of what should be rows of a named output."""
        if not isinstance(emitted, Output):
            expected = "a list of pyarrow.RecordBatch" + (" or Output" if set(self.schemas) != {""} else "")
            raise self._broken(f"returned a list with {_kind(emitted)} from {method}", f"return {expected}")
        if not isinstance(emitted.batch, pa.RecordBatch):
            raise self._broken(
                f"returned Output({emitted.name!r}, …) with {_kind(emitted.batch)} from {method}",
                "give it a pyarrow.RecordBatch",
            )
        return emitted.name, emitted.batch

    def _undeclared(self, name: str, method: str) -> tuple[str, str]:
        """Say of rows for an output that there is not what was done and what is expected."""
        names = [known for known in self.schemas if known]
        if not name:
            return f"returned rows without an output from {method}", f"return Output(NAME, rows); it has {', '.join(names)}"
        near = nearest(name, names) if isinstance(name, str) else ""
        has = f"outputs has {', '.join(names)}" if names else "it has the one without a name only, for plain record batches"
        return f"returned rows of output {name!r} from {method}{near}, which it does not declare", has

    def statuses(self, new: Sequence[str], method: str) -> None:
        """Take note of statuses that have not come before: all must be declared."""
        for status in new:
            if status not in self._statuses:
                what = "a row without a status" if status == "None" else f"a row with the status {status!r}"
                raise self._broken(
                    f"returned {what} from {method}{nearest(status, self._statuses)}",
                    f"declare it in statuses; it has {', '.join(self._statuses)}",
                )

    def taken(self, batch: pa.RecordBatch) -> None:
        """Note that rows are handed over: their streams are open, or asked for, from now on."""
        if self._closed or self._ending:
            for stream in encode_streams(batch.column("stream_id"))[0]:
                self._closed.pop(stream, None)
                self._ending.pop(stream, None)

    def closed(self, streams: Sequence[str]) -> None:
        """Note that streams have been closed."""
        for stream in streams:
            self._closed.pop(stream, None)
            self._ending[stream] = None

    def state(self, given: Any, *, incremental: bool) -> State:
        """Return what ``snapshot`` has given back if it is a state, and no increment where everything was asked for."""
        from operators.state import State

        if not isinstance(given, State):
            raise self._broken(
                f"returned {_kind(given)} from snapshot", "return an operators.state.State with all that it keeps"
            )
        if given.incremental and not incremental:
            raise self._broken("returned an increment from snapshot(incremental=False)", "return all state there")
        return given

    def gauges(self, given: Any) -> dict[str, float]:
        """Return what ``metrics`` has given back if it is numbers by name."""
        numbers = isinstance(given, Mapping) and all(
            isinstance(name, str) and isinstance(value, int | float) for name, value in given.items()
        )
        if not numbers:
            raise self._broken(f"returned {_kind(given)} from metrics", "return numbers by name, such as {'streams': 3.0}")
        return dict(given)

    def _require_keys(self, batch: pa.RecordBatch, method: str) -> None:
        for number in range(len(KEY_FIELDS)):
            if batch.column(number).null_count:
                raise self._broken(
                    f"returned rows from {method} without {KEY_FIELDS[number].name}",
                    "give every row the keys of the row it is about",
                )

    def _require_open(self, batch: pa.RecordBatch, method: str) -> None:
        for stream in encode_streams(batch.column("stream_id"))[0]:
            if stream in self._closed:
                raise self._broken(
                    f"returned rows of stream {stream!r} from {method} after close_stream({stream!r})",
                    "return what is left of a stream by the flush after close_stream, and nothing from then on",
                )

    def _broken(self, did: str, expected: str) -> ContractError:
        return ContractError(f"{self._who} {did}; {expected}")


class ReaderContract:
    """What the readers of one source deliver."""

    def __init__(self, name: str, kind: str, schema: pa.Schema) -> None:
        self._who = f"source {name!r} ({kind})"
        self._schema = schema
        problem = _key_problem(schema) if isinstance(schema, pa.Schema) else f"there is none: it is {_kind(schema)}"
        if problem is not None:
            raise self._broken(f"has a schema in which {problem}", "make it with connectors.records.key_schema")

    def batch(self, given: Any, split: str, most: int) -> pa.RecordBatch | None:
        """Return what ``read`` has given back if it may: nothing, or 1 to ``most`` rows of the schema, all with their keys."""
        if given is None:
            return None
        if not isinstance(given, pa.RecordBatch):
            raise self._broken(f"returned {_kind(given)} from read of split {split!r}", "return a pyarrow.RecordBatch, or None")
        if given.schema is not self._schema and not given.schema.equals(self._schema):
            problem = _difference(given.schema, self._schema)
            if problem is not None:
                raise self._broken(f"delivered rows of split {split!r} in which {problem}", "deliver the columns of its schema")
        if not 1 <= given.num_rows <= most:
            raise self._broken(
                f"returned {given.num_rows} rows from read of split {split!r}", f"return 1 to max_rows ({most}) rows, or None"
            )
        for number in range(len(KEY_FIELDS)):
            if given.column(number).null_count:
                raise self._broken(
                    f"delivered rows of split {split!r} without {KEY_FIELDS[number].name}",
                    "give every row its keys; one that cannot be read gets those of the row before, and says so in error",
                )
        return given

    def position(self, given: Any, split: str) -> Position:
        """Return what ``position`` has given back if a manifest can hold it."""
        try:
            if isinstance(given, dict):
                json.dumps(given)
                return given
            problem = _kind(given)
        except (TypeError, ValueError) as error:
            problem = f"{given!r:.200} ({error})"
        raise self._broken(f"returned {problem} from position of split {split!r}", "return a dict of JSON values")

    def _broken(self, did: str, expected: str) -> ContractError:
        return ContractError(f"{self._who} {did}; {expected}")


def require_splits(source: Any, given: Any) -> list[str]:
    """Return what ``splits`` or ``discover`` has given back if it is a list of different names."""
    names = list(given) if isinstance(given, list | tuple) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise ContractError(
            f"the source {_type(source)} returned {_kind(given)} as its splits; return a list of names, [] for none"
        )
    twice = next((name for number, name in enumerate(names) if name in set(names[:number])), None) if _repeats(names) else None
    if twice is not None:
        raise ContractError(f"the source {_type(source)} lists the split {twice!r} twice; names must differ")
    return names


def require_staged(name: str, sink: Any, given: Any) -> list[Staged]:
    """Return what ``prepare`` has given back if it is a list of staged files."""
    if not isinstance(given, list | tuple) or not all(isinstance(file, Staged) for file in given):
        raise ContractError(
            f"sink {name!r} ({_type(sink)}) returned {_kind(given)} from prepare; return a list of connectors.base.Staged, one "
            "per file that commit is to publish, [] for none"
        )
    return list(given)


def _repeats(names: Sequence[str]) -> bool:
    return len(set(names)) < len(names)


def _key_problem(schema: pa.Schema) -> str | None:
    """Say what is wrong with the columns that every schema begins with."""
    for number, wanted in enumerate(KEY_FIELDS):
        given = schema.field(number) if number < len(schema) else None
        if given is None or given.name != wanted.name:
            return f"column {number + 1} is {'missing' if given is None else repr(given.name)}, not {wanted.name!r}"
        if given.type != wanted.type and not (wanted.name == "event_time" and pa.types.is_timestamp(given.type)):
            return f"column {wanted.name!r} is {given.type}, not {wanted.type}"
    return None


def _difference(given: pa.Schema, wanted: pa.Schema) -> str | None:
    """Say how names, types or order differ; None where only metadata or nullability do."""
    missing = [name for name in wanted.names if name not in given.names]
    extra = [name for name in given.names if name not in wanted.names]
    if missing:
        return f"column {missing[0]!r} is missing"
    if extra:
        return f"column {extra[0]!r} is not declared"
    if given.names != wanted.names:
        return f"the columns stand in the order {given.names}, not {wanted.names}"
    for field in wanted:
        kind = given.field(field.name).type
        if kind != field.type:
            return f"column {field.name!r} is {kind}, not {field.type}"
    return None


def _of(output: str) -> str:
    return f"of output {output!r} " if output else ""


def _place(output: str) -> str:
    """Return where an operator declares the schema of an output."""
    return f"outputs[{output!r}]" if output else "output_schema"


def _type(thing: Any) -> str:
    return f"{type(thing).__module__}:{type(thing).__qualname__}"


def _kind(value: Any) -> str:
    """Describe a value of a wrong type."""
    if value is None:
        return "None"
    if isinstance(value, list | tuple) and value:
        return f"a {type(value).__name__} with {_kind(value[0])}"
    return f"a {type(value).__name__}"
