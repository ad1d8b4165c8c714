"""Reading blocks: of a stream as of a moment while more are written (BlockReader), or from another process (FileReader).

Readers know block numbers, not tiers. Invariant: what a reader returns for a block never changes while the reader is open,
whatever is appended, dropped or released meanwhile.
"""

# N blocks of a reader, R chosen blocks, G key/value heads, T tokens per block, D head dim

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.banks.blocks.page_pool import runs
from operators.banks.blocks.page_table import PageNumbers
from operators.banks.blocks.segments import Maps, SegmentLayout, StreamFiles
from operators.banks.blocks.spec import REPRESENTATIVES, BlockCodec
from operators.banks.blocks.tiers import BlockPages, Tiers
from operators.banks.slot_bank import ReadBuffer

__all__ = ["BlockReader", "FileReader", "SharedBlocks"]


@dataclass(frozen=True, slots=True)
class SharedBlocks:
    """What another process needs to read a stream's blocks from the files of the disk tier. Picklable, without tensors."""

    folder: Path
    incarnation: int
    first: int
    below: int
    layout: SegmentLayout
    codec: BlockCodec

    @property
    def name(self) -> tuple[Path, int, int, int]:
        """Equal where a bank shared the same blocks of the same stream."""
        return self.folder, self.incarnation, self.first, self.below


class BlockReader:
    """Blocks ``first..below-1`` of one stream. Made by ``BlockBank.reader``; close it, or use it in a ``with``.

    While it is open its blocks are neither dropped nor overwritten. Used by one thread at a time; several readers may be open.
    """

    def __init__(
        self,
        tiers: Tiers,
        codec: BlockCodec,
        pages_N: PageNumbers,
        files: StreamFiles | None,
        first: int,
        let_go: Callable[[BlockReader], None],
    ) -> None:
        self.first, self.below = first, first + len(pages_N)
        self._tiers, self._codec, self._pages_N, self._files, self._let_go = tiers, codec, pages_N, files, let_go
        self._runs = runs(pages_N)
        self._ahead: dict[int, Future[None]] = {}
        self._closed = False

    def __len__(self) -> int:
        return self.below - self.first

    def representatives(self, layer: int) -> Tensor:
        """Return the mean keys of all blocks of this reader, [N, G, D] float32; block ``first`` is row 0. Do not write to it.

        A view where the blocks lie side by side, else a copy; on the device or the host, as the bank was told.
        """
        self._check_open()
        if len(self._runs) == 1:
            start = int(self._pages_N[0])
            return self._tiers.means.view(layer, start, start + len(self))[REPRESENTATIVES]
        return self._tiers.means.read(layer, self._pages_N)[REPRESENTATIVES]

    def gather(
        self, layer: int, blocks_R: Tensor | NDArray[np.int64], buffer: ReadBuffer | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values [R, G, T, D] of these blocks (ascending numbers) on the bank's device, contiguous copies.

        ``buffer`` (for the CPU): the result lasts until the next gather through the same buffer.
        Raises ``ValueError`` for blocks that are not ascending or not this reader's.
        """
        self._check_open()
        ahead = self._ahead.pop(layer, None)
        if ahead is not None:
            ahead.result()
        numbers_R = _numbers(blocks_R, self.first, self.below)
        pages = BlockPages(numbers_R, self._pages_N[numbers_R - self.first], self._files)
        return self._codec.decode(self._tiers.read(layer, pages, buffer))

    def prefetch(self, layer: int, blocks_R: Tensor | NDArray[np.int64]) -> None:
        """Begin to bring these blocks of a layer near; the next ``gather`` of that layer waits for it. Changes no result."""
        self._check_open()
        numbers_R = _numbers(blocks_R, self.first, self.below)
        if layer in self._ahead and not self._ahead[layer].done():
            return
        ahead = self._tiers.prefetch(layer, BlockPages(numbers_R, self._pages_N[numbers_R - self.first], self._files))
        if ahead is not None:
            self._ahead[layer] = ahead

    def shared(self) -> SharedBlocks:
        """Return what another process needs to open these blocks (``FileReader``), as long as this reader is open.

        Raises ``ValueError`` for a bank without a disk tier.
        """
        self._check_open()
        if self._files is None:
            raise ValueError(
                "blocks can be read by other processes only from files: give the bank disk_bytes and a disk_folder (a folder "
                "in memory such as /dev/shm will do)"
            )
        files = self._files
        return SharedBlocks(files.folder, files.incarnation, self.first, self.below, files.layout, self._codec)

    def close(self) -> None:
        """Let the bank have its blocks back. May be called twice."""
        if not self._closed:
            for ahead in self._ahead.values():
                ahead.result()
            self._ahead.clear()
            self._closed = True
            self._let_go(self)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this reader is closed; open a new one with BlockBank.reader")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class FileReader:
    """The blocks of a :class:`BlockReader` of another process, from memory maps: all processes share one copy, the page cache.

    Never writes. Raises ``RecoveryError`` if the files are gone because that reader was closed.
    """

    def __init__(self, shared: SharedBlocks, *, device: torch.device | str = "cpu") -> None:
        self.first, self.below, self.device = shared.first, shared.below, torch.device(device)
        self._codec = shared.codec
        self._names = [name for name in shared.layout.rows if name != REPRESENTATIVES]
        self._files = StreamFiles(shared.folder, shared.incarnation, shared.layout, Maps(), shared.first, shared.below)
        self._files.check(shared.below)

    def __len__(self) -> int:
        return self.below - self.first

    def representatives(self, layer: int) -> Tensor:
        """Return a copy of the mean keys of all blocks, [N, G, D] float32."""
        return self._files.read(layer, np.arange(self.first, self.below), [REPRESENTATIVES])[REPRESENTATIVES].to(self.device)

    def gather(
        self, layer: int, blocks_R: Tensor | NDArray[np.int64], buffer: ReadBuffer | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values as :meth:`BlockReader.gather` does."""
        rows = self._files.read(layer, _numbers(blocks_R, self.first, self.below), self._names, buffer)
        return self._codec.decode({name: values.to(self.device) for name, values in rows.items()})

    def prefetch(self, layer: int, blocks_R: Tensor | NDArray[np.int64]) -> None:
        """Do nothing: the system reads ahead."""


def _numbers(blocks_R: Tensor | NDArray[np.int64], first: int, below: int) -> NDArray[np.int64]:
    """Return block numbers on the host, checked."""
    numbers_R = blocks_R.cpu().numpy() if isinstance(blocks_R, Tensor) else blocks_R
    if len(numbers_R) and (numbers_R[0] < first or numbers_R[-1] >= below or (np.diff(numbers_R) <= 0).any()):
        raise ValueError(
            f"blocks {numbers_R[:8].tolist()}{'..' if len(numbers_R) > 8 else ''} must be ascending numbers from {first} to "
            f"{below - 1}"
        )
    return numbers_R
