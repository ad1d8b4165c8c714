"""What the golden files of 4D-VLA have in common: kinds, and which entries belong together."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from real_data import REAL_DATA

GEOMETRY = (r"depth_stride\d+", r"points_stride\d+", "T_wc", "K")
PATCHES = ("patch_coord", "patch_valid", "T_wc", "K")
SAMPLING = (r"feat_.+", r"(window|incremental)_.+_n\d+_k\d+")
LOSSES = ("loss_dx", "loss_dx_pred", "loss_dr", "loss_dr_pred", "loss_grip", "loss_grip_logit", "loss_terms")
CONFIG = ("source", "depth_scale", "depth_trunc", "patch")
KEYS = (r"note", r"internvl.*")

KINDS = [(".npz", GEOMETRY), (".npz", PATCHES), (".npz", SAMPLING), (".npz", LOSSES), (".json", CONFIG), (".json", KEYS)]


def traces(arrays: dict[str, np.ndarray]) -> list[tuple[str, str, int, int]]:
    """Return (mode, name of the features, n, k) of each trace in a file."""
    found = (re.fullmatch(r"(window|incremental)_(.+)_n(\d+)_k(\d+)", name) for name in arrays)
    return [(m[1], m[2], int(m[3]), int(m[4])) for m in found if m is not None]


def source_depth(source: str) -> Path | None:
    """Return the full depth image that a case was made from, None where the shared data are not there."""
    folder, _, frame = source.partition("/")
    path = REAL_DATA / "rgbd" / folder / "depth" / f"{frame}.png"
    return path if path.exists() else None
