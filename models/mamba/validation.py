"""Precision of a detector on annotated videos, each frame with references spread evenly over its video.

That is the published way into a video (first frame of the official protocol), for both levels and without draws that change
from run to run; it looks ahead, so it says how good the weights are, not what a live stream gets.
"""

# R references, K rows per reference, M remembered rows, C channels, L map cells, F RoI features

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.mamba.evaluate import Found, Objects, Precision, mean_average_precision
from models.mamba.frames import FrameStore
from models.mamba.losses import TrainingRules
from models.mamba.model import Detections, Mamba

__all__ = ["detect_with_references", "validate"]

_REFERENCES = 14  # of the official protocol


class _Keys(NamedTuple):
    stages: list[Tensor]
    """[1, M, C] per stage of the box head."""
    cells_1MC: Tensor | None


@torch.no_grad()
def validate(model: Mamba, store: FrameStore, *, references: int = _REFERENCES) -> Precision:
    """Return the average precision at IoU 0.5 (plain overlap) over all frames. Leaves the model in eval mode."""
    model.eval()
    videos = store.videos
    found: list[tuple[np.ndarray, ...]] = []
    for video in range(len(videos.video_names)):
        frames = videos.frames_of(video)
        if not frames:
            continue
        spread = np.unique(np.linspace(0, len(frames) - 1, min(references, len(frames))).round().astype(int))
        keys = _remember(model, [torch.from_numpy(store.read(frames[int(p)])) for p in spread])
        for i in frames:
            detections = _detect(model, torch.from_numpy(store.read(i)), keys)
            found.append((np.full(len(detections.labels_D), i), *(column.cpu().numpy() for column in detections)))
    image_D, boxes_D4, scores_D, labels_D = (np.concatenate(column) for column in zip(*found, strict=True))
    image_N = np.repeat(np.arange(len(videos)), np.diff(videos.first_I))
    return mean_average_precision(
        Objects(image_N, videos.boxes_N4, videos.labels_N),
        Found(image_D, boxes_D4, labels_D, scores_D),
        classes=len(videos.classes),
        published=False,
    )


@torch.no_grad()
def detect_with_references(model: Mamba, image: Tensor, references: list[Tensor]) -> Detections:
    """Return the detections of one image (RGB uint8 ``[H, W, 3]``) that attends to ``references`` and nothing else."""
    return _detect(model, image, _remember(model, references))


def _remember(model: Mamba, images: list[Tensor]) -> _Keys:
    """Return the rows that the references leave, as in training: plain RoI features; random cells for the pixel level."""
    rules = TrainingRules()
    device = next(model.parameters()).device
    rows, cells = [], []
    for image in images:  # one at a time: references may differ in size, and memory stays small
        prepared = model.prepare([image], device)
        map_BCHW = model.encode(prepared.pixels_BCHW)
        feature = model.neck(map_BCHW)
        proposals = model.propose(feature, prepared.sizes_B2)
        valid = proposals.valid_BN[:, : rules.reference_rois]
        boxes = proposals.boxes_BN4[:, : rules.reference_rois][valid][None]
        rows.append(model.roi_features(feature, boxes))
        if model.pixel is not None:
            source = map_BCHW if model.config.pixel_position == "backbone" else feature
            cells.append(source.flatten(2).transpose(1, 2))
    x_1MF, stages = torch.cat(rows, dim=1), []
    for fc in model.head.fc:
        h_1MC = fc(x_1MF)
        stages.append(h_1MC)
        x_1MF = F.relu(h_1MC)
    if not cells:
        return _Keys(stages, None)
    cells_1MC = torch.cat(cells, dim=1)
    order = torch.randperm(cells_1MC.shape[1], generator=torch.Generator().manual_seed(0))[: rules.pixel_cells]
    return _Keys(stages, cells_1MC[:, order.to(device)])


def _detect(model: Mamba, image: Tensor, keys: _Keys) -> Detections:
    images = model.prepare([image], next(model.parameters()).device)
    map_BCHW = model.encode(images.pixels_BCHW)
    if model.config.pixel_position == "backbone":
        feature = model.neck(_enhance(model, map_BCHW, keys.cells_1MC))
    else:
        feature = _enhance(model, model.neck(map_BCHW), keys.cells_1MC)
    proposals = model.propose(feature, images.sizes_B2)
    x_1NC = model.roi_features(feature, proposals.boxes_BN4)
    for fc, attention, rows_1MC in zip(model.head.fc, model.head.attention, keys.stages, strict=True):
        h_1NC = fc(x_1NC)
        x_1NC = F.relu(h_1NC + attention(h_1NC, rows_1MC))
    cls, reg = model.head.predict(x_1NC)
    return model.detect(cls, reg, proposals, images.sizes_B2, images.scales_B2)[0]


def _enhance(model: Mamba, map_1CHW: Tensor, cells_1MC: Tensor | None) -> Tensor:
    if model.pixel is None or cells_1MC is None:
        return map_1CHW
    rows_1LC = map_1CHW.flatten(2).transpose(1, 2)
    enhanced_1LC: Tensor = rows_1LC + model.pixel(rows_1LC, cells_1MC)
    return enhanced_1LC.transpose(1, 2).reshape(map_1CHW.shape)
