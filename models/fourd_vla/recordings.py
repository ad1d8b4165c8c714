"""Rendered samples of a task as recordings that the source ``rgbd`` reads (layout 7-Scenes), to try a policy on.

    python -m models.fourd_vla.recordings FOLDER [--task past] [--count 8] [--seed 1000]

writes ``FOLDER/past_0000/frame-000000.color.png`` and so on, and ``FOLDER/answers.json``: for each recording the action that is
right at its last frame. :func:`write_tour` writes one longer recording of a moving camera. OpenCV writes the images; knows no
policy.
"""

# S samples, T frames of a sample, H height, W width, N cubes

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from connectors.errors import ConfigError
from connectors.extras import optional
from models.fourd_vla.scenes import COLORS, Scenes, look_at, render
from models.fourd_vla.tasks import TASKS

cv2 = optional("cv2")

__all__ = ["ANSWERS", "write_recordings", "write_tour"]

ANSWERS = "answers.json"
_MM = 1000.0


def write_recordings(folder: Path, task: str = "past", count: int = 8, seed: int = 1000) -> dict[str, dict[str, Any]]:
    """Write ``count`` recordings; return for each its ``instruction``, the right ``move`` (3 numbers) and ``grip``.

    A function of the seed; trainings draw none of these. Raise ``ConfigError`` for a task that is not known, or images that
    cannot be written.
    """
    if task not in TASKS:
        raise ConfigError(f"task: {task!r} is none of {', '.join(TASKS)}")
    samples = TASKS[task].make(count, torch.Generator().manual_seed((1 << 21) + seed))
    answers = {}
    for s in range(count):
        name = f"{task}_{s:04}"
        length = len(samples.color_STHW3[s])
        poses_T44 = samples.cameras.pose_S44[s].expand(length, 4, 4)
        _write(folder / name, samples.color_STHW3[s], samples.depth_STHW[s], samples.cameras.camera_S33[s], poses_T44)
        answers[name] = {
            "instruction": samples.instruction[s],
            "move": samples.move_S3[s].tolist(),
            "grip": float(samples.grip_S[s]),
        }
    (folder / ANSWERS).write_text(json.dumps(answers, indent=1) + "\n")
    return answers


def write_tour(folder: Path, length: int = 60) -> None:
    """Write a recording of a camera that goes half around six cubes on a table and stays still at three places.

    While it stays at the second one, a seventh cube is there in a single frame.
    """
    ring_N = torch.arange(6) * (2 * math.pi / 6)
    center_N3 = torch.stack([0.35 * ring_N.cos(), 0.35 * ring_N.sin(), torch.full((6,), 0.09)], dim=1)
    center_N3 = torch.cat([center_N3, torch.tensor([[0.0, 0.0, 0.3]])])
    size_TN = torch.full((length, 7), 0.18)
    size_TN[:, 6] = 0.0
    size_TN[length // 2, 6] = 0.6
    palette = torch.tensor(list(COLORS.values())).float()
    rgb_TN3 = palette[torch.arange(7) % len(palette)].expand(length, 7, 3)
    moves_T = torch.ones(length)
    for start in (0, 3 * length // 8, 6 * length // 8):  # a quarter of the time each
        moves_T[start : start + length // 4] = 0.0
    angle_T = math.pi * moves_T.cumsum(0) / moves_T.sum()
    place_T3 = torch.stack([1.3 * angle_T.cos(), 1.3 * angle_T.sin(), torch.full((length,), 0.9)], dim=1)
    cameras = look_at(place_T3, torch.zeros(length, 3), 120, 160)
    scenes = Scenes(center_N3.expand(length, 7, 3), size_TN, rgb_TN3)
    color_THW3, depth_THW = render(scenes, cameras, tile_m=0.2)
    noise = 2.0 * torch.randn(color_THW3.shape, generator=torch.Generator().manual_seed(0))
    color_THW3 = (color_THW3 + noise).round().clamp(0, 255).to(torch.uint8)
    _write(folder, color_THW3, depth_THW, cameras.camera_S33[0], cameras.pose_S44)


def _write(folder: Path, color_THW3: Tensor, depth_THW: Tensor, camera_33: Tensor, pose_T44: Tensor) -> None:
    """Write one recording: color and 16-bit depth as PNG, camera and poses as text."""
    folder.mkdir(parents=True, exist_ok=True)
    depth_mm_THW = (depth_THW * _MM).round().clamp(0, 65534).numpy().astype(np.uint16)
    np.savetxt(folder / "camera-intrinsics.txt", camera_33.numpy(), fmt="%.9g")
    for t, color_HW3 in enumerate(color_THW3.numpy()):
        stem = folder / f"frame-{t:06}"
        for kind, image in (("color", color_HW3[..., ::-1]), ("depth", depth_mm_THW[t])):
            if not cv2.imwrite(f"{stem}.{kind}.png", image):
                raise ConfigError(f"{stem}.{kind}.png cannot be written; is there room?")
        np.savetxt(f"{stem}.pose.txt", pose_T44[t].numpy(), fmt="%.9g")


def main(arguments: Sequence[str]) -> int:
    """Write recordings as the command line asks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", default="past", choices=sorted(TASKS))
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1000)
    given = parser.parse_args(arguments)
    answers = write_recordings(given.folder, given.task, given.count, given.seed)
    print(f"{len(answers)} recordings in {given.folder}; {given.folder / ANSWERS} says what is right at the last frame of each")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
