"""LeRobot data sets: episodes by metadata, videos by time, depth of 12-bit codes, both versions, what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import lerobot_sets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rgbd_folders as made
from reading import assert_every_restart_is_exact, read_all

from connectors.errors import ConfigError, SourceError
from connectors.sources.lerobot import DEMONSTRATION, LeRobotOptions, LeRobotSource
from connectors.sources.lerobot_layout import DepthCodes

CAMERA = [30.0, 31.0, 15.5, 11.0]


def source(path: Path, **options: object) -> LeRobotSource:
    return LeRobotSource(LeRobotOptions(path=str(path), camera=CAMERA, **options))  # type: ignore[arg-type]


def color_of(row: dict) -> np.ndarray:
    if row["encoding"] == "raw_rgb8":
        return np.frombuffer(row["image"], np.uint8).reshape(row["height"], row["width"], 3)
    return np.asarray(cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR))[..., ::-1]


def depth_of(row: dict) -> np.ndarray:
    data = np.frombuffer(row["depth"], np.uint8)
    if row["depth_encoding"] == "png":
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED)) / row["depth_scale"]
    return data.view("<f4").reshape(row["height"], row["width"]) / row["depth_scale"]


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize("video", [False, True], ids=["images", "videos"])
def test_episodes_are_streams_with_their_own_frames(tmp_path: Path, version: str, video: bool) -> None:
    path = lerobot_sets.make_set(tmp_path / "set", version=version, video=video)
    read = source(path, pose="camera.pose")
    assert read.splits() == ["episode_000000", "episode_000001"]
    first = 0
    for episode, length in enumerate((5, 4)):
        rows = read_all(source(path, pose="camera.pose"), f"episode_{episode:06d}").to_pylist()
        assert [row["error"] for row in rows] == [None] * length
        for i, row in enumerate(rows):
            assert (row["sequence"], row["event_time"].timestamp()) == (i, pytest.approx(i / lerobot_sets.FPS))
            np.testing.assert_allclose(color_of(row), lerobot_sets.color(first + i), atol=6 if video else 0)
            wanted = made.depth(first + i) / 1000
            np.testing.assert_allclose(depth_of(row), wanted, atol=1e-3 if video else 1e-9)
            assert row["instruction"] == ["pick up the cube", "open the drawer"][episode]
            assert (row["state"], row["episode"]) == ([0.5 * i, 1.0], f"episode_{episode:06d}")
            assert row["action"] == pytest.approx([0.1 * i] * 6 + [1.0])
            np.testing.assert_allclose(np.reshape(row["pose"], (4, 4)), made.pose(i), atol=1e-9)
            assert row["intrinsics"] == [30, 0, 15.5, 0, 31, 11, 0, 0, 1]
        first += length


def test_the_layout_of_the_robomme_release_loads(tmp_path: Path) -> None:
    """Version 2.1 with its own names: two cameras in the tables, no videos although there is a path for them, 8 joints."""
    folder, frames = tmp_path / "robomme", 3
    numbers = {"state": [8], "actions": [8], "timestamp": [1], "frame_index": [1], "episode_index": [1], "index": [1]}
    kinds = {"state": "float32", "actions": "float32", "timestamp": "float32"}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "panda",
        "total_videos": 0,
        "chunks_size": 1000,
        "fps": 10,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            **{name: {"dtype": "image", "shape": [256, 256, 3]} for name in ("image", "wrist_image")},
            **{name: {"dtype": kinds.get(name, "int64"), "shape": shape} for name, shape in numbers.items()},
            "task_index": {"dtype": "int64", "shape": [1]},
        },
    }
    tasks = ["pick up the cube that was shown first", "press the button twice"]
    lines = {
        "tasks": [{"task_index": number, "task": task} for number, task in enumerate(tasks)],
        "episodes": [{"episode_index": n, "tasks": [tasks[n % 2]], "length": frames} for n in (0, 1000)],
        "episodes_stats": [{"episode_index": n, "stats": {}} for n in (0, 1000)],
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    for name, values in lines.items():
        (folder / "meta" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, values)) + "\n")
    png = cv2.imencode(".png", np.full((256, 256, 3), 90, np.uint8))[1].tobytes()
    for episode in (0, 1000):
        rows = [
            {
                **{key: {"bytes": png, "path": f"frame_{i:06d}.png"} for key in ("image", "wrist_image")},
                **dict.fromkeys(("state", "actions"), [0.1 * i] * 8),
                "timestamp": i / 10,
                "frame_index": i,
                "episode_index": episode,
                "index": i,
                "task_index": 0,
            }
            for i in range(frames)
        ]
        file = folder / info["data_path"].format(episode_chunk=episode // 1000, episode_index=episode)  # type: ignore[attr-defined]
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
    options = {"color": "image", "state": "state", "action": "actions"}
    assert source(folder, **options).splits() == ["episode_000000", "episode_001000"]
    found = read_all(source(folder, **options), "episode_001000").to_pylist()
    assert [(row["error"], row["instruction"], len(row["action"]), len(row["state"])) for row in found] == [
        (None, tasks[0], 8, 8)
    ] * frames
    assert color_of(found[0]).shape == (256, 256, 3)
    with pytest.raises(SourceError, match=r"has several: \['image', 'wrist_image'\]; name one by color: image"):
        read_all(source(folder), "episode_000000")


@pytest.mark.parametrize("video", [False, True], ids=["images", "videos"])
def test_lerobot_restarts_are_exact_at_every_row(tmp_path: Path, video: bool) -> None:
    path = lerobot_sets.make_set(tmp_path / "set", video=video)
    assert_every_restart_is_exact(lambda: source(path), "episode_000001", rows=2)


def test_codes_of_depth_are_the_published_formula() -> None:
    plain = DepthCodes()
    depth = plain.meters(np.array([0, 1, 2048, 4095], np.uint16))
    low, high = np.log(3.51), np.log(13.5)
    wanted = np.exp(np.array([1, 2048, 4095]) / 4095 * (high - low) + low) - 3.5
    assert depth[0] == 0  # no reading
    np.testing.assert_allclose(depth[1:], wanted, rtol=1e-6)
    assert DepthCodes(is_log=False).meters(np.array([4095], np.uint16))[0] == pytest.approx(10)


def test_chosen_episodes_and_cameras_are_read_and_others_refused_by_name(tmp_path: Path) -> None:
    path = lerobot_sets.make_set(tmp_path / "set")
    assert source(path, episodes=[1]).streams() == ["episode_000001"]
    with pytest.raises(SourceError, match=r"has no \[7\]; it has 2"):
        source(path, episodes=[7]).splits()
    with pytest.raises(SourceError, match=r"color: .*has no 'observation.images.fron'.*did you mean"):
        source(path, color="observation.images.fron").open("episode_000000", None)
    with pytest.raises(ConfigError, match="remove one"):
        source(path, intrinsics="camera.pose")
    with pytest.raises(SourceError, match=r"info\.json"):
        source(tmp_path).splits()


def test_a_set_that_lacks_rows_or_frames_says_so(tmp_path: Path) -> None:
    path = lerobot_sets.make_set(tmp_path / "set", version="v2.1", video=True)
    lines = [json.loads(line) for line in (path / "meta" / "episodes.jsonl").read_text().splitlines()]
    lines[0]["length"] = 9
    (path / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(SourceError, match="holds 5 rows of episode 0, the metadata say 9"):
        source(path).open("episode_000000", None)
    for file in (path / "videos").rglob("episode_000001.mkv"):
        if "depth" not in str(file):
            file.write_bytes(b"no video")
    rows = read_all(source(path), "episode_000001").to_pylist()
    assert all("no video that can be read" in row["error"] for row in rows)
    assert len(rows) == 4
    assert DEMONSTRATION.names[-4:] == ["episode", "instruction", "state", "action"]
