"""Deep Interest Network (Zhou et al., KDD 2018, arXiv 1706.06978): histories are read by attention of the target."""

# B rows, T history length, D width

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from connectors.errors import ConfigError
from models.reloop2.base import CtrModel, CtrOutput
from models.reloop2.config import DINConfig
from models.reloop2.embeddings import FeatureEmbedding
from models.reloop2.feature_map import FeatureMap
from models.reloop2.layers import MLP

__all__ = ["DIN", "check_target_fields"]

_MASKED = -1e9  # finite: a history without entries gives equal weights over zero vectors, not NaN


class DIN(CtrModel):
    """Hidden vector: the MLP's last layer. Histories that no target attends over are averaged."""

    def __init__(self, config: DINConfig, feature_map: FeatureMap) -> None:
        for targets, sequences in zip(config.target_fields, config.sequence_fields, strict=True):
            check_target_fields(feature_map, targets, sequences)
        super().__init__(config, feature_map, config.hidden_units[-1])
        self.groups = tuple(zip(config.target_fields, config.sequence_fields, strict=True))
        self.embedding_layer = FeatureEmbedding(feature_map, config.embedding_dim)
        self.attention_layers = nn.ModuleList(
            TargetAttention(len(targets) * config.embedding_dim, config) for targets in config.target_fields
        )
        self.dnn = MLP(
            len(feature_map) * config.embedding_dim,
            config.hidden_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
            output=True,
        )

    def forward(self, columns: Mapping[str, Tensor]) -> CtrOutput:
        """Map columns to hidden vector and logit."""
        fields: dict[str, Tensor] = {}
        for (targets, sequences), attention in zip(self.groups, self.attention_layers, strict=True):
            target_BD = self.embedding_layer.concat(columns, targets)
            history_BTD = self.embedding_layer.concat(columns, sequences)
            held_BT = columns[sequences[0]] != self.feature_map[sequences[0]].padding_idx
            interest_BD = attention(target_BD, history_BTD, held_BT)
            fields |= zip(sequences, interest_BD.chunk(len(sequences), dim=1), strict=True)
        for name in self.feature_map.names:
            if name not in fields:
                fields[name] = self.embedding_layer.pooled(name, columns[name])
        x_BD = torch.cat([fields[name] for name in self.feature_map.names], dim=1)
        hidden_BD = self.dnn.hidden(x_BD)
        return CtrOutput(hidden_BD, self.dnn.output(hidden_BD))


class TargetAttention(nn.Module):
    """Weights from an MLP over [target, entry, target - entry, target · entry] (§4.3; the minus is the authors' code)."""

    def __init__(self, dim: int, config: DINConfig) -> None:
        super().__init__()
        self.softmax = config.softmax
        self.attention_layer = MLP(
            4 * dim,
            config.attention_units,
            activation=config.attention_activation,
            batch_norm=False,
            dropout=config.attention_dropout,
            output=True,
        )

    def forward(self, target_BD: Tensor, history_BTD: Tensor, held_BT: Tensor) -> Tensor:
        """Return the weighted sum of the history, [B, D]."""
        target_BTD = target_BD[:, None].expand_as(history_BTD)
        pair = torch.cat([target_BTD, history_BTD, target_BTD - history_BTD, target_BTD * history_BTD], dim=-1)
        score_R = self.attention_layer.output(self.attention_layer.hidden(pair.flatten(0, 1)))
        weight_BT = score_R.view(held_BT.shape)
        weight_BT = weight_BT.masked_fill(~held_BT, _MASKED).softmax(1) if self.softmax else weight_BT * held_BT
        return torch.einsum("bt,btd->bd", weight_BT, history_BTD)


def check_target_fields(feature_map: FeatureMap, targets: tuple[str, ...], sequences: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` unless these are categorical features and histories of equal length of the map."""
    for names, kind in ((targets, "categorical"), (sequences, "sequence")):
        for name in names:
            if name not in feature_map or feature_map[name].kind != kind:
                held = [feature.name for feature in feature_map if feature.kind == kind]
                raise ConfigError(
                    f"{name!r} is no {kind} feature; the feature map has {held}; set target_fields/sequence_fields"
                )
    lengths = {feature_map[name].max_len for name in sequences}
    if len(lengths) > 1:
        raise ConfigError(f"histories {list(sequences)} are read together but have max_len {sorted(lengths)}; make them equal")
