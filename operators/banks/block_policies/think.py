"""ThinK: key channels that queries hardly use are dropped (arXiv 2407.21018).

Keys in a bank are raw and are rotated at use, which mixes channel j with j + D/2: such a pair is kept or dropped together. The
question is unknown when a block is written, so the queries are those of recent frames.
"""

# N blocks, G key/value heads, W queries, T tokens per block, D head dim, P pairs (D/2), C kept channels

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from connectors.errors import ConfigError
from operators.banks.block_policies.kept_tokens import highest
from operators.banks.blocks.spec import BlockSpec, required
from operators.banks.slot_bank import RowSpec

__all__ = ["ThinKCodec", "channel_scores", "kept_channels"]


def channel_scores(query_squares_GD: Tensor, keys_GTD: Tensor) -> Tensor:
    """Return the score of each channel, [..., G, D]: mean square of the queries times mean square of the keys.

    That is the Frobenius norm, squared, of the channel's outer product, up to a constant factor. ``query_squares_GD``: mean of
    the squares over the window (32 queries in the paper's code), the heads that share keys and the queries alike.
    """
    return query_squares_GD.float() * keys_GTD.float().square().mean(-2)


def kept_channels(score_GD: Tensor, ratio: float) -> Tensor:
    """Return the channels that stay when ``floor(P * ratio)`` pairs (j, j + D/2) of lowest summed score go, [..., C].

    First the lower channels of all pairs, ascending, then the upper ones, so that the pairs of what stays are again C/2 apart.
    """
    half = score_GD.shape[-1] // 2
    pair_GP = score_GD[..., :half] + score_GD[..., half:]
    low_GP = highest(pair_GP, half - int(half * ratio))
    return torch.cat([low_GP, low_GP + half], dim=-1)


@dataclass(frozen=True, slots=True)
class ThinKCodec:
    """Stores keys without ``floor(D/2 * ratio)`` channel pairs per head, and values as they are.

    ``stats["query_squares"]`` [N, G, D] as in :func:`channel_scores`. Dropped channels are read as 0, so queries need no mask.
    """

    ratio: float = 0.4
    dtype: torch.dtype = torch.float32

    def fields(self, spec: BlockSpec) -> dict[str, RowSpec]:
        """Return ``keys`` [G, T, C], ``channels`` [G, C], ``width`` and ``values``."""
        if not 0 <= self.ratio < 1 or spec.dim % 2:
            raise ConfigError(f"ratio={self.ratio} with heads of {spec.dim}; ratio must be from 0 to less than 1, dim even")
        channels = 2 * (spec.dim // 2 - int(spec.dim // 2 * self.ratio))
        return {
            "keys": RowSpec((spec.groups, spec.tokens, channels), self.dtype),
            "channels": RowSpec((spec.groups, channels), torch.int16),
            "values": RowSpec((spec.groups, spec.tokens, spec.dim), self.dtype),
        }

    def encode(self, keys_NGTD: Tensor, values_NGTD: Tensor, stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop channels."""
        channels_NGC = kept_channels(channel_scores(required(stats, "query_squares"), keys_NGTD), self.ratio)
        kept_NGTC = keys_NGTD.gather(3, channels_NGC[:, :, None].expand(*keys_NGTD.shape[:3], channels_NGC.shape[2]))
        return {
            "keys": kept_NGTC.to(self.dtype),
            "channels": channels_NGC.to(torch.int16),
            "values": values_NGTD.to(self.dtype),
        }

    def decode(self, fields: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return keys, 0 where a channel was dropped, and values."""
        kept_NGTC, values_NGTD = fields["keys"], fields["values"]
        index_NGTC = fields["channels"].long()[:, :, None].expand_as(kept_NGTC)
        return torch.zeros_like(values_NGTD).scatter_(3, index_NGTC, kept_NGTC), values_NGTD
