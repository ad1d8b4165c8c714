"""SDIM (Cao et al., CIKM 2022, arXiv 2205.10249): long histories read by hash collisions with the target.

An entry counts for a target where one of its hash signatures equals the target's: the interest is the mean, over signatures, of
the (normalized) sum of the colliding entries. Recent entries are read by multi-head attention as well. Here a whole history
comes with every row; the streaming form that keeps bucket sums per user is the operator's bank.
"""

# B rows, T history length, H signatures, L bits, D width of a history entry, A attention width, N heads

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.reloop2.base import CtrModel, CtrOutput
from models.reloop2.config import SDIMConfig
from models.reloop2.din import check_target_fields
from models.reloop2.embeddings import FeatureEmbedding
from models.reloop2.feature_map import FeatureMap
from models.reloop2.layers import MLP

__all__ = ["SDIM", "hash_interest", "signatures"]

_MASKED = -1e9  # finite: a window without entries gives equal weights over zero vectors, not NaN


def signatures(x: Tensor, rotations_DHL: Tensor) -> Tensor:
    """Return the hash signatures of vectors [..., D] as int64 [..., H]: bit l is set where projection l is above 0."""
    bits = torch.einsum("...d,dhl->...hl", x, rotations_DHL) > 0
    return (bits * (2 ** torch.arange(rotations_DHL.shape[2], device=x.device))).sum(-1)


def hash_interest(target_BH: Tensor, history_BTH: Tensor, history_BTD: Tensor, held_BT: Tensor, *, l2_norm: bool) -> Tensor:
    """Return the mean over signatures of the sum of colliding entries, [B, D] (eq. 9; ``l2_norm``: of normalized sums)."""
    hit_BTH = ((history_BTH == target_BH[:, None]) & held_BT[:, :, None]).to(history_BTD.dtype)
    sums_BHD = torch.einsum("bth,btd->bhd", hit_BTH, history_BTD)
    if l2_norm:
        sums_BHD = F.normalize(sums_BHD, dim=2)
    return sums_BHD.mean(1)


class SDIM(CtrModel):
    """Hidden vector: the MLP's last layer over [other features, target, long-term interest, short-term interest]."""

    random_rotations: Tensor
    """[1, D, H, L]: fixed draws, part of the checkpoint."""

    def __init__(self, config: SDIMConfig, feature_map: FeatureMap) -> None:
        check_target_fields(feature_map, config.target_fields, config.sequence_fields)
        super().__init__(config, feature_map, config.hidden_units[-1])
        self.settings = config
        taken = {*config.target_fields, *config.sequence_fields}
        self.others = [name for name in feature_map.names if name not in taken]
        self.register_buffer("random_rotations", torch.randn(1, config.item_dim, config.num_hashes, config.hash_bits))
        self.embedding_layer = FeatureEmbedding(feature_map, config.embedding_dim)
        self.short_attention = MultiHeadTargetAttention(config)
        self.dnn = MLP(
            len(self.others) * config.embedding_dim + 3 * config.item_dim,
            config.hidden_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
            output=True,
        )

    def forward(self, columns: Mapping[str, Tensor]) -> CtrOutput:
        """Map columns to hidden vector and logit."""
        settings = self.settings
        target_BD = self.embedding_layer.concat(columns, settings.target_fields)
        history_BTD = self.embedding_layer.concat(columns, settings.sequence_fields)
        first = settings.sequence_fields[0]
        held_BT = columns[first] != self.feature_map[first].padding_idx
        parts = [self.embedding_layer.fields(columns, self.others).flatten(1)] if self.others else []
        parts += [target_BD, self._long(target_BD, history_BTD, held_BT), self._short(target_BD, history_BTD, held_BT)]
        hidden_BD = self.dnn.hidden(torch.cat(parts, dim=1))
        return CtrOutput(hidden_BD, self.dnn.output(hidden_BD))

    def _short(self, target_BD: Tensor, history_BTD: Tensor, held_BT: Tensor) -> Tensor:
        start = max(0, history_BTD.shape[1] - self.settings.short_seq_len)
        if self.settings.compat == "fuxictr":
            start += 1  # its window counts the target as an entry,
            held_BT = F.pad(held_BT, (1, 0))[:, :-1]  # and position j + 1 is masked as position j should be
        short_BD: Tensor = self.short_attention(target_BD, history_BTD[:, start:], held_BT[:, start:])
        return short_BD

    def _long(self, target_BD: Tensor, history_BTD: Tensor, held_BT: Tensor) -> Tensor:
        rotations_DHL = self.random_rotations[0]
        target_BH, history_BTH = signatures(target_BD, rotations_DHL), signatures(history_BTD, rotations_DHL)
        return hash_interest(target_BH, history_BTH, history_BTD, held_BT, l2_norm=self.settings.l2_norm)


class MultiHeadTargetAttention(nn.Module):
    """Scaled dot-product attention of the target over a window of its history."""

    def __init__(self, config: SDIMConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        width = config.attention_dim if config.projections else config.item_dim
        self.scale = (width // config.num_heads) ** -0.5 if config.use_scale else 1.0
        self.projections = config.projections
        self.dropout = nn.Dropout(config.attention_dropout)
        if config.projections:
            self.W_q, self.W_k, self.W_v = (nn.Linear(config.item_dim, width, bias=False) for _ in range(3))
            self.W_o = nn.Linear(width, config.item_dim, bias=False)

    def forward(self, target_BD: Tensor, history_BTD: Tensor, held_BT: Tensor) -> Tensor:
        """Return [B, D]."""
        query, key, value = target_BD, history_BTD, history_BTD
        if self.projections:
            query, key, value = self.W_q(query), self.W_k(key), self.W_v(value)
        query_BNA = query.view(len(query), self.heads, -1)
        key_BTNA, value_BTNA = (part.view(*part.shape[:2], self.heads, -1) for part in (key, value))
        score_BNT = torch.einsum("bna,btna->bnt", query_BNA, key_BTNA) * self.scale
        weight_BNT = self.dropout(score_BNT.masked_fill(~held_BT[:, None], _MASKED).softmax(2))
        read_BD = torch.einsum("bnt,btna->bna", weight_BNT, value_BTNA).flatten(1)
        if self.projections:
            read_BD = self.W_o(read_BD)
        return read_BD
