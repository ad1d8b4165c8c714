"""Read back what a table sink has committed: Parquet, Arrow IPC or JSON lines, whichever the folder holds.

Only ``part-`` files are read, never staged ones. Rows come in the order of epoch, shard and file, so the rows of one stream
are in order; streams of different shards are not interleaved by time.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from connectors.errors import SourceError
from connectors.sinks.staged import published

__all__ = ["committed_files", "read_committed"]

_FORMATS = (".parquet", ".arrow", ".jsonl")
_MAX_BLOCK_BYTES = (1 << 31) - 1


def committed_files(path: Path | str) -> list[Path]:
    """Return the committed files below ``path`` in the order of epoch, shard and number; empty where there is no folder."""
    return [file for _, file in sorted(published(Path(path)))]


def read_committed(path: Path | str, *, schema: pa.Schema | None = None) -> pa.Table:
    """Return all committed rows below ``path`` as one table.

    Columns that some files lack (the schema has changed during the run) are null there. ``schema``, if given, is what the
    result has: JSON is read with its types, and a folder without any row gives an empty table of it. ``SourceError`` where
    the folder is missing, or holds no rows and no schema is given, or holds files of several formats.
    """
    root = Path(path)
    if not root.is_dir():
        raise SourceError(f"{root} is not a folder; give the 'path' of a parquet, arrow or jsonl sink")
    files = [file for file in committed_files(root) if file.suffix in _FORMATS]
    formats = sorted({file.suffix for file in files})
    if len(formats) > 1:
        raise SourceError(f"{root} holds files of {len(formats)} formats ({', '.join(formats)}); give the folder of one sink")
    if not files:
        if schema is None:
            raise SourceError(f"{root} holds no committed rows (no part-*{' part-*'.join(_FORMATS)})")
        return schema.empty_table()
    tables = []
    for file in files:
        try:
            tables.append(_read(file, schema))
        except (pa.ArrowInvalid, OSError) as error:
            raise SourceError(f"{file} cannot be read: {error}") from error
    table = pa.concat_tables(tables, promote_options="permissive")
    return table.select(schema.names).cast(schema) if schema is not None else table


def _read(file: Path, schema: pa.Schema | None) -> pa.Table:
    if file.suffix == ".parquet":
        return pq.ParquetFile(file).read()
    if file.suffix == ".arrow":
        with pa.ipc.open_file(file) as reader:
            return reader.read_all()
    # A row must fit into one block, and a column's type is settled per file: take the file as one block.
    block = min(max(file.stat().st_size, 1 << 20), _MAX_BLOCK_BYTES)
    return pa.json.read_json(
        file,
        read_options=pa.json.ReadOptions(block_size=block),
        parse_options=pa.json.ParseOptions(explicit_schema=schema),
    )
