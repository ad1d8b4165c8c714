"""Video decoded by TorchCodec behind the few methods of OpenCV's capture: the decoder ``torchcodec`` of the source ``video``.

Frame numbers and times are those of the file's own index, which TorchCodec reads when it opens the file.
"""

# H height, W width

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from connectors.extras import optional
from connectors.sources.frames import Bytes

cv2 = optional("cv2")
decoders = optional("torchcodec.decoders")

__all__ = ["TorchCodecCapture", "open_by_torchcodec"]

logger = logging.getLogger(__name__)


def open_by_torchcodec(path: Path, threads: int) -> TorchCodecCapture | None:
    """Open a file, or return None where TorchCodec finds no video in it. Raises ``MissingExtra`` where it does not load."""
    make = decoders.VideoDecoder
    try:
        return TorchCodecCapture(make(str(path.resolve()), dimension_order="NHWC", num_ffmpeg_threads=threads))
    except (RuntimeError, ValueError, OSError) as error:
        logger.info("torchcodec_failed path=%s error=%s", path, error)
        return None


class TorchCodecCapture:
    """The methods of ``cv2.VideoCapture`` that readers use. Frames have the size of the first one, as OpenCV gives them."""

    def __init__(self, decoder: Any) -> None:
        self._decoder, self._metadata = decoder, decoder.metadata
        self._next = 0
        self._frame: Any = None
        self._begin_s = float(self._metadata.begin_stream_seconds or 0.0)
        self._size: tuple[int, int] | None = None

    def grab(self) -> bool:
        """Decode the next frame; false at the end, and where it cannot be decoded."""
        self._frame = None
        if self._decoder is None or self._next >= len(self._decoder):
            return False
        try:
            self._frame = self._decoder.get_frame_at(self._next)
        except (RuntimeError, ValueError, IndexError) as error:
            logger.info("torchcodec_decode_failed frame=%d error=%s", self._next, error)
            return False
        self._next += 1
        return True

    def retrieve(self, slot: Bytes | None = None) -> tuple[bool, Bytes | None]:
        """Return the frame that was grabbed as BGR [H, W, 3], in ``slot`` where it fits."""
        if self._frame is None:
            return False, None
        rgb = self._frame.data.numpy()
        self._size = self._size or (rgb.shape[1], rgb.shape[0])
        if (rgb.shape[1], rgb.shape[0]) != self._size:
            rgb = cv2.resize(rgb, self._size, interpolation=cv2.INTER_CUBIC)
        fits = slot is not None and slot.shape == rgb.shape
        return True, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR, dst=slot if fits else None)

    def get(self, what: int) -> float:
        """Return one of the properties that readers ask for; 0 for all others."""
        if what == cv2.CAP_PROP_POS_MSEC:
            return (self._frame.pts_seconds - self._begin_s) * 1000 if self._frame is not None else 0.0
        if what == cv2.CAP_PROP_FPS:
            return float(self._metadata.average_fps or 0.0)
        if what == cv2.CAP_PROP_FRAME_COUNT:
            return float(self._metadata.num_frames or 0)
        return 0.0

    def set(self, what: int, value: float) -> bool:
        """Go to a frame by number, or to where a time must lie behind; the next one that is grabbed is that."""
        if what == cv2.CAP_PROP_POS_MSEC:
            value = value / 1000 * self.get(cv2.CAP_PROP_FPS) - 1
        elif what != cv2.CAP_PROP_POS_FRAMES:
            return False
        self._next = max(0, int(value))
        return True

    def isOpened(self) -> bool:  # OpenCV's name
        """Return true: what cannot be opened raises."""
        return True

    def release(self) -> None:
        """Close the file."""
        self._decoder = self._frame = None
