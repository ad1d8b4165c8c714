"""Sine waves that switch between two frequencies, where only a prompt tells which of them is called 0 (spec section 12.13)."""

# B sequences, L samples

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FREQUENCIES", "two_frequencies"]

FREQUENCIES = (0.25, 0.9)
"""Radians per sample."""

_SHORTEST, _LONGEST = 16, 47
_NOISE = 0.1


def two_frequencies(
    count: int, length: int, generator: torch.Generator, *, names: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return noisy sines [B, L, 1] and the states [B, L] of their samples.

    The frequency changes every 16 to 47 samples; which one has the id 0 is drawn for each sequence, or told by ``names`` [B].
    """
    most = length // _SHORTEST + 2
    spans = torch.randint(_SHORTEST, _LONGEST + 1, (count, most), generator=generator)
    first = torch.randint(0, 2, (count, 1), generator=generator)
    phase = torch.rand(count, 1, generator=generator) * (2 * torch.pi)
    noise = torch.randn(count, length, generator=generator) * _NOISE
    drawn = torch.randint(0, 2, (count,), generator=generator)
    ends = spans.cumsum(1)
    segment_BL = torch.searchsorted(ends, torch.arange(length).expand(count, -1).contiguous(), right=True)
    which_BL = (first + segment_BL) % 2
    x_BL = torch.sin(phase + torch.tensor(FREQUENCIES)[which_BL].cumsum(1)) + noise
    named = drawn if names is None else names
    return x_BL[..., None], which_BL ^ named[:, None]
