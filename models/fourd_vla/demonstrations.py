"""Demonstrations to learn from: RGB-D rows with actions, in Parquet or as a source delivers them (see the docs page).

Every frame is decoded, resized and unprojected once, and its image forgotten. Episodes are those of the column ``episode``,
else streams. Rows that cannot be used are left out and counted. Knows no network but the settings of the policy.
"""

# R rows, P places where coordinates are added

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from connectors.errors import ConfigError
from connectors.extras import optional
from models.fourd_vla.config import ActionScale, FourDVLAConfig
from models.fourd_vla.geometry import camera_problem, depth_meters, pool_coordinates, pose_problem, resize_plan

cv2 = optional("cv2")

__all__ = ["Demonstrations", "read_demonstrations"]

_NEEDED = ("stream_id", "sequence", "image", "encoding", "height", "width", "action")
_DEPTH = ("depth", "depth_encoding", "depth_scale", "intrinsics")


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """All usable frames, those of an episode one after the other."""

    color_RHW3: Tensor
    coord_RP3: Tensor
    share_RP: Tensor
    action_R7: Tensor
    """In the data's units; the gripper is 0 or 1."""
    state_Rs: Tensor
    instruction: list[str]
    first_R: Tensor
    """The row that each row's episode begins with."""
    bad: int

    def __len__(self) -> int:
        return len(self.action_R7)

    def scale(self) -> ActionScale:
        """Return a scale for translation and one for rotation, for all axes: the larger of the 1st and 99th percentile."""
        ends = []
        for part in (self.action_R7[:, :3], self.action_R7[:, 3:6]):
            low, high = (float(torch.quantile(part, q)) for q in (0.01, 0.99))
            ends.append(max(abs(low), abs(high)) or 1.0)
        return ActionScale(translation=(ends[0],) * 3, rotation=(ends[1],) * 3)


def read_demonstrations(
    path: str | os.PathLike[str], config: FourDVLAConfig, rows: Iterable[pa.RecordBatch] | None = None
) -> Demonstrations:
    """Read a Parquet file or folder, or ``rows`` (one stream after the other, each in order), which ``path`` is the name of.

    Raise ``ConfigError`` where a column is lacking or no row can be used.
    """
    needed = _NEEDED + (_DEPTH if config.coordinates else ())
    frames: list[dict[str, Any]] = []
    names: list[tuple[str, Any]] = []
    bad: dict[str, int] = {}
    for batch in _parquet(Path(path)) if rows is None else rows:
        lacking = [name for name in needed if name not in batch.schema.names]
        if lacking:
            raise ConfigError(f"{path}: has no column {', '.join(lacking)}; it has {batch.schema.names}")
        episodes = "episode" if "episode" in batch.schema.names else "stream_id"
        for row in batch.to_pylist():
            try:
                frames.append(_prepared(row, config))
                names.append((row["stream_id"], row[episodes]))
            except (ValueError, TypeError, cv2.error) as error:
                why = row.get("error") or str(error)
                bad[why] = bad.get(why, 0) + 1
    if not frames:
        told = "; ".join(f"{count} rows: {why}" for why, count in sorted(bad.items(), key=lambda one: -one[1])[:3])
        raise ConfigError(
            f"{path}: no row can be used ({told or 'there is none'}); see what rows need on the page of the training"
        )
    first = [0] * len(names)
    for i in range(1, len(names)):
        first[i] = first[i - 1] if names[i] == names[i - 1] else i
    stacked = {
        name: torch.from_numpy(np.stack([frame[name] for frame in frames]))
        for name in ("color", "coord", "share", "action", "state")
    }
    return Demonstrations(
        stacked["color"],
        stacked["coord"],
        stacked["share"],
        stacked["action"],
        stacked["state"],
        [frame["instruction"] for frame in frames],
        torch.tensor(first),
        sum(bad.values()),
    )


def _parquet(path: Path) -> Iterable[pa.RecordBatch]:
    """Return the rows of a Parquet file or folder by stream and sequence."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet: {error}; check the path") from error
    order = [name for name in ("stream_id", "sequence") if name in table.column_names]
    batches: list[pa.RecordBatch] = table.sort_by([(name, "ascending") for name in order]).to_batches(max_chunksize=256)
    return batches or [pa.RecordBatch.from_pylist([], schema=table.schema)]


def _prepared(row: Mapping[str, Any], config: FourDVLAConfig) -> dict[str, Any]:
    """Decode, resize and unproject one row. Raise ``ValueError`` for one that cannot be used."""
    action = np.asarray(row["action"], np.float32)
    state = np.asarray(row.get("state") or [], np.float32)[: config.state_dim or None]
    if action.shape != (7,) or not np.isfinite(action).all():
        raise ValueError(f"its action is {row['action']}; 7 finite numbers are needed")
    if config.state_dim and (state.shape != (config.state_dim,) or not np.isfinite(state).all()):
        raise ValueError("no state")
    color = _color(row)
    vision = config.vision
    plan = resize_plan(color.shape[:2], (vision.height, vision.width), config.resize)
    rgb = plan.color(torch.from_numpy(color).permute(2, 0, 1)[None].float())[0].permute(1, 2, 0)
    patch = vision.patch * (1 if config.add_at == "patch" else 2)
    places = (vision.height // patch) * (vision.width // patch)
    coord, share = torch.zeros(places, 3), torch.zeros(places)
    if config.coordinates and row["depth"] is not None:
        if row["intrinsics"] is None or camera_problem(row["intrinsics"]) is not None:
            raise ValueError(
                "depth without a camera matrix; give camera: [fx, fy, cx, cy] to the source, or coordinates: false"
            )
        pose = row.get("pose") or np.eye(4).ravel().tolist()
        if pose_problem(pose) is not None:
            raise ValueError(f"{pose_problem(pose)}")
        raw = torch.from_numpy(_depth(row, color.shape[:2]))[None]
        depth, valid = depth_meters(raw, torch.tensor([float(row["depth_scale"])]), config.depth_max_m)
        camera = plan.camera(torch.tensor(row["intrinsics"], dtype=torch.float64).view(1, 3, 3))
        pooled = pool_coordinates(
            plan.depth(depth), plan.depth(valid), camera, torch.tensor(pose).view(1, 4, 4), patch, config.coord_pool
        )
        coord, share = pooled[0].view(places, 3), pooled[1].view(places)
    return {
        "color": rgb.round().clamp(0, 255).to(torch.uint8).numpy(),
        "coord": coord.numpy(),
        "share": share.numpy(),
        "action": action,
        "state": state,
        "instruction": row.get("instruction") or "",
    }


def _color(row: Mapping[str, Any]) -> np.ndarray:
    if row["image"] is None:
        raise ValueError("no image")
    data = np.frombuffer(row["image"], np.uint8)
    if row["encoding"] in ("raw_rgb8", "raw_bgr8"):
        image = data.reshape(row["height"], row["width"], 3)
        return np.ascontiguousarray(image[..., ::-1] if row["encoding"] == "raw_bgr8" else image)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if decoded is None:
        raise ValueError("no image")
    return np.ascontiguousarray(decoded[..., ::-1])


def _depth(row: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    data, kind = np.frombuffer(row["depth"], np.uint8), row["depth_encoding"]
    depth = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if kind == "png" else data.view("<u2" if kind == "raw_u16" else "<f4")
    if depth is None:
        raise ValueError("no depth")
    return np.asarray(depth.reshape(size), np.int32 if kind != "raw_f32" else np.float32)
