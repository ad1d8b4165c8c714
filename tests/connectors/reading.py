"""Reading sources in tests."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa

from connectors.base import Position, Reader, Source


def batches(reader: Reader, rows: int = 1 << 20, size: int = 1 << 30) -> Iterator[pa.RecordBatch]:
    while not reader.exhausted:
        batch = reader.read(rows, size)
        if batch is not None:
            yield batch


def read_all(source: Source, split: str | None = None, position: Position | None = None, rows: int = 1 << 20) -> pa.Table:
    """Read one split, the only one unless named, to its end."""
    if split is None:
        (split,) = source.splits()
    reader = source.open(split, position)
    table = pa.Table.from_batches(batches(reader, rows), schema=source.schema)
    assert reader.read(1, 1) is None
    reader.close()
    return table


def assert_every_restart_is_exact(make: type | object, split: str | None = None, rows: int = 7) -> None:
    """Check that a reader opened at any position, in a fresh source, delivers exactly the rows that are left."""
    source = make()  # type: ignore[operator]
    split = split or source.splits()[0]
    whole = read_all(source, split)
    reader, seen = source.open(split, None), 0
    positions = [(0, reader.position())]
    for batch in batches(reader, rows):
        seen += batch.num_rows
        positions.append((seen, reader.position()))
    positions.append((seen, reader.position()))
    assert seen == whole.num_rows
    for done, position in positions:
        rest = read_all(make(), split, json.loads(json.dumps(position)), rows + 4)  # type: ignore[operator]
        assert rest.equals(whole.slice(done)), f"restart after {done} rows"
