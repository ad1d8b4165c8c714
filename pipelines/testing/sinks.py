"""A sink that keeps rows in memory, with the two phases of a real one: a crash loses staged rows, not committed ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from connectors.base import Sink, Staged
from connectors.errors import SinkError
from connectors.options import REQUIRED, option

__all__ = ["ListSink", "ListSinkOptions", "RowStore"]


class RowStore:
    """What outlives a run: plays the part of the disk."""

    def __init__(self) -> None:
        self.staged: dict[str, list[pa.RecordBatch]] = {}
        self.committed: dict[str, list[pa.RecordBatch]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """Return all committed rows, by epoch, shard and order of writing."""
        return [row for _, batches in sorted(self.committed.items()) for batch in batches for row in batch.to_pylist()]

    def by_stream(self) -> dict[str, list[dict[str, Any]]]:
        """Return the committed rows of each stream, in order."""
        streams: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows():
            streams.setdefault(row["stream_id"], []).append(row)
        return streams


@dataclass(frozen=True, kw_only=True)
class ListSinkOptions:
    """Options of :class:`ListSink`; made in Python, not in a pipeline file."""

    store: RowStore = option(REQUIRED, "Where the rows go.")


class ListSink(Sink):
    """Keeps every input's rows in one :class:`RowStore`. For the local runner: the store is in this process."""

    Options: ClassVar[type] = ListSinkOptions
    options: ListSinkOptions

    def open(self, schemas: Mapping[str, pa.Schema], *, attempt: int, shard: int) -> None:
        """Begin with nothing written."""
        self._attempt, self._shard = attempt, shard
        self._written: list[pa.RecordBatch] = []
        self._serial = itertools.count()

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        """Keep the batch."""
        self._written.append(batch)

    def prepare(self, epoch: int) -> list[Staged]:
        """Stage what was written."""
        if not self._written:
            return []
        name = f"{self._attempt}/{self._shard}/{next(self._serial)}"
        batches, self._written = self._written, []
        self.options.store.staged[name] = batches
        rows = sum(batch.num_rows for batch in batches)
        return [Staged(name, f"{epoch:06d}-{self._shard:03d}", rows, sum(batch.nbytes for batch in batches), "")]

    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Move staged rows to the committed ones; what is there already is left alone."""
        store = self.options.store
        for file in staged:
            if file.staged in store.staged:
                store.committed[file.final] = store.staged.pop(file.staged)
            elif file.final not in store.committed:
                raise SinkError(f"{file.final} of epoch {epoch} is neither staged nor committed")

    def recover(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Finish the commit of ``epoch`` and drop what else is staged."""
        self.commit(epoch, staged)
        self.options.store.staged.clear()

    def close(self) -> None:
        """Drop what was not prepared."""
        self._written = []
