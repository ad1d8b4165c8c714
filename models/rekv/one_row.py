"""One question's tokens on a CPU: the decoder's layers over rows of memory that are made once, with half as many calls.

A step of one token is bound by the memory's speed and by the number of calls; here what can be is done in place, and all
views of it are made before the first token. The numbers are those of the general way, up to rounding.
"""

# X heads of queries, keys and values, H query heads, G key/value heads, R heads per group, M rows of a context, D head dim

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.rekv.decoder import TextDecoder
from models.rekv.layers import PackedLayer, normalized
from models.rekv.rotary import Turn

__all__ = ["OneRow"]


class _Weights(NamedTuple):
    """Of a layer."""

    before_C: Tensor
    before_epsilon: float
    qkv: tuple[Tensor, int]
    """Biases, and 1; where there are none, a number and 0."""
    qkv_KN: Tensor
    scaling: float
    out_KN: Tensor
    behind_C: Tensor
    behind_epsilon: float
    gate_up: tuple[Tensor, int]
    gate_up_KN: Tensor
    act: Callable[[Tensor], Tensor]
    down_KN: Tensor

    @staticmethod
    def of(layer: PackedLayer) -> _Weights:
        qkv, gate_up = (
            (torch.zeros(1), 0) if product.bias_N is None else (product.bias_N, 1) for product in (layer.qkv, layer.gate_up)
        )
        return _Weights(
            layer.before.weight,
            layer.before.variance_epsilon,
            qkv,
            layer.qkv.weight_KN,
            layer.scaling,
            layer.out.weight_KN,
            layer.behind.weight,
            layer.behind.variance_epsilon,
            gate_up,
            layer.gate_up.weight_KN,
            layer.act,
            layer.down.weight_KN,
        )


class OneRow:
    """Reads token after token into a context."""

    def __init__(
        self,
        decoder: TextDecoder,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        starts: Sequence[int],
        turns: Sequence[Turn],
    ) -> None:
        """Per layer: ``keys`` and ``values`` [1, G, M, D], the row of the first token, and the rotations from there on."""
        heads, groups, dim = decoder.heads, decoder.groups, decoder.dim
        self._decoder, self._read = decoder, 0
        self._starts = starts
        rows = {id(turn): (turn.cos_ND.unbind(), turn.sin_ND.unbind()) for turn in turns}
        self._turns = [rows[id(turn)] for turn in turns]
        self._keys = [held_1GMD.transpose(0, 1) for held_1GMD in keys]
        self._values = [held_1GMD.transpose(0, 1) for held_1GMD in values]
        self._layers = [_Weights.of(layer) for layer in decoder.packs if isinstance(layer, PackedLayer)]
        width, inner = self._layers[0].before_C.shape[0], self._layers[0].down_KN.shape[0]
        self._hidden_1C, self._normal_1C = torch.empty(1, width), torch.empty(1, width)
        self._row_C = self._hidden_1C[0]
        self._rows_1N = torch.empty(1, (heads + 2 * groups) * dim)
        rows_XD = self._rows_1N.view(-1, dim)
        self._both_YD, self._value_G1D = rows_XD[: heads + groups], rows_XD[heads + groups :].unsqueeze(1)
        self._swapped = torch.arange(dim).roll(dim // 2)
        self._other_YD, self._turned_YD = torch.empty_like(self._both_YD), torch.empty_like(self._both_YD)
        self._key_G1D = self._turned_YD[heads:].unsqueeze(1)
        self._query_G1RD = self._turned_YD[:heads].view(groups, 1, -1, dim)
        self._inner_1N = torch.empty(1, 2 * inner)
        self._gate_1I, self._up_1I = self._inner_1N.chunk(2, dim=1)

    @staticmethod
    def fits(decoder: TextDecoder) -> bool:
        """Tell whether it knows all that the layers do: packed on a CPU in float32, nothing between products and rotation."""
        layers = decoder.packs
        if not layers or decoder.device.type != "cpu" or decoder.dtype != torch.float32 or decoder.rotary.factor != 1:
            return False
        return all(
            isinstance(layer, PackedLayer)
            and layer.holds()
            and layer.norms is None
            and layer.out.bias_N is None
            and layer.down.bias_N is None
            for layer in layers
        )

    def __call__(self, next_1: Tensor) -> Tensor:
        """Read a token; return the logits [1, V] of the next."""
        decoder, read = self._decoder, self._read
        hidden_1C, normal_1C, row_C, rows_1N = self._hidden_1C, self._normal_1C, self._row_C, self._rows_1N
        both_YD, other_YD, turned_YD, swapped = self._both_YD, self._other_YD, self._turned_YD, self._swapped
        key_G1D, value_G1D, query_G1RD = self._key_G1D, self._value_G1D, self._query_G1RD
        inner_1N, gate_1I, up_1I = self._inner_1N, self._gate_1I, self._up_1I
        width = hidden_1C.shape[1]
        dot, mul, addmm, index_select = torch.dot, torch.mul, torch.addmm, torch.index_select
        hidden_1C.copy_(decoder.embed(next_1))
        for index, one in enumerate(self._layers):
            at, (cosines, sines) = self._starts[index] + read, self._turns[index]
            mul(hidden_1C, one.before_C, out=normal_1C)
            scale = (dot(row_C, row_C).item() / width + one.before_epsilon) ** -0.5
            bias_N, beta = one.qkv
            addmm(bias_N, normal_1C, one.qkv_KN, beta=beta, alpha=scale, out=rows_1N)
            index_select(both_YD, 1, swapped, out=other_YD)
            mul(both_YD, cosines[read], out=turned_YD)
            turned_YD.addcmul_(other_YD, sines[read])
            keys_G1MD, values_G1MD = self._keys[index], self._values[index]
            keys_G1MD.select(2, at).copy_(key_G1D)
            values_G1MD.select(2, at).copy_(value_G1D)
            # Groups as a batch: what the kernel returns is in the order of heads.
            output_G1RD = F.scaled_dot_product_attention(
                query_G1RD, keys_G1MD.narrow(2, 0, at + 1), values_G1MD.narrow(2, 0, at + 1), scale=one.scaling
            )
            hidden_1C.addmm_(output_G1RD.view(1, -1), one.out_KN)
            mul(hidden_1C, one.behind_C, out=normal_1C)
            scale = (dot(row_C, row_C).item() / width + one.behind_epsilon) ** -0.5
            bias_N, beta = one.gate_up
            addmm(bias_N, normal_1C, one.gate_up_KN, beta=beta, alpha=scale, out=inner_1N)
            hidden_1C.addmm_(one.act(gate_1I).mul_(up_1I), one.down_KN)
        self._read += 1
        return decoder.logits(normalized(decoder.module.norm, hidden_1C))
