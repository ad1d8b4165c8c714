"""Block floating point with K-sort: n numbers share an exponent, channels are sorted so that outliers meet (arXiv 2403.20137).

The paper sorts the rows of the key projection by norm, once, and the query projection alike. Here a block's own keys are sorted
by their channels' norms and put back when they are read, so that queries stay as they are; pairs (j, j + D/2) that rotation
mixes move together. Loses precision: about 3 bits and a sign stay of each number.
"""

# N blocks, G key/value heads, T tokens per block, D head dim, P pairs (D/2), E exponents per row

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks.blocks.spec import BlockSpec
from operators.banks.slot_bank import RowSpec

__all__ = ["BlockFloatCodec", "from_block_float", "sorted_pairs", "to_block_float"]

_TOP = 7  # largest 4-bit mantissa; -8 is not used, so that the grid is symmetric
_MIN_EXPONENT, _MAX_EXPONENT = -120, 127  # so that every power of two on the way is a normal float32


def sorted_pairs(keys_GTD: Tensor) -> Tensor:
    """Return an order of the channels, [..., G, D]: pairs (j, j + D/2) by falling norm over the tokens, side by side."""
    half = keys_GTD.shape[-1] // 2
    square_GD = keys_GTD.float().square().sum(-2)
    norm_GP = square_GD[..., :half] + square_GD[..., half:]
    low_GP = norm_GP.sort(dim=-1, descending=True, stable=True).indices
    return torch.stack([low_GP, low_GP + half], dim=-1).flatten(-2)


def to_block_float(x_D: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return 4-bit mantissas, two to a byte [..., D/2] uint8, and exponents [..., D/block] int8, of numbers [..., D].

    The exponent e of a block is that of its largest number, 2^e <= max|x| < 2^(e+1); its numbers are m * 2^(e-2) with whole
    m of -7..7, rounded half to even. Infinities become the largest number, NaN 0.
    """
    x_D = torch.nan_to_num(x_D.float())
    x_En = x_D.reshape(*x_D.shape[:-1], -1, block)
    exponent_E = torch.frexp(x_En.abs().amax(-1)).exponent - 1
    exponent_E = exponent_E.clamp(_MIN_EXPONENT, _MAX_EXPONENT)
    mantissa_En = torch.ldexp(x_En, 2 - exponent_E[..., None]).round().clamp(-_TOP, _TOP)
    nibble_D = (mantissa_En.flatten(-2).to(torch.int16) & 0xF).to(torch.uint8)
    return nibble_D[..., 0::2] | (nibble_D[..., 1::2] << 4), exponent_E.to(torch.int8)


def from_block_float(packed: Tensor, exponent_E: Tensor) -> Tensor:
    """Return the numbers [..., D] in float32 that :func:`to_block_float` stands for."""
    nibble_V = torch.arange(16, device=packed.device)
    mantissa_V = (nibble_V - 16 * (nibble_V > _TOP)).float()
    pairs_V2 = torch.cartesian_prod(mantissa_V, mantissa_V).flip(-1)  # the two numbers that each byte holds
    mantissa_D = pairs_V2.index_select(0, packed.flatten().int())
    step_E = torch.ldexp(torch.ones_like(exponent_E, dtype=torch.float32), exponent_E.int() - 2)
    return (mantissa_D.view(*exponent_E.shape, -1) * step_E[..., None]).flatten(-2)


@dataclass(frozen=True, slots=True)
class BlockFloatCodec:
    """Stores keys in block floating point along the head dimension after K-sort, and values as they are.

    ``block``: numbers that share an exponent. The paper finds no gain of sorting where it is the whole head, but for 64 and 32.
    """

    block: int = 32
    dtype: torch.dtype = torch.float32

    def fields(self, spec: BlockSpec) -> dict[str, RowSpec]:
        """Return ``mantissas``, ``exponents``, ``order`` and ``values``."""
        if self.block < 2 or self.block % 2 or spec.dim % self.block:
            raise ConfigError(f"block={self.block} with heads of {spec.dim}; block must be even and divide the head's width")
        return {
            "mantissas": RowSpec((spec.groups, spec.tokens, spec.dim // 2), torch.uint8),
            "exponents": RowSpec((spec.groups, spec.tokens, spec.dim // self.block), torch.int8),
            "order": RowSpec((spec.groups, spec.dim), torch.int16),
            "values": RowSpec((spec.groups, spec.tokens, spec.dim), self.dtype),
        }

    def encode(self, keys_NGTD: Tensor, values_NGTD: Tensor, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sort and round."""
        order_NGD = sorted_pairs(keys_NGTD)
        sorted_NGTD = keys_NGTD.gather(3, order_NGD[:, :, None].expand_as(keys_NGTD))
        mantissas, exponents = to_block_float(sorted_NGTD, self.block)
        return {
            "mantissas": mantissas,
            "exponents": exponents,
            "order": order_NGD.to(torch.int16),
            "values": values_NGTD.to(self.dtype),
        }

    def decode(self, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return keys, rounded, in their own order of channels, and values."""
        sorted_NGTD = from_block_float(fields["mantissas"], fields["exponents"])
        place_NGD = fields["order"].argsort(dim=-1)
        keys_NGTD = sorted_NGTD.to(self.dtype).gather(3, place_NGD[:, :, None].expand_as(sorted_NGTD))
        return keys_NGTD, fields["values"]
