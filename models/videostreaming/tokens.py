"""Patches of a frame to its tokens, its summary tokens and a clip's global token (paper section 3.1). No weights."""

# F frames, S patches per side of a frame, D width of a patch, T frames of a clip, N tokens per frame, C width of a token

from __future__ import annotations

import math

import torch
from torch import Tensor

from connectors.errors import ConfigError

__all__ = ["check_grid", "global_token", "merge_patches", "pool_summaries"]


def check_grid(tokens: int, summaries: int) -> None:
    """Raise ``ConfigError`` unless frames of so many tokens have a square grid that can be pooled to so many summaries."""
    side, target = math.isqrt(tokens), math.isqrt(summaries)
    if side * side != tokens or target * target != summaries or target > side:
        raise ConfigError(
            f"videostreaming: a frame has {tokens} tokens and {summaries} summaries; both must be square numbers, and there "
            "must be no more summaries than tokens"
        )


def merge_patches(patches_FND: Tensor) -> Tensor:
    """Join each 2x2 block of patches along the channels: [F, S*S, D] becomes [F, S*S/4, 4*D].

    Channel order: top left, top right, bottom left, bottom right (inferred; it must be that of training).
    """
    frames, patches, width = patches_FND.shape
    side = math.isqrt(patches)
    if side * side != patches or side % 2:
        raise ConfigError(
            f"videostreaming: the vision tower gives {patches} patches per frame; 2x2 blocks are joined, so they must form a "
            "square of even sides"
        )
    blocks = patches_FND.reshape(frames, side // 2, 2, side // 2, 2, width)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(frames, patches // 4, 4 * width)


def pool_summaries(features_TNC: Tensor, summaries: int) -> Tensor:
    """Return the summary tokens before the encoder, [T * summaries, C]: each frame's grid, averaged (inferred)."""
    frames, tokens, width = features_TNC.shape
    side, target = math.isqrt(tokens), math.isqrt(summaries)
    grid_TCSS = features_TNC.reshape(frames, side, side, width).permute(0, 3, 1, 2)
    pooled_TCss = torch.nn.functional.adaptive_avg_pool2d(grid_TCSS, target)
    return pooled_TCss.permute(0, 2, 3, 1).reshape(frames * summaries, width)


def global_token(features_TNC: Tensor) -> Tensor:
    """Return the global token before the encoder, [1, C]: the mean of all tokens of the clip (paper)."""
    return features_TNC.mean(dim=(0, 1)).unsqueeze(0)
