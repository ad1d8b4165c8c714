"""Tables in the long form, one row per value (stream, time, channel, value), made wide: a row per sample, a column per channel.

Wraps a format, so everything behind it sees a wide table. Rows of equal time must follow one another, as in a file that is
sorted by time; those of one stream among them are a sample. Memory holds one chunk and the rows of one time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from connectors.errors import SourceError, nearest
from connectors.records import encode_streams
from connectors.sources.casting import convert
from connectors.sources.tables import Chunk, NoRecords, TableFormat

__all__ = ["LongForm"]

_MOST_HELD = 65_536

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Held:
    """Rows at the end of what was read: those of the last time may go on. ``at`` and ``skip`` say where they begin."""

    rows: pa.RecordBatch
    errors: pa.Array
    at: Any
    skip: int


class LongForm(TableFormat):
    """Reads ``format`` and gathers samples. ``at`` is [place in the inner format, rows of its chunk that are left out].

    ``stream`` and ``time`` are columns; without the first all rows are of one stream. Other columns than these and the channels
    are those of the sample's first row. Channels of which a sample has no row are null.
    """

    def __init__(
        self, format: TableFormat, *, channel: str, value: str, channels: Sequence[str], stream: str, time: str
    ) -> None:
        self._format = format
        self._channel, self._value = channel, value
        self._channels = list(channels)
        self._stream, self._time = stream, time

    def read_as(self, kind: pa.DataType) -> pa.DataType:
        """Ask the inner format."""
        return self._format.read_as(kind)

    def require(self, columns: pa.Schema) -> None:
        """Ask the inner format about the columns of the file."""
        self._format.require(self._narrow(columns))

    def schema(self, paths: Sequence[Path]) -> pa.Schema:
        """Return the columns of the files with one per channel in the place of channel and value."""
        try:
            narrow = self._format.schema(paths)
        except NoRecords as error:
            if error.names:
                error.names = [name for name in error.names if name not in (self._channel, self._value)] + self._channels
            raise
        for option, name in (("channel", self._channel), ("value", self._value)):
            if name not in narrow.names:
                raise SourceError(
                    f"{paths[0]}: {option}: no column {name!r}{nearest(name, narrow.names)}; there are {narrow.names}"
                )
        taken = [name for name in self._channels if name in narrow.names and name not in (self._channel, self._value)]
        if taken:
            raise SourceError(
                f"{paths[0]}: channels: {taken[0]!r} is a column of the file; in the long form channels are values of column "
                f"{self._channel!r}. Leave channel and value out if every channel has a column of its own"
            )
        kept = [field for field in narrow if field.name not in (self._channel, self._value)]
        return pa.schema([*kept, *((name, pa.float64()) for name in self._channels)], metadata=narrow.metadata)

    def chunks(self, path: Path, at: Any, columns: pa.Schema) -> Iterator[Chunk]:
        """Yield the samples that are whole; those of the last time of a chunk wait for the next."""
        start, skip = at if at is not None else (None, 0)
        held: _Held | None = None
        after: Any = start
        for chunk in self._format.chunks(path, start, self._narrow(columns)):
            rows, errors = chunk.rows.slice(skip), _errors(chunk).slice(skip)
            here = _Held(rows, errors, chunk.at, skip)
            skip, after = 0, chunk.after
            whole, begun = self._cut(
                here if held is None else _joined(held, here), here, 0 if held is None else held.rows.num_rows
            )
            if whole.rows.num_rows:
                yield self._gather(whole, columns, [begun.at, begun.skip])
            held = begun
            if held.rows.num_rows >= _MOST_HELD:  # rows that cannot be read, without end
                yield self._gather(held, columns, [after, 0])
                held = None
        if held is not None and held.rows.num_rows:
            yield self._gather(held, columns, [after, 0])

    def estimate_rows(self, path: Path) -> int | None:
        """Return about how many samples a file holds, if each has all channels."""
        rows = self._format.estimate_rows(path)
        return None if rows is None else -(-rows // max(1, len(self._channels)))

    def _narrow(self, columns: pa.Schema) -> pa.Schema:
        """Return the columns to read of the file."""
        kept = [field for field in columns if field.name not in self._channels]
        read = [(self._channel, self._format.read_as(pa.string())), (self._value, self._format.read_as(pa.float64()))]
        return pa.schema([*kept, *read])

    def _cut(self, all: _Held, here: _Held, before: int) -> tuple[_Held, _Held]:
        """Return the rows before the last time, and the others with their place; the first ``before`` rows were held."""
        starts = self._starts(all)
        last = int(starts[-1]) if len(starts) else all.rows.num_rows
        begun = _Held(all.rows.slice(last), all.errors.slice(last), all.at, all.skip)
        if last >= before:
            begun = _Held(begun.rows, begun.errors, here.at, here.skip + last - before)
        else:
            begun = _Held(begun.rows, begun.errors, all.at, all.skip + last)
        return _Held(all.rows.slice(0, last), all.errors.slice(0, last), all.at, all.skip), begun

    def _starts(self, held: _Held) -> Ints:
        """Return the first row of each time; rows that could not be read belong to none and interrupt none."""
        good = np.flatnonzero(held.errors.is_null().to_numpy(zero_copy_only=False))
        rows = held.rows if len(good) == held.rows.num_rows else held.rows.take(pa.array(good))
        if not len(good):
            return good
        times = rows.column(self._time)
        changed = np.ones(len(good), np.bool_)
        differ = pc.not_equal(times.slice(1), times.slice(0, len(good) - 1))
        changed[1:] = differ.fill_null(True).to_numpy(zero_copy_only=False)
        return good[changed]

    def _samples(self, held: _Held) -> tuple[Ints, Ints]:
        """Return the first row of each sample in the order of the file, and per row its sample, -1 for one not read."""
        rows = held.rows
        sample = np.searchsorted(self._starts(held), np.arange(rows.num_rows), side="right") - 1
        good = np.flatnonzero(held.errors.is_null().to_numpy(zero_copy_only=False))
        if self._stream in rows.schema.names:
            streams, codes = encode_streams(convert(rows.column(self._stream), pa.string()).fill_null(""))
            sample = sample * max(1, len(streams)) + codes
        _, firsts, own = np.unique(sample[good], return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        sample = np.full(rows.num_rows, -1, np.int64)
        sample[good] = rank[own]
        return good[firsts[order]], sample

    def _gather(self, held: _Held, columns: pa.Schema, after: Any) -> Chunk:
        """Make the wide rows: samples and, in their place, rows that could not be read."""
        rows, width = held.rows, len(self._channels)
        starts, sample = self._samples(held)
        bad = np.flatnonzero(sample < 0)
        names, values = convert(rows.column(self._channel), pa.string()), convert(rows.column(self._value), pa.float64())
        codes = pc.index_in(names, pa.array(self._channels, pa.string())).fill_null(-1).to_numpy(zero_copy_only=False)
        known = np.flatnonzero((codes >= 0) & (sample >= 0))
        cells = sample[known] * width + codes[known]
        row_of = np.full(len(starts) * width, -1, np.int64)
        row_of[cells] = known  # of several values the last one, and the row says so

        order = np.argsort(np.concatenate([starts, bad]), kind="stable")
        firsts = pa.array(np.concatenate([starts, bad])[order], pa.int64())
        arrays = []
        for name in columns.names:
            if name in self._channels:
                own = np.concatenate([row_of[self._channels.index(name) :: width], np.full(len(bad), -1)])[order]
                arrays.append(values.take(pa.array(own, pa.int64(), mask=own < 0)))
            else:
                arrays.append(rows.column(name).take(firsts))
        fields = [field.with_type(array.type) for field, array in zip(columns, arrays, strict=True)]
        errors = held.errors.take(firsts)
        texts = self._complaints(rows, names, values, sample, np.bincount(cells, minlength=len(row_of)))
        if texts:
            said = [*(texts.get(number) for number in range(len(starts))), *([None] * len(bad))]
            errors = pc.coalesce(errors, pa.array([said[row] for row in order], pa.string()))
        return Chunk(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), errors, [held.at, held.skip], after)

    def _complaints(
        self, rows: pa.RecordBatch, names: pa.Array, values: pa.Array, sample: Ints, counts: Ints
    ) -> dict[int, str]:
        """Return by sample what is wrong in its rows; ``counts`` are the values per sample and channel."""
        texts: dict[int, str] = {}
        for cell in np.flatnonzero(counts > 1).tolist():
            number, channel = divmod(cell, len(self._channels))
            texts[number] = f"channel {self._channels[channel]!r} has {counts[cell]} values at this time"
        given = rows.column(self._value)
        no_number = pc.and_(values.is_null(), given.is_valid()).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(no_number & (sample >= 0)).tolist():
            texts[int(sample[row])] = f"column {self._value!r} is no number: {given[row].as_py()!r:.80}"
        unnamed = pc.equal(pc.binary_length(names), 0).fill_null(True).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(unnamed & (sample >= 0)).tolist():
            texts[int(sample[row])] = f"column {self._channel!r} names no channel"
        return texts


def _errors(chunk: Chunk) -> pa.Array:
    return pa.nulls(chunk.rows.num_rows, pa.string()) if chunk.errors is None else chunk.errors


def _joined(held: _Held, here: _Held) -> _Held:
    return _Held(pa.concat_batches([held.rows, here.rows]), pa.concat_arrays([held.errors, here.errors]), held.at, held.skip)
