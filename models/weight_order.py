"""How the weights of linear layers lie in memory: on a CPU that reads all of them for one token, half of the time.

A product with one row is a sum over the inputs. Where a layer has more outputs than inputs, the rows of the transposed weights
are longer, and PyTorch's kernels read long rows at the memory's speed and short ones at half of it. On large pages, where Linux
gives them, a core looks up fewer addresses and reads faster still. Layers that take the same input lie side by side, so that
one product serves them. Only place and strides change: shapes, names and values are as before, larger batches are as fast, and
results differ by rounding.
"""

# K inputs, N outputs

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

__all__ = ["laid_for_one_row", "large_zeros", "lay_side_by_side", "order_for_one_row"]

_LARGE_PAGE = 2 << 20
"""Bytes; less is in a core's caches anyway."""
_LINE = 16
"""Numbers of a line of the cache."""


def order_for_one_row(network: nn.Module) -> None:
    """Lay out float32 linear layers on the CPU anew, in place; others stay. To save them make them ``contiguous`` again."""
    for layer in network.modules():
        if _can_lay(layer):
            lay_side_by_side([[layer]])


def lay_side_by_side(groups: Sequence[Sequence[nn.Linear]]) -> list[Tensor]:
    """Lay out linear layers anew, in place, those of a group behind each other; return the weights [N, K] of each group.

    The layers of a group take the same input: a product with what is returned gives the outputs of all. Its rows are the
    layers' weights from now on. On the CPU in float32 all of it is ordered for one row.
    """
    shapes = [(sum(layer.out_features for layer in group), group[0].in_features) for group in groups]
    sizes = [-(-math.prod(shape) // _LINE) * _LINE for shape in shapes]
    # One piece of memory for all: the small ones lie on large pages, too.
    memory = large_zeros(sum(sizes)) if any(_can_lay(layer) for group in groups for layer in group) else None
    laid, start = [], 0
    for group, (outputs, inputs), size in zip(groups, shapes, sizes, strict=True):
        if memory is not None and all(map(_can_lay, group)):
            weight_NK = _ordered(memory[start : start + outputs * inputs], outputs, inputs)
        elif len(group) == 1:
            laid.append(group[0].weight.data)
            continue
        else:
            weight_NK = group[0].weight.new_empty(outputs, inputs)
        for layer, rows_NK in zip(group, torch.split(weight_NK, [layer.out_features for layer in group]), strict=True):
            rows_NK.copy_(layer.weight.detach())
            layer.weight.data = rows_NK
        laid.append(weight_NK)
        start += size
    return laid


def laid_for_one_row(weight_NK: Tensor) -> Tensor:
    """Return float32 weights [N, K] of the CPU with the longer side together, on large pages where they are large."""
    outputs, inputs = weight_NK.shape
    return _ordered(large_zeros(outputs * inputs), outputs, inputs).copy_(weight_NK)


def _can_lay(layer: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(layer, nn.Linear) and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32


def _ordered(memory: Tensor, outputs: int, inputs: int) -> Tensor:
    return memory.view(inputs, outputs).T if outputs > inputs else memory.view(outputs, inputs)


def large_zeros(*shape: int) -> Tensor:
    """Return float32 zeros on the CPU, on large pages where they are large and there are any."""
    count = math.prod(shape)
    if 4 * count >= _LARGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            mapped = mmap.mmap(-1, 4 * count + _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            mapped.madvise(mmap.MADV_HUGEPAGE)
            start = -torch.frombuffer(mapped, dtype=torch.uint8, count=1).data_ptr() % _LARGE_PAGE
            # The tensor keeps the mapping.
            return torch.frombuffer(mapped, dtype=torch.float32, count=count, offset=start).view(*shape)
    return torch.zeros(*shape)
