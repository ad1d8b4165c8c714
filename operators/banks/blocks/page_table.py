"""Which page of the bank holds which block of a stream. Plain bookkeeping: it moves no data and decides nothing.

A *page* is a place for one block, in every layer, numbered 0..pages-1 over the bank. Blocks of a stream are numbered from 0 and
keep their number; the oldest may be dropped. Invariant: blocks ``first..written-1`` have a page each.
"""

# R blocks

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["PageNumbers", "PageTable"]

PageNumbers = NDArray[np.int64]


class PageTable:
    """The pages of one stream. Its array grows with the blocks held, at most twofold, not with the blocks ever written."""

    def __init__(self, first: int = 0) -> None:
        """Begin a table whose next block has the number ``first``."""
        self.first = self.written = first
        self._base = first  # the block of entry 0
        self._pages: PageNumbers = np.empty(16, np.int64)

    def __len__(self) -> int:
        return self.written - self.first

    def append(self, pages: PageNumbers) -> None:
        """Give the next blocks these pages."""
        end = self.written - self._base + len(pages)
        if end > len(self._pages):
            held = self._pages[self.first - self._base : self.written - self._base]
            self._pages = np.empty(2 * (len(held) + len(pages)), np.int64)
            self._pages[: len(held)] = held
            self._base = self.first
        start = self.written - self._base
        self._pages[start : start + len(pages)] = pages
        self.written += len(pages)

    def drop(self, blocks: int) -> PageNumbers:
        """Forget the oldest blocks; return their pages."""
        start = self.first - self._base
        self.first += blocks
        return self._pages[start : start + blocks].copy()

    def pages(self, blocks_R: NDArray[np.int64]) -> PageNumbers:
        """Return the pages of these blocks, which must be held."""
        return self._pages[blocks_R - self._base]

    def held(self) -> PageNumbers:
        """Return the pages of all blocks, oldest first."""
        return self._pages[self.first - self._base : self.written - self._base].copy()
