"""Live cameras: RTSP, MJPEG over HTTP and other URLs that FFmpeg reads, and local devices; one stream per camera.

A camera cannot replay: rows that were not committed when something died are gone (at most once). Each camera has a thread
that grabs; the pipeline gets the newest frame whenever it asks, so it is never behind. A camera that is lost gives a row that
says so and is connected again for ever. OpenCV decodes, or TorchCodec, where ``decoder`` says so.
"""

# H height, W width

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from connectors.base import Position, Reader, Source
from connectors.device_frames import KeptFrames
from connectors.errors import ConfigError, SourceError
from connectors.extras import need, optional
from connectors.options import option
from connectors.records import FRAME
from connectors.sources.camera_list import CameraList, camera_problem
from connectors.sources.decoding import DecodingOptions, kept_frames
from connectors.sources.frames import Bytes, FrameBatch, FrameMemory
from connectors.sources.grabber import Connect, Grabbed, Grabber, Timing, connect
from connectors.sources.torchcodec_live import connect_by_torchcodec, torchcodec_problem

cv2 = optional("cv2")

__all__ = ["CAMERA_FRAME", "CameraOptions", "CameraReader", "CameraSource"]

CAMERA_FRAME = pa.schema(
    [
        *FRAME,
        pa.field("segment", pa.int32()),
        pa.field("gap", pa.int32()),
        pa.field("notice", pa.string()),
    ],
    metadata=FRAME.metadata,
)
"""``frame.v1``; ``segment`` counts connections and frame sizes, ``gap`` the frames that gave way before this one, ``notice`` is
``lost`` (no image), ``back`` or ``resized`` on the first frame of a segment, else null."""

_JOIN_S = 0.2
_FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


@dataclass(frozen=True, kw_only=True)
class CameraOptions(DecodingOptions):
    """Options of the source ``camera``."""

    cameras: dict[str, str] = option(
        {}, "Stream id of each camera and its URL (rtsp://, http://, …) or device (0, /dev/video0)."
    )
    cameras_file: Path | None = option(
        None, "YAML file of the same form, read again whenever it changes: cameras come and go while the pipeline runs."
    )
    user: str | None = option(None, "User for URLs that name none.", secret=True)
    password: str | None = option(None, "Password of that user.", secret=True)
    transport: Literal["tcp", "udp"] = option(
        "tcp", "Of RTSP; with decoder opencv one per process. udp loses packets rather than time."
    )
    mode: Literal["latest", "every_frame"] = option(
        "latest",
        "latest: a frame that is not taken is replaced by the next; every_frame: keep_frames wait, then the oldest is dropped.",
    )
    keep_frames: int = option(64, "With mode every_frame: frames of a camera that may wait.", ge=1, le=4096)
    max_lag_s: float | None = option(None, "Frames older than this when they are taken are dropped.", unit="s", gt=0)
    max_fps: float | None = option(None, "Take at most this many frames per second of a camera.", unit="1/s", gt=0)
    open_timeout_s: float = option(5.0, "A camera that does not answer for this long cannot be opened.", unit="s", gt=0)
    read_timeout_s: float = option(5.0, "A camera without a frame for this long is lost.", unit="s", gt=0)
    reconnect_s: float = option(0.5, "Pause before a lost camera is opened again; doubles with each try.", unit="s", gt=0)
    reconnect_max_s: float = option(30.0, "Longest such pause.", unit="s", gt=0)
    duration_s: float | None = option(None, "End after this long; default: never.", unit="s", gt=0)

    def __post_init__(self) -> None:
        if not self.cameras and self.cameras_file is None:
            raise ConfigError("give 'cameras', such as {gate: rtsp://host/path}, or 'cameras_file'")
        for name, address in self.cameras.items():
            problem = camera_problem(address)
            if problem is None and self.decoder == "torchcodec":
                problem = torchcodec_problem(address)
            if problem is not None:
                raise ConfigError(f"cameras.{name}: {problem}")
        if self.password is not None and self.user is None:
            raise ConfigError("'password' needs 'user'")
        super().__post_init__()
        if self.reconnect_max_s < self.reconnect_s:
            raise ConfigError(f"reconnect_max_s: {self.reconnect_max_s} is below reconnect_s: {self.reconnect_s}")


