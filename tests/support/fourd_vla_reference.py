"""4D-VLA as slowly and plainly as it can be written, in NumPy and loops; shares nothing with the product."""

from __future__ import annotations

import itertools
import math

import numpy as np


def cosines(features: np.ndarray) -> np.ndarray:
    """Return the cosines of all pairs in float64; 0 for zero features."""
    features = features.astype(np.float64)
    norms = np.linalg.norm(features, axis=1)
    units = np.array([f / n if n > 0 else np.zeros_like(f) for f, n in zip(features, norms, strict=True)])
    return units @ units.T


def window(alike: np.ndarray, t: int, n: int, k: int) -> list[int]:
    """Return the frames kept at time t, ascending: spec section 4, line by line."""
    held: list[int] = [t]
    scores: list[float] = [math.nan]
    for j in range(1, n):
        c = t - j
        if c < 0:
            break
        scores.append(alike[c, held[-1]])
        held.append(c)
        if len(held) > k:
            i = max(range(1, len(held)), key=lambda place: (scores[place], place))
            del held[i], scores[i]
            if i < len(held):
                scores[i] = alike[held[i], held[i - 1]]
    return held[::-1]


def incremental(alike: np.ndarray, n: int | None, k: int) -> list[list[int]]:
    """Return the frames kept after each frame, ascending."""
    held: list[int] = []
    out = []
    for t in range(len(alike)):
        held = [i for i in [*held, t] if n is None or i > t - n]
        if len(held) > k:
            pairs = [(alike[a, b], -a) for a, b in itertools.pairwise(held)]
            held.remove(-max(pairs)[1])
        out.append(list(held))
    return out


def points(depth: np.ndarray, stride: int, scale: float, far: float, camera: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Return world points of the valid pixels of a depth image of which every ``stride``-th row and column is given."""
    out = []
    for row, line in enumerate(depth.astype(np.float64) / scale):
        for column, z in enumerate(line):
            if 0 < z <= far:
                local = z * np.linalg.inv(camera) @ np.array([column * stride, row * stride, 1.0])
                out.append(pose[:3, :3] @ local + pose[:3, 3])
    return np.array(out)


def losses(case: dict[str, np.ndarray]) -> list[float]:
    """Return translation, rotation, gripper and direction before weighting."""

    def unit(move: np.ndarray) -> np.ndarray:
        return move / max(float(np.linalg.norm(move)), 1e-6)

    def squared(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([np.sum((x - y) ** 2) for x, y in zip(a, b, strict=True)]))

    p = 1 / (1 + np.exp(-case["loss_grip_logit"]))
    grip = -np.mean(case["loss_grip"] * np.log(p) + (1 - case["loss_grip"]) * np.log(1 - p))
    moving = [i for i, move in enumerate(case["loss_dx"]) if np.linalg.norm(move) > 1e-6]
    turned = np.mean([np.sum((unit(case["loss_dx_pred"][i]) - unit(case["loss_dx"][i])) ** 2) for i in moving])
    return [squared(case["loss_dx_pred"], case["loss_dx"]), squared(case["loss_dr_pred"], case["loss_dr"]), grip, turned]
