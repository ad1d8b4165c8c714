"""The operator ``null``: passes on the keys and sizes of frames, drops the pixels, keeps no state.

A pipeline with it in the place of a detector shows what decoding, transport and sinks cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from connectors import records
from operators.base import Operator
from operators.null.config import NullOptions

if TYPE_CHECKING:
    from operators.state import State

__all__ = ["NullOperator"]


class NullOperator(Operator):
    """One row out per frame: its size and ``ok``, or ``rejected_corrupt`` where the source set an error."""

    Options = NullOptions
    input_schema = records.FRAME
    output_schema = records.output_schema(
        "null",
        1,
        [records.field("height", pa.int32(), unit="px"), records.field("width", pa.int32(), unit="px")],
    )

    statuses: ClassVar[Mapping[str, str]] = {
        "ok": "the size of the frame as its source gave it",
        "rejected_corrupt": "the source could not read the frame; `error` says why",
    }

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Return the batch without its images."""
        records.require(batch, self.input_schema, self.context.name)
        error = batch.column("error")
        status = pc.if_else(error.is_null(), "ok", "rejected_corrupt").cast(self.output_schema.field("status").type)
        columns = [*(batch.column(name) for name in self.output_schema.names[:5]), status, error]
        return [pa.RecordBatch.from_arrays(columns, schema=self.output_schema)]

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return an empty state."""
        from operators.state import State

        return State(incremental=incremental)

    def restore(self, state: State) -> None:
        """Accept any state: there is nothing to restore."""

    def close_stream(self, stream_id: str) -> None:
        """Do nothing."""
