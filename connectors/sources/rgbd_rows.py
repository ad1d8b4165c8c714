"""Building batches of ``rgbd.v1``, whatever frames come from. Knows no files. Images and depth stay encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from connectors.records import TIME_TYPE
from connectors.sources.image_header import parse_header

__all__ = ["RgbdBatch"]

_MAX_BATCH_BYTES = (1 << 31) - 1  # offsets of pa.binary are int32


class RgbdBatch:
    """The rows of one batch under construction, at most ``max_rows`` and, from the second row on, ``max_bytes``."""

    def __init__(self, stream_id: str, schema: pa.Schema, max_rows: int, max_bytes: int) -> None:
        self._stream_id, self._schema, self._max_rows = stream_id, schema, max_rows
        self._max_bytes = min(max_bytes, _MAX_BATCH_BYTES)
        self._bytes = 0
        self._rows: list[dict[str, Any]] = []

    def fits(self, size: int) -> bool:
        """Say whether a row with ``size`` more bytes fits. The first one always does."""
        return not self._rows or (len(self._rows) < self._max_rows and self._bytes + size <= self._max_bytes)

    def add(
        self,
        sequence: int,
        time_us: int,
        *,
        image: bytes,
        depth: bytes | None = None,
        depth_scale: float | None = None,
        intrinsics: npt.NDArray[Any] | None = None,
        pose: npt.NDArray[Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Append a frame of encoded images (JPEG or PNG; depth PNG). Raise ``ValueError`` where the color is neither."""
        header = parse_header(image)
        if header is None:
            raise ValueError("the color image is neither JPEG nor PNG")
        self._append(
            sequence,
            time_us,
            len(image) + len(depth or b""),
            image=image,
            encoding=header.encoding,
            height=header.height,
            width=header.width,
            depth=depth,
            depth_encoding=None if depth is None else "png",
            depth_scale=None if depth is None else depth_scale,
            intrinsics=None if intrinsics is None else intrinsics.ravel().tolist(),
            pose=None if pose is None else pose.ravel().tolist(),
            **(more or {}),
        )

    def add_pixels(
        self,
        sequence: int,
        time_us: int,
        *,
        color_rgb: npt.NDArray[Any],
        depth_mm: npt.NDArray[Any] | None = None,
        depth_m: npt.NDArray[Any] | None = None,
        intrinsics: npt.NDArray[Any] | None = None,
        pose: npt.NDArray[Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Append a frame of decoded pixels: color [H, W, 3] uint8, depth [H, W] of uint16 millimeters or float32 meters."""
        raw = depth_mm if depth_mm is not None else depth_m
        depth = None if raw is None else raw.astype("<u2" if depth_mm is not None else "<f4").tobytes()
        self._append(
            sequence,
            time_us,
            color_rgb.nbytes + len(depth or b""),
            image=color_rgb.tobytes(),
            encoding="raw_rgb8",
            height=color_rgb.shape[0],
            width=color_rgb.shape[1],
            depth=depth,
            depth_encoding=None if depth is None else "raw_u16" if depth_mm is not None else "raw_f32",
            depth_scale=None if depth is None else 1000.0 if depth_mm is not None else 1.0,
            intrinsics=None if intrinsics is None else intrinsics.ravel().tolist(),
            pose=None if pose is None else pose.ravel().tolist(),
            **(more or {}),
        )

    def add_error(self, sequence: int, time_us: int, error: str) -> None:
        """Append a row without images that says what was wrong."""
        self._append(sequence, time_us, 0, error=error)

    def finish(self) -> pa.RecordBatch | None:
        """Return the batch, or None if it has no row."""
        if not self._rows:
            return None
        columns = [
            pa.array([row[each.name] for row in self._rows], pa.int64()).view(TIME_TYPE)
            if each.name == "event_time"
            else pa.array([row.get(each.name) for row in self._rows], each.type)
            for each in self._schema
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _append(self, sequence: int, time_us: int, size: int, **values: Any) -> None:
        self._bytes += size
        keys = {"stream_id": self._stream_id, "sequence": sequence, "event_time": time_us}
        self._rows.append(keys | values)
