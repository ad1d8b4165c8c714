"""Which boxes learn what: assignment of candidates to ground truth by overlap, and random samples of fixed size.

Knows boxes only, no networks. Every draw comes from the generator that is handed in.
"""

# P candidate boxes, G ground truth boxes, S sampled boxes

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.mamba.boxes import box_iou

__all__ = ["BACKGROUND", "IGNORED", "Sample", "assign", "inside", "sample"]

BACKGROUND = -1
IGNORED = -2


class Sample(NamedTuple):
    """Chosen candidates, positives first."""

    index_S: Tensor
    """int64 position among the candidates."""
    match_S: Tensor
    """int64 ground truth of each, ``BACKGROUND`` for negatives."""


def assign(
    boxes_P4: Tensor, truth_G4: Tensor, *, positive_iou: float, negative_iou: float, rescue_iou: float | None = None
) -> Tensor:
    """Return ``match_P`` (int64): the ground truth of each box, ``BACKGROUND`` or ``IGNORED``.

    A box with overlap ≥ ``positive_iou`` belongs to the ground truth it overlaps most; below ``negative_iou`` it is
    background. With ``rescue_iou`` the best boxes of each ground truth, all that tie, belong to it if they reach that overlap;
    where two ground truths claim a box the later one gets it, as in the official code.
    """
    P, G = boxes_P4.shape[0], truth_G4.shape[0]
    if G == 0 or P == 0:
        return torch.full((P,), BACKGROUND, dtype=torch.int64, device=boxes_P4.device)
    iou_PG = box_iou(boxes_P4, truth_G4)
    best_P, truth_P = iou_PG.max(dim=1)
    match_P = torch.full_like(truth_P, IGNORED)
    match_P[best_P < negative_iou] = BACKGROUND
    match_P = torch.where(best_P >= positive_iou, truth_P, match_P)
    if rescue_iou is not None:
        top_G = iou_PG.max(dim=0).values
        claimed_PG = (iou_PG == top_G) & (top_G >= rescue_iou)
        last_P = (claimed_PG * torch.arange(1, G + 1, device=iou_PG.device)).max(dim=1).values - 1
        match_P = torch.where(last_P >= 0, last_P, match_P)
    return match_P


def sample(match_P: Tensor, number: int, positive_share: float, generator: torch.Generator) -> Sample:
    """Draw up to ``number`` candidates: at most ``positive_share`` of them positive, the rest background.

    Where fewer exist than may be drawn all are kept, in order.
    """
    positive = _draw((match_P >= 0).nonzero()[:, 0], int(number * positive_share), generator)
    negative = _draw((match_P == BACKGROUND).nonzero()[:, 0], number - positive.shape[0], generator)
    index_S = torch.cat([positive, negative])
    return Sample(index_S, match_P[index_S])


def inside(boxes_P4: Tensor, size_2: Tensor) -> Tensor:
    """Return a bool ``[P]``: boxes that do not cross the edge of an image of size (h, w)."""
    low_P = (boxes_P4[:, :2] >= 0).all(dim=1)
    return low_P & (boxes_P4[:, 2] < size_2[1]) & (boxes_P4[:, 3] < size_2[0])


def _draw(index: Tensor, number: int, generator: torch.Generator) -> Tensor:
    if index.shape[0] <= number:
        return index
    order = torch.randperm(index.shape[0], generator=generator, device=generator.device)[:number]
    return index[order.to(index.device)]
