"""Cases of the documented form in other sizes, made by the slow reference."""

from __future__ import annotations

import json
from pathlib import Path

import fourd_vla_reference as reference
import numpy as np


def make_case(folder: Path, seed: int) -> None:
    """Write ``case.npz`` and ``config.json`` of other sizes than the recorded ones."""
    rng = np.random.default_rng(seed)
    stride, scale, far = int(rng.integers(2, 6)), float(rng.choice([1000, 5000])), 6.0
    rows, columns = (int(x) for x in rng.integers(5, 12, 2))
    depth = (rng.uniform(0.2, 8.0, (rows, columns)) * scale).astype(np.uint16)
    depth[rng.random(depth.shape) < 0.2] = 0
    camera = np.array([[50.0 + seed, 0, columns * stride / 2], [0, 47.0, rows * stride / 3], [0, 0, 1]])
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn * np.sign(np.linalg.det(turn)), rng.normal(size=3)
    case = {
        f"depth_stride{stride}": depth,
        f"points_stride{stride}": reference.points(depth, stride, scale, far, camera, pose).astype(np.float32),
        "T_wc": pose,
        "K": camera,
    }
    length = int(rng.integers(10, 40))
    steps = rng.normal(size=(length, 5)).astype(np.float32)
    features = {
        "drift": np.cumsum(steps, axis=0),
        "noise": steps,
        "pairs": np.repeat(steps[: (length + 1) // 2], 2, axis=0)[:length],
        "zeros": steps * (rng.random((length, 1)) < 0.7),
    }
    for name, rows_LD in features.items():
        case[f"feat_{name}"] = rows_LD
        alike = reference.cosines(rows_LD)
        for n, k in ((int(rng.integers(2, 15)), int(rng.integers(1, 7))), (25, 2)):
            held = {
                "window": [reference.window(alike, t, n, k) for t in range(length)],
                "incremental": reference.incremental(alike, n, k),
            }
            for mode, kept in held.items():
                case[f"{mode}_{name}_n{n}_k{k}"] = np.array([one + [-1] * (k - len(one)) for one in kept], np.int32)
    size = int(rng.integers(1, 9))
    for name in ("dx", "dx_pred", "dr", "dr_pred"):
        case[f"loss_{name}"] = rng.normal(size=(size, 3))
    case["loss_grip"], case["loss_grip_logit"] = rng.integers(0, 2, size).astype(float), rng.normal(size=size)
    case["loss_terms"] = np.array(reference.losses(case))
    np.savez(folder / "case.npz", **case)
    config = {"source": "made", "depth_scale": scale, "depth_trunc": far, "stride": stride, "patch": stride, "seed": seed}
    (folder / "config.json").write_text(json.dumps(config))
