"""Where the tokens of blocks lie: their number, and their positions on one axis or on three (time, row, column).

Blocks of most models are alike (:class:`Grid`). Those of the Qwen-VL family are as large as their frames, and lie in time or
between words that name it (:class:`VideoLayout`). A *plan* says which blocks lie where; it is hashable, so that what follows
from it can be kept. Knows neither keys nor decoders.
"""

# A axes (1 or 3), K blocks, T tokens of a block, M tokens of several blocks, W numbers of a block

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.rekv.config import Axes

__all__ = ["COLUMNS", "BlockNumbers", "Grid", "Laid", "Layout", "Run", "Shape", "VideoLayout"]

COLUMNS = ("start", "lead", "rows", "columns", "tail", "at")
"""What a :class:`VideoLayout` notes of a block: video tokens before it, words before its grid, the grid, words behind it, and
how far it lies from the stream's first position on the axes on which blocks move."""

_START, _LEAD, _ROWS, _COLUMNS, _TAIL, _AT = range(len(COLUMNS))
_JITTER_US = 500  # event times of frames are rounded; a frame at 0.999999 s is meant to be at 1 s

Ints = npt.NDArray[np.int64]


class Run(NamedTuple):
    """Consecutive blocks of one shape."""

    frames: int
    """How many."""
    tokens: int
    """Of each."""
    shown: slice
    """Those of them that are of the image."""


class Laid(NamedTuple):
    """The tokens of some blocks in their places."""

    positions_AM: Tensor
    end: int
    """The position of what follows."""
    kept_M: Tensor | None
    """Which rows of the blocks' pages, one behind the other, are tokens; None: all."""


class Layout(Protocol):
    """Where the blocks of a stream lie."""

    @property
    def tokens(self) -> int:
        """Most tokens of a block, which its pages have room for."""

    def start(self, block: int, /) -> int:
        """Return how many tokens the blocks before this one have."""

    def holding(self, token: int, blocks: int, /) -> int:
        """Return which of a stream's ``blocks`` holds this token, counted as in ``start``."""

    def run(self, block: int, most: int, /) -> Run:
        """Return how many of at most ``most`` blocks from this one on have its shape."""

    def written(self, first: int, stop: int, /) -> Hashable:
        """Plan the blocks ``first`` to ``stop`` where they lie in the stream."""

    def chosen(self, blocks_K: Tensor, /) -> Hashable:
        """Plan some blocks, ascending, as the video that a question sees."""

    def lay(self, plan: Any, prefix: int, /) -> Laid:
        """Carry out a plan, behind a prefix of so many tokens."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Blocks that are all alike, each beginning where the one before ended: ``offsets_AT``, the next one at ``span``."""

    offsets_AT: Tensor
    span: int

    @staticmethod
    def line(tokens: int) -> Grid:
        """One axis: the tokens of a frame follow each other."""
        return Grid(torch.arange(tokens).unsqueeze(0), tokens)

    @staticmethod
    def volume(time: int, rows: int, columns: int) -> Grid:
        """Three axes, tokens in the order time, row, column (Qwen2-VL, arXiv 2409.12191 section 2.1)."""
        axes = torch.meshgrid(torch.arange(time), torch.arange(rows), torch.arange(columns), indexing="ij")
        return Grid(torch.stack([axis.flatten() for axis in axes]), max(time, rows, columns))

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return self.offsets_AT.shape[1]

    def start(self, block: int) -> int:
        """Return how many tokens the blocks before this one have."""
        return block * self.tokens

    def holding(self, token: int, blocks: int) -> int:
        """Return the block of a token."""
        return token // self.tokens

    def run(self, block: int, most: int) -> Run:
        """Return all of them."""
        return Run(most, self.tokens, slice(None))

    def written(self, first: int, stop: int) -> tuple[int, int, int, int]:
        """Plan consecutive blocks."""
        return first, stop - first, self.tokens, self.span

    def chosen(self, blocks_K: Tensor) -> tuple[int, int, int, int]:
        """Plan as many blocks from the beginning on: their number is all that counts."""
        return 0, blocks_K.shape[0], self.tokens, self.span

    def lay(self, plan: tuple[int, int, int, int], prefix: int) -> Laid:
        """Carry out a plan."""
        first, count = plan[:2]
        begins_K = prefix + torch.arange(first, first + count) * self.span
        positions_AKT = begins_K[:, None] + self.offsets_AT[:, None]
        return Laid(positions_AKT.flatten(1), prefix + (first + count) * self.span, None)


class BlockNumbers(Protocol):
    """What was noted of the blocks of a stream."""

    def at(self, blocks_K: Ints, /) -> Ints:
        """Return the numbers of blocks, [K, W], ``COLUMNS`` first."""


class Shape(NamedTuple):
    """What a block consists of: words, the tokens of an image row by row, words."""

    lead: int
    rows: int
    columns: int
    tail: int

    @property
    def tokens(self) -> int:
        """Tokens of the block."""
        return self.lead + self.rows * self.columns + self.tail


