"""Batches that wait until there are enough of them to be worth a call of an Arrow kernel or a block in a file."""

from __future__ import annotations

import pyarrow as pa

__all__ = ["RowBuffer"]

_BATCH_OVERHEAD = 1024  # bytes of Arrow and Python objects around each batch


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
