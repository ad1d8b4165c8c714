"""How sure the mean of a few measurements is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["interval"]

_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)
"""Of 95 %, for two and more values."""


def interval(values: Sequence[float]) -> list[float]:
    """Return mean and half width of the 95 % interval (Student) of two or more independent values."""
    t = _STUDENT[len(values) - 2] if len(values) - 2 < len(_STUDENT) else 2.1
    return [round(float(np.mean(values)), 4), round(float(t * np.std(values, ddof=1) / len(values) ** 0.5), 4)]
