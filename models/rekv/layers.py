"""What a plain decoder's layer computes around its attention: from its modules, or from weights that are laid out for it.

Norm, attention, sum, norm, MLP, sum. The numbers are those of the library's own forward, up to rounding.
"""

# n tokens, C hidden size, I inner size of the MLP, X heads of queries, keys and values, D head dim

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.weight_order import lay_side_by_side

__all__ = ["LooseLayer", "PackedLayer", "Product", "normalized", "pack_layer"]


class LooseLayer:
    """A layer by its modules, whatever these are."""

    def __init__(self, layer: Any) -> None:
        attention = layer.self_attn
        self._layer = layer
        self.norms = _norms(attention)
        """Of queries and of keys, where the decoder has them."""
        self.scaling: float = attention.scaling

    def holds(self) -> bool:
        """Tell whether the layer computes what its modules do."""
        return True

    def attended(self, hidden_nC: Tensor) -> Tensor:
        """Return queries, keys and values [n, X D]."""
        attention, normal_nC = self._layer.self_attn, normalized(self._layer.input_layernorm, hidden_nC)
        return torch.cat([project(normal_nC) for project in (attention.q_proj, attention.k_proj, attention.v_proj)], dim=-1)

    def rest(self, hidden_nC: Tensor, read_nX: Tensor) -> Tensor:
        """Return the layer's output [n, C] from its input and what the heads have read."""
        layer = self._layer
        hidden_nC = _added(hidden_nC, layer.self_attn.o_proj, read_nX)
        normal_nC, mlp = normalized(layer.post_attention_layernorm, hidden_nC), layer.mlp
        return _added(hidden_nC, mlp.down_proj, mlp.act_fn(mlp.gate_proj(normal_nC)) * mlp.up_proj(normal_nC))


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """Linear layers of one input as one product."""

    linears: Sequence[nn.Linear]
    weight_KN: Tensor
    bias_N: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs, those of the layers behind each other."""
        return x @ self.weight_KN if self.bias_N is None else torch.addmm(self.bias_N, x, self.weight_KN)

    def added(self, sum_nC: Tensor, x: Tensor) -> Tensor:
        """Return ``sum_nC`` and the outputs for ``x``."""
        return torch.addmm(sum_nC, x, self.weight_KN) if self.bias_N is None else sum_nC + self(x)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PackedLayer:
    """A layer by products of its own; make it with :func:`pack_layer`."""

    norms: Sequence[Any] | None
    """Of queries and of keys, where the decoder has them."""
    scaling: float
    before: Any
    """The norm."""
    qkv: Product
    out: Product
    behind: Any
    """The norm."""
    gate_up: Product
    act: Callable[[Tensor], Tensor]
    down: Product

    def holds(self) -> bool:
        """Tell whether the modules' parameters are still what was laid out, and have not been moved or converted."""
        if torch.compiler.is_compiling():
            return True
        first, laid = self.qkv.linears[0].weight, self.qkv.weight_KN
        return first.device == laid.device and first.dtype == laid.dtype and first.data_ptr() == laid.data_ptr()

    def attended(self, hidden_nC: Tensor) -> Tensor:
        """Return queries, keys and values [n, X D]."""
        return self.qkv(normalized(self.before, hidden_nC))

    def rest(self, hidden_nC: Tensor, read_nX: Tensor) -> Tensor:
        """Return the layer's output [n, C] from its input and what the heads have read."""
        hidden_nC = self.out.added(hidden_nC, read_nX)
        gate_nI, up_nI = self.gate_up(normalized(self.behind, hidden_nC)).chunk(2, dim=-1)
        return self.down.added(hidden_nC, self.act(gate_nI) * up_nI)


def pack_layer(layer: Any) -> LooseLayer | PackedLayer:
    """Lay out a layer's weights; return it by products of them, or as it is where its parts are no plain linear layers."""
    attention, mlp = layer.self_attn, layer.mlp
    groups = [
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    ]
    plain = all(type(linear) is nn.Linear for group in groups for linear in group)
    if not plain or any((linear.bias is None) != (group[0].bias is None) for group in groups for linear in group):
        return LooseLayer(layer)
    products = []
    for group, weight_NK in zip(groups, lay_side_by_side(groups), strict=True):
        products.append(Product(group, weight_NK.t(), _biases(group)))
    qkv, out, gate_up, down = products
    return PackedLayer(
        norms=_norms(attention),
        scaling=attention.scaling,
        before=layer.input_layernorm,
        qkv=qkv,
        out=out,
        behind=layer.post_attention_layernorm,
        gate_up=gate_up,
        act=mlp.act_fn,
        down=down,
    )


def _biases(group: Sequence[nn.Linear]) -> Tensor | None:
    """Lay the biases of a group behind each other."""
    biases: list[Any] = [linear.bias for linear in group]
    if biases[0] is None:
        return None
    bias_N = torch.cat([bias.detach() for bias in biases])
    for linear, part_N in zip(group, torch.split(bias_N, [linear.out_features for linear in group]), strict=True):
        linear.bias.data = part_N
    return bias_N


def _norms(attention: Any) -> Sequence[Any] | None:
    return (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None


def normalized(norm: Any, x: Tensor) -> Tensor:
    """Return what an RMS norm of the library returns, by one kernel where there is one."""
    return nn.functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _added(sum_nC: Tensor, linear: Any, x: Tensor) -> Tensor:
    """Return ``sum_nC + linear(x)``, the sum done by the product's kernel where that is all that ``linear`` does."""
    if type(linear) is nn.Linear and getattr(linear, "bias", None) is None:
        return torch.addmm(sum_nC, x, linear.weight.t())
    total_nC: Tensor = sum_nC + linear(x)
    return total_nC
