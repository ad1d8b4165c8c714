"""Recorded video files, one stream per file, decoded in order with the container's own timestamps.

OpenCV decodes, PyAV where OpenCV lacks the codec; or TorchCodec, where ``decoder`` says so, on a ``device`` where frames then
stay. Where the container's time goes back (joined files, a counter that wraps), event time goes on one frame step after the
last frame, so that no part of a file that plays is late.

Frames are decoded straight into the Arrow buffer of the batch. A file that is empty, damaged or cut short gives the frames
that decode and then one row with ``error``; other files are not affected. Memory does not depend on the length of a file.
"""

# H height, W width

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from connectors.base import Position, Reader
from connectors.device_frames import KeptFrames
from connectors.errors import SourceError
from connectors.extras import optional
from connectors.options import option
from connectors.records import FRAME
from connectors.sources.av_capture import open_by_av, why_not
from connectors.sources.containers import missing_bytes
from connectors.sources.decoding import DecodingOptions, kept_frames
from connectors.sources.files import FileStamp
from connectors.sources.frames import FRAME_WITH_ROLE, Bytes, FrameBatch, FrameMemory
from connectors.sources.media_files import MediaOptions, MediaSource
from connectors.sources.random_access import even_spread, read_frames
from connectors.sources.torchcodec_capture import open_by_torchcodec

cv2 = optional("cv2")

__all__ = ["VideoOptions", "VideoReader", "VideoSource"]

logger = logging.getLogger(__name__)

_SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp", ".mjpeg"}

_BATCH_BYTES = 8 << 20
"""Pixels per batch at most: larger batches fall out of the processor's cache and cost a tenth of the frame rate."""

_DECODER_THREADS = 4
"""Each holds frames of its own; converting colors, on the reader's thread, is slower than four of them."""

_SEEK_FROM_FRAME = 600
"""Positions before this frame are reached by decoding from the start: always exact, and not slower than seeking."""

_SEEK_MARGIN_MS = 4000.0
"""How far before a position seeking aims. Decoding over a margin rebuilds what open groups of pictures refer back to."""

_JITTER_STEPS = 2
"""A time that lies at most so many frame steps before the last one is taken for that: it is jitter, no restart."""

_DEFAULT_STEP_US = 40_000
"""Frame step of a container that tells no usable rate."""


@dataclass(frozen=True, kw_only=True)
class VideoOptions(DecodingOptions, MediaOptions):
    """Options of the source ``video``."""

    max_fps: float | None = option(
        None, "Deliver at most this many frames per second of video; others are skipped.", unit="1/s", gt=0
    )
    references: int = option(
        0,
        "Deliver this many frames spread evenly over the whole file ahead of it, with role 'reference' and sequence -N..-1.",
        ge=0,
        le=256,
    )

    def __post_init__(self) -> None:
        MediaOptions.__post_init__(self)
        DecodingOptions.__post_init__(self)


class VideoSource(MediaSource):
    """Video files; splits are files and are called like their streams."""

    Options = VideoOptions
    options: VideoOptions
    files = "video files"
    suffixes = _SUFFIXES
    bulky = True

    def __init__(self, options: VideoOptions) -> None:
        super().__init__(options)
        self._kept = kept_frames(options)

    @classmethod
    def also_needs(cls, options: VideoOptions) -> tuple[str, ...]:
        """Return those of ``decoder``."""
        return ("torchcodec",) if options.decoder == "torchcodec" else ()

    @classmethod
    def keeps_frames(cls, options: VideoOptions) -> str | None:
        """Return ``device``."""
        return options.device

    @property
    def schema(self) -> pa.Schema:
        """``frame.v1``, with ``role`` where references are asked for."""
        return FRAME_WITH_ROLE if self.options.references else FRAME

    def reader(self, path: Path, stream_id: str, position: Position | None) -> VideoReader:
        """Return a reader of a file."""
        return VideoReader(path, stream_id, self.options, position, self._kept)


