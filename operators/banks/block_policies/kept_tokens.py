"""A codec that stores the K tokens of a block that score highest, in their order. What a score means is the caller's policy.

Scissorhands scores by minus its unimportant counts. Keys are raw, so a kept token may take another position at use. Loses the
other tokens.
"""

# N blocks, G key/value heads, T tokens per block, K kept tokens, D head dim

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks.blocks.spec import BlockSpec, required
from operators.banks.slot_bank import RowSpec

__all__ = ["KeptTokensCodec", "highest"]


def highest(score_GT: Tensor, count: int) -> Tensor:
    """Return the positions of the ``count`` highest scores along the last dimension, ascending; of equal ones the later."""
    tokens = score_GT.shape[-1]
    # Sorted upside down: a stable sort then puts the later of two equal scores first.
    order_GT = tokens - 1 - score_GT.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    return order_GT[..., :count].sort(dim=-1).values


@dataclass(frozen=True, slots=True)
class KeptTokensCodec:
    """Keeps ``kept`` tokens per head. ``stats["score"]``: [N, G, T], or [N, 1, T] for all heads alike."""

    kept: int
    dtype: torch.dtype = torch.float32

    def fields(self, spec: BlockSpec) -> dict[str, RowSpec]:
        """Return ``keys`` and ``values``, [G, K, D]."""
        if not 1 <= self.kept <= spec.tokens:
            raise ConfigError(f"kept={self.kept} tokens of a block of {spec.tokens}; it must be from 1 to {spec.tokens}")
        row = RowSpec((spec.groups, self.kept, spec.dim), self.dtype)
        return {"keys": row, "values": row}

    def encode(self, keys_NGTD: Tensor, values_NGTD: Tensor, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pick the tokens."""
        index_NGK = highest(required(stats, "score").expand(keys_NGTD.shape[:3]), self.kept)
        index_NGKD = index_NGK[..., None].expand(*index_NGK.shape, keys_NGTD.shape[3])
        return {name: x.gather(2, index_NGKD).to(self.dtype) for name, x in (("keys", keys_NGTD), ("values", values_NGTD))}

    def decode(self, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the kept keys and values, [N, G, K, D]."""
        return fields["keys"], fields["values"]
