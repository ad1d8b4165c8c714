"""Video decoded by TorchCodec behind the few methods of OpenCV's capture: the decoder ``torchcodec``.

Frame numbers and times of a file are those of its own index, which TorchCodec reads when it opens the file.
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

__all__ = ["TorchCodecCapture", "open_by_torchcodec", "tell_fallback"]

logger = logging.getLogger(__name__)

_LATE_S = 1e-6
"""How far behind the least time of a file its first frame may lie: not at all, but for rounding."""


def open_by_torchcodec(path: Path, threads: int, device: str = "cpu") -> TorchCodecCapture | None:
    """Open a file, or return None where TorchCodec finds no video in it. Raises ``MissingExtra`` where it does not load.

    ``device``: where frames are decoded and stay.
    """
    make = decoders.VideoDecoder
    try:
        decoder = make(str(path.resolve()), dimension_order="NHWC", num_ffmpeg_threads=threads, device=device)
    except (RuntimeError, ValueError, OSError) as error:
        logger.info("torchcodec_failed path=%s error=%s", path, error)
        return None
    tell_fallback(decoder, str(path))
    capture = TorchCodecCapture(decoder)
    capture.begin(path.name)
    return capture


def tell_fallback(decoder: Any, what: str) -> None:
    """Say in the log where a GPU was to decode and cannot: its frames are decoded on the CPU, then copied there."""
    if decoder.cpu_fallback:
        logger.warning("%s: %s", what, decoder.cpu_fallback)


class TorchCodecCapture:
    """The methods of ``cv2.VideoCapture`` that readers use. Frames have the size of the first one, as OpenCV gives them."""

    def __init__(self, decoder: Any) -> None:
        self._decoder, self._metadata = decoder, decoder.metadata
        self._next = 0
        self._frame: Any = None
        self._begin_s = float(self._metadata.begin_stream_seconds or 0.0)
        self._size: tuple[int, int] | None = None
        self._first: Any = None  # frame 0, where it has been decoded and not been grabbed
        self._elsewhere = "use decoder: opencv"
        self._misplaced: str | None = None

    def begin(self, name: str) -> None:
        """Decode frame 0 of a file; note where it is another one: TorchCodec begins MPEG streams behind their first frames."""
        self._elsewhere = f"use decoder: opencv, or copy it: ffmpeg -i {name} -c copy {Path(name).stem}.mkv"
        try:
            self._first = self._decoder.get_frame_at(0)
        except (RuntimeError, ValueError, IndexError):
            return
        late_s = self._first.pts_seconds - self._begin_s
        if late_s > _LATE_S:
            self._misplaced = f"torchcodec begins {late_s:.3f} s behind the first frame of such a file; {self._elsewhere}"

    @property
    def problem(self) -> str | None:
        """What is wrong where frames are missing, None where all have been grabbed."""
        if self._misplaced is None and self._decoder is not None and self._next < len(self._decoder):
            return f"torchcodec decodes {self._next} of its {len(self._decoder)} frames; {self._elsewhere}"
        return self._misplaced

    def grab(self) -> bool:
        """Decode the next frame; false at the end, and where it cannot be decoded."""
        self._frame = None
        if self._decoder is None or self._next >= len(self._decoder) or self._misplaced is not None:
            return False
        try:
            ready = self._first if self._next == 0 else None
            self._frame = ready if ready is not None else self._decoder.get_frame_at(self._next)
        except (RuntimeError, ValueError, IndexError) as error:
            logger.info("torchcodec_decode_failed frame=%d error=%s", self._next, error)
            return False
        self._next += 1
        self._first = None
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

    def kept(self) -> Any:
        """Return the frame that was grabbed as it is: a uint8 RGB tensor [H, W, 3] on the decoder's device."""
        return self._frame.data

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
