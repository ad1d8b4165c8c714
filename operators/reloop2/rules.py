"""The error estimate of ReLoop2 and the corrected prediction (arXiv 2306.08808, §3.2), as functions of a memory's read-out.

Knows no bank. Everything is float64 on whole batches; a row without anything to read keeps its base prediction bit for bit.
"""

# B queries, K read-outs of a query (sketch arrays or neighbors)

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Compensated", "Recollection", "compensate", "count_weights", "softmax_weights"]


class Recollection(NamedTuple):
    """What a memory says about B queries, [B, K], float64. Where ``valid_BK`` is false the rest is 0."""

    weight_BK: Tensor
    """Sums up to 1 in each row that has a valid entry."""
    label_BK: Tensor
    base_BK: Tensor
    valid_BK: Tensor
    """bool: there is something to read."""
    rows_B: Tensor
    """How many past rows the read-out rests on, about; [B]."""


class Compensated(NamedTuple):
    """Corrected predictions, [B], float64 (``hits_B`` int64)."""

    label_mean_B: Tensor
    """Weighted mean of the labels read: ȳ. NaN where nothing was."""
    base_mean_B: Tensor
    """Weighted mean of the base predictions read. NaN where nothing was."""
    error_B: Tensor
    """Estimated error of the base model; 0 where nothing was read."""
    prediction_B: Tensor
    hits_B: Tensor
    """How many of the K read-outs are valid."""


def softmax_weights(similarity_BK: Tensor, valid_BK: Tensor, tau: float) -> Tensor:
    """Return softmax(similarity / tau) over the valid entries of each row; all 0 in a row that has none."""
    score_BK = (similarity_BK.double() / tau).masked_fill(~valid_BK, -torch.inf)
    # A row without any valid entry would be NaN: shift by 0 there, so that every exp is 0.
    top_B1 = score_BK.amax(1, keepdim=True).nan_to_num(neginf=0.0) if score_BK.shape[1] else score_BK
    mass_BK = (score_BK - top_B1).exp()
    return mass_BK / mass_BK.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def count_weights(count_BK: Tensor) -> Tensor:
    """Return weights in proportion to counts: the pooled mean over all buckets. All 0 in a row without any."""
    count_BK = count_BK.double()
    return count_BK / count_BK.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def compensate(read: Recollection, base_B: Tensor, *, gamma: float, strength: float, prior_rows: float = 0.0) -> Compensated:
    """Estimate the base model's error and correct its prediction.

    ``y_err = gamma (ȳ - y_base) + (1 - gamma) (ȳ - ȳ_base)``, ``y_pred = clamp(y_base + strength · y_err, 0, 1)``;
    ``strength`` is the paper's lambda. ``prior_rows`` is ours: the error shrinks as if so many rows without any had been read
    as well.
    """
    base_B = base_B.double()
    hits_B = read.valid_BK.sum(1)
    empty_B = hits_B == 0
    label_B = (read.weight_BK * read.label_BK).sum(1)
    mean_B = (read.weight_BK * read.base_BK).sum(1)
    error_B = (gamma * (label_B - base_B) + (1.0 - gamma) * (label_B - mean_B)).masked_fill(empty_B, 0.0)
    if prior_rows:
        error_B = error_B * (read.rows_B / (read.rows_B + prior_rows))
    prediction_B = (base_B + strength * error_B).clamp(0.0, 1.0)
    unknown = float("nan")
    return Compensated(
        label_B.masked_fill(empty_B, unknown), mean_B.masked_fill(empty_B, unknown), error_B, prediction_B, hits_B
    )
