"""Feature extractors of stride 16: the dilated bottleneck ResNet of the official model and a small plain conv stack.

Only weights; no image preparation. BatchNorm uses its stored statistics in training too, and the ResNet's stem and first
stage are frozen, as in the official training (spec of the released configuration: ``norm_eval``, ``frozen_stages=1``).
"""

# B batch, C channels, H height, W width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.mamba.config import MambaConfig

__all__ = ["STRIDE", "PlainConvs", "ResNet", "build_backbone"]

STRIDE = 16
"""px of the network input per cell of the map, for every backbone."""

# Stage strides and dilations of ResNet-DC5: the last stage keeps stride 16 and dilates *every* 3x3 convolution, the first
# block's included (torchvision's replace_stride_with_dilation leaves that one undilated).
_STRIDES = (1, 2, 2, 1)
_DILATIONS = (1, 1, 1, 2)
_EXPANSION = 4
_GROUPS = 8
_PLAIN_STRIDES = (2, 2, 2, 2, 1)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut; the stride sits on the 3x3. Parameter names are torchvision's."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        width = outputs // _EXPANSION
        self.conv1: nn.Module = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(width)
        self.conv2: nn.Module = nn.Conv2d(width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(width)
        self.conv3: nn.Module = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3: nn.Module = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        shortcut_BCHW = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        y_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = F.relu(self.bn2(self.conv2(y_BCHW)))
        return F.relu(self.bn3(self.conv3(y_BCHW)) + shortcut_BCHW)

    def fuse(self) -> None:
        """Fold the BatchNorms into the convolutions."""
        self.conv1, self.bn1 = _fold(self.conv1, self.bn1)
        self.conv2, self.bn2 = _fold(self.conv2, self.bn2)
        self.conv3, self.bn3 = _fold(self.conv3, self.bn3)
        if self.downsample is not None:
            self.downsample = nn.Sequential(*_fold(self.downsample[0], self.downsample[1]))


class ResNet(nn.Module):
    """Bottleneck ResNet whose last stage is dilated (DC5): ``[B, 3, H, W] -> [B, channels[-1], H/16, W/16]``."""

    def __init__(self, blocks: tuple[int, ...], channels: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(3, channels[0], 7, stride=2, padding=3, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(channels[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(blocks, channels, 0)
        self.layer2 = self._stage(blocks, channels, 1)
        self.layer3 = self._stage(blocks, channels, 2)
        self.layer4 = self._stage(blocks, channels, 3)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for part in (self.conv1, self.bn1, self.layer1):
            part.requires_grad_(False)

    @staticmethod
    def _stage(blocks: tuple[int, ...], channels: tuple[int, ...], i: int) -> nn.Sequential:
        inputs, outputs = channels[i], channels[i + 1]
        first = Bottleneck(inputs, outputs, _STRIDES[i], _DILATIONS[i])
        return nn.Sequential(first, *(Bottleneck(outputs, outputs, 1, _DILATIONS[i]) for _ in range(blocks[i] - 1)))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the map of the last stage."""
        x_BCHW = self.maxpool(F.relu(self.bn1(self.conv1(pixels_BCHW))))
        x_BCHW = self.layer2(self.layer1(x_BCHW))
        out_BCHW: Tensor = self.layer4(self.layer3(x_BCHW))
        return out_BCHW

    def train(self, mode: bool = True) -> ResNet:
        """Set the mode of everything but BatchNorm, which always uses its stored statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def fuse(self) -> None:
        """Fold every BatchNorm into its convolution. For serving only: the parameters are no longer the checkpoint's."""
        self.conv1, self.bn1 = _fold(self.conv1, self.bn1)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.fuse()


class PlainConvs(nn.Module):
    """Five 3x3 convolutions with GroupNorm and ReLU, stride 16 in all: ``[B, 3, H, W] -> [B, channels[-1], H/16, W/16]``."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip((3, *channels), channels, _PLAIN_STRIDES, strict=False):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                nn.GroupNorm(_GROUPS, outputs),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the map of the last convolution."""
        out_BCHW: Tensor = self.layers(pixels_BCHW)
        return out_BCHW

    def fuse(self) -> None:
        """Do nothing: GroupNorm depends on the input and cannot be folded."""


def build_backbone(config: MambaConfig) -> ResNet | PlainConvs:
    """Build the backbone that ``config.backbone`` names."""
    if config.backbone == "conv5":
        return PlainConvs(config.channels)
    return ResNet(config.blocks, config.channels)


def _fold(conv: nn.Module, norm: nn.Module) -> tuple[nn.Conv2d, nn.Identity]:
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d), "already fused"
    assert norm.running_mean is not None and norm.running_var is not None
    # In float64, so that the folded weights carry one rounding only.
    gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        folded.weight.copy_(conv.weight.double() * gain[:, None, None, None])
        assert folded.bias is not None
        folded.bias.copy_(norm.bias.double() - norm.running_mean.double() * gain)
    folded.requires_grad_(False)
    return folded, nn.Identity()
