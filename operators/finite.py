"""The last look at output rows: a number that is NaN or infinite never leaves as the result of a computation that went well.

Looks at whole columns on the host, where they are anyway, so that no device is waited for. Whatever went wrong before (a
bank, a kernel, memory that nobody had written), the row says so.
"""

# R rows of a batch

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors import records

__all__ = ["NOT_FINITE", "NOT_FINITE_STATUS", "finite_rows", "not_finite_columns"]

NOT_FINITE = "not_finite"
NOT_FINITE_STATUS: Mapping[str, str] = {
    NOT_FINITE: "a number of the row came out as NaN or infinite: it is null, and nothing else of the row can be relied upon"
}


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
