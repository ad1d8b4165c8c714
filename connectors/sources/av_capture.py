"""Video that OpenCV has no decoder for (AV1 in the PyPI wheels), decoded by PyAV behind the few methods of OpenCV's capture.

Only for these files: OpenCV is faster for all others. ``why_not`` says which codec a file has and what to do where nobody here
can decode it.
"""

# H height, W width

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from connectors.extras import install_command, missing, optional
from connectors.sources.containers import codec_name
from connectors.sources.frames import Bytes

av = optional("av")
cv2 = optional("cv2")

__all__ = ["AvCapture", "open_by_av", "why_not"]

logger = logging.getLogger(__name__)


def open_by_av(path: Path, threads: int) -> AvCapture | None:
    """Open a file, or return None where PyAV is not installed or finds no frame in it."""
    if missing(["av"]):
        return None
    try:
        capture = AvCapture(path, threads)
    except (av.FFmpegError, OSError, ValueError, LookupError) as error:
        logger.info("av_failed path=%s error=%s", path, error)
        return None
    logger.info("av_decodes path=%s codec=%s", path, capture.codec)
    return capture


def why_not(path: Path) -> str | None:
    """Tell which codec the decoders here lack for ``path``, and the remedy. None if that is not what is wrong with it."""
    try:
        codec = codec_name(path)
    except OSError:
        return None
    if codec is None:
        return None
    convert = f"convert it: ffmpeg -i {path.name} -c:v libx264 {path.stem}-h264.mp4"
    if missing(["av"]):
        if _opens(path) and codec != "AV1":
            return None
        return f"its codec is {codec}, which OpenCV has no decoder for; PyAV has more: {install_command(['av'])}; or {convert}"
    try:
        with av.open(str(path.resolve())) as container:
            if container.streams.video and container.streams.video[0].codec_context is not None:
                return None  # there is a decoder: the data are damaged
    except (av.FFmpegError, OSError, ValueError):
        return None
    return f"its codec is {codec}, which neither OpenCV nor PyAV has a decoder for here; {convert}"


class AvCapture:
    """The methods of ``cv2.VideoCapture`` that readers use. Frames have the size of the first one, as OpenCV gives them."""

    def __init__(self, path: Path, threads: int) -> None:
        """Open and decode the first frame; raise what PyAV raises, or ``LookupError`` where there is no frame."""
        self._path, self._threads = path, threads
        self._grabbed = 0
        self._frame: Any = None  # the one that was grabbed
        self._ahead: Any = None  # the one after it, where it has been decoded
        self._open()
        self.codec: str = self._stream.codec_context.name
        first: Any = self._ahead
        rotation = int(first.rotation)
        self._turn = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, -90: cv2.ROTATE_90_CLOCKWISE}.get(rotation)
        self._turn = cv2.ROTATE_180 if abs(rotation) == 180 else self._turn
        self._size = (int(first.width), int(first.height))

    def grab(self) -> bool:
        """Take the next frame; false at the end, and where it cannot be decoded."""
        self._frame, self._ahead = self._ahead or next(self._frames, None), None
        self._grabbed += 1
        return self._frame is not None

    def retrieve(self, slot: Bytes | None = None) -> tuple[bool, Bytes | None]:
        """Return the frame that was grabbed as BGR [H, W, 3], in ``slot`` where it fits."""
        if self._frame is None:
            return False, None
        image = self._frame.to_ndarray(format="bgr24")
        if (self._frame.width, self._frame.height) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_CUBIC)
        if self._turn is not None:
            image = cv2.rotate(image, self._turn)
        if slot is not None and slot.shape == image.shape:
            slot[:] = image
            return True, slot
        return True, image

    def read(self) -> tuple[bool, Bytes | None]:
        """Grab and retrieve."""
        return self.retrieve() if self.grab() else (False, None)

    def get(self, what: int) -> float:
        """Return one of the properties that readers ask for; 0 for all others."""
        if what == cv2.CAP_PROP_POS_MSEC:
            return self._time_s() * 1000
        if what == cv2.CAP_PROP_FPS:
            return float(self._stream.average_rate or self._stream.guessed_rate or 0)
        if what == cv2.CAP_PROP_FRAME_COUNT:
            return float(self._stream.frames or round(self._length_s() * self.get(cv2.CAP_PROP_FPS)))
        return 0.0

    def set(self, what: int, value: float) -> bool:
        """Go to a frame by number, by decoding; nothing else can be set."""
        if what == cv2.CAP_PROP_POS_FRAMES:
            if value < self._grabbed:
                self.release()
                self._open()
            while self._grabbed < value and self.grab():
                pass
            return self._grabbed == value
        return False

    def isOpened(self) -> bool:  # OpenCV's name
        """Return true: what cannot be opened raises."""
        return True

    def release(self) -> None:
        """Close the file."""
        self._container.close()

    def _open(self) -> None:
        self._container = av.open(str(self._path.resolve()))
        self._stream = self._container.streams.best("video")
        if self._stream is None or self._stream.codec_context is None:
            self._container.close()
            raise LookupError("no video stream that can be decoded")
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = self._threads
        self._frames = self._decode()
        self._grabbed = 0
        self._frame, self._ahead = None, next(self._frames, None)
        if self._ahead is None:
            self._container.close()
            raise LookupError("no frame")

    def _decode(self) -> Iterator[Any]:
        try:
            yield from self._container.decode(self._stream)
        except (av.FFmpegError, OSError, ValueError) as error:
            logger.info("av_decode_failed path=%s error=%s", self._path, error)

    def _time_s(self) -> float:
        if self._frame is None or self._frame.pts is None:
            return 0.0
        return float((self._frame.pts - (self._stream.start_time or 0)) * self._frame.time_base)

    def _length_s(self) -> float:
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        return (self._container.duration or 0) / 1e6


def _opens(path: Path) -> bool:
    capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)
    opened = bool(capture.isOpened())
    capture.release()
    return opened
