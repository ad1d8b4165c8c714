"""Images of any sizes to the features of a network that takes frames of one size at a time."""

# F frames of a call, H rows, W columns, T tokens per frame, C width

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from models.bounds import AlwaysFinite
from operators.frames import Frame, stack_frames

__all__ = ["PIXEL", "finite_frames", "frame_features"]


PIXEL = 255.0
"""The largest number in a frame."""


def frame_features(
    images: Sequence[Frame], encode: Callable[[Tensor], Tensor], batch_frames: int, finite: AlwaysFinite
) -> list[Tensor | None]:
    """Return the tokens [T, C] of RGB images; None where they are not finite. ``encode``: uint8 [F, H, W, 3] to [F, T, C].

    On a device the host looks at them only where ``finite``, of the same network, has no proof for frames of a size.
    """
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        sizes.setdefault(image.shape, []).append(i)
    features: list[Tensor | None] = [None] * len(images)
    for members in sizes.values():
        for start in range(0, len(members), batch_frames):
            chunk = members[start : start + batch_frames]
            frames_FHW3 = stack_frames([images[i] for i in chunk])
            tokens_FTC = encode(frames_FHW3)
            known = tokens_FTC.device.type != "cpu" and finite(frames_FHW3)
            good_F = [True] * len(chunk) if known else finite_frames(tokens_FTC).tolist()
            for i, tokens_TC, good in zip(chunk, tokens_FTC, good_F, strict=True):
                features[i] = tokens_TC if good else None
    return features


def finite_frames(features_FTC: Tensor) -> Tensor:
    """Tell which frames may be encoded, [F]: one not-a-number would spoil every later frame of its stream."""
    return features_FTC.isfinite().flatten(1).all(dim=1)
