"""The losses of the 4D-VLA policy (paper, equation 3): translation, rotation, gripper, direction."""

# B samples

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["action_losses", "direction"]

_LEAST = 1e-6
"""Length below which a translation has no direction."""


def direction(move_B3: Tensor) -> Tensor:
    """Return translations scaled to length 1; shorter ones than 1e-6 stay short. Its gradient is finite at 0."""
    unit_B3: Tensor = move_B3 / torch.linalg.vector_norm(move_B3, dim=-1, keepdim=True).clamp_min(_LEAST)
    return unit_B3


def action_losses(
    move_B3: Tensor,
    turn_B3: Tensor,
    grip_B: Tensor,
    wanted_move_B3: Tensor,
    wanted_turn_B3: Tensor,
    wanted_grip_B: Tensor,
    *,
    direction_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Return the parts of the loss, to be summed; ``grip_B`` are logits, ``wanted_grip_B`` 0 or 1.

    Samples that do not move (1e-6 or less) are left out of the direction, which would be noise there (our reading).
    """
    moves_B = torch.linalg.vector_norm(wanted_move_B3, dim=-1) > _LEAST
    off_B = (direction(move_B3) - direction(wanted_move_B3)).square().sum(-1)
    turned = (off_B * moves_B).sum() / moves_B.sum().clamp_min(1)
    return {
        "translation": (move_B3 - wanted_move_B3).square().sum(-1).mean(),
        "rotation": (turn_B3 - wanted_turn_B3).square().sum(-1).mean(),
        "gripper": F.binary_cross_entropy_with_logits(grip_B, wanted_grip_B.to(grip_B.dtype)),
        "direction": direction_weight * turned,
    }
