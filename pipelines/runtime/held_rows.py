"""Rows that wait in an operator task, on disk: one file per shard and epoch, Arrow IPC streams back to back.

One stream per input node, which its schema's metadata names; a column at the end says to which span a row belongs. Everything
else stands as it came. Can be read for some of the streams only, so that rows follow their keys to other shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from connectors.records import encode_streams
from pipelines.runtime.aligner import HeldRows
from pipelines.runtime.messages import SnapshotFile
from pipelines.runtime.snapshots import Keep, verify, write_file

__all__ = ["read_held", "write_held"]

_INPUT = b"streambank.held"
_SPAN = "streambank.span"


def write_held(held: Sequence[HeldRows], root: Path, path: str) -> SnapshotFile:
    """Write rows to ``root/path``, durable when this returns."""

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as file:
            for rows in held:
                fields = [*rows.batch.schema, pa.field(_SPAN, pa.int64())]
                metadata = {**(rows.batch.schema.metadata or {}), _INPUT: json.dumps([rows.role, rows.node])}
                batch = pa.RecordBatch.from_arrays(
                    [*rows.batch.columns, pa.array(rows.spans)], schema=pa.schema(fields, metadata=metadata)
                )
                with pa.ipc.new_stream(file, batch.schema) as stream:
                    stream.write_batch(batch)

    size, sha256 = write_file(root / path, write)
    return SnapshotFile(path, size, sha256, False)


def read_held(root: Path, file: SnapshotFile, keep: Keep | None = None) -> Iterator[HeldRows]:
    """Yield the rows of a file by input node; only of the streams that ``keep`` wants, if given.

    Raise ``RecoveryError`` if the file is damaged.
    """
    with pa.OSFile(str(verify(root, file)), "rb") as opened:
        while opened.tell() < opened.size():
            with pa.ipc.open_stream(opened) as stream:
                [batch] = stream
                schema = stream.schema
            if keep is not None:
                names, codes = encode_streams(batch.column("stream_id"))
                batch = batch.filter(pa.array(np.array([keep(name) for name in names], np.bool_)[codes]))
            role, node = json.loads(schema.metadata[_INPUT])
            metadata = {key: value for key, value in schema.metadata.items() if key != _INPUT}
            rows = pa.RecordBatch.from_arrays(
                batch.columns[:-1], schema=pa.schema(list(schema)[:-1], metadata=metadata or None)
            )
            if rows.num_rows:
                yield HeldRows(role, node, rows, batch.column(_SPAN).to_numpy())
