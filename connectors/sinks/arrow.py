"""Sink: Arrow IPC files, one per epoch and shard (``part-<epoch>-<shard>-<n>.arrow``); a changed schema begins a new file.

Small batches are joined before they are written. Dictionaries grow within a file by deltas, since an IPC *file* may not
replace one; the row status, whose batches each bring a dictionary of their own, depends on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import SinkError
from connectors.options import REQUIRED, option
from connectors.sinks.staged import StagedFile, single_input
from connectors.sinks.tables import ColumnOptions, Columns, RowBuffer, TableSink

__all__ = ["ArrowOptions", "ArrowSink"]

_BATCH_ROWS = 65536
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrowOptions(ColumnOptions):
    """Options of the sink ``arrow``."""

    path: Path = option(REQUIRED, "Folder for the files.")
    compression: Literal["zstd", "lz4", "none"] = option(
        "zstd", "Compression of the buffers; none lets readers map the file without a copy."
    )


class ArrowSink(TableSink):
    """Writes Arrow IPC files (also known as Feather V2)."""

    Options: ClassVar[type] = ArrowOptions
    suffix = ".arrow"
    options: ArrowOptions

    def __init__(self, options: ArrowOptions) -> None:
        super().__init__(options)
        self._columns: Columns  # by open
        self._file: StagedFile | None = None
        self._writer: Any = None
        self._schema: pa.Schema | None = None
        self._words: dict[int, pa.Array] = {}
        self._waiting = RowBuffer()
        self._rows = 0

    def _start(self, schemas: Mapping[str, pa.Schema]) -> None:
        self._columns = Columns(self.options.columns, self.options.exclude, single_input("arrow", schemas))

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Keep the rows until a batch is worth writing."""
        if not batch.num_rows:
            return
        batch = self._columns.apply(batch)
        if self._schema is not None and not batch.schema.equals(self._schema, check_metadata=True):
            self._flush()
        recoded = _recode(batch, self._words)
        if recoded is None:  # a batch alone always fits
            self._flush()
            recoded = _recode(batch, self._words)
        if self._file is None:
            self._begin(batch.schema)
        self._waiting.add(recoded)
        self._rows += batch.num_rows
        if self._waiting.rows >= _BATCH_ROWS or self._waiting.bytes >= _BATCH_BYTES:
            self._write_waiting()

    def _begin(self, schema: pa.Schema) -> None:
        self._file = StagedFile(self._new_path())
        compression = None if self.options.compression == "none" else self.options.compression
        options = pa.ipc.IpcWriteOptions(compression=compression, emit_dictionary_deltas=True)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode="w"), schema, options=options)
        self._schema = schema
        self._rows = 0

    def _write_waiting(self) -> None:
        if self._waiting.rows:
            table = pa.Table.from_batches(self._waiting.take(), self._schema).combine_chunks()
            try:
                self._writer.write_table(table)
            except pa.ArrowInvalid as error:
                raise SinkError(f"{self.root}: an IPC file cannot take these rows ({error}); use a parquet sink") from error

    def _flush(self) -> None:
        self._write_waiting()
        if self._file is not None:
            self._writer.close()
            self._file.finish()
            self._finished(self._file, partition="", rows=self._rows)
            self._file = self._writer = self._schema = None
        self._words = {}

    def _drop(self) -> None:
        if self._file is not None:
            self._file.abort()
        self._file = self._writer = self._schema = None
        self._waiting.take()
        self._words = {}


def _recode(batch: pa.RecordBatch, words: dict[int, pa.Array]) -> pa.RecordBatch | None:
    """Make each dictionary of ``batch`` an extension of ``words`` (column number → words so far), which it extends.

    Return None, and leave ``words`` alone, where a column has more words than its index type can number.
    """
    columns = batch.columns
    extended = dict(words)
    for i, column in enumerate(columns):
        if not pa.types.is_dictionary(column.type):
            continue
        known = words.get(i, column.dictionary.slice(0, 0))
        if not column.dictionary.equals(known):
            fresh = column.dictionary.filter(pc.invert(pc.is_in(column.dictionary, known)))
            extended[i] = pa.concat_arrays([known, fresh.unique()])
            if len(extended[i]) > np.iinfo(column.type.index_type.to_pandas_dtype()).max + 1:
                return None
            place = pc.index_in(column.dictionary, extended[i]).cast(column.type.index_type)
            indices = place.take(column.indices)
            columns[i] = pa.DictionaryArray.from_arrays(indices, extended[i], ordered=column.type.ordered)
    words.update(extended)
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
