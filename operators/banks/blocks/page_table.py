"""Which frame of the bank holds which block of a stream. Plain bookkeeping: it moves no data and decides nothing.

A *frame* is a place for one block in all layers, numbered 0..frames-1 over the bank. Blocks of a stream are numbered from 0 and
keep their number; the oldest may be dropped. Invariant: blocks ``first..written-1`` have a frame each.
"""

# R blocks

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Frames", "PageTable"]

Frames = NDArray[np.int64]


class PageTable:
    """The frames of one stream. Its array grows with the blocks held, at most twofold, not with the blocks ever written."""

    def __init__(self, first: int = 0) -> None:
        """Begin a table whose next block has the number ``first``."""
        self.first = self.written = first
        self._base = first  # the block of entry 0
        self._frames: Frames = np.empty(16, np.int64)

    def __len__(self) -> int:
        return self.written - self.first

    def append(self, frames: Frames) -> None:
        """Give the next blocks these frames."""
        end = self.written - self._base + len(frames)
        if end > len(self._frames):
            held = self._frames[self.first - self._base : self.written - self._base]
            self._frames = np.empty(2 * (len(held) + len(frames)), np.int64)
            self._frames[: len(held)] = held
            self._base = self.first
        start = self.written - self._base
        self._frames[start : start + len(frames)] = frames
        self.written += len(frames)

    def drop(self, blocks: int) -> Frames:
        """Forget the oldest blocks; return their frames."""
        start = self.first - self._base
        self.first += blocks
        return self._frames[start : start + blocks].copy()

    def frames(self, blocks_R: NDArray[np.int64]) -> Frames:
        """Return the frames of these blocks, which must be held."""
        return self._frames[blocks_R - self._base]

    def held(self) -> Frames:
        """Return the frames of all blocks, oldest first."""
        return self._frames[self.first - self._base : self.written - self._base].copy()
