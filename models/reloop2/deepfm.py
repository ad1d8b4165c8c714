"""DeepFM (Guo et al., IJCAI 2017, arXiv 1703.04247): a factorisation machine and an MLP over the same embeddings."""

# B rows, F fields, D embedding width

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from models.reloop2.base import CtrModel, CtrOutput
from models.reloop2.config import DeepFMConfig
from models.reloop2.embeddings import FeatureEmbedding, LogisticRegression
from models.reloop2.feature_map import FeatureMap
from models.reloop2.layers import MLP

__all__ = ["DeepFM"]


class DeepFM(CtrModel):
    """Hidden vector: the MLP's last layer; the factorisation machine adds to the logit directly."""

    def __init__(self, config: DeepFMConfig, feature_map: FeatureMap) -> None:
        super().__init__(config, feature_map, config.hidden_units[-1])
        self.embedding_layer = FeatureEmbedding(feature_map, config.embedding_dim)
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP(
            len(feature_map) * config.embedding_dim,
            config.hidden_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
            output=True,
        )

    def forward(self, columns: Mapping[str, Tensor]) -> CtrOutput:
        """Map columns to hidden vector and logit."""
        fields_BFD = self.embedding_layer.fields(columns)
        hidden_BD = self.mlp.hidden(fields_BFD.flatten(1))
        return CtrOutput(hidden_BD, self.mlp.output(hidden_BD) + self.fm(columns, fields_BFD))


class FactorizationMachine(nn.Module):
    """First-order weights plus the sum of dot products of all pairs of fields (eq. 2)."""

    def __init__(self, feature_map: FeatureMap) -> None:
        super().__init__()
        self.lr_layer = LogisticRegression(feature_map, bias=True)

    def forward(self, columns: Mapping[str, Tensor], fields_BFD: Tensor) -> Tensor:
        """Return [B]."""
        pairs_BD = fields_BFD.sum(1).square() - fields_BFD.square().sum(1)
        first_B: Tensor = self.lr_layer(columns)
        return first_B + 0.5 * pairs_BD.sum(1)
