"""Where the blocks of a stream are kept: the contract that a bank fulfils, and a plain store in tensors.

A block holds the keys (before rotation) and values of one frame in one layer; its representative is the mean of its keys.
Blocks are numbered 0, 1, .. in the order of their frames and never change once written.
"""

# N blocks, R chosen blocks, G key/value heads, T tokens per block, D head dim

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["KeyValueStore", "TensorStore"]


class KeyValueStore(Protocol):
    """The blocks of one stream. A reader of blocks below N is not disturbed by later appends."""

    def append(self, layer: int, keys_NGTD: Tensor, values_NGTD: Tensor, representatives_NGD: Tensor) -> None:
        """Add N blocks to a layer; copies. Layers are written one after the other, each with the same blocks."""

    def representatives(self, layer: int, below: int) -> Tensor:
        """Return the representatives of blocks 0 to ``below``, [N, G, D], on the device of the decoder."""

    def gather(self, layer: int, blocks_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [R, G, T, D] of the given blocks (ascending int64), on the device of the decoder."""

    def prefetch(self, layer: int, blocks_R: Tensor) -> None:
        """Learn that these blocks of a layer are likely to be gathered next. May do nothing; never changes a result."""


class TensorStore:
    """All blocks of one stream in tensors on one device, unbounded: for tests, notebooks and short recordings."""

    def __init__(self, layers: int) -> None:
        self._layers = [_Layer() for _ in range(layers)]

    def append(self, layer: int, keys_NGTD: Tensor, values_NGTD: Tensor, representatives_NGD: Tensor) -> None:
        """Add blocks to a layer."""
        self._layers[layer].append(keys_NGTD, values_NGTD, representatives_NGD)

    def representatives(self, layer: int, below: int) -> Tensor:
        """Return a view, [below, G, D] in float32."""
        return self._layers[layer].rows[2][:below]

    def gather(self, layer: int, blocks_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies."""
        keys, values, _ = self._layers[layer].rows
        return keys.index_select(0, blocks_R), values.index_select(0, blocks_R)

    def prefetch(self, layer: int, blocks_R: Tensor) -> None:
        """Do nothing: every block is on the device already."""

    def bytes(self) -> int:
        """Return the size of the blocks and representatives written so far."""
        return sum(row[: layer.count].numel() * row.element_size() for layer in self._layers for row in layer.rows)


class _Layer:
    """Keys, values and representatives of a layer; room doubles when it is used up."""

    def __init__(self) -> None:
        self.rows: tuple[Tensor, ...] = ()
        self.count = 0

    def append(self, *new: Tensor) -> None:
        stop = self.count + new[0].shape[0]
        if not self.rows or stop > self.rows[0].shape[0]:
            grown = tuple(torch.empty(2 * stop, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device) for tensor in new)
            for to, old in zip(grown, self.rows, strict=False):
                to[: self.count] = old[: self.count]
            self.rows = grown
        for to, tensor in zip(self.rows, new, strict=True):
            to[self.count : stop] = tensor
        self.count = stop
