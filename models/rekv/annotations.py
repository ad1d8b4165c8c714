"""A person's own short videos with questions and answers: the form of the paper's evaluation files, and frames as needed.

Knows no model.
"""

# F frames, H rows, W columns

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from connectors.errors import ConfigError, SourceError
from connectors.extras import optional

cv2 = optional("cv2")

__all__ = ["Sample", "read_samples", "sample_frames"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about (a part of) one video."""

    video: Path
    start_s: float
    end_s: float | None
    question: str
    answer: str


def read_samples(file: Path) -> list[Sample]:
    """Read annotations. Relative paths of videos count from the file. Raises ``ConfigError`` that names the entry."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"annotations: {file} cannot be read: {error.strerror}; check the path") from error
    except ValueError as error:
        raise ConfigError(f"annotations: {file} is not JSON: {error}") from error
    samples = []
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        where = f"annotations: {file}, entry {i}"
        try:
            video = file.parent / entry["video_path"]
            for one in entry["conversations"]:
                start, end = float(one.get("start_time") or 0.0), one.get("end_time")
                samples.append(
                    Sample(video, start, None if end is None else float(end), str(one["question"]), str(one["answer"]))
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{where}: needs video_path and conversations of question and answer ({error!r})") from error
        if not video.is_file():
            raise ConfigError(f"{where}: there is no video {video}")
    if not samples:
        raise ConfigError(f"annotations: {file} holds no question; it must be a list with at least one entry")
    return samples


def sample_frames(sample: Sample, most: int) -> Tensor:
    """Decode at most ``most`` frames, spread evenly over the sample's time, as RGB [F, H, W, 3]. Raises ``SourceError``."""
    video = cv2.VideoCapture(str(sample.video))
    try:
        rate, total = video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        if not video.isOpened() or rate <= 0 or total < 1:
            raise SourceError(f"{sample.video}: cannot be read as a video; convert it, or remove it from the annotations")
        first = min(max(math.floor(sample.start_s * rate), 0), total - 1)
        last = total if sample.end_s is None else min(max(math.ceil(sample.end_s * rate), first + 1), total)
        count = min(most, last - first)
        wanted = set((first + (np.arange(count) + 0.5) * (last - first) / count).astype(int).tolist())
        frames = []
        for index in range(last):
            if not video.grab():
                break
            if index in wanted:
                frames.append(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
    finally:
        video.release()
    if not frames:
        raise SourceError(f"{sample.video}: no frame between {sample.start_s} s and {sample.end_s} s could be decoded")
    return torch.from_numpy(np.stack(frames))