class CameraSource(Source):
    """Cameras; splits are called like their streams.

    ``clock`` gives monotonic seconds, ``wall_clock`` those of the day, and ``connect`` opens a camera: tests pass their own.
    """

    Options = CameraOptions
    options: CameraOptions
    replayable = False
    bulky = True
    schema = CAMERA_FRAME

    def __init__(
        self,
        options: CameraOptions,
        *,
        connect: Connect | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(options)
        self._connect = connect or _connect_of(options)
        self._kept = kept_frames(options)
        self._clock = clock
        self._wall_clock = wall_clock
        self.bounded = options.duration_s is not None
        self.splits_end = False  # with a duration, all end at the same time
        self._list = CameraList(options.cameras, options.cameras_file, options.user, options.password, clock)
        self._listed: set[str] = set()
        self._began_s: float | None = None

    @classmethod
    def also_needs(cls, options: CameraOptions) -> tuple[str, ...]:
        """Return those of ``decoder``."""
        return ("av", "torchcodec") if options.decoder == "torchcodec" else ()

    @classmethod
    def keeps_frames(cls, options: CameraOptions) -> str | None:
        """Return ``device``."""
        return options.device

    def splits(self) -> list[str]:
        """List the cameras of now."""
        names = sorted(self._list.addresses())
        if self._list.problem is not None:
            raise SourceError(self._list.problem)
        self._listed |= set(names)
        return names

    def discover(self) -> list[str]:
        """Return cameras that were added to ``cameras_file``."""
        new = sorted(set(self._list.addresses()) - self._listed)
        self._listed |= set(new)
        return new

    def streams(self) -> list[str]:
        """Return the splits: each is a stream."""
        return self.splits()

    def open(self, split: str, position: Position | None) -> CameraReader:
        """Begin to connect to a camera, in a thread; one that is not there yet is no error."""
        self._listed.add(split)
        if self._began_s is None:
            self._began_s = self._clock()
            if self.options.decoder == "torchcodec":
                for module in ("av", "torchcodec.decoders"):
                    need(module, "decoder: torchcodec of cameras")  # here, not in the threads that connect
            else:
                _choose_transport(self.options.transport)
        end_s = self._began_s + self.options.duration_s if self.options.duration_s is not None else None
        return CameraReader(
            split,
            self._list,
            self.options,
            position,
            end_s,
            self._connect,
            clock=self._clock,
            wall_clock=self._wall_clock,
            kept=self._kept,
        )


class CameraReader(Reader):
    """Frames of one camera. ``sequence`` counts rows over all runs; ``event_time`` is the wall clock, never going back."""

    def __init__(
        self,
        name: str,
        cameras: CameraList,
        options: CameraOptions,
        position: Position | None,
        end_s: float | None,
        connect: Connect,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        kept: KeptFrames | None,
    ) -> None:
        self._kept = kept
        self._connect = connect
        self._clock = clock
        self._wall_clock = wall_clock
        self.closes: Sequence[str] = (name,)
        self.dropped: Counter[str] = Counter()
        self._name = name
        self._cameras = cameras
        self._options = options
        self._end_s = end_s
        self._sequence = int(position["sequence"]) if position is not None else 0
        self._segment = int(position["segment"]) if position is not None else 0
        self._time_us = int(position["time_us"]) if position is not None else 0
        self._number = 0
        self._was_lost = self._segment > 0  # the cameras of a resumed run come back
        self._memory = FrameMemory()
        self._grabber: Grabber | None = None
        self._ending: list[Grabber] = []
        self._follow()

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        """Return what has come since the last call."""
        self.ended: Sequence[str] = ()
        if self._end_s is not None and self._clock() >= self._end_s:
            self.exhausted = True
            self.close()
            return None
        self._follow()
        batch = FrameBatch(self._name, FRAME, max_rows, max_bytes, self._memory)
        segments: list[int] = []
        gaps: list[int] = []
        notices: list[str | None] = []
        while self._grabber is not None and batch.fits(0) and not (self._kept is not None and self._kept.full):
            event = self._grabber.take()
            if event is None:
                break
            if isinstance(event, Grabbed):
                if self._is_old(event.time_us):
                    self.dropped["older than max_lag_s"] += 1
                    continue
                gap = event.number - self._number - 1
                self.dropped["gave way to newer frames"] += gap
                self._number = event.number
                notice = None
                if event.segment != self._segment:
                    notice = "back" if self._was_lost else "resized" if self._segment else None
                    self._segment = event.segment
                self._was_lost = False
                self._add(batch, event)
            else:
                gap, notice = 0, "lost"
                self._was_lost = True
                batch.add_error(f"lost: {event.reason}", sequence=self._sequence, time_us=self._next_time(event.time_us))
            self._sequence += 1
            segments.append(self._segment)
            gaps.append(gap)
            notices.append(notice)
        rows = batch.finish()
        if rows is None:
            return None
        columns = [pa.array(segments, pa.int32()), pa.array(gaps, pa.int32()), pa.array(notices, pa.string())]
        return pa.RecordBatch.from_arrays([*rows.columns, *columns], schema=CAMERA_FRAME)

    def position(self) -> Position:
        """Return where the counters stand: a camera itself has no positions."""
        return {"sequence": self._sequence, "segment": self._segment, "time_us": self._time_us}

    def close(self) -> None:
        """Let the camera go."""
        if self._grabber is not None:
            self._grabber.stop()
            self._ending.append(self._grabber)
            self._grabber = None
        for grabber in self._ending:
            grabber.join(_JOIN_S)  # it may be waiting for a frame; it ends on its own at its timeout

    def _follow(self) -> None:
        """Connect, disconnect or connect elsewhere, as the list of cameras says."""
        address = self._cameras.addresses().get(self._name)
        if self._grabber is not None and address != self._grabber.address:
            self._segment = max(self._segment, self._grabber.segment)
            self.close()
            self._was_lost = True
            if address is None:
                self.ended = (self._name,)
        self._ending = [grabber for grabber in self._ending if not grabber.join(0)]
        if self._grabber is None and address is not None:
            options = self._options
            timing = Timing(
                open_timeout_s=options.open_timeout_s,
                read_timeout_s=options.read_timeout_s,
                reconnect_s=options.reconnect_s,
                reconnect_max_s=options.reconnect_max_s,
                max_fps=options.max_fps,
            )
            keep = 1 if options.mode == "latest" else options.keep_frames
            self._number = 0
            self._grabber = Grabber(
                self._name,
                address,
                timing,
                keep=keep,
                segment=self._segment,
                connect=self._connect,
                clock=self._clock,
                wall_clock=self._wall_clock,
            )

    def _is_old(self, time_us: int) -> bool:
        return self._options.max_lag_s is not None and self._wall_clock() * 1e6 - time_us > self._options.max_lag_s * 1e6

    def _next_time(self, time_us: int) -> int:
        """Return the event time for a row: the wall clock may go back, a stream's time does not."""
        self._time_us = max(self._time_us + 1, time_us)
        return self._time_us

    def _add(self, batch: FrameBatch, event: Grabbed) -> None:
        time_us = self._next_time(event.time_us)
        if event.image is None:
            batch.add_error("the frame cannot be decoded", sequence=self._sequence, time_us=time_us)
            return
        if self._kept is not None:
            batch.keep(event.image, self._kept, self._sequence, time_us)
            return
        height, width = event.image.shape[:2]
        data: Bytes = np.ascontiguousarray(event.image).reshape(-1)
        encoding = "raw_bgr8"
        if self._options.encode == "jpeg":
            quality = [cv2.IMWRITE_JPEG_QUALITY, self._options.jpeg_quality]
            encoding, data = "jpeg", cv2.imencode(".jpg", event.image, quality)[1].reshape(-1)
        batch.add(data, self._sequence, time_us, encoding, height, width)


def _connect_of(options: CameraOptions) -> Connect:
    """Return what opens cameras with the decoder of the options."""
    if options.decoder == "opencv":
        return connect
    return functools.partial(connect_by_torchcodec, transport=options.transport, device=options.device)


def _choose_transport(transport: str) -> None:
    """Tell FFmpeg how to fetch RTSP. It reads the environment, so there is one choice per process."""
    wanted = f"rtsp_transport;{transport}"
    chosen = os.environ.setdefault(_FFMPEG_OPTIONS, wanted)
    if wanted not in chosen.split("|"):
        raise SourceError(
            f"transport: {transport!r} is asked for, but {_FFMPEG_OPTIONS} is {chosen!r} in this process; use one transport "
            "for all cameras of a pipeline, or unset that variable"
        )
    # A camera that is away would fill the log; what is wrong stands in its rows.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
