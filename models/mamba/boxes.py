"""Box geometry of the detector: anchors, delta coding, IoU. Boxes are (x1, y1, x2, y2) in pixels, never rounded.

Knows nothing about networks or scores. Written here rather than taken from torchvision because its ``AnchorGenerator``
rounds the anchors and its ``BoxCoder`` clamps only large dw, dh and to another bound.
"""

# B batch, A anchors per cell, N boxes, M other boxes, H height, W width, K classes

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["MAX_LOG_RATIO", "base_anchors", "box_iou", "clip_boxes", "decode_boxes", "encode_boxes", "grid_anchors"]

MAX_LOG_RATIO = math.log(1000.0 / 16.0)
"""dw and dh are clamped to ± this value, on both sides."""


def base_anchors(base: float, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Return ``[A, 4]`` anchors centered on the origin, ratio (h / w) as the outer loop, scale as the inner one."""
    root_R = torch.tensor(ratios, dtype=torch.float32).sqrt()
    scale_S = torch.tensor(scales, dtype=torch.float32)
    width_A = (base / root_R[:, None] * scale_S).flatten()
    height_A = (base * root_R[:, None] * scale_S).flatten()
    return torch.stack([-width_A, -height_A, width_A, height_A], dim=1) * 0.5


def grid_anchors(base_A4: Tensor, height: int, width: int, stride: float) -> Tensor:
    """Return ``[H·W·A, 4]`` anchors of a map, row by row: the cell (row, col) is centered on (stride·col, stride·row)."""
    x_W = torch.arange(width, device=base_A4.device, dtype=base_A4.dtype) * stride
    y_H = torch.arange(height, device=base_A4.device, dtype=base_A4.dtype) * stride
    y_HW, x_HW = torch.meshgrid(y_H, x_W, indexing="ij")
    shift_HW14 = torch.stack([x_HW, y_HW, x_HW, y_HW], dim=-1)[:, :, None]
    return (shift_HW14 + base_A4).reshape(-1, 4)


def decode_boxes(boxes_N4: Tensor, deltas_N4: Tensor) -> Tensor:
    """Move boxes ``[..., 4]`` by deltas (dx, dy, dw, dh) ``[..., 4]``; leading dimensions broadcast."""
    size_N2 = boxes_N4[..., 2:] - boxes_N4[..., :2]
    center_N2 = (boxes_N4[..., :2] + boxes_N4[..., 2:]) * 0.5 + deltas_N4[..., :2] * size_N2
    half_N2 = size_N2 * deltas_N4[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    return torch.cat([center_N2 - half_N2, center_N2 + half_N2], dim=-1)


def encode_boxes(boxes_N4: Tensor, targets_N4: Tensor) -> Tensor:
    """Return the deltas that move ``boxes`` onto ``targets``: the inverse of :func:`decode_boxes` for positive sizes."""
    size_N2 = boxes_N4[..., 2:] - boxes_N4[..., :2]
    shift_N2 = (targets_N4[..., :2] + targets_N4[..., 2:] - boxes_N4[..., :2] - boxes_N4[..., 2:]) * 0.5
    ratio_N2 = (targets_N4[..., 2:] - targets_N4[..., :2]) / size_N2
    return torch.cat([shift_N2 / size_N2, ratio_N2.log()], dim=-1)


def clip_boxes(boxes_BN4: Tensor, sizes_B2: Tensor) -> Tensor:
    """Clip boxes ``[B, ..., 4]`` to their images: x to [0, w], y to [0, h] for sizes (h, w) in pixels."""
    limit_B4 = sizes_B2.to(boxes_BN4.dtype).flip(1).repeat(1, 2)
    limit_B14 = limit_B4.reshape(-1, *(1,) * (boxes_BN4.dim() - 2), 4)
    return torch.minimum(boxes_BN4.clamp(min=0.0), limit_B14)


def box_iou(boxes_N4: Tensor, others_M4: Tensor) -> Tensor:
    """Return ``[..., N, M]`` intersection over union; two empty boxes give 0. Leading dimensions broadcast."""
    low_NM2 = torch.maximum(boxes_N4[..., :, None, :2], others_M4[..., None, :, :2])
    high_NM2 = torch.minimum(boxes_N4[..., :, None, 2:], others_M4[..., None, :, 2:])
    overlap_NM = (high_NM2 - low_NM2).clamp(min=0.0).prod(dim=-1)
    union_NM = _area(boxes_N4)[..., :, None] + _area(others_M4)[..., None, :] - overlap_NM
    return overlap_NM / union_NM.clamp(min=1e-6)


def _area(boxes_N4: Tensor) -> Tensor:
    return (boxes_N4[..., 2:] - boxes_N4[..., :2]).prod(dim=-1)
