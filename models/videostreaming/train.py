"""Training for VideoStreaming: the small model from films that the project renders, or the paper's three stages on own videos.

What ``streambank train videostreaming`` calls. The vision tower learns nothing here (in the paper it does in the last stage).
Knows nothing about streams of frames.
"""

# B samples, K clips

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from connectors.options import option
from models.answer_sheet import SHOWN, answer_sheet
from models.devices import resolve_device
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
from models.video_samples import (
    OWN_VIDEOS,
    OwnVideoOptions,
    Sample,
    fingerprint,
    read_samples,
    require_words,
    sample_frames,
    stream_frames,
)
from models.videostreaming.answering import Prompt, Shown, answer_prompts
from models.videostreaming.encoding import EncodedClip
from models.videostreaming.evaluate import select
from models.videostreaming.header import SMALL_WEIGHTS
from models.videostreaming.loaders import VideoStreaming, load_model, save_folder, save_model
from models.videostreaming.losses import Asked, Selecting, encode_streams, prefix_loss, stream_loss
from models.videostreaming.recipe import RECIPES, FilmsSchedule, run_recipe

__all__ = ["OWN_DATA", "RECIPES", "FilmsSchedule", "Options", "Progress", "TrainResult", "train"]

OWN_DATA = OWN_VIDEOS

_WARMUP = 0.03  # of all iterations
_GRADIENT_NORM = 1.0
_REPORTS = 50
_MAX_NEW_TOKENS = 32  # of an answer in a preview


