"""Copies of pages in a faster tier: least recently used ones make room, pages that are being read stay.

Below it lies a tier that holds every page, so dropping a copy loses nothing, and what a read returns never depends on what is
cached. Safe for several threads; the copying itself happens outside the lock. Invariant: a page is found by its number only
when all of it is there.
"""

# L layers, N pages of the bank, P places per layer, R pages of a call

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.banks.blocks.page_pool import PagePool
from operators.banks.blocks.page_table import PageNumbers
from operators.banks.slot_bank import ReadBuffer

__all__ = ["PageCache"]

Load = Callable[[NDArray[np.int64]], Mapping[str, Tensor]]
"""Given positions within the pages asked for: their rows [n, *field] from the tier below."""


class PageCache:
    """Least recently used copies, per layer: a layer never takes the space of another.

    ``keeps_new``: pages just appended replace old copies (a tier of recent blocks); else they take free places only, so that
    writing does not push out what questions use.
    """

    def __init__(self, pool: PagePool, pages: int, *, keeps_new: bool) -> None:
        self.pool, self.keeps_new = pool, keeps_new
        self.hits = self.misses = 0
        self._place_LN = np.full((pool.layers, pages), -1, np.int32)
        self._page_LP = np.full((pool.layers, pool.pages), -1, np.int64)
        self._used_LP = np.zeros((pool.layers, pool.pages), np.int64)
        self._readers_LP = np.zeros((pool.layers, pool.pages), np.int32)
        self._free_L = np.full(pool.layers, pool.pages, np.int64)
        self._clock = 0
        self._lock = threading.Lock()
        self._queued: torch.cuda.Event | None = None

    def gather(self, layer: int, pages_R: PageNumbers, load: Load, buffer: ReadBuffer | None = None) -> Mapping[str, Tensor]:
        """Return copies of pages [R, *field]; what is not here comes from ``load`` and stays."""
        held = self._hold(layer, pages_R)
        if held is None:  # more pages than there is room for
            return load(np.arange(len(pages_R)))
        places_R, missing = held
        try:
            if missing.size:
                self.pool.write(layer, places_R[missing], load(missing))
                self._publish(layer, pages_R[missing], places_R[missing])
            return self.pool.read(layer, places_R, buffer)
        finally:
            self._let_go(layer, places_R, queued=True)

    def warm(self, layer: int, pages_R: PageNumbers, load: Load) -> None:
        """Fetch what is not here, as far as there is room. On CUDA: call it under a stream of its own."""
        held = self._hold(layer, pages_R[: self.pool.pages], count=False)
        if held is None:
            return
        places_R, missing = held
        try:
            if missing.size:
                if self._queued is not None:  # on another stream copies from and to these places may still be waiting
                    torch.cuda.current_stream(self.pool.device).wait_event(self._queued)
                self.pool.write(layer, places_R[missing], load(missing))
                if self.pool.device.type == "cuda":
                    torch.cuda.current_stream(self.pool.device).synchronize()
                self._publish(layer, pages_R[missing], places_R[missing])
        finally:
            self._let_go(layer, places_R)

    def admit(self, layer: int, pages_R: PageNumbers, rows: Mapping[str, Tensor]) -> None:
        """Take pages just appended, the last ones if not all fit."""
        if not self.keeps_new and not self._free_L[layer]:
            return
        with self._lock:
            if self.keeps_new:
                room = int((self._readers_LP[layer] == 0).sum())
            else:
                room = int(((self._readers_LP[layer] == 0) & (self._page_LP[layer] < 0)).sum())
            count = min(room, len(pages_R))
            if not count:
                return
            self._clock += 1
            places = self._take(layer, count)
        try:
            self.pool.write(layer, places, {name: rows[name][-count:] for name in self.pool.rows})
            self._publish(layer, pages_R[-count:], places)
        finally:
            self._let_go(layer, places, queued=True)

    def forget(self, pages: PageNumbers) -> None:
        """Drop the copies of pages that are given to other blocks. Nobody may be reading them."""
        with self._lock:
            place_Ln = self._place_LN[:, pages]
            layer, column = np.nonzero(place_Ln >= 0)
            place = place_Ln[layer, column]
            self._page_LP[layer, place] = -1
            self._used_LP[layer, place] = 0
            self._free_L += np.bincount(layer, minlength=len(self._free_L))
            self._place_LN[:, pages] = -1

    def _hold(self, layer: int, pages_R: PageNumbers, *, count: bool = True) -> tuple[PageNumbers, NDArray[np.int64]] | None:
        """Mark the places of these pages as being read, with new places for those missing; None if there is no room."""
        with self._lock:
            places_R = self._place_LN[layer, pages_R].astype(np.int64)
            here = places_R >= 0
            missing = np.flatnonzero(~here)
            self._readers_LP[layer, places_R[here]] += 1
            if int((self._readers_LP[layer] == 0).sum()) < missing.size:
                self._readers_LP[layer, places_R[here]] -= 1
                return None
            self._clock += 1
            self._used_LP[layer, places_R[here]] = self._clock
            if missing.size:
                places_R[missing] = self._take(layer, missing.size)
            if count:
                self.hits += len(pages_R) - missing.size
                self.misses += missing.size
            return places_R, missing

    def _take(self, layer: int, count: int) -> PageNumbers:
        """Free the ``count`` least recently used places that nobody reads, and mark them as being read. Under the lock."""
        idle = np.flatnonzero(self._readers_LP[layer] == 0)
        used = self._used_LP[layer, idle]
        places = idle if count == len(idle) else idle[np.argpartition(used, count - 1)[:count]]
        places.sort()
        gone = self._page_LP[layer, places]
        self._place_LN[layer, gone[gone >= 0]] = -1
        self._free_L[layer] -= int((gone < 0).sum())
        self._page_LP[layer, places] = -1
        self._readers_LP[layer, places] += 1
        self._used_LP[layer, places] = self._clock
        return places

    def _publish(self, layer: int, pages_R: PageNumbers, places_R: PageNumbers) -> None:
        """Let pages be found, unless another thread has loaded them meanwhile."""
        with self._lock:
            fresh = self._place_LN[layer, pages_R] < 0
            self._place_LN[layer, pages_R[fresh]] = places_R[fresh]
            self._page_LP[layer, places_R[fresh]] = pages_R[fresh]

    def _let_go(self, layer: int, places_R: PageNumbers, *, queued: bool = False) -> None:
        """Let others have these places; ``queued``: copies from or to them may still wait on the current CUDA stream."""
        with self._lock:
            self._readers_LP[layer, places_R] -= 1
            unused = places_R[self._page_LP[layer, places_R] < 0]
            self._used_LP[layer, unused] = 0
            self._free_L[layer] += len(unused)
            if queued and self.pool.device.type == "cuda":
                self._queued = torch.cuda.current_stream(self.pool.device).record_event()
