"""Arrow columns to tensors by a feature map: vectorized, with bad rows flagged instead of raised.

A value outside the vocabulary is the unknown row of its table. A row is bad where a feature is null or a number is not finite;
its tensors then hold harmless values, so that it can go through the network with the rest. Columns that are missing or of
another kind raise ``SchemaError``. Knows no network and no stream.
"""

# B rows, T history length, R list entries over all rows

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from connectors.errors import SchemaError
from models.reloop2.feature_map import Feature, FeatureMap

__all__ = ["Encoded", "Problem", "encode"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a feature of some rows."""

    message: str
    rows_B: NDArray[np.bool_]


@dataclass(frozen=True)
class Encoded:
    """Columns for ``CtrModel.forward``, on the CPU."""

    columns: dict[str, Tensor]
    """feature → int64 [B] (categorical), float32 [B] (numeric) or int64 [B, max_len], left-padded (sequence)."""
    bad_B: Tensor
    """bool: the row must not be used."""
    problems: tuple[Problem, ...]

    @cached_property
    def reasons(self) -> list[str | None]:
        """What is wrong with each row; None where it is fine."""
        found: list[str | None] = [None] * self.bad_B.shape[0]
        for problem in self.problems:
            for row in np.flatnonzero(problem.rows_B):
                before = found[row]
                found[row] = problem.message if before is None else f"{before}; {problem.message}"
        return found


def encode(batch: pa.RecordBatch, feature_map: FeatureMap, where: str) -> Encoded:
    """Turn the feature columns of ``batch`` into tensors. ``where`` names the place for messages.

    Categorical columns are integers, or strings where the map has a vocabulary of strings; histories are lists of such, oldest
    entry first, of which the latest ``max_len`` are kept. Raises ``SchemaError`` for missing or unusable columns.
    """
    missing = [feature.name for feature in feature_map if batch.schema.get_field_index(feature.name) < 0]
    if missing:
        raise SchemaError(
            f"{where}: columns {missing} of the model are missing; got {batch.schema.names}, need {feature_map.names}"
        )
    columns, problems = {}, []
    for feature in feature_map:
        column = batch.column(batch.schema.get_field_index(feature.name))
        reader = {"numeric": _numbers, "categorical": _rows, "sequence": _histories}[feature.kind]
        columns[feature.name], message, bad_B = reader(feature, column, where)
        if bad_B is not None:
            problems.append(Problem(f"feature {feature.name!r} {message}", bad_B))
    bad = np.zeros(batch.num_rows, dtype=bool)
    for problem in problems:
        bad |= problem.rows_B
    return Encoded(columns, torch.from_numpy(bad), tuple(problems))


_Read = tuple[Tensor, str, NDArray[np.bool_] | None]


def _numbers(feature: Feature, column: pa.Array, where: str) -> _Read:
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise _wrong_type(feature, column, where, "numbers")
    null_B = _nulls(column)
    values_B = pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.float64)
    scaled_B = (values_B - feature.mean) / feature.std
    with np.errstate(over="ignore"):  # too large for float32 is infinite, and bad
        scaled_B = scaled_B.astype(np.float32)
    finite_B = np.isfinite(scaled_B)
    if null_B is None and finite_B.all():
        return torch.from_numpy(scaled_B), "", None
    bad_B = ~finite_B if null_B is None else ~finite_B | null_B
    return torch.from_numpy(np.where(bad_B, np.float32(0), scaled_B)), "is null or not a finite number", bad_B


def _rows(feature: Feature, column: pa.Array, where: str) -> _Read:
    return torch.from_numpy(_table_rows(feature, column, where)), "is null", _nulls(column)


def _table_rows(feature: Feature, values: pa.Array, where: str) -> NDArray[np.int64]:
    """Return the table row of every value; null and unknown values give the unknown row."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if feature.is_text != is_text or not (is_text or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise _wrong_type(feature, values, where, "strings" if feature.is_text else "integers")
    # Arrow's index_in would hash the whole vocabulary for every batch: 0.2 s for a million words.
    if is_text:
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        row_of, unknown = feature.row_of_text, feature.unknown
        rows_U = np.array([*(row_of.get(value, unknown) for value in encoded.dictionary.to_pylist()), unknown], dtype=np.int64)
        index: NDArray[np.int64] = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
        return rows_U[index]
    numbers = pc.fill_null(values.cast(kind).cast(pa.int64(), safe=False), -1).to_numpy(zero_copy_only=False)
    if feature.vocabulary is None:
        return np.where((numbers < 0) | (numbers >= feature.vocab_size), np.int64(feature.unknown), numbers)
    known, row = feature.rows_of_numbers
    place = np.searchsorted(known, numbers).clip(max=len(known) - 1)
    return np.where((known[place] == numbers) & values.is_valid().to_numpy(zero_copy_only=False), row[place], feature.unknown)


def _histories(feature: Feature, column: pa.Array, where: str) -> _Read:
    kind = column.type
    null_B = _nulls(column)
    if pa.types.is_fixed_size_list(kind):
        # Taken with its nulls' entries: every row has the same length, so positions need no offsets.
        entries = column.values.slice(column.offset * kind.list_size, len(column) * kind.list_size)
        length_B = np.full(len(column), kind.list_size, dtype=np.int64)
        end_B = np.cumsum(length_B)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        entries = column.values.slice(offsets[0], offsets[-1] - offsets[0])
        end_B = offsets[1:] - offsets[0]
        length_B = np.diff(offsets)
    else:
        raise _wrong_type(feature, column, where, "lists")
    rows_R = _table_rows(feature, entries, where)
    row_R = np.repeat(np.arange(len(column)), length_B)
    column_R = feature.max_len - (np.repeat(end_B, length_B) - np.arange(len(rows_R)))
    kept_R = column_R >= 0
    if null_B is not None:
        kept_R &= ~null_B[row_R]
    history_BT = np.full((len(column), feature.max_len), feature.padding_idx, dtype=np.int64)
    history_BT[row_R[kept_R], column_R[kept_R]] = rows_R[kept_R]
    return torch.from_numpy(history_BT), "is null (an empty history is an empty list)", null_B


def _nulls(column: pa.Array) -> NDArray[np.bool_] | None:
    if not column.null_count:
        return None
    nulls: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _wrong_type(feature: Feature, column: pa.Array, where: str, wanted: str) -> SchemaError:
    return SchemaError(
        f"{where}: column {feature.name!r} holds {column.type}; the model takes {wanted} for this {feature.kind} feature "
        f"({feature.arrow_type})"
    )