@dataclass(frozen=True, slots=True)
class VideoLayout:
    """Blocks of any shapes, as ``numbers`` has them noted."""

    axes: Axes
    tokens: int
    """Most tokens of a block."""
    numbers: BlockNumbers
    tokens_per_second: int | None = None
    """On a timeline: positions of a second (Qwen2.5-VL); None: each block is one further (Qwen2-VL)."""
    elapsed: bool = False
    """On a timeline: chosen blocks keep the time between them; else each follows as if there had been none."""

    def start(self, block: int) -> int:
        """Return how many tokens the blocks before this one have."""
        if block == 0:
            return 0
        last = self._of(block - 1, block)[0]
        return int(last[_START]) + _shape(last).tokens

    def holding(self, token: int, blocks: int) -> int:
        """Return the block of a token: one of the last."""
        block = blocks
        while block and self._of(block - 1, block)[0, _START] > token:
            block -= 1
        return max(block - 1, 0)

    def run(self, block: int, most: int) -> Run:
        """Return how many blocks have the shape of this one."""
        shapes_K4 = self._of(block, block + most)[:, _LEAD:_AT]
        other_K = (shapes_K4 != shapes_K4[0]).any(axis=1)
        shape = Shape(*shapes_K4[0].tolist())
        count = int(other_K.argmax()) if other_K.any() else most
        return Run(count, shape.tokens, slice(shape.lead, shape.tokens - shape.tail))

    def rows(self, block: int, shapes: Sequence[Shape], elapsed_us: Sequence[int]) -> Ints:
        """Return what is to be noted of new blocks from number ``block`` on, [K, 6].

        ``elapsed_us``: from the stream's first frame to the first one of each block.
        """
        rows = []
        start, at = self.start(block), 0
        if block and self.axes == "segments":
            last = self._of(block - 1, block)[0]
            at = int(last[_AT]) + _span(_shape(last))
        for i, (shape, time_us) in enumerate(zip(shapes, elapsed_us, strict=True)):
            if self.axes == "timeline":
                per_second = self.tokens_per_second
                at = block + i if per_second is None else (time_us + _JITTER_US) * per_second // 1_000_000
            rows.append((start, *shape, start if self.axes == "line" else at))
            start, at = start + shape.tokens, at + _span(shape)
        return np.array(rows, np.int64).reshape(-1, len(COLUMNS))

    def written(self, first: int, stop: int) -> tuple[tuple[int, ...], ...]:
        """Plan consecutive blocks."""
        return tuple(map(tuple, self._of(first, stop)[:, _LEAD:].tolist()))

    def chosen(self, blocks_K: Tensor) -> tuple[tuple[int, ...], ...]:
        """Plan blocks one behind the other; see ``elapsed``."""
        number_K = blocks_K.cpu().numpy()
        rows_KW = self.numbers.at(number_K)[:, : len(COLUMNS)]
        if self.axes == "timeline":
            at_K = rows_KW[:, _AT]
            before_K = at_K[:-1] if self.elapsed else self.numbers.at(number_K[1:] - 1)[:, _AT]
            steps_K = at_K[1:] - before_K
        else:
            steps_K = np.array([self._length(row) for row in rows_KW[:-1]], np.int64)
        at = [0, *np.cumsum(steps_K).tolist()]
        return tuple((*row, place) for row, place in zip(rows_KW[:, _LEAD:_AT].tolist(), at, strict=False))

    def lay(self, plan: tuple[tuple[int, ...], ...], prefix: int) -> Laid:
        """Carry out a plan. What follows begins behind the largest position on any axis."""
        axes = 1 if self.axes == "line" else 3
        shapes = [Shape(*spot[:4]) for spot in plan]
        if not shapes:
            return Laid(torch.empty(axes, 0, dtype=torch.long), prefix, None)
        size_K = torch.tensor([shape.tokens for shape in shapes])
        positions_AM = torch.cat([_offsets(self.axes, shape) for shape in shapes], dim=1) + prefix
        at_M = torch.tensor([spot[4] for spot in plan]).repeat_interleave(size_K)
        positions_AM[: 1 if self.axes == "timeline" else axes] += at_M
        kept_M = None
        if bool((size_K != self.tokens).any()):
            kept_M = (torch.arange(self.tokens) < size_K[:, None]).flatten().nonzero()[:, 0]
        return Laid(positions_AM, int(positions_AM.max()) + 1, kept_M)

    def _of(self, first: int, stop: int) -> Ints:
        return self.numbers.at(np.arange(first, stop))[:, : len(COLUMNS)]

    def _length(self, row_W: Ints) -> int:
        """Return from where on a block is followed by the next, where it moves on all axes."""
        shape = _shape(row_W)
        return shape.tokens if self.axes == "line" else _span(shape)


def _shape(row_W: Ints) -> Shape:
    return Shape(*row_W[_LEAD:_AT].tolist())


def _span(shape: Shape) -> int:
    return shape.lead + max(shape.rows, shape.columns) + shape.tail


@functools.lru_cache(maxsize=256)
def _offsets(axes: Axes, shape: Shape) -> Tensor:
    """Return the positions of a block's tokens from where it begins, [A, T]."""
    if axes == "line":
        return torch.arange(shape.tokens).unsqueeze(0)
    volume_AT = Grid.volume(1, shape.rows, shape.columns).offsets_AT + shape.lead
    behind = shape.lead + max(shape.rows, shape.columns)
    words = [torch.arange(start, start + count).expand(3, -1) for start, count in ((0, shape.lead), (behind, shape.tail))]
    return torch.cat((words[0], volume_AT, words[1]), dim=1)
