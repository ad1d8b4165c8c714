"""The small recipe: train a detector on moving shapes in minutes on one CPU core, with memory and, for comparison, without.

Stages ``heads``, ``easy`` and ``hard`` train the plain detector. ``memory`` adds the attention, whose output projection
starts at zero, so that training starts exactly at the plain detector; ``control`` is the plain detector with the same frames,
steps and learning rate. Everything is a function of the seed (bit for bit for a given number of threads).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from connectors.errors import ConfigError
from models.mamba import checkpoint
from models.mamba.config import MambaConfig
from models.mamba.evaluate import Found, Objects, mean_average_precision
from models.mamba.losses import TrainingRules, Truth
from models.mamba.model import Mamba
from models.mamba.rollout import MemoryRules, detect_clip, rollout_losses
from models.mamba.shapes import Scene, ShapesConfig, make_scene
from models.training import Stage, Training, TrainResult, cosine, warm_up

__all__ = [
    "RECIPES",
    "SHAPES_MEMORY",
    "ShapesSchedule",
    "ShapesWeights",
    "evaluate_shapes",
    "run_recipe",
    "shapes_model_config",
    "train_shapes",
]

RECIPES: dict[str, ShapesConfig] = {"shapes": ShapesConfig(), "shapes_binding": ShapesConfig(mode="binding")}
"""Ready recipes by name."""

SHAPES_MEMORY = MemoryRules(write_topk=12, max_length=600, key_length=120)
"""Bank of the small recipe; the operator needs the same numbers."""

_RULES = TrainingRules(rpn_samples=64, roi_samples=32, reference_rois=SHAPES_MEMORY.write_topk)
_GRADIENT_NORM = 10.0
_WARMUP_STEPS, _LAST_FACTOR = 50, 0.02
_REPORT_EVERY = 50
_TRAINING_SEEDS = (1 << 31, 1 << 32)
"""Clips for training are drawn from here, so that every smaller seed is a fresh clip."""
_FRESH_CLIPS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapesSchedule:
    """Steps, batches and learning rates of the recipe. Each stage: AdamW, 50 steps of warm-up, cosine decay to 2 %."""

    heads_steps: int = 300
    """With the random backbone frozen: from free features the proposal loss, strong at first, drives all color out."""
    heads_rate: float = 1e-3
    easy_steps: int = 1000
    easy_degraded: float = 0.15
    easy_rate: float = 1e-3
    hard_steps: int = 300
    hard_rate: float = 1e-3
    batch: int = 8
    """Frames per step of the first three stages."""
    memory_steps: int = 600
    memory_rate: float = 1e-3
    clips: int = 4
    """Clips per step of ``memory`` and ``control``."""
    clip_frames: int = 6
    """Frames of each clip, in order, drawn from all of it."""


@dataclass(frozen=True, slots=True)
class ShapesWeights:
    """What the recipe makes."""

    memory: Mamba
    control: Mamba
    """The plain detector with the same training besides; its attention adds zero."""
    base: Mamba
    """The plain detector after stage 1."""


def shapes_model_config(shapes: ShapesConfig) -> MambaConfig:
    """Return the small detector's config: five convolutions, three square anchors, 690 thousand parameters."""
    return MambaConfig(
        classes=shapes.class_names,
        backbone="conv5",
        channels=(24, 48, 64, 96, 96),
        neck_channels=48,
        fc_channels=128,
        heads=4,
        anchor_scales=(1.25, 2.0, 3.0),  # 20, 32 and 48 px
        anchor_ratios=(1.0,),
        proposals=30,
        train_proposals=60,
        max_long_side=shapes.size,
        max_short_side=shapes.size,
    )


def run_recipe(training: Training, recipe: str, seed: int, schedule: ShapesSchedule | None = None) -> TrainResult:
    """Train a recipe and measure it on fresh clips; write ``<recipe>.safetensors`` and ``<recipe>_base.safetensors``."""
    shapes, schedule = RECIPES[recipe], schedule or ShapesSchedule()
    settings = {"method": "mamba", "recipe": recipe, "seed": seed, "schedule": dataclasses.asdict(schedule)}
    if (complete := training.open(settings | {"shapes": dataclasses.asdict(shapes)})) is not None:
        return complete
    models = train_shapes(seed=seed, shapes=shapes, schedule=schedule, training=training)
    weights, control = training.path / f"{recipe}.safetensors", training.path / f"{recipe}_base.safetensors"
    checkpoint.save(models.memory, weights)
    checkpoint.save(models.control, control)
    scenes = [make_scene(shapes, number) for number in range(_FRESH_CLIPS)]
    metrics = {
        "map50_base": evaluate_shapes(models.base, scenes, memory=False),
        "map50_control": evaluate_shapes(models.control, scenes, memory=False),
        "map50_memory": evaluate_shapes(models.memory, scenes, memory=True),
    }
    bank = {f"bank_{name}": float(value) for name, value in dataclasses.asdict(SHAPES_MEMORY).items()}
    return training.finish(weights, metrics | bank, control=control)


