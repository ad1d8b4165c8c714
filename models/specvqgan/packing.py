"""Linear layers laid out for a step of one token: on a CPU that reads all weights, and how they lie decides how fast.

One or two rows are multiplied with the transposed weights, more with weights packed by oneDNN where this build of PyTorch has
it. Both are float32 products; they round differently in the last bits, as products of batches of different sizes do anyway.
The weights stand in memory twice.
"""

# R rows, K inputs, N outputs

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PackedLinear", "pack_linears"]

_FEW = 2
"""Rows up to which the transposed weights are faster."""


class PackedLinear(nn.Module):
    """``x @ weight.T + bias`` for inference on a CPU in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight_KN = linear.weight.detach().T.contiguous()
        bias: Any = linear.bias
        self.bias_N: Tensor | None = None if bias is None else bias.detach()
        self._packed: Any = None
        mkldnn: Any = torch.ops.mkldnn
        backend: Any = torch.backends.mkldnn
        if backend.is_available() and hasattr(mkldnn, "_reorder_linear_weight"):
            self._packed = mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), 16)

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


def pack_linears(network: nn.Module) -> None:
    """Replace the linear layers of a network on the CPU, in place; one in another type or place is left as it is."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child.weight.dtype == torch.float32 and child.weight.device.type == "cpu":
                setattr(module, name, PackedLinear(child))
