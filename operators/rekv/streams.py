"""What the operator knows of a stream besides its blocks, and its columns in a snapshot. It decides nothing but lateness.

The window is not in snapshots: it is rebuilt from the blocks, bit for bit.
"""

# N streams of a snapshot, R rows over all streams, K blocks

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.rekv.session import StreamState
from operators.state import Rows, State

__all__ = ["FrameTimes", "Inquiry", "Stream", "export_streams", "import_streams"]

_NEVER = -(2**63)
_COLUMNS = ("last_sequence", "last_time_us", "next_keep_us", "used")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """A question that is fit to be answered, with the keys of its row. As JSON in snapshots while it waits."""

    stream_id: str
    sequence: int
    time_us: int
    question_id: str | None
    question: str
    at_us: int | None
    max_tokens: int
    frame_sequences: list[int] | None = None


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


@dataclass(slots=True, eq=False)
class Stream:
    """One stream."""

    slot: int
    encoded: StreamState
    times: FrameTimes
    last_sequence: int = _NEVER
    last_time_us: int = _NEVER
    next_keep_us: int = _NEVER
    """Event time from which the next frame is encoded."""
    used: int = 0
    """Tick of the last frame; orders streams for eviction after a restore."""
    waiting: list[Inquiry] = field(default_factory=list)
    """Questions about a time that has not come yet, in the order of asking."""

    def lateness(self, sequence: int, time_us: int) -> str | None:
        """Say why a frame comes too late; None if it does not."""
        if sequence <= self.last_sequence:
            return f"sequence {sequence} does not follow {self.last_sequence}"
        if time_us <= self.last_time_us:
            return f"event_time is {(self.last_time_us - time_us) / 1e6:.6f} s before or at the last frame's"
        return None

    def due(self, time_us: int) -> list[Inquiry]:
        """Take the questions out that a frame of this time sets free: it is behind what they may see."""
        ready = [inquiry for inquiry in self.waiting if inquiry.at_us is not None and inquiry.at_us < time_us]
        if ready:
            self.waiting = [inquiry for inquiry in self.waiting if inquiry not in ready]
        return ready


def export_streams(streams: Sequence[Stream], state: State, *, incremental: bool) -> None:
    """Add the columns of these streams (in the order of ``state.streams``) to ``state``; what changed counts as clean."""
    for name in _COLUMNS:
        state.dense[name] = torch.tensor([getattr(stream, name) for stream in streams], dtype=torch.int64)
    texts = [json.dumps([asdict(inquiry) for inquiry in s.waiting]).encode() if s.waiting else b"" for s in streams]
    data_R = torch.from_numpy(np.frombuffer(bytearray().join(texts), np.uint8).copy())
    state.rows["waiting"] = Rows.full(torch.tensor([len(text) for text in texts], dtype=torch.int64), data_R)
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


def import_streams(streams: Sequence[Stream], state: State) -> None:
    """Fill in these streams (in the order of ``state.streams``, with their frames counted) from a full ``state``."""
    for name in _COLUMNS:
        for stream, value in zip(streams, state.dense[name].tolist(), strict=True):
            setattr(stream, name, value)
    periods = state.dense["period"].tolist()
    for stream, text, rows_R2, period in zip(
        streams, _split(state.rows["waiting"]), _split(state.rows["frame_times"]), periods, strict=True
    ):
        stream.waiting = [Inquiry(**values) for values in json.loads(text.numpy().tobytes() or b"[]")]
        written = stream.encoded.frames
        first = max(0, written - min(period, stream.times.period))
        stream.times.put(first, rows_R2.numpy()[np.arange(first, written) % period])
        stream.times.clean = written


def _split(rows: Rows) -> list[Tensor]:
    return list(torch.split(rows.values_R, rows.length_N.tolist()))
