"""RGB-D folders: what is commonly got wrong about each layout, bad data, and restarts; made folders and real recordings."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rgbd_folders as made
from reading import assert_every_restart_is_exact, read_all
from real_data import REAL_DATA

from connectors.errors import ConfigError, SourceError
from connectors.records import RGBD
from connectors.sources.rgbd import RgbdOptions, RgbdSource
from connectors.sources.rgbd_layouts import associate
from connectors.sources.rgbd_poses import quaternion_matrix, slerp

RGBD_DATA = REAL_DATA / "rgbd"
real = pytest.mark.skipif(not RGBD_DATA.is_dir(), reason=f"no recordings in {RGBD_DATA}; set STREAMBANK_DATA")


def source(path: Path, **options: object) -> RgbdSource:
    return RgbdSource(RgbdOptions(path=str(path), **options))  # type: ignore[arg-type]


def rows_of(path: Path, **options: object) -> list[dict]:
    table = read_all(source(path, **options))
    assert table.schema == RGBD
    return table.to_pylist()


def seconds(row: dict) -> float:
    return row["event_time"].timestamp()


def test_tum_frames_have_the_nearest_depth_and_the_pose_between_two(tmp_path: Path) -> None:
    rows = rows_of(made.tum_folder(tmp_path / "rgbd_dataset_freiburg1_desk"))
    assert [row["sequence"] for row in rows] == list(range(6))
    assert {row["stream_id"] for row in rows} == {"rgbd_dataset_freiburg1_desk"}
    for number, row in enumerate(rows):
        assert row["error"] is None
        assert seconds(row) == pytest.approx(100 + 0.1 * number)
        assert row["depth"] == next(iter(tmp_path.glob(f"*/depth/{100 + 0.1 * number + 0.012:.6f}.png"))).read_bytes()
        assert (row["depth_encoding"], row["depth_scale"]) == ("png", 5000)
        np.testing.assert_allclose(np.reshape(row["pose"], (4, 4)), made.pose(number), atol=1e-9)
    assert rows[0]["intrinsics"] == [517.3, 0, 318.6, 0, 516.5, 255.3, 0, 0, 1]


@pytest.mark.parametrize(
    ("folder", "fx"), [("x", 525.0), ("freiburg2_pioneer", 520.9), ("rgbd_dataset_freiburg3_walking", 535.4)]
)
def test_tum_cameras_are_known_by_the_name_of_the_recording(tmp_path: Path, folder: str, fx: float) -> None:
    assert rows_of(made.tum_folder(tmp_path / folder, 1))[0]["intrinsics"][0] == fx
    assert rows_of(tmp_path / folder, camera=[300.0, 301.0, 9.0, 8.0])[0]["intrinsics"] == [300, 0, 9, 0, 301, 8, 0, 0, 1]


def test_tum_depth_further_off_than_the_limit_is_no_depth(tmp_path: Path) -> None:
    made.tum_folder(tmp_path / "a", depth_shift_s=0.021)
    assert [row["depth"] for row in rows_of(tmp_path / "a")] == [None] * 6
    assert all(row["error"] is None for row in rows_of(tmp_path / "a"))
    assert all(row["depth"] for row in rows_of(tmp_path / "a", pair_ms=21))


def test_each_depth_goes_with_one_color_frame_nearest_pairs_first() -> None:
    assert associate([0, 10, 20], [9, 21], 20) == {1: 0, 2: 1}
    assert associate([0, 8], [5], 20) == {1: 0}
    assert associate([100], [79, 121], 20) == {}
    rng = np.random.default_rng(0)
    color, depth = np.sort(rng.integers(0, 900, 40)).tolist(), np.sort(rng.integers(0, 900, 40)).tolist()
    pairs = associate(color, depth, 20)
    assert len(set(pairs.values())) == len(pairs)
    assert all(abs(color[c] - depth[d]) <= 20 for c, d in pairs.items())


def test_tum_frames_outside_the_trajectory_or_in_its_gaps_say_so(tmp_path: Path) -> None:
    folder = made.tum_folder(tmp_path / "a")
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    (folder / "groundtruth.txt").write_text("\n".join([*lines[:3], *lines[9:11]]) + "\n")
    errors = [row["error"] for row in rows_of(folder)]
    assert errors[0] is None
    assert "neighbors are 0.350 s apart, max_pose_gap_s is 0.2" in errors[1]
    assert "the trajectory goes from 99.975000 to 100.425000 s" in errors[5]
    (folder / "groundtruth.txt").unlink()
    assert [(row["pose"], row["error"]) for row in rows_of(folder)] == [(None, None)] * 6


def test_slerp_turns_evenly_along_the_shorter_arc() -> None:
    turn = lambda angle: np.array([0, math.sin(angle / 2), 0, math.cos(angle / 2)])  # noqa: E731
    for share in (0.0, 0.25, 1.0):
        wanted = quaternion_matrix(turn(0.3 + share * 0.8))
        for second in (turn(1.1), -turn(1.1)):
            np.testing.assert_allclose(quaternion_matrix(slerp(turn(0.3), second, share)), wanted, atol=1e-12)
    np.testing.assert_allclose(slerp(turn(0.3), turn(0.3), 0.5), turn(0.3), atol=1e-12)


def test_the_matrix_of_open3d_is_stored_by_columns(tmp_path: Path) -> None:
    rows = rows_of(made.open3d_folder(tmp_path / "a"), fps=10.0)
    assert rows[0]["intrinsics"] == made.MATRIX.ravel().tolist()
    for number, row in enumerate(rows):
        np.testing.assert_allclose(np.reshape(row["pose"], (4, 4)), made.pose(number), atol=1e-9)
        assert (row["depth_scale"], row["encoding"], seconds(row)) == (1000, "jpeg", pytest.approx(number / 10))


def test_an_open3d_folder_with_two_trajectories_asks_which(tmp_path: Path) -> None:
    folder = made.open3d_folder(tmp_path / "a")
    shutil.copy(folder / "trajectory.log", folder / "odometry.log")
    with pytest.raises(SourceError, match=r"several trajectories \(odometry.log, trajectory.log\); name one"):
        rows_of(folder)
    assert len(rows_of(folder, trajectory="trajectory.log")) == 4
    (folder / "odometry.log").unlink()
    (folder / "trajectory.log").write_text("\n".join((folder / "trajectory.log").read_text().splitlines()[:10]))
    rows = rows_of(folder)
    assert [row["error"] for row in rows[:2]] == [None, None]
    assert "frame 3 has no pose: trajectory.log holds 2" in rows[3]["error"]


def test_seven_scenes_keep_the_nan_of_lost_tracking(tmp_path: Path) -> None:
    rows = rows_of(made.scenes_folder(tmp_path / "seq-01"))
    np.testing.assert_allclose(np.reshape(rows[1]["pose"], (4, 4)), made.pose(1), atol=1e-8)
    assert np.isnan(rows[2]["pose"]).all()
    assert rows[2]["error"] is None
    assert rows[0]["intrinsics"][0] == 585
    np.savetxt(tmp_path / "seq-01" / "camera-intrinsics.txt", made.MATRIX)
    assert rows_of(tmp_path / "seq-01")[0]["intrinsics"] == made.MATRIX.ravel().tolist()


def test_several_folders_are_several_streams(tmp_path: Path) -> None:
    made.tum_folder(tmp_path / "b", 2)
    made.scenes_folder(tmp_path / "a")
    assert source(tmp_path).splits() == ["a", "b"]
    assert source(tmp_path / "*").splits() == ["a", "b"]
    assert source(tmp_path / "b").streams() == ["b"]


@pytest.mark.parametrize("make", [made.tum_folder, made.open3d_folder, made.scenes_folder])
def test_rgbd_restarts_are_exact_at_every_row(tmp_path: Path, make) -> None:
    folder = make(tmp_path / "a", 5)
    if make is made.scenes_folder:  # NaN never equals itself
        shutil.copy(folder / "frame-000000.pose.txt", folder / "frame-000004.pose.txt")
    assert_every_restart_is_exact(lambda: source(folder), rows=2)


def test_a_recording_that_has_changed_is_not_continued(tmp_path: Path) -> None:
    folder = made.tum_folder(tmp_path / "a")
    position = source(folder).open("a", None).position()
    (folder / "groundtruth.txt").write_text((folder / "groundtruth.txt").read_text() + "\n# more\n")
    with pytest.raises(SourceError, match="have changed since"):
        source(folder).open("a", position)


def test_a_bad_frame_is_one_row_and_the_next_follows(tmp_path: Path) -> None:
    folder = made.tum_folder(tmp_path / "a")
    (folder / "rgb" / "100.100000.png").write_bytes(b"")
    (folder / "rgb" / "100.200000.png").write_bytes(b"no image")
    (folder / "depth" / "100.312000.png").unlink()
    rows = rows_of(folder)
    assert [row["error"] is None for row in rows] == [True, False, False, False, True, True]
    assert [row["image"] is None for row in rows] == [False, True, True, True, False, False]
    assert "is empty" in rows[1]["error"]
    assert "neither JPEG nor PNG" in rows[2]["error"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("rgb.txt", "1.0\n", "line 1: expected 'timestamp filename', got '1.0'"),
        ("groundtruth.txt", "1 2 3 4 5 6 7\n", "line 1: expected 'time tx ty tz qx qy qz qw'"),
        ("groundtruth.txt", "1 2 3 4 0 0 0 0\n", "line 1: expected"),
        ("camera.json", "{}", "is no camera"),
    ],
)
def test_text_files_that_cannot_be_understood_are_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = made.tum_folder(tmp_path / "a")
    (folder / file).write_text(text)
    with pytest.raises(SourceError, match=message):
        rows_of(folder)


def test_options_and_folders_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be fx, fy, cx, cy"):
        RgbdOptions(path="x", camera=[1.0, 2.0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="RGB-D recordings"):
        source(tmp_path / "empty").splits()
    with pytest.raises(SourceError, match="none of the RGB-D layouts"):
        folder = made.open3d_folder(tmp_path / "a")
        shutil.rmtree(folder / "depth")
        (tmp_path / "a2").mkdir()
        from connectors.sources.rgbd_layouts import list_folder

        list_folder(tmp_path / "a2", "auto", camera=None, depth_scale=None, trajectory=None, pair_ms=20, max_pose_gap_s=0.2)


# Real recordings


@real
def test_redkitchen_is_read_as_tum_with_its_own_camera_and_millimeters() -> None:
    rows = rows_of(RGBD_DATA / "redkitchen30")
    assert len(rows) == 30
    assert [row["error"] for row in rows] == [None] * 30
    assert all(row["depth"] for row in rows)
    assert rows[0]["intrinsics"] == [585, 0, 320, 0, 585, 240, 0, 0, 1]
    assert {row["depth_scale"] for row in rows} == {1000}
    for row in rows:
        file = RGBD_DATA / "redkitchen30" / "pose" / f"frame-{round(seconds(row) * 30):06}.txt"
        np.testing.assert_allclose(np.reshape(row["pose"], (4, 4)), np.loadtxt(file), atol=2e-3)


@real
def test_redkitchen_files_in_the_names_of_7_scenes_give_the_same_images(tmp_path: Path) -> None:
    folder = tmp_path / "seq"
    folder.mkdir()
    for color in sorted((RGBD_DATA / "redkitchen30" / "rgb").iterdir())[:4]:
        (folder / f"{color.stem}.color.jpg").symlink_to(color)
        (folder / f"{color.stem}.depth.png").symlink_to(RGBD_DATA / "redkitchen30" / "depth" / f"{color.stem}.png")
        (folder / f"{color.stem}.pose.txt").symlink_to(RGBD_DATA / "redkitchen30" / "pose" / f"{color.stem}.txt")
    scenes, tum = rows_of(folder), rows_of(RGBD_DATA / "redkitchen30")[:4]
    assert [row["image"] for row in scenes] == [row["image"] for row in tum]
    assert [row["depth"] for row in scenes] == [row["depth"] for row in tum]
    for a, b in zip(scenes, tum, strict=True):
        np.testing.assert_allclose(a["pose"], b["pose"], atol=2e-3)


@real
def test_the_living_room_of_open3d_reads_its_match_file_and_the_trajectory_that_is_named() -> None:
    with pytest.raises(SourceError, match="several trajectories"):
        rows_of(RGBD_DATA / "livingroom5")
    rows = rows_of(RGBD_DATA / "livingroom5", trajectory="odometry.log")
    assert len(rows) == 5
    assert rows[0]["intrinsics"] == [525, 0, 319.5, 0, 525, 239.5, 0, 0, 1]
    assert rows[0]["pose"] == [1, 0, 0, 2, 0, 1, 0, 2, 0, 0, 1, -0.3, 0, 0, 0, 1]
    assert pa.array([row["depth_scale"] for row in rows]).unique().to_pylist() == [1000]
