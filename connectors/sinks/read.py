"""Read back what a table sink has committed: Parquet, Arrow IPC or JSON lines, whichever the folder holds.

Only ``part-`` files are read, never staged ones. Rows come in the order of epoch, shard and file: the rows of one stream are
in order within a folder, but the days of a Parquet dataset may alternate within an epoch; sort by ``sequence`` if that matters.
``FileTail`` follows a folder: what is committed from now on.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from connectors.base import Row, Tail
from connectors.errors import SourceError
from connectors.sinks.staged import published

__all__ = ["FileTail", "committed_files", "read_committed", "read_file"]

_FORMATS = (".parquet", ".arrow", ".jsonl")
_MAX_BLOCK_BYTES = (1 << 31) - 1
_LOOK_S = 0.2
"""How often a folder is listed for new files."""


def committed_files(path: Path | str) -> list[Path]:
    """Return the committed files below ``path`` in the order of epoch, shard and number; empty where there is no folder."""
    return [file for _, file in sorted(published(Path(path)))]


def read_committed(path: Path | str, *, schema: pa.Schema | None = None) -> pa.Table:
    """Return all committed rows below ``path`` as one table.

    Columns that some files lack (the schema has changed during the run) are null there. ``schema``, if given, is what the
    result has: JSON is read with its types (binary from base64), and a folder without any row gives an empty table of it.
    ``SourceError`` where the folder is missing, holds no rows and no schema is given, holds files of several formats, rows
    that do not fit, or JSON whose type Arrow's reader cannot make (maps, durations).
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
        tables.append(read_file(file, schema=schema))
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
        return _conform(table, schema) if schema is not None else table
    except (pa.ArrowException, ValueError) as error:
        raise SourceError(f"{root}: its rows do not fit {'the given schema' if schema else 'together'}: {error}") from error


def read_file(file: Path, *, schema: pa.Schema | None = None) -> pa.Table:
    """Return the rows of one committed file; JSON is read with the types of ``schema``. ``SourceError`` where it is damaged."""
    try:
        return _read(file, schema)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{file} cannot be read: {error}") from error


class FileTail(Tail):
    """Files that are committed from now on. Each is read once."""

    def __init__(self, path: Path, column: str) -> None:
        super().__init__(column)
        self._path = path
        self._seen = set(committed_files(path))

    def look(self, ids: Collection[str], timeout_s: float) -> list[Row]:
        """Read new files; where none has such rows, wait a little."""
        found: list[Row] = []
        for file in committed_files(self._path):
            if file not in self._seen:
                self._seen.add(file)
                found += self.matching(read_file(file), ids)
        if not found:
            time.sleep(min(_LOOK_S, timeout_s))
        return found

    def close(self) -> None:
        """Do nothing: no file is open."""


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
        parse_options=pa.json.ParseOptions(explicit_schema=_plain(schema) if schema is not None else None),
    )


def _plain(schema: pa.Schema) -> pa.Schema:
    """Replace the types that Arrow's JSON reader cannot make by those that it can; ``_conform`` casts them back."""
    return pa.schema([pa.field(field.name, _plain_type(field.type)) for field in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_date(kind) or pa.types.is_time(kind) or _is_binary(kind):
        return pa.string()
    return kind


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of ``schema``, those that no file has as nulls."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        if _is_binary(field.type) and pa.types.is_string(column.type):
            column = pa.array([None if text is None else base64.b64decode(text) for text in column.to_pylist()], field.type)
        if pa.types.is_time(field.type) and pa.types.is_string(column.type):
            # There is no cast from text to a time of day, but one by way of a day.
            column = pc.binary_join_element_wise("1970-01-01T", column, "").cast(pa.timestamp("ns"))
        columns.append(column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)
