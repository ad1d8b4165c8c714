"""Small made LeRobot data sets, versions 3 and 2.1: images in the table, or videos of color and of 12-bit depth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rgbd_folders as made

FPS = 10
COLOR, DEPTH = "observation.images.front", "observation.images.front_depth"


def color(index: int) -> np.ndarray:
    """Return a smooth image whose mean tells which frame it is."""
    ramp = np.linspace(0, 60, made.WIDTH, dtype=np.float32)[None, :, None]
    return np.broadcast_to(ramp + 8 * index + 20, (made.HEIGHT, made.WIDTH, 3)).astype(np.uint8).copy()


def codes(depth_m: np.ndarray, low: float, high: float, shift: float) -> np.ndarray:
    """Return 12-bit codes of depth, logarithmic."""
    start, end = math.log(low + shift), math.log(high + shift)
    share = (np.log(depth_m + shift) - start) / (end - start)
    return np.rint(share * 4095).clip(0, 4095).astype(np.uint16)


def _png(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1])


def _video(file: Path, frames: Sequence[np.ndarray], *, depth: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("ffv1" if depth else "libx264", rate=FPS)
        stream.width, stream.height, stream.time_base = made.WIDTH, made.HEIGHT, Fraction(1, FPS)
        stream.pix_fmt = "gray12le" if depth else "yuv420p"
        if not depth:
            stream.options = {"crf": "8"}
        for number, image in enumerate(frames):
            frame = av.VideoFrame(made.WIDTH, made.HEIGHT, stream.pix_fmt) if depth else av.VideoFrame.from_ndarray(image)
            if depth:
                plane = frame.planes[0]
                padded = np.zeros((made.HEIGHT, plane.line_size // 2), np.uint16)
                padded[:, : made.WIDTH] = image
                plane.update(padded)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def make_set(root: Path, lengths: Sequence[int] = (5, 4), *, version: str = "v3.0", video: bool = False) -> Path:
    """Write a data set; frame i of all is ``color(i)`` and ``made.depth(i)``."""
    total, is_v3 = sum(lengths), version.startswith("v3")
    suffix = ".mkv" if video else ".mp4"  # ffv1 goes into Matroska; what a set is read by is its metadata
    chunk = (
        "chunk-{chunk_index:03d}/file-{file_index:03d}" if is_v3 else "chunk-{episode_chunk:03d}/episode_{episode_index:06d}"
    )
    middle = "{video_key}/" + chunk if is_v3 else "chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}"
    kind = "video" if video else "image"
    depth_info = {
        "is_depth_map": True,
        "video.depth_min": 0.01,
        "video.depth_max": 5.0,
        "video.shift": 2.0,
        "video.use_log": True,
    }
    number = {"dtype": "float32", "names": None}
    info: dict[str, Any] = {
        "codebase_version": version,
        "fps": FPS,
        "chunks_size": 1000,
        "total_episodes": len(lengths),
        "total_frames": total,
        "data_path": f"data/{chunk}.parquet",
        "video_path": f"videos/{middle}{suffix}" if video else None,
        "features": {
            COLOR: {"dtype": kind, "shape": [made.HEIGHT, made.WIDTH, 3], "names": ["height", "width", "channels"]},
            DEPTH: {"dtype": kind, "shape": [made.HEIGHT, made.WIDTH, 1], "names": None, "info": depth_info},
            "observation.state": number | {"shape": [2]},
            "action": number | {"shape": [7]},
            "camera.pose": number | {"shape": [16]},
            "timestamp": number | {"shape": [1]},
        },
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    tasks = [{"task_index": 0, "task": "pick up the cube"}, {"task_index": 1, "task": "open the drawer"}]
    rows, episodes, start = [], [], 0
    for episode, length in enumerate(lengths):
        for i in range(length):
            row: dict[str, Any] = {
                "timestamp": np.float32(i / FPS),
                "frame_index": i,
                "episode_index": episode,
                "index": start + i,
                "task_index": episode % 2,
                "observation.state": [0.5 * i, 1.0],
                "action": [0.1 * i] * 6 + [1.0],
                "camera.pose": made.pose(i).ravel().tolist(),
            }
            if not video:
                row[COLOR] = {"bytes": _png(color(start + i)), "path": None}
                row[DEPTH] = {"bytes": _png(made.depth(start + i)), "path": None}
            rows.append(row)
        told: dict[str, Any] = {"episode_index": episode, "tasks": [tasks[episode % 2]["task"]], "length": length}
        if is_v3:
            told |= {
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": start,
                "dataset_to_index": start + length,
            }
            for key in (COLOR, DEPTH) if video else ():
                told |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0}
                told |= {f"videos/{key}/from_timestamp": start / FPS, f"videos/{key}/to_timestamp": (start + length) / FPS}
        episodes.append(told)
        start += length
    parts = {"chunk_index": 0, "file_index": 0, "episode_chunk": 0}
    for episode in [None] if is_v3 else range(len(lengths)):
        mine = [row for row in rows if episode is None or row["episode_index"] == episode]
        file = root / info["data_path"].format(**parts, episode_index=episode)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(mine), file)
        if video:
            indices = [row["index"] for row in mine]
            looks = {
                COLOR: [color(i) for i in indices],
                DEPTH: [codes(made.depth(i) / 1000.0, 0.01, 5.0, 2.0) for i in indices],
            }
            for key, images in looks.items():
                place = info["video_path"].format(**parts, episode_index=episode, video_key=key)
                _video(root / place, images, depth=key == DEPTH)
    if is_v3:
        folder = root / "meta" / "episodes" / "chunk-000"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(episodes), folder / "file-000.parquet")
        named = pa.table({"task_index": [0, 1], "__index_level_0__": [task["task"] for task in tasks]})
        pq.write_table(named, root / "meta" / "tasks.parquet")
    else:
        for name, lines in (("episodes", episodes), ("tasks", tasks)):
            (root / "meta" / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return root
