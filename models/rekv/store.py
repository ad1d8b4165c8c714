"""Where the blocks of a stream are kept: what encoding writes to and answering reads from, and a plain store in tensors.

A block holds the keys (before rotation) and values of one frame in one layer; its representative is the mean of its keys.
Blocks are numbered 0, 1, .. in the order of their frames and never change once written; the oldest may be gone.
"""

# N blocks, R chosen blocks, G key/value heads, T tokens per block, M tokens of several blocks, D head dim

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.rekv.layouts import Laid

__all__ = ["JointBlocks", "ReadableBlocks", "TensorReader", "TensorStore", "WritableBlocks", "whole_tokens"]


class WritableBlocks(Protocol):
    """Takes the blocks of one stream."""

    def append(self, layer: int, keys_NGTD: Tensor, values_NGTD: Tensor, representatives_NGD: Tensor, /) -> object:
        """Add N blocks to a layer; copies. Layers are written one after the other, 0 first, each with the same blocks.

        Blocks of later calls may have another number of tokens where the stream's layout says so.
        """


class JointBlocks(Protocol):
    """Takes the blocks of several streams at once."""

    def begin(self, streams: Sequence[tuple[int, int]], /) -> Callable[[int, Tensor, Tensor, Tensor], None]:
        """Begin to add blocks: (number of the stream in the caller's list, how many). Return what takes them layer by layer.

        That is called like :meth:`WritableBlocks.append`, with the blocks of all these streams in this order.
        """


class ReadableBlocks(Protocol):
    """The blocks ``first`` to ``below`` of one stream, as they were when it was opened: later appends do not disturb it."""

    @property
    def first(self) -> int:
        """The oldest block that is there."""

    @property
    def below(self) -> int:
        """One more than the newest: what a question may see."""

    def representatives(self, layer: int, /) -> Tensor:
        """Return the mean keys of all blocks, [N, G, D] float32, on the decoder's device; row 0 is block ``first``."""

    def gather(self, layer: int, blocks_R: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return keys and values [R, G, T, D] of blocks (ascending numbers), on the decoder's device."""

    def prefetch(self, layer: int, blocks_R: Tensor, /) -> None:
        """Learn that these blocks of a layer are likely to be gathered next. May do nothing; never changes a result."""


def whole_tokens(blocks_RGTD: Tensor, laid: Laid) -> Tensor:
    """Return the tokens of blocks behind each other, [G, M, D], without the unused rows of their pages."""
    tokens_GMD = blocks_RGTD.transpose(0, 1).flatten(1, 2)
    return tokens_GMD if laid.kept_M is None else tokens_GMD.index_select(1, laid.kept_M.to(tokens_GMD.device))


class TensorStore:
    """All blocks of one stream in tensors on one device, unbounded: for tests, notebooks and short recordings.

    ``tokens``: room of a block, where blocks differ.
    """

    def __init__(self, layers: int, tokens: int | None = None) -> None:
        self._layers, self._tokens = [_Layer() for _ in range(layers)], tokens

    def append(self, layer: int, keys_NGTD: Tensor, values_NGTD: Tensor, representatives_NGD: Tensor) -> None:
        """Add blocks to a layer."""
        room = (self._tokens or keys_NGTD.shape[2]) - keys_NGTD.shape[2]
        keys, values = (torch.nn.functional.pad(x, (0, 0, 0, room)) if room else x for x in (keys_NGTD, values_NGTD))
        self._layers[layer].append(keys, values, representatives_NGD)

    def reader(self, below: int | None = None) -> TensorReader:
        """Open all blocks, or those before ``below``."""
        written = self._layers[-1].count
        below = written if below is None else min(max(below, 0), written)
        return TensorReader([layer.rows for layer in self._layers], below)

    def bytes(self) -> int:
        """Return the size of the blocks and representatives written so far."""
        return sum(row[: layer.count].numel() * row.element_size() for layer in self._layers for row in layer.rows)


class TensorReader:
    """Blocks of a :class:`TensorStore`. The store writes only behind them, or into larger copies."""

    first = 0

    def __init__(self, layers: list[tuple[Tensor, ...]], below: int) -> None:
        self._layers, self.below = layers, below

    def representatives(self, layer: int) -> Tensor:
        """Return a view."""
        return self._layers[layer][2][: self.below]

    def gather(self, layer: int, blocks_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies."""
        keys, values, _ = self._layers[layer]
        return keys.index_select(0, blocks_R), values.index_select(0, blocks_R)

    def prefetch(self, layer: int, blocks_R: Tensor) -> None:
        """Do nothing: every block is on the device already."""


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
