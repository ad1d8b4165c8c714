"""Pictures of what a training makes so far, in the folder ``previews`` beside its checkpoint. Knows no network and no data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from connectors import durable
from connectors.extras import optional
from connectors.options import option

cv2 = optional("cv2")

__all__ = ["PREVIEWS", "Picture", "PreviewOptions", "preview_steps", "write_preview"]

PREVIEWS = "previews"
"""The folder's name. A picture is called by its stage and the updates made: ``finetune-00000060.png``."""

Picture = NDArray[np.uint8]
"""[H, W, 3], red, green, blue."""

_PER_STAGE = 4


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """Options of trainings that have something to show."""

    preview_every: int | None = option(
        None,
        "Updates between previews, pictures in the folder `previews` of what is learned so far; 0: none. Default: four in all.",
        unit="updates",
        ge=0,
    )


def preview_steps(every: int | None, steps: int) -> int:
    """Return after how many updates each a stage of ``steps`` is to be shown; 0: never."""
    return max(1, -(-steps // _PER_STAGE)) if every is None else every


def write_preview(folder: Path, stage: str, done: int, picture: Picture) -> Path:
    """Write a picture of a stage after so many updates, in one step; return where."""
    path = folder / PREVIEWS / f"{stage}-{done:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".png", picture[..., ::-1])  # OpenCV takes blue first
    durable.write(path, data.tobytes())
    return path
