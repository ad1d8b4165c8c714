"""Pages in preallocated tensors, on a device or in host memory. It copies pages; who owns which place is decided elsewhere.

Where the other side of a copy is a CUDA device, host memory is page-locked and copies do not wait. Invariant: a read sees every
write that was called before it, in whatever thread.
"""

# L layers, P pages per layer, R pages of a call

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from connectors.errors import DeviceError
from models.uploads import upload
from operators.banks.blocks.page_table import PageNumbers
from operators.banks.slot_bank import ReadBuffer, RowSpec

__all__ = ["PagePool", "runs"]


_FEW = 4
"""Runs of neighboring pages up to which copying run by run beats one indexed copy."""


def runs(numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the slices [start, stop) of ``numbers`` within which each number is its predecessor plus 1."""
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    edges = [0, *cuts.tolist(), len(numbers)]
    return [(start, stop) for start, stop in pairwise(edges) if stop > start]


class PagePool:
    """``pages`` places per layer for pages of these ``fields``. ``lock_pages``: the memory is exchanged with a CUDA device."""

    def __init__(
        self, fields: Mapping[str, RowSpec], *, layers: int, pages: int, device: torch.device, lock_pages: bool = False
    ) -> None:
        self.layers, self.pages, self.device = layers, pages, device
        with torch.inference_mode(False):  # so that it can be written outside inference mode, too
            self.rows = {
                name: torch.empty((layers, pages, *row.shape), dtype=row.dtype, device=device) for name, row in fields.items()
            }
        """name → [L, P, *field]"""
        self._locked = lock_pages and device.type == "cpu"
        self._copied: torch.cuda.Event | None = None
        self._indexed: tuple[bytes, Tensor] | None = None
        if self._locked:
            for tensor in self.rows.values():
                if tensor.numel():
                    unlock, address = _lock_pages(tensor)
                    weakref.finalize(self, unlock, address).atexit = False

    def bytes(self) -> int:
        """Return the size of all places."""
        return sum(t.numel() * t.element_size() for t in self.rows.values())

    def write(self, layer: int, pages_R: PageNumbers, rows: Mapping[str, Tensor]) -> None:
        """Copy rows [R, *field], from any device, to these places of a layer."""
        spans = runs(pages_R)
        for name, pool_LP in self.rows.items():
            values_R = rows[name]
            to_host = values_R.device.type == "cuda" and self.device.type == "cpu"
            if to_host or len(spans) <= _FEW:
                for start, stop in spans:
                    place = int(pages_R[start])
                    pool_LP[layer, place : place + stop - start].copy_(values_R[start:stop], non_blocking=True)
                if to_host:
                    self._copied = torch.cuda.current_stream(values_R.device).record_event()
            else:
                pool_LP[layer].index_copy_(0, self._index(pages_R), values_R.to(self.device, non_blocking=True))

    def read(self, layer: int, pages_R: PageNumbers, buffer: ReadBuffer | None = None) -> dict[str, Tensor]:
        """Return copies of these pages of a layer, on the pool's device; in ``buffer`` if the pool is on the CPU."""
        if self._copied is not None:
            self._copied.synchronize()
        index_R, out = self._index(pages_R), {}
        for name, pool_LP in self.rows.items():
            shape = (len(pages_R), *pool_LP.shape[2:])
            if buffer is not None and self.device.type == "cpu":
                rows_R = buffer.take(name, shape, pool_LP.dtype)
            else:
                rows_R = torch.empty(shape, dtype=pool_LP.dtype, device=self.device, pin_memory=self._locked)
            out[name] = torch.index_select(pool_LP[layer], 0, index_R, out=rows_R)
        return out

    def view(self, layer: int, start: int, stop: int) -> dict[str, Tensor]:
        """Return neighboring pages of a layer in place. Do not write to them."""
        if self._copied is not None:
            self._copied.synchronize()
        return {name: pool_LP[layer, start:stop] for name, pool_LP in self.rows.items()}

    def blocks(self, pages_R: PageNumbers) -> dict[str, Tensor]:
        """Return copies of whole blocks on the CPU, [R, L, *field]: for snapshots."""
        index_R = self._index(pages_R)
        if self._copied is not None:
            self._copied.synchronize()
        chosen = {name: pool_LP.index_select(1, index_R).cpu() for name, pool_LP in self.rows.items()}
        return {name: rows_LR.transpose(0, 1).contiguous() for name, rows_LR in chosen.items()}

    def _index(self, pages_R: PageNumbers) -> Tensor:
        """Return page numbers on the pool's device. Layers are written one after the other to the same pages."""
        if self.device.type == "cpu":
            return torch.from_numpy(pages_R)
        key, last = pages_R.tobytes(), self._indexed
        if last is None or last[0] != key:
            last = self._indexed = key, upload(torch.from_numpy(pages_R), self.device)
        return last[1]


def _lock_pages(tensor: Tensor) -> tuple[Callable[[int], object], int]:
    """Page-lock the memory of a CPU tensor; return the function that ends it and its argument.

    Not ``pin_memory``: torch's allocator of pinned memory rounds up to a power of two, which breaks a budget of gigabytes.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    size = tensor.numel() * tensor.element_size()
    code = int(runtime.cudaHostRegister(tensor.data_ptr(), size, 0))
    if code:
        raise DeviceError(
            f"{size} bytes of host memory cannot be page-locked (CUDA error {code}); lower host_bytes, or raise the limit of "
            "locked memory (ulimit -l)"
        )
    return runtime.cudaHostUnregister, tensor.data_ptr()
