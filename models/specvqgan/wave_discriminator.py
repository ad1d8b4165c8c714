"""The discriminators of the vocoder's training: the same network at three scales of the waveform (spec 9).

Parameter names are the official ones, but for those of weight normalization, which are PyTorch's newer ones.
"""

# B batch, C channels, N samples

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["WaveDiscriminator"]

_SLOPE = 0.2
_WIDEST = 64
"""Times the channels of the first layer: 1,024 in the published network."""
_GROUP = 4


class _Scale(nn.Module):
    """Judges a waveform at one scale, and says what each of its layers saw."""

    def __init__(self, channels: int, layers: int, stride: int) -> None:
        super().__init__()
        widest = _WIDEST * channels
        first = weight_norm(nn.Conv1d(1, channels, 15))
        parts: list[nn.Module] = [nn.Sequential(nn.ReflectionPad1d(7), first, nn.LeakyReLU(_SLOPE, inplace=True))]
        for _ in range(layers):
            outputs = min(channels * stride, widest)
            # Each group sees four channels.
            conv = nn.Conv1d(
                channels, outputs, 10 * stride + 1, stride=stride, padding=5 * stride, groups=max(1, channels // _GROUP)
            )
            parts.append(nn.Sequential(weight_norm(conv), nn.LeakyReLU(_SLOPE, inplace=True)))
            channels = outputs
        outputs = min(2 * channels, widest)
        parts.append(nn.Sequential(weight_norm(nn.Conv1d(channels, outputs, 5, padding=2)), nn.LeakyReLU(_SLOPE, inplace=True)))
        parts.append(weight_norm(nn.Conv1d(outputs, 1, 3, padding=1)))
        self.model = nn.Sequential(OrderedDict((f"layer_{i}", part) for i, part in enumerate(parts)))

    def forward(self, x_B1N: Tensor) -> list[Tensor]:
        """Return the output of each layer; the last ones are the logits."""
        seen = []
        for layer in self.model:
            x_B1N = layer(x_B1N)
            seen.append(x_B1N)
        return seen


class WaveDiscriminator(nn.Module):
    """``[B, N]`` → for each scale what its layers saw, the logits last. Each scale has half the samples of the one before."""

    def __init__(self, channels: int = 16, *, layers: int = 4, scales: int = 3, stride: int = 4) -> None:
        super().__init__()
        self.model = nn.ModuleDict({f"disc_{i}": _Scale(channels, layers, stride) for i in range(scales)})
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.normal_(module.parametrizations.weight.original1, 0.0, 0.02)  # type: ignore[union-attr, arg-type]

    def forward(self, samples_BN: Tensor) -> list[list[Tensor]]:
        """Judge waveforms at every scale."""
        x_B1N, seen = samples_BN[:, None], []
        for scale in self.model.values():
            seen.append(scale(x_B1N))
            x_B1N = F.avg_pool1d(x_B1N, 4, stride=2, padding=1, count_include_pad=False)
        return seen
