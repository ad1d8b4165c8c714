"""What VideoStreaming knows of a stream besides its memories and the frames of its open clip. It decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from operators.block_rows import BlockRows, export_block_rows, load_block_rows
from operators.state import State
from operators.streams import NEVER_US, Stream

__all__ = ["CLIP_COLUMNS", "VideoStream", "export_clips", "load_clips"]

CLIP_COLUMNS = ("known_us", "start_us", "end_us", "frames")
"""Of each clip, event times: when it was known to have ended, its first frame, the end of its last frame."""

_NAME = "clips"


@dataclass(slots=True, eq=False, kw_only=True)
class VideoStream(Stream):
    """One stream."""

    clips: BlockRows
    """``CLIP_COLUMNS`` of each clip."""
    encoded: int = 0
    """Clips that were encoded: the number of the next one."""
    start_us: int = NEVER_US
    """Event time of the first frame, from which the model counts time."""
    next_keep_us: int = NEVER_US
    """Event time from which the next frame is kept."""
    last_kept: int = 0
    """Sequence of the last frame that was kept."""
    open_times: list[int] = field(default_factory=list)
    """Event times of the frames of the open clip; the frames' features stand in a bank."""


def export_clips(streams: Sequence[VideoStream], state: State, *, incremental: bool) -> None:
    """Add the clips' numbers of these streams (in the order of ``state.streams``) to ``state``; they count as clean then."""
    rows, written = [stream.clips for stream in streams], [stream.encoded for stream in streams]
    export_block_rows(rows, written, state, _NAME, width=len(CLIP_COLUMNS), incremental=incremental)


def load_clips(streams: Sequence[VideoStream], state: State) -> None:
    """Fill in these streams (in the order of ``state.streams``, with their clips counted) from a full ``state``."""
    load_block_rows([stream.clips for stream in streams], [stream.encoded for stream in streams], state, _NAME)
