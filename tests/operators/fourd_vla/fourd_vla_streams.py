"""RGB-D rows of several streams, features, and operators with a tiny policy, for the tests beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import rgbd_folders as made
import torch

from connectors.records import RGBD, TIME_TYPE
from models.fourd_vla.checkpoint import Policy, save_policy
from models.fourd_vla.config import DecoderConfig, FourDVLAConfig, VisionConfig
from models.fourd_vla.model import FourDVLA
from models.tokenizers import WordTokenizer
from operators.base import Context
from operators.fourd_vla import FourDVLAOperator, FourDVLAOptions
from operators.fourd_vla.config import Given
from operators.fourd_vla.schemas import FEATURE

STEP_US = 100_000


def operator(**options: Any) -> FourDVLAOperator:
    return FourDVLAOperator(FourDVLAOptions(**options), Context(name="history"))


def given(size: int, **options: Any) -> FourDVLAOperator:
    return operator(features=Given(size=size), **options)


def tiny_policy(path: Path, **settings: Any) -> str:
    """Write a random policy whose actions depend on every part of its input; return the file."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "vision": VisionConfig(width=32, height=16, patch=4, hidden=16, layers=1, heads=2, mlp=32, grid=4),
        "decoder": DecoderConfig(vocabulary=12, hidden=24, layers=2, heads=4, kv_heads=2, mlp=40),
        "offsets": 8,
        "action_hidden": 16,
    }
    model = FourDVLA(FourDVLAConfig(**(sizes | settings)))
    with torch.no_grad():
        for name in ("coord_embed.out.weight", "coord_invalid", "time_embed.weight"):
            if name in dict(model.named_parameters()):
                torch.nn.init.normal_(model.get_parameter(name), std=0.5)
    file = path / "policy.safetensors"
    save_policy(Policy(model, WordTokenizer.of(["point to the red blue cube"])), file)
    return str(file)


def feature_rows(streams: Sequence[str], features: np.ndarray, start: int = 0, step_us: int = STEP_US) -> pa.RecordBatch:
    """Return FEATURE rows, one of each stream in turn; ``features``: [T, streams, D]."""
    rows = [(stream, t, features[t, s]) for t in range(len(features)) for s, stream in enumerate(streams)]
    columns = [
        pa.array([stream for stream, _, _ in rows]),
        pa.array([t + start for _, t, _ in rows], pa.int64()),
        pa.array([(t + start) * step_us for _, t, _ in rows], TIME_TYPE),
        pa.array([feature.tolist() for _, _, feature in rows], pa.list_(pa.float32())),
        pa.nulls(len(rows), pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=FEATURE)


def png(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1])


def rgbd_row(stream: str, sequence: int, **changes: Any) -> dict[str, Any]:
    """Return a good row as plain values."""
    look = sequence + 100 * sum(stream.encode())
    row = {
        "stream_id": stream,
        "sequence": sequence,
        "event_time": sequence * STEP_US,
        "image": png(made.color(look)),
        "encoding": "png",
        "height": made.HEIGHT,
        "width": made.WIDTH,
        "depth": png(made.depth(sequence)),
        "depth_encoding": "png",
        "depth_scale": 1000.0,
        "intrinsics": made.MATRIX.ravel().tolist(),
        "pose": made.pose(sequence).ravel().tolist(),
        "error": None,
    }
    return row | changes


def rgbd(rows: Sequence[dict[str, Any]], **more: pa.DataType) -> pa.RecordBatch:
    """Return an RGBD batch; ``more``: further columns and their types."""
    schema = RGBD
    for name, kind in more.items():
        schema = schema.append(pa.field(name, kind))
    columns = [
        pa.array([row.get(each.name) for row in rows], pa.int64()).view(TIME_TYPE)
        if each.name == "event_time"
        else pa.array([row.get(each.name) for row in rows], each.type)
        for each in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def frames(streams: Sequence[str], length: int, start: int = 0) -> pa.RecordBatch:
    """Return good RGBD rows, one of each stream in turn."""
    return rgbd([rgbd_row(stream, n) for n in range(start, start + length) for stream in streams])


def rows_of(batches: Sequence[pa.RecordBatch]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.to_pylist()]
