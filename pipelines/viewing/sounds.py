"""Pictures of sound: frames of each stream's video, below them the spectrograms of its own sound and of that of rows.

Takes committed rows with ``samples`` and ``sample_rate``, and videos by the name of their stream. Only the first minute of a
stream is shown: a longer one would not fit a page.
"""

# H height, W width, T frames of a spectrogram, M bands, N samples

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors.drawing import Picture, decode_image, draw_header, panel_size
from connectors.errors import SourceError
from connectors.extras import optional
from connectors.sources.audio import AudioOptions, AudioReader
from connectors.sources.video import VideoOptions, VideoReader

cv2 = optional("cv2")

__all__ = ["SoundPicture", "draw_sound", "has_sound", "sounds_of", "videos_below"]

logger = logging.getLogger(__name__)

SHOWN_S = 60.0
"""Seconds of a stream that are shown."""

_WIDTH, _BANDS_HEIGHT, _BAR = 1100, 160, 22
_PICTURES = 10

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, eq=False)
class SoundPicture:
    """What is known of one stream."""

    stream: str
    rate: int
    begin_us: int
    samples_N: Samples
    """From the first row on; silence where there are none."""


def has_sound(table: pa.Table) -> bool:
    """Tell whether rows hold sound."""
    names = set(table.column_names)
    if not {"stream_id", "event_time", "sample_rate", "samples"} <= names:
        return False
    kind = table.schema.field("samples").type
    return bool(pa.types.is_list(kind) and pa.types.is_int16(kind.value_type))


def sounds_of(tables: Iterable[pa.Table]) -> list[SoundPicture]:
    """Return the sound of each stream, sorted by stream; several channels are averaged."""
    found = []
    for table in tables:
        for stream in sorted(set(table.column("stream_id").to_pylist())):
            rows = table.filter(pa.array([name == stream for name in table.column("stream_id").to_pylist()]))
            picture = _sound(stream, rows.combine_chunks().sort_by("event_time"))
            if picture is not None:
                found.append(picture)
    return found


def _sound(stream: str, rows: pa.Table) -> SoundPicture | None:
    times = rows.column("event_time").cast(pa.int64()).to_pylist()
    rates = rows.column("sample_rate").to_pylist()
    channels = rows.column("channels").to_pylist() if "channels" in rows.column_names else [1] * rows.num_rows
    parts = rows.column("samples").to_pylist()
    begin_us, rate, samples_N = 0, 0, np.zeros(0, np.int16)
    for time_us, its_rate, its_channels, part in zip(times, rates, channels, parts, strict=True):
        if not part or not its_rate:
            continue
        if not rate:
            begin_us, rate = time_us, its_rate
            samples_N = np.zeros(round(SHOWN_S * rate), np.int16)
            end = 0
        at = round((time_us - begin_us) * rate / 1e6)
        mono = np.rint(np.array(part, np.float64).reshape(-1, its_channels or 1).mean(1)).astype(np.int16)
        mono = mono[: max(0, len(samples_N) - at)]
        if its_rate == rate and at >= 0:
            samples_N[at : at + len(mono)] = mono
            end = max(end, at + len(mono))
    return None if not rate else SoundPicture(stream, rate, begin_us, samples_N[:end])


def draw_sound(sound: SoundPicture, video: Path | None) -> Picture:
    """Draw one stream: frames of its video, the sound of that video, and the sound of the rows, on one axis of time."""
    seconds = max(len(sound.samples_N) / sound.rate, 0.1)
    parts: list[Picture] = []
    if video is not None:
        frames = _frames(video, seconds)
        if frames:
            parts += [_bar(f"{sound.stream}: {video.name}", f"{seconds:.1f} s"), _strip(frames)]
        own = _own_sound(video)
        if own is not None:
            parts += [_bar("its own sound", ""), _spectrogram(own.samples_N, own.rate, seconds)]
    parts += [_bar("the sound of the rows" if parts else sound.stream, ""), _spectrogram(sound.samples_N, sound.rate, seconds)]
    return np.concatenate(parts)


def _bar(title: str, note: str) -> Picture:
    return draw_header(_WIDTH, _BAR, title, note)


def _spectrogram(samples_N: Samples, rate: int, seconds: float) -> Picture:
    """Return the mel spectrogram as a colored picture, low frequencies below."""
    import torch

    from models.specvqgan.config import HOP, RATE
    from models.specvqgan.mel import one_shot_mel
    from models.specvqgan.resample import resample

    sound_N = resample(torch.from_numpy(samples_N[: round(seconds * rate)].astype(np.float64) / 32768), rate)
    wanted = round(seconds * RATE)
    sound_N = torch.nn.functional.pad(sound_N[:wanted], (0, max(0, wanted - len(sound_N))))
    mel_MT = one_shot_mel(sound_N)[:, : max(1, wanted // HOP)].numpy()
    gray = np.rint(255 * mel_MT[::-1]).astype(np.uint8)
    picture = cv2.resize(gray, (_WIDTH, _BANDS_HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.applyColorMap(picture, cv2.COLORMAP_INFERNO), np.uint8)


def _own_sound(video: Path) -> SoundPicture | None:
    """Return the sound track of a video; None where it has none that can be read."""
    try:
        reader = AudioReader(video, video.stem, AudioOptions(path=str(video)), None)
        batches: list[pa.RecordBatch] = []
        try:
            while not reader.exhausted and sum(batch.num_rows for batch in batches) < 4 * SHOWN_S:
                batch = reader.read(64, 1 << 26)
                if batch is not None:
                    batches.append(batch)
        finally:
            reader.close()
    except SourceError as error:
        logger.warning("view video=%s has no sound that can be read: %s", video, error)
        return None
    return _sound(video.stem, pa.Table.from_batches(batches)) if batches else None


def _frames(video: Path, seconds: float) -> list[Picture]:
    """Return a few frames, evenly spread over the time that is shown."""
    reader = VideoReader(video, video.stem, VideoOptions(path=str(video)), None)
    wanted = [(i + 0.5) * seconds * 1e6 / _PICTURES for i in range(_PICTURES)]
    found: list[Picture] = []
    begin_us: int | None = None
    try:
        while not reader.exhausted and len(found) < len(wanted):
            batch = reader.read(16, 1 << 28)
            if batch is None:
                continue
            for row in range(batch.num_rows):
                image, encoding, height, width = (batch.column(name)[row] for name in ("image", "encoding", "height", "width"))
                time_us = batch.column("event_time")[row].value
                begin_us = time_us if begin_us is None else begin_us
                if len(found) < len(wanted) and time_us - begin_us >= wanted[len(found)] and image.is_valid:
                    picture = decode_image(image.as_buffer(), encoding.as_py(), height.as_py(), width.as_py())
                    if picture is not None:
                        found.append(picture)
    finally:
        reader.close()
    return found


def _strip(frames: Sequence[Picture]) -> Picture:
    width = _WIDTH // _PICTURES
    height, _ = panel_size(*frames[0].shape[:2], scale=1.0, max_height=2160)
    height = max(24, round(height * width / frames[0].shape[1]))
    cells = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
    strip = np.full((height, _WIDTH, 3), 255, np.uint8)
    for i, cell in enumerate(cells):
        strip[:, i * width : (i + 1) * width] = cell
    return strip


def videos_below(folder: Path) -> Mapping[str, Path]:
    """Return the films that a run has written below a folder, by their streams."""
    films = sorted(path for path in folder.rglob("*.mp4") if not any(part.startswith("_") for part in path.parts))
    return {path.stem: path for path in films}
