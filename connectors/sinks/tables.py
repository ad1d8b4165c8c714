"""What the sinks of rows have in common: batches wait until they are worth writing, and what is committed can be read back.

``TableSink`` is the base of Parquet, Arrow IPC and JSON lines; ``RowBuffer`` serves the topic of Kafka, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from connectors.base import Shown, Tail
from connectors.sinks.columns import require_kept
from connectors.sinks.staged import FileSink

__all__ = ["RowBuffer", "TableSink"]

_BATCH_OVERHEAD = 1024  # bytes of Arrow and Python objects around each batch


class TableSink(FileSink):
    """Base of these sinks. Their options have ``columns`` and ``exclude``; ``connectors.sinks.read`` knows their suffix."""

    def shown(self, column: str) -> Shown:
        """Return that rows are in files, from the commit of their epoch on."""
        require_kept(self.options.columns, self.options.exclude, column)
        return Shown.IN_FILES

    def tail(self, source: str, column: str, streams: Sequence[str], shards: Sequence[int]) -> Tail:
        """Follow the files that are committed from now on; the folder need not exist yet."""
        from connectors.sinks.read import FileTail

        return FileTail(self.root, column)


class RowBuffer:
    """A list of batches that knows its size. Keeps references, copies nothing."""

    __slots__ = ("batches", "bytes", "rows")

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []
        self.rows = 0
        self.bytes = 0

    def add(self, batch: pa.RecordBatch) -> int:
        """Append a batch; return by how many bytes the buffer grew."""
        size = int(batch.nbytes) + _BATCH_OVERHEAD
        self.batches.append(batch)
        self.rows += batch.num_rows
        self.bytes += size
        return size

    def accepts(self, schema: pa.Schema) -> bool:
        """Return whether the buffer is empty or holds batches of this schema."""
        return not self.batches or bool(self.batches[0].schema.equals(schema, check_metadata=True))

    def take(self) -> list[pa.RecordBatch]:
        """Return all batches and forget them."""
        batches, self.batches, self.rows, self.bytes = self.batches, [], 0, 0
        return batches
