"""What the sinks of rows have in common: which columns they keep, batches that wait until they are worth writing, reading back.

``TableSink`` is the base of Parquet, Arrow IPC and JSON lines; ``Columns`` and ``RowBuffer`` serve the others. Nothing is
copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from connectors.base import Shown, Tail
from connectors.errors import ConfigError, SchemaError, nearest
from connectors.options import option
from connectors.sinks.staged import FileSink

__all__ = ["ColumnOptions", "Columns", "RowBuffer", "TableSink", "require_kept"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnOptions:
    """Options of every sink that writes columns."""

    columns: list[str] | dict[str, str] | None = option(
        None, "Columns to write, in this order: a list of names, or a mapping {column: name in what is written}. Default: all."
    )
    exclude: list[str] = option([], "Columns to leave out, such as image; not together with columns.")

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for what is wrong in itself, before any schema is known."""
        if self.columns is None:
            return
        if self.exclude:
            raise ConfigError(
                f"'columns' ({list(self.columns)}) and 'exclude' ({self.exclude}) are both given; keep one of them"
            )
        if not self.columns:
            raise ConfigError("'columns' is empty; name at least one column, or leave it out to keep all")
        names = self.written_names()
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"'columns' gives the name {twice[0]!r} to more than one column; names must differ")

    def written_names(self) -> list[str]:
        """Return the names that ``columns`` gives; none where it is left out."""
        return list(self.columns.values()) if isinstance(self.columns, dict) else list(self.columns or ())


def require_kept(columns: Sequence[str] | Mapping[str, str] | None, exclude: Sequence[str], name: str) -> None:
    """Raise ``ConfigError`` where the column ``name`` is left out, or written under another name."""
    kept = columns.get(name) == name if isinstance(columns, Mapping) else columns is None or name in columns
    if not kept or name in exclude:
        raise ConfigError(f"it leaves out the column {name!r}")


class Columns:
    """A selection of columns: a list of names, a mapping ``{column: new name}``, or all but some.

    Batches whose schema changes on the way are looked up again; a chosen column that has gone is a ``SchemaError``.
    """

    def __init__(self, columns: Sequence[str] | Mapping[str, str] | None, exclude: Sequence[str], schema: pa.Schema) -> None:
        wanted = list(columns) if columns is not None else list(exclude)
        for name in wanted:
            if name not in schema.names:
                option = "columns" if columns is not None else "exclude"
                raise ConfigError(f"'{option}' names {name!r}{nearest(name, schema.names)}; the input has {schema.names}")
        self._columns = columns
        self._exclude = frozenset(exclude)
        self._input: pa.Schema | None = None
        self._indices: list[int] = []
        self.schema = self._resolve(schema)

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the chosen columns of ``batch``."""
        if batch.schema is not self._input and not batch.schema.equals(self._input, check_metadata=True):
            self.schema = self._resolve(batch.schema)
        return pa.RecordBatch.from_arrays([batch.column(i) for i in self._indices], schema=self.schema)

    def _resolve(self, schema: pa.Schema) -> pa.Schema:
        chosen = self._columns if self._columns is not None else [n for n in schema.names if n not in self._exclude]
        gone = [name for name in chosen if name not in schema.names]
        if gone:
            raise SchemaError(f"column {gone[0]!r} is no longer in the input; it has {schema.names} now")
        self._input = schema
        self._indices = [schema.get_field_index(name) for name in chosen]
        fields = [schema.field(i) for i in self._indices]
        if isinstance(chosen, Mapping):
            fields = [field.with_name(name) for field, name in zip(fields, chosen.values(), strict=True)]
        return pa.schema(fields, metadata=schema.metadata)


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
