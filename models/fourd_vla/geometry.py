"""Pinhole geometry of RGB-D frames on the device: resizing, unprojection, the coordinate of a token, checks of poses.

Pixel (u, v) is (column, row) with whole numbers at pixel centers (the convention of Open3D and TUM). A pose is always camera to
world, axes x right, y down, z forward, meters. Everything is batched over frames; nothing here knows a stream.
"""

# B frames, H height, W width, h token rows, w token columns, p pixels of a patch's side

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.fourd_vla.config import CoordPool, ResizePolicy
from models.uploads import upload

__all__ = [
    "ResizePlan",
    "camera_problem",
    "depth_meters",
    "pool_coordinates",
    "pose_problem",
    "project",
    "resize_plan",
    "unproject",
]

_RIGID = 0.01
"""How far a determinant may be from 1; and twice that for entries of RR' from the identity. Real poses reach 1e-3."""


def depth_meters(raw_BHW: Tensor, scale_B: Tensor, depth_max_m: float) -> tuple[Tensor, Tensor]:
    """Return depth in meters [B, H, W] (float32, 0 where invalid) and which pixels are valid.

    ``scale_B``: units per meter (1000 for millimeters, 5000 for TUM). Invalid: 0, negative, NaN, infinite, 65535 of 16-bit
    depth, and beyond ``depth_max_m`` (spec section 3).
    """
    saturated_BHW = raw_BHW == 65535 if not raw_BHW.is_floating_point() else torch.zeros_like(raw_BHW, dtype=torch.bool)
    depth_BHW = raw_BHW.float() / upload(scale_B.float(), raw_BHW.device)[:, None, None]
    valid_BHW = depth_BHW.isfinite() & (depth_BHW > 0) & (depth_BHW <= depth_max_m) & ~saturated_BHW
    return depth_BHW.masked_fill(~valid_BHW, 0.0), valid_BHW


def unproject(depth_BHW: Tensor, camera_B33: Tensor, pose_B44: Tensor) -> Tensor:
    """Return the world point of every pixel, [B, H, W, 3]: R (D K^-1 [u v 1]') + T. Invalid depth gives the camera's place."""
    x_BW, y_BH = _rays(camera_B33, depth_BHW.shape[1], depth_BHW.shape[2])
    local_BHW3 = torch.stack([depth_BHW * x_BW[:, None], depth_BHW * y_BH[:, :, None], depth_BHW], dim=-1)
    return _to_world(local_BHW3, pose_B44)


def project(points_BN3: Tensor, camera_B33: Tensor, pose_B44: Tensor) -> Tensor:
    """Return the pixels (u, v) [B, N, 2] that world points [B, N, 3] are seen at."""
    turn_B33, move_B3 = pose_B44[:, :3, :3], pose_B44[:, :3, 3]
    local_BN3 = torch.linalg.solve(turn_B33, (points_BN3 - move_B3[:, None]).transpose(1, 2)).transpose(1, 2)
    scaled_BN3 = local_BN3 @ camera_B33.transpose(1, 2)
    pixels_BN2: Tensor = scaled_BN3[..., :2] / scaled_BN3[..., 2:]
    return pixels_BN2


