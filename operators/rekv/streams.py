"""What ReKV knows of a stream besides its blocks, and its columns in a snapshot. It decides nothing.

The attention window is not in snapshots where it can be rebuilt from the blocks, bit for bit (:mod:`operators.rekv.windows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.rekv.session import StreamState
from operators.block_rows import BlockRows, export_block_rows, load_block_rows
from operators.state import State
from operators.streams import NEVER_US, Stream

__all__ = ["ReKVStream", "export_times", "load_times"]

_NAME = "frame_times"


@dataclass(slots=True, eq=False, kw_only=True)
class ReKVStream(Stream):
    """One stream."""

    encoded: StreamState
    times: BlockRows
    """Event time and sequence of each block."""
    next_keep_us: int = NEVER_US
    """Event time from which the next frame is encoded."""


def export_times(streams: Sequence[ReKVStream], state: State, *, incremental: bool) -> None:
    """Add the frames' times of these streams (in the order of ``state.streams``) to ``state``; they count as clean then."""
    written = [stream.encoded.frames for stream in streams]
    export_block_rows([stream.times for stream in streams], written, state, _NAME, width=2, incremental=incremental)


def load_times(streams: Sequence[ReKVStream], state: State) -> None:
    """Fill in these streams (in the order of ``state.streams``, with their frames counted) from a full ``state``."""
    load_block_rows([stream.times for stream in streams], [stream.encoded.frames for stream in streams], state, _NAME)
