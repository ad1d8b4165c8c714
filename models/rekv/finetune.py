"""Fine-tuning a video-language model on own short videos with questions and answers; the vision tower stays frozen.

Reads annotations in the form of the paper's evaluation files and decodes frames as they are needed. Starts from a checkpoint
folder or a small model's file and writes the same form. Knows nothing about streams.
"""

# B samples, F frames, H rows, W columns

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from connectors.errors import ConfigError, DeviceError, SourceError
from connectors.extras import optional
from connectors.options import REQUIRED, option
from models.rekv.checkpoint import load_checkpoint, read_model_type
from models.rekv.films_recipe import Progress
from models.rekv.instruction import AnswerLoss, answer_loss, pack
from models.rekv.loaders import FolderTokenizer, Tokenizer
from models.rekv.prompts import PROMPTS, PromptTemplate
from models.rekv.small import SMALL_WEIGHTS, SmallModel, WordTokenizer, load_small, save_small
from models.rekv.vision import FrameEncoder

cv2 = optional("cv2")

__all__ = ["FinetuneOptions", "FinetuneResult", "Sample", "finetune", "read_samples"]


_WARMUP = 0.05  # of all iterations
_GRADIENT_NORM = 1.0
_REPORTS = 50
_PARTS = ("projector", "projector_and_decoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneOptions:
    """What can be set."""

    annotations: str = option(
        REQUIRED,
        "JSON file: a list of {video_path, conversations: [{question, answer, start_time?, end_time?}]}, times in seconds.",
        path=True,
    )
    checkpoint: str | None = option(
        None, "Model to start from: a checkpoint folder or a small model's file; default: the one in the package.", path=True
    )
    trained: str = option("projector_and_decoder", "Which parts learn; the vision tower never does.", choices=_PARTS)
    frames: int = option(16, "Most frames of a sample, spread evenly over its time.", unit="frames", ge=1)
    iterations: int = option(300, "Updates of the weights.", ge=1)
    batch: int = option(4, "Samples per update.", ge=1)
    learning_rate: float = option(1e-4, "Highest rate of AdamW; it rises and falls along a cosine.", gt=0)
    validation: float = option(0.1, "Share of the samples, the last ones, that is held out and measured on.", ge=0, lt=1)
    seed: int = option(0, "Of all draws.", ge=0)
    device: str = option("cpu", "cpu, cuda or cuda:N.")


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What one fine-tuning made."""

    weights: Path
    """A file or a folder, as what it started from."""
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about (a part of) one video."""

    video: Path
    start_s: float
    end_s: float | None
    question: str
    answer: str


@dataclass(slots=True, eq=False)
class _Learner:
    """A model in memory with its tokenizer, whatever it was read from."""

    model: Any
    family: str
    tokenizer: Tokenizer
    prompts: PromptTemplate
    end: int
    small: SmallModel | None


def finetune(options: FinetuneOptions, folder: Path, progress: Callable[[Progress], None] | None = None) -> FinetuneResult:
    """Train and write ``model.safetensors`` (small model) or the folder ``model`` below ``folder``.

    Metrics: first and last mean loss, and where samples are held out the share of their answers of which every token is the
    most likely one. Raises ``ConfigError`` for annotations that cannot be used, ``SourceError`` for a video that cannot be
    read, ``CheckpointMismatch``, ``DeviceError``.
    """
    samples = read_samples(Path(options.annotations))
    held_out = round(options.validation * len(samples))
    training, validation = samples[: len(samples) - held_out], samples[len(samples) - held_out :]
    learner = _open(options)
    _check_words(learner.tokenizer, samples)
    core = learner.model.model
    parts = [core.multi_modal_projector] + ([core.language_model] if options.trained == "projector_and_decoder" else [])
    learner.model.requires_grad_(False)
    parameters = [parameter for part in parts for parameter in part.train().requires_grad_(True).parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=options.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, options.iterations))
    rng = np.random.default_rng(options.seed)
    losses: list[float] = []
    every = max(1, options.iterations // _REPORTS)
    for step in range(1, options.iterations + 1):
        chosen = [training[i] for i in rng.integers(len(training), size=options.batch)]
        loss = _loss(learner, chosen, options.frames).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
        optimiser.step()
        scheduler.step()
        losses.append(loss.item())
        if progress is not None and step % every == 0:
            progress(Progress("finetune", step, options.iterations, float(np.mean(losses[-every:]))))
    learner.model.eval().requires_grad_(False)
    metrics = {"loss_first": float(np.mean(losses[:every])), "loss_last": float(np.mean(losses[-every:]))}
    if validation:
        with torch.inference_mode():
            starts = range(0, len(validation), options.batch)
            right = [_loss(learner, validation[i : i + options.batch], options.frames).right_B for i in starts]
        metrics["validation_accuracy"] = float(torch.cat(right).float().mean())
    return FinetuneResult(_save(learner, options, folder), metrics)


def read_samples(file: Path) -> list[Sample]:
    """Read annotations. Relative paths of videos count from the file. Raises ``ConfigError`` that names the entry."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
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


def _open(options: FinetuneOptions) -> _Learner:
    path = Path(options.checkpoint) if options.checkpoint is not None else SMALL_WEIGHTS
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(
            f"device: {options.device!r} cannot be used: {str(error).splitlines()[0]}; use cpu or cuda:N"
        ) from error
    if path.is_file():
        small = load_small(path)
        return _Learner(small.model.to(device), "llava_onevision", small.tokenizer, small.prompts, small.tokenizer.end, small)
    family = read_model_type(path)
    model: Any = load_checkpoint(path, device=device, dtype=torch.float32)
    FrameEncoder.of(model, family)  # refuses families without a vision side
    ends = model.generation_config.eos_token_id
    end = ends if isinstance(ends, int) else (ends or [model.config.text_config.eos_token_id])[0]
    return _Learner(model, family, FolderTokenizer(path), PROMPTS[family], end, None)


def _check_words(tokenizer: Tokenizer, samples: Sequence[Sample]) -> None:
    """The small model's words are fixed: an answer with another word cannot be learnt."""
    if isinstance(tokenizer, WordTokenizer):
        unknown = sorted({word for sample in samples for word in tokenizer.unknown(sample.answer)})
        if unknown:
            raise ConfigError(
                f"annotations: the small model does not know the words {unknown[:8]} of the answers; it knows "
                f"{', '.join(tokenizer.words[2:])}; give a checkpoint folder of a larger model"
            )


def _loss(learner: _Learner, samples: Sequence[Sample], frames: int) -> AnswerLoss:
    encoder, tokenizer = FrameEncoder.of(learner.model, learner.family), learner.tokenizer
    features = [encoder.tokens(sample_frames(sample, frames)).flatten(0, 1) for sample in samples]
    prefix = tokenizer.encode(learner.prompts.prefix, start=True)
    prompts = [tokenizer.encode(learner.prompts.open_ended(sample.question)) for sample in samples]
    answers = [[*tokenizer.encode(sample.answer), learner.end] for sample in samples]
    decoder = learner.model.model.language_model
    return answer_loss(decoder, learner.model.lm_head, pack(decoder, prefix, features, prompts, answers))


def _save(learner: _Learner, options: FinetuneOptions, folder: Path) -> Path:
    if learner.small is not None:
        save_small(learner.small, folder / "model.safetensors")
        return folder / "model.safetensors"
    target = folder / "model"
    learner.model.save_pretrained(target)
    for file in Path(str(options.checkpoint)).iterdir():
        if (
            file.suffix in (".json", ".txt", ".model", ".jinja")
            and not (target / file.name).exists()
            and "index" not in file.name
        ):
            shutil.copy(file, target / file.name)
    return target


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(_WARMUP * steps))
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))
