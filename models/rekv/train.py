"""Training for ReKV, which has no weights of its own: the small video-language model from films that the project renders,
or any supported model on a person's own videos. What ``streambank train rekv`` calls.

Fine-tuning on own videos leaves the vision tower as it is; it starts from a checkpoint folder or a small model's file and
writes the same form. Knows nothing about streams.
"""

# B samples

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from connectors.errors import ConfigError
from connectors.options import option
from models.answer_loss import AnswerLoss, answer_loss, pack
from models.answer_sheet import SHOWN, answer_sheet
from models.devices import resolve_device
from models.prompts import PromptTemplate
from models.rekv.checkpoint import load_checkpoint
from models.rekv.families import FAMILIES
from models.rekv.header import SMALL_WEIGHTS, read_model_type
from models.rekv.recipe import RECIPES, FilmsSchedule, run_recipe
from models.rekv.small import SmallModel, load_small, save_small
from models.rekv.vision import FrameEncoder
from models.tokenizers import FolderTokenizer, Tokenizer
from models.training import (
    Picture,
    Progress,
    ProgressCallback,
    Stage,
    Training,
    TrainResult,
    at_rest,
    check_choice,
    cosine,
    one_thread,
    warm_up,
    weights_checksum,
)
from models.video_samples import OWN_VIDEOS, OwnVideoOptions, Sample, fingerprint, read_samples, require_words, sample_frames

__all__ = ["OWN_DATA", "RECIPES", "FilmsSchedule", "Options", "Progress", "TrainResult", "train"]

OWN_DATA = OWN_VIDEOS

_WARMUP = 0.05  # of all iterations
_GRADIENT_NORM = 1.0
_REPORTS = 50


@dataclass(frozen=True, kw_only=True)
class Options(OwnVideoOptions):
    """What can be set."""

    trained: Literal["projector", "projector_and_decoder"] = option(
        "projector_and_decoder", "Which parts learn; the vision tower never does."
    )
    frames: int = option(16, "Most frames of a sample, spread evenly over its time.", unit="frames", ge=1)
    learning_rate: float = option(1e-4, "Highest rate of AdamW; it rises and falls along a cosine.", gt=0)
    validation: float = option(0.1, "Share of the samples, the last ones, that is held out and measured on.", ge=0, lt=1)


@dataclass(slots=True, eq=False)
class _Learner:
    """A model in memory with its tokenizer, whatever it was read from."""

    model: Any
    family: str
    tokenizer: Tokenizer
    prompts: PromptTemplate
    end: int
    small: SmallModel | None


def train(
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    schedule: FilmsSchedule | None = None,
    **options: Any,
) -> TrainResult:
    """Train a model and write its weights into the folder ``out``.

    Either ``recipe`` (a name of ``RECIPES``; ``schedule`` shortens it for a trial): about ten minutes on one core; writes
    ``<recipe>.safetensors``. It runs on one thread whatever the setting, and the same seed gives the same weights, bit for bit
    on the same kind of processor with the same PyTorch.

    Or ``annotations=FILE`` with any other field of :class:`Options`: fine-tuning on own videos; writes ``model.safetensors``
    (small model) or the folder ``model``. Metrics: first and last mean loss, and where samples are held out the share of their
    answers of which every token is the most likely one.

    ``resume``: go on from the folder's checkpoint if there is one; a complete training is returned as it is. ``progress`` is
    called some times per minute. Raises ``ConfigError`` for what cannot be used, ``SourceError`` for a video that cannot be
    read, ``CheckpointMismatch``, ``DeviceError``.
    """
    check_choice(recipe, options, recipes=RECIPES, options_type=Options, own_data=OWN_DATA[0], trial=("schedule", schedule))
    if recipe is None:
        own = Options(seed=seed, **options)
        every = {"checkpoint_every": own.checkpoint_every, "preview_every": own.preview_every}
        return _finetune(own, Training(Path(out), resume=resume, progress=progress, **every))
    with one_thread():
        return run_recipe(Training(Path(out), resume=resume, progress=progress), recipe, seed, schedule)


