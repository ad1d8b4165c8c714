"""What every click-through-rate network offers: a hidden vector and a logit per row.

The hidden vector is the input of the final Linear layer: what ReLoop2's memory is addressed by (the paper leaves the layer
open and names the last hidden one). A network holds weights only; it knows no stream and no label.
"""

# B rows, D hidden width

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.reloop2.config import CtrConfig
from models.reloop2.feature_map import FeatureMap

__all__ = ["CtrModel", "CtrOutput"]


class CtrOutput(NamedTuple):
    """What a network says about each row; the click probability is ``sigmoid(logit_B)``."""

    hidden_BD: Tensor
    logit_B: Tensor


class CtrModel(nn.Module):
    """Base of the networks. Build one with ``models.reloop2.model.build_model``."""

    hidden_mean: Tensor
    """[D]: mean of the hidden vector over the training rows, in eval mode; zeros while ``hidden_mean_known`` is false."""
    hidden_mean_known: Tensor
    """bool scalar."""

    def __init__(self, config: CtrConfig, feature_map: FeatureMap, hidden_dim: int) -> None:
        super().__init__()
        self.config = config
        self.feature_map = feature_map
        self.hidden_dim = hidden_dim
        self.register_buffer("hidden_mean", torch.zeros(hidden_dim))
        self.register_buffer("hidden_mean_known", torch.tensor(False))

    def set_hidden_mean(self, mean_D: Tensor) -> None:
        """Store the training mean of the hidden vector."""
        self.hidden_mean.copy_(mean_D)
        self.hidden_mean_known.fill_(True)

    def forward(self, columns: Mapping[str, Tensor]) -> CtrOutput:
        """Map the columns of ``features.encode`` (on the model's device) to the hidden vector and the logit."""
        raise NotImplementedError
