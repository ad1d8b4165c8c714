"""Folders of RGB-D frames in the layouts of the field: which file is which frame's color, depth, time, camera and pose.

TUM RGB-D (index files and a trajectory by time), Open3D and Redwood (numbered files and a ``.log``), 7-Scenes and tsdf-fusion
(``frame-000000.color``, ``.depth``, ``.pose``). Reads the text files of a folder, no image. Each frame keeps its place: what is
wrong with one is said in its row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from connectors.errors import NothingToRead, SourceError
from connectors.sources.files import natural_key
from connectors.sources.rgbd_cameras import camera_matrix
from connectors.sources.rgbd_poses import Floats, read_log, read_matrix, read_numbers, read_tum_trajectory

__all__ = ["Layout", "RgbdFolder", "RgbdFrame", "associate", "is_rgbd_folder", "list_folder"]

Layout = Literal["auto", "tum", "open3d", "seven_scenes"]

_IMAGES = {".jpg", ".jpeg", ".png"}
_COLOR_FOLDERS = ("color", "rgb", "image")
_SCENE = re.compile(r"(frame-\d+)\.color\.(png|jpe?g)")

_TUM_CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
_TUM_DEFAULT = (525.0, 525.0, 319.5, 239.5)
_SCENES_DEFAULT = (585.0, 585.0, 320.0, 240.0)
_SCALES = {"tum": 5000.0, "open3d": 1000.0, "seven_scenes": 1000.0}


@dataclass(frozen=True, slots=True)
class RgbdFrame:
    """One frame as files."""

    color: Path
    depth: Path | None
    time_us: int | None = None
    """None: by the number of the frame."""
    pose: Floats | None = None
    problem: str | None = None
    """Why the frame cannot be used though its files may be fine."""


@dataclass(frozen=True, slots=True)
class RgbdFolder:
    """The frames of one folder in order, with what they share."""

    frames: Sequence[RgbdFrame]
    intrinsics: Floats
    """[3, 3]"""
    depth_scale: float
    texts: Sequence[Path] = field(default=())
    """Files besides the images that decide about the rows."""


def is_rgbd_folder(path: Path) -> bool:
    """Return whether a folder has one of the layouts."""
    return path.is_dir() and _layout_of(path) is not None


def list_folder(
    path: Path,
    layout: Layout,
    *,
    camera: Sequence[float] | None,
    depth_scale: float | None,
    trajectory: str | None,
    pair_ms: float,
    max_pose_gap_s: float,
) -> RgbdFolder:
    """List the frames of a folder. ``camera``: fx, fy, cx, cy; None: as the folder says, else as its layout has it.

    Raise ``SourceError`` for index files that cannot be understood, and ``NothingToRead`` for a folder without frames.
    """
    kind = layout if layout != "auto" else _layout_of(path)
    if kind is None:
        raise SourceError(
            f"{str(path)!r} has none of the RGB-D layouts: TUM (rgb.txt, depth.txt), Open3D ({', '.join(_COLOR_FOLDERS)} or "
            "depth folders) or 7-Scenes (frame-000000.color.png); set layout and check the path"
        )
    texts: list[Path] = []
    told = None if camera is not None and depth_scale is not None else _camera_file(path, texts)
    if kind == "tum":
        frames = _tum(path, trajectory, pair_ms, max_pose_gap_s, texts)
        named = next((values for name, values in _TUM_CAMERAS.items() if name in path.resolve().name), _TUM_DEFAULT)
    elif kind == "open3d":
        frames, named = _open3d(path, trajectory, texts), _TUM_DEFAULT
        if told is None and camera is None:
            raise SourceError(f"{str(path)!r} has no camera*.json; put one there or set camera: [fx, fy, cx, cy]")
    else:
        frames, named = _seven_scenes(path, trajectory, texts), _SCENES_DEFAULT
    if not frames:
        raise NothingToRead(f"{str(path)!r} ({kind}) holds no color frame")
    matrix = camera_matrix(camera) if camera is not None else told.matrix if told is not None else camera_matrix(named)
    scale = depth_scale or (told.depth_scale if told is not None else None) or _SCALES[kind]
    return RgbdFolder(frames, matrix, scale, texts)


def associate(color_us: Sequence[int], depth_us: Sequence[int], limit_us: int) -> dict[int, int]:
    """Return color index → depth index: the nearest pairs first, no further apart than ``limit_us``, each used once."""
    order = np.argsort(np.asarray(depth_us, np.int64), kind="stable")
    sorted_us = np.asarray(depth_us, np.int64)[order]
    pairs = []
    for index, time_us in enumerate(color_us):
        low, high = np.searchsorted(sorted_us, [time_us - limit_us, time_us + limit_us + 1])
        pairs += [(abs(int(sorted_us[at]) - time_us), index, int(order[at])) for at in range(low, high)]
    found: dict[int, int] = {}
    taken: set[int] = set()
    for _, index, depth in sorted(pairs):
        if index not in found and depth not in taken:
            found[index] = depth
            taken.add(depth)
    return found


def _layout_of(path: Path) -> Literal["tum", "open3d", "seven_scenes"] | None:
    if (path / "rgb.txt").is_file() and (path / "depth.txt").is_file():
        return "tum"
    if any(_SCENE.fullmatch(entry.name) for entry in path.iterdir()):
        return "seven_scenes"
    if (path / "depth").is_dir() and any((path / name).is_dir() for name in _COLOR_FOLDERS):
        return "open3d"
    return None


# Layouts


def _tum(path: Path, trajectory: str | None, pair_ms: float, max_pose_gap_s: float, texts: list[Path]) -> list[RgbdFrame]:
    colors, depths = (_tum_index(path / name, texts) for name in ("rgb.txt", "depth.txt"))
    pairs = associate([t for t, _ in colors], [t for t, _ in depths], round(pair_ms * 1000))
    poses = path / (trajectory or "groundtruth.txt")
    if trajectory is not None and not poses.is_file():
        raise SourceError(f"trajectory: {str(poses)!r} does not exist")
    known = None
    if poses.is_file():
        texts.append(poses)
        known = read_tum_trajectory(poses)
    frames = []
    for index, (time_us, color) in enumerate(colors):
        depth = depths[pairs[index]][1] if index in pairs else None
        pose, problem = known.at(time_us, round(max_pose_gap_s * 1e6)) if known is not None else (None, None)
        frames.append(RgbdFrame(color, depth, time_us, pose, problem))
    return frames


def _tum_index(path: Path, texts: list[Path]) -> list[tuple[int, Path]]:
    texts.append(path)
    rows = []
    for number, words in read_numbers(path):
        try:
            rows.append((round(float(words[0]) * 1e6), path.parent / words[1]))
        except (ValueError, IndexError, OverflowError):
            raise SourceError(f"{str(path)!r}, line {number}: expected 'timestamp filename', got {' '.join(words)!r}") from None
    return sorted(rows, key=lambda row: row[0])


def _open3d(path: Path, trajectory: str | None, texts: list[Path]) -> list[RgbdFrame]:
    folder = next((path / name for name in _COLOR_FOLDERS if (path / name).is_dir()), None)
    if folder is None:
        raise SourceError(f"{str(path)!r} has no folder of color images; expected one of {', '.join(_COLOR_FOLDERS)}")
    colors, depths = _images(folder), _images(path / "depth") if (path / "depth").is_dir() else []
    match = path / "rgbd.match"
    if match.is_file():
        texts.append(match)
        lines = [words for _, words in read_numbers(match) if len(words) >= 2]
        pairs: list[tuple[Path, Path | None]] = [(path / color, path / depth) for depth, color, *_ in lines]
    else:
        by_stem = {depth.stem: depth for depth in depths}
        if not by_stem.keys() & {color.stem for color in colors} and len(depths) == len(colors):
            by_stem = {color.stem: depth for color, depth in zip(colors, depths, strict=True)}
        pairs = [(color, by_stem.get(color.stem)) for color in colors]
    log = _log_of(path, trajectory)
    poses: list[Floats] | None = None
    if log is not None:
        texts.append(log)
        poses = read_log(log)
    frames = []
    for index, (color, pair) in enumerate(pairs):
        if poses is None:
            frames.append(RgbdFrame(color, pair))
        elif index < len(poses):
            frames.append(RgbdFrame(color, pair, pose=poses[index]))
        else:
            problem = f"frame {index} has no pose: {log.name if log else ''} holds {len(poses)}"
            frames.append(RgbdFrame(color, pair, problem=problem))
    return frames


def _log_of(path: Path, trajectory: str | None) -> Path | None:
    if trajectory is not None:
        if not (path / trajectory).is_file():
            raise SourceError(f"trajectory: {str(path / trajectory)!r} does not exist")
        return path / trajectory
    logs = sorted(path.glob("*.log"))
    if len(logs) > 1:
        names = ", ".join(log.name for log in logs)
        raise SourceError(f"{str(path)!r} holds several trajectories ({names}); name one by trajectory: {logs[0].name}")
    return logs[0] if logs else None


def _seven_scenes(path: Path, trajectory: str | None, texts: list[Path]) -> list[RgbdFrame]:
    if trajectory is not None:
        raise SourceError(f"trajectory: {trajectory!r} has no effect in the layout seven_scenes (frame-*.pose.txt)")
    frames = []
    for color in sorted((entry for entry in path.iterdir() if _SCENE.fullmatch(entry.name)), key=natural_key):
        stem = color.name.split(".")[0]
        depth, pose = path / f"{stem}.depth.png", path / f"{stem}.pose.txt"
        problem, matrix = None, None
        if pose.is_file():
            texts.append(pose)
            try:
                matrix = read_matrix(pose, 4, 4)
            except SourceError as error:
                problem = str(error)
        frames.append(RgbdFrame(color, depth if depth.is_file() else None, pose=matrix, problem=problem))
    return frames


# Cameras


@dataclass(frozen=True, slots=True)
class _Camera:
    matrix: Floats
    depth_scale: float | None


def _camera_file(path: Path, texts: list[Path]) -> _Camera | None:
    """Read camera*.json (Open3D's, whose matrix is stored by columns, or plain fx, fy, cx, cy) or camera-intrinsics.txt."""
    found = sorted(path.glob("camera*.json"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise SourceError(f"{str(path)!r} holds several cameras ({names}); set camera: [fx, fy, cx, cy] and depth_scale")
    text = path / "camera-intrinsics.txt"
    if found:
        texts.append(found[0])
        return _json_camera(found[0])
    if text.is_file():
        texts.append(text)
        return _Camera(read_matrix(text, 3, 3), None)
    return None


def _json_camera(file: Path) -> _Camera:
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        scale = values.get("depth_scale")
        if "intrinsic_matrix" in values:
            matrix = np.array([float(value) for value in values["intrinsic_matrix"]]).reshape(3, 3).T
        else:
            matrix = camera_matrix([float(values[name]) for name in ("fx", "fy", "cx", "cy")])
        return _Camera(matrix, None if scale is None else float(scale))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{str(file)!r} is no camera: {error!r}; expected Open3D's intrinsic_matrix (9 numbers, by columns), or fx, fy, cx "
            "and cy"
        ) from error


def _images(folder: Path) -> list[Path]:
    return sorted((e for e in folder.iterdir() if e.suffix.lower() in _IMAGES and not e.name.startswith(".")), key=natural_key)
