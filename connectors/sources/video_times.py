"""Frames of a video file by their times, one after the other: color as RGB, depth as its codes. PyAV underneath."""

# H height, W width

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.extras import optional

av = optional("av")

__all__ = ["FramesByTime"]


class FramesByTime:
    """Delivers the frame at each of rising times; seeks only at the start and where times go back."""

    def __init__(self, file: Path, tolerance_s: float, *, is_depth: bool) -> None:
        """Open. Raise ``ValueError`` for a file that is no video."""
        self._file, self._tolerance_s, self._is_depth = file, tolerance_s, is_depth
        try:
            self._container: Any = av.open(str(file))
            self._stream: Any = self._container.streams.video[0]
        except (OSError, ValueError, IndexError, av.FFmpegError) as error:
            raise ValueError(f"{file.name}: no video that can be read: {error}") from error
        self._frames: Iterator[Any] | None = None
        self._held: Any = None

    def at(self, time_s: float) -> npt.NDArray[Any]:
        """Return the frame nearest ``time_s``: [H, W, 3] uint8, or [H, W] uint16 of a depth video.

        Raise ``ValueError`` where none is within the tolerance.
        """
        try:
            if self._frames is None or (self._held is not None and self._held.time > time_s + self._tolerance_s):
                self._seek(time_s)
            while self._held is not None and self._held.time < time_s - self._tolerance_s:
                self._next()
            following = None
            if self._held is not None and self._held.time < time_s:  # the next one may be nearer
                first = self._held
                self._next()
                following = self._held
                is_nearer = following is not None and abs(following.time - time_s) < abs(first.time - time_s)
                chosen = following if is_nearer else first
            else:
                chosen = self._held
        except (OSError, ValueError, av.FFmpegError) as error:
            raise ValueError(f"{self._file.name}: cannot be decoded at {time_s:.3f} s: {error}") from error
        if chosen is None or abs(chosen.time - time_s) > self._tolerance_s:
            found = "its end" if chosen is None else f"a frame at {chosen.time:.3f} s"
            raise ValueError(
                f"{self._file.name}: no frame at {time_s:.3f} s but {found}; the tolerance is {self._tolerance_s:.3f} s"
            )
        return self._pixels(chosen)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _seek(self, time_s: float) -> None:
        start_s = max(0.0, time_s - self._tolerance_s)
        self._container.seek(int(start_s / self._stream.time_base), stream=self._stream)
        self._frames = self._container.decode(self._stream)
        self._next()

    def _next(self) -> None:
        assert self._frames is not None
        self._held = next(self._frames, None)

    def _pixels(self, frame: Any) -> npt.NDArray[Any]:
        if not self._is_depth:
            return np.asarray(frame.to_ndarray(format="rgb24"))
        if "12le" not in frame.format.name and "gray16le" not in frame.format.name:
            raise ValueError(f"{self._file.name}: depth is {frame.format.name}; expected are gray12le and yuv420p12le")
        plane = frame.planes[0]
        rows = np.frombuffer(plane, np.uint16).reshape(frame.height, plane.line_size // 2)
        return rows[:, : frame.width].copy()
