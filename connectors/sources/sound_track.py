"""Decodes one sound track by PyAV, in order, as 16-bit samples with the container's times. Knows nothing of rows or streams.

Integer sound comes out bit for bit (of more than 16 bits, the upper 16); other formats are rounded and clipped, as ffmpeg does
when it writes 16-bit WAV. What a codec pads at the end is cut off where the container says how long the track is.
"""

# N moments, C channels

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.extras import optional

av = optional("av")

__all__ = ["Sound", "SoundTrack", "TrackError"]

Samples = npt.NDArray[np.int16]

_EXACT = ("pcm_", "flac", "alac")
"""Codecs (their names begin so) whose packets do not depend on those before, so that a seek gives the same samples."""

_MOST_CHANNELS = 127

_PADDING = 4096
"""Moments that a codec may add at the end; more than that is sound that the container does not know of."""


class TrackError(Exception):
    """The track cannot be opened; the message says why, without the name of the file."""


@dataclass(frozen=True, slots=True)
class Sound:
    """Samples that follow one another."""

    samples_NC: Samples
    rate: int
    at: int
    """Number of the first moment, counted over all that was decoded."""
    time_us: int | None
    """Container time of the first moment; None where it says none."""
    broken: str | None = None
    """What could not be decoded between the sound before and this one."""


class SoundTrack:
    """One track of an open file."""

    def __init__(self, path: Path, track: int) -> None:
        """Open. Raise ``TrackError`` where there is nothing to decode."""
        try:
            # An absolute path: FFmpeg would take "a:b.wav" for a protocol.
            self._container = av.open(str(path.resolve()))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise TrackError(f"is no sound or video file, or damaged ({_why(error)})") from error
        tracks = self._container.streams.audio
        if track >= len(tracks):
            kinds = [stream.type for stream in self._container.streams]
            self._container.close()
            held = f"it has {len(tracks)}" if tracks else f"it has none, only {', '.join(kinds) or 'nothing'}"
            raise TrackError(f"has no sound track {track}: {held}")
        self._stream = tracks[track]
        if self._stream.codec_context is None:
            self._container.close()
            raise TrackError("has sound in a format that PyAV has no decoder for; convert it to WAV or FLAC")
        self.rate = int(self._stream.rate or 0)
        channels = int(self._stream.codec_context.channels)
        if channels > _MOST_CHANNELS:
            self._container.close()
            raise TrackError(f"has {channels} channels; at most {_MOST_CHANNELS} are read")
        videos = self._container.streams.video
        # Seen and heard together: the time of the video's first frame is 0 for both.
        first = videos[0] if videos and videos[0].start_time is not None else self._stream
        self._zero = Fraction(first.start_time or 0) * (first.time_base or 0)
        self._decoded = 0
        self._broken: list[str] = []
        self.was_broken = False
        """True where packets could not be decoded: there is less sound than the container says."""

    @property
    def length(self) -> int | None:
        """Moments of the track as the container says them exactly; None where it does not."""
        stream = self._stream
        if not stream.duration or not self.rate or stream.time_base != Fraction(1, self.rate):
            return None
        return int(stream.duration)

    @property
    def can_seek(self) -> bool:
        """Say whether :meth:`seek` gives the same samples as decoding from the start."""
        name = str(self._stream.codec_context.name)
        return name.startswith(_EXACT) and self.length is not None and not self._stream.start_time

    @property
    def start_us(self) -> int:
        """Time of the first moment of a track that ``can_seek``."""
        return round(-self._zero * 1_000_000)

    def seek(self, at: int) -> None:
        """Go to a moment, or somewhat before it. Only where ``can_seek``."""
        self._container.seek(at, stream=self._stream, backward=True)
        self._decoded = -1  # told by the next frame

    def sounds(self) -> Iterator[Sound]:
        """Decode to the end. Packets that cannot be decoded are left out; the sound behind them says so."""
        waiting: Sound | None = None
        for frame in self._frames():
            if self._decoded < 0:
                self._decoded = int(frame.pts or 0)
            samples_NC = _int16(frame)
            time_us = None
            if frame.pts is not None and frame.time_base:
                time_us = round((frame.pts * frame.time_base - self._zero) * 1_000_000)
            sound = Sound(samples_NC, int(frame.sample_rate), self._decoded, time_us, self.take_broken())
            self._decoded += len(samples_NC)
            if waiting is not None:
                yield waiting
            waiting = sound
        if waiting is not None:
            surplus = self._decoded - (self.length or self._decoded)
            if 0 < surplus <= min(_PADDING, len(waiting.samples_NC)):
                waiting = dataclasses.replace(waiting, samples_NC=waiting.samples_NC[:-surplus])
            if len(waiting.samples_NC):
                yield waiting

    def take_broken(self) -> str | None:
        """Return what could not be decoded since the last sound, None where all could."""
        if not self._broken:
            return None
        self.was_broken = True
        more = f", and {len(self._broken) - 1} more" if len(self._broken) > 1 else ""
        text, self._broken = self._broken[0] + more, []
        return text

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _frames(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError, ValueError) as error:
                self._broken.append(f"cannot be read on ({_why(error)})")
                return
            if packet is None:
                return
            try:
                yield from packet.decode()
            except (av.FFmpegError, ValueError) as error:
                self._broken.append(f"a packet cannot be decoded ({_why(error)})")


def _int16(frame: Any) -> Samples:
    """Return the samples [N, C] of a frame."""
    values: npt.NDArray[Any] = frame.to_ndarray()
    channels = int(frame.layout.nb_channels)
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    if values.dtype == np.uint8:
        values = (values.astype(np.int16) - 128) * np.int16(256)
    elif values.dtype != np.int16 and np.issubdtype(values.dtype, np.integer):
        values = values >> (8 * values.dtype.itemsize - 16)
    elif values.dtype != np.int16:
        scaled = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=1.0, neginf=-1.0) * 32768
        values = np.clip(np.rint(scaled), -32768, 32767)
    samples_NC: Samples = np.ascontiguousarray(values, np.int16)
    return samples_NC


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
