"""Memory bank sampling: which few of the last frames to keep, as pure functions of how alike frames are (spec section 4).

Frames of a window are numbered by age: 0 is the newest. All rules take many windows at once, use fixed-shape loops without a
wait for the device, and never drop the newest frame. Which of two similar frames goes is our definition (the published
algorithm leaves it open): the older one; of equal pairs the oldest.
"""

# B windows, N ages of a window (0 the newest), k frames kept, D width of a feature

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Coverage", "coverage", "drop_redundant", "last_k", "likeness", "uniform", "window"]


def likeness(feature_BND: Tensor) -> Tensor:
    """Return the cosines of all pairs, [B, N, N] float64; 0 where a feature is zero."""
    feature_BND = feature_BND.double()
    norm_BN1 = torch.linalg.vector_norm(feature_BND, dim=2, keepdim=True)
    unit_BND = torch.where(norm_BN1 > 0, feature_BND / norm_BN1, 0.0)
    return unit_BND @ unit_BND.transpose(1, 2)


def window(likeness_BNN: Tensor, length_B: Tensor, k: int) -> Tensor:
    """Return which ages are kept, [B, N]: the rule of the paper, a function of the window alone.

    Walks from the newest frame back, appends each frame, and when there are more than ``k`` removes the one most like its newer
    neighbor. ``length_B``: frames of each window that exist.
    """
    B, N = likeness_BNN.shape[:2]
    device = likeness_BNN.device
    kept_BN = torch.arange(N, device=device) < length_B[:, None]
    if k >= N:
        return kept_BN
    # Frames so far, newest first, one place more than k; and how alike each is to the one before it.
    age_BQ = torch.zeros((B, k + 1), dtype=torch.int64, device=device)
    alike_BQ = torch.full((B, k + 1), -torch.inf, dtype=likeness_BNN.dtype, device=device)
    place_Q = torch.arange(k + 1, device=device)
    flat_BP = likeness_BNN.flatten(1)
    for age in range(1, N):
        exists_B1 = age < length_B[:, None]
        at = min(age, k)  # all windows that have this age hold the same number
        newer_B1 = age_BQ[:, at - 1 : at]
        age_BQ[:, at : at + 1] = torch.where(exists_B1, age, age_BQ[:, at : at + 1])
        new_B1 = likeness_BNN[:, age].gather(1, newer_B1)
        alike_BQ[:, at : at + 1] = torch.where(exists_B1, new_B1, -torch.inf)
        if age < k:
            continue
        most_B1 = alike_BQ.amax(dim=1, keepdim=True)
        out_B1 = torch.where(alike_BQ == most_B1, place_Q, -1).amax(dim=1, keepdim=True)  # of equal ones the oldest
        # Without this age nothing is removed: the place that falls off is the empty one.
        out_B1 = torch.where(exists_B1, out_B1, k)
        from_BQ = (place_Q + (place_Q >= out_B1)).clamp_max(k)
        age_BQ, alike_BQ = age_BQ.gather(1, from_BQ), alike_BQ.gather(1, from_BQ)
        # The frame that moved up has a new neighbor.
        moved_B1 = age_BQ.gather(1, out_B1)
        beside_B1 = age_BQ.gather(1, (out_B1 - 1).clamp_min(0))
        again_B1 = flat_BP.gather(1, moved_B1 * N + beside_B1)
        alike_BQ = torch.where((place_Q == out_B1) & (out_B1 < k), again_B1, alike_BQ)
        alike_BQ[:, k] = -torch.inf
    chosen_BN = torch.zeros((B, N), dtype=torch.bool, device=device)
    chosen_BN.scatter_(1, age_BQ[:, :k], True)
    return torch.where(length_B[:, None] > k, chosen_BN, kept_BN)


def drop_redundant(likeness_BNN: Tensor, held_BN: Tensor, k: int) -> Tensor:
    """Return what stays of frames held, [B, N]: where there are more than ``k``, without the older of the most alike neighbors.

    One step of the mode ``incremental``: the newest frame has just been added, so at most one is too many.
    """
    age_N = torch.arange(held_BN.shape[1], device=held_BN.device)
    last_BN = torch.where(held_BN, age_N, -1).cummax(dim=1).values
    newer_BN = torch.cat([torch.full_like(last_BN[:, :1], -1), last_BN[:, :-1]], dim=1)
    alike_BN = likeness_BNN.gather(2, newer_BN.clamp_min(0)[:, :, None])[:, :, 0]
    alike_BN = alike_BN.masked_fill(~held_BN | (newer_BN < 0), -torch.inf)
    most_B1 = alike_BN.amax(dim=1, keepdim=True)
    out_B1 = torch.where(alike_BN == most_B1, age_N, -1).amax(dim=1, keepdim=True)
    full_B1 = held_BN.sum(1, keepdim=True) > k
    return held_BN & ~((age_N == out_B1) & full_B1)


def uniform(length_B: Tensor, index_B: Tensor, ages: int, k: int) -> Tensor:
    """Return which ages are kept, [B, N]: ``k`` evenly spaced indices of the window, round(linspace(t - m + 1, t, k)).

    ``index_B``: the newest frame's index t in its stream, which decides about halves (rounded to even).
    """
    kept_BN = torch.zeros((length_B.shape[0], ages), dtype=torch.bool, device=length_B.device)
    if k == 1:
        kept_BN[:, 0] = True
        return kept_BN
    part_k = torch.arange(k, device=length_B.device, dtype=torch.float64) / (k - 1)
    first_B1 = (index_B - length_B + 1)[:, None].double()
    chosen_Bk = (first_B1 + part_k * (length_B[:, None].double() - 1)).round().long()
    return kept_BN.scatter_(1, (index_B[:, None] - chosen_Bk).clamp(0, ages - 1), True)


def last_k(length_B: Tensor, ages: int, k: int) -> Tensor:
    """Return which ages are kept, [B, N]: the newest ``k``."""
    return torch.arange(ages, device=length_B.device) < length_B[:, None].clamp_max(k)


class Coverage(NamedTuple):
    """How well the frames kept stand for their window."""

    mean_B: Tensor
    """Mean over the window of the largest cosine to a frame kept."""
    worst_B: Tensor
    """Its minimum."""


def coverage(likeness_BNN: Tensor, kept_BN: Tensor, length_B: Tensor) -> Coverage:
    """Return coverage of the windows; frames that are in none of them count as not there."""
    in_window_BN = torch.arange(kept_BN.shape[1], device=kept_BN.device) < length_B[:, None]
    best_BN = likeness_BNN.masked_fill(~kept_BN[:, None, :], -torch.inf).amax(dim=2)
    mean_B = best_BN.masked_fill(~in_window_BN, 0.0).sum(1) / length_B
    return Coverage(mean_B, best_BN.masked_fill(~in_window_BN, torch.inf).amin(dim=1))
