"""Sink: one JSON object per row, one file per epoch and shard (``part-<epoch>-<shard>-<n>.jsonl``).

Rows stand in the order in which they were written. How a value becomes text is :mod:`connectors.sinks.json_text`'s concern.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from connectors.options import REQUIRED, option
from connectors.sinks.json_text import ALTERED, json_lines
from connectors.sinks.staged import StagedFile, single_input
from connectors.sinks.tables import ColumnOptions, Columns, RowBuffer, TableSink

__all__ = ["JsonlOptions", "JsonlSink"]

# Batches are joined up to this size, since Arrow's kernels cost a fixed 0.5 ms per call, and cut at it, since the text of
# one call must stay far below the 2 GiB of a string array.
_BLOCK_ROWS = 1 << 15
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonlOptions(ColumnOptions):
    """Options of the sink ``jsonl``."""

    path: Path = option(REQUIRED, "Folder for the files.")


class JsonlSink(TableSink):
    """Writes JSON lines. NaN and infinities become null, binary becomes base64 (slow: better exclude it)."""

    Options: ClassVar[type] = JsonlOptions
    suffix = ".jsonl"
    kind: ClassVar[str] = "jsonl"
    """What messages call it."""
    options: JsonlOptions

    def __init__(self, options: JsonlOptions) -> None:
        super().__init__(options)
        self._columns: Columns  # by open
        self._file: StagedFile | None = None
        self._waiting = RowBuffer()
        self._rows = self._altered = 0

    def _start(self, schemas: Mapping[str, pa.Schema]) -> None:
        self._columns = Columns(self.options.columns, self.options.exclude, single_input(self.kind, schemas))

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Keep the rows until a block of text is worth making."""
        if not batch.num_rows:
            return
        batch = _without_dictionaries(self._columns.apply(batch))
        if not self._waiting.accepts(batch.schema):
            self._write_waiting()
        self._waiting.add(batch)
        if self._waiting.rows >= _BLOCK_ROWS or self._waiting.bytes >= _BLOCK_BYTES:
            self._write_waiting()

    def incomplete(self) -> Mapping[str, int]:
        """Return how many rows have null where JSON cannot hold the value."""
        return {ALTERED: self._altered}

    def _write_waiting(self) -> None:
        if not self._waiting.rows:
            return
        if self._file is None:
            self._file, self._rows = StagedFile(self._new_path()), 0
        rows, size = self._waiting.rows, self._waiting.bytes
        joined = pa.concat_batches(self._waiting.take())
        step = min(_BLOCK_ROWS, max(1, _BLOCK_BYTES * rows // size))
        for start in range(0, rows, step):
            text, altered = json_lines(joined.slice(start, step))
            self._file.write(text)
            self._altered += altered
        self._rows += rows

    def _flush(self) -> None:
        self._write_waiting()
        if self._file is not None:
            self._file.finish()
            self._finished(self._file, partition="", rows=self._rows)
            self._file = None

    def _drop(self) -> None:
        self._waiting.take()
        if self._file is not None:
            self._file.abort()
            self._file = None


def _without_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Decode dictionary columns, since many small dictionaries may not fit into one when batches are joined."""
    for i, column in enumerate(batch.columns):
        if pa.types.is_dictionary(column.type):
            batch = batch.set_column(i, batch.schema.names[i], column.dictionary_decode())
    return batch