def train_shapes(
    *,
    seed: int = 0,
    shapes: ShapesConfig | None = None,
    schedule: ShapesSchedule | None = None,
    control: bool = True,
    training: Training | None = None,
) -> ShapesWeights:
    """Train all stages and return the three detectors. Without ``control`` that one is the untouched base."""
    shapes, schedule, training = shapes or ShapesConfig(), schedule or ShapesSchedule(), training or Training()
    if schedule.clip_frames > shapes.frames:
        raise ConfigError(f"clip_frames is {schedule.clip_frames}, but clips have {shapes.frames} frames; lower it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base, with_memory, without = (Mamba(shapes_model_config(shapes)) for _ in range(3))
    for attention in base.head.attention:
        for parameter in attention.output.parameters():  # type: ignore[union-attr]
            nn.init.zeros_(parameter)
    stages = {
        "heads": (schedule.heads_steps, schedule.heads_rate),
        "easy": (schedule.easy_steps, schedule.easy_rate),
        "hard": (schedule.hard_steps, schedule.hard_rate),
        "memory": (schedule.memory_steps, schedule.memory_rate),
        "control": (schedule.memory_steps, schedule.memory_rate),
    }
    kept = nn.ModuleDict({"base": base, "memory": with_memory, "control": without})

    def single_frames(config: ShapesConfig) -> _Draw:
        return lambda rng: [(_training_scene(config, rng), int(rng.integers(config.frames))) for _ in range(schedule.batch)]

    def whole_clips(rng: np.random.Generator) -> list[tuple[Scene, int]]:
        chosen = []
        for _ in range(schedule.clips):
            scene = _training_scene(shapes, rng)
            times = np.sort(rng.choice(shapes.frames, schedule.clip_frames, replace=False))
            chosen += [(scene, int(t)) for t in times]
        return chosen

    def run(name: str, model: Mamba, draw: _Draw, clips: int, clip_frames: int = 1, memory: bool = False) -> None:
        """``clips``: the number of the sequence of clips."""
        steps, rate = stages[name]
        rng = np.random.default_rng([seed, clips])
        training.run(_stage(name, model.train(), kept, steps, rate, draw, rng, clip_frames, memory))

    easy = single_frames(dataclasses.replace(shapes, degraded=schedule.easy_degraded))
    base.backbone.requires_grad_(False)
    run("heads", base, easy, 0)
    base.backbone.requires_grad_(True)
    run("easy", base, easy, 1)
    run("hard", base, single_frames(shapes), 2)
    for model in (with_memory, without):
        model.load_state_dict(base.state_dict())
    run("memory", with_memory, whole_clips, 3, schedule.clip_frames, memory=True)
    if control:  # over the same clips
        run("control", without, whole_clips, 3, schedule.clip_frames)
    return ShapesWeights(with_memory.eval(), without.eval(), base.eval())


def evaluate_shapes(model: Mamba, scenes: Sequence[Scene], *, memory: bool, seed: int = 0) -> float:
    """Return mAP at IoU 0.5 over all frames of the clips, each gone through causally from an empty memory."""
    truth, found = [], []
    generator = torch.Generator().manual_seed(seed)
    image = 0
    for scene in scenes:
        clip = (torch.from_numpy(scene.frame(t)) for t in range(scene.config.frames))
        for t, detections in enumerate(detect_clip(model, clip, SHAPES_MEMORY, generator, memory=memory)):
            truth.append((np.full(len(scene.labels_O), image), scene.boxes_TO4[t], scene.labels_O))
            found.append((np.full(len(detections.labels_D), image), *(column.numpy() for column in detections)))
            image += 1
    image_N, boxes_N4, labels_N = (np.concatenate(column) for column in zip(*truth, strict=True))
    image_D, boxes_D4, scores_D, labels_D = (np.concatenate(column) for column in zip(*found, strict=True))
    precision = mean_average_precision(
        Objects(image_N, boxes_N4, labels_N),
        Found(image_D, boxes_D4, labels_D, scores_D),
        classes=len(model.config.classes),
        published=False,
    )
    return precision.mean


_Draw = Callable[[np.random.Generator], list[tuple[Scene, int]]]
"""Draws the frames of one update."""


def _training_scene(config: ShapesConfig, rng: np.random.Generator) -> Scene:
    return make_scene(config, int(rng.integers(*_TRAINING_SEEDS)))


def _stage(
    name: str,
    model: Mamba,
    kept: nn.Module,
    steps: int,
    rate: float,
    draw: _Draw,
    rng: np.random.Generator,
    clip_frames: int,
    memory: bool,
) -> Stage:
    """Return a stage whose draws follow from ``rng`` alone, so that memory and control go over the same frames."""
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        frames = draw(rng)
        images = model.prepare([torch.from_numpy(scene.frame(t)) for scene, t in frames], "cpu")
        truth = [Truth(torch.from_numpy(scene.boxes_TO4[t]), torch.from_numpy(scene.labels_O)) for scene, t in frames]
        yield rollout_losses(model, images, truth, clip_frames, generator, _RULES, memory=memory)

    return Stage(
        name=name,
        steps=steps,
        trained=model,
        kept=kept,
        optimizer=torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4),
        losses=losses,
        rate=lambda step: rate * (warm_up(step, _WARMUP_STEPS) * cosine(step, steps, _LAST_FACTOR)),
        gradient_norm=_GRADIENT_NORM,
        report_every=_REPORT_EVERY,
        generators=(rng, generator),
    )
