"""An operator that marks one place of every second frame, for tests of what is drawn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from connectors import records
from connectors.options import option
from operators.base import Operator
from operators.state import State

BOX = {"x1": 8.0, "y1": 8.0, "x2": 40.0, "y2": 30.0, "score": 0.9, "label": 0}
DETECTION = pa.struct(
    [(edge, pa.float32()) for edge in ("x1", "y1", "x2", "y2")] + [("score", pa.float32()), ("label", pa.int16())]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkerOptions:
    """Options of :class:`Marker`."""

    slow_s: float = option(0.0, "Seconds to sleep per batch.", unit="s", ge=0)


class Marker(Operator):
    """Emits one box for every second frame, and nothing for the others."""

    Options = MarkerOptions
    input_schema = records.FRAME
    output_schema = records.output_schema("marks", 1, [pa.field("detections", pa.list_(DETECTION))])
    statuses: ClassVar[Mapping[str, str]] = {"ok": "marked"}

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Mark the even frames."""
        time.sleep(self.options.slow_s)
        even = pa.array([number % 2 == 0 for number in batch.column("sequence").to_pylist()])
        kept = batch.filter(even)
        rows = kept.num_rows
        status = pa.array(["ok"] * rows, pa.string()).cast(self.output_schema.field("status").type)
        boxes = pa.array([[BOX]] * rows, pa.list_(DETECTION))
        columns = [*(kept.column(i) for i in range(3)), boxes, status, pa.nulls(rows, pa.string())]
        return [pa.RecordBatch.from_arrays(columns, schema=self.output_schema)]

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return an empty state."""
        return State(incremental=incremental)

    def restore(self, state: State) -> None:
        """There is nothing to restore."""

    def close_stream(self, stream_id: str) -> None:
        """Do nothing."""
