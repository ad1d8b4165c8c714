"""What trainings on rendered films share: frames of every kind of event, a tower that learns to tell them, settings of a stage.

Training draws single frames, never a film, so films of every seed are unseen. Everything is a function of the generator.
"""

# B frames, P patches, C width, N rendered frames

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.films import COLORS, COUNTS, SHAPES, TIMES, Event, render
from models.training import Stage, cosine, warm_up

__all__ = ["FramePool", "film_stage", "label_heads", "render_pool", "tower_stage"]

_REPORTS = 60  # of a stage
_WARMUP, _LAST_FACTOR = 100, 0.02
_GRADIENT_NORM = 1.0


@dataclass(slots=True, eq=False)
class FramePool:
    """Rendered frames and what they show; index 0 of shape, color and count means nothing."""

    frames_NHW3: Tensor
    labels: dict[str, Tensor]
    rows: dict[tuple[int, int, int, int], Tensor]
    """(shape, color, count, time) → rows."""


def render_pool(variants: int, rng: np.random.Generator) -> FramePool:
    """Render so many frames of each kind of event in each light, and empty ones."""
    frames, labels = [], []
    colors, times = list(COLORS), list(TIMES)
    for time in range(len(times)):
        kinds = [(0, 0, 0)] * (10 * variants // 2)
        kinds += [
            (s + 1, c + 1, n + 1)
            for s in range(len(SHAPES))
            for c in range(len(COLORS))
            for n in range(len(COUNTS))
            for _ in range(variants)
        ]
        for s, c, n in kinds:
            event = Event(SHAPES[s - 1], colors[c - 1], COUNTS[n - 1], times[time], 0, 1) if s else None
            frames.append(render(event, times[time], int(rng.integers(8)), rng, rng))
            labels.append((s, c, n, time))
    labels_N4 = torch.tensor(labels)
    rows = {tuple(kind.tolist()): (labels_N4 == kind).all(dim=1).nonzero().flatten() for kind in torch.unique(labels_N4, dim=0)}
    named = dict(zip(("shape", "color", "count", "when"), labels_N4.unbind(1), strict=True))
    return FramePool(torch.from_numpy(np.stack(frames)), named, rows)


def label_heads(pool: FramePool, width: int) -> nn.ModuleDict:
    """Return a linear head for each label of the frames."""
    return nn.ModuleDict({name: nn.Linear(width, int(label.max()) + 1) for name, label in pool.labels.items()})


def tower_stage(
    tower: nn.Module,
    patches: Callable[[Tensor], Tensor],
    heads: nn.ModuleDict,
    pool: FramePool,
    *,
    steps: int,
    batch: int,
    rate: float,
    rng: np.random.Generator,
    kept: nn.Module,
) -> Stage:
    """Teach a tower to tell what a frame shows, read off the mean of its patches. ``patches``: [B, H, W, 3] to [B, P, C]."""

    def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
        rows = torch.from_numpy(rng.integers(len(pool.frames_NHW3), size=batch))
        patches_BPC = patches(pool.frames_NHW3[rows])
        yield {name: cross_entropy(head(patches_BPC.mean(dim=1)), pool.labels[name][rows]) for name, head in heads.items()}

    return film_stage("vision", steps, rate, nn.ModuleList([tower, heads]), losses, rng, kept=kept)


def film_stage(
    name: str,
    steps: int,
    rate: float,
    trained: nn.Module,
    losses: Callable[[int], Iterator[Mapping[str, Tensor]]],
    rng: np.random.Generator,
    *,
    kept: nn.Module,
    generators: Sequence[torch.Generator] = (),
    warmup: int = _WARMUP,
) -> Stage:
    """Return a stage with AdamW, a warm-up of so many steps and a cosine, at the settings that films are learned with.

    ``rng`` and ``generators``: all that ``losses`` draws from.
    """
    return Stage(
        name=name,
        steps=steps,
        trained=trained.train(),
        kept=kept,
        optimizer=torch.optim.AdamW(trained.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
        losses=losses,
        # The share of the way is rounded first: so it was when the weights in the package were trained.
        rate=lambda step: rate * (warm_up(step, warmup) * cosine(step / steps, 1.0, _LAST_FACTOR)),
        gradient_norm=_GRADIENT_NORM,
        report_every=max(1, steps // _REPORTS),
        generators=(rng, *generators),
    )
