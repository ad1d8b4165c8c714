"""The tiers of a bank: which of device, host memory and disk holds all blocks, and which hold copies.

The lowest tier that has a budget is the *home*: every block is written there once and stays. The tiers above it are caches, so
a tier's size, and what it happens to hold, can never change what is read. Knows pages, not why blocks come and go.
"""

# L layers, N pages of the bank, R pages of a call

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.banks.blocks.budget import TierPlan
from operators.banks.blocks.page_cache import PageCache
from operators.banks.blocks.page_pool import PagePool
from operators.banks.blocks.page_table import PageNumbers
from operators.banks.blocks.prefetch import Prefetcher
from operators.banks.blocks.segments import Maps, StreamFiles
from operators.banks.blocks.spec import REPRESENTATIVES, BlockSpec
from operators.banks.slot_bank import ReadBuffer, RowSpec

__all__ = ["BlockPages", "Part", "Tiers"]


@dataclass(frozen=True, slots=True)
class BlockPages:
    """Blocks of one stream to be read: their numbers, their pages, and the stream's files where there is a disk tier."""

    blocks_R: NDArray[np.int64]
    pages_R: PageNumbers
    files: StreamFiles | None

    def at(self, index: NDArray[np.int64]) -> BlockPages:
        """Return some of them."""
        return BlockPages(self.blocks_R[index], self.pages_R[index], self.files)


@dataclass(frozen=True, slots=True)
class Part:
    """The new blocks of one stream within an append: rows ``rows`` are blocks ``block``, ``block + 1``, .."""

    rows: slice
    block: int
    files: StreamFiles | None


class Tiers:
    """Pages of all streams. One thread appends; any number read; on CUDA all of them on one stream."""

    def __init__(
        self, plan: TierPlan, spec: BlockSpec, fields: Mapping[str, RowSpec], *, device: torch.device, representatives: str
    ) -> None:
        self.plan, self.device, self._names, self._means_tier = plan, device, list(fields), representatives
        cpu, locked = torch.device("cpu"), device.type == "cuda"
        self.home: PagePool | None = None
        if plan.home != "disk":
            self.home = PagePool(
                fields,
                layers=spec.layers,
                pages=plan.blocks,
                device=device if plan.home == "device" else cpu,
                lock_pages=locked,
            )
        self.maps: Maps | None = None
        if plan.home == "disk":
            self.maps = Maps()
        self.near: PageCache | None = None
        if plan.device_pages:
            pool = PagePool(fields, layers=spec.layers, pages=plan.device_pages, device=device)
            self.near = PageCache(pool, plan.blocks, keeps_new=False)
        self.host: PageCache | None = None
        if plan.host_pages:
            pool = PagePool(fields, layers=spec.layers, pages=plan.host_pages, device=cpu, lock_pages=locked)
            self.host = PageCache(pool, plan.blocks, keeps_new=True)
        self.means = PagePool(
            {REPRESENTATIVES: spec.representative},
            layers=spec.layers,
            pages=plan.blocks,
            device=device if representatives == "device" else cpu,
            lock_pages=locked,
        )
        self._prefetcher = Prefetcher(device)

    def bytes(self) -> dict[str, int]:
        """Return what is allocated on ``device`` and ``host``. Where the device is the CPU both lie in its memory."""
        pools = [("device" if self.plan.home == "device" else "host", self.home)] if self.home is not None else []
        pools += [("device", self.near.pool)] if self.near is not None else []
        pools += [("host", self.host.pool)] if self.host is not None else []
        total = {"device": 0, "host": 0}
        for tier, pool in pools:
            total[tier] += pool.bytes()
        total[self._means_tier] += self.means.bytes()
        return total

    def write(
        self, layer: int, pages_R: PageNumbers, rows: Mapping[str, Tensor], means_RGD: Tensor, parts: Sequence[Part]
    ) -> None:
        """Write new pages of a layer to the home, and copies to the caches as these see fit."""
        self.means.write(layer, pages_R, {REPRESENTATIVES: means_RGD})
        if self.home is not None:
            self.home.write(layer, pages_R, rows)
        else:
            rows_on_host = {name: values.cpu() for name, values in rows.items()}
            stored = {REPRESENTATIVES: means_RGD.cpu(), **rows_on_host}
            for part in parts:
                if part.files is not None:
                    part.files.write(layer, part.block, {name: values[part.rows] for name, values in stored.items()})
            if self.host is not None:
                self.host.admit(layer, pages_R, rows_on_host)
        if self.near is not None:
            self.near.admit(layer, pages_R, rows)

    def read(self, layer: int, pages: BlockPages, buffer: ReadBuffer | None = None) -> dict[str, Tensor]:
        """Return copies of pages on the device, from whatever tier; in ``buffer`` where the device is the CPU."""
        buffer = buffer if self.device.type == "cpu" else None
        if self.near is None:
            rows = self._below(layer, pages, buffer)
        else:
            rows = self.near.gather(layer, pages.pages_R, lambda missing: self._below(layer, pages.at(missing)), buffer)
        return {name: values.to(self.device, non_blocking=True) for name, values in rows.items()}

    def prefetch(self, layer: int, pages: BlockPages) -> Future[None] | None:
        """Begin to copy pages into the nearest cache; None if there is none or the thread is busy."""
        near, host = self.near, self.host
        if near is not None:
            return self._prefetcher.submit(
                lambda: near.warm(layer, pages.pages_R, lambda missing: self._below(layer, pages.at(missing)))
            )
        if host is not None:
            return self._prefetcher.submit(
                lambda: host.warm(layer, pages.pages_R, lambda missing: self._from_home(layer, pages.at(missing)))
            )
        return None

    def blocks(self, pages_R: PageNumbers) -> dict[str, Tensor]:
        """Return copies of whole blocks and their representatives on the CPU, [R, L, *field]. Not for a disk tier."""
        assert self.home is not None
        return {**self.means.blocks(pages_R), **self.home.blocks(pages_R)}

    def put(self, layer: int, pages_R: PageNumbers, rows: Mapping[str, Tensor]) -> None:
        """Write what ``blocks`` returned, layer by layer. Not for a disk tier."""
        assert self.home is not None
        self.means.write(layer, pages_R, {REPRESENTATIVES: rows[REPRESENTATIVES]})
        self.home.write(layer, pages_R, rows)

    def forget(self, pages: PageNumbers) -> None:
        """Drop copies of pages that become free."""
        for cache in (self.near, self.host):
            if cache is not None:
                cache.forget(pages)

    def close(self) -> None:
        """End the prefetch thread and unmap the files."""
        self._prefetcher.close()
        if self.maps is not None:
            self.maps.close()

    def _below(self, layer: int, pages: BlockPages, buffer: ReadBuffer | None = None) -> Mapping[str, Tensor]:
        if self.host is None:
            return self._from_home(layer, pages, buffer)
        return self.host.gather(layer, pages.pages_R, lambda missing: self._from_home(layer, pages.at(missing)), buffer)

    def _from_home(self, layer: int, pages: BlockPages, buffer: ReadBuffer | None = None) -> dict[str, Tensor]:
        if self.home is not None:
            return self.home.read(layer, pages.pages_R, buffer)
        assert pages.files is not None  # every stream of a bank with a disk tier has files
        return pages.files.read(layer, pages.blocks_R, self._names, buffer)
