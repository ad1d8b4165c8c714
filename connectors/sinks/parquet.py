"""Sink: a Parquet dataset in Hive folders (``stream=<id>/date=<YYYY-MM-DD>/part-<epoch>-<shard>-<n>.parquet``).

Rows of a partition wait in memory until a row group is full; what waits is bounded over all partitions together. A file is
opened by its first row group, so that many small partitions need one open file at a time; the least recently used one is
closed when there are too many. All columns stay in the files, so the folders can be ignored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from connectors.errors import ConfigError
from connectors.options import REQUIRED, option
from connectors.sinks.columns import Columns, check_columns
from connectors.sinks.staged import FileSink, StagedFile, encode_name, single_input

__all__ = ["ParquetOptions", "ParquetSink"]

_KEYS = ("stream", "date")
_BATCH_OVERHEAD = 1024  # bytes of Arrow and Python objects around each waiting batch


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetOptions:
    """Options of the sink ``parquet``."""

    path: Path = option(REQUIRED, "Folder of the dataset.")
    partition_by: list[str] = option(["date"], "Folders, outermost first: any of stream and date (UTC day of event_time).")
    columns: list[str] | dict[str, str] | None = option(
        None, "Columns to write, in this order: a list of names, or a mapping {column: name in the file}. Default: all."
    )
    exclude: list[str] = option([], "Columns to leave out, such as image; not together with columns.")
    compression: str = option("zstd", "Compression of the pages.", choices=("zstd", "snappy", "lz4", "gzip", "none"))
    row_group_rows: int = option(131072, "A row group is written at this many rows.", unit="rows", ge=1)
    row_group_bytes: int = option(
        64 << 20, "A row group is written before this size; also bounds what waits in memory.", unit="bytes", ge=1 << 16
    )
    max_open_files: int = option(64, "Partitions written at once; raise it when many streams give many small files.", ge=1)

    def __post_init__(self) -> None:
        check_columns(self.columns, self.exclude)
        for key in self.partition_by:
            if key not in _KEYS or self.partition_by.count(key) > 1:
                raise ConfigError(f"partition_by is {self.partition_by}; allowed are stream and date, each at most once, or []")


class ParquetSink(FileSink):
    """Writes a partitioned Parquet dataset. Files of one schema only: a changed schema begins a new file."""

    Options: ClassVar[type] = ParquetOptions
    suffix = ".parquet"
    options: ParquetOptions

    def __init__(self, options: ParquetOptions) -> None:
        super().__init__(options)
        self._columns: Columns  # by open
        self._files: OrderedDict[str, _PartitionFile] = OrderedDict()  # least recently used first
        self._waiting_bytes = 0

    def _start(self, schemas: Mapping[str, pa.Schema]) -> None:
        self._columns = Columns(self.options.columns, self.options.exclude, single_input("parquet", schemas))
        taken = [key for key in self.options.partition_by if key in self._columns.schema.names]
        if taken:
            raise ConfigError(
                f"the input has a column {taken[0]!r}, which is also a folder of the dataset; rename it by "
                f"'columns: {{{taken[0]}: ...}}' or take {taken[0]!r} out of 'partition_by'"
            )

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Split the rows by partition and append each share to its file."""
        limit = self.options.row_group_bytes
        for partition, rows in self._split(batch):
            file = self._file_of(partition, rows.schema)
            self._waiting_bytes += file.add(rows)
            if file.waiting_rows >= self.options.row_group_rows or file.waiting_bytes >= limit:
                self._write_group(file)
        if self._waiting_bytes > limit:
            for file in sorted(self._files.values(), key=lambda f: -f.waiting_bytes):
                self._write_group(file)
                if self._waiting_bytes <= limit // 2:
                    break

    def _split(self, batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Yield (folder, rows). Rows of one folder keep their order."""
        if not batch.num_rows:
            return
        code = np.zeros(batch.num_rows, np.int64)
        names = [""]
        for key in self.options.partition_by:
            values = batch.column("stream_id") if key == "stream" else pc.cast(batch.column("event_time"), pa.date32())
            encoded = values.dictionary_encode()
            code = code * len(encoded.dictionary) + encoded.indices.to_numpy()
            level = [f"{key}={encode_name(str(value))}" for value in encoded.dictionary.to_pylist()]
            names = [f"{name}/{part}" if name else part for name in names for part in level]
        kept = self._columns.apply(batch)
        present = np.unique(code)
        if len(present) == 1:
            yield names[present[0]], kept
            return
        order = np.argsort(code, kind="stable")
        ends = np.append(np.searchsorted(code[order], present, side="right"), len(order))
        start = 0
        for number, end in zip(present.tolist(), ends.tolist(), strict=False):
            # A copy of its own, so that a partition with few rows does not keep the whole batch alive.
            yield names[number], kept.take(pa.array(order[start:end]))
            start = end

    def _file_of(self, partition: str, schema: pa.Schema) -> _PartitionFile:
        file = self._files.get(partition)
        if file is not None and not file.schema.equals(schema, check_metadata=True):
            self._close_file(partition)
            file = None
        if file is None:
            file = self._files[partition] = _PartitionFile(schema, self.options.compression)
        self._files.move_to_end(partition)
        return file

    def _write_group(self, file: _PartitionFile) -> None:
        if not file.waiting_bytes:
            return
        if file.staged is None:
            opened = [partition for partition, other in self._files.items() if other.staged is not None]
            if len(opened) >= self.options.max_open_files:
                self._close_file(opened[0])
            file.open(self._new_path())
        self._waiting_bytes -= file.waiting_bytes
        file.write_group()

    def _close_file(self, partition: str) -> None:
        file = self._files[partition]
        self._write_group(file)
        staged = file.finish()
        del self._files[partition]
        self._finished(staged, partition=partition, rows=file.rows)

    def _flush(self) -> None:
        for partition in list(self._files):
            if partition in self._files:  # opening one may have closed another
                self._close_file(partition)

    def _drop(self) -> None:
        for file in self._files.values():
            file.abort()
        self._files.clear()
        self._waiting_bytes = 0


class _PartitionFile:
    """One Parquet file and the rows that wait for its next row group."""

    def __init__(self, schema: pa.Schema, compression: str) -> None:
        self.schema = schema
        self.staged: StagedFile | None = None
        self.rows = 0
        self.waiting_rows = 0
        self.waiting_bytes = 0
        self._waiting: list[pa.RecordBatch] = []
        self._writer: Any = None
        self._compression = compression

    def open(self, path: Path) -> None:
        self.staged = StagedFile(path)
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self.staged, mode="w"),
            self.schema,
            compression=self._compression,
            # A dictionary pays for words that repeat; for floats and images it only costs memory.
            use_dictionary=[field.name for field in self.schema if _is_word(field.type)] or False,
        )

    def add(self, batch: pa.RecordBatch) -> int:
        """Keep the rows (no copy); return by how many bytes the wait grew."""
        size = int(batch.nbytes) + _BATCH_OVERHEAD
        self._waiting.append(batch)
        self.waiting_rows += batch.num_rows
        self.waiting_bytes += size
        self.rows += batch.num_rows
        return size

    def write_group(self) -> None:
        """Write the waiting rows as one row group."""
        table = pa.Table.from_batches(self._waiting, self.schema)
        self._waiting, self.waiting_rows, self.waiting_bytes = [], 0, 0
        self._writer.write_table(table, row_group_size=table.num_rows)

    def finish(self) -> StagedFile:
        """Write the footer and sync; return the file."""
        if self.staged is None:
            raise RuntimeError("a partition is finished before its first row group was written")
        self._writer.close()
        self.staged.finish()
        return self.staged

    def abort(self) -> None:
        self._waiting = []
        if self.staged is not None:
            self._writer.is_open = False  # else its finaliser writes a footer to the dropped file and complains
            self.staged.abort()


def _is_word(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))
