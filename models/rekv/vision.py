"""Frames to tokens: resize and normalize as each family's processor does, vision tower, projector.

Pure function of the frames; a frame's tokens do not depend on the other frames of the call. Color order is RGB.
"""

# F frames, T tokens per frame, C hidden size, H rows, W columns

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from connectors.errors import ConfigError

__all__ = ["FrameEncoder"]

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PIXELS = {  # family → mean, standard deviation, keep the aspect ratio and cut out the center
    "llava_onevision": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False),
    "video_llava": (_CLIP_MEAN, _CLIP_STD, True),
    "internvl": (_IMAGENET_MEAN, _IMAGENET_STD, False),
}


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
        """Wrap a loaded model. Raises ``ConfigError`` for a family whose vision side is not supported."""
        if family not in _PIXELS:
            raise ConfigError(
                f"rekv: frames cannot be encoded for {family}: only its text decoder is supported, give frame features; "
                f"supported are {sorted(_PIXELS)}"
            )
        side = model.config.vision_config.image_size
        return FrameEncoder(model, family, (side, side) if isinstance(side, int) else (side[0], side[1]))

    def pixels(self, frames_FHW3: Tensor) -> Tensor:
        """Return uint8 RGB frames [F, H, W, 3] as the tower's input [F, 3, h, w], float32."""
        pixels = frames_FHW3.permute(0, 3, 1, 2).float()
        mean, std, crop = _PIXELS[self.family]
        rows, columns = self.size
        if tuple(pixels.shape[-2:]) != self.size:
            if crop:
                factor = max(rows / pixels.shape[-2], columns / pixels.shape[-1])
                size = (round(pixels.shape[-2] * factor), round(pixels.shape[-1] * factor))
            else:
                size = self.size
            pixels = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
            top, left = (pixels.shape[-2] - rows) // 2, (pixels.shape[-1] - columns) // 2
            # Processors resize images of whole numbers.
            pixels = pixels[..., top : top + rows, left : left + columns].round().clamp(0, 255)
        shape = (1, 3, 1, 1)
        center, spread = (torch.tensor(v, device=pixels.device).view(shape) for v in (mean, std))
        return (pixels / 255 - center) / spread

    @torch.inference_mode()
    def __call__(self, frames_FHW3: Tensor) -> Tensor:
        """Return the tokens [F, T, C] of uint8 RGB frames [F, H, W, 3] of any one size."""
        return self.tokens(frames_FHW3)

    def tokens(self, frames_FHW3: Tensor) -> Tensor:
        """Return what a call returns, with gradients where parameters want them."""
        count, core = frames_FHW3.shape[0], self.model.model
        weight = next(self.model.parameters())
        pixels_F3HW = self.pixels(frames_FHW3.to(weight.device)).to(weight.dtype)
        if self.family == "internvl":
            features: Tensor = core.get_image_features(pixels_F3HW, return_dict=True).pooler_output
            return features
        features = core.get_video_features(pixels_F3HW.unsqueeze(0), return_dict=True).pooler_output
        if self.family == "llava_onevision":
            # Pooled to half the patches per side. Newer versions of the library append a separator, which ReKV does not use.
            side = (self.size[0] // self.model.config.vision_config.patch_size + 1) // 2
            features = features[0, : count * side * side]
        return features.reshape(count, -1, features.shape[-1])
