"""JSON lines: one object per line. Columns that are not asked for are skipped by the parser."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.json as pj

from connectors.sources.lines import LineFormat
from connectors.sources.tables import TableOptions, TableSource

__all__ = ["JsonlFormat", "JsonlSource"]

_MAX_INFERRED_DEPTH = 10_000
"""Inferring much deeper types overflows Arrow's stack; with the columns known the parser skips such values safely."""


class JsonlFormat(LineFormat):
    """Reads JSON lines by Arrow's parser, on the calling thread."""

    sparse = True

    def parse(self, block: bytes, columns: pa.Schema | None) -> pa.Table:
        """Parse a block of lines, each of which must begin an object."""
        # Arrow's parser crashes the process on a top-level null, so no block reaches it in which a line begins otherwise.
        if not block.startswith(b"{") or block.count(b"\n{") + 1 != block.count(b"\n") + (not block.endswith(b"\n")):
            raise pa.ArrowInvalid("not a JSON object")
        if not block.isascii():  # Arrow's parser takes any bytes for text
            try:
                block.decode()
            except UnicodeDecodeError as error:
                raise pa.ArrowInvalid(f"not UTF-8: {error.reason}") from error
        if columns is None and _most_brackets(block) > _MAX_INFERRED_DEPTH:
            raise pa.ArrowInvalid("nested too deeply to tell the columns from it")
        table = pj.read_json(
            pa.BufferReader(block),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=columns, unexpected_field_behavior="infer" if columns is None else "ignore"
            ),
        )
        return table if columns is None else table.select(columns.names)

    def clean(self, line: bytes) -> bytes:
        """Return the line without white space."""
        return line.strip()

    def merge(self, first: pa.DataType, second: pa.DataType) -> pa.DataType:
        """Keep the first type where two do not go together: JSON values of another type are bad lines."""
        try:
            return super().merge(first, second)
        except pa.ArrowTypeError:
            return first


class JsonlSource(TableSource):
    """Files of JSON lines."""

    Options = TableOptions
    suffixes = frozenset({".jsonl", ".ndjson"})

    def format(self) -> JsonlFormat:
        """Return how to read JSON lines."""
        return JsonlFormat()


def _most_brackets(block: bytes) -> int:
    """Return the number of opening brackets of the line that has most: no line nests deeper than that."""
    return max(line.count(b"[") + line.count(b"{") for line in block.split(b"\n"))
