"""What Parquet and Arrow files have in common: columns told by all files together, and values that are checked before use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import SourceError, StreambankError, first_line
from connectors.sources.casting import is_text, sound
from connectors.sources.widening import widest

__all__ = ["require_columns", "sound_rows", "union_schema"]

logger = logging.getLogger(__name__)


def union_schema(paths: Sequence[Path], read: Callable[[Path], pa.Schema]) -> pa.Schema:
    """Return the columns of the first readable file with the widest types of all files.

    Raise ``SourceError`` with the reason for the first file if none can be read.
    """
    reason = None
    schemas: list[pa.Schema] = []
    for path in paths:
        try:
            schema = read(path)
        except StreambankError:
            raise
        except Exception as error:  # whatever a library makes of a damaged file; the reader says so in a row
            reason = reason or f"{str(path)!r} cannot be read: {first_line(error)}"
            continue
        if schemas and (new := [name for name in schema.names if name not in schemas[0].names]):
            logger.warning("columns_not_read path=%s columns=%s reason=the first file lacks them", path, new)
        if not any(schema.equals(known) for known in schemas[-2:]):
            schemas.append(schema)
    if not schemas:
        raise SourceError(f"{reason}; no file of this source tells its columns")
    return widest(schemas)


def require_columns(file: pa.Schema, columns: pa.Schema) -> None:
    """Raise ``ValueError`` unless ``file`` has all of ``columns``, each once."""
    missing = [name for name in columns.names if name not in file.names]
    if missing:
        raise ValueError(f"columns {missing} of the first file are missing; there are {file.names}")
    for name in columns.names:
        count = file.names.count(name)
        if count > 1:
            raise ValueError(f"there are {count} columns called {name!r}; names must differ")


def sound_rows(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.Array | None]:
    """Return rows with null for values that Arrow's format forbids, and an error per row that had one, or None.

    Writers are free to put any bytes where a file says text; unchecked they would travel on into every sink.
    """
    errors: list[pa.Array] = []
    arrays = []
    for field, array in zip(batch.schema, batch.columns, strict=True):
        checked = sound(array)
        if checked is not array:
            problem = f"column {field.name!r} {'is no UTF-8' if _has_text(field.type) else 'holds no valid ' + str(field.type)}"
            lost = pc.and_(checked.is_null(), array.is_valid())
            errors.append(pc.if_else(lost, problem, pa.scalar(None, pa.string())))
        arrays.append(checked)
    if not errors:
        return batch, None
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema), pc.coalesce(*errors)


def _has_text(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_has_text(kind.field(index).type) for index in range(kind.num_fields))
    return is_text(kind)
