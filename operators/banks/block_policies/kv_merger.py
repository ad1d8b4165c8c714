"""KVMerger: neighboring tokens with similar keys become one, weighted around a pivot (arXiv 2407.08454).

Works on raw keys. A merged token stands for several, but attention gives it the weight of one.
"""

# N blocks, G key/value heads, T tokens per block, K merged tokens, D head dim

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks.block_policies.kept_tokens import highest
from operators.banks.blocks.spec import BlockSpec, required
from operators.banks.slot_bank import RowSpec

__all__ = ["KVMergerCodec", "merge_sets", "merge_tokens"]


def merge_sets(keys_GTD: Tensor, protected_GT: Tensor, kept: int) -> Tensor:
    """Return which of ``kept`` sets each token belongs to, int64 [..., T], ascending from 0: runs of similar neighbors.

    Neighbors join where the cosine of their keys is at least a threshold, except ``protected`` ones (heavy hitters). The paper
    looks for the threshold that gives a wanted size by bisection; here the ``T - kept`` most similar pairs join, which is that
    threshold, and still exact where similarities are equal. Protected tokens join only where too few others are left.
    """
    tokens = keys_GTD.shape[-2]
    unit_GTD = F.normalize(keys_GTD.float(), dim=-1)
    likeness_GJ = (unit_GTD[..., 1:, :] * unit_GTD[..., :-1, :]).sum(-1)
    free_GT = ~protected_GT
    likeness_GJ = torch.where(free_GT[..., 1:] & free_GT[..., :-1], likeness_GJ, likeness_GJ - 4.0)
    joined_GJ = torch.zeros_like(likeness_GJ, dtype=torch.bool).scatter_(-1, highest(likeness_GJ, tokens - kept), True)
    return F.pad((~joined_GJ).long(), (1, 0)).cumsum(-1)


def merge_tokens(
    keys_GTD: Tensor, values_GTD: Tensor, attention_GT: Tensor, set_GT: Tensor, kept: int, *, scale_values: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the tokens of each set; return keys [..., K, D], values [..., K, D] and set sizes [..., K], in float32.

    The pivot p of a set is its token with the highest summed attention, of equal ones the earlier. Weights are g_i / sum g with
    g_i = exp(-|k_i - k_p|^2 / (2 sigma^2)) and sigma = mean(g) / sqrt(2). The definition is circular: the g of that mean takes
    the set's mean squared distance as sigma^2 (the reading of the third-party code). ``scale_values``: values are weighted by
    the set's size as well, as the paper writes.
    """
    shape = (*set_GT.shape[:-1], kept)
    keys_GTD, values_GTD = keys_GTD.float(), values_GTD.float()

    def total(x_GT: Tensor) -> Tensor:
        return x_GT.new_zeros(shape).scatter_add_(-1, set_GT, x_GT)

    size_GK = total(torch.ones_like(attention_GT, dtype=torch.float32))
    most_GK = attention_GT.new_full(shape, -torch.inf).scatter_reduce_(-1, set_GT, attention_GT, "amax")
    position_GT = torch.arange(set_GT.shape[-1], device=set_GT.device).expand_as(set_GT)
    candidate_GT = torch.where(attention_GT == most_GK.gather(-1, set_GT), position_GT, set_GT.shape[-1])
    pivot_GK = candidate_GT.new_full(shape, set_GT.shape[-1]).scatter_reduce_(-1, set_GT, candidate_GT, "amin")
    pivot_GT = pivot_GK.gather(-1, set_GT)
    distance_GT = (keys_GTD - keys_GTD.gather(-2, pivot_GT[..., None].expand_as(keys_GTD))).square().sum(-1)
    tiny = torch.finfo(torch.float32).tiny
    spread_GT = (total(distance_GT) / size_GK).gather(-1, set_GT).clamp_min(tiny)
    mean_GK = total(torch.exp(-distance_GT / (2 * spread_GT))) / size_GK
    sigma_GT = mean_GK.gather(-1, set_GT) / math.sqrt(2)
    gauss_GT = torch.exp(-distance_GT / (2 * sigma_GT.square()))
    weight_GT = gauss_GT / total(gauss_GT).gather(-1, set_GT)

    def merged(x_GTD: Tensor, weight_GT: Tensor) -> Tensor:
        return x_GTD.new_zeros((*shape, x_GTD.shape[-1])).scatter_add_(
            -2, set_GT[..., None].expand_as(x_GTD), x_GTD * weight_GT[..., None]
        )

    value_weight_GT = weight_GT * size_GK.gather(-1, set_GT) if scale_values else weight_GT
    return merged(keys_GTD, weight_GT), merged(values_GTD, value_weight_GT), size_GK


@dataclass(frozen=True, slots=True)
class KVMergerCodec:
    """Stores ``kept`` merged tokens per head.

    ``stats["attention"]`` [N, G, T] (or [N, 1, T]): attention received, summed over queries. The ``heavy`` tokens that received
    most are protected.
    """

    kept: int
    heavy: int = 0
    scale_values: bool = False
    dtype: torch.dtype = torch.float32

    def fields(self, spec: BlockSpec) -> dict[str, RowSpec]:
        """Return ``keys`` and ``values``, [G, K, D]."""
        if not 1 <= self.kept <= spec.tokens or not 0 <= self.heavy < self.kept:
            raise ConfigError(
                f"kept={self.kept}, heavy={self.heavy} for blocks of {spec.tokens} tokens; kept must be from 1 to "
                f"{spec.tokens} and heavy from 0 to less than kept"
            )
        row = RowSpec((spec.groups, self.kept, spec.dim), self.dtype)
        return {"keys": row, "values": row}

    def encode(self, keys_NGTD: Tensor, values_NGTD: Tensor, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merge."""
        attention_NGT = required(stats, "attention").float().expand(keys_NGTD.shape[:3])
        protected_NGT = torch.zeros_like(attention_NGT, dtype=torch.bool)
        protected_NGT.scatter_(-1, highest(attention_NGT, self.heavy), True)
        set_NGT = merge_sets(keys_NGTD, protected_NGT, self.kept)
        keys, values, _ = merge_tokens(
            keys_NGTD, values_NGTD, attention_NGT, set_NGT, self.kept, scale_values=self.scale_values
        )
        return {"keys": keys.to(self.dtype), "values": values.to(self.dtype)}

    def decode(self, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the merged keys and values, [N, G, K, D]."""
        return fields["keys"], fields["values"]
