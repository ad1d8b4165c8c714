"""Casts of whole columns that do not fail for one bad value: what cannot be cast becomes null."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

__all__ = ["convert", "tolerant"]


def convert(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast ``array``; null where a value cannot be cast."""
    if array.type == kind:
        return array
    return tolerant(array, lambda part: part.cast(kind), kind)


def tolerant(array: pa.Array, work: Callable[[pa.Array], pa.Array], kind: pa.DataType) -> pa.Array:
    """Apply ``work``; where it fails, halve until the values that fail are alone, and make these null of ``kind``."""
    try:
        return work(array)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if len(array) <= 1:
            return pa.nulls(len(array), kind)
        half = len(array) // 2
        return pa.concat_arrays([tolerant(array[:half], work, kind), tolerant(array[half:], work, kind)])
