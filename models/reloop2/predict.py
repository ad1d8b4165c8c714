"""A network run over many rows: click probabilities, and the mean hidden vector that ReLoop2 centers on."""

# R rows, B rows of a batch, D hidden width

from __future__ import annotations

import torch
from torch import Tensor

from models.reloop2.base import CtrModel
from models.reloop2.examples import Examples

__all__ = ["measure_hidden_mean", "predict"]

_BATCH = 8192


def predict(model: CtrModel, examples: Examples) -> Tensor:
    """Return the click probabilities in float64 on the CPU, [R]. Puts the model into eval mode."""
    return _all_rows(model, examples)[1]


def measure_hidden_mean(model: CtrModel, examples: Examples) -> None:
    """Set ``model.hidden_mean`` from training rows (paper: none; ReLoop2's sign hash needs it where h is not centered)."""
    if not len(examples):
        raise ValueError("the mean of no rows is not defined")
    total_D, _ = _all_rows(model, examples)
    model.set_hidden_mean((total_D / len(examples)).float())


@torch.inference_mode()
def _all_rows(model: CtrModel, examples: Examples) -> tuple[Tensor, Tensor]:
    """Return the sum of the hidden vectors, [D], and the probabilities, [R]; float64."""
    model.eval()
    device = model.hidden_mean.device
    total_D = torch.zeros(model.hidden_dim, dtype=torch.float64, device=device)
    parts = []
    for start in range(0, len(examples), _BATCH):
        hidden_BD, logit_B = model(examples.take(slice(start, start + _BATCH)).to(device).columns)
        total_D += hidden_BD.sum(0, dtype=torch.float64)
        parts.append(torch.sigmoid(logit_B.double()).cpu())
    return total_D.cpu(), torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
