"""Parquet files, streamed by row groups: one row group's compressed columns and one batch are in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.sources.columnar import require_columns, sound_rows, union_schema
from connectors.sources.tables import Chunk, TableFormat, TableOptions, TableSource

__all__ = ["ParquetFormat", "ParquetSource"]

_CHUNK_BYTES = 8 << 20
_MAX_CHUNK_ROWS = 65_536


class ParquetFormat(TableFormat):
    """Reads Parquet. ``at`` is [row group, row in it]; a chunk never spans row groups."""

    def __init__(self) -> None:
        self._estimated: tuple[Path, pq.FileMetaData] | None = None

    def schema(self, paths: Sequence[Path]) -> pa.Schema:
        """Return the columns of the first file that can be read, with the types that hold the values of all files."""
        return union_schema(paths, pq.read_schema)

    def chunks(self, path: Path, at: Any, columns: pa.Schema) -> Iterator[Chunk]:
        """Yield batches of about 8 MiB."""
        first, skip = at if at is not None else (0, 0)
        known, self._estimated = self._estimated, None  # the footer is not read twice where rows follow at once
        metadata = known[1] if known is not None and known[0] == path and at is None else None
        with pq.ParquetFile(path, metadata=metadata, pre_buffer=False, buffer_size=1 << 20) as file:
            require_columns(file.schema_arrow, columns)
            for group in range(first, file.num_row_groups):
                size = file.metadata.row_group(group)
                per_row = max(1, size.total_byte_size // max(1, size.num_rows))
                rows = max(1, min(_MAX_CHUNK_ROWS, _CHUNK_BYTES // per_row))
                start = 0
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns.names, use_threads=False):
                    after = start + batch.num_rows
                    if start >= skip:
                        yield Chunk(*sound_rows(batch), [group, start], [group, after])
                    start = after
                skip = 0

    def estimate_rows(self, path: Path) -> int:
        """Return the number of rows from the footer."""
        metadata = pq.read_metadata(path)
        self._estimated = path, metadata
        return int(metadata.num_rows)


class ParquetSource(TableSource):
    """Parquet files."""

    Options = TableOptions
    suffixes = frozenset({".parquet", ".pq"})

    def format(self) -> ParquetFormat:
        """Return how to read Parquet."""
        return ParquetFormat()
