"""LPAPS, the perceptual distance of spectrograms, and the classifier it looks through (spec 10).

Optional: in the published training its weights silently failed to load, and the authors suggest to leave it out.
"""

# B batch, C channels, H bands, W frames

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["PerceptualDistance"]

_GROUPS: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class PerceptualDistance(nn.Module):
    """Distance [B, 1, 1, 1] of two spectrograms [B, 1, 80, T] in [-1, 1]; ``features`` is the classifier, ``lin`` weighs it."""

    shift: Tensor
    scale: Tensor

    def __init__(self, mean_H: Sequence[float] | Tensor, std_H: Sequence[float] | Tensor) -> None:
        """``mean_H``, ``std_H``: of each band of training spectrograms in [0, 1]."""
        super().__init__()
        self.register_buffer("shift", 2 * torch.as_tensor(mean_H, dtype=torch.float32).view(1, 1, -1, 1) - 1)
        self.register_buffer("scale", 2 * torch.as_tensor(std_H, dtype=torch.float32).view(1, 1, -1, 1))
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        inputs = 1
        for group in _GROUPS:
            for outputs in group:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
                inputs = outputs
            self._ends.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers[:-1])
        self.lin = nn.ModuleList(nn.Conv2d(group[-1], 1, 1, bias=False) for group in _GROUPS)
        for conv in self.lin:
            assert isinstance(conv, nn.Conv2d)
            nn.init.constant_(conv.weight, 1 / conv.in_channels)
        self.requires_grad_(False)

    def forward(self, x_B1HW: Tensor, made_B1HW: Tensor) -> Tensor:
        """Return the distances."""
        total = x_B1HW.new_zeros(len(x_B1HW), 1, 1, 1)
        a, b = ((each - self.shift) / self.scale for each in (x_B1HW, made_B1HW))
        for i, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if i in self._ends:
                apart = _unit(a) - _unit(b)
                total = total + self.lin[self._ends.index(i)](apart.square()).mean((2, 3), keepdim=True)
        return total

    def fill(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Take ``features.*`` and ``lin.*`` by name and return the names that are not used. Raises ``RuntimeError`` else."""
        own = self.state_dict()
        self.load_state_dict({name: tensors[name] if name in tensors else own[name] for name in ("shift", "scale")} | {
            name: tensor for name, tensor in tensors.items() if name.startswith(("features.", "lin."))
        })  # fmt: skip
        return sorted(tensors.keys() - own.keys())


def _unit(x_BCHW: Tensor) -> Tensor:
    return x_BCHW / (x_BCHW.square().sum(1, keepdim=True).sqrt() + 1e-10)