def _finetune(options: Options, training: Training) -> TrainResult:
    samples = read_samples(Path(options.annotations))
    held_out = round(options.validation * len(samples))
    shown, validation = samples[: len(samples) - held_out], samples[len(samples) - held_out :]
    if not shown:
        raise ConfigError(
            f"validation is {options.validation:g} of {len(samples)} samples: none is left to learn from; lower it"
        )
    learner = _open(options)
    require_words(learner.tokenizer, samples)
    settings = {
        "method": "rekv",
        "recipe": None,
        "seed": options.seed,
        **{
            name: getattr(options, name) for name in ("trained", "frames", "iterations", "batch", "learning_rate", "validation")
        },
        "annotations": fingerprint(samples),
        "start": weights_checksum(learner.model),
    }
    if (complete := training.open(settings)) is not None:
        return complete

    core, steps = learner.model.model, options.iterations
    learner.model.requires_grad_(False)
    parts = [core.multi_modal_projector] + ([core.language_model] if options.trained == "projector_and_decoder" else [])
    trained = nn.ModuleList(parts).train().requires_grad_(True)
    rng = np.random.default_rng(options.seed)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        chosen = [shown[i] for i in rng.integers(len(shown), size=options.batch)]
        yield {"answers": _loss(learner, chosen, options.frames).loss}

    asked = (validation or shown)[:SHOWN]

    def preview() -> Picture:
        with at_rest(trained):
            said = _loss(learner, asked, options.frames).said
        return answer_sheet(asked, [learner.tokenizer.decode(tokens.tolist()[:-1]) for tokens in said])  # the end token

    warm = max(1, round(_WARMUP * steps))
    training.run(
        Stage(
            name="finetune",
            steps=steps,
            trained=trained,
            optimizer=torch.optim.AdamW(trained.parameters(), lr=options.learning_rate),
            losses=losses,
            rate=lambda step: options.learning_rate * min(warm_up(step, warm), cosine(step, steps)),
            gradient_norm=_GRADIENT_NORM,
            report_every=max(1, steps // _REPORTS),
            generators=(rng,),
            preview=preview,
        )
    )
    learner.model.eval().requires_grad_(False)
    metrics = {"loss_first": training.first_loss, "loss_last": training.last_loss}
    if validation:
        with torch.inference_mode():
            starts = range(0, len(validation), options.batch)
            right = [_loss(learner, validation[i : i + options.batch], options.frames).right_B for i in starts]
        metrics["validation_accuracy"] = float(torch.cat(right).float().mean())
    return training.finish(_save(learner, options, training.path), metrics)


def _open(options: Options) -> _Learner:
    path = Path(options.checkpoint) if options.checkpoint is not None else SMALL_WEIGHTS
    device = resolve_device(options.device, "training")
    if path.is_file():
        small = load_small(path)
        return _Learner(small.model.to(device), "llava_onevision", small.tokenizer, small.prompts, small.tokenizer.end, small)
    family = read_model_type(path)
    model: Any = load_checkpoint(path, device=device, dtype=torch.float32)
    FrameEncoder.of(model, family)  # refuses families with frames of any size
    ends = model.generation_config.eos_token_id
    end = ends if isinstance(ends, int) else (ends or [model.config.text_config.eos_token_id])[0]
    return _Learner(model, family, FolderTokenizer(path), FAMILIES[family].prompts, end, None)


def _loss(learner: _Learner, samples: Sequence[Sample], frames: int) -> AnswerLoss:
    encoder, tokenizer = FrameEncoder.of(learner.model, learner.family), learner.tokenizer
    features = [encoder.tokens(sample_frames(sample, frames)).flatten(0, 1) for sample in samples]
    prefix = tokenizer.encode(learner.prompts.prefix, start=True)
    prompts = [tokenizer.encode(learner.prompts.open_ended(sample.question)) for sample in samples]
    answers = [[*tokenizer.encode(sample.answer), learner.end] for sample in samples]
    decoder = learner.model.model.language_model
    return answer_loss(decoder, learner.model.lm_head, pack(decoder, prefix, features, prompts, answers))


def _save(learner: _Learner, options: Options, folder: Path) -> Path:
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
