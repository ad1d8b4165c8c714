"""Integers of text that a double would round: which types hold them, and which rows need a second look.

A double holds every integer up to 2^53. Beyond, 9007199254740993 would become …992 without a word, and two ids become one.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["exact_type", "inexact_integer", "is_exact", "rows_beyond"]

_LIMIT = 2.0**53


def is_exact(number: int) -> bool:
    """Return whether an integer is what a double holds, exactly or as the shortest text by which it is written."""
    try:
        held = float(number)
    except OverflowError:
        return False
    return int(held) == number or int(Decimal(repr(held))) == number


def inexact_integer(value: Any, kind: pa.DataType) -> int | None:
    """Return an integer in ``value`` that stands where ``kind`` has a double and is none, if there is any."""
    if pa.types.is_float64(kind):
        return value if isinstance(value, int) and not isinstance(value, bool) and not is_exact(value) else None
    inner: list[tuple[Any, pa.DataType]] = []
    if pa.types.is_struct(kind) and isinstance(value, dict):
        inner = [(value.get(field.name), field.type) for field in kind]
    elif pa.types.is_list(kind) and isinstance(value, list):
        inner = [(item, kind.value_type) for item in value]
    return next((found for item, type_ in inner if (found := inexact_integer(item, type_)) is not None), None)


def _has_doubles(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_doubles(field.type) for field in kind)
    return bool(pa.types.is_float64(kind)) or (pa.types.is_list(kind) and _has_doubles(kind.value_type))


def exact_type(kind: pa.DataType, values: list[Any]) -> pa.DataType:
    """Return ``kind`` with wider integers or decimals where it has doubles and all of ``values`` there are integers."""
    if pa.types.is_float64(kind):
        numbers = [value for value in values if value is not None]
        if not all(isinstance(number, int) for number in numbers) or all(map(is_exact, numbers)):
            return kind
        low, high = min(numbers), max(numbers)
        if low >= 0 and high < 2**64:
            return pa.uint64()
        digits = len(str(max(high, -low)))
        return pa.decimal128(38, 0) if digits <= 38 else pa.decimal256(76, 0) if digits <= 76 else kind
    if pa.types.is_struct(kind):
        objects = [value for value in values if isinstance(value, dict)]
        return pa.struct([field.with_type(exact_type(field.type, [o.get(field.name) for o in objects])) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(exact_type(kind.value_type, [item for value in values if isinstance(value, list) for item in value]))
    return kind


def rows_beyond(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return the rows that hold a double beyond the integers that all have one."""
    kind = column.type
    none = np.zeros(0, np.int64)
    if not _has_doubles(kind):
        return none
    if pa.types.is_float64(kind):
        numbers = column.fill_null(0.0).to_numpy() if column.null_count else column.to_numpy()
        return np.flatnonzero(np.abs(numbers) >= _LIMIT)
    if pa.types.is_struct(kind):
        return np.unique(np.concatenate([none, *(rows_beyond(column.field(index)) for index in range(kind.num_fields))]))
    return np.unique(pc.list_parent_indices(column).to_numpy()[rows_beyond(column.flatten())])
