"""Geometry: planes, rigid motions, resizing, pooling against a loop, what is refused, and Open3D."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.fourd_vla.config import CoordPool
from models.fourd_vla.geometry import (
    camera_problem,
    depth_meters,
    pool_coordinates,
    pose_problem,
    project,
    resize_plan,
    unproject,
)


def camera(fx: float = 60.0, fy: float = 55.0, cx: float = 31.5, cy: float = 23.5) -> Tensor:
    return torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]])


def pose(seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = turn * np.sign(np.linalg.det(turn)), rng.normal(size=3)
    return torch.from_numpy(made)[None]


def scene(seed: int = 0, height: int = 48, width: int = 64, holes: float = 0.2) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    raw = rng.integers(300, 4000, (1, height, width))
    raw[rng.random(raw.shape) < holes] = 0
    return depth_meters(torch.from_numpy(raw), torch.tensor([1000.0]), 10.0)


def test_a_plane_of_constant_depth_is_a_plane() -> None:
    points = unproject(torch.full((1, 48, 64), 2.5), camera(), torch.eye(4)[None])[0]
    assert (points[..., 2] == 2.5).all()
    steps = points[:, 1:, 0] - points[:, :-1, 0]
    torch.testing.assert_close(steps, torch.full_like(steps, 2.5 / 60), atol=1e-6, rtol=0)
    assert points[0, 0, 0].item() == pytest.approx(-31.5 * 2.5 / 60)


def test_points_move_with_the_pose_and_project_back_to_their_pixels() -> None:
    depth, valid = scene()
    first, second = pose(1), pose(2)
    moved = unproject(depth, camera(), second @ first)
    turned = unproject(depth, camera(), first).double() @ second[0, :3, :3].T + second[0, :3, 3]
    torch.testing.assert_close(moved.double(), turned, atol=2e-6, rtol=0)
    pixels = project(moved[valid][None].double(), camera().double(), second @ first)
    rows, columns = valid[0].nonzero(as_tuple=True)
    torch.testing.assert_close(pixels[0], torch.stack([columns, rows], 1).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("target", [(16, 64), (16, 9), (48, 27)])
@pytest.mark.parametrize("policy", ["crop", "stretch"])
def test_resized_frames_keep_their_geometry(target: tuple[int, int], policy: str) -> None:
    """A pixel of the result lies where the camera matrix of the result says, up to half a pixel of the source."""
    depth = torch.full((1, 48, 144), 2.0)
    plan = resize_plan((48, 144), target, policy)  # type: ignore[arg-type]
    full = unproject(depth, camera(cx=71.5), pose(3))
    small = unproject(plan.depth(depth), plan.camera(camera(cx=71.5)), pose(3))
    picked = torch.stack([plan.depth(full[..., axis]) for axis in range(3)], -1)
    odd = plan.crop_height // target[0] % 2 and plan.crop_width // target[1] % 2  # nearest is then exact
    exact = odd and plan.crop_height % target[0] == 0 and plan.crop_width % target[1] == 0
    assert small.shape == picked.shape == (1, *target, 3)
    torch.testing.assert_close(small, picked, atol=1e-5 if exact else 0.5 * 2.0 / 55 * 1.5, rtol=0)


def test_crop_takes_the_middle_and_keeps_the_aspect() -> None:
    plan = resize_plan((480, 640), (252, 448))
    assert (plan.left, plan.top, plan.crop_width, plan.crop_height) == (0, 60, 640, 360)
    image = torch.arange(640.0).expand(1, 3, 480, 640)
    assert plan.color(image).shape == (1, 3, 252, 448)
    assert resize_plan((252, 448), (252, 448)).color(image[..., :252, :448]).equal(image[..., :252, :448])


@pytest.mark.parametrize("how", ["mean", "center", "median_depth"])
def test_pooled_coordinates_equal_a_loop_over_pixels(how: CoordPool) -> None:
    depth, valid = scene(seed=4, holes=0.6)
    valid[:, :8, :8] = False
    world = unproject(depth, camera(), pose(5))
    coord, share = pool_coordinates(depth, valid, camera(), pose(5), 8, how)
    for row in range(6):
        for column in range(8):
            cut = (0, slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
            good = valid[cut]
            if how == "center" and not good[4, 4]:
                good = torch.zeros_like(good)
            assert share[0, row, column].item() == pytest.approx(good.float().mean().item())
            if not good.any():
                assert coord[0, row, column].tolist() == [0, 0, 0]
                continue
            if how == "mean":
                wanted = world[cut][good].mean(0)
            elif how == "center":
                wanted = world[cut][4, 4]
            else:
                middle = depth[cut][good].median()
                center = camera(cx=31.5 - (8 * column + 3.5), cy=23.5 - (8 * row + 3.5))
                wanted = unproject(middle.view(1, 1, 1), center, pose(5))[0, 0, 0]
            torch.testing.assert_close(coord[0, row, column], wanted, atol=1e-5, rtol=0)


def test_frames_of_a_batch_do_not_touch_each_other() -> None:
    depths = [scene(seed)[0] for seed in range(3)]
    valids = [scene(seed)[1] for seed in range(3)]
    cameras, poses = [camera(fx=50.0 + seed) for seed in range(3)], [pose(seed) for seed in range(3)]
    together = pool_coordinates(torch.cat(depths), torch.cat(valids), torch.cat(cameras), torch.cat(poses), 16)
    for i in range(3):
        alone = pool_coordinates(depths[i], valids[i], cameras[i], poses[i], 16)
        torch.testing.assert_close(together[0][i], alone[0][0], atol=1e-6, rtol=0)


def test_invalid_depth_is_zero_nan_infinite_negative_saturated_or_far() -> None:
    whole, valid = depth_meters(torch.tensor([[[0, 1000, 65535, 9999, 10001]]]), torch.tensor([1000.0]), 10.0)
    assert valid[0, 0].tolist() == [False, True, False, True, False]
    assert whole[0, 0].tolist() == [0, 1, 0, pytest.approx(9.999), 0]
    assert not depth_meters(torch.tensor([[[65535]]]), torch.tensor([5000.0]), 20.0)[1].any()
    meters, valid = depth_meters(torch.tensor([[[math.nan, math.inf, -1.0, 2.0]]]), torch.tensor([1.0]), 10.0)
    assert valid[0, 0].tolist() == [False, False, False, True]
    assert meters.isfinite().all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.__setitem__((0, 3), math.nan), "NaN or infinity"),
        (lambda m: m.__setitem__((slice(3), slice(3)), 1.02 * torch.eye(3)), "det R is 1.061"),
        (lambda m: m.__setitem__((0, 0), -1.0), "det R is -1"),
        (lambda m: m.__setitem__((slice(3), slice(3)), torch.diag(torch.tensor([2.0, 0.5, 1.0]))), "no rigid transform"),
        (lambda m: m.__setitem__((3, 0), 0.7), "last row"),
    ],
)
def test_a_pose_that_is_not_rigid_is_refused(change, reason: str) -> None:
    matrix = torch.eye(4)
    change(matrix)
    assert reason in (pose_problem(matrix.ravel().tolist()) or "")


def test_poses_that_are_orthonormal_to_a_thousandth_are_taken() -> None:
    assert pose_problem(pose(1)[0].ravel().tolist()) is None
    assert pose_problem(torch.diag(torch.tensor([0.9995, 0.9996, 1.0, 1.0])).ravel().tolist()) is None


def test_a_camera_matrix_must_be_a_pinhole_stored_by_rows() -> None:
    good = camera()[0]
    assert camera_problem(good.ravel().tolist()) is None
    assert "stored by columns" in (camera_problem(good.T.ravel().tolist()) or "")
    for row, column, value in ((0, 0, 0.0), (1, 1, -5.0), (2, 2, 2.0), (0, 1, 3.0), (0, 2, math.nan)):
        bad = good.clone()
        bad[row, column] = value
        assert camera_problem(bad.ravel().tolist())


@pytest.mark.heavy
def test_unprojection_equals_open3d() -> None:
    o3d = pytest.importorskip("open3d")
    depth, valid = scene(seed=9, height=60, width=80)
    raw = o3d.geometry.Image((depth[0].numpy() * 1000).round().astype(np.uint16))
    intrinsic = o3d.camera.PinholeCameraIntrinsic(80, 60, 70.0, 72.0, 40.0, 29.0)
    cloud = o3d.geometry.PointCloud.create_from_depth_image(raw, intrinsic, np.linalg.inv(pose(2)[0].numpy()), 1000.0, 10.0, 1)
    ours = unproject(depth, camera(70.0, 72.0, 40.0, 29.0), pose(2))[valid]
    np.testing.assert_allclose(ours.numpy(), np.asarray(cloud.points), atol=1e-5)
