"""What is said of an event and of the next one, as functions of a network's rates. Knows no banks and no Arrow."""

# B keys, G lags, K types

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.prompttpp.integral import integrate, shares
from models.prompttpp.prediction import HORIZON, NextEvent, lag_grid, predict_next
from models.uploads import upload

__all__ = ["Score", "foresee", "long_pause", "scale_of", "score", "score_long"]

_KNOWN_GAPS = 3  # from when on a key's own mean gap is used
_SMALLEST = 1e-6  # mean gap of a grid, model units, for keys whose events all came at once

Rates = Callable[[Tensor], Tensor]


class Score(NamedTuple):
    """Of the event that came, under what was known before it; times in model units."""

    log_rate_B: Tensor
    integral_B: Tensor
    rank_B: Tensor
    """1: its type was the one of highest rate."""


def scale_of(time_B: Tensor, events_B: Tensor) -> Tensor:
    """Return each key's mean gap, float64 model units: the network's (1) until there are three gaps."""
    own_B = time_B / (events_B - 1).clamp_min(1)
    return torch.where(events_B > _KNOWN_GAPS, own_B, 1.0).clamp_min(_SMALLEST)


def long_pause(gap_B: Tensor, mean_gap_B: Tensor) -> Tensor:
    """Return where a gap is longer than the horizon of 30 mean gaps."""
    return gap_B > HORIZON * mean_gap_B


def score(rates: Rates, gap_B: Tensor, type_B: Tensor, points: int) -> Score:
    """Score events that came ``gap_B`` after the last ones, on a graded grid of ``points``."""
    rate_BGK = rates(gap_B[:, None] * upload(shares(points, "graded"), gap_B.device))
    total_BG = rate_BGK.sum(2).to(torch.float64)
    return _score(rate_BGK, integrate(total_BG, gap_B, "graded"), type_B)


def score_long(rates: Rates, gap_B: Tensor, mean_gap_B: Tensor, type_B: Tensor, points: int, grid: int) -> Score:
    """Score events after long pauses: the horizon on the grid of predictions, and evenly from there on."""
    near_BG = lag_grid(mean_gap_B, grid)
    far_BG = (gap_B - near_BG[:, -1]).clamp_min(0.0)[:, None] * upload(shares(points, "trapezoid")[1:], gap_B.device)
    lag_BG = torch.cat([near_BG, near_BG[:, -1:] + far_BG], dim=1)
    rate_BGK = rates(lag_BG)
    total_BG = rate_BGK.sum(2).to(torch.float64)
    integral_B = (0.5 * (total_BG[:, 1:] + total_BG[:, :-1]) * lag_BG.diff(dim=1)).sum(1)
    return _score(rate_BGK, integral_B, type_B)


def _score(rate_BGK: Tensor, integral_B: Tensor, type_B: Tensor) -> Score:
    last_BK = rate_BGK[:, -1]
    own_B1 = last_BK.gather(1, type_B[:, None])
    log_rate_B = own_B1[:, 0].clamp_min(torch.finfo(last_BK.dtype).tiny).log().to(torch.float64)
    return Score(log_rate_B, integral_B, 1 + (last_BK > own_B1).sum(1))


def foresee(rates: Rates, mean_gap_B: Tensor, grid: int, quantiles: tuple[float, ...]) -> NextEvent:
    """Predict the next event of each key."""
    lag_BG = lag_grid(mean_gap_B, grid)
    return predict_next(rates(lag_BG), lag_BG, quantiles)
