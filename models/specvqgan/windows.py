"""Windows of seen and heard clips: the tokens of their sound and the features of their frames, as the operator aligns them.

Row r of the features stands beside the mel frames 4 r to 4 r + 3.
"""

# M windows, R rows, P pixels, W columns, N tokens, E feature width, F features

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.specvqgan.autoencoder import Autoencoder
from models.specvqgan.bounces import Clip
from models.specvqgan.config import COLUMN_FRAMES, FEATURE_FRAMES, HOP, RATE, ROWS
from models.specvqgan.mel import one_shot_mel
from models.specvqgan.tokens import sequence_of
from models.specvqgan.vision import PixelFeatures, slots_of

__all__ = ["COLUMN_ROWS", "ROW_RATE", "WindowSet", "clip_rows_at", "column_seconds", "fit_pixels"]

COLUMN_ROWS = COLUMN_FRAMES // FEATURE_FRAMES
"""Feature rows beside a column."""
ROW_RATE = RATE / (HOP * FEATURE_FRAMES)
"""Feature rows per second where sound and vision stay together for hours."""

_LEAST_STD = 0.05
_FRAME_RATES = (24.0, 25.0, 30.0)


def column_seconds(columns: int) -> float:
    """Return how long so many columns sound."""
    return columns * COLUMN_FRAMES * HOP / RATE


def clip_rows_at(clip: Clip, rows: int, features: PixelFeatures, *, frame_rate: float = 30.0) -> Tensor:
    """Return the pixels [R, 3, side, side] of the first ``rows`` feature rows of a clip, filmed at ``frame_rate``."""
    count = int(min(rows / ROW_RATE + 1, clip.seconds) * frame_rate)
    frames = slots_of([number / frame_rate for number in range(count)], ROW_RATE)[:rows]
    seen: dict[int, Tensor] = {}
    for number in frames:
        if number not in seen:
            seen[number] = features.pixels(torch.from_numpy(clip.frame(number / frame_rate)))
    return torch.stack([seen[number] for number in frames])


def fit_pixels(features: PixelFeatures, pixels: Sequence[Tensor]) -> None:
    """Set mean and deviation of the features to those of pixels [R, 3, side, side]; hardly any deviation counts as some."""
    flat_RP = torch.cat([part.flatten(1) for part in pixels]).double()
    features.mean.copy_(flat_RP.mean(0))
    features.std.copy_(flat_RP.std(0).clamp_min(_LEAST_STD))


@dataclass(frozen=True, slots=True, eq=False)
class WindowSet:
    """Windows to learn tokens from."""

    pixels_MRP: Tensor
    """Standardized features, half precision."""
    tokens_MN: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        clips: Sequence[Clip],
        model: Autoencoder,
        features: PixelFeatures,
        columns: int,
        generator: torch.Generator,
        *,
        windows: int = 12,
    ) -> WindowSet:
        """Cut so many windows out of the tokens of each clip: from its beginning, and at drawn columns.

        A clip is encoded whole, from its beginning and from a drawn row on, so that a bounce stands at many places of a column.
        The tokens of a window of its own depend on where it begins: what one window leaves to the next would be unlike what the
        network has learned to go on from. Mean and deviation of ``features`` become those of the clips if they are still 0, 1.
        """
        rng = np.random.default_rng(int(torch.randint(1 << 31, (1,), generator=generator)))
        pixels, tokens = [], []
        for clip in clips:
            total = int(clip.seconds * ROW_RATE)
            rows_R3HW = clip_rows_at(clip, total, features, frame_rate=float(rng.choice(_FRAME_RATES)))
            mel_HT = one_shot_mel(torch.from_numpy(clip.samples()))[:, : total * FEATURE_FRAMES]
            for first, share in ((0, windows - windows // 2), (int(rng.integers(COLUMN_ROWS)), windows // 2)):
                (tokens_N,) = sequence_of(model.encode(2 * mel_HT[None, None, :, first * FEATURE_FRAMES :] - 1))
                places = rng.integers(len(tokens_N) // ROWS - columns + 1, size=share)
                places[: 1 if first == 0 else 0] = 0
                for column in places.tolist():
                    row = first + column * COLUMN_ROWS
                    pixels.append(rows_R3HW[row : row + columns * COLUMN_ROWS])
                    tokens.append(tokens_N[column * ROWS : (column + columns) * ROWS])
        if not features.mean.any():
            fit_pixels(features, pixels)
        return cls(torch.stack([features(part).half() for part in pixels]), torch.stack(tokens))

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return features [B, E, F] and tokens [B, N] of drawn windows."""
        return self.rows(torch.randint(len(self.tokens_MN), (batch,), generator=generator))

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, E, F] and tokens [B, N] of some windows."""
        return self.pixels_MRP[rows].float().transpose(1, 2), self.tokens_MN[rows]
