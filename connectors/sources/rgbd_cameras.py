"""The camera that a user gives as four numbers, for every source of RGB-D."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from connectors.errors import ConfigError
from connectors.sources.rgbd_poses import Floats

__all__ = ["camera_matrix", "require_camera"]


def require_camera(camera: Sequence[float] | None) -> None:
    """Raise ``ConfigError`` unless the option ``camera`` is left out or four numbers that can be a camera."""
    if camera is not None and (len(camera) != 4 or min(camera[:2]) <= 0):
        raise ConfigError(f"camera: {camera} must be fx, fy, cx, cy in px, with fx and fy above 0")


def camera_matrix(camera: Sequence[float]) -> Floats:
    """Return the camera matrix [3, 3] of fx, fy, cx, cy."""
    fx, fy, cx, cy = camera
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)
