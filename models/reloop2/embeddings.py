"""Embedding tables by feature, tied where features share one, and the mean pooling of histories.

The padding row of every table is zero and stays zero. Knows no network.
"""

# B rows, T history length, F fields, D embedding width

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from models.reloop2.feature_map import Feature, FeatureMap

__all__ = ["FeatureEmbedding", "LogisticRegression"]

_INITIAL_STD = 1e-4  # FuxiCTR's; large embeddings of rare values would be noise


class FeatureEmbedding(nn.Module):
    """One table [vocab_size, dim] per categorical feature, one row of weights per numeric feature."""

    def __init__(self, feature_map: FeatureMap, dim: int, *, share: bool = True) -> None:
        """``share=False`` gives features that name another one's table a table of their own."""
        super().__init__()
        self.feature_map = feature_map
        self._table_of = {feature.name: feature.table if share else feature.name for feature in feature_map}
        self.embedding_layers = nn.ModuleDict()
        for feature in feature_map:
            if self._table_of[feature.name] == feature.name:
                # Not by ModuleDict's own setter: it refuses names like "type" and "items", which features have.
                self.embedding_layers._modules[feature.name] = _table(feature, dim)

    def one(self, name: str, column: Tensor) -> Tensor:
        """Embed one feature: [B, D], or [B, T, D] for a history."""
        table = self.embedding_layers[self._table_of[name]]
        embedded: Tensor = table(column[:, None] if isinstance(table, nn.Linear) else column)
        return embedded

    def pooled(self, name: str, column: Tensor) -> Tensor:
        """Embed one feature to [B, D]; a history is the mean of its entries, zero where it is empty."""
        feature = self.feature_map[name]
        embedded = self.one(name, column)
        if feature.kind != "sequence":
            return embedded
        held_BT = (column != feature.padding_idx).to(embedded.dtype)
        return torch.einsum("btd,bt->bd", embedded, held_BT) / held_BT.sum(1, keepdim=True).clamp_min(1)

    def fields(self, columns: Mapping[str, Tensor], names: Iterable[str] | None = None) -> Tensor:
        """Embed features (all of the map by default) side by side, [B, F, D]."""
        wanted = self._table_of if names is None else names
        return torch.stack([self.pooled(name, columns[name]) for name in wanted], dim=1)

    def concat(self, columns: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
        """Embed features of one kind unpooled, joined in the last dimension: [B, F·D] or [B, T, F·D]."""
        return torch.cat([self.one(name, columns[name]) for name in names], dim=-1)


class LogisticRegression(nn.Module):
    """First-order term: one weight per value of every feature (histories: their mean), and possibly a bias."""

    bias: nn.Parameter | None

    def __init__(self, feature_map: FeatureMap, *, bias: bool) -> None:
        super().__init__()
        self.embedding_layer = FeatureEmbedding(feature_map, 1, share=False)
        self.register_parameter("bias", nn.Parameter(torch.zeros(1)) if bias else None)

    def forward(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Return [B]."""
        first_B = self.embedding_layer.fields(columns).sum((1, 2))
        return first_B if self.bias is None else first_B + self.bias


def _table(feature: Feature, dim: int) -> nn.Module:
    if feature.kind == "numeric":
        return nn.Linear(1, dim, bias=False)
    table = nn.Embedding(feature.vocab_size, dim, padding_idx=feature.padding_idx)
    with torch.no_grad():
        nn.init.normal_(table.weight, std=_INITIAL_STD)
        table.weight[feature.padding_idx] = 0
    return table
