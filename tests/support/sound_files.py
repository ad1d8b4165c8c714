"""Sound files for tests, written by the standard library and PyAV."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def noise(moments: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """16-bit samples [moments, channels]."""
    return np.random.default_rng(seed).integers(-32768, 32768, (moments, channels), dtype=np.int16)


def tone(moments: int, rate: int, hertz: float = 440.0) -> np.ndarray:
    """A sine at half amplitude, mono."""
    return np.round(16384 * np.sin(2 * np.pi * hertz * np.arange(moments) / rate)).astype(np.int16)[:, None]


def write_wav(path: Path, samples: np.ndarray, rate: int, width: int = 2) -> Path:
    """Write samples [moments, channels] of ``width`` bytes each."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        if width == 1:
            data = ((samples >> 8) + 128).astype(np.uint8).tobytes()
        elif width == 2:
            data = samples.astype("<i2").tobytes()
        else:
            wide = (samples.astype("<i4") << 16).view(np.uint8).reshape(-1, 4)
            data = wide[:, 4 - width :].tobytes()
        file.writeframes(data)
    return path


def write_by_av(
    path: Path, samples: np.ndarray, rate: int, codec: str, *, gap: tuple[int, int] | None = None, video: bool = False
) -> Path:
    """Write samples by an encoder of PyAV. ``gap``: (moment, seconds) of a pause in the container's times."""
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    with av.open(str(path), "w") as container:
        if video:
            pictures = container.add_stream("mpeg4", rate=10)
            pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        stream = container.add_stream(codec, rate=rate, layout=layout)
        kind = stream.codec_context.codec.audio_formats[0].name if codec == "aac" else "s16"
        stream.format = kind
        for start in range(0, len(samples), 1024):
            part = samples[start : start + 1024]
            if kind == "fltp":
                frame = av.AudioFrame.from_ndarray((part.T / 32768).astype(np.float32).copy(), format=kind, layout=layout)
            else:
                frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), format=kind, layout=layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = start + (gap[1] * rate if gap and start >= gap[0] else 0)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if video:
            for i in range(5):
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * i, np.uint8), format="rgb24")
                picture.pts = i
                container.mux(pictures.encode(picture))
            container.mux(pictures.encode(None))
    return path
