"""Rows of a named output in the making: as dicts, each with the input row that gave rise to it, put in that order at the end.

For operators whose output rows are few and are not those of the input. Knows no streams and no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from operators.base import Emitted, Output
from operators.output import NOT_FINITE, OutputRows, finite_rows, status_column
from operators.pcm import sound_column

__all__ = ["MadeRows"]

_SOUND = pa.list_(pa.int16())


class MadeRows:
    """What one call gives to one output."""

    def __init__(self, output: str, schema: pa.Schema, statuses: Mapping[str, str]) -> None:
        self._output, self.schema, self._names = output, schema, list(statuses)
        self._codes = {name: code for code, name in enumerate(statuses)}
        self._rows: list[tuple[int, dict[str, Any]]] = []

    def add(self, key: int, **columns: Any) -> dict[str, Any]:
        """Add a row, ``ok`` unless ``status`` is given. Times are integers; lists of 16-bit integers are arrays.

        Return it: what is not on the host yet may be put in until ``batches``.
        """
        row = {"status": "ok", **columns}
        self._rows.append((key, row))
        return row

    def refused(self, batch: pa.RecordBatch, out: OutputRows) -> None:
        """Add the rows of ``batch`` that ``out`` has refused."""
        out.drop_rest()
        kept = out.kept().tolist()
        for made in out.batches({}):
            rows = (made.batch if isinstance(made, Output) else made).to_pylist()
            times = batch.column("event_time").cast(pa.int64())
            for key, row in zip(kept, rows, strict=True):
                self._rows.append((key, row | {"event_time": times[key].as_py()}))

    def batches(self) -> list[Emitted]:
        """Return all rows and forget them."""
        rows, self._rows = [row for _, row in sorted(self._rows, key=lambda pair: pair[0])], []
        if not rows:
            return []
        arrays = []
        for field in self.schema:
            values = [row.get(field.name) for row in rows]
            if field.name == "status":
                arrays.append(status_column(np.array([self._codes[str(value)] for value in values], np.int8), self._names))
            elif field.type == _SOUND:
                arrays.append(sound_column(values))
            else:
                arrays.append(pa.array(values, field.type))
        batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        return [Output(self._output, finite_rows(batch) if NOT_FINITE in self._codes else batch)]
