"""Shapes and settings of the MAMBA detector. Defaults are the official full-size model (AAAI 2021; arXiv 2401.09923).

What depends on a stream (bank length, number of keys, write rule) belongs to the operator's options, not here.
"""

from __future__ import annotations

from dataclasses import dataclass

from connectors.errors import ConfigError
from models.settings import Settings

__all__ = ["IMAGENET_VID_CLASSES", "MambaConfig"]

IMAGENET_VID_CLASSES: tuple[str, ...] = tuple(
    "airplane antelope bear bicycle bird bus car cattle dog domestic_cat elephant fox giant_panda hamster horse lion "
    "lizard monkey motorcycle rabbit red_panda sheep snake squirrel tiger train turtle watercraft whale zebra".split()
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MambaConfig(Settings):
    """Everything that fixes the network's shapes and its fixed post-processing. JSON-able by ``dataclasses.asdict``."""

    classes: tuple[str, ...] = IMAGENET_VID_CLASSES
    backbone: str = "resnet"  # "resnet" (bottleneck, DC5) or "conv5" (five plain convs with GroupNorm, small recipe)
    blocks: tuple[int, ...] = (3, 4, 23, 3)  # resnet: blocks per stage; ResNet-101
    channels: tuple[int, ...] = (64, 256, 512, 1024, 2048)  # resnet: stem and stage outputs; conv5: the five convs
    neck_channels: int = 512
    fc_channels: int = 1024
    heads: int = 16  # attention heads of the instance level
    stages: int = 2  # enhancement stages of the box head
    pixel_level: bool = False
    pixel_position: str = "backbone"  # "backbone" or "neck": which map the pixel level enhances
    pixel_heads: int = 16
    anchor_base: float = 16.0  # px; side of the anchor of scale 1
    anchor_scales: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # h / w
    nms_pre: int = 6000
    proposals: int = 300  # test proposals per image
    train_proposals: int = 600
    rpn_nms: float = 0.7
    roi_size: int = 7
    score_threshold: float = 1e-4
    box_nms: float = 0.5
    max_detections: int = 100
    max_long_side: int = 1000  # px; frames are scaled by min(max_long_side / long, max_short_side / short)
    max_short_side: int = 600  # px
    pad_multiple: int = 16
    mean_rgb: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std_rgb: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        """Check what the network is built from. Raises ``ConfigError``."""
        if self.backbone not in ("resnet", "conv5"):
            raise ConfigError(f"backbone {self.backbone!r} is not known; use 'resnet' or 'conv5'")
        if len(self.channels) != 5:
            raise ConfigError(f"channels must be five numbers (see MambaConfig), got {self.channels}")
        if self.backbone == "resnet" and (len(self.blocks) != 4 or min(self.blocks) < 1):
            raise ConfigError(f"blocks must be four numbers above 0, got {self.blocks}")
        step = 4 if self.backbone == "resnet" else 8
        checked = self.channels[1:] if self.backbone == "resnet" else self.channels
        if any(c < 1 or c % step for c in checked):
            raise ConfigError(f"channels of backbone {self.backbone!r} must be multiples of {step}, got {self.channels}")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"classes must be different names, at least one; got {list(self.classes)}")
        if self.pixel_position not in ("backbone", "neck"):
            raise ConfigError(f"pixel_position {self.pixel_position!r} is not known; use 'backbone' or 'neck'")
        self._check_heads("heads", self.heads, "fc_channels", self.fc_channels)
        if self.pixel_level:
            self._check_heads("pixel_heads", self.pixel_heads, "channels at pixel_position", self.pixel_channels)

    @staticmethod
    def _check_heads(name: str, heads: int, what: str, channels: int) -> None:
        if heads < 1 or channels % heads:
            raise ConfigError(f"{name}={heads} must divide {what}={channels}; choose a divisor")

    @property
    def pixel_channels(self) -> int:
        """Width of the map that the pixel level enhances."""
        return self.channels[-1] if self.pixel_position == "backbone" else self.neck_channels
