"""Learning rates as functions of the update (0-based): factors to multiply, without state, so that nothing is to be resumed."""

from __future__ import annotations

import math

__all__ = ["cosine", "warm_up"]


def warm_up(step: int, steps: int) -> float:
    """Return a factor that rises in ``steps`` equal steps to 1 and stays there."""
    return min(1.0, (step + 1) / steps)


def cosine(step: float, steps: float, last: float = 0.0) -> float:
    """Return a factor that falls from 1 to ``last`` along half a cosine in ``steps`` updates."""
    return last + (1.0 - last) * (0.5 * (1.0 + math.cos(math.pi * min(step, steps) / steps)))
