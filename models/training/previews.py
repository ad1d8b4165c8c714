"""Pictures of what a training makes so far, in the folder ``previews`` beside its checkpoint. Knows no network and no data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from connectors.charts import Picture, write_picture
from connectors.errors import ConfigError
from connectors.extras import missing
from connectors.options import option

__all__ = ["PREVIEWS", "Picture", "PreviewOptions", "at_rest", "preview_steps", "write_preview"]

PREVIEWS = "previews"
"""The folder's name. A picture is called by its stage and the updates made: ``finetune-00000060.png``."""

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
    """Return after how many updates each a stage of ``steps`` is to be shown; 0: never.

    Without OpenCV, which draws, there are none; raises ``ConfigError`` where ``every`` asks for them all the same.
    """
    if every == 0:
        return 0
    if (told := missing(["cv2"])) is not None:
        if every is None:
            return 0
        raise ConfigError(f"preview_every is {every}: {told}; or leave it out")
    return max(1, -(-steps // _PER_STAGE)) if every is None else every


def write_preview(folder: Path, stage: str, done: int, picture: Picture) -> Path:
    """Write a picture of a stage after so many updates, in one step; return where."""
    path = folder / PREVIEWS / f"{stage}-{done:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, picture)
    return path


@contextlib.contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Let the block use a model as it is used later, without dropout and gradients; behind it all is as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, before in training.items():
            module.training = before