def pool_coordinates(
    depth_BHW: Tensor, valid_BHW: Tensor, camera_B33: Tensor, pose_B44: Tensor, patch: int, how: CoordPool = "mean"
) -> tuple[Tensor, Tensor]:
    """Return each token's world coordinate [B, h, w, 3] and the share of its pixels that are valid [B, h, w].

    ``mean``: masked mean over the patch. It is linear in D [u v 1], so D, D x and D y are pooled and one 3x3 product per token
    follows, not one per pixel. ``center``: the pixel nearest the center (of an even patch the lower right one), valid if
    that is. ``median_depth``: the lower median of valid depth, seen through the patch's center. Tokens without a valid pixel
    hold 0.
    """
    H, W = depth_BHW.shape[1:]
    if H % patch or W % patch:
        raise ValueError(f"depth of {H}x{W} px has no whole patches of {patch} px")
    x_BW, y_BH = _rays(camera_B33, H, W)
    count_Bhw = _patch_sums(valid_BHW[:, None], patch)[:, 0]
    share_Bhw = (count_Bhw / patch**2).float()
    if how == "mean":
        z_BHW = depth_BHW * valid_BHW
        moments_B3HW = torch.stack([z_BHW * x_BW[:, None], z_BHW * y_BH[:, :, None], z_BHW], dim=1)
        local_Bhw3 = (_patch_sums(moments_B3HW, patch) / count_Bhw.clamp_min(1)[:, None]).permute(0, 2, 3, 1).float()
    else:
        if how == "center":
            middle = patch // 2
            z_Bhw = (depth_BHW * valid_BHW)[:, middle::patch, middle::patch]
            share_Bhw = share_Bhw * valid_BHW[:, middle::patch, middle::patch]
        else:
            middle = 0
            cells_Bhwp = _cells(depth_BHW.masked_fill(~valid_BHW, math.nan), patch)
            z_Bhw = cells_Bhwp.nanmedian(dim=-1).values.nan_to_num(0.0)
        at = middle if how == "center" else (patch - 1) / 2
        x_Bw = x_BW[:, ::patch] + (x_BW[:, 1:2] - x_BW[:, :1]) * at if W > 1 else x_BW
        y_Bh = y_BH[:, ::patch] + (y_BH[:, 1:2] - y_BH[:, :1]) * at if H > 1 else y_BH
        local_Bhw3 = torch.stack([z_Bhw * x_Bw[:, None], z_Bhw * y_Bh[:, :, None], z_Bhw], dim=-1)
    world_Bhw3 = _to_world(local_Bhw3, pose_B44)
    return world_Bhw3.masked_fill((share_Bhw <= 0)[..., None], 0.0), share_Bhw


@dataclass(frozen=True, slots=True)
class ResizePlan:
    """How frames of one size become frames of another: a crop, then a scale per axis. The camera matrix follows exactly."""

    left: int
    top: int
    crop_width: int
    crop_height: int
    height: int
    width: int

    def color(self, image_BCHW: Tensor) -> Tensor:
        """Scale color [B, C, H, W], bilinear with antialiasing; float."""
        cut_BCHW = image_BCHW[..., self.top : self.top + self.crop_height, self.left : self.left + self.crop_width]
        if cut_BCHW.shape[-2:] == (self.height, self.width):
            return cut_BCHW
        return F.interpolate(cut_BCHW, (self.height, self.width), mode="bilinear", antialias=True)

    def depth(self, depth_BHW: Tensor) -> Tensor:
        """Scale depth [B, H, W] by the nearest pixel: anything smoother makes up surfaces at edges."""
        rows = _nearest(self.height, self.crop_height, self.top, depth_BHW.device)
        columns = _nearest(self.width, self.crop_width, self.left, depth_BHW.device)
        return depth_BHW[:, rows[:, None], columns]

    def camera(self, camera_B33: Tensor) -> Tensor:
        """Return the camera matrices of the result, [B, 3, 3]."""
        scale_x, scale_y = self.width / self.crop_width, self.height / self.crop_height
        made_B33 = camera_B33.clone()
        made_B33[:, 0, 0] *= scale_x
        made_B33[:, 1, 1] *= scale_y
        made_B33[:, 0, 2] = (camera_B33[:, 0, 2] - self.left + 0.5) * scale_x - 0.5
        made_B33[:, 1, 2] = (camera_B33[:, 1, 2] - self.top + 0.5) * scale_y - 0.5
        return made_B33


