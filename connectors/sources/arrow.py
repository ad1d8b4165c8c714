"""Arrow IPC files (Feather 2) and streams, read batch by batch as they were written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from connectors.sources.columnar import require_columns, sound_rows, union_schema
from connectors.sources.tables import Chunk, TableFormat, TableOptions, TableSource

__all__ = ["ArrowFormat", "ArrowSource"]

_FILE_MAGIC = b"ARROW1"


class ArrowFormat(TableFormat):
    """Reads both layouts, told apart by the first bytes. ``at`` is the number of a batch."""

    def schema(self, paths: Sequence[Path]) -> pa.Schema:
        """Return the columns of the first file that can be read, with the types that hold the values of all files."""
        return union_schema(paths, _read_schema)

    def chunks(self, path: Path, at: Any, columns: pa.Schema) -> Iterator[Chunk]:
        """Yield the batches from number ``at`` on."""
        first = int(at or 0)
        # Read, not mapped: a file that is cut while it is mapped kills the process.
        with pa.OSFile(str(path)) as source:
            if _is_file(path):
                file = pa.ipc.open_file(source)
                require_columns(file.schema, columns)
                for index in range(first, file.num_record_batches):
                    yield Chunk(*sound_rows(file.get_batch(index).select(columns.names)), index, index + 1)
                return
            stream = pa.ipc.open_stream(source)
            require_columns(stream.schema, columns)
            for index, batch in enumerate(stream):
                if index >= first:
                    yield Chunk(*sound_rows(batch.select(columns.names)), index, index + 1)

    def estimate_rows(self, path: Path) -> None:
        """Return None: the rows of all batches are not known without reading them."""


class ArrowSource(TableSource):
    """Arrow IPC files and streams."""

    Options = TableOptions
    suffixes = frozenset({".arrow", ".arrows", ".feather", ".ipc"})

    def format(self) -> ArrowFormat:
        """Return how to read Arrow IPC."""
        return ArrowFormat()


def _is_file(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_FILE_MAGIC)) == _FILE_MAGIC


def _read_schema(path: Path) -> pa.Schema:
    with pa.OSFile(str(path)) as source:
        return (pa.ipc.open_file(source) if _is_file(path) else pa.ipc.open_stream(source)).schema
