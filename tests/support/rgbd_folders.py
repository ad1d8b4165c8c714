"""Small made recordings in the layouts of the field, and RGB-D rows, for the tests of connectors and of 4D-VLA."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 24, 32
MATRIX = np.array([[30.0, 0, 15.5], [0, 31.0, 11.0], [0, 0, 1]])


def color(number: int) -> np.ndarray:
    """Return an image that differs from frame to frame, RGB."""
    rng = np.random.default_rng([7, number])
    return np.asarray(cv2.resize(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), (WIDTH, HEIGHT)))


def depth(number: int) -> np.ndarray:
    """Return uint16 depth, with a hole."""
    made = np.full((HEIGHT, WIDTH), 1000 + 10 * number, np.uint16)
    made[:4, :4] = 0
    return made


def pose(number: int) -> np.ndarray:
    """Return a camera-to-world matrix: a turn about y, and a way."""
    angle = 0.1 * number
    made = np.eye(4)
    made[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    made[:3, 3] = [0.5 * number, -1.0, 2.0]
    return made


def write_images(color_file: Path, depth_file: Path, number: int) -> None:
    """Write the two images of a frame."""
    for file, image in ((color_file, color(number)[..., ::-1]), (depth_file, depth(number))):
        file.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(file), image)


def tum_folder(path: Path, count: int = 6, *, depth_shift_s: float = 0.012) -> Path:
    """Write a TUM recording at 10 Hz with poses at 20 Hz."""
    lines: dict[str, list[str]] = {"rgb.txt": ["# color"], "depth.txt": ["# depth"], "groundtruth.txt": ["# t x y z q"]}
    for number in range(count):
        time_s = 100 + 0.1 * number
        names = (f"rgb/{time_s:.6f}.png", f"depth/{time_s + depth_shift_s:.6f}.png")
        write_images(path / names[0], path / names[1], number)
        lines["rgb.txt"].append(f"{time_s:.6f} {names[0]}")
        lines["depth.txt"].append(f"{time_s + depth_shift_s:.6f} {names[1]}")
    for half in range(-1, 2 * count):
        number = half / 2 + 0.25  # between the frames
        x, y, z = pose(0)[:3, 3] + [0.5 * number, 0, 0]
        angle = 0.1 * number
        lines["groundtruth.txt"].append(f"{100 + 0.1 * number:.6f} {x} {y} {z} 0 {np.sin(angle / 2)} 0 {np.cos(angle / 2)}")
    for name, text in lines.items():
        (path / name).write_text("\n".join(text) + "\n")
    return path


def open3d_folder(path: Path, count: int = 4) -> Path:
    """Write an Open3D recording with its column-major camera and a trajectory."""
    log = []
    for number in range(count):
        write_images(path / "color" / f"{number:05}.jpg", path / "depth" / f"{number:05}.png", number)
        log += [f"{number}\t{number}\t{number + 1}", *(" ".join(f"{x:.10f}" for x in row) for row in pose(number))]
    camera = {"width": WIDTH, "height": HEIGHT, "intrinsic_matrix": MATRIX.T.ravel().tolist()}
    (path / "camera_primesense.json").write_text(json.dumps(camera))
    (path / "trajectory.log").write_text("\n".join(log) + "\n")
    return path


def scenes_folder(path: Path, count: int = 3) -> Path:
    """Write a recording of 7-Scenes or tsdf-fusion; the last pose is lost."""
    for number in range(count):
        stem = path / f"frame-{number:06}"
        write_images(Path(f"{stem}.color.png"), Path(f"{stem}.depth.png"), number)
        matrix = pose(number) if number < count - 1 else np.full((4, 4), np.nan)
        Path(f"{stem}.pose.txt").write_text("\n".join("\t ".join(f"{x:.9e}" for x in row) for row in matrix))
    return path
