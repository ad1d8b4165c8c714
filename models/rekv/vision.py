"""Frames to tokens, for families with one size of frames: resize and normalize as processors do, vision tower, projector.

Pure function of the frames; a frame's tokens do not depend on the other frames of the call. Color order is RGB.
"""

# F frames, T tokens per frame, C hidden size, H rows, W columns

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from connectors.errors import ConfigError
from models.pixels import tower_pixels
from models.rekv.families import FAMILIES
from models.uploads import upload

__all__ = ["FrameEncoder"]


@dataclass(frozen=True, slots=True, eq=False)
class FrameEncoder:
    """The vision side of a model of one of these families."""

    model: Any
    """The whole model as transformers loads it."""
    family: str
    size: tuple[int, int]
    """Rows and columns that the tower takes, px."""

    @staticmethod
    def of(model: Any, family: str) -> FrameEncoder:
        """Wrap a loaded model. Raises ``ConfigError`` for a family that takes frames of any size."""
        if FAMILIES[family].video is not None:
            fixed = sorted(name for name, known in FAMILIES.items() if known.video is None)
            raise ConfigError(f"rekv: frames of {family} have no one size; this needs a model of {fixed}")
        side = model.config.vision_config.image_size
        return FrameEncoder(model, family, (side, side) if isinstance(side, int) else (side[0], side[1]))

    def pixels(self, frames_FHW3: Tensor) -> Tensor:
        """Return uint8 RGB frames [F, H, W, 3] as the tower's input [F, 3, h, w], float32."""
        family = FAMILIES[self.family]
        return tower_pixels(frames_FHW3, self.size, family.mean_std, crop=family.crop)

    @torch.inference_mode()
    def __call__(self, frames_FHW3: Tensor) -> Tensor:
        """Return the tokens [F, T, C] of uint8 RGB frames [F, H, W, 3] of any one size."""
        return self.tokens(frames_FHW3)

    def tokens(self, frames_FHW3: Tensor) -> Tensor:
        """Return what a call returns, with gradients where parameters want them."""
        count, core = frames_FHW3.shape[0], self.model.model
        weight = next(self.model.parameters())
        pixels_F3HW = self.pixels(upload(frames_FHW3, weight.device)).to(weight.dtype)
        if self.family == "internvl":
            features: Tensor = core.get_image_features(pixels_F3HW, return_dict=True).pooler_output
            return features
        features = core.get_video_features(pixels_F3HW.unsqueeze(0), return_dict=True).pooler_output
        if self.family == "llava_onevision":
            # Pooled to half the patches per side. Newer versions of the library append a separator, which ReKV does not use.
            side = (self.size[0] // self.model.config.vision_config.patch_size + 1) // 2
            features = features[0, : count * side * side]
        return features.reshape(count, -1, features.shape[-1])
