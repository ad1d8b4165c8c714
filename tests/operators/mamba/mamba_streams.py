"""Frames of several streams and a tiny random MAMBA for the tests beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch

from connectors.records import FRAME
from operators.base import Context
from operators.mamba import MambaOperator, MambaOptions

NETWORK: dict[str, Any] = {
    "backbone": "conv5",
    "channels": (8, 16, 16, 24, 32),
    "classes": ("red", "green", "blue"),
    "neck_channels": 16,
    "fc_channels": 32,
    "heads": 4,
    "pixel_heads": 4,
    "anchor_scales": (1.0, 2.0, 3.0),
    "nms_pre": 60,
    "proposals": 16,
    "roi_size": 3,
    "max_long_side": 96,
    "max_short_side": 96,
    "score_threshold": 0.05,
}
SIZES = {"max_length": 40, "key_length": 16, "write_topk": 6}
PIXEL = {
    "pixel_max_length": 60,
    "pixel_key_length": 24,
    "pixel_score": 0.2,
    "pixel_per_box": 4,
    "pixel_per_frame": 16,
    "pixel_fallback": 5,
}


def operator(*, pixel: bool = False, network: dict[str, Any] | None = None, **options: Any) -> MambaOperator:
    """Return a tiny operator; heads are scaled up so that scores and boxes depend on the image."""
    chosen = SIZES | (PIXEL if pixel else {}) | {"network": NETWORK | {"pixel_level": pixel} | (network or {})} | options
    made = MambaOperator(MambaOptions(**chosen), Context(name="detect"))
    model = made.detector.model
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer, std in ((model.head.logits, 0.5), (model.head.deltas, 0.1), (model.rpn.objectness, 0.5)):
            layer.weight.normal_(std=std, generator=generator)
    return made


def image(stream: str, sequence: int, height: int = 64, width: int = 80) -> np.ndarray:
    """Return a frame with a moving square on a stream's own background, different for every frame."""
    rng = np.random.default_rng([sum(stream.encode()), sequence])
    picture = cv2.resize(rng.integers(60, 160, (5, 6, 3), dtype=np.uint8), (width, height))
    x, y = (7 * sequence) % (width - 24), (5 * sequence) % (height - 24)
    picture[y : y + 24, x : x + 24] = rng.integers(0, 256, 3)
    return picture


def frames(
    rows: Sequence[tuple[str, int]],
    *,
    encoding: str = "raw_rgb8",
    step_us: int = 40_000,
    images: Sequence[np.ndarray | None] | None = None,
    times_us: Sequence[int] | None = None,
    roles: Sequence[str | None] | None = None,
) -> pa.RecordBatch:
    """Return a FRAME batch of (stream, sequence) rows."""
    pictures = images if images is not None else [image(stream, sequence) for stream, sequence in rows]
    times = times_us if times_us is not None else [sequence * step_us for _, sequence in rows]
    arrays = [
        pa.array([stream for stream, _ in rows]),
        pa.array([sequence for _, sequence in rows], pa.int64()),
        pa.array(times, pa.timestamp("us", "UTC")),
        pa.array([None if p is None else encode(p, encoding) for p in pictures], pa.binary()),
        pa.array([encoding] * len(rows)),
        pa.array([None if p is None else p.shape[0] for p in pictures], pa.int32()),
        pa.array([None if p is None else p.shape[1] for p in pictures], pa.int32()),
        pa.nulls(len(rows), pa.string()),
    ]
    batch = pa.RecordBatch.from_arrays(arrays, schema=FRAME)
    return batch if roles is None else batch.append_column("role", pa.array(roles, pa.string()))


def encode(picture: np.ndarray, encoding: str) -> bytes:
    """Return the bytes of an RGB image in one of the encodings of a FRAME."""
    if encoding in ("jpeg", "png"):
        return bytes(cv2.imencode("." + encoding, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1])
    if encoding == "raw_bgr8":
        return np.ascontiguousarray(picture[..., ::-1]).tobytes()
    return np.ascontiguousarray(picture).tobytes()


def interleaved(streams: Sequence[str], length: int, start: int = 0) -> list[tuple[str, int]]:
    """Return (stream, sequence) rows, one of each stream in turn."""
    return [(stream, sequence) for sequence in range(start, start + length) for stream in streams]


def detections_difference(wanted: pa.Array, got: pa.Array, *, box_px: float = 0.02, score: float = 2e-4) -> str | None:
    """Compare two columns of detections as sets per row: the same label, box and score within what kernels round."""
    if wanted.is_null().to_pylist() != got.is_null().to_pylist():
        return "other rows have detections"
    for row, pair in enumerate(zip(wanted.to_pylist(), got.to_pylist(), strict=True)):
        a, b = (np.array([[*d.values()] for d in found or []]).reshape(-1, 6) for found in pair)
        if len(a) != len(b):
            return f"row {row}: {len(b)} detections instead of {len(a)}"
        near = (np.abs(a[:, None, :4] - b[None, :, :4]) < box_px).all(-1)
        near &= (np.abs(a[:, None, 4] - b[None, :, 4]) < score) & (a[:, None, 5] == b[None, :, 5])
        free = np.ones(len(b), dtype=bool)
        for i, partners in enumerate(near):
            chosen = np.flatnonzero(partners & free)
            if not len(chosen):
                return f"row {row}: nothing equals {a[i].tolist()}"
            free[chosen[0]] = False
    return None
