"""CSV and other delimited text; a quoted value may hold the delimiter and line ends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from connectors.errors import ConfigError
from connectors.options import option
from connectors.sources.columns import parse_type
from connectors.sources.csv_records import Records
from connectors.sources.exact import inexact_integer
from connectors.sources.lines import BOM, LineFormat
from connectors.sources.tables import TableOptions, TableSource

__all__ = ["CsvFormat", "CsvOptions", "CsvSource"]

_MAX_HEADER_BYTES = 1 << 20
_INTEGER = re.compile(r"\s*[+-]?\d{1,400}\s*")
_NULLS = ["", *pacsv.ConvertOptions().null_values]
_SYNC_LINES, _SYNC_BYTES = 20, 16 << 10


@dataclass(frozen=True, kw_only=True)
class CsvOptions(TableOptions):
    """Options of the source ``csv``."""

    delimiter: str = option(",", "Character between values.")
    header: bool = option(True, "Whether the first line names the columns; if not they are f0, f1, …")
    comment: str | None = option(None, "Lines that begin with this are left out, such as '#'; nothing: there are none.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n' or not self.delimiter.isascii():
            raise ConfigError(f"delimiter: {self.delimiter!r} is not usable; give one character such as ',' ';' or '\\t'")
        if self.comment is not None and (not self.comment or set(self.comment) & set('"\r\n')):
            raise ConfigError(f"comment: {self.comment!r} is not usable; give what comment lines begin with, such as '#'")


class CsvFormat(LineFormat):
    """Reads CSV by Arrow's parser, on the calling thread."""

    def __init__(self, options: CsvOptions) -> None:
        self._options = options
        self._names: list[str] = []
        self._text = Records(options.delimiter, options.comment)
        declared = options.columns if isinstance(options.columns, dict) else {}
        self._times = {name for name, kind in declared.items() if self.read_as(parse_type(kind)) != parse_type(kind)}

    def schema(self, paths: Sequence[Path]) -> pa.Schema:
        """Infer the types. Stream ids are read as text: 007 is not 7."""
        inferred = super().schema(paths)
        index = inferred.get_field_index(self._options.stream_id or "stream_id")
        return inferred if index < 0 else inferred.set(index, inferred.field(index).with_type(pa.string()))

    def names(self, path: Path) -> list[str]:
        """Return the names in the header."""
        self.head(path, None)
        return self._names if self._options.header else []

    def clean(self, record: bytes) -> bytes:
        """Return the record; blanks and tabs may be values. Files joined by ``cat`` have byte order marks in the middle."""
        return record.removeprefix(BOM)

    def merge(self, first: pa.DataType, second: pa.DataType) -> pa.DataType:
        """Fall back to text where two types do not go together."""
        try:
            return super().merge(first, second)
        except pa.ArrowTypeError:
            return pa.string()

    def head(self, path: Path, columns: pa.Schema | None) -> int:
        """Read the names of the columns and return the offset behind them; a file without any line lacks none."""
        start = super().head(path, columns)
        with path.open("rb") as file:
            file.seek(start)
            text = file.read(_MAX_HEADER_BYTES)
        whole = len(text) < _MAX_HEADER_BYTES
        first = next(self._text.split(text), None)
        if first is None or (first[1] == len(text) and not whole):
            if not whole:
                raise ValueError(f"its first line is longer than {_MAX_HEADER_BYTES} bytes")
            self._names = []
            return start + len(text)
        begin, end, problem = first
        if problem is not None and self._options.header:
            raise ValueError(f"its first line names no columns: {problem}")
        self._names = self._text.values(text[begin:end])
        if self._options.header:
            start += end + (2 if text.startswith(b"\r\n", end) else 1 if end < len(text) else 0)
        else:
            self._names = [f"f{index}" for index in range(len(self._names))]
        wanted = columns.names if columns is not None else []
        if missing := [name for name in wanted if name not in self._names]:
            raise ValueError(f"columns {missing} of the first file are missing; there are {self._names}")
        if twice := [name for name in wanted if self._names.count(name) > 1]:
            raise ValueError(f"there are {self._names.count(twice[0])} columns called {twice[0]!r}; names must differ")
        return start

    def parse(self, block: bytes, columns: pa.Schema | None) -> pa.Table:
        """Parse a block of records, none of which is the header."""
        types = None if columns is None else {field.name: field.type for field in columns}
        table = pacsv.open_csv(  # read_csv takes a millisecond more to begin
            pa.BufferReader(block),
            read_options=pacsv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=self._names),
            parse_options=pacsv.ParseOptions(delimiter=self._options.delimiter, newlines_in_values=b'"' in block),
            convert_options=pacsv.ConvertOptions(
                column_types=types, include_columns=columns.names if columns is not None else None
            ),
        ).read_all()
        for name in self._times & set(table.column_names):  # read as text, of which "NA" is one
            texts = table.column(name)
            index = table.column_names.index(name)
            table = table.set_column(
                index, name, pc.if_else(pc.is_in(texts, pa.array(_NULLS)), pa.scalar(None, texts.type), texts)
            )
        return table

    def parse_blank(self, columns: pa.Schema) -> None:
        """Parse an empty value."""
        names, self._names = self._names, columns.names
        try:
            self.parse(b'""\n', columns)
        except pa.ArrowInvalid:
            pass  # the type is known; only the value does not fit
        finally:
            self._names = names

    def split(self, block: bytes) -> Iterator[tuple[int, int, str | None]]:
        """Yield the records; comments are none."""
        return self._text.split(block)

    def end(self, block: bytes, *, closed: bool) -> int:
        """Return the end of the last record."""
        return self._text.end(block, closed=closed)

    def count(self, block: bytes) -> int | None:
        """Return the number of lines where each is a record."""
        if block.startswith(BOM) or b"\n" + BOM in block or not self._text.lines_are_records(block):
            return None
        ends = block.count(b"\n")
        if b"\r" in block:
            ends += block.count(b"\r") - block.count(b"\r\n")
        return ends + (not block.endswith((b"\n", b"\r")))

    def inexact(self, record: bytes, names: Sequence[str], columns: pa.Schema) -> dict[str, str]:
        """Compare the texts of the values."""
        values = dict(zip(self._names, self._text.values(record), strict=False))
        found = {name: _number(values[name]) for name in names}
        return {
            name: values[name].strip()
            for name, number in found.items()
            if inexact_integer(number, columns.field(name).type) is not None
        }

    def numbers(self, records: Sequence[bytes], name: str) -> list[Any]:
        """Return the column's integers as such, other values as floats."""
        index = self._names.index(name) if name in self._names else len(self._names)
        rows = map(self._text.values, records)
        texts = [row[index] for row in rows if index < len(row)]
        nulls = set(_NULLS)
        return [_number(text) for text in texts if text not in nulls]

    def sync(self, block: bytes) -> int:
        """Choose, of the first line ends, the one behind which the text looks most like records."""
        starts = [found.end() for found, _ in zip(re.finditer(rb"\r\n|\n|\r", block), range(_SYNC_LINES), strict=False)]
        if not starts or self._text.lines_are_records(block[starts[0] :]):
            return starts[0] if starts else len(block)
        return min(starts, key=lambda start: self._text.oddities(block[start : start + _SYNC_BYTES]))


class CsvSource(TableSource):
    """CSV files."""

    Options = CsvOptions
    options: CsvOptions
    suffixes = frozenset({".csv", ".tsv", ".txt"})

    def format(self) -> CsvFormat:
        """Return how to read these files."""
        return CsvFormat(self.options)


def _number(text: str) -> int | float:
    return int(text) if _INTEGER.fullmatch(text) else 0.5
