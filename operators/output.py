"""Status and error of each row of a batch, and the output batch built from them and the method's columns.

Knows no streams and no memory. Rows keep their order; a row may also be dropped. A number that is NaN or infinite never leaves
as the result of a computation that went well: whole columns are looked at on the host, where they are anyway, so that no device
is waited for. Whatever went wrong before (a bank, a kernel, memory that nobody had written), the row says so.
"""

# B rows of the batch, R rows of an output batch

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors import records
from operators.base import Emitted, Output

__all__ = ["NOT_FINITE", "NOT_FINITE_STATUS", "OutputRows", "finite_rows", "not_finite_columns", "status_column"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NOT_FINITE = "not_finite"
NOT_FINITE_STATUS: Mapping[str, str] = {
    NOT_FINITE: "a number of the row came out as NaN or infinite: it is null, and nothing else of the row can be relied upon"
}


class OutputRows:
    """Collects what became of the rows of one batch. Every row is ``ok`` until told otherwise.

    ``output``: the named output that the rows are for; nothing: the one without a name.
    """

    def __init__(self, batch: pa.RecordBatch, schema: pa.Schema, statuses: Mapping[str, str], output: str = "") -> None:
        self._batch, self.schema, self._output = batch, schema, output
        self._names = list(statuses)
        self._codes = {name: code for code, name in enumerate(statuses)}
        self._status_B = np.full(batch.num_rows, self._codes["ok"], np.int8)
        self._kept_B = np.ones(batch.num_rows, np.bool_)
        self._errors: dict[int, str] = {}

    def refuse_errors(self) -> Bools:
        """Refuse rows that their source could not read: those with text in a column ``error``. Return which they are, [B]."""
        index = self._batch.schema.get_field_index("error")
        if index < 0 or self._batch.column(index).null_count == self._batch.num_rows:
            return np.zeros(self._batch.num_rows, np.bool_)
        column = self._batch.column(index)
        refused_B: Bools = column.is_valid().to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(refused_B)
        self.set_rows(rows, "rejected_corrupt", column.take(pa.array(rows)).to_pylist())
        return refused_B

    def set(self, row: int, status: str, error: str | None = None) -> None:
        """Give a row a status; ``error`` is added to earlier reasons."""
        self._status_B[row] = self._codes[status]
        if error is not None:
            self._errors[row] = f"{self._errors[row]}; {error}" if row in self._errors else error

    def set_rows(self, rows: Ints | Sequence[int], status: str, errors: Sequence[str | None] | None = None) -> None:
        """Give many rows a status, and where they have one each its error."""
        self._status_B[rows] = self._codes[status]
        if errors is not None:
            for row, error in zip(rows, errors, strict=True):
                if error is not None:
                    self._errors[int(row)] = error

    def drop(self, row: int) -> None:
        """Give no output row."""
        self._kept_B[row] = False

    def drop_rest(self) -> None:
        """Give no output row for those that are ``ok``."""
        self._kept_B &= self._status_B != self._codes["ok"]

    def is_ok(self, row: int) -> bool:
        """Return whether a row is ``ok`` so far."""
        return bool(self._status_B[row] == self._codes["ok"])

    def count(self, *statuses: str) -> int:
        """Return how many rows have one of these statuses, declared or not."""
        rows = np.bincount(self._status_B, minlength=len(self._codes))
        return int(sum(rows[self._codes[status]] for status in statuses if status in self._codes))

    def kept(self) -> Ints:
        """Return the rows that give an output row, ascending."""
        return np.flatnonzero(self._kept_B)

    def batches(self, columns: Mapping[str, pa.Array]) -> list[Emitted]:
        """Return the output rows as one batch, or none if every row was dropped.

        ``columns`` have one entry per row of the input batch; a column of the schema that is not among them is copied from the
        keys of the input, or null. Where ``not_finite`` is declared, rows with NaN or infinity get it.
        """
        rows = self._batch.num_rows
        made = {name: self._batch.column(name) for name in self.schema.names[:3]} | dict(columns)
        made["status"] = status_column(self._status_B, self._names)
        errors = [self._errors.get(row) for row in range(rows)] if self._errors else None
        made["error"] = pa.nulls(rows, pa.string()) if errors is None else pa.array(errors, pa.string())
        arrays = [made[field.name] if field.name in made else pa.nulls(rows, field.type) for field in self.schema]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        if NOT_FINITE in self._codes:
            batch = finite_rows(batch)
        if not self._kept_B.all():
            batch = batch.filter(pa.array(self._kept_B))
        return [Output(self._output, batch) if self._output else batch] if batch.num_rows else []


def status_column(codes_B: npt.NDArray[np.int8], names: Sequence[str]) -> pa.DictionaryArray:
    """Return the status column of indices into ``names``."""
    return pa.DictionaryArray.from_arrays(pa.array(codes_B, pa.int8()), pa.array(names, pa.string()))


def finite_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return output rows as they are, but with the status ``not_finite`` where a number is none; that column is null there.

    ``batch`` has the columns ``status`` and ``error``. Fields that ``records.may_be_infinite`` may hold infinity, but no NaN.
    """
    found = not_finite_columns(batch)
    if not found:
        return batch
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    status, errors = columns["status"].to_pylist(), columns["error"].to_pylist()
    for name, bad_R in found.items():
        for row in np.flatnonzero(bad_R).tolist():
            shown = _shown(columns[name][row].as_py())
            reason = f"{name} holds {shown}, which is no result; check the checkpoint and its precision"
            status[row], errors[row] = NOT_FINITE, f"{errors[row]}; {reason}" if errors[row] else reason
        columns[name] = pc.if_else(pa.array(bad_R), pa.scalar(None, columns[name].type), columns[name])
    schema = batch.schema
    columns["status"] = pa.array(status, pa.string()).dictionary_encode().cast(schema.field("status").type)
    columns["error"] = pa.array(errors, schema.field("error").type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def not_finite_columns(batch: pa.RecordBatch) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the columns that hold NaN, or infinity where they must not, and in which rows, [R]; lists are looked into."""
    found = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        infinite = records.may_be_infinite(field)
        if not all(_good(leaf, infinite=infinite) for leaf in _floats(column)):
            parts = (column.slice(row, 1) for row in range(batch.num_rows))
            bad = [not all(_good(leaf, infinite=infinite) for leaf in _floats(part)) for part in parts]
            found[field.name] = np.array(bad, np.bool_)
    return found


def _good(leaf: pa.Array, *, infinite: bool) -> bool:
    """Tell whether all values are numbers; null is none, and good."""
    if infinite:
        return not pc.any(pc.is_nan(leaf)).as_py()
    return pc.all(pc.is_finite(leaf)).as_py() is not False


def _floats(column: pa.Array) -> Iterator[pa.Array]:
    """Yield the numbers of a column that are not integers, out of lists and structs, without what is null."""
    kind = column.type
    if pa.types.is_floating(kind):
        yield column
    elif pa.types.is_struct(kind) and _holds_floats(kind):
        for part in column.flatten():
            yield from _floats(part)
    elif _is_list(kind) and _holds_floats(kind):
        yield from _floats(column.flatten())


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _holds_floats(kind: pa.DataType) -> bool:
    if _is_list(kind):
        return _holds_floats(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_holds_floats(kind.field(number).type) for number in range(kind.num_fields))
    return bool(pa.types.is_floating(kind))


def _shown(value: object) -> str:
    """Say what a cell holds."""
    return f"{value}" if isinstance(value, float) else "NaN or infinity"
