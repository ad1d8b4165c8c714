"""What ReKV knows of a stream besides its blocks, and its columns in a snapshot. It decides nothing.

The attention window is not in snapshots where it can be rebuilt from the blocks, bit for bit (:mod:`operators.rekv.windows`).
"""

# N streams of a snapshot, R rows over all streams, K blocks

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.rekv.session import StreamState
from operators.state import Rows, State
from operators.streams import NEVER_US, Stream

__all__ = ["FrameTimes", "ReKVStream", "export_times", "load_times"]

Ints = npt.NDArray[np.int64]


class FrameTimes:
    """Event time and sequence of each block of a stream, a ring of ``period`` rows."""

    def __init__(self, period: int) -> None:
        self.period = period
        self.rows_R2: Ints = np.zeros((0, 2), np.int64)
        self.clean = 0
        """Blocks below it stand in a snapshot."""

    def put(self, block: int, rows_K2: Ints) -> None:
        """Note blocks ``block``, ``block + 1``, .."""
        place_K = np.arange(block, block + len(rows_K2)) % self.period
        short = min(block + len(rows_K2), self.period) - len(self.rows_R2)
        if short > 0:
            room = max(short, min(len(self.rows_R2), self.period - len(self.rows_R2)))
            self.rows_R2 = np.concatenate([self.rows_R2, np.zeros((room, 2), np.int64)])
        self.rows_R2[place_K] = rows_K2

    def at(self, blocks_K: Ints) -> Ints:
        """Return times and sequences, [K, 2]."""
        rows_K2: Ints = self.rows_R2[blocks_K % self.period]
        return rows_K2

    def below(self, first: int, written: int, time_us: int) -> int:
        """Return the number after the last block that is not later than ``time_us``."""
        times_K = self.at(np.arange(first, written))[:, 0]
        return first + int(np.searchsorted(times_K, time_us, side="right"))


@dataclass(slots=True, eq=False, kw_only=True)
class ReKVStream(Stream):
    """One stream."""

    encoded: StreamState
    times: FrameTimes
    next_keep_us: int = NEVER_US
    """Event time from which the next frame is encoded."""


def export_times(streams: Sequence[ReKVStream], state: State, *, incremental: bool) -> None:
    """Add the frames' times of these streams (in the order of ``state.streams``) to ``state``; they count as clean then."""
    lengths, counts, places, rows = [], [], [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int64)]
    for stream in streams:
        times, written = stream.times, stream.encoded.frames
        first = max(times.clean, written - times.period) if incremental else max(0, written - times.period)
        block_K = np.arange(first, written)
        place_K = np.sort(block_K % times.period)
        lengths.append(min(written, times.period))
        counts.append(len(place_K))
        places.append(place_K)
        rows.append(times.rows_R2[place_K])
        times.clean = written
    state.rows["frame_times"] = Rows(
        torch.tensor(lengths, dtype=torch.int64),
        torch.tensor(counts, dtype=torch.int64),
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(np.concatenate(rows)),
    )
    state.dense["period"] = torch.tensor([stream.times.period for stream in streams], dtype=torch.int64)


def load_times(streams: Sequence[ReKVStream], state: State) -> None:
    """Fill in these streams (in the order of ``state.streams``, with their frames counted) from a full ``state``."""
    rows = state.rows["frame_times"]
    periods = state.dense["period"].tolist()
    parts = torch.split(rows.values_R, rows.length_N.tolist())
    for stream, rows_R2, period in zip(streams, parts, periods, strict=True):
        written = stream.encoded.frames
        first = max(0, written - min(period, stream.times.period))
        stream.times.put(first, rows_R2.numpy()[np.arange(first, written) % period])
        stream.times.clean = written
