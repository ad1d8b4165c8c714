"""Draws what memory bank sampling keeps of a recording: kept frames on a time line, worst coverage, points from above.

For ``benchmarks.fourd_vla_coverage --figure``; OpenCV only. Knows no operator.
"""

# H height, W width, P points

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from models.fourd_vla.geometry import depth_meters, unproject

__all__ = ["draw"]

WIDTH, TALL, LINE = 1200, 10, 150
_INK, _KEPT, _OTHER = (40, 40, 40), (60, 110, 200), (190, 190, 190)
_COLORS = {"window": (170, 90, 30), "uniform": (60, 160, 60)}


def draw(batch: pa.RecordBatch, mbs: Sequence[dict[str, Any]], even: Sequence[dict[str, Any]], file: Path) -> None:
    """Write the figure: for each frame a line of the frames kept then, the coverage of both samplings, and two maps."""
    count = len(mbs)
    canvas = np.full((LINE + 60 + TALL * count + 560, WIDTH, 3), 255, np.uint8)
    _text(canvas, "worst coverage of the window: sampling (blue), uniform (green)", (20, 24))
    _curves(canvas[40 : 40 + LINE], mbs, even)
    top = LINE + 60
    _text(canvas, "frames kept at each time (right end of a line: now)", (20, top))
    step = (WIDTH - 60) / count
    for t, row in enumerate(mbs):
        y = top + 14 + TALL * t
        for sequence in range(t + 1):
            kept = sequence in row["selected_sequences"]
            place = (int(30 + step * sequence), y)
            corner = (int(place[0] + step - 3), y + TALL - 4)
            cv2.rectangle(canvas, place, corner, _KEPT if kept else _OTHER, -1 if kept else 1)
    top += 14 + TALL * count + 20
    points = _points(batch)
    for side, (title, chosen) in enumerate(
        (
            ("points of all frames, from above", range(count)),
            ("points of the frames kept at the end", mbs[-1]["selected_sequences"]),
        )
    ):
        _text(canvas, title, (20 + side * WIDTH // 2, top))
        _map(
            canvas[top + 10 : top + 510, side * WIDTH // 2 + 20 : (side + 1) * WIDTH // 2 - 20],
            points,
            list(chosen),
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(file), canvas[: top + 520], [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise OSError(f"{file}: cannot be written as an image")


@dataclass(frozen=True)
class _Points:
    """World points of one frame, seen from above, and their colors."""

    flat_P2: NDArray[np.float32]
    height_P: NDArray[np.float32]
    bgr_P3: NDArray[np.uint8]


def _points(batch: pa.RecordBatch) -> list[_Points]:
    """Return the points of each frame. Up is the axis that the cameras, taken together, look down along most."""
    rows = batch.to_pylist()
    poses_44 = [np.reshape(row["pose"], (4, 4)) for row in rows]
    down_3 = np.mean([pose[:3, 1] for pose in poses_44], axis=0)
    up = int(np.abs(down_3).argmax())
    flat = [axis for axis in range(3) if axis != up]
    made = []
    for row, pose in zip(rows, poses_44, strict=True):
        raw = cv2.imdecode(np.frombuffer(row["depth"], np.uint8), cv2.IMREAD_UNCHANGED)
        bgr = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR)
        every = max(1, raw.shape[1] // 160)
        camera = torch.tensor(row["intrinsics"]).view(1, 3, 3)
        depth, valid = depth_meters(torch.from_numpy(raw.astype(np.int32))[None], torch.tensor([row["depth_scale"]]), 6.0)
        points = unproject(depth, camera, torch.from_numpy(pose)[None])[:, ::every, ::every]
        inside = valid[:, ::every, ::every]
        points_P3 = points[inside].numpy()
        made.append(
            _Points(
                points_P3[:, flat], -np.sign(down_3[up]) * points_P3[:, up], bgr[::every, ::every][inside[0].numpy()] & 0xE0
            )
        )
    return made


def _curves(part: NDArray[np.uint8], mbs: Sequence[dict[str, Any]], even: Sequence[dict[str, Any]]) -> None:
    height = part.shape[0]
    cv2.line(part, (30, height - 2), (WIDTH - 30, height - 2), _INK, 1)
    step = (WIDTH - 60) / len(mbs)
    for name, rows in (("window", mbs), ("uniform", even)):
        places = [
            (int(30 + step * (t + 0.5)), int((height - 8) * (1 - max(0.0, row["worst_coverage"]))) + 4)
            for t, row in enumerate(rows)
        ]
        cv2.polylines(part, [np.array(places, np.int32)], False, _COLORS[name], 2, cv2.LINE_AA)


def _map(part: NDArray[np.uint8], points: Sequence[_Points], chosen: Sequence[int]) -> None:
    """Draw the points of the frames ``chosen`` from above, the highest last, in the frame of all points."""
    every_P2 = np.concatenate([one.flat_P2 for one in points])
    low, high = np.quantile(every_P2, [0.01, 0.99], axis=0)
    scale = min(part.shape[1] / (high[0] - low[0]), part.shape[0] / (high[1] - low[1]))
    flat_P2, height_P, bgr_P3 = (
        np.concatenate([getattr(points[i], name) for i in chosen]) for name in ("flat_P2", "height_P", "bgr_P3")
    )
    order = np.argsort(height_P, kind="stable")
    at_P2, bgr_P3 = ((flat_P2[order] - low) * scale).astype(int), bgr_P3[order]
    inside = (at_P2 >= 0).all(1) & (at_P2[:, 0] < part.shape[1] - 1) & (at_P2[:, 1] < part.shape[0] - 1)
    column, row = at_P2[inside, 0], part.shape[0] - 2 - at_P2[inside, 1]
    for down in (0, 1):
        for right in (0, 1):
            part[row + down, column + right] = bgr_P3[inside]


def _text(canvas: NDArray[np.uint8], text: str, place: tuple[int, int]) -> None:
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)
