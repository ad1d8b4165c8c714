"""Training of MAMBA: the small recipe, or a person's own annotated videos. What ``streambank train mamba`` calls.

Own videos are learned with the paper's sampling, losses, optimizer and schedule, a few boxes with a shorter one. Every draw is
a function of (seed, update).
Writes safetensors that the operator loads and ``training.json`` with the figures. Knows nothing about streams.
"""

# B images, H rows, W columns

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from connectors.errors import ConfigError
from connectors.options import REQUIRED, option
from models.devices import resolve_device
from models.hub import weights_file
from models.mamba import checkpoint
from models.mamba.annotations import AnnotatedVideos, read_annotations
from models.mamba.config import MambaConfig
from models.mamba.frames import FrameStore
from models.mamba.losses import TrainingRules, Truth, training_step
from models.mamba.model import Mamba
from models.mamba.preview import preview
from models.mamba.recipe import RECIPES, ShapesSchedule, run_recipe
from models.mamba.rollout import rollout_losses
from models.mamba.samples import Drawn, Sampler
from models.mamba.validation import validate
from models.training import (
    After,
    OwnDataOptions,
    PreviewOptions,
    Progress,
    ProgressCallback,
    Stage,
    Training,
    TrainResult,
    check_choice,
    cosine,
    data_checksum,
    one_thread,
    warm_up,
    weights_checksum,
)

__all__ = ["OWN_DATA", "RECIPES", "Options", "Progress", "ShapesSchedule", "TrainResult", "train"]

logger = logging.getLogger(__name__)

OWN_DATA = ("annotations", "own videos")
"""The option that brings one's own data, and what it is called in the help."""

_EPOCHS = 6
_DECAY_AT = 4 / 6  # of all iterations: after 4 of 6 epochs
_WARMUP_ITERATIONS, _WARMUP_FACTOR = 500, 1 / 3
_MOMENTUM, _WEIGHT_DECAY, _GRADIENT_NORM = 0.9, 1e-4, 35.0
_REPORT_EVERY = 50
_FEW_ITERATIONS, _FEW_WARMUP, _FEW_LAST, _FEW_WEIGHT_DECAY = 120, 20, 0.05, 1e-4
_FEW_REPORT_EVERY = 10
_FEW_VIEWS = 4
_FEW_RULES = TrainingRules(rpn_samples=64, roi_samples=32, reference_rois=12)  # of the small recipe


@dataclass(frozen=True, kw_only=True)
class Options(PreviewOptions, OwnDataOptions):
    """What can be set. Defaults are the published instance-level schedule (batch 8, 6 epochs)."""

    annotations: str = option(
        REQUIRED,
        "Boxes: COCO (.json, with videos or pictures only), a table (.csv: file,frame,label,x1,y1,x2,y2), or YOLO (.yaml).",
        path=True,
    )
    classes: list[str] | None = option(None, "Learn these categories only, in this order; default: all of the file.")
    images: str | None = option(None, "Folder that file_name counts from; default: the folder of the annotations.", path=True)
    validation: str | None = option(None, "A second such file, to measure mAP50 on; without it nothing is measured.", path=True)
    validation_images: str | None = option(
        None, "Folder of the validation pictures; default: the folder of that file.", path=True
    )
    init: str | None = option(
        None,
        "Weights to start from: a file (ours or official), package://mamba/shapes, or hf://ORG/NAME. Outputs of classes that "
        "they do not have start at random.",
        path=True,
    )
    backbone: str | None = option(None, "ImageNet weights of a ResNet in torchvision's layout; without `init` only.", path=True)
    network: dict[str, Any] = option({}, "Fields of MambaConfig that differ from the full-size model; without `init` only.")
    preset: Literal["published", "few"] = option(
        "published",
        "`few`: for a handful of boxes and small weights: AdamW, 120 updates, pictures zoomed, shifted and lit at random.",
    )
    max_long_side: int | None = option(
        None, "Scale frames to at most this long side, in training and later; default: that of the weights.", unit="px", ge=32
    )
    iterations: int | None = option(
        None, "Updates of the weights; default: 6 passes over the annotated frames, with `few` 120.", ge=1
    )
    batch: int = option(8, "Key frames per update; they are processed one after the other.", ge=1)
    learning_rate: float = option(1e-3, "For a batch of 8. It falls to a tenth after two thirds, with `few` smoothly.", gt=0)
    validate_every: int = option(2000, "Updates between validations; there is always one at the end.", unit="iterations", ge=1)

    def __post_init__(self) -> None:
        OwnDataOptions.__post_init__(self)
        if self.init is not None and (self.backbone is not None or self.network):
            raise ConfigError("init brings its own network and backbone; remove 'network' and 'backbone', or 'init'")


