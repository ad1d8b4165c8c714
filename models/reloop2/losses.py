"""The loss of a click prediction, and which L2 acts on which weights."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from models.reloop2.base import CtrModel
from models.reloop2.embeddings import FeatureEmbedding
from models.reloop2.examples import Examples

__all__ = ["click_loss", "weight_groups"]


def click_loss(model: CtrModel, examples: Examples) -> Tensor:
    """Return the mean binary cross-entropy of some rows, on the model's device."""
    examples = examples.to(model.hidden_mean.device)
    return F.binary_cross_entropy_with_logits(model(examples.columns).logit_B, examples.label_R)


def weight_groups(model: CtrModel, *, embedding_l2: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups of an optimizer: embeddings, and all other weights."""
    embeddings = [
        parameter for module in model.modules() if isinstance(module, FeatureEmbedding) for parameter in module.parameters()
    ]
    known = {id(parameter) for parameter in embeddings}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [{"params": embeddings, "weight_decay": embedding_l2}, {"params": dense, "weight_decay": weight_decay}]
