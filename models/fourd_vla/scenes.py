"""Rendered scenes for the small recipes: colored cubes on a floor, seen by a random camera, with exact depth. Knows no policy.

Boxes are cut by rays, all pixels of all scenes at once; colors depend on the side of a cube that is seen, as under one lamp.
"""

# S scenes, O cubes of a scene, H height, W width

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["COLORS", "Cameras", "Scenes", "look_at", "random_cameras", "render"]

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (200, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 70, 210),
    "yellow": (220, 200, 40),
}
"""Of cubes, by name; RGB in 0..255."""

_FLOOR = (120.0, 115.0, 110.0)
_SKY = (60.0, 65.0, 75.0)
_DARK = 0.6
_SIDES = (0.75, 0.9, 1.1)
"""How bright the sides across x, y and z are."""


@dataclass(frozen=True, slots=True)
class Cameras:
    """Pinhole cameras: matrices [S, 3, 3] and poses camera to world [S, 4, 4]."""

    camera_S33: Tensor
    pose_S44: Tensor
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Scenes:
    """Cubes on the floor z = 0 of the robot's frame; those of size 0 are not there."""

    center_SO3: Tensor
    size_SO: Tensor
    """Length of an edge, m."""
    rgb_SO3: Tensor


def random_cameras(count: int, height: int, width: int, generator: torch.Generator) -> Cameras:
    """Draw cameras all around, 1.1 to 1.5 m from the middle of the table, that look at a place near it."""

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand((count, *more), generator=generator)

    around_S, above_S, far_S = uniform(0, 2 * math.pi), uniform(0.6, 1.1), uniform(1.1, 1.5)
    place_S3 = far_S[:, None] * torch.stack(
        [around_S.cos() * above_S.cos(), around_S.sin() * above_S.cos(), above_S.sin()], dim=1
    )
    target_S3 = torch.cat([uniform(-0.1, 0.1, 2), torch.zeros(count, 1)], dim=1)
    return look_at(place_S3, target_S3, height, width)


def look_at(place_S3: Tensor, target_S3: Tensor, height: int, width: int) -> Cameras:
    """Return cameras at places that look at targets, none of them straight up or down."""
    count = len(place_S3)
    ahead_S3 = torch.nn.functional.normalize(target_S3 - place_S3, dim=1)
    right_S3 = torch.nn.functional.normalize(
        torch.linalg.cross(ahead_S3, torch.tensor([0.0, 0.0, 1.0]).expand(count, 3)), dim=1
    )
    down_S3 = torch.linalg.cross(ahead_S3, right_S3)
    pose_S44 = torch.eye(4).repeat(count, 1, 1)
    pose_S44[:, :3, :3] = torch.stack([right_S3, down_S3, ahead_S3], dim=2)
    pose_S44[:, :3, 3] = place_S3
    focal = 1.1 * width
    camera_33 = torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return Cameras(camera_33.repeat(count, 1, 1), pose_S44, height, width)


def render(scenes: Scenes, cameras: Cameras, *, floor: bool = True, tile_m: float | None = None) -> tuple[Tensor, Tensor]:
    """Return color [S, H, W, 3] in 0..255, float, and depth along the view [S, H, W] in meters, 0 for the sky.

    ``floor``: False leaves the floor out, as where it is beyond the reach of depth. ``tile_m``: it has tiles of two
    grays, of this side; None: it is plain and tells nothing of the camera.
    """
    H, W = cameras.height, cameras.width
    camera_S33, pose_S44 = cameras.camera_S33, cameras.pose_S44
    u_HW, v_HW = torch.meshgrid(torch.arange(W).float(), torch.arange(H).float(), indexing="xy")
    x_SHW = (u_HW - camera_S33[:, 0, 2, None, None]) / camera_S33[:, 0, 0, None, None]
    y_SHW = (v_HW - camera_S33[:, 1, 2, None, None]) / camera_S33[:, 1, 1, None, None]
    local_SHW3 = torch.stack([x_SHW, y_SHW, torch.ones_like(x_SHW)], dim=-1)  # of depth 1, so that a length is a depth
    ray_SHW3 = torch.einsum("sij,shwj->shwi", pose_S44[:, :3, :3], local_SHW3)
    ray_SHW3 = torch.where(ray_SHW3.abs() < 1e-6, 1e-6, ray_SHW3)
    start_S3 = pose_S44[:, :3, 3]

    floor_SHW = -start_S3[:, 2, None, None] / ray_SHW3[..., 2]
    on_floor_SHW = (floor_SHW > 0) & (floor_SHW < 5) & floor
    depth_SHW = torch.where(on_floor_SHW, floor_SHW, torch.inf)
    floor_SHW3 = torch.tensor(_FLOOR).expand(*floor_SHW.shape, 3)
    if tile_m is not None:
        place_SHW2 = start_S3[:, None, None, :2] + floor_SHW[..., None] * ray_SHW3[..., :2]
        is_dark_SHW = (place_SHW2 / tile_m).floor().nan_to_num(0.0).sum(-1).remainder(2) > 0
        floor_SHW3 = torch.where(is_dark_SHW[..., None], _DARK * floor_SHW3, floor_SHW3)
    color_SHW3 = torch.where(on_floor_SHW[..., None], floor_SHW3, torch.tensor(_SKY))
    sides_3 = torch.tensor(_SIDES)
    for cube in range(scenes.size_SO.shape[1]):
        center_S3, half_S1 = scenes.center_SO3[:, cube], scenes.size_SO[:, cube, None] / 2
        low_SHW3 = ((center_S3 - half_S1 - start_S3)[:, None, None]) / ray_SHW3
        high_SHW3 = ((center_S3 + half_S1 - start_S3)[:, None, None]) / ray_SHW3
        enter_SHW, side_SHW = torch.minimum(low_SHW3, high_SHW3).max(dim=-1)
        leave_SHW = torch.maximum(low_SHW3, high_SHW3).amin(dim=-1)
        seen_SHW = (enter_SHW < leave_SHW) & (enter_SHW > 0) & (enter_SHW < depth_SHW) & (half_S1[..., None] > 0)
        depth_SHW = torch.where(seen_SHW, enter_SHW, depth_SHW)
        lit_SHW3 = scenes.rgb_SO3[:, cube, None, None] * sides_3[side_SHW][..., None]
        color_SHW3 = torch.where(seen_SHW[..., None], lit_SHW3, color_SHW3)
    return color_SHW3.clamp(0, 255), torch.where(depth_SHW.isfinite(), depth_SHW, 0.0)
