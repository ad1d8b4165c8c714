"""The small recipe: train a detector on moving shapes in minutes on one CPU core, with memory and, for comparison, without.

Stages ``heads``, ``easy`` and ``hard`` train the plain detector. ``memory`` adds the attention, whose output projection
starts at zero, so that training starts exactly at the plain detector; ``control`` is the plain detector with the same frames,
steps and learning rate. Everything is a function of the seed (bit for bit for a given number of threads).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from connectors.errors import ConfigError
from models.mamba.config import MambaConfig
from models.mamba.evaluate import Found, Objects, mean_average_precision
from models.mamba.losses import TrainingRules, Truth
from models.mamba.model import Mamba
from models.mamba.progress import Progress, report
from models.mamba.rollout import MemoryRules, detect_clip, rollout_losses
from models.mamba.shapes import Scene, ShapesConfig, make_scene

__all__ = ["SHAPES_MEMORY", "ShapesSchedule", "ShapesWeights", "evaluate_shapes", "shapes_model_config", "train_shapes"]

SHAPES_MEMORY = MemoryRules(write_topk=12, max_length=600, key_length=120)
"""Bank of the small recipe; the operator needs the same numbers."""

_RULES = TrainingRules(rpn_samples=64, roi_samples=32, reference_rois=SHAPES_MEMORY.write_topk)
_GRADIENT_NORM = 10.0
_WARMUP_STEPS, _LAST_FACTOR = 50, 0.02
_REPORT_EVERY = 50
_TRAINING_SEEDS = (1 << 31, 1 << 32)
"""Clips for training are drawn from here, so that every smaller seed is a fresh clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapesSchedule:
    """Steps, batches and learning rates of the recipe. Each stage: AdamW, 50 steps of warm-up, cosine decay to 2 %."""

    heads_steps: int = 300
    """With the random backbone frozen: from free features the proposal loss, strong at first, drives all colour out."""
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


def train_shapes(
    *,
    seed: int = 0,
    shapes: ShapesConfig | None = None,
    schedule: ShapesSchedule | None = None,
    control: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> ShapesWeights:
    """Train all stages and return the three detectors. Without ``control`` that one is the untouched base."""
    shapes, schedule = shapes or ShapesConfig(), schedule or ShapesSchedule()
    if schedule.clip_frames > shapes.frames:
        raise ConfigError(f"clip_frames is {schedule.clip_frames}, but clips have {shapes.frames} frames; lower it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = Mamba(shapes_model_config(shapes))
    for attention in base.head.attention:
        for parameter in attention.output.parameters():  # type: ignore[union-attr]
            nn.init.zeros_(parameter)

    def single_frames(config: ShapesConfig) -> Callable[[np.random.Generator], list[tuple[Scene, int]]]:
        return lambda rng: [(_training_scene(config, rng), int(rng.integers(config.frames))) for _ in range(schedule.batch)]

    def whole_clips(rng: np.random.Generator) -> list[tuple[Scene, int]]:
        chosen = []
        for _ in range(schedule.clips):
            scene = _training_scene(shapes, rng)
            times = np.sort(rng.choice(shapes.frames, schedule.clip_frames, replace=False))
            chosen += [(scene, int(t)) for t in times]
        return chosen

    easy = single_frames(dataclasses.replace(shapes, degraded=schedule.easy_degraded))
    base.backbone.requires_grad_(False)
    _train(base, _Stage("heads", schedule.heads_steps, schedule.heads_rate, 0), easy, seed, progress)
    base.backbone.requires_grad_(True)
    _train(base, _Stage("easy", schedule.easy_steps, schedule.easy_rate, 1), easy, seed, progress)
    _train(base, _Stage("hard", schedule.hard_steps, schedule.hard_rate, 2), single_frames(shapes), seed, progress)
    memory = _Stage("memory", schedule.memory_steps, schedule.memory_rate, 3, schedule.clip_frames, memory=True)
    with_memory, without = copy.deepcopy(base), copy.deepcopy(base)
    _train(with_memory, memory, whole_clips, seed, progress)
    if control:
        _train(without, dataclasses.replace(memory, name="control", memory=False), whole_clips, seed, progress)
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


@dataclass(frozen=True, slots=True)
class _Stage:
    name: str
    steps: int
    rate: float
    clips: int
    """Number of the sequence of clips that the stage draws."""
    clip_frames: int = 1
    memory: bool = False


def _training_scene(config: ShapesConfig, rng: np.random.Generator) -> Scene:
    return make_scene(config, int(rng.integers(*_TRAINING_SEEDS)))


def _train(
    model: Mamba,
    stage: _Stage,
    draw: Callable[[np.random.Generator], list[tuple[Scene, int]]],
    seed: int,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Run one stage. Draws follow from the seed and ``stage.clips``, so memory and control go over the same frames."""
    rng = np.random.default_rng([seed, stage.clips])
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, stage.steps))
    model.train()
    total, since = 0.0, 0
    for step in range(1, stage.steps + 1):
        frames = draw(rng)
        images = model.prepare([torch.from_numpy(scene.frame(t)) for scene, t in frames], "cpu")
        truth = [Truth(torch.from_numpy(scene.boxes_TO4[t]), torch.from_numpy(scene.labels_O)) for scene, t in frames]
        losses = rollout_losses(model, images, truth, stage.clip_frames, generator, _RULES, memory=stage.memory)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), _GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        total, since = total + float(loss.detach()), since + 1
        if step % _REPORT_EVERY == 0 or step == stage.steps:
            report(Progress(stage.name, step, stage.steps, total / since), progress)
            total, since = 0.0, 0


def _rate_factor(step: int, steps: int) -> float:
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / steps))
    return min(1.0, (step + 1) / _WARMUP_STEPS) * (_LAST_FACTOR + (1.0 - _LAST_FACTOR) * cosine)
