"""Compare two tables bit for bit and say where they differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["Comparison", "compare"]

_TEXTS = ("error",)
"""Columns whose wording is free: only whether a row has one is compared."""


@dataclass(slots=True)
class Comparison:
    """What is not the same. Empty lists: every bit is."""

    rows: tuple[int, int]
    problems: list[str] = field(default_factory=list)
    columns: dict[str, int] = field(default_factory=dict)
    """Column → number of rows in which it differs, of those that do."""
    first: dict[str, Any] | None = None
    """The first row that differs: its number, and both values of the columns that do."""
    reworded: int = 0
    """Rows whose error says the same in other words, which counts as equal."""

    @property
    def same(self) -> bool:
        """Whether all rows are."""
        return not self.problems and not self.columns


def compare(old: pa.Table, new: pa.Table) -> Comparison:
    """Compare two tables row by row."""
    result = Comparison((old.num_rows, new.num_rows))
    missing, added = (sorted(set(a.column_names) - set(b.column_names)) for a, b in ((old, new), (new, old)))
    result.problems += [f"column {name} is gone" for name in missing] + [f"column {name} is new" for name in added]
    if old.num_rows != new.num_rows:
        result.problems.append(f"{new.num_rows} rows in place of {old.num_rows}{_by_status(old, new)}")
        return result
    differs: dict[str, np.ndarray] = {}
    for name in old.column_names:
        if name in missing:
            continue
        a, b = (_joined(table.column(name)) for table in (old, new))
        if name in _TEXTS:
            result.reworded += sum(x is not None and y is not None and x != y for x, y in zip(*_lists(a, b), strict=True))
            a, b = a.is_null(), b.is_null()
        if a.type != b.type:
            result.problems.append(f"column {name} is {b.type} in place of {a.type}")
            continue
        a, b = _bits(a), _bits(b)
        if not a.equals(b):
            differs[name] = np.array([x != y for x, y in zip(*_lists(a, b), strict=True)])
    result.columns = {name: int(mask.sum()) for name, mask in differs.items()}
    if differs:
        row = int(np.flatnonzero(np.logical_or.reduce(list(differs.values())))[0])
        shown = ["stream_id", "sequence", *(name for name, mask in differs.items() if mask[row])]
        values = {name: [table.column(name)[row].as_py() for table in (old, new)] for name in dict.fromkeys(shown)}
        result.first = {"row": row, **values}
        if _sorted(old) == _sorted(new):
            result.problems.append("the same rows in another order")
    return result


def _lists(a: pa.Array, b: pa.Array) -> tuple[list[Any], list[Any]]:
    return a.to_pylist(), b.to_pylist()


def _by_status(old: pa.Table, new: pa.Table) -> str:
    if "status" not in old.column_names or "status" not in new.column_names:
        return ""
    before, after = (Counter(table.column("status").to_pylist()) for table in (old, new))
    changed = [f"{name} {before[name]} -> {after[name]}" for name in sorted(before | after) if before[name] != after[name]]
    return f" ({', '.join(changed)})"


def _sorted(table: pa.Table) -> list[str]:
    names = sorted(name for name in table.column_names if name not in _TEXTS)
    return sorted(map(repr, table.select(names).to_pylist()))


def _joined(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined


def _bits(array: pa.Array) -> pa.Array:
    """Return an array with whole numbers in the place of floats, so that NaN equals itself and 0.0 is not -0.0."""
    if pa.types.is_floating(array.type):
        return array.view({16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[array.type.bit_width])
    if pa.types.is_list(array.type):
        return pa.ListArray.from_arrays(array.offsets, _bits(array.values), mask=array.is_null() if array.null_count else None)
    if pa.types.is_struct(array.type):
        names = [array.type.field(i).name for i in range(array.type.num_fields)]
        return pa.StructArray.from_arrays([_bits(array.field(i)) for i in range(len(names))], names, mask=array.is_null())
    return array