def train(
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: ProgressCallback | None = None,
    schedule: ShapesSchedule | None = None,
    **options: Any,
) -> TrainResult:
    """Train MAMBA and write its weights into the folder ``out``.

    Either ``recipe`` (a name of ``RECIPES``; ``schedule`` shortens it for a trial): about five minutes on one core; writes
    ``<recipe>.safetensors``, ``<recipe>_base.safetensors`` and their mAP50. It runs on one thread whatever the setting, and
    the same seed gives the same weights, bit for bit on the same kind of processor with the same PyTorch.

    Or ``annotations=FILE`` with any other field of :class:`Options`: fine-tuning on own videos; writes ``model.safetensors``:
    the last weights, or those of the best validation where there is one; and ``previews``: what is found on frames of the
    validation, or of the own videos where there is none.

    ``resume``: go on from the folder's checkpoint if there is one; a complete training is returned as it is. ``progress`` is
    called some times per minute. Raises ``ConfigError`` for what cannot be used, ``CheckpointMismatch`` for unusable weights,
    ``DeviceError``.
    """
    check_choice(recipe, options, recipes=RECIPES, options_type=Options, own_data=OWN_DATA[0], trial=("schedule", schedule))
    if recipe is None:
        own = Options(seed=seed, **options)
        every = {"checkpoint_every": own.checkpoint_every, "preview_every": own.preview_every}
        return _finetune(own, Training(Path(out), resume=resume, progress=progress, **every))
    with one_thread():
        return run_recipe(Training(Path(out), resume=resume, progress=progress), recipe, seed, schedule)


