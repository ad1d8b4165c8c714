"""The integral of the rate between two events, by the rules of the published code, of EasyTPP, by chance, or graded.

The last point of a grid is the left limit at the next event, so event term and integral share their evaluations.
"""

# B rows, L events, G moments

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.uploads import upload

__all__ = ["Rule", "integrate", "shares"]

Rule = Literal["graded", "trapezoid", "mean", "mc"]


def shares(points: int, rule: Rule, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
    """Return where in an interval the rate is evaluated, float64 [*shape, G] within 0..1; the last one is 1.

    ``trapezoid`` and ``mean``: evenly spaced, both ends included. ``graded``: squares of these, so that the grid is fine right
    after an event, where rates change fastest; on an even grid a network learns to hide a peak between the first two points.
    ``mc``: uniform draws, one per stratum, before the last.
    """
    if rule == "graded":
        return torch.linspace(0, 1, points, dtype=torch.float64).square().expand(*shape, points)
    if rule != "mc":
        return torch.linspace(0, 1, points, dtype=torch.float64).expand(*shape, points)
    drawn = torch.rand(*shape, points - 1, generator=generator, dtype=torch.float64)
    strata = torch.arange(points - 1, dtype=torch.float64)
    return torch.cat([(strata + drawn) / (points - 1), drawn.new_ones(*shape, 1)], dim=-1)


def integrate(total: Tensor, gap: Tensor, rule: Rule) -> Tensor:
    """Return the integral over intervals of length ``gap`` [...] of a total rate [..., G] at the points of ``shares``.

    ``graded``: ours, trapezoids. ``trapezoid``: EasyTPP's. ``mean``: the official one, the mean over the grid. ``mc``: the mean
    over all but the last point, unbiased.
    """
    if rule == "graded":
        step = upload(shares(total.shape[-1], rule).diff().to(total.dtype), total.device)
        return gap * (0.5 * (total[..., 1:] + total[..., :-1]) * step).sum(-1)
    if rule == "mean":
        return gap * total.mean(-1)
    if rule == "mc":
        return gap * total[..., :-1].mean(-1)
    return gap * (total.sum(-1) - 0.5 * (total[..., 0] + total[..., -1])) / (total.shape[-1] - 1)
