"""Building one Arrow batch of frames. Knows nothing of files or decoders.

Raw pixels are written once, straight into the Arrow buffer that the batch will hold: :meth:`FrameBatch.slot` hands out the
memory of the next frame as a numpy view. :class:`FrameMemory` reuses memory whose batch nobody holds anymore: fresh pages
cost a quarter of the frame rate.
"""

# H height, W width

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.device_frames import ENCODING, KeptFrames
from connectors.records import FRAME, TIME_TYPE

__all__ = ["FRAME_WITH_ROLE", "Bytes", "FrameBatch", "FrameMemory"]

Bytes = npt.NDArray[np.uint8]

FRAME_WITH_ROLE = FRAME.append(pa.field("role", pa.string()))
"""``frame.v1`` and ``role``: ``reference`` on frames that go ahead of the stream, null on the stream's own frames."""

_MAX_BATCH_BYTES = (1 << 31) - 1  # offsets of pa.binary are int32

_KEPT_BLOCKS = 3
"""Blocks kept for reuse: one being filled, one in flight, one with the consumer."""


class FrameMemory:
    """Blocks of memory for the frames of one reader, each on loan until the last Arrow buffer that refers to it is gone."""

    def __init__(self) -> None:
        self._free: list[Bytes] = []

    def take(self, size: int) -> Bytes:
        """Return at least ``size`` bytes. They come back on their own when nobody holds the returned array anymore."""
        block = self._free.pop() if self._free else np.empty(size, np.uint8)
        if block.size < size:
            block = np.empty(size, np.uint8)
        loan = block.view()
        weakref.finalize(loan, self._give_back, block).atexit = False
        return loan

    def _give_back(self, block: Bytes) -> None:
        """Keep a block for reuse. Runs in whichever thread dropped the last reference."""
        if len(self._free) < _KEPT_BLOCKS:
            self._free.append(block)


class FrameBatch:
    """The rows of one batch under construction, at most ``max_rows`` and, from the second row on, ``max_bytes``."""

    def __init__(self, stream_id: str, schema: pa.Schema, max_rows: int, max_bytes: int, memory: FrameMemory) -> None:
        self.rows = 0
        self._stream_id = stream_id
        self._schema = schema
        self._max_rows = max_rows
        self._max_bytes = min(max_bytes, _MAX_BATCH_BYTES)
        self._memory = memory
        self._block: Bytes = np.empty(0, np.uint8)
        self._ends = [0]
        self._sequence: list[int] = []
        self._time_us: list[int] = []
        self._height: list[int | None] = []
        self._width: list[int | None] = []
        self._encoding: list[str | None] = []
        self._error: list[str | None] = []
        self._role: list[str | None] = []
        self._kept_bytes = 0

    def fits(self, size: int) -> bool:
        """Say whether ``size`` more bytes of image fit. The first row always does."""
        if self.rows >= self._max_rows:
            return False
        return self.rows == 0 or self._ends[-1] + self._kept_bytes + size <= self._max_bytes

    def slot(self, shape: tuple[int, ...], size: int) -> Bytes:
        """Return writable memory for a uint8 image of ``shape`` and ``size`` that ``fits``; ``take_slot`` makes it a row."""
        start = self._ends[-1]
        if start + size > self._block.size:
            self._grow(size)
        return self._block[start : start + size].reshape(shape)

    def take_slot(
        self, size: int, sequence: int, time_us: int, encoding: str, height: int, width: int, role: str | None = None
    ) -> None:
        """Append the row whose image was written into the last ``slot``."""
        self._append(size, sequence, time_us, encoding, height, width, None, role)

    def add(
        self, image: Bytes | bytes, sequence: int, time_us: int, encoding: str, height: int, width: int, role: str | None = None
    ) -> None:
        """Append a row with a copy of the bytes ``image``."""
        flat = np.frombuffer(image, np.uint8)
        self.slot((flat.size,), flat.size)[:] = flat
        self._append(flat.size, sequence, time_us, encoding, height, width, None, role)

    def keep(self, frame: Any, kept: KeptFrames, sequence: int, time_us: int) -> None:
        """Append a row that names ``frame``, a uint8 RGB tensor [H, W, 3], which stays where it is."""
        height, width = frame.shape[:2]
        size = height * width * frame.shape[2]
        handle = kept.put(frame, size)
        self.add(handle, sequence, time_us, ENCODING, height, width)
        self._kept_bytes += size - len(handle)

    def add_error(self, error: str, *, sequence: int, time_us: int) -> None:
        """Append a row without an image that says what was wrong."""
        self._append(0, sequence, time_us, None, None, None, error, None)

    def finish(self) -> pa.RecordBatch | None:
        """Return the batch, or None if it has no row. The object must not be used afterwards."""
        if not self.rows:
            return None
        valid = [error is None for error in self._error]
        bitmap = None if all(valid) else pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
        offsets = pa.py_buffer(np.asarray(self._ends, np.int32))
        data = pa.py_buffer(self._block).slice(0, self._ends[-1])
        columns = {
            "stream_id": pa.array([self._stream_id] * self.rows, pa.string()),
            "sequence": pa.array(self._sequence, pa.int64()),
            "event_time": pa.array(self._time_us, pa.int64()).view(TIME_TYPE),
            "image": pa.Array.from_buffers(pa.binary(), self.rows, [bitmap, offsets, data]),
            "encoding": pa.array(self._encoding, pa.string()),
            "height": pa.array(self._height, pa.int32()),
            "width": pa.array(self._width, pa.int32()),
            "error": pa.array(self._error, pa.string()),
            "role": pa.array(self._role, pa.string()),
        }
        return pa.RecordBatch.from_arrays([columns[name] for name in self._schema.names], schema=self._schema)

    def _append(
        self,
        size: int,
        sequence: int,
        time_us: int,
        encoding: str | None,
        height: int | None,
        width: int | None,
        error: str | None,
        role: str | None,
    ) -> None:
        self.rows += 1
        self._ends.append(self._ends[-1] + size)
        self._sequence.append(sequence)
        self._time_us.append(time_us)
        self._encoding.append(encoding)
        self._height.append(height)
        self._width.append(width)
        self._error.append(error)
        self._role.append(role)

    def _grow(self, size: int) -> None:
        """Make room for ``size`` more bytes: at first for as many images of this size as the limits allow, then by doubling."""
        used = self._ends[-1]
        wanted = min(size * (self._max_rows - self.rows), self._max_bytes) if used == 0 else min(2 * used, self._max_bytes)
        block = self._memory.take(max(used + size, wanted))
        block[:used] = self._block[:used]
        self._block = block
