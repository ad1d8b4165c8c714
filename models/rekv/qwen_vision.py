"""The vision tower of the Qwen-VL family on frames of any size: scaled to whole cells, two at a time, as its processors do.

A cell is what becomes one token: 2 x 2 patches. The tower looks at two frames together and never beyond them, so a stream goes
through it pair by pair (Qwen2.5-VL's attention within windows included). No stream here; color order is RGB.
"""

# F blocks, P frames of a block, H rows and W columns in pixels, T tokens of a block, C width, J levels of deepstack features

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.pixels import Color
from models.uploads import upload

__all__ = ["QwenVision", "cells"]

Image = npt.NDArray[np.uint8] | npt.NDArray[np.float32] | Tensor


def cells(height: int, width: int, side: int, most: int) -> tuple[int, int]:
    """Return rows and columns of cells of ``side`` px for an image: at most ``most`` of them, at least half as many.

    Between these the number of pixels stays, to the nearest cell. The aspect ratio is kept as far as whole cells allow.
    """
    rows, columns = (max(round(length / side), 1) for length in (height, width))
    least = max(most // 2, 1)
    if rows * columns > most:
        factor = math.sqrt(most * side * side / (height * width))
        rows, columns = (max(math.floor(length * factor / side), 1) for length in (height, width))
    elif rows * columns < least:
        factor = math.sqrt(least * side * side / (height * width))
        rows, columns = (math.ceil(length * factor / side) for length in (height, width))
    # What rounding has left outside: images that are very long, and the smallest numbers of cells.
    short = min(rows, columns)
    long = min(max(rows, columns, -(-least // short)), most // short)
    return (short, long) if height < width else (long, short)


@dataclass(frozen=True, slots=True, eq=False)
class QwenVision:
    """The vision side of a Qwen-VL model."""

    core: Any
    """What holds the tower: ``model.model`` as transformers loads it."""
    mean_std: tuple[Color, Color]
    frame_tokens: int
    """Most tokens of a frame."""
    frames_per_block: int = 2
    """2: as in training on video; 1: every frame is seen twice, as images are."""

    @property
    def side(self) -> int:
        """Pixels of a side of a cell."""
        vision = self.core.config.vision_config
        return int(vision.patch_size * vision.spatial_merge_size)

    def resize(self, image: Image) -> npt.NDArray[np.uint8] | Tensor:
        """Scale an RGB image of 0..255, [H, W, 3], to whole cells, where it lies; what the tower takes as uint8."""
        rows, columns = cells(image.shape[0], image.shape[1], self.side, self.frame_tokens)
        size = (rows * self.side, columns * self.side)
        if image.shape[:2] == size:
            return image if isinstance(image, Tensor) else np.rint(image).astype(np.uint8, copy=False)
        given = image if isinstance(image, Tensor) else torch.from_numpy(np.ascontiguousarray(image))
        pixels = given.permute(2, 0, 1).unsqueeze(0).float()
        scaled = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
        whole = scaled[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
        return whole if isinstance(image, Tensor) else whole.numpy()

    def patches(self, frames_FPHW3: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches of blocks of frames of one size, as processors hand them over, and their (time, rows, columns)."""
        vision = self.core.config.vision_config
        patch, merge, together = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        blocks, frames, height, width, _ = frames_FPHW3.shape
        center, spread = (torch.tensor(v, device=frames_FPHW3.device) for v in self.mean_std)
        pixels = (frames_FPHW3.float() / 255 - center) / spread
        if frames < together:
            pixels = torch.cat((pixels, pixels[:, -1:].expand(-1, together - frames, -1, -1, -1)), dim=1)
        rows, columns = height // patch, width // patch
        split = pixels.reshape(blocks, together, rows // merge, merge, patch, columns // merge, merge, patch, 3)
        flat = split.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(blocks * rows * columns, -1)
        return flat, torch.tensor([[1, rows, columns]] * blocks, device=flat.device)

    @torch.inference_mode()
    def __call__(self, frames_FPHW3: Tensor) -> Tensor:
        """Return the tokens [F, T, (1 + J) C] of blocks of uint8 RGB frames of one size that :meth:`resize` returned.

        Beside the embeddings of a token stands what Qwen3-VL adds behind its first J layers; J = 0 for the others.
        """
        return self.tokens(frames_FPHW3)

    def tokens(self, frames_FPHW3: Tensor) -> Tensor:
        """Return what a call returns, with gradients where parameters want them."""
        weight = next(self.core.visual.parameters())
        flat, grid_F3 = self.patches(upload(frames_FPHW3, weight.device))
        features = self.core.get_video_features(flat.to(weight.dtype), grid_F3, return_dict=True)
        levels = [features.pooler_output, *(getattr(features, "deepstack_features", None) or ())]
        tokens_nC = [level if isinstance(level, Tensor) else torch.cat(tuple(level)) for level in levels]
        wide_nC = torch.cat(tokens_nC, dim=-1)
        return wide_nC.reshape(len(frames_FPHW3), -1, wide_nC.shape[-1])
