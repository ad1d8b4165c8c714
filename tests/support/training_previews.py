"""What tests ask of the pictures that a training leaves on its way."""

from __future__ import annotations

from typing import Any

import cv2

from models.training import TrainResult

__all__ = ["check_previews"]


def check_previews(result: TrainResult, stages: dict[str, int], *, size: tuple[int, int] | None = None) -> list[Any]:
    """Require so many pictures of each stage, none of one color; return the last one of each stage, red first.

    ``size``: height and width of all of them.
    """
    names = [path.stem.rpartition("-")[0] for path in result.previews]
    assert {name: names.count(name) for name in names} == stages
    pictures = {}
    for name, path in zip(names, result.previews, strict=True):
        picture = cv2.imread(str(path))
        assert picture is not None and picture.std() > 5, path
        assert size is None or picture.shape[:2] == size, picture.shape
        pictures[name] = picture[..., ::-1]
    return list(pictures.values())
