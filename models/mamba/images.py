"""From camera images to the network's input: resize, normalize, pad.

Works on tensors of any device, knows nothing about codecs. Padding is added after normalizing, so padded pixels are 0.
"""

# B batch, C color, H height, W width

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.mamba.config import MambaConfig
from models.uploads import upload

__all__ = ["MIN_SIDE", "Prepared", "is_too_small", "padded_size", "prepare_images", "resized_size"]

MIN_SIDE = 16
"""px; an image with a shorter side after resizing has no feature cell of its own and must be rejected by the caller."""


class Prepared(NamedTuple):
    """Images of one padded size, ready for the backbone."""

    pixels_BCHW: Tensor
    """float32, RGB, normalized; zeros below and right of each image."""
    sizes_B2: Tensor
    """float32 (h, w) in px after resizing, without padding."""
    scales_B2: Tensor
    """float32 (y, x) factors resized / original. They differ by a rounding, so each axis has its own."""


def resized_size(config: MambaConfig, height: int, width: int) -> tuple[int, int]:
    """Return (h, w) after scaling by ``min(max_long_side / long, max_short_side / short)``, rounded half up."""
    long, short = max(height, width), min(height, width)
    scale = min(config.max_long_side / long, config.max_short_side / short)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def padded_size(config: MambaConfig, height: int, width: int) -> tuple[int, int]:
    """Return (h, w) of the network input for an image of this size: resized, then up to a multiple of ``pad_multiple``."""
    step = config.pad_multiple
    h, w = resized_size(config, height, width)
    return -(-h // step) * step, -(-w // step) * step


def is_too_small(config: MambaConfig, height: int, width: int) -> bool:
    """Tell whether an image must be rejected: no pixels, or a side below ``MIN_SIDE`` px after resizing."""
    return min(height, width) <= 0 or min(resized_size(config, height, width)) < MIN_SIDE


def prepare_images(config: MambaConfig, images: Sequence[Tensor], device: torch.device | str) -> Prepared:
    """Resize, normalize, pad and stack RGB images (uint8, ``[H, W, 3]``) on ``device``.

    Bilinear without antialiasing and rounded to whole levels, as the official input pipeline did on uint8 images. Images may
    differ in size but must share ``padded_size``; raises ``ValueError`` otherwise.
    """
    if not images:
        raise ValueError("prepare needs at least one image")
    buckets = {padded_size(config, image.shape[0], image.shape[1]) for image in images}
    if len(buckets) > 1:
        raise ValueError(f"images of one batch must share a padded size, got {sorted(buckets)}; group them by padded_size")
    height, width = buckets.pop()
    mean_C, std_C = (upload(torch.tensor(rgb)[:, None, None], device) for rgb in (config.mean_rgb, config.std_rgb))
    pixels_BCHW = torch.zeros(len(images), 3, height, width, device=device)
    sizes: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(i)
    sizes_B2, scales_B2 = torch.empty(len(images), 2), torch.empty(len(images), 2)
    for shape, members in sizes.items():
        h, w = resized_size(config, shape[0], shape[1])
        # Color to the front while it is still one byte per value: arithmetic with color innermost is several times slower.
        raw_BCHW = upload(torch.stack([images[i] for i in members]), device).permute(0, 3, 1, 2).contiguous().float()
        if (h, w) != (shape[0], shape[1]):
            raw_BCHW = F.interpolate(raw_BCHW, size=(h, w), mode="bilinear", align_corners=False).round_()
        raw_BCHW.sub_(mean_C).div_(std_C)
        if len(sizes) == 1:
            pixels_BCHW[:, :, :h, :w] = raw_BCHW
        else:
            pixels_BCHW[upload(torch.tensor(members), device), :, :h, :w] = raw_BCHW
        sizes_B2[members] = torch.tensor([h, w], dtype=torch.float32)
        scales_B2[members] = torch.tensor([h / shape[0], w / shape[1]], dtype=torch.float32)
    return Prepared(pixels_BCHW, upload(sizes_B2, device), upload(scales_B2, device))