class VideoReader(Reader):
    """Reads one file. ``sequence`` is the number of the decoded frame, also where ``max_fps`` leaves frames out.

    Position: ``frame`` is the first frame not yet considered; ``time_us`` and ``crc`` are the time and the pixel checksum of
    the last delivered one, which tell whether a seek has landed right; ``restarted`` says that the container's time has gone
    back before, so that no seek by time can find the frame.
    """

    def __init__(
        self, path: Path, stream_id: str, options: VideoOptions, position: Position | None, kept: KeptFrames | None = None
    ) -> None:
        cv2.setNumThreads(1)  # readers share cores with other processes; frame decoding has its own threads
        self.closes: Sequence[str] = (stream_id,)
        self._path = path
        self._stream_id = stream_id
        self._options = options
        self._schema = FRAME_WITH_ROLE if options.references else FRAME
        self._memory = FrameMemory()
        self._kept = kept
        self._stamp = FileStamp.of(path)
        if position is not None:
            self._stamp.require(path, position)
        self._epoch_us = options.epoch_us(self._stamp)
        self._capture: Any = None
        self._grabbed = 0  # frames taken from the decoder since the file's start
        self._last_us = 0  # time of the last grabbed frame
        self._shift_us = 0  # what is added to container times, since they have gone back
        self._rate = 0.0  # as the container says it
        self._timeless = False  # elementary streams: the container has no times
        self._pending: tuple[Bytes, int, int] | None = None  # decoded (image, frame, time_us) that did not fit the last batch
        self._shape: tuple[int, ...] | None = None  # of the last frame, expected of the next one
        self._size = 0
        self._frame = 0
        self._time_us: int | None = None
        self._last: Bytes | None = None
        self._crc: int | None = None
        self._references: list[Bytes] = []
        self._references_done = 0
        self._total: int | None = None
        if position is None:
            self._open_capture()
        else:
            self._resume(position)

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Decode the next frames; None once the file has ended, and while as many are kept on a device as may be."""
        if self.exhausted or (self._kept is not None and self._kept.full):
            return None
        max_bytes = min(max_bytes, _BATCH_BYTES) if self._kept is None else max_bytes
        batch = FrameBatch(self._stream_id, self._schema, max_rows, max_bytes, self._memory)
        if self._references_done < self._options.references:
            self._read_references(batch)
        while not self.exhausted and self._references_done >= self._options.references and batch.fits(self._size):
            if not self._read_frame(batch):
                break
        if self._last is not None:
            self._crc, self._last = _checksum(self._last), None
        return batch.finish()

    def position(self) -> Position:
        """Return the next frame, the file's stamp and how to recognize the frame before."""
        return {
            "frame": self._frame,
            "time_us": self._time_us,
            "crc": self._crc,
            "restarted": self._shift_us != 0,
            "references": self._references_done,
            "ended": self.exhausted,
            "size": self._stamp.size,
            "mtime_ns": self._stamp.mtime_ns,
        }

    def total_rows(self) -> int | None:
        """Return the container's estimate, less what ``max_fps`` leaves out."""
        return self._total

    def close(self) -> None:
        """Release the decoder."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None
        self._pending = self._last = None

    def _read_frame(self, batch: FrameBatch) -> bool:
        """Append the next frame, or the row that says why there is none. False: leave the batch as it is."""
        if self._pending is None:
            time_us = self._grab()
            if time_us is None:
                self._end(batch)
                return True
            frame = self._grabbed - 1
            if self._kept is not None:
                image = self._capture.kept()
                self._size = image.nbytes
                batch.keep(image, self._kept, frame, self._epoch_us + time_us)
                self._frame, self._time_us, self._crc = frame + 1, time_us, None
                return not self._kept.full
            slot = batch.slot(self._shape, self._size) if self._shape is not None and self._options.encode == "raw" else None
            image = self._retrieve(slot)
            if image is None:
                self._frame, self._time_us, self._crc, self._last = frame + 1, time_us, None, None
                batch.add_error(f"frame {frame} cannot be decoded", sequence=frame, time_us=self._epoch_us + time_us)
                return True
            self._shape, self._size = image.shape, image.size
            if image is slot:  # the size is as expected: OpenCV has written into the batch
                height, width = image.shape[:2]
                batch.take_slot(image.size, frame, self._epoch_us + time_us, "raw_bgr8", height, width)
                self._frame, self._time_us, self._last = frame + 1, time_us, image
                return True
            self._pending = (image, frame, time_us)
        image, frame, time_us = self._pending
        if not batch.fits(image.size):
            return False
        self._pending = None
        self._append(batch, image, frame, time_us)
        self._frame, self._time_us, self._last = frame + 1, time_us, image
        return True

    def _append(self, batch: FrameBatch, image: Bytes, sequence: int, time_us: int, role: str | None = None) -> None:
        """Copy a frame into the batch, encoded as the options say."""
        height, width = image.shape[:2]
        encoding, data = "raw_bgr8", np.ascontiguousarray(image).reshape(-1)
        if self._options.encode == "jpeg":
            encoding, data = "jpeg", cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self._options.jpeg_quality])[1]
        batch.add(data, sequence, self._epoch_us + time_us, encoding, height, width, role)

    def _read_references(self, batch: FrameBatch) -> None:
        """Append the frames that go ahead of the stream, at the time of its first frame."""
        count = self._options.references
        if not self._references and self._capture is not None:
            length = max(1, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
            self._references = read_frames(self._path, even_spread(count, length))
        if not self._references:  # the stream itself will say what is wrong with the file
            self._references_done = count
            return
        while self._references_done < count and batch.fits(self._references[self._references_done].size):
            index = self._references_done
            self._append(batch, self._references[index], index - count, 0, "reference")
            self._references_done += 1
        if self._references_done == count:
            self._references = []

    def _open_capture(self) -> None:
        self.close()
        self._grabbed = self._last_us = self._shift_us = 0
        self._timeless = False
        if self._options.decoder == "torchcodec":
            other = open_by_torchcodec(self._path, _threads(), self._options.device or "cpu")
            if other is not None:
                self._use(other)
            return
        # An absolute path: FFmpeg would take "a:b.mp4" for a protocol.
        capture = cv2.VideoCapture(str(self._path.resolve()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, _threads()])
        if capture.isOpened():
            self._use(capture)

    def _use(self, capture: Any) -> None:
        self._capture = capture
        frames, self._rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        kept = min(1.0, self._options.max_fps / self._rate) if self._options.max_fps and self._rate > 0 else 1.0
        self._total = round(frames * kept) + self._options.references if frames > 0 else None

    def _grab_other(self) -> bool:
        """Grab the first frame by the other decoder, where OpenCV finds none."""
        capture = open_by_av(self._path, _threads()) if self._options.decoder == "opencv" else None
        if capture is None:
            return False
        self.close()
        self._use(capture)
        return capture.grab()

    def _grab(self) -> int | None:
        """Take the next frame that ``max_fps`` keeps and return its container time in microseconds, or None at the end."""
        while True:
            time_us = self._grab_any()
            if time_us is None or self._options.max_fps is None or self._time_us is None:
                return time_us
            # The first frame of every interval 1/max_fps; a microsecond of grace for rounded container times.
            interval_us = 1e6 / self._options.max_fps
            if (time_us + 1) // interval_us > (self._time_us + 1) // interval_us:
                return time_us

    def _grab_any(self) -> int | None:
        """Take the next frame and return its time, which never lies before that of the frame before; None at the end."""
        grabbed = self._capture is not None and self._capture.grab()
        if not grabbed and (self._grabbed or not self._grab_other()):
            return None
        # POS_MSEC is the time of the grabbed frame, counted from the stream's start; after a failed grab it is reset to 0.
        time_us: int = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1000)
        self._timeless = time_us == 0 and (self._timeless or self._grabbed == 1)
        if self._timeless:
            time_us = round(self._grabbed * 1e6 / self._rate) if self._rate > 0 else 0
        time_us += self._shift_us
        back_us = self._last_us - time_us
        if self._grabbed and back_us > 0:
            step_us = round(1e6 / self._rate) if 1 <= self._rate <= 1000 else _DEFAULT_STEP_US
            restarts = back_us > _JITTER_STEPS * step_us
            if restarts:
                self._shift_us += back_us + step_us
                logger.info("time_restarts stream=%s frame=%d back_us=%d", self._stream_id, self._grabbed, back_us)
            time_us = self._last_us + (step_us if restarts else 0)
        self._grabbed += 1
        self._last_us = time_us
        return time_us

    def _retrieve(self, slot: Bytes | None) -> Bytes | None:
        """Convert the grabbed frame, into ``slot`` if its size fits, and return it as BGR [H, W, 3]."""
        assert self._capture is not None
        try:
            ok, image = self._capture.retrieve(slot) if slot is not None else self._capture.retrieve()
        except cv2.error as error:
            logger.warning("retrieve_failed stream=%s frame=%d error=%s", self._stream_id, self._grabbed - 1, error)
            return None
        return image if ok and image is not None and image.size else None

    def _end(self, batch: FrameBatch) -> None:
        """Finish the split, with an error row if the file holds less than it should."""
        problem = self._what_is_wrong()
        if problem is not None:
            problem = f"{self._path.name}: {problem}"
            batch.add_error(problem, sequence=self._grabbed, time_us=self._epoch_us + (self._time_us or 0))
            self.unread = {self._path.name: problem.removeprefix(f"{self._path.name}: ")}
            logger.warning("bad_file stream=%s error=%s", self._stream_id, problem)
        self._frame, self.exhausted = self._grabbed, True
        self.close()

    def _what_is_wrong(self) -> str | None:
        """Tell why no further frame decodes, None if the file is simply over."""
        if self._stamp.size == 0:
            return "the file is empty"
        try:
            missing = missing_bytes(self._path)
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        if not missing and self._options.decoder == "torchcodec" and self._capture is not None and self._capture.problem:
            return str(self._capture.problem)
        if missing:
            return f"the file ends {missing} bytes early, after {self._grabbed} decodable frames"
        if self._grabbed == 0:
            return why_not(self._path) or "no frame can be decoded; not a video, or damaged"
        return None

    def _resume(self, position: dict[str, Any]) -> None:
        """Go on where ``position`` says: by seeking where that can be checked, else by decoding from the start."""
        self._frame = int(position["frame"])
        self._time_us = position["time_us"]
        self._crc = position["crc"]
        self._references_done = int(position["references"])
        if position["ended"]:
            self.exhausted = True
            return
        self._open_capture()
        if self._frame == 0 or (self._frame > _SEEK_FROM_FRAME and not position.get("restarted") and self._seek()):
            return
        self._open_capture()
        while self._grabbed < self._frame:
            if self._grab_any() is None:
                raise SourceError(
                    f"{str(self._path)!r} ends after {self._grabbed} frames but the position says {self._frame}; "
                    "put the old file back, or start over with another state folder"
                )

    def _seek(self) -> bool:
        """Seek before the last delivered frame and decode up to it; true if it is found with the very same pixels."""
        capture = self._capture
        if capture is None or self._time_us is None or self._crc is None:
            return False
        capture.set(cv2.CAP_PROP_POS_MSEC, max(0.0, self._time_us / 1000 - _SEEK_MARGIN_MS))
        while capture.grab():
            time_us: int = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1000)
            if time_us >= self._time_us:
                self._grabbed, self._last_us = self._frame, time_us
                image = self._retrieve(None)
                return time_us == self._time_us and image is not None and _checksum(image) == self._crc
        return False


def _threads() -> int:
    return min(_DECODER_THREADS, int(cv2.getNumberOfCPUs()))


def _checksum(image: Bytes) -> int:
    """Return a checksum of every 16th pixel both ways: enough to tell a wrongly rebuilt picture, and cheap."""
    return zlib.crc32(image[::16, ::16].tobytes())
