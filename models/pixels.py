"""From RGB frames to the pixels that a vision tower takes: resize, cut out the center, normalize, as the library does.

A frame's pixels do not depend on the other frames of the call.
"""

# F frames, H and h rows, W and w columns

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CLIP_PIXELS", "HALF_PIXELS", "Color", "tower_pixels"]

CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of CLIP's training, per color, of values in 0..1."""

HALF_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""The same of SigLIP's."""

Color = tuple[float, float, float]


def tower_pixels(frames_FHW3: Tensor, size: tuple[int, int], mean_std: tuple[Color, Color], *, crop: bool) -> Tensor:
    """Return RGB frames of 0..255 as [F, 3, h, w] float32 for a tower of ``size`` = (h, w).

    ``crop``: keep the aspect ratio and cut out the center; else both sides are scaled on their own.
    """
    import torch  # constants of this file are read by what must be quick, such as ``check``

    from models.uploads import upload

    pixels = frames_FHW3.permute(0, 3, 1, 2).float()
    rows, columns = size
    if tuple(pixels.shape[-2:]) != size:
        target = size
        if crop:
            factor = max(rows / pixels.shape[-2], columns / pixels.shape[-1])
            target = (round(pixels.shape[-2] * factor), round(pixels.shape[-1] * factor))
        pixels = torch.nn.functional.interpolate(pixels, target, mode="bicubic", antialias=True)
        top, left = (pixels.shape[-2] - rows) // 2, (pixels.shape[-1] - columns) // 2
        # Processors resize images of whole numbers.
        pixels = pixels[..., top : top + rows, left : left + columns].round().clamp(0, 255)
    center, spread = (upload(torch.tensor(v).view(1, 3, 1, 1), pixels.device) for v in mean_std)
    return (pixels / 255 - center) / spread
