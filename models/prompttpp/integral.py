"""The integral of the rate between two events, by the rules of the published code, of EasyTPP, or by chance.

The last point of a grid is the left limit at the next event, so event term and integral share their evaluations.
"""

# B rows, L events, G moments

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Rule", "integrate", "shares"]

Rule = Literal["trapezoid", "mean", "mc"]


def shares(points: int, rule: Rule, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
    """Return where in an interval the rate is evaluated, float64 [*shape, G] within 0..1; the last one is 1.

    ``trapezoid`` and ``mean``: evenly spaced, both ends included. ``mc``: uniform draws, one per stratum, before the last.
    """
    if rule != "mc":
        return torch.linspace(0, 1, points, dtype=torch.float64).expand(*shape, points)
    drawn = torch.rand(*shape, points - 1, generator=generator, dtype=torch.float64)
    strata = torch.arange(points - 1, dtype=torch.float64)
    return torch.cat([(strata + drawn) / (points - 1), drawn.new_ones(*shape, 1)], dim=-1)


def integrate(total: Tensor, gap: Tensor, rule: Rule) -> Tensor:
    """Return the integral over intervals of length ``gap`` [...] of a total rate [..., G] at the points of ``shares``.

    ``trapezoid``: EasyTPP's rule and ours. ``mean``: the official one, the mean over the grid. ``mc``: the mean over all but
    the last point, unbiased.
    """
    if rule == "mean":
        return gap * total.mean(-1)
    if rule == "mc":
        return gap * total[..., :-1].mean(-1)
    return gap * (total.sum(-1) - 0.5 * (total[..., 0] + total[..., -1])) / (total.shape[-1] - 1)