def resize_plan(source: tuple[int, int], target: tuple[int, int], policy: ResizePolicy = "crop") -> ResizePlan:
    """Plan from (height, width) to (height, width): ``crop`` the center to the target's aspect first, or ``stretch``."""
    (H, W), (height, width) = source, target
    if policy == "stretch":
        return ResizePlan(0, 0, W, H, height, width)
    crop_width = min(W, max(1, round(H * width / height)))
    crop_height = min(H, max(1, round(W * height / width)))
    return ResizePlan((W - crop_width) // 2, (H - crop_height) // 2, crop_width, crop_height, height, width)


def pose_problem(pose_16: Sequence[float]) -> str | None:
    """Say why 16 numbers are no camera-to-world pose stored row by row, None if they are one. Plain Python: once per frame."""
    if not all(map(math.isfinite, pose_16)):
        return "the pose holds NaN or infinity (lost tracking?)"
    first, second, third = (pose_16[row : row + 3] for row in (0, 4, 8))
    determinant = sum(a * b for a, b in zip(first, _cross(second, third), strict=True))
    rows = (first, second, third)
    skew = max(abs(_dot(a, b) - (i == j)) for i, a in enumerate(rows) for j, b in enumerate(rows))
    if abs(determinant - 1) > _RIGID or skew > 2 * _RIGID:
        return (
            f"the pose is no rigid transform: det R is {determinant:.4g} and RR' is {skew:.4g} off the identity; it must be a "
            "rotation (to 1e-2) with a translation in meters"
        )
    if max(abs(a - b) for a, b in zip(pose_16[12:], (0, 0, 0, 1), strict=True)) > 1e-6:
        return f"the pose's last row is {list(pose_16[12:])}, not 0 0 0 1; is it stored column by column?"
    return None


def camera_problem(camera_9: Sequence[float]) -> str | None:
    """Say why 9 numbers are no pinhole camera matrix stored row by row, None if they are one."""
    if not all(map(math.isfinite, camera_9)):
        return "the camera matrix holds NaN or infinity"
    fx, skew, _, zero, fy, _, *last = camera_9
    if fx <= 0 or fy <= 0 or zero or last != [0, 0, 1]:
        return f"the camera matrix {list(camera_9)} is not fx 0 cx, 0 fy cy, 0 0 1; is it stored by columns?"
    return f"the camera matrix has a skew of {skew}, and only a skew of 0 is supported" if skew else None


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _rays(camera_B33: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return (u - cx) / fx [B, W] and (v - cy) / fy [B, H]; computed in float64, returned in float32."""
    camera_B33 = camera_B33.double()
    u_W = torch.arange(width, device=camera_B33.device, dtype=torch.float64)
    v_H = torch.arange(height, device=camera_B33.device, dtype=torch.float64)
    x_BW = (u_W - camera_B33[:, 0, 2:3]) / camera_B33[:, 0, 0:1]
    y_BH = (v_H - camera_B33[:, 1, 2:3]) / camera_B33[:, 1, 1:2]
    return x_BW.float(), y_BH.float()


def _to_world(local_BHW3: Tensor, pose_B44: Tensor) -> Tensor:
    pose_B44 = pose_B44.to(local_BHW3.dtype)
    turned_BHW3 = torch.einsum("bij,bhwj->bhwi", pose_B44[:, :3, :3], local_BHW3)
    return turned_BHW3 + pose_B44[:, None, None, :3, 3]


def _cells(map_BHW: Tensor, patch: int) -> Tensor:
    """Return the pixels of each patch, [B, h, w, patch * patch]."""
    B, H, W = map_BHW.shape
    return map_BHW.view(B, H // patch, patch, W // patch, patch).transpose(2, 3).flatten(3)


def _patch_sums(map_BCHW: Tensor, patch: int) -> Tensor:
    """Return the sums over patches, [B, C, h, w] float64: hundreds of values of a few meters add up to 1e-5 in float32."""
    B, C, H, W = map_BCHW.shape
    return map_BCHW.view(B, C, H // patch, patch, W // patch, patch).sum(dim=(3, 5), dtype=torch.float64)


def _nearest(size: int, source: int, start: int, device: torch.device) -> Tensor:
    """Return the source pixel nearest the center of each pixel; of two at the same distance the later one."""
    at = (torch.arange(size, device=device, dtype=torch.float64) + 0.5) * (source / size)
    return at.floor().long().clamp_max(source - 1) + start
