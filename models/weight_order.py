"""In which order the weights of linear layers lie in memory: on a CPU that reads all of them for one token, half of the time.

A product with one row is a sum over the inputs. Where a layer has more outputs than inputs, the rows of the transposed weights
are longer, and PyTorch's kernels read long rows at the memory's speed and short ones at half of it. Only the strides change:
shapes, names and values are as before, larger batches are as fast, and results differ by rounding.
"""

# K inputs, N outputs

from __future__ import annotations

import torch
from torch import nn

__all__ = ["order_for_one_row"]


def order_for_one_row(network: nn.Module) -> None:
    """Reorder float32 linear layers on the CPU, in place; others stay. To save them make them ``contiguous`` again."""
    for layer in network.modules():
        if not isinstance(layer, nn.Linear) or layer.out_features <= layer.in_features:
            continue
        weight_NK = layer.weight.data
        if weight_NK.device.type == "cpu" and weight_NK.dtype == torch.float32:
            layer.weight.data = weight_NK.T.contiguous().T
