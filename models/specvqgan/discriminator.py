"""The patch discriminator of the first training stage (spec 10). Parameter names are the official ones."""

# B batch, h and w patches

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Discriminator"]

_SLOPE = 0.2
_LAYERS = 3


class Discriminator(nn.Module):
    """``[B, 1, 80, T] -> [B, 1, h, w]``: how real each patch is; (80, 848) gives (8, 104)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, channels, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for i in range(1, _LAYERS + 1):
            inputs, outputs = channels * min(2 ** (i - 1), 8), channels * min(2**i, 8)
            conv = nn.Conv2d(inputs, outputs, 4, stride=2 if i < _LAYERS else 1, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(_SLOPE)]
        layers.append(nn.Conv2d(channels * min(2**_LAYERS, 8), 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x_B1HW: Tensor) -> Tensor:
        """Return the logits of the patches."""
        logits_B1hw: Tensor = self.main(x_B1HW)
        return logits_B1hw
