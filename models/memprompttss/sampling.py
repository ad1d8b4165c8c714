"""Prompts drawn from labels: where, about what, true or declared false (spec sections 5 and 9.2). All by index arithmetic."""

# B subsequences, P prompts of each, L samples of a subsequence, C channels

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.memprompttss.model import BOUNDARY, LABEL, Prompts

__all__ = ["PromptMix", "contexts", "draw_prompts", "official_centers", "random_centers"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptMix:
    """What kinds of prompts are drawn."""

    labels: float = 0.5
    """Share of label prompts; the others are about boundaries."""
    incorrect: float = 0.5
    """Share that declares something false."""
    near_boundaries: float = 0.25
    """Share of places within ``margin`` of a true boundary; elsewhere a boundary prompt nearly always says "none"."""
    margin: int = 16
    wrong: float = 0.0
    """Share of prompts that do not tell the truth."""


def official_centers(window: int, stride: int, windows: int, hit: float, count: int, context: int) -> list[int]:
    """Return where the released evaluation puts its prompts: one place for each group of overlapping windows that are hit.

    The windows that share a sample form a group; its prompt stands on the last sample that all of them share. What is left
    over goes to the first place, and places are moved so that the context lies inside.
    """
    hits = max(1, int(hit * windows))
    per, length = window // stride, (windows - 1) * stride + window
    centers = []
    for first in range(0, hits, per):
        center = (first + min(per, hits - first)) * stride - 1
        centers.append(min(max(center, context // 2), length - context + context // 2))
    centers = centers[:count]
    return centers + [centers[0]] * (count - len(centers))


def random_centers(state_BL: Tensor, count: int, context: int, mix: PromptMix, generator: torch.Generator) -> Tensor:
    """Draw the places [B, P] of prompts, so that the whole context lies inside the subsequence."""
    B, L = state_BL.shape
    low, high = context // 2, L - context + context // 2
    center_BP = torch.randint(low, high + 1, (B, count), generator=generator)
    # A boundary by lot: the one of the highest random number, -1 where there is none.
    changes_BL = torch.zeros(B, L)
    changes_BL[:, 1:] = (state_BL[:, 1:] != state_BL[:, :-1]).float()
    lot_BPL = torch.rand(B, count, L, generator=generator) * changes_BL[:, None]
    height_BP, near_BP = lot_BPL.max(dim=2)
    moved_BP = near_BP + torch.randint(-mix.margin, mix.margin + 1, (B, count), generator=generator)
    is_near_BP = (torch.rand(B, count, generator=generator) < mix.near_boundaries) & (height_BP > 0)
    return torch.where(is_near_BP, moved_BP, center_BP).clamp(low, min(high, L - 1))


def draw_prompts(state_BL: Tensor, center_BP: Tensor, classes: int, mix: PromptMix, generator: torch.Generator) -> Prompts:
    """Draw prompts [B, P] about these places: true ones, but for a share ``mix.wrong``.

    A label that is declared incorrect is one of the K - 1 others. Sample 0 never counts as a boundary.
    """
    shape = center_BP.shape

    def by_lot(share: float) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    kind = torch.where(by_lot(mix.labels), LABEL, BOUNDARY)
    incorrect = by_lot(mix.incorrect)
    true = incorrect ^ by_lot(mix.wrong)  # what is said is not so: as it should be where it is declared incorrect
    here_BP = state_BL.gather(1, center_BP)
    other_BP = (here_BP + torch.randint(1, max(classes, 2), shape, generator=generator)) % classes
    before_BP = state_BL.gather(1, (center_BP - 1).clamp_min(0))
    starts_BP = (here_BP != before_BP) & (center_BP > 0)
    return Prompts(
        kind,
        torch.where(true, other_BP, here_BP),
        (starts_BP ^ true).long(),
        incorrect.long(),
    )


def contexts(x_BLC: Tensor, center_BP: Tensor, context: int) -> Tensor:
    """Return the samples around each place, [B, P, context, C]; zeros behind the end of a subsequence that is shorter."""
    L = x_BLC.shape[1]
    start_BP = (center_BP - context // 2).clamp(0, max(0, L - context))
    at_BPT = start_BP[:, :, None] + torch.arange(context)
    x_BPTC = x_BLC[torch.arange(len(x_BLC))[:, None, None], at_BPT.clamp_max(L - 1)]
    return x_BPTC * (at_BPT < L)[..., None]
