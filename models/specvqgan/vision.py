"""From RGB frames to visual features: 21.5 per second by ResNet-50, and which of them a window takes (spec 4)."""

# B frames, H rows, W columns, F features, E feature width

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from connectors.errors import ConfigError
from connectors.extras import optional
from models.settings import Settings
from models.specvqgan.config import FEATURE_FRAMES, FEATURE_RATE, WINDOW_COLUMNS
from models.uploads import upload

torchvision = optional("torchvision")

__all__ = [
    "CLIP_ROWS",
    "FEATURE_WIDTH",
    "WINDOW_ROWS",
    "FrameFeatures",
    "FrameNetwork",
    "PixelConfig",
    "PixelFeatures",
    "clip_rows",
    "picked_rows",
    "resnet_pixels",
    "slot_at",
    "slots_of",
]

FEATURE_WIDTH = 2048
"""Numbers of a ResNet-50 feature."""
CLIP_ROWS = 215
"""Rows of a clip of 10 s."""
WINDOW_ROWS = WINDOW_COLUMNS * 16 // FEATURE_FRAMES
"""Rows that belong to a window of sound: 212."""

_SHORT_SIDE, _CROP = 256, 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def slot_at(seconds: float, rate: float = FEATURE_RATE) -> int:
    """Return the slot of the feature clock that a frame at this time belongs to."""
    return math.floor(rate * seconds + 0.5)


def slots_of(times_s: Iterable[float], rate: float = FEATURE_RATE) -> list[int]:
    """Return for each slot from 0 to the last frame's the index of its frame: the last one whose slot is not later.

    Before the first frame stands the first frame. Times must not go back.
    """
    picked: list[int] = []
    for index, seconds in enumerate(times_s):
        slot = slot_at(seconds, rate)
        if slot < len(picked) - 1:
            raise ValueError(f"frame {index} at {seconds} s is earlier than the frame before it")
        while len(picked) <= slot:
            picked.append(picked[-1] if picked else index)
        picked[slot] = index
    return picked


def picked_rows(rows: int, features: int) -> list[int]:
    """Return which of ``rows`` a window of so many features takes: evenly spread (spec 4)."""
    if not 1 <= features <= rows:
        raise ValueError(f"{features} features of {rows} rows; ask for 1 to {rows}")
    first = rows // (features + 1)
    return [i * rows // features + first for i in range(features)]


def clip_rows(feats_RE: Tensor) -> Tensor:
    """Return the 212 rows [212, E] of a clip as published: repeated to 215 where there are fewer, then the middle ones."""
    if not len(feats_RE):
        raise ValueError("no features; give at least one row")
    repeated_RE = feats_RE.repeat(math.ceil(CLIP_ROWS / len(feats_RE)), 1)[:CLIP_ROWS]
    first = (CLIP_ROWS - WINDOW_ROWS) // 2
    return repeated_RE[first : first + WINDOW_ROWS]


def resnet_pixels(frame_HW3: Tensor) -> Tensor:
    """Return one RGB frame of 0..255 as [3, 224, 224]: short side to 256, middle cut out, ImageNet's mean and std."""
    rows, columns = frame_HW3.shape[:2]
    short = min(rows, columns)
    target = (_SHORT_SIDE * rows // short, _SHORT_SIDE * columns // short)
    pixels = frame_HW3.permute(2, 0, 1)[None].float()
    if (rows, columns) != target:
        # The official pipeline resizes images of whole numbers.
        pixels = torch.nn.functional.interpolate(pixels, target, mode="bilinear", antialias=True).round().clamp(0, 255)
    top, left = (round((side - _CROP) / 2) for side in target)
    cut = pixels[0, :, top : top + _CROP, left : left + _CROP] / 255
    center, spread = (upload(torch.tensor(values).view(3, 1, 1), cut.device) for values in (_MEAN, _STD))
    return (cut - center) / spread


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelConfig(Settings):
    """What fixes :class:`PixelFeatures`."""

    side: int = 16  # px; a frame becomes a square of so many

    def __post_init__(self) -> None:
        """Check. Raises ``ConfigError``."""
        if not 1 <= self.side <= 224:
            raise ConfigError(f"PixelConfig: side is {self.side}; it must be 1 to 224")


class PixelFeatures(nn.Module):
    """A frame's colors, averaged over a square grid and standardized: ``[B, 3, side, side] -> [B, 3 side^2]``.

    For small models. Its tensors are mean and deviation of the training frames, 0 and 1 to begin with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(self.width))
        self.register_buffer("std", torch.ones(self.width))

    @property
    def width(self) -> int:
        """Numbers of a feature."""
        return 3 * self.config.side**2

    def pixels(self, frame_HW3: Tensor) -> Tensor:
        """Return one RGB frame of 0..255 as [3, side, side] of 0..1."""
        pixels_13HW = frame_HW3.permute(2, 0, 1)[None].float()
        return torch.nn.functional.adaptive_avg_pool2d(pixels_13HW, self.config.side)[0] / 255

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Return the features."""
        return (pixels_B3HW.flatten(1) - self.mean) / self.std


class FrameFeatures(nn.Module):
    """ResNet-50 of torchvision without its classifier: ``[B, 3, 224, 224] -> [B, 2048]``, no value below 0."""

    width = FEATURE_WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = torchvision.models.resnet50(weights=None)
        self.net.fc = nn.Identity()

    def pixels(self, frame_HW3: Tensor) -> Tensor:
        """Return one RGB frame of 0..255 as [3, 224, 224]."""
        return resnet_pixels(frame_HW3)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Return the pooled features."""
        feats_BE: Tensor = self.net(pixels_B3HW)
        return feats_BE

    def fill(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Take the weights of a torchvision file and return the names that are not used. Raises ``RuntimeError`` else."""
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
        self.net.load_state_dict(own)
        return sorted(tensors.keys() - own.keys())


FrameNetwork: TypeAlias = FrameFeatures | PixelFeatures
"""Frames of any size become pixels of one size (``pixels``), these features of ``width`` numbers, many frames together."""
