"""How the weights of linear layers lie in memory: on a CPU that reads all of them for one token, half of the time.

A product with one row is a sum over the inputs. Where a layer has more outputs than inputs, the rows of the transposed weights
are longer, and PyTorch's kernels read long rows at the memory's speed and short ones at half of it. On large pages, where Linux
gives them, a core looks up fewer addresses and reads faster still. Only place and strides change: shapes, names and values are
as before, larger batches are as fast, and results differ by rounding.
"""

# K inputs, N outputs

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["laid_for_one_row", "order_for_one_row"]

_LARGE_PAGE = 2 << 20
"""Bytes; smaller weights are in a core's caches anyway."""


def order_for_one_row(network: nn.Module) -> None:
    """Lay out float32 linear layers on the CPU anew, in place; others stay. To save them make them ``contiguous`` again."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32:
            layer.weight.data = laid_for_one_row(layer.weight.data)


def laid_for_one_row(weight_NK: Tensor) -> Tensor:
    """Return float32 weights [N, K] of the CPU with the longer side together, on large pages where they are large."""
    outputs, inputs = weight_NK.shape
    rows = weight_NK.T if outputs > inputs else weight_NK
    held = _memory(rows.shape).copy_(rows)
    return held.T if outputs > inputs else held


def _memory(shape: Sequence[int]) -> Tensor:
    """Return float32 memory for a shape, on large pages where it is large and there are any."""
    count = math.prod(shape)
    if 4 * count >= _LARGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            mapped = mmap.mmap(-1, 4 * count + _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            mapped.madvise(mmap.MADV_HUGEPAGE)
            start = -torch.frombuffer(mapped, dtype=torch.uint8, count=1).data_ptr() % _LARGE_PAGE
            # The tensor keeps the mapping.
            return torch.frombuffer(mapped, dtype=torch.float32, count=count, offset=start).view(*shape)
    return torch.empty(*shape)
