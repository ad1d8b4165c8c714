"""One row of RGB-D as arrays: decoded, checked, and refused with a reason. Knows no streams and no memory.

Takes the columns that a batch has: a selection needs an image only (or a feature); depth, camera and pose are looked at where
there are such columns.
"""

# H height, W width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from connectors.extras import opencv_problem, optional
from models.fourd_vla.geometry import camera_problem, pose_problem, resize_plan
from operators.frames import Image, decode_row

cv2 = optional("cv2")

__all__ = ["RgbdImage", "RgbdRows"]

Depth = npt.NDArray[np.uint16] | npt.NDArray[np.float32]

_PLAIN = (
    *("episode", "reset", "instruction", "state"),
    *("intrinsics", "pose", "depth_encoding", "depth_scale", "depth_intrinsics"),
)
_TYPES = {"raw_u16": "<u2", "raw_f32": "<f4"}


@dataclass(slots=True)
class RgbdImage:
    """What is used of a row."""

    color: Image | None = None
    feature_D: npt.NDArray[np.float32] | None = None
    height: int = 0
    width: int = 0
    depth_HW: Depth | None = None
    depth_scale: float = 1.0
    camera: tuple[float, float, float, float] | None = None
    """fx, fy, cx, cy."""
    pose_16: Sequence[float] | None = None
    episode: str | None = None
    resets: bool = False
    instruction: str | None = None
    state: Sequence[float] | None = None

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """The camera matrix [3, 3]."""
        assert self.camera is not None
        fx, fy, cx, cy = self.camera
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


class RgbdRows:
    """Reads the rows of one batch."""

    def __init__(self, batch: pa.RecordBatch, *, feature_size: int | None, needs_camera: bool, state_dim: int) -> None:
        """``feature_size``: take the column ``feature`` instead of an image."""
        self._batch, self._feature_size, self._state_dim = batch, feature_size, state_dim
        names = set(batch.schema.names)
        self._needs_camera = needs_camera or "intrinsics" in names
        self.has_depth = "depth" in names
        text = (
            "episode",
            "reset",
            "instruction",
            "state",
            "intrinsics",
            "pose",
            "depth_encoding",
            "depth_scale",
            "depth_intrinsics",
        )
        self._plain = {name: batch.column(name).to_pylist() for name in text if name in names}
        if feature_size is not None:
            column = batch.column("feature")
            self._offsets = column.offsets.to_numpy()
            self._valid = column.is_valid().to_numpy(zero_copy_only=False)
            self._values = column.values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)

    def read(self, row: int) -> tuple[RgbdImage, str | None]:
        """Return a row's content and what is wrong with it, None if nothing is."""
        image = RgbdImage(
            episode=self._get("episode", row),
            resets=bool(self._get("reset", row)),
            instruction=self._get("instruction", row),
            state=self._get("state", row),
        )
        if self._state_dim and (
            image.state is None or len(image.state) != self._state_dim or not np.isfinite(image.state).all()
        ):
            return image, f"the policy needs a column state of {self._state_dim} finite numbers, the row has {image.state}"
        problem = self._feature(row, image) if self._feature_size is not None else self._frame(row, image)
        return image, problem

    def _get(self, name: str, row: int) -> Any:
        column = self._plain.get(name)
        return None if column is None else column[row]

    def _feature(self, row: int, image: RgbdImage) -> str | None:
        if not self._valid[row]:
            return "the row has no feature"
        image.feature_D = self._values[self._offsets[row] : self._offsets[row + 1]]
        if len(image.feature_D) != self._feature_size:
            return f"the feature has {len(image.feature_D)} numbers; features.size is {self._feature_size}"
        return None if np.isfinite(image.feature_D).all() else "the feature holds NaN or infinity"

    def _frame(self, row: int, image: RgbdImage) -> str | None:
        image.color, problem = decode_row(self._batch, row)
        if image.color is None:
            return problem
        image.height, image.width = image.color.shape[:2]
        for read in (self._camera, self._pose, self._depth):
            problem = read(row, image)
            if problem is not None:
                return problem
        return None

    def _camera(self, row: int, image: RgbdImage) -> str | None:
        values = self._get("intrinsics", row)
        if values is None:
            return "the row has no camera matrix (column intrinsics)" if self._needs_camera else None
        if len(values) != 9 or None in values:
            return f"the camera matrix has {len(values)} numbers; it must be 9, row by row"
        problem = camera_problem(values)
        image.camera = (values[0], values[4], values[2], values[5])
        return problem

    def _pose(self, row: int, image: RgbdImage) -> str | None:
        values = self._get("pose", row)
        if values is None:
            return None
        if len(values) != 16 or None in values:
            return f"the pose has {len(values)} numbers; it must be 16, row by row, camera to world"
        image.pose_16 = values
        return pose_problem(values)

    def _depth(self, row: int, image: RgbdImage) -> str | None:
        cell = self._batch.column("depth")[row] if self.has_depth else None
        if cell is None or not cell.is_valid:
            return None
        encoding, scale = self._get("depth_encoding", row), self._get("depth_scale", row)
        if scale is None or not np.isfinite(scale) or scale <= 0:
            return f"depth_scale is {scale}; it must be units per meter, such as 1000"
        image.depth_scale = scale
        data = cell.as_buffer()
        depth: Any = None
        if encoding in _TYPES:
            kind = np.dtype(_TYPES[encoding])
            wanted = image.height * image.width * kind.itemsize
            if data.size != wanted:
                return f"{encoding} depth of {image.width}x{image.height} px needs {wanted} bytes, got {data.size}"
            depth = np.frombuffer(data, kind).reshape(image.height, image.width)
        elif encoding == "png":
            try:
                depth = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data.size else None
            except cv2.error as error:
                return f"the depth image cannot be decoded: {opencv_problem(error)}"
            if depth is None or depth.dtype != np.uint16 or depth.ndim != 2:
                found = "not an image" if depth is None else f"{depth.dtype} with shape {depth.shape}"
                return f"the depth image is {found}; it must be a 16-bit PNG of one channel"
        else:
            return f"depth_encoding {encoding!r} is not supported; use png, {', '.join(_TYPES)}"
        image.depth_HW, problem = self._fitted(row, depth, image)
        return problem

    def _fitted(self, row: int, depth: Depth, image: RgbdImage) -> tuple[Depth | None, str | None]:
        """Return depth in the size of the color: scaled by the nearest pixel where that changes no geometry."""
        height, width = depth.shape
        if (height, width) == (image.height, image.width):
            return depth, None
        sizes = f"depth is {width}x{height} px, color {image.width}x{image.height}"
        if self._get("depth_intrinsics", row) is not None:
            return None, f"{sizes}, and depth has a camera of its own; align depth to color before"
        if width * image.height != height * image.width:
            return None, f"{sizes}: the aspects differ; align depth to color before"
        plan = resize_plan((height, width), (image.height, image.width), "stretch")
        scaled: Any = plan.depth(torch.from_numpy(depth.astype(np.float32))[None])[0].numpy().astype(depth.dtype)
        return scaled, None
