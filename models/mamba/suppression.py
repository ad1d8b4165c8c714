"""Non-maximum suppression of many sets at once, by a fixed number of operations: the host need not know what is left.

Greedy suppression keeps a box unless a better one that is kept overlaps it. Starting from all boxes, one round keeps those that
nothing kept overlaps; the odd rounds keep too few, the even ones too many, and two equal rounds are the answer. A chain of n
boxes, each suppressed by the one before, takes n rounds.
"""

# S sets, N boxes of a set

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ROUNDS", "suppress"]

ROUNDS = 49
"""Odd, so that what longer chains leave undecided is not kept."""

_AT_ONCE = 1 << 29
"""Bytes of overlaps at a time."""


def suppress(boxes_SN4: Tensor, wanted_SN: Tensor, threshold: float) -> Tensor:
    """Return which boxes stay, bool [S, N]. Boxes of a set stand best first; those not ``wanted`` neither stay nor suppress.

    Equal to ``torchvision.ops.nms`` of each set, as long as no chain of suppressions is longer than ``ROUNDS``.
    """
    sets, boxes = wanted_SN.shape
    size = max(1, _AT_ONCE // max(1, 4 * boxes * boxes))
    parts = [_suppress(boxes_SN4[i : i + size], wanted_SN[i : i + size], threshold) for i in range(0, sets, size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _suppress(boxes_SN4: Tensor, wanted_SN: Tensor, threshold: float) -> Tensor:
    low, high = boxes_SN4[..., :2], boxes_SN4[..., 2:]
    side = (torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])).clamp_(min=0)
    common_SNN = side[..., 0] * side[..., 1]
    area_SN = (high - low).prod(-1)
    union_SNN = area_SN[:, :, None] + area_SN[:, None] - common_SNN
    over_SNN = (common_SNN / union_SNN > threshold).triu_(1).to(torch.float16 if boxes_SN4.is_cuda else torch.float32)
    kept_SN = wanted_SN
    for _ in range(ROUNDS):
        hit_S1N = torch.bmm(kept_SN.to(over_SNN.dtype).unsqueeze(1), over_SNN)
        kept_SN = wanted_SN & (hit_S1N.squeeze(1) == 0)
    return kept_SN
