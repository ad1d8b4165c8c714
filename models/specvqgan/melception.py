"""Melception: the Inception v3 that the published metrics look through (spec 12). Parameter names are torchvision's."""

# B batch, H bands, W frames, E feature width, L labels

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from connectors.extras import optional

torchvision = optional("torchvision")

__all__ = ["LABELS", "Melception", "MelceptionReading"]

LABELS = 309
"""Classes of VGGSound."""


class MelceptionReading(NamedTuple):
    """What the classifier sees in spectrograms."""

    features_BE: Tensor
    logits_BL: Tensor
    unbiased_BL: Tensor
    """Logits without the bias of the last layer: for the Inception score."""


class Melception(nn.Module):
    """Inception v3 for one channel, without its two early poolings, over spectrograms standardized band by band."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean_H: Sequence[float] | Tensor, std_H: Sequence[float] | Tensor, labels: int = LABELS) -> None:
        """``mean_H``, ``std_H``: of each band of training spectrograms in [0, 1]."""
        super().__init__()
        for name, values in (("mean", mean_H), ("std", std_H)):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32).view(1, -1, 1), persistent=False)
        net: Any = torchvision.models.inception_v3(
            weights=None, num_classes=labels, aux_logits=True, transform_input=False, init_weights=False
        )
        net.Conv2d_1a_3x3.conv = nn.Conv2d(1, 32, 3, stride=2, bias=False)
        net.maxpool1 = net.maxpool2 = nn.Identity()
        # `features` sees what the last layer gets; dropout does nothing in eval mode.
        net.eval()
        self.net = net

    def forward(self, mel_BHW: Tensor) -> MelceptionReading:
        """Read spectrograms [B, 80, T] in [0, 1]."""
        found: list[Tensor] = []
        handle = self.net.fc.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        try:
            logits_BL = self.net(((mel_BHW - self.mean) / self.std)[:, None])
        finally:
            handle.remove()
        return MelceptionReading(found[0], logits_BL, logits_BL - self.net.fc.bias)

    def train(self, mode: bool = True) -> Melception:
        """Stay in eval mode: a judge does not learn."""
        return super().train(False)
