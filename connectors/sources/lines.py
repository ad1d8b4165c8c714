"""Text files of one record per line, read in blocks that are cut at line ends.

A block is parsed as a whole by Arrow. Only when that fails, or gives another number of rows than lines, is it halved until the
bad lines are alone; these become rows with an error. A line of any length uses bounded memory. Values do not span lines.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from connectors.errors import SourceError
from connectors.sources.tables import Chunk, TableFormat

__all__ = ["LineFormat"]

_BLOCK_BYTES = 1 << 20
"""Bytes parsed at once; Arrow's readers are fastest from here on and a chunk stays in the processor's cache."""

_MAX_LINE_BYTES = 64 << 20
_SAMPLE_BYTES = 256 << 10
_BOM = b"\xef\xbb\xbf"


class LineFormat(TableFormat):
    """A format of lines. Positions are byte offsets of a line's start."""

    @abstractmethod
    def parse(self, block: bytes, columns: pa.Schema | None) -> pa.Table:
        """Parse whole lines, with the types of ``columns`` or by inference. Raise ``pa.ArrowInvalid`` if any line is bad."""

    def head(self, path: Path, columns: pa.Schema | None) -> int:
        """Get ready for ``path`` and return the offset of its first record. Raise ``ValueError`` if it lacks ``columns``."""
        with path.open("rb") as file:
            return len(_BOM) if file.read(len(_BOM)) == _BOM else 0

    @abstractmethod
    def clean(self, line: bytes) -> bytes:
        """Return ``line`` without what surrounds the record; empty if there is none."""

    def merge(self, first: pa.DataType, second: pa.DataType) -> pa.DataType:
        """Return the type that holds both. Raise ``pa.ArrowTypeError`` if there is none."""
        schemas = [pa.schema([("x", kind)]) for kind in (first, second)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type

    def schema(self, paths: Sequence[Path]) -> pa.Schema:
        """Infer the columns from the start, middle and end of the first and last files; types by the number of rows."""
        votes: dict[str, Counter[pa.DataType]] = {}
        for path in dict.fromkeys((*paths[:2], paths[-1])):
            known = set(votes) if votes and not self.sparse else None
            for block in self._samples(path):
                lines = [line for line in map(self.clean, block.split(b"\n")) if line]
                for table in (table for table, _ in _parse_lines(self, lines, None) if table is not None):
                    for field in table.schema:
                        if known is None or field.name in known:
                            votes.setdefault(field.name, Counter())[field.type] += table.num_rows
        if not votes:
            raise SourceError(f"{str(paths[0])!r} holds no record from which the columns could be told; is it of this format?")
        return pa.schema([(name, _readable(self._elect(kinds))) for name, kinds in votes.items()])

    def chunks(self, path: Path, at: Any, columns: pa.Schema) -> Iterator[Chunk]:
        """Yield one chunk per block."""
        with path.open("rb") as file:
            head = self.head(path, columns)
            start = int(at) if at is not None else head
            file.seek(start)
            while True:
                block, problem = _next_block(file, start)
                if block is None and problem is None:
                    return
                after = file.tell()
                if problem is not None:
                    rows, errors = _rows(columns, [(None, problem)])
                else:
                    rows, errors = self._parse_block(block or b"", columns, start)
                yield Chunk(rows, errors, start, after)
                start = after

    def estimate_rows(self, path: Path) -> int | None:
        """Estimate from the length of the first lines."""
        with path.open("rb") as file:
            sample = file.read(_SAMPLE_BYTES)
        size = path.stat().st_size
        return round(size * sample.count(b"\n") / len(sample)) if sample else 0

    def rows(
        self, lines: Sequence[bytes], columns: pa.Schema, offsets: Sequence[int] | None = None
    ) -> tuple[pa.RecordBatch, pa.Array | None]:
        """Parse records that are apart already, one row each; a bad one is null throughout, and the errors say why.

        ``offsets`` are the places in a file that messages name.
        """
        return _rows(columns, _parse_lines(self, lines, columns, offsets))

    def _parse_block(self, block: bytes, columns: pa.Schema, start: int) -> tuple[pa.RecordBatch, pa.Array | None]:
        try:
            table = self.parse(block, columns)
            if table.num_rows == block.count(b"\n") + (not block.endswith(b"\n")):
                return table.combine_chunks().to_batches()[0], None
        except pa.ArrowInvalid:
            pass  # found line by line below
        lines, offsets, at = [], [], start
        for line in block.split(b"\n"):
            if record := self.clean(line):
                lines.append(record)
                offsets.append(at)
            at += len(line) + 1
        return self.rows(lines, columns, offsets)

    def _elect(self, kinds: Counter[pa.DataType]) -> pa.DataType:
        """Merge the types that a column showed, the most frequent one first."""
        elected = pa.null()
        for kind, _ in kinds.most_common():
            elected = self.merge(elected, kind)
        return elected

    def _samples(self, path: Path) -> Iterator[bytes]:
        """Yield whole lines from three places of a file."""
        head = self.head(path, None)
        size = path.stat().st_size
        with path.open("rb") as file:
            for start in sorted({head, max(head, size // 2), max(head, size - _SAMPLE_BYTES)}):
                file.seek(start)
                sample = file.read(_SAMPLE_BYTES)
                begin = 0 if start == head else sample.find(b"\n") + 1
                end = len(sample) if start + len(sample) >= size else sample.rfind(b"\n") + 1
                yield sample[begin:end]


def _next_block(file: BinaryIO, start: int) -> tuple[bytes | None, str | None]:
    """Read whole lines, and leave the file behind them; (None, None) at the end, (None, problem) for a line too long."""
    block = file.read(_BLOCK_BYTES)
    if not block:
        return None, None
    pieces, length = [block], len(block)
    while (end := pieces[-1].rfind(b"\n") + 1) == 0 and length <= _MAX_LINE_BYTES:
        more = file.read(_BLOCK_BYTES)
        if not more:
            return b"".join(pieces), None
        pieces.append(more)
        length += len(more)
    if end:
        file.seek(end - len(pieces[-1]), 1)
        pieces[-1] = pieces[-1][:end]
        return b"".join(pieces), None
    pieces.clear()
    while more := file.read(_BLOCK_BYTES):
        if (end := more.find(b"\n") + 1) > 0:
            file.seek(end - len(more), 1)
            break
    return None, f"line at byte {start} is longer than {_MAX_LINE_BYTES} bytes"


def _parse_lines(
    format: LineFormat, lines: Sequence[bytes], columns: pa.Schema | None, offsets: Sequence[int] | None = None
) -> list[tuple[pa.Table | None, str | None]]:
    """Parse ``lines``: tables of good ones and messages of bad ones, in order."""
    if not lines:
        return []
    problem = "more than one record on the line"
    try:
        table = format.parse(b"\n".join(lines) + b"\n", columns)
        if table.num_rows == len(lines):
            return [(table, None)]
    except pa.ArrowInvalid as error:
        problem = str(error).strip().splitlines()[0].removesuffix(" in row 0")
    if len(lines) == 1:
        where = f"line at byte {offsets[0]}: " if offsets else ""
        return [(None, f"{where}{problem}: {lines[0][:80]!r}")]
    half = len(lines) // 2
    return [
        *_parse_lines(format, lines[:half], columns, offsets and offsets[:half]),
        *_parse_lines(format, lines[half:], columns, offsets and offsets[half:]),
    ]


def _rows(columns: pa.Schema, parts: Sequence[tuple[pa.Table | None, str | None]]) -> tuple[pa.RecordBatch, pa.Array | None]:
    """Put good and bad lines together in order."""
    bad = pa.Table.from_arrays([pa.nulls(1, kind) for kind in columns.types], schema=columns)
    tables = [table if table is not None else bad for table, _ in parts]
    errors = [message for table, error in parts for message in ([error] if table is None else [None] * table.num_rows)]
    whole = pa.concat_tables([columns.empty_table(), *tables]).combine_chunks()
    rows = whole.to_batches()[0] if whole.num_rows else pa.RecordBatch.from_pylist([], schema=columns)
    return rows, pa.array(errors, pa.string()) if any(errors) else None


def _readable(kind: pa.DataType) -> pa.DataType:
    """Return the type to read an inferred column with: times stay text, what was always null is taken for text."""
    if pa.types.is_null(kind) or pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_list(kind):
        inner = kind.value_type
        return pa.list_(pa.float64() if pa.types.is_null(inner) else _readable(inner))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _readable(field.type)) for field in kind])
    return kind
