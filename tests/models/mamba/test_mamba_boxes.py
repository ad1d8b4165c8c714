"""Anchors, delta coding and overlap, with the traps of torchvision's own versions of them.

A trap's test shows both: our value is the reference, and the trapped variant differs from it.
"""

import math

import pytest
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from models.mamba.boxes import MAX_LOG_RATIO, base_anchors, box_iou, decode_boxes, encode_boxes, grid_anchors

SCALES, RATIOS = (4.0, 8.0, 16.0, 32.0), (0.5, 1.0, 2.0)


def test_anchors_are_neither_rounded_nor_shifted_by_half_a_cell():
    base = base_anchors(16.0, SCALES, RATIOS)
    wanted = [
        (-0.5 * 16 * s / math.sqrt(r), -0.5 * 16 * s * math.sqrt(r), 0.5 * 16 * s / math.sqrt(r), 0.5 * 16 * s * math.sqrt(r))
        for r in RATIOS  # the ratio outside, the scale inside
        for s in SCALES
    ]
    torch.testing.assert_close(base, torch.tensor(wanted))
    assert float(base[0, 2]) == pytest.approx(45.2548, abs=1e-4)
    grid = grid_anchors(base, 2, 3, 16.0).reshape(2, 3, 12, 4)
    centers = (grid[..., :2] + grid[..., 2:]) / 2
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(centers[row, column], torch.tensor([16.0 * column, 16.0 * row]).expand(12, 2))
    generator = AnchorGenerator(sizes=(tuple(16 * s for s in SCALES),), aspect_ratios=(RATIOS,))
    trapped = generator(ImageList(torch.zeros(1, 3, 32, 48), [(32, 48)]), [torch.zeros(1, 1, 2, 3)])[0]
    assert float(trapped[0, 2]) == 45.0
    assert float((trapped - grid.reshape(-1, 4)).abs().max()) > 0.2


def test_width_and_height_deltas_are_clamped_on_both_sides():
    boxes = torch.tensor([[10.0, 20.0, 40.0, 60.0]]).expand(3, 4)
    deltas = torch.tensor([[0.0, 0.0, 9.0, -9.0], [0.1, -0.2, 4.0, 4.14], [0.5, 0.5, -0.3, 0.2]])
    wanted = []
    for (x1, y1, x2, y2), (dx, dy, dw, dh) in zip(boxes.tolist(), deltas.tolist(), strict=True):
        w, h = x2 - x1, y2 - y1
        cx, cy = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
        limit = math.log(1000 / 16)
        w, h = w * math.exp(min(max(dw, -limit), limit)), h * math.exp(min(max(dh, -limit), limit))
        wanted.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    got = decode_boxes(boxes, deltas)
    torch.testing.assert_close(got, torch.tensor(wanted))
    trapped = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0)).decode_single(deltas, boxes)  # clamps the upper side only
    height, trapped_height = (float(b[0, 3] - b[0, 1]) for b in (got, trapped))
    assert height == pytest.approx(40 * 16 / 1000, rel=1e-3)
    assert trapped_height < height / 10
    assert pytest.approx(4.135, abs=1e-3) == MAX_LOG_RATIO


def test_encoding_is_the_inverse_of_decoding():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(50, 2, generator=generator) * 100
    boxes = torch.cat([low, low + 1 + torch.rand(50, 2, generator=generator) * 50], dim=1)
    targets = boxes.roll(1, dims=0)
    torch.testing.assert_close(decode_boxes(boxes, encode_boxes(boxes, targets)), targets, atol=1e-3, rtol=1e-5)


def test_overlap_equals_torchvision_and_empty_boxes_give_zero():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(40, 2, generator=generator) * 50
    boxes = torch.cat([low, low + torch.rand(40, 2, generator=generator) * 50], dim=1)
    torch.testing.assert_close(box_iou(boxes, boxes[:9]), torchvision.ops.box_iou(boxes, boxes[:9]))
    assert float(box_iou(torch.zeros(1, 4), torch.zeros(1, 4))) == 0.0
