"""Single frames from anywhere in a video file, as OpenCV would decode them one after another.

decord is the faster reader for this, but keeps every frame it has decoded ahead, works on one thread only and may hang on odd
timestamps. So it is used for files that decoded stay below a limit, is closed at once, and is left behind if it takes too
long; everything else is read by OpenCV. Both give the same pixels.
"""

# H height, W width

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from connectors.extras import optional
from connectors.sources.av_capture import open_by_av
from connectors.sources.frames import Bytes

cv2 = optional("cv2")

__all__ = ["DECODED_LIMIT_BYTES", "even_spread", "read_frames"]

logger = logging.getLogger(__name__)

DECODED_LIMIT_BYTES = 1 << 30
"""Decoded size (frames · height · width · 3) up to which decord is used: what it may hold in memory at worst."""

_PATIENCE_S = 60.0


def even_spread(count: int, length: int) -> list[int]:
    """Return ``count`` frame indices spread evenly over ``length`` frames: round(i·(length-1)/(count-1)), halves to even."""
    if count == 1:
        return [0]
    return [round(i * (length - 1) / (count - 1)) for i in range(count)]


def read_frames(path: Path, indices: Sequence[int], *, decoded_limit_bytes: int = DECODED_LIMIT_BYTES) -> list[Bytes]:
    """Return the frames ``indices`` (ascending) of ``path`` as BGR uint8 [H, W, 3], rotated as the file asks for.

    An index behind the last decodable frame gives the last one. Returns an empty list if no frame can be decoded. By OpenCV
    the index is exact up to the file's own frame table; by decord it is exact.
    """
    capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened() or not capture.grab():
            capture.release()
            other = open_by_av(path, 1)
            if other is None:
                return []
            capture = other
            return _by_opencv(capture, indices)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        decoded = count * capture.get(cv2.CAP_PROP_FRAME_HEIGHT) * capture.get(cv2.CAP_PROP_FRAME_WIDTH) * 3
        # decord mangles the memory layout of frames turned by 90 degrees.
        upright = capture.get(cv2.CAP_PROP_ORIENTATION_META) == 0
        if upright and 0 < decoded <= decoded_limit_bytes:
            frames = _by_decord(path, indices)
            if frames is not None:
                return frames
        return _by_opencv(capture, indices)
    finally:
        capture.release()


def _by_decord(path: Path, indices: Sequence[int]) -> list[Bytes] | None:
    """Read by decord on a thread of its own, or return None if it is absent, fails or does not come back."""
    try:
        import decord
    except ImportError:
        return None
    frames: list[Bytes] = []

    def work() -> None:
        try:
            reader = decord.VideoReader(str(path), num_threads=1)
            wanted = np.minimum(indices, len(reader) - 1)
            images_rgb = reader.get_batch(wanted.tolist()).asnumpy()
            if images_rgb.shape[-1] == 3:
                frames.extend(cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for image in images_rgb)
        except Exception as error:  # decord raises RuntimeError and its own DECORDError; OpenCV has the last word on the file
            logger.info("decord_failed path=%s error=%s", path, str(error).strip().splitlines()[-1:])

    thread = threading.Thread(target=work, name="decord", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    if thread.is_alive():  # cannot be stopped; it ends with the process
        logger.warning("decord_hangs path=%s after_s=%s", path, _PATIENCE_S)
        return None
    return frames if len(frames) == len(indices) else None


def _by_opencv(capture: Any, indices: Sequence[int]) -> list[Bytes]:
    """Seek to each index; where nothing decodes anymore, repeat the last frame that did."""
    frames: list[Bytes] = []
    for index in indices:
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        ok, frame = capture.read()
        if ok:
            frames.append(frame)
        elif frames:
            frames.append(frames[-1])
    return frames if len(frames) == len(indices) else []
