"""Draws what memory bank sampling keeps of a recording: kept frames on a time line, worst coverage, points from above.

For ``benchmarks.fourd_vla_coverage --figure``; OpenCV only. Knows no operator.
"""

# H height, W width, P points

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from models.fourd_vla.geometry import depth_meters, unproject

__all__ = ["draw"]

WIDTH, ROW, LINE = 1200, 26, 150
_INK, _KEPT, _OTHER = (40, 40, 40), (60, 110, 200), (190, 190, 190)
_COLORS = {"window": (170, 90, 30), "uniform": (60, 160, 60)}


def draw(batch: pa.RecordBatch, mbs: Sequence[dict[str, Any]], even: Sequence[dict[str, Any]], file: Path) -> None:
    """Write the figure: for each frame a line of the frames kept then, the coverage of both samplings, and two maps."""
    count = len(mbs)
    canvas = np.full((LINE + 60 + 12 * count + 560, WIDTH, 3), 255, np.uint8)
    _text(canvas, "worst coverage of the window: sampling (blue), uniform (green)", (20, 24))
    _curves(canvas[40 : 40 + LINE], mbs, even)
    top = LINE + 60
    _text(canvas, "frames kept at each time (right end of a line: now)", (20, top))
    step = (WIDTH - 60) / count
    for t, row in enumerate(mbs):
        y = top + 14 + 12 * t
        for sequence in range(t + 1):
            kept = sequence in row["selected_sequences"]
            place = (int(30 + step * sequence), y)
            cv2.rectangle(canvas, place, (int(place[0] + step - 3), y + 8), _KEPT if kept else _OTHER, -1 if kept else 1)
    top += 14 + 12 * count + 20
    points = _points(batch)
    every = np.concatenate(points)
    for side, (title, chosen) in enumerate(
        (
            ("points of all frames, from above", range(count)),
            ("points of the frames kept at the end", mbs[-1]["selected_sequences"]),
        )
    ):
        _text(canvas, title, (20 + side * WIDTH // 2, top))
        _map(
            canvas[top + 10 : top + 510, side * WIDTH // 2 + 20 : (side + 1) * WIDTH // 2 - 20],
            every,
            [points[i] for i in chosen],
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(file), canvas[: top + 520]):
        raise OSError(f"{file}: cannot be written as an image")


def _points(batch: pa.RecordBatch) -> list[NDArray[np.float32]]:
    """Return the world points of each frame, every 8th pixel."""
    out = []
    for row in batch.to_pylist():
        raw = cv2.imdecode(np.frombuffer(row["depth"], np.uint8), cv2.IMREAD_UNCHANGED)[::8, ::8]
        camera = torch.tensor(row["intrinsics"]).view(1, 3, 3)
        camera[:, :2] /= 8
        depth, valid = depth_meters(torch.from_numpy(raw.astype(np.int32))[None], torch.tensor([row["depth_scale"]]), 6.0)
        out.append(unproject(depth, camera, torch.tensor(row["pose"]).view(1, 4, 4))[valid].numpy())
    return out


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


def _map(part: NDArray[np.uint8], every: NDArray[np.float32], shown: Sequence[NDArray[np.float32]]) -> None:
    """Draw points seen along y, the axis that points down."""
    low, high = np.quantile(every[:, [0, 2]], [0.01, 0.99], axis=0)
    scale = min(part.shape[1] / (high[0] - low[0]), part.shape[0] / (high[1] - low[1]))
    for points in shown:
        at = ((points[:, [0, 2]] - low) * scale).astype(int)
        inside = (at >= 0).all(1) & (at[:, 0] < part.shape[1]) & (at[:, 1] < part.shape[0])
        part[part.shape[0] - 1 - at[inside, 1], at[inside, 0]] = _KEPT


def _text(canvas: NDArray[np.uint8], text: str, place: tuple[int, int]) -> None:
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)