@dataclass(frozen=True, kw_only=True)
class Options(OwnVideoOptions):
    """What can be set."""

    stage: Literal["captions", "instructions", "streaming"] = option(
        "streaming",
        "What is learned: `captions` and `instructions` of single clips through their summaries (projector, then encoder, "
        "too), or `streaming` with memories and selection (all but the vision tower).",
    )
    projector_rate: float = option(1e-3, "Highest rate of AdamW for the projectors; it rises and falls along a cosine.", gt=0)
    model_rate: float = option(2e-5, "The same for encoder and answering model.", gt=0)
    supervised: float = option(
        0.1, "Share of the updates of `streaming`, the first ones, that are told which clips hold the answer.", ge=0, le=1
    )
    most_clips: int = option(
        16, "Clips of a video that `streaming` looks at; what comes later is left out.", unit="clips", ge=1
    )
    bptt_clips: int = option(8, "Clips through whose memories gradients flow.", unit="clips", ge=1)
    checkpoint_activations: bool = option(False, "Compute the encoder twice in place of keeping its activations.")


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

    Either ``recipe`` (a name of ``RECIPES``; ``schedule`` shortens it for a trial); writes ``<recipe>.safetensors``. It runs on
    one thread whatever the setting, and the same seed gives the same weights, bit for bit on the same kind of processor with
    the same PyTorch.

    Or ``annotations=FILE`` with any other field of :class:`Options`: a stage of the paper's training (section 3.3) on own
    videos; writes ``model.safetensors`` (small model) or the folder ``model``. In `streaming` a question's ``start_time`` and
    ``end_time`` say where its answer is. Metrics: first and last mean loss.

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
    start = Path(options.checkpoint) if options.checkpoint is not None else SMALL_WEIGHTS
    clips_only = options.stage != "streaming"
    device = resolve_device(options.device, "training")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)  # of projectors that are not there yet
        ready = load_model(start, device=device, dtype=torch.float32, new_projectors=True, encoder_head=clips_only)
    require_words(ready.tokenizer, samples)
    names = ("stage", "iterations", "batch", "projector_rate", "model_rate", "supervised", "most_clips", "bptt_clips")
    settings = {
        "method": "videostreaming",
        "recipe": None,
        "seed": options.seed,
        **{name: getattr(options, name) for name in names},
        "annotations": fingerprint(samples),
        "start": weights_checksum(ready.model),
    }
    if (complete := training.open(settings)) is not None:
        return complete
    model, steps = ready.model, options.iterations
    projectors = nn.ModuleList([model.mm_projector] if clips_only else [model.mm_projector, model.memory_projector])
    large = {
        "captions": [],
        "instructions": [model.streaming_encoder, model.encoder_head],
        "streaming": [model.streaming_encoder, model.language_model, nn.ParameterList([model.sim_scale])],
    }[options.stage]
    rest = nn.ModuleList([part for part in large if part is not None])
    trained = nn.ModuleList([projectors, rest]).train().requires_grad_(True)
    if options.checkpoint_activations:
        model.streaming_encoder.gradient_checkpointing_enable()
    rng, draws = np.random.default_rng(options.seed), torch.Generator().manual_seed(options.seed)

    groups = [(list(projectors.parameters()), options.projector_rate), (list(rest.parameters()), options.model_rate)]
    groups = [(parameters, rate) for parameters, rate in groups if parameters]
    warm = max(1, round(_WARMUP * steps))

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        chosen = [samples[i] for i in rng.integers(len(samples), size=options.batch)]
        supervised = step < options.supervised * steps
        found = [
            {"text": _clip_loss(ready, one)} if clips_only else _stream_parts(ready, one, options, supervised, draws)
            for one in chosen
        ]
        keys = found[0].keys()
        yield {key: torch.stack([parts[key] for parts in found]).mean() for key in keys}

    def preview() -> Picture:
        with at_rest(trained):
            return answer_sheet(samples[:SHOWN], [_answer(ready, one, options.most_clips) for one in samples[:SHOWN]])

    training.run(
        Stage(
            name=options.stage,
            steps=steps,
            trained=trained,
            optimizer=torch.optim.AdamW([{"params": parameters, "lr": rate} for parameters, rate in groups]),
            losses=losses,
            rate=lambda step: [rate * min(warm_up(step, warm), cosine(step, steps)) for _, rate in groups],
            gradient_norm=_GRADIENT_NORM,
            report_every=max(1, steps // _REPORTS),
            generators=(rng, draws),
            preview=None if clips_only else preview,
        )
    )
    model.eval().requires_grad_(False)
    metrics = {"loss_first": training.first_loss, "loss_last": training.last_loss}
    return training.finish(_save(ready, start, training.path), metrics)


def _features(ready: VideoStreaming, frames_FHW3: Tensor) -> Tensor:
    with torch.no_grad():
        return ready.model.frame_tokens(frames_FHW3)


def _clip_loss(ready: VideoStreaming, sample: Sample) -> Tensor:
    """Return the loss of stage 1: the answer from the summaries of one clip, spread over the sample's time."""
    features_TNC = _features(ready, sample_frames(sample, ready.config.frames_per_clip))
    return prefix_loss(ready, features_TNC[None], [sample.question], [sample.answer])


def _stream_parts(
    ready: VideoStreaming, sample: Sample, options: Options, supervised: bool, draws: torch.Generator
) -> dict[str, Tensor]:
    """Return the losses of stage 2 for one question about a whole video."""
    length = ready.config.clip_seconds
    clips, times = _clips(ready, sample, options.most_clips)
    relevant_K = torch.zeros(len(clips), dtype=torch.bool)
    if sample.end_s is not None:
        first, stop = math.floor(sample.start_s / length), math.ceil(sample.end_s / length)
        relevant_K[min(first, len(clips) - 1) : max(stop, first + 1)] = True
    encoded = encode_streams(ready, [clips], [times], bptt_clips=options.bptt_clips)
    selecting = Selecting(weight=1.0 if supervised else 0.0)
    asked = Asked(0, sample.question, sample.answer, relevant_K)
    parts = stream_loss(ready, encoded, [times], [asked], selecting, draws).parts
    return parts | {"selection": parts["selection"] if supervised else torch.zeros((), device=ready.model.device)}


def _clips(ready: VideoStreaming, sample: Sample, most: int) -> tuple[list[Tensor], list[tuple[float, float]]]:
    """Return the features of the clips of a whole video, and when each begins and ends."""
    frames, length = ready.config.frames_per_clip, ready.config.clip_seconds
    pictures = stream_frames(sample.video, frames / length, most * frames)
    clips = list(torch.split(_features(ready, pictures), frames))
    return clips, [(k * length, k * length + len(clip) * length / frames) for k, clip in enumerate(clips)]


def _answer(ready: VideoStreaming, sample: Sample, most: int) -> str:
    """Answer a question at the end of its video, from the clips that it selects."""
    clips, times = _clips(ready, sample, most)
    encoded = encode_streams(ready, [clips], [times])
    every = [
        EncodedClip(memory[0], indicator_BD[0])
        for memory, indicator_BD in zip(encoded.memories, encoded.indicators, strict=True)
    ]
    ((places, _),) = select(ready, every, [sample.question])
    shown = [Shown(ready.shown_ids(*times[k]), every[k].memory_MD) for k in places]
    prompt = Prompt(ready.prefix_ids(), shown, ready.prompt_ids(sample.question))
    ((tokens,), _) = answer_prompts(ready.model, [prompt], [_MAX_NEW_TOKENS], ready.end_tokens)
    return ready.tokenizer.decode(tokens)


def _save(ready: VideoStreaming, start: Path, folder: Path) -> Path:
    ready.model.encoder_head = None if start.is_file() else ready.model.encoder_head
    if start.is_file():
        save_model(ready, folder / "model.safetensors")
        return folder / "model.safetensors"
    save_folder(ready, start, folder / "model")
    return folder / "model"
