"""Event sequences in memory: packed arrays, padded batches, and the readers of tables and of the layouts that libraries use."""

# E events of all sequences, N sequences, B rows of a batch, L its longest sequence

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor

from connectors.errors import ConfigError

__all__ = ["Batch", "EventSet", "read_arrivals", "read_easytpp", "read_table"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Batch(NamedTuple):
    """Padded sequences. Times are float64, since each row's first event, in model units."""

    time_BL: Tensor
    type_BL: Tensor
    """Padding has the type K."""
    real_BL: Tensor
    """bool: no padding."""


@dataclass(frozen=True, slots=True)
class EventSet:
    """Sequences of events, one after another; within one, times do not fall."""

    time_E: Floats
    type_E: Ints
    start_N: Ints
    """[N + 1]: where sequences begin."""
    types: int
    keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.start_N) - 1

    @property
    def lengths(self) -> Ints:
        """Events of each sequence."""
        return np.diff(self.start_N)

    @classmethod
    def of(cls, sequences: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], types: int) -> EventSet:
        """Pack (times, types) of each sequence."""
        times = [np.asarray(time, np.float64) for time, _ in sequences]
        kinds = [np.asarray(kind, np.int64) for _, kind in sequences]
        start = np.concatenate([[0], np.cumsum([len(time) for time in times])]).astype(np.int64)
        return cls(np.concatenate([*times, []]), np.concatenate([*kinds, []]).astype(np.int64), start, types)

    def sequences(self) -> Iterator[tuple[Floats, Ints]]:
        """Iterate over (times, types)."""
        for start, stop in zip(self.start_N[:-1], self.start_N[1:], strict=True):
            yield self.time_E[start:stop], self.type_E[start:stop]

    def mean_gap(self) -> float:
        """Return the mean time between events of a sequence; a good ``time_scale``."""
        spans = [float(time[-1] - time[0]) for time, _ in self.sequences() if len(time) > 1]
        gaps = int((self.lengths - 1).clip(0).sum())
        return sum(spans) / gaps if gaps and sum(spans) > 0 else 1.0

    def pieces(self, most: int, context: int = 1) -> EventSet:
        """Cut sequences into pieces of at most ``most`` events, each with the ``context`` events before it but the first."""
        cut: list[tuple[npt.ArrayLike, npt.ArrayLike]] = []
        for time, kind in self.sequences():
            for start in range(0, max(1, len(time) - context), most - context):
                cut.append((time[start : start + most], kind[start : start + most]))
        return EventSet.of(cut, self.types)

    def batch(self, rows: Sequence[int] | Ints, time_scale: float) -> Batch:
        """Pad these sequences into one batch."""
        rows = np.asarray(rows)
        lengths = self.lengths[rows]
        longest = int(lengths.max(initial=1))
        place_BL = np.arange(longest)
        real_BL = place_BL < lengths[:, None]
        # Padding repeats the last event's time, so that gaps of padding are 0.
        source_BL = np.minimum(self.start_N[rows][:, None] + place_BL, (self.start_N[rows] + lengths - 1)[:, None])
        time_BL = (self.time_E[source_BL] - self.time_E[self.start_N[rows]][:, None]) / time_scale
        type_BL = np.where(real_BL, self.type_E[source_BL], self.types)
        return Batch(torch.from_numpy(time_BL), torch.from_numpy(type_BL), torch.from_numpy(real_BL))


def read_table(
    path: str | os.PathLike[str], *, key: str = "key", time: str = "t", kind: str = "type", types: int | None = None
) -> EventSet:
    """Read a Parquet table with one row per event, sorted by time or not. Raises ``ConfigError`` for what cannot be used."""
    try:
        table = pq.read_table(path, columns=[key, time, kind])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: cannot be read with the columns {key!r}, {time!r}, {kind!r}: {error}") from error
    keys = table.column(key).cast("string").combine_chunks().dictionary_encode()
    column: Any = table.column(time)
    seconds = (
        column.cast("timestamp[us]").cast("int64").to_numpy() / 1e6 if "timestamp" in str(column.type) else column.to_numpy()
    )
    kinds = table.column(kind).to_numpy()
    codes = keys.indices.to_numpy().astype(np.int64)
    if not np.isfinite(seconds).all() or not np.issubdtype(kinds.dtype, np.integer) or kinds.min(initial=0) < 0:
        raise ConfigError(f"{path}: {time!r} must be finite and {kind!r} whole numbers from 0")
    count = int(kinds.max(initial=0)) + 1
    if types is not None and count > types:
        raise ConfigError(f"{path}: {kind!r} goes to {count - 1}, but only types 0 to {types - 1} are known")
    order = np.lexsort((np.arange(len(seconds)), seconds, codes))
    start = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(keys.dictionary)))]).astype(np.int64)
    return EventSet(
        seconds[order].astype(np.float64),
        kinds[order].astype(np.int64),
        start,
        types or count,
        tuple(keys.dictionary.to_pylist()),
    )


def read_arrivals(path: str | os.PathLike[str]) -> EventSet:
    """Read ``arrival_times`` of an npz file (layout of ifl-tpp's synthetic sets): sequences of one type; no pickles."""
    with np.load(path, allow_pickle=False) as arrays:
        rows = arrays["arrival_times"] if "arrival_times" in arrays.files else arrays[arrays.files[0]]
    return EventSet.of([(row, np.zeros(len(row))) for row in np.atleast_2d(rows)], 1)


def read_easytpp(path: str | os.PathLike[str]) -> EventSet:
    """Read EasyTPP's JSON rows: ``time_since_start`` and ``type_event`` per sequence, ``dim_process`` types."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    types = max(int(row.get("dim_process", 0)) or max(row["type_event"]) + 1 for row in rows)
    return EventSet.of([(row["time_since_start"], row["type_event"]) for row in rows], types)
