"""What a detector finds so far, drawn on frames: the picture that a training leaves beside its checkpoint."""

# H rows, W columns, G annotated boxes, D detections

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from connectors.extras import optional
from models.mamba.frames import FrameStore
from models.mamba.model import Mamba
from models.mamba.validation import detect_with_references
from models.training import Picture, at_rest

cv2 = optional("cv2")

__all__ = ["preview"]

_FRAMES, _ACROSS, _REFERENCES = 6, 3, 3
_WIDTH = 320  # of a frame, px
_SURE = 0.3
"""Boxes of a lower score are not drawn."""
_WHITE = (255, 255, 255)


def preview(model: Mamba, store: FrameStore) -> Picture:
    """Return up to six frames of ``store`` with what the model finds, class and score, under the annotated boxes in thin white.

    Frames are spread evenly; each sees three others of its video, as in :func:`models.mamba.validation.validate`. Draws nothing
    at random, and leaves the model in training mode.
    """
    with at_rest(model):
        tiles = [_tile(model, store, int(i)) for i in _spread(range(len(store.videos)), _FRAMES)]
    height = max(len(tile) for tile in tiles)
    across = min(_ACROSS, len(tiles))
    tiles += [np.zeros((0, _WIDTH, 3), np.uint8)] * (-len(tiles) % across)
    full = [np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0))) for tile in tiles]
    rows = [np.concatenate(full[start : start + across], axis=1) for start in range(0, len(full), across)]
    return np.concatenate(rows)


def _spread(numbers: range, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(numbers.start, numbers.stop - 1, min(most, len(numbers))).round().astype(np.int64))


def _tile(model: Mamba, store: FrameStore, i: int) -> Picture:
    """Return a frame, drawn and of the tiles' width."""
    videos = store.videos
    image = store.read(i)
    others = _spread(videos.frames_of(int(videos.video_I[i])), _REFERENCES)
    found = detect_with_references(
        model, torch.from_numpy(image), [torch.from_numpy(store.read(int(other))) for other in others]
    )
    factor = _WIDTH / image.shape[1]
    tile = cv2.resize(image, (_WIDTH, max(1, round(image.shape[0] * factor))), interpolation=cv2.INTER_AREA)
    boxes_D4, scores_D, labels_D = (column.cpu().numpy() for column in found)
    for box, score, label in zip(boxes_D4, scores_D, labels_D, strict=True):
        if score < _SURE:
            continue
        red, green, blue = colorsys.hsv_to_rgb(int(label) * 0.381966 % 1, 0.75, 1.0)  # golden angle: neighbors differ
        color = (round(255 * red), round(255 * green), round(255 * blue))
        first, last = _corners(box, factor)
        cv2.rectangle(tile, first, last, color, 2)
        text = f"{videos.classes[int(label)]} {score:.2f}"
        place = (first[0], max(first[1] - 4, 10))
        for shade, thick in (((0, 0, 0), 3), (color, 1)):  # an edge of black: to be read on any frame
            cv2.putText(tile, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, shade, thick, cv2.LINE_AA)
    for box in videos.objects(i)[0]:
        cv2.rectangle(tile, *_corners(box, factor), _WHITE, 1)
    drawn: Picture = tile
    return drawn


def _corners(box: Sequence[float] | NDArray[np.float32], factor: float) -> tuple[tuple[int, int], tuple[int, int]]:
    x1, y1, x2, y2 = (round(float(value) * factor) for value in box)
    return (x1, y1), (x2, y2)
