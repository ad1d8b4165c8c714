"""MAMBA's own rules as functions over tensors: what a frame writes to the pixel bank, and when a scene is cut.

The write rule of the banks themselves is ``operators.banks.random_replacement``. Nothing here holds state.
"""

# B streams, D detections (padded), P cells of a map, N cells written (padded), H heads, K keys, C channels

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from connectors.extras import optional
from operators.banks import random_numbers
from operators.frames import Frame, on_host

cv2 = optional("cv2")

__all__ = ["HISTOGRAM_BINS", "Boxes", "CellRule", "Cells", "color_histogram", "correlation", "select_cells"]

HISTOGRAM_BINS = 16 * 8
"""Hue times saturation."""

_LAST = torch.iinfo(torch.int64).max


class Boxes(NamedTuple):
    """Detections of B frames, padded; best first."""

    xyxy_BD4: Tensor
    """Pixels of the network input."""
    score_BD: Tensor
    """-1 where padded."""


class Cells(NamedTuple):
    """Map cells to write, in order."""

    index_BN: Tensor
    """Row-major cell index."""
    count_B: Tensor


class CellRule(NamedTuple):
    """Numbers of the pixel level's write rule; see :func:`select_cells`."""

    score: float
    per_box: int
    per_frame: int
    fallback: int
    stride: float


class CellSelector(Protocol):
    """Chooses cells. An argument of the detector, so that a test can hand in recorded choices."""

    def __call__(
        self, boxes: Boxes, map_BCHW: Tensor, rule: CellRule, *, seed_B: Tensor, step_B: Tensor, purpose: int
    ) -> Cells:
        """Return the cells that each frame writes."""
        ...


def select_cells(boxes: Boxes, map_BCHW: Tensor, rule: CellRule, *, seed_B: Tensor, step_B: Tensor, purpose: int) -> Cells:
    """Choose the map cells that a frame writes to the pixel bank (paper: K=100 per object; the rest is the 2.0 release's).

    Of each box above ``rule.score``, best first: all cells whose center lies inside; the cell under the box's center if there
    is none; a random ``per_box`` of them if there are more. Of the concatenation the first ``per_frame`` (a cell inside two
    boxes counts twice). Without such a box: the ``fallback`` cells of largest L2 norm.
    """
    height, width = map_BCHW.shape[2:]
    device = map_BCHW.device
    x_P = (torch.arange(width, device=device) + 0.5).repeat(height) * rule.stride
    y_P = (torch.arange(height, device=device) + 0.5).repeat_interleave(width) * rule.stride
    x1, y1, x2, y2 = (edge[..., None] for edge in boxes.xyxy_BD4.unbind(-1))
    inside_BDP = (x_P >= x1) & (x_P <= x2) & (y_P >= y1) & (y_P <= y2)

    column_BD = ((boxes.xyxy_BD4[..., 0] + boxes.xyxy_BD4[..., 2]) / 2 / rule.stride).long().clamp(0, width - 1)
    row_BD = ((boxes.xyxy_BD4[..., 1] + boxes.xyxy_BD4[..., 3]) / 2 / rule.stride).long().clamp(0, height - 1)
    center_BDP = torch.arange(height * width, device=device) == (row_BD * width + column_BD)[..., None]
    inside_BDP |= center_BDP & ~inside_BDP.any(-1, keepdim=True)
    inside_BDP &= (boxes.score_BD > rule.score)[..., None]

    # On a device the draw is made whether or not a box needs it: the host would have to wait to know.
    if inside_BDP.shape[1] and (device.type != "cpu" or bool((inside_BDP.sum(-1) > rule.per_box).any())):
        number_BDP = random_numbers(seed_B, step_B, purpose, inside_BDP[0].numel()).view_as(inside_BDP)
        number_BDP = number_BDP.masked_fill(~inside_BDP, _LAST)
        last_BD1 = number_BDP.kthvalue(min(rule.per_box, height * width), dim=-1, keepdim=True).values
        inside_BDP &= number_BDP <= last_BD1

    # The j-th cell of the concatenation goes to column j; everything else to a column that is cut off.
    flat_BF = inside_BDP.flatten(1)
    fallback = min(rule.fallback, height * width)
    most = max(rule.per_frame, fallback)
    column_BF = torch.where(flat_BF, flat_BF.cumsum(1) - 1, most).clamp_max(most)
    cell_BF = (torch.arange(flat_BF.shape[1], device=device) % (height * width)).expand_as(column_BF)
    index_BN = column_BF.new_zeros((column_BF.shape[0], most + 1)).scatter_(1, column_BF, cell_BF)[:, :-1]
    count_B = flat_BF.sum(1).clamp_max(rule.per_frame)

    strongest_BN = map_BCHW.float().norm(dim=1).flatten(1).topk(fallback, dim=1).indices
    none_B = count_B == 0
    index_BN[:, :fallback] = torch.where(none_B[:, None], strongest_BN, index_BN[:, :fallback])
    return Cells(index_BN, torch.where(none_B, fallback, count_B))


def color_histogram(image: Frame) -> npt.NDArray[np.float32]:
    """Return the hue-saturation histogram of an RGB image (16 x 8 bins, of a small copy), mean-free and of length 1."""
    if isinstance(image, Tensor) and image.device.type != "cpu":  # only the small copy comes to the host
        area_1CHW = torch.nn.functional.interpolate(image.permute(2, 0, 1)[None].float(), (48, 64), mode="area")
        small = on_host(area_1CHW[0].permute(1, 2, 0).round().to(torch.uint8))
    else:
        small = cv2.resize(on_host(image), (64, 48), interpolation=cv2.INTER_AREA).astype(np.uint8)
    hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV)
    histogram = np.asarray(cv2.calcHist([hsv], [0, 1], None, [16, 8], [0, 180, 0, 256]), dtype=np.float32).ravel()
    histogram -= histogram.mean()
    return histogram / max(float(np.linalg.norm(histogram)), 1e-12)


def correlation(before: npt.NDArray[np.float32], now: npt.NDArray[np.float32]) -> float:
    """Return the correlation of two :func:`color_histogram` results, -1..1."""
    return float(before @ now)
