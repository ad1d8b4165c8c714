"""Sink: a Parquet dataset in Hive folders (``stream=<id>/date=<YYYY-MM-DD>/part-<epoch>-<shard>-<n>.parquet``).

Rows of a partition wait in memory until a row group is full; what waits is bounded over all partitions together. A file is
opened by its first row group, so that many small partitions need one open file at a time; the least recently used one is
closed when there are too many. All columns stay in the files, so the folders can be ignored.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from connectors.errors import ConfigError
from connectors.options import REQUIRED, option
from connectors.sinks.staged import StagedFile, encode_name, single_input
from connectors.sinks.tables import ColumnOptions, Columns, RowBuffer, TableSink

__all__ = ["ParquetOptions", "ParquetSink"]

_KEYS = ("stream", "date")
# Small batches of many partitions are joined up to this size before they are split: a split costs some 50 us per partition.
_BLOCK_ROWS = 1 << 14
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetOptions(ColumnOptions):
    """Options of the sink ``parquet``."""

    path: Path = option(REQUIRED, "Folder of the dataset.")
    partition_by: list[str] = option(["date"], "Folders, outermost first: any of stream and date (UTC day of event_time).")
    compression: Literal["zstd", "snappy", "lz4", "gzip", "none"] = option("zstd", "Compression of the pages.")
    row_group_rows: int = option(
        131072, "A row group is written at this many rows; it holds fewer than twice as many.", unit="rows", ge=1
    )
    row_group_bytes: int = option(
        64 << 20,
        "A row group is written at this size in memory; also bounds what waits there, over all partitions.",
        unit="bytes",
        ge=1 << 16,
    )
    max_open_files: int = option(
        64, "Files that are written at once; the least recently used one is finished where there would be more.", ge=1
    )

    def __post_init__(self) -> None:
        ColumnOptions.__post_init__(self)  # a class with slots is made anew, which super() does not know of
        for key in self.partition_by:
            if key not in _KEYS or self.partition_by.count(key) > 1:
                raise ConfigError(f"partition_by is {self.partition_by}; allowed are stream and date, each at most once, or []")


class ParquetSink(TableSink):
    """Writes a partitioned Parquet dataset. Files of one schema only: a changed schema begins a new file."""

    Options: ClassVar[type] = ParquetOptions
    suffix = ".parquet"
    options: ParquetOptions

    def __init__(self, options: ParquetOptions) -> None:
        super().__init__(options)
        self._columns: Columns  # by open
        self._unsplit = RowBuffer()
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
        for field in self._columns.schema:
            try:
                pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
            except pa.ArrowNotImplementedError as error:
                raise ConfigError(
                    f"Parquet cannot store column {field.name!r} of type {field.type} ({error}); leave it out by "
                    f"'exclude: [{field.name}]' or use an arrow sink"
                ) from error

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Keep the rows until there are enough to be split by partition."""
        if not batch.num_rows:
            return
        if not self._unsplit.accepts(batch.schema):
            self._split_waiting()
        self._columns.apply(batch)  # for its check: a chosen column that has gone is an error here, not at the split
        self._unsplit.add(batch)
        if self._unsplit.rows >= _BLOCK_ROWS or self._unsplit.bytes >= _BLOCK_BYTES or not self.options.partition_by:
            self._split_waiting()

    def _split_waiting(self) -> None:
        batches = self._unsplit.take()
        if len(batches) > 1:
            # Dictionaries that together have more words than their index type can number cannot be joined.
            with contextlib.suppress(pa.ArrowInvalid):
                batches = [pa.concat_batches(batches)]
        for batch in batches:
            for partition, rows in self._split(batch):
                self._add(partition, rows)

    def _add(self, partition: str, rows: pa.RecordBatch) -> None:
        """Append rows to the file of their partition, and write the row groups that are due."""
        limit = self.options.row_group_bytes
        file = self._file_of(partition, rows.schema)
        self._waiting_bytes += file.add(rows)
        if file.waiting.rows >= self.options.row_group_rows or file.waiting.bytes >= limit:
            self._write_groups(file)
        if self._waiting_bytes > limit:
            for other in sorted(self._files.values(), key=lambda f: -f.waiting.bytes):
                self._write_groups(other)
                if self._waiting_bytes <= limit // 2:
                    break

    def _split(self, batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Yield (folder, rows). Rows of one folder keep their order."""
        code = np.zeros(batch.num_rows, np.int64)
        levels: list[list[str]] = []
        for key in self.options.partition_by:
            values = batch.column("stream_id") if key == "stream" else pc.cast(batch.column("event_time"), pa.date32())
            encoded = values.dictionary_encode()
            levels.append([f"{key}={encode_name(str(value))}" for value in encoded.dictionary.to_pylist()])
            code = code * len(levels[-1]) + encoded.indices.to_numpy()
        kept = self._columns.apply(batch)
        present, counts = np.unique(code, return_counts=True)
        if len(present) == 1:
            yield _folder(int(present[0]), levels), kept
            return
        order = pa.array(np.argsort(code, kind="stable"))
        start = 0
        for number, count in zip(present.tolist(), counts.tolist(), strict=True):
            # A copy of its own, so that a partition with few rows does not keep the whole batch alive.
            yield _folder(number, levels), kept.take(order.slice(start, count))
            start += count

    def _file_of(self, partition: str, schema: pa.Schema) -> _PartitionFile:
        file = self._files.get(partition)
        if file is not None and not file.schema.equals(schema, check_metadata=True):
            self._close_file(partition)
            file = None
        if file is None:
            file = self._files[partition] = _PartitionFile(schema, self.options.compression)
        self._files.move_to_end(partition)
        return file

    def _write_groups(self, file: _PartitionFile) -> None:
        if not file.waiting.rows:
            return
        if file.staged is None:
            opened = [partition for partition, other in self._files.items() if other.staged is not None]
            if len(opened) >= self.options.max_open_files:
                self._close_file(opened[0])
            file.open(self._new_path())
        self._waiting_bytes -= file.waiting.bytes
        file.write_groups(self.options.row_group_rows, self.options.row_group_bytes)

    def _close_file(self, partition: str) -> None:
        file = self._files[partition]
        self._write_groups(file)
        staged = file.finish()
        del self._files[partition]
        self._finished(staged, partition=partition, rows=file.rows)

    def _flush(self) -> None:
        self._split_waiting()
        for partition in list(self._files):
            if partition in self._files:  # opening one may have closed another
                self._close_file(partition)

    def _drop(self) -> None:
        for file in self._files.values():
            file.abort()
        self._files.clear()
        self._unsplit.take()
        self._waiting_bytes = 0


class _PartitionFile:
    """One Parquet file and the rows that wait for its next row group."""

    def __init__(self, schema: pa.Schema, compression: str) -> None:
        self.schema = schema
        self.staged: StagedFile | None = None
        self.rows = 0
        self.waiting = RowBuffer()
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
        """Keep the rows; return by how many bytes the wait grew."""
        self.rows += batch.num_rows
        return self.waiting.add(batch)

    def write_groups(self, most_rows: int, most_bytes: int) -> None:
        """Write the waiting rows as one row group, or as several of equal size where one batch was larger than that."""
        groups = max(1, self.waiting.rows // most_rows, self.waiting.bytes // most_bytes)
        table = pa.Table.from_batches(self.waiting.take(), self.schema)
        self._writer.write_table(table, row_group_size=-(-table.num_rows // groups))

    def finish(self) -> StagedFile:
        """Write the footer and sync; return the file."""
        if self.staged is None:
            raise RuntimeError("a partition is finished before its first row group was written")
        self._writer.close()
        self.staged.finish()
        return self.staged

    def abort(self) -> None:
        if self.staged is not None:
            self._writer.is_open = False  # else its finalizer writes a footer to the dropped file and complains
            self.staged.abort()


def _folder(number: int, levels: list[list[str]]) -> str:
    """Return the folder of a partition: ``number`` counts through all combinations of the levels, the last one fastest."""
    parts = []
    for level in reversed(levels):
        number, index = divmod(number, len(level))
        parts.append(level[index])
    return "/".join(reversed(parts))


def _is_word(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))
