"""Building batches of ``rgbd.v1``, whatever frames come from. Knows no files. Images and depth stay encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
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
        image: bytes | npt.NDArray[Any],
        depth: bytes | npt.NDArray[Any] | None = None,
        depth_scale: float | None = None,
        intrinsics: npt.NDArray[Any] | None = None,
        pose: npt.NDArray[Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Append a frame. ``image``: JPEG or PNG, or RGB [H, W, 3] uint8; ``depth``: PNG, or [H, W] uint16 or float32.

        ``depth_scale``: units per meter, for both forms of depth. Raise ``ValueError`` where the color is neither.
        """
        values: dict[str, Any] = dict(more or {})
        if isinstance(image, bytes):
            header = parse_header(image)
            if header is None:
                raise ValueError("the color image is neither JPEG nor PNG")
            values |= {"image": image, "encoding": header.encoding, "height": header.height, "width": header.width}
        else:
            height, width = image.shape[:2]
            values |= {"image": image.tobytes(), "encoding": "raw_rgb8", "height": height, "width": width}
        if isinstance(depth, bytes):
            values |= {"depth": depth, "depth_encoding": "png", "depth_scale": depth_scale}
        elif depth is not None:
            kind, encoding = ("<u2", "raw_u16") if depth.dtype == np.uint16 else ("<f4", "raw_f32")
            values |= {"depth": depth.astype(kind).tobytes(), "depth_encoding": encoding, "depth_scale": depth_scale}
        for name, matrix in (("intrinsics", intrinsics), ("pose", pose)):
            values[name] = None if matrix is None else matrix.ravel().tolist()
        self._append(sequence, time_us, len(values["image"]) + len(values.get("depth") or b""), **values)

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
