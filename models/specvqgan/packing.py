"""Linear layers laid out for a step of one token: on a CPU that reads all weights, and how they lie decides how fast.

One or two rows are multiplied with weights as ``models.weight_order`` lays them, more with weights packed by oneDNN where this
build of PyTorch has it. Both are float32 products; they round differently in the last bits, as products of batches of
different sizes do anyway. The weights stand in memory twice.
"""

# R rows, K inputs, N outputs

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from models.weight_order import laid_for_one_row

__all__ = ["PackedLinear", "can_pack", "pack_linears"]

_FEW = 2
"""Rows up to which the transposed weights are faster."""


class PackedLinear(nn.Module):
    """``x @ weight.T + bias`` for inference on a CPU in float32; of several layers of the same ``x``, their outputs in turn."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        weight_NK = torch.cat([linear.weight.detach() for linear in linears])
        biases: list[Any] = [linear.bias for linear in linears]
        self.bias_N = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        self.weight_KN = laid_for_one_row(weight_NK).T
        self._packed: Any = None
        mkldnn: Any = torch.ops.mkldnn
        backend: Any = torch.backends.mkldnn
        if backend.is_available() and hasattr(mkldnn, "_reorder_linear_weight"):
            self._packed = mkldnn._reorder_linear_weight(weight_NK.contiguous(), 16)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., N] of [..., K]."""
        x_RK = x.reshape(-1, x.shape[-1])
        if len(x_RK) > _FEW and self._packed is not None:
            out_RN: Tensor = torch.ops.mkldnn._linear_pointwise(x_RK.contiguous(), self._packed, self.bias_N, "none", [], "")
        elif self.bias_N is None:
            out_RN = x_RK @ self.weight_KN
        else:
            out_RN = torch.addmm(self.bias_N, x_RK, self.weight_KN)
        return out_RN.view(*x.shape[:-1], -1)


def can_pack(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Tell whether a layer is a linear one on the CPU in float32; others are left as they are."""
    return isinstance(linear, nn.Linear) and linear.weight.dtype == torch.float32 and linear.weight.device.type == "cpu"


def pack_linears(network: nn.Module) -> None:
    """Replace the linear layers of a network that can be packed, in place."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if can_pack(child):
                setattr(module, name, PackedLinear(child))
