"""What ReKV knows of a stream besides its blocks, and its columns in a snapshot. It decides nothing.

The attention window is not in snapshots where it can be rebuilt from the blocks, bit for bit (:mod:`operators.rekv.windows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.rekv.layouts import COLUMNS
from models.rekv.session import StreamState
from operators.block_rows import BlockRows, Ints, export_block_rows, load_block_rows
from operators.frames import Frame, on_host
from operators.state import Rows, State
from operators.streams import NEVER_US, Stream

__all__ = ["NOTED", "Half", "ReKVStream", "VideoNumbers", "export_halves", "export_times", "load_halves", "load_times"]

NOTED = (*COLUMNS, "first_sequence", "frames")
"""What is noted of a block besides time and sequence: its place, its first frame, and frames of the stream up to it."""

_NAME, _HALVES = "frame_times", "halves"
_BEFORE = 2  # time and sequence


@dataclass(frozen=True, slots=True)
class VideoNumbers:
    """The places of a stream's blocks among what is noted of them."""

    rows: BlockRows

    def at(self, blocks_K: Ints) -> Ints:
        """Return the numbers of blocks, [K, W]."""
        return self.rows.at(blocks_K)[:, _BEFORE:]


@dataclass(frozen=True, slots=True, eq=False)
class Half:
    """A frame as the vision tower takes it."""

    image: Frame
    time_us: int
    sequence: int


@dataclass(slots=True, eq=False, kw_only=True)
class ReKVStream(Stream):
    """One stream."""

    encoded: StreamState
    times: BlockRows
    """Of each block: event time and sequence of its last frame; of blocks that are not all alike also ``NOTED``."""
    half: Half | None = None
    """A frame that waits for the next one, which shares its block."""
    next_keep_us: int = NEVER_US
    """Event time from which the next frame is encoded."""


def export_times(streams: Sequence[ReKVStream], state: State, *, width: int, incremental: bool) -> None:
    """Add what is noted of the blocks of these streams (in the order of ``state.streams``) to ``state``; all is clean then."""
    written = [stream.encoded.frames for stream in streams]
    export_block_rows([stream.times for stream in streams], written, state, _NAME, width=width, incremental=incremental)


def load_times(streams: Sequence[ReKVStream], state: State) -> None:
    """Fill in these streams (in the order of ``state.streams``, with their frames counted) from a full ``state``."""
    load_block_rows([stream.times for stream in streams], [stream.encoded.frames for stream in streams], state, _NAME)


def export_halves(streams: Sequence[ReKVStream], state: State) -> None:
    """Add the frames that wait for their second (bytes), and what is known of them, to ``state``."""
    halves = [stream.half for stream in streams]
    known = [(0, 0, 0, 0) if half is None else (*half.image.shape[:2], half.time_us, half.sequence) for half in halves]
    images = [on_host(half.image).reshape(-1) for half in halves if half is not None]
    pixels_R = torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *images]))
    state.dense[_HALVES] = torch.tensor(known, dtype=torch.int64).reshape(-1, 4)
    state.rows[_HALVES] = Rows.full(torch.tensor([3 * h * w for h, w, *_ in known], dtype=torch.int64), pixels_R)


def load_halves(streams: Sequence[ReKVStream], state: State) -> None:
    """Give these streams (in the order of ``state.streams``) their waiting frames from a full ``state``."""
    parts = torch.split(state.rows[_HALVES].values_R, state.rows[_HALVES].length_N.tolist())
    for stream, (height, width, time_us, sequence), pixels_R in zip(streams, state.dense[_HALVES].tolist(), parts, strict=True):
        image = pixels_R.reshape(height, width, 3).numpy().copy()
        stream.half = Half(image, time_us, sequence) if height else None
