"""DCN-V2 (Wang et al., WWW 2021, arXiv 2008.13535): full-rank cross layers with an MLP beside or on top of them."""

# B rows, D width

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.reloop2.base import CtrModel, CtrOutput
from models.reloop2.config import DCNv2Config
from models.reloop2.embeddings import FeatureEmbedding
from models.reloop2.feature_map import FeatureMap
from models.reloop2.layers import MLP, CrossNet

__all__ = ["DCNv2"]


class DCNv2(CtrModel):
    """Hidden vector: ``[cross, mlp]`` of the parallel structure, the MLP's last layer of the stacked one."""

    def __init__(self, config: DCNv2Config, feature_map: FeatureMap) -> None:
        width = len(feature_map) * config.embedding_dim
        parallel = config.structure == "parallel"
        super().__init__(config, feature_map, config.hidden_units[-1] + (width if parallel else 0))
        self.parallel = parallel
        self.embedding_layer = FeatureEmbedding(feature_map, config.embedding_dim)
        self.crossnet = CrossNet(width, config.cross_layers)
        mlp = MLP(
            width,
            config.hidden_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
            output=False,
        )
        if parallel:
            self.parallel_dnn = mlp
        else:
            self.stacked_dnn = mlp
        self.fc = nn.Linear(self.hidden_dim, 1)

    def forward(self, columns: Mapping[str, Tensor]) -> CtrOutput:
        """Map columns to hidden vector and logit."""
        x_BD = self.embedding_layer.fields(columns).flatten(1)
        hidden_BD: Tensor = self.crossnet(x_BD)
        if self.parallel:
            hidden_BD = torch.cat([hidden_BD, self.parallel_dnn.hidden(x_BD)], dim=1)
        else:
            hidden_BD = self.stacked_dnn.hidden(hidden_BD)
        return CtrOutput(hidden_BD, self.fc(hidden_BD)[:, 0])
