"""Text files of one record per line, read in blocks that are cut between records.

A block is parsed as a whole by Arrow. Only when that fails, or gives another number of rows than records, is it halved until
the bad records are alone; these become rows with an error. A record of any length uses bounded memory. An integer that its
column cannot hold exactly is an error, never another number.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import ConfigError, SourceError, StreambankError, first_line
from connectors.sources.casting import plain_type
from connectors.sources.exact import exact_type, rows_beyond
from connectors.sources.tables import Chunk, NoRecords, TableFormat

__all__ = ["BOM", "LineFormat", "as_batch"]

_BLOCK_BYTES = 1 << 20
"""Bytes parsed at once; Arrow's readers are fastest from here on and a chunk stays in the processor's cache."""

_MAX_LINE_BYTES = 64 << 20
_SAMPLE_BYTES = 256 << 10
_SAMPLED_FILES = 2
BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class LineFormat(TableFormat):
    """A format of lines. Positions are byte offsets of a record's start."""

    @abstractmethod
    def parse(self, block: bytes, columns: pa.Schema | None) -> pa.Table:
        """Parse whole records, with the types of ``columns`` or by inference. Raise ``pa.ArrowInvalid`` if any is bad."""

    @abstractmethod
    def split(self, block: bytes) -> Iterator[tuple[int, int, str | None]]:
        """Yield start, end and problem (if it is known to be bad) of each record of a block; none for blank lines."""

    @abstractmethod
    def end(self, block: bytes, *, closed: bool) -> int:
        """Return the end of the last whole record of a block, 0 if none is; ``closed``: nothing behind it changes that."""

    @abstractmethod
    def count(self, block: bytes) -> int | None:
        """Return how many records the lines of a block are if each is one, None where they must be looked at."""

    @abstractmethod
    def clean(self, record: bytes) -> bytes:
        """Return ``record`` without what surrounds it; empty if there is none."""

    @abstractmethod
    def inexact(self, record: bytes, names: Sequence[str], columns: pa.Schema) -> dict[str, str]:
        """Return the integers of a record that a double column of ``names`` does not hold exactly, by column."""

    @abstractmethod
    def numbers(self, records: Sequence[bytes], name: str) -> list[Any]:
        """Return the values of a column as they are written: integers of any size, floats, lists and dictionaries of these."""

    def names(self, path: Path) -> list[str]:
        """Return the columns that a file names apart from its records."""
        return []

    def read_as(self, kind: pa.DataType) -> pa.DataType:
        """Read times as text: Arrow's parsers know only some of their notations. Durations are counts of their unit."""
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return pa.string()
        if pa.types.is_duration(kind):
            return pa.int64()
        if pa.types.is_float16(kind):
            return pa.float32()
        if pa.types.is_list(kind):
            return pa.list_(self.read_as(kind.value_type))
        return plain_type(kind)

    def require(self, columns: pa.Schema) -> None:
        """Raise ``ConfigError`` for a type that Arrow's parser of this format does not know."""
        for field in columns:
            try:
                self.parse_blank(pa.schema([field]))
            except pa.ArrowNotImplementedError as error:
                raise ConfigError(f"columns: {field.name!r} cannot be {field.type}: text of this format holds none") from error

    @abstractmethod
    def parse_blank(self, columns: pa.Schema) -> None:
        """Parse one record that holds nothing."""

    def head(self, path: Path, columns: pa.Schema | None) -> int:
        """Get ready for ``path`` and return the offset of its first record. Raise ``ValueError`` if it lacks ``columns``."""
        with path.open("rb") as file:
            start = file.read(4)
        for mark, encoding in _OTHER_BOMS.items():
            if start.startswith(mark):
                raise ValueError(f"it is {encoding} text; save it as UTF-8")
        return len(BOM) if start.startswith(BOM) else 0

    def merge(self, first: pa.DataType, second: pa.DataType) -> pa.DataType:
        """Return the type that holds both. Raise ``pa.ArrowTypeError`` if there is none."""
        schemas = [pa.schema([("x", kind)]) for kind in (first, second)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type

    def schema(self, paths: Sequence[Path]) -> pa.Schema:
        """Infer the columns from the start, middle and end of some files; types by the number of rows.

        These are the first two files that hold records, and the last one. Raise ``NoRecords`` if none does.
        """
        votes: dict[tuple[str, int], Counter[pa.DataType]] = {}
        sampled: list[bytes] = []
        beyond: set[str] = set()
        names: list[str] = []
        problem: str | None = None
        files = 0
        for path in paths:
            if files >= _SAMPLED_FILES and path != paths[-1]:
                continue
            try:
                found = self._vote(path, votes, sampled, beyond, known=set(votes) if votes and not self.sparse else None)
                names = names or self.names(path)
            except StreambankError:
                raise
            except Exception as error:  # the reader says so in a row
                problem = problem or f"{str(path)!r} cannot be read: {first_line(error)}"
                continue
            files += found
        if not votes:
            if problem is not None and not names:
                raise SourceError(f"{problem}; no file of this source tells its columns")
            raise NoRecords(str(paths[0]), names)
        return pa.schema(
            [(name, self._told(name, kinds, sampled if name in beyond else None)) for (name, _), kinds in votes.items()]
        )

    def chunks(self, path: Path, at: Any, columns: pa.Schema) -> Iterator[Chunk]:
        """Yield one chunk per block."""
        with path.open("rb") as file:
            head = self.head(path, columns)
            start = int(at) if at is not None else head
            file.seek(start)
            while True:
                block, problem = self._next_block(file, start)
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
        return round(size * max(sample.count(b"\n"), sample.count(b"\r")) / len(sample)) if sample else 0

    def rows(
        self,
        records: Sequence[bytes],
        columns: pa.Schema,
        offsets: Sequence[int] | None = None,
        problems: Sequence[str | None] | None = None,
    ) -> tuple[pa.RecordBatch, pa.Array | None]:
        """Parse records that are apart already, one row each; a bad one is null throughout, and the errors say why.

        ``offsets`` are the places in a file that messages name, ``problems`` what is known to be wrong.
        """
        rows, errors = _rows(columns, _parse_records(self, records, columns, offsets, problems))
        return self.exact(rows, errors, columns, lambda: records)

    def _vote(
        self,
        path: Path,
        votes: dict[tuple[str, int], Counter[pa.DataType]],
        sampled: list[bytes],
        beyond: set[str],
        known: set[tuple[str, int]] | None,
    ) -> bool:
        """Count the types that a file's columns show; return whether it holds records.

        ``beyond`` gains the columns with doubles that may be rounded integers.
        """
        found = False
        for block in self._samples(path):
            records = [
                record
                for start, stop, problem in self.split(block)
                if not problem and (record := self.clean(block[start:stop]))
            ]
            for table in (table for table, _ in _parse_records(self, records, None) if table is not None):
                found = found or table.num_rows > 0
                seen: Counter[str] = Counter()
                for field in table.schema:
                    key = (field.name, seen[field.name])
                    seen[field.name] += 1
                    if known is None or key in known:
                        votes.setdefault(key, Counter())[field.type] += table.num_rows
                        if any(len(rows_beyond(chunk)) for chunk in table.column(table.schema.names.index(field.name)).chunks):
                            beyond.add(field.name)
            sampled += records
        return found

    def _told(self, name: str, kinds: Counter[pa.DataType], records: Sequence[bytes] | None) -> pa.DataType:
        """Merge the types that a column showed, the most frequent one first; the integers of ``records`` must fit, too."""
        elected = pa.null()
        for kind, _ in kinds.most_common():
            elected = self.merge(elected, kind)
        return _readable(elected if records is None else exact_type(elected, self.numbers(records, name)))

    def _parse_block(self, block: bytes, columns: pa.Schema, start: int) -> tuple[pa.RecordBatch, pa.Array | None]:
        try:
            count = self.count(block)
            if count is not None:
                table = self.parse(block, columns)
                if table.num_rows == count:
                    rows = as_batch(table)
                    return self.exact(rows, None, columns, lambda: self.records(block)[0])
        except pa.ArrowInvalid:
            pass  # found record by record below
        records, offsets, problems = self.records(block)
        return self.rows(records, columns, [start + offset for offset in offsets], problems)

    def records(self, block: bytes) -> tuple[list[bytes], list[int], list[str | None]]:
        """Return the records of a block, where they begin and what is known to be wrong with them."""
        records, offsets, problems = [], [], []
        for begin, end, problem in self.split(block):
            if record := self.clean(block[begin:end]):
                records.append(record)
                offsets.append(begin)
                problems.append(problem)
        return records, offsets, problems

    def exact(
        self, rows: pa.RecordBatch, errors: pa.Array | None, columns: pa.Schema, records: Callable[[], Sequence[bytes]]
    ) -> tuple[pa.RecordBatch, pa.Array | None]:
        """Put null and an error for integers that a double has rounded; only large numbers are looked at."""
        suspects = {
            name: found for name, column in zip(columns.names, rows.columns, strict=True) if len(found := rows_beyond(column))
        }
        if not suspects:
            return rows, errors
        texts = records()
        problems: list[str | None] = [None] * rows.num_rows
        lost: dict[str, list[int]] = {}
        for row in sorted({int(row) for found in suspects.values() for row in found}):
            for name, number in self.inexact(texts[row], list(suspects), columns).items():
                lost.setdefault(name, []).append(row)
                shown = number if len(number) <= 80 else number[:79] + "…"
                problems[row] = problems[row] or (
                    f"column {name!r}: {shown} is an integer that double does not hold exactly; declare the column's type, "
                    f"such as columns: {{{name}: 'decimal(38, 6)', …}} with all others"
                )
        if not lost:
            return rows, errors
        arrays = []
        for name, column in zip(columns.names, rows.columns, strict=True):
            if name in lost:
                bad = set(lost[name])
                mask = pa.array([row in bad for row in range(rows.num_rows)])
                column = pc.if_else(mask, pa.scalar(None, column.type), column)
            arrays.append(column)
        found = pa.array(problems, pa.string())
        return pa.RecordBatch.from_arrays(arrays, schema=rows.schema), found if errors is None else pc.coalesce(errors, found)

    def _next_block(self, file: BinaryIO, start: int) -> tuple[bytes | None, str | None]:
        """Read whole records, and leave the file behind them; (None, None) at the end, (None, problem) for one too long."""
        block = file.read(_BLOCK_BYTES)
        if not block:
            return None, None
        wanted = _BLOCK_BYTES
        while len(block) == wanted:  # else it ends with the file
            end = self.end(block, closed=wanted > _MAX_LINE_BYTES)
            if end:
                file.seek(start + end)
                return block[:end], None
            if wanted > _MAX_LINE_BYTES:
                del block
                return None, _skip_line(file, start)
            block += file.read(wanted)
            wanted *= 2
        if len(block) > _MAX_LINE_BYTES and (end := self.end(block, closed=True)) < len(block):
            if not end:
                return None, _skip_line(file, start)
            block = block[:end]
            file.seek(start + end)
        return block, None

    def _samples(self, path: Path) -> Iterator[bytes]:
        """Yield whole records from three places of a file."""
        head = self.head(path, None)
        size = path.stat().st_size
        with path.open("rb") as file:
            for start in sorted({head, max(head, size // 2), max(head, size - _SAMPLE_BYTES)}):
                file.seek(start)
                sample = file.read(_SAMPLE_BYTES)
                begin = 0 if start == head else self.sync(sample)
                sample = sample[begin:]
                yield sample if start + begin + len(sample) >= size else sample[: self.end(sample, closed=True)]

    def sync(self, block: bytes) -> int:
        """Return where a record begins in a block from the middle of a file, or the block's length."""
        found = max(block.find(b"\n"), -1)
        found = found if found >= 0 else block.find(b"\r")
        return found + 1 if found >= 0 else len(block)


def _skip_line(file: BinaryIO, start: int) -> str:
    """Leave the file behind the line that begins at ``start``."""
    file.seek(start)
    while more := file.read(_BLOCK_BYTES):
        if (end := more.find(b"\n") + 1) > 0:
            file.seek(end - len(more), 1)
            break
    return f"line at byte {start} is longer than {_MAX_LINE_BYTES} bytes"


def _parse_records(
    format: LineFormat,
    records: Sequence[bytes],
    columns: pa.Schema | None,
    offsets: Sequence[int] | None = None,
    problems: Sequence[str | None] | None = None,
) -> list[tuple[pa.Table | None, str | None]]:
    """Parse ``records``: tables of good ones and messages of bad ones, in order."""
    if not records:
        return []
    problem = "more than one record on the line"
    if problems is None or not any(problems):
        try:
            table = format.parse(b"\n".join(records) + b"\n", columns)
            if table.num_rows == len(records):
                return [(table, None)]
        except pa.ArrowInvalid as error:
            problem = str(error).strip().splitlines()[0].removesuffix(" in row 0")
    if len(records) == 1:
        problem = (problems[0] if problems else None) or problem
        where = f"line at byte {offsets[0]}: " if offsets else ""
        return [(None, f"{where}{problem}: {records[0][:80]!r}")]
    half = len(records) // 2
    return [
        *_parse_records(format, records[:half], columns, offsets and offsets[:half], problems and problems[:half]),
        *_parse_records(format, records[half:], columns, offsets and offsets[half:], problems and problems[half:]),
    ]


def _rows(columns: pa.Schema, parts: Sequence[tuple[pa.Table | None, str | None]]) -> tuple[pa.RecordBatch, pa.Array | None]:
    """Put good and bad records together in order."""
    bad = pa.Table.from_arrays([pa.nulls(1, kind) for kind in columns.types], schema=columns)
    tables = [table if table is not None else bad for table, _ in parts]
    errors = [message for table, error in parts for message in ([error] if table is None else [None] * table.num_rows)]
    rows = as_batch(pa.concat_tables([columns.empty_table(), *tables]))
    return rows, pa.array(errors, pa.string()) if any(errors) else None


def as_batch(table: pa.Table) -> pa.RecordBatch:
    """Return the whole table as one batch."""
    whole = table.combine_chunks()
    return whole.to_batches()[0] if whole.num_rows else pa.RecordBatch.from_pylist([], schema=table.schema)


def _readable(kind: pa.DataType) -> pa.DataType:
    """Return the type to read an inferred column with: times stay text, and so does what was always null or is no UTF-8."""
    if pa.types.is_null(kind) or pa.types.is_temporal(kind) or pa.types.is_binary(kind):
        return pa.string()
    if pa.types.is_list(kind):
        inner = kind.value_type
        return pa.list_(pa.float64() if pa.types.is_null(inner) else _readable(inner))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _readable(field.type)) for field in kind])
    return kind
