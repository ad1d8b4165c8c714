"""FiBiNET (Huang et al., RecSys 2019, arXiv 1905.09433): field importance by squeeze and excitation, bilinear pairs."""

# B rows, F fields, P pairs of fields, D embedding width

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from connectors.errors import ConfigError
from models.reloop2.base import CtrModel, CtrOutput
from models.reloop2.config import FiBiNETConfig
from models.reloop2.embeddings import FeatureEmbedding, LogisticRegression
from models.reloop2.feature_map import FeatureMap
from models.reloop2.layers import MLP, make_activation

__all__ = ["FiBiNET"]


class FiBiNET(CtrModel):
    """Hidden vector: the MLP's last layer; the first-order term adds to the logit directly."""

    def __init__(self, config: FiBiNETConfig, feature_map: FeatureMap) -> None:
        fields = len(feature_map)
        if fields < 2:
            raise ConfigError(f"FiBiNET works on pairs of features; the feature map has only {feature_map.names}")
        super().__init__(config, feature_map, config.hidden_units[-1])
        self.embedding_layer = FeatureEmbedding(feature_map, config.embedding_dim)
        self.senet_layer = SqueezeExcitation(fields, config.reduction_ratio, config.excitation)
        self.bilinear_interaction1 = Bilinear(fields, config.embedding_dim, config.bilinear)
        self.bilinear_interaction2 = Bilinear(fields, config.embedding_dim, config.bilinear)
        self.lr_layer = LogisticRegression(feature_map, bias=False)
        self.dnn = MLP(
            fields * (fields - 1) * config.embedding_dim,
            config.hidden_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
            output=True,
        )

    def forward(self, columns: Mapping[str, Tensor]) -> CtrOutput:
        """Map columns to hidden vector and logit."""
        fields_BFD = self.embedding_layer.fields(columns)
        plain_BPD = self.bilinear_interaction1(fields_BFD)
        weighted_BPD = self.bilinear_interaction2(self.senet_layer(fields_BFD))
        hidden_BD = self.dnn.hidden(torch.cat([plain_BPD, weighted_BPD], dim=1).flatten(1))
        return CtrOutput(hidden_BD, self.dnn.output(hidden_BD) + self.lr_layer(columns))


class SqueezeExcitation(nn.Module):
    """Scale every field by a weight learned from the means of all fields (§3.2)."""

    def __init__(self, fields: int, ratio: int, activation: str) -> None:
        super().__init__()
        reduced = max(1, fields // ratio)
        self.excitation = nn.Sequential(
            nn.Linear(fields, reduced, bias=False),
            nn.ReLU(),
            nn.Linear(reduced, fields, bias=False),
            make_activation(activation, fields),
        )

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Return [B, F, D]."""
        weight_BF: Tensor = self.excitation(fields_BFD.mean(2))
        return fields_BFD * weight_BF[:, :, None]


class Bilinear(nn.Module):
    """(v_i W) ⊙ v_j for all pairs i < j (§3.3); W is one, one per field i, or one per pair."""

    pairs_2P: Tensor

    def __init__(self, fields: int, dim: int, kind: str) -> None:
        super().__init__()
        pairs = fields * (fields - 1) // 2
        shape = {"field_all": (dim, dim), "field_each": (fields, dim, dim), "field_interaction": (pairs, dim, dim)}[kind]
        self.kind = kind
        self.bilinear_W = nn.Parameter(torch.empty(shape))
        for matrix in self.bilinear_W.view(-1, dim, dim).unbind():
            nn.init.xavier_normal_(matrix.detach())
        self.register_buffer("pairs_2P", torch.triu_indices(fields, fields, offset=1), persistent=False)

    def forward(self, fields_BFD: Tensor) -> Tensor:
        """Return [B, P, D], pairs in the order (0,1), (0,2), …, (1,2), …"""
        left, right = self.pairs_2P.unbind()
        if self.kind == "field_interaction":
            left_BPD = torch.einsum("bpd,pde->bpe", fields_BFD[:, left], self.bilinear_W)
        elif self.kind == "field_each":
            left_BPD = torch.einsum("bfd,fde->bfe", fields_BFD, self.bilinear_W)[:, left]
        else:
            left_BPD = (fields_BFD @ self.bilinear_W)[:, left]
        return left_BPD * fields_BFD[:, right]