def _finetune(options: Options, training: Training) -> TrainResult:
    device = resolve_device(options.device, "training")
    videos = read_annotations(options.annotations, options.images, only=options.classes)
    held_out = None
    if options.validation is not None:
        held_out = read_annotations(options.validation, options.validation_images, only=options.classes)
        held_out = held_out.with_classes(videos.classes)
    model = _build(options, videos.classes).to(device)
    if options.preset == "few" and model.pixel is not None:
        raise ConfigError("preset 'few' trains the instance level; these weights have a pixel level too: use 'published'")
    for part in (videos, held_out):
        if part is not None:
            _check_sizes(model, part)
    store = FrameStore(videos, training.path / "frames")
    validation = None if held_out is None else FrameStore(held_out, training.path / "validation_frames")
    few = options.preset == "few"
    sampler = Sampler(store, options.seed)
    iterations = options.iterations or (_FEW_ITERATIONS if few else max(1, _EPOCHS * len(sampler) // options.batch))
    settings = {
        "method": "mamba",
        "recipe": None,
        "seed": options.seed,
        "iterations": iterations,
        "batch": options.batch,
        "learning_rate": options.learning_rate,
        "annotations": _fingerprint(videos),
        "preset": options.preset,
        "network": model.config.to_json(),
        "start": weights_checksum(model),
    }
    if (complete := training.open(settings)) is not None:
        return complete
    store.extract()
    if validation is not None:
        validation.extract()

    weights = training.path / "model.safetensors"
    state: dict[str, Any] = {"best": None}

    def after(done: int) -> After | None:
        if validation is None or (done < iterations and done % options.validate_every):
            return None
        map50 = validate(model, validation).mean
        model.train()
        if state["best"] is None or map50 >= state["best"]:
            state["best"] = map50
            checkpoint.save(model, weights)
        return After(f"mAP50 {map50:.3f}")

    small = (
        few and model.config.backbone == "conv5"
    )  # which gains nothing by a second thread, and waits for it on a busy machine
    with (
        one_thread() if small else contextlib.nullcontext(),
        ThreadPoolExecutor(max_workers=2, thread_name_prefix="frames") as pool,
    ):
        training.run(
            Stage(
                name="finetune",
                steps=iterations,
                trained=model.train(),
                optimizer=_optimizer(model, options),
                losses=_view_losses(model, sampler, options) if few else _Losses(model, sampler, options, iterations, pool),
                rate=lambda step: options.learning_rate * (_few_rate if few else _rate)(step, iterations),
                gradient_norm=_GRADIENT_NORM,
                report_every=_FEW_REPORT_EVERY if few else _REPORT_EVERY,
                state=state,
                after=after,
                preview=lambda: preview(model, store if validation is None else validation),
            )
        )
    metrics = {"iterations": float(iterations), "loss": training.last_loss}
    if state["best"] is None:
        checkpoint.save(model, weights)
    else:
        metrics["map50"] = state["best"]
    return training.finish(weights, metrics)


class _Losses:
    """Losses of the key frames of an update, one after the other; reads the pictures of the next update meanwhile."""

    def __init__(self, model: Mamba, sampler: Sampler, options: Options, iterations: int, pool: ThreadPoolExecutor) -> None:
        self._model, self._sampler, self._options, self._iterations, self._pool = model, sampler, options, iterations, pool
        self._device = next(model.parameters()).device
        self._waiting: list[Future[Drawn]] = []

    def __call__(self, step: int) -> Iterator[Mapping[str, Tensor]]:
        """Yield one loss per key frame, in parts."""
        batch = self._options.batch
        samples = [future.result() for future in self._waiting or self._ask(step)]
        self._waiting = self._ask(step + 1) if step + 1 < self._iterations else []
        generator = torch.Generator().manual_seed(_mix(self._options.seed, step))
        for sample in samples:
            parts = _sample_losses(self._model, sample, self._device, generator)
            yield {name: loss / batch for name, loss in parts.items()}

    def _ask(self, step: int) -> list[Future[Drawn]]:
        batch = self._options.batch
        return [self._pool.submit(self._sampler.draw, step * batch + k) for k in range(batch)]


def _view_losses(model: Mamba, sampler: Sampler, options: Options) -> Callable[[int], Iterator[Mapping[str, Tensor]]]:
    """Return the losses of an update from a few boxes: clips of views of annotated frames, gone through as streams are."""
    device = next(model.parameters()).device
    views = min(options.batch, _FEW_VIEWS)
    clips = max(1, options.batch // views)

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        generator = torch.Generator().manual_seed(_mix(options.seed, step))
        for clip in range(clips):
            drawn = sampler.draw_views(step * clips + clip, views)
            images = model.prepare([torch.from_numpy(one.key) for one in drawn], device)
            scale_4 = images.scales_B2[0, [1, 0, 1, 0]]
            truth = [
                Truth(torch.from_numpy(one.boxes_G4).to(device) * scale_4, torch.from_numpy(one.labels_G).to(device))
                for one in drawn
            ]
            parts = rollout_losses(model, images, truth, views, generator, _FEW_RULES, memory=True)
            yield {name: loss / clips for name, loss in parts.items()}

    return losses


def _sample_losses(model: Mamba, sample: Drawn, device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    keys = model.prepare([torch.from_numpy(sample.key)], device)
    references = model.prepare([torch.from_numpy(image) for image in sample.references], device)
    boxes_G4 = torch.from_numpy(sample.boxes_G4).to(device) * keys.scales_B2[0, [1, 0, 1, 0]]
    truth = [Truth(boxes_G4, torch.from_numpy(sample.labels_G).to(device))]
    return training_step(model, keys, references, truth, generator)


def _optimizer(model: Mamba, options: Options) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.preset == "few":
        return torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=_FEW_WEIGHT_DECAY)
    return torch.optim.SGD(trained, lr=options.learning_rate, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)


def _few_rate(step: int, iterations: int) -> float:
    """Return the factor of the schedule for a few boxes: linear warm-up, then a cosine."""
    return warm_up(step, _FEW_WARMUP) * cosine(step, iterations, _FEW_LAST)


def _rate(step: int, iterations: int) -> float:
    """Return the factor of the published schedule: linear warm-up, a tenth after two thirds."""
    warmup = min(_WARMUP_ITERATIONS, iterations // 10)
    factor = 0.1 if step >= _DECAY_AT * iterations else 1.0
    if step < warmup:
        factor *= _WARMUP_FACTOR + (1.0 - _WARMUP_FACTOR) * step / warmup
    return factor


def _build(options: Options, classes: tuple[str, ...]) -> Mamba:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if options.init is None:
            model = Mamba(_sized(MambaConfig.from_json({**options.network, "classes": classes}), options))
            if options.backbone is not None:
                checkpoint.load_backbone(model, options.backbone)
            return model
        start = checkpoint.load(weights_file(options.init))
        start.config = _sized(start.config, options)
        if start.config.classes == classes:
            return start
        model = Mamba(dataclasses.replace(start.config, classes=classes))
    state, own = start.state_dict(), model.state_dict()
    known = {name: label for label, name in enumerate(start.config.classes)}
    pairs = [(label, known[name]) for label, name in enumerate(classes) if name in known]
    logger.info("init=%s classes=%d of which known=%d", options.init, len(classes), len(pairs))
    for name in state:
        if not name.startswith(("head.logits.", "head.deltas.")):
            own[name] = state[name]
            continue
        rows = 4 if name.startswith("head.deltas.") else 1
        for new, old in pairs:
            own[name][new * rows : (new + 1) * rows] = state[name][old * rows : (old + 1) * rows]
        if rows == 1:
            own[name][-1] = state[name][-1]  # background
    model.load_state_dict(own)
    return model


def _sized(config: MambaConfig, options: Options) -> MambaConfig:
    """Return the settings with the size of frames that was asked for; the short side keeps its share."""
    side = options.max_long_side
    if side is None:
        return config
    short = max(16, round(config.max_short_side * side / config.max_long_side))
    return dataclasses.replace(config, max_long_side=side, max_short_side=short)


def _check_sizes(model: Mamba, videos: AnnotatedVideos) -> None:
    for height, width in np.unique(videos.size_I2, axis=0).tolist():
        if model.is_too_small(height, width):
            raise ConfigError(f"images of {width}x{height} px are too small or too narrow after resizing; remove their entries")


def _fingerprint(videos: AnnotatedVideos) -> str:
    checksum = data_checksum((videos.video_I, videos.frame_I, videos.first_I, videos.boxes_N4, videos.labels_N))
    return f"{len(videos)} frames, {len(videos.labels_N)} objects, checksum {checksum}"


def _mix(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, 2, step]).generate_state(1)[0])
