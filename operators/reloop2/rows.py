"""What stands in the rows of a batch, besides features: times, ids, model paths, and why a row cannot be used."""

# B rows of a batch

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from connectors.errors import SchemaError
from operators.reloop2.ids import MAX_ID_BYTES, Bools, Ints, id_keys
from operators.reloop2.schemas import ID_TYPES

__all__ = ["BAD_ID", "Faults", "bad_label", "event_times", "model_paths", "row_ids"]

BAD_ID = f"impression_id is null, or longer than {MAX_ID_BYTES} bytes"


class Faults:
    """What the source found wrong with rows: the column ``error``, where there is one."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        index = batch.schema.get_field_index("error")
        column = batch.column(index) if index >= 0 else pa.nulls(batch.num_rows, pa.string())
        self.rows_B: Bools = column.is_valid().to_numpy(zero_copy_only=False)
        self._column = column

    def reason(self, row: int) -> str | None:
        """Return what is wrong with a row."""
        text: str | None = self._column[row].as_py()
        return text

    def merge(self, reasons: Sequence[str | None]) -> list[str | None]:
        """Return ``reasons`` with the source's own in front."""
        merged = list(reasons)
        for row in np.flatnonzero(self.rows_B).tolist():
            merged[row] = "; ".join(filter(None, (self.reason(row), merged[row])))
        return merged


def row_ids(batch: pa.RecordBatch, id_type: str, salt_B: Ints | None, where: str) -> tuple[Ints, Bools]:
    """Return the ids of a batch as keys, and which rows have none. Raise ``SchemaError`` for a column of another type."""
    index = batch.schema.get_field_index("impression_id")
    kind = batch.schema.field(index).type if index >= 0 else None
    if kind is None:
        raise SchemaError(f"{where}: column 'impression_id' is missing; got {batch.schema.names}")
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (is_text if ID_TYPES[id_type] == pa.string() else pa.types.is_integer(kind) and kind != pa.uint64()):
        raise SchemaError(
            f"{where}: column 'impression_id' is {kind}, but id_type is {id_type!r}; set id_type to what the column is, int64 "
            "or string"
        )
    return id_keys(batch.column(index), salt_B)


def event_times(batch: pa.RecordBatch) -> Ints:
    """Return the event times in microseconds."""
    times: Ints = batch.column("event_time").cast(pa.int64()).to_numpy(zero_copy_only=False)
    return times


def model_paths(batch: pa.RecordBatch) -> dict[int, str]:
    """Return the rows that bring a model, in order, and its path."""
    index = batch.schema.get_field_index("checkpoint")
    if index < 0:
        return {}
    column = batch.column(index)
    return {row: column[row].as_py() for row in np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)).tolist()}


def bad_label(value: float | None, *, soft: bool) -> str:
    """Say what is wrong with a label."""
    if value is None:
        return "label is null"
    if soft:
        return f"label is {value:g}; allowed are numbers from 0 to 1"
    hint = "; for fractions set soft_labels" if 0 < value < 1 else ""
    return f"label is {value:g}; allowed are 0 and 1{hint}"
