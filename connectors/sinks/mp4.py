"""Pictures to MP4, each shown at its own time: no frame rate is handed to a codec, so there is none that it could refuse.

Times are whole microseconds, the time scale of the files. H.264 without B-frames is what every browser plays; VP9 too, at a
smaller size and more work. Which library writes it is up to the build of PyAV. Sound is FLAC: every sample comes back, also
where one piece of a file ends and the next begins, at which AAC and Opus would add some of their own.
"""

# N moments

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from connectors import durable
from connectors.drawing import Picture
from connectors.errors import SinkError
from connectors.extras import optional
from connectors.sinks.staged import sink_error

av = optional("av")
cv2 = optional("cv2")

__all__ = ["CODECS", "Codec", "Mp4Writer", "VideoEncoder", "require_encoder"]

Codec = Literal["h264", "vp9"]

_SCALE = 1_000_000
_KEY_FRAMES = 50  # players seek to key frames
_ENCODERS: dict[str, tuple[tuple[str, dict[str, str]], ...]] = {
    "h264": (
        ("libx264", {"preset": "superfast", "crf": "23", "bf": "0", "threads": "1"}),
        ("libopenh264", {"b": "2000000"}),
        ("h264_videotoolbox", {"b": "2000000"}),
    ),
    "vp9": (
        (
            "libvpx-vp9",
            {"deadline": "realtime", "cpu-used": "7", "crf": "34", "b": "0", "lag-in-frames": "0", "threads": "1"},
        ),
    ),
}
"""Codec → encoders that write it, the best first, with their options."""

CODECS = tuple(_ENCODERS)


def require_encoder(codec: str) -> tuple[str, dict[str, str]]:
    """Return the encoder of this build for a codec. Raise ``SinkError`` where it has none, naming what it has."""
    for name, options in _ENCODERS[codec]:
        if _has(name):
            return name, options
    others = [other for other, names in _ENCODERS.items() if any(_has(name) for name, _ in names)]
    raise SinkError(
        f"this build of PyAV has no encoder for {codec} ({', '.join(name for name, _ in _ENCODERS[codec])}); "
        + (f"set codec: {others[0]}" if others else "install the wheel of PyPI: pip install --force-reinstall av")
    )


def _has(encoder: str) -> bool:
    try:
        av.codec.Codec(encoder, "w")
    except (av.FFmpegError, ValueError):
        return False
    return True


class VideoEncoder:
    """Encodes pictures of one size to MP4, into ``file`` (anything with ``write``; fragments) or to a path (whole)."""

    def __init__(self, target: Any, *, size: tuple[int, int], codec: str, sound_rate: int | None = None) -> None:
        """``sound_rate``: of the track of mono sound, Hz; None: there is none."""
        name, options = require_encoder(codec)
        pieces = not isinstance(target, str)
        flags = "frag_keyframe+empty_moov+default_base_moof" if pieces else "faststart"
        container_options = {"movflags": flags, "fflags": "+bitexact", "video_track_timescale": str(_SCALE)}
        self.encoder = name
        self._container = av.open(target, "w", format="mp4", options=container_options)
        # The rate is a hint for rate control only; times say what is shown when.
        self._stream = self._container.add_stream(name, rate=25, options={**options, "g": str(_KEY_FRAMES)})
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _SCALE)
        self._durations: dict[int, int] = {}
        self._sound: Any = None
        self.sounded = 0
        """Moments of sound so far."""
        if sound_rate is not None:
            self._sound = self._container.add_stream("flac", rate=sound_rate, layout="mono")
            self._sound.format = "s16"
        self._container.start_encoding()  # now, so that what cannot be opened is told now

    def write(self, picture: Picture, time_us: int, duration_us: int) -> None:
        """Append a BGR picture of the size given, shown from ``time_us`` on; times must increase."""
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), format="yuv420p")
        frame.pts, frame.time_base = time_us, Fraction(1, _SCALE)
        self._durations[time_us] = duration_us
        self._mux(self._stream.encode(frame))

    def write_sound(self, samples_N: Any) -> None:
        """Append 16-bit mono samples, behind those before."""
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples_N, np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = self._sound.codec_context.sample_rate
        frame.pts, frame.time_base = self.sounded, Fraction(1, frame.sample_rate)
        self.sounded += len(samples_N)
        self._mux_sound(self._sound.encode(frame))

    def finish(self) -> None:
        """Write what the encoders still hold, and the end of the file."""
        self._mux(self._stream.encode(None))
        if self.sounded:
            self._mux_sound(self._sound.encode(None))
        self._container.close()

    def abort(self) -> None:
        """Forget everything. Never raises."""
        with contextlib.suppress(Exception):
            self._container.close()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts, 0)
            self._container.mux(packet)

    def _mux_sound(self, packets: list[Any]) -> None:
        for packet in packets:
            if packet.size:  # the last one tells of the whole, which the head of the file no longer can
                self._container.mux(packet)


class Mp4Writer:
    """One MP4 file, written as a whole and then renamed into place: it is there and complete, or not there."""

    def __init__(self, path: Path, *, size: tuple[int, int], codec: Codec = "h264", sound_rate: int | None = None) -> None:
        self.path = path
        self.frames = 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with _errors(path):
            self._encoder = VideoEncoder(str(self._temporary), size=size, codec=codec, sound_rate=sound_rate)

    def write(self, picture: Picture, time_us: int, duration_us: int) -> None:
        """Append a picture of the file's size."""
        with _errors(self.path):
            self._encoder.write(picture, time_us, duration_us)
        self.frames += 1

    def write_sound(self, samples_N: Any) -> None:
        """Append 16-bit mono samples, behind those before; the first are heard with the first picture."""
        with _errors(self.path):
            self._encoder.write_sound(samples_N)

    def finish(self) -> None:
        """Close, flush to the device and rename."""
        with _errors(self.path):
            self._encoder.finish()
            durable.sync(self._temporary)
            self._temporary.replace(self.path)
            durable.sync(self.path.parent)

    def abort(self) -> None:
        """Close and delete. Never raises."""
        self._encoder.abort()
        with contextlib.suppress(OSError):
            self._temporary.unlink()


@contextlib.contextmanager
def _errors(path: Path) -> Any:
    try:
        yield
    except OSError as error:  # PyAV's errors of the system are OSError, too
        raise sink_error(path, error) from error
    except av.FFmpegError as error:
        raise SinkError(f"{path}: cannot write video: {error}") from error
