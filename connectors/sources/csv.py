"""CSV and other delimited text with one record per line; a quoted value may hold the delimiter but no line end."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from connectors.errors import ConfigError
from connectors.options import option
from connectors.sources.lines import LineFormat
from connectors.sources.tables import TableOptions, TableSource

__all__ = ["CsvFormat", "CsvOptions", "CsvSource"]

_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CsvOptions(TableOptions):
    """Options of the source ``csv``."""

    delimiter: str = option(",", "Character between values.")
    header: bool = option(True, "Whether the first line names the columns; if not they are f0, f1, …")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise ConfigError(f"delimiter: {self.delimiter!r} is not usable; give one character such as ',' ';' or '\\t'")


class CsvFormat(LineFormat):
    """Reads CSV by Arrow's parser, on the calling thread."""

    def __init__(self, options: CsvOptions) -> None:
        self._options = options
        self._names: list[str] = []

    def schema(self, paths: Sequence[Path]) -> pa.Schema:
        """Infer the types. Stream ids are read as text: 007 is not 7."""
        inferred = super().schema(paths)
        index = inferred.get_field_index(self._options.stream_id or "stream_id")
        return inferred if index < 0 else inferred.set(index, inferred.field(index).with_type(pa.string()))

    def clean(self, line: bytes) -> bytes:
        """Return the line without its end; blanks and tabs may be values."""
        return line.rstrip(b"\r")

    def merge(self, first: pa.DataType, second: pa.DataType) -> pa.DataType:
        """Fall back to text where two types do not go together."""
        try:
            return super().merge(first, second)
        except pa.ArrowTypeError:
            return pa.string()

    def head(self, path: Path, columns: pa.Schema | None) -> int:
        """Read the names of the columns and return the offset behind them."""
        start = super().head(path, columns)
        with path.open("rb") as file:
            file.seek(start)
            line = file.readline(_MAX_HEADER_BYTES)
            self._names = next(csv.reader([line.decode(errors="replace")], delimiter=self._options.delimiter), [])
            if self._options.header:
                start = file.tell()
            else:
                self._names = [f"f{index}" for index in range(len(self._names))]
        missing = [name for name in (columns.names if columns is not None else ()) if name not in self._names]
        if missing:
            raise ValueError(f"columns {missing} of the first file are missing; there are {self._names}")
        return start

    def parse(self, block: bytes, columns: pa.Schema | None) -> pa.Table:
        """Parse a block of lines, none of which is the header."""
        types = None if columns is None else {field.name: field.type for field in columns}
        return pacsv.read_csv(
            pa.BufferReader(block),
            read_options=pacsv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=self._names),
            parse_options=pacsv.ParseOptions(delimiter=self._options.delimiter),
            convert_options=pacsv.ConvertOptions(
                column_types=types, include_columns=columns.names if columns is not None else None
            ),
        )


class CsvSource(TableSource):
    """CSV files."""

    Options = CsvOptions
    options: CsvOptions
    suffixes = frozenset({".csv", ".tsv", ".txt"})

    def format(self) -> CsvFormat:
        """Return how to read these files."""
        return CsvFormat(self.options)
