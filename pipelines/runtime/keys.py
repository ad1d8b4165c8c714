"""Which shard a stream belongs to. The same in every process and every run: state is cut along these lines.

``key_group = crc32(stream_id) % 128`` and ``shard = key_group * shards // 128``, so that shards own ranges of groups and at
most 128 shards have work.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

import numpy as np
import pyarrow as pa

from connectors.records import encode_streams

__all__ = ["KEY_GROUPS", "shard_of", "split_by_shard"]

KEY_GROUPS = 128


def shard_of(stream_id: str, shards: int) -> int:
    """Return the shard of one stream."""
    return (crc32(stream_id.encode()) % KEY_GROUPS) * shards // KEY_GROUPS


def split_by_shard(batch: pa.RecordBatch, shards: int) -> Iterable[tuple[int, pa.RecordBatch]]:
    """Yield ``(shard, rows)`` for every shard that has rows in ``batch``; order within a stream is kept.

    Python work per distinct stream, not per row. A batch that belongs to one shard as a whole is not copied.
    """
    if shards == 1:
        yield 0, batch
        return
    streams, codes = encode_streams(batch.column("stream_id"))
    shard_of_stream = np.fromiter((shard_of(stream, shards) for stream in streams), np.int64, len(streams))
    present = np.unique(shard_of_stream)
    if len(present) == 1:
        yield int(present[0]), batch
        return
    row_shards = shard_of_stream[codes]
    for shard in present.tolist():
        rows = np.flatnonzero(row_shards == shard)
        if len(rows):
            yield shard, batch.take(pa.array(rows))
