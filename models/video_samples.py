"""A person's own short videos with questions and answers: the form of the paper's evaluation files, and frames as needed.

Knows no model.
"""

# F frames, H rows, W columns

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from connectors.errors import ConfigError, SourceError
from connectors.extras import optional
from connectors.options import REQUIRED, option
from models.tokenizers import Tokenizer, WordTokenizer
from models.training import OwnDataOptions, PreviewOptions, data_checksum

cv2 = optional("cv2")

__all__ = [
    "OWN_VIDEOS",
    "OwnVideoOptions",
    "Sample",
    "fingerprint",
    "read_samples",
    "require_words",
    "sample_frames",
    "stream_frames",
]

OWN_VIDEOS = ("annotations", "own videos with questions and answers")
"""The option that brings one's own data, and what it is called in the help."""


@dataclass(frozen=True, kw_only=True)
class OwnVideoOptions(PreviewOptions, OwnDataOptions):
    """What every training on own videos is asked for."""

    annotations: str = option(
        REQUIRED,
        "JSON file: a list of {video_path, conversations: [{question, answer, start_time?, end_time?}]}, times in seconds.",
        path=True,
    )
    checkpoint: str | None = option(
        None, "Model to start from: a checkpoint folder or a small model's file; default: the one in the package.", path=True
    )
    iterations: int = option(300, "Updates of the weights.", ge=1)
    batch: int = option(4, "Samples per update.", ge=1)


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

    def wanted(rate: float, total: int) -> list[int]:
        first = min(max(math.floor(sample.start_s * rate), 0), total - 1)
        last = total if sample.end_s is None else min(max(math.ceil(sample.end_s * rate), first + 1), total)
        count = min(most, last - first)
        spread: list[int] = (first + (np.arange(count) + 0.5) * (last - first) / count).astype(int).tolist()
        return spread

    frames = _decode(sample.video, wanted)
    if not frames:
        raise SourceError(f"{sample.video}: no frame between {sample.start_s} s and {sample.end_s} s could be decoded")
    return torch.from_numpy(np.stack(frames))


def stream_frames(video: Path, fps: float, most: int) -> Tensor:
    """Decode at most the first ``most`` frames of a video at ``fps``, as RGB [F, H, W, 3]. Raises ``SourceError``."""
    frames = _decode(video, lambda rate, total: [int(i * rate / fps) for i in range(most) if int(i * rate / fps) < total])
    if not frames:
        raise SourceError(f"{video}: no frame could be decoded")
    return torch.from_numpy(np.stack(frames))


def require_words(tokenizer: Tokenizer, samples: Sequence[Sample]) -> None:
    """Raise ``ConfigError`` where answers have words that a small model lacks: its words are fixed, so it cannot learn them."""
    if isinstance(tokenizer, WordTokenizer):
        unknown = sorted({word for sample in samples for word in tokenizer.unknown(sample.answer)})
        if unknown:
            raise ConfigError(
                f"annotations: the small model does not know the words {unknown[:8]} of the answers; it knows "
                f"{', '.join(tokenizer.words[2:])}; give a checkpoint folder of a larger model"
            )


def fingerprint(samples: Sequence[Sample]) -> str:
    """Say which questions are asked, so that a stopped training is not resumed with others. Videos may move."""
    said = repr([(one.video.name, one.start_s, one.end_s, one.question, one.answer) for one in samples])
    return f"{len(samples)} samples, checksum {data_checksum([list(said.encode())])}"


def _decode(path: Path, wanted: Callable[[float, int], list[int]]) -> list[NDArray[np.uint8]]:
    """Decode the frames that ``wanted`` names, given frame rate and number of frames."""
    video = cv2.VideoCapture(str(path))
    try:
        rate, total = video.get(cv2.CAP_PROP_FPS), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        if not video.isOpened() or rate <= 0 or total < 1:
            raise SourceError(f"{path}: cannot be read as a video; convert it, or remove it from the annotations")
        chosen = set(wanted(rate, total))
        frames: list[NDArray[np.uint8]] = []
        for index in range(max(chosen, default=-1) + 1):
            if not video.grab():
                break
            if index in chosen:
                frames.append(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
    finally:
        video.release()
    return frames
