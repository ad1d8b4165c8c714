"""JSON lines: one object per line. Columns that are not asked for are skipped by the parser."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json as pj

from connectors.sources.exact import inexact_integer
from connectors.sources.lines import BOM, LineFormat, as_batch
from connectors.sources.tables import TableOptions, TableSource

__all__ = ["JsonlFormat", "JsonlSource"]

_MAX_INFERRED_DEPTH = 10_000
"""Inferring much deeper types overflows Arrow's stack; with the columns known the parser skips such values safely."""

_MAX_DIGITS = 400
"""An integer with more digits is beyond all doubles."""

_LONE_CR = re.compile(rb"\r(?!\n)")
_CR_BETWEEN = re.compile(rb"(?<=\})([ \t]*)\r(?=[ \t\r]*(?:\xef\xbb\xbf)?\{)")
"""No JSON text has ``} {`` within: a carriage return there is between two texts."""


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
        table = pj.open_json(  # read_json takes a millisecond more to begin
            pa.BufferReader(block),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=columns, unexpected_field_behavior="infer" if columns is None else "ignore"
            ),
        ).read_all()
        return table if columns is None else table.select(columns.names)

    def parse_blank(self, columns: pa.Schema) -> None:
        """Parse an empty object."""
        self.parse(b"{}\n", columns)

    def split(self, block: bytes) -> Iterator[tuple[int, int, str | None]]:
        """Yield the lines; they end with a line feed, in files of old Macintosh programs with a carriage return."""
        if block.count(b"\r") > block.count(b"\r\n"):
            block = _LONE_CR.sub(b"\n", block) if b"\n" not in block else _CR_BETWEEN.sub(rb"\1" + b"\n", block)
        at = 0
        for line in block.split(b"\n"):
            if line:
                yield at, at + len(line), None
            at += len(line) + 1

    def end(self, block: bytes, *, closed: bool) -> int:
        """Return the end of the last line."""
        return block.rfind(b"\n") + 1 or block.rfind(b"\r") + 1

    def count(self, block: bytes) -> int:
        """Return the number of lines."""
        return block.count(b"\n") + (not block.endswith(b"\n"))

    def clean(self, record: bytes) -> bytes:
        """Return the line without white space and the byte order mark that files joined by ``cat`` have in the middle."""
        return record.strip().removeprefix(BOM).lstrip()

    def rows(
        self,
        records: Sequence[bytes],
        columns: pa.Schema,
        offsets: Sequence[int] | None = None,
        problems: Sequence[str | None] | None = None,
    ) -> tuple[pa.RecordBatch, pa.Array | None]:
        """Parse JSON texts, one row each; line ends are white space within a text."""
        if offsets is None:
            block = b"\n".join([*records, b""])
            if block.count(b"\n") == len(records):
                with contextlib.suppress(pa.ArrowInvalid):  # found record by record below
                    table = self.parse(block, columns)
                    if table.num_rows == len(records):
                        return self.exact(as_batch(table), None, columns, lambda: records)
            records = [self.clean(record).replace(b"\n", b" ") for record in records]
        return super().rows(records, columns, offsets, problems)

    def inexact(self, record: bytes, names: Sequence[str], columns: pa.Schema) -> dict[str, str]:
        """Parse the object once more, with Python's integers."""
        try:
            values = json.loads(record, strict=False, parse_int=_integer)
        except (ValueError, RecursionError):
            return {name: "a value that cannot be looked at" for name in names}
        found = ((name, inexact_integer(values.get(name), columns.field(name).type)) for name in names)
        return {name: _digits(number) for name, number in found if number is not None}

    def numbers(self, records: Sequence[bytes], name: str) -> list[Any]:
        """Return the column's values of the objects that can be parsed."""
        values = []
        for record in records:
            try:
                values.append(json.loads(record, strict=False, parse_int=_integer).get(name))
            except (ValueError, RecursionError, AttributeError):
                continue
        return values

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


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS + 1


def _digits(number: int) -> str:
    return str(number) if number <= 10**_MAX_DIGITS else f"an integer of more than {_MAX_DIGITS} digits"


def _most_brackets(block: bytes) -> int:
    """Return the number of opening brackets of the line that has most: no line nests deeper than that."""
    return max(line.count(b"[") + line.count(b"{") for line in block.split(b"\n"))
