"""Tasks that the small recipes learn, made of rendered scenes: pointing at a cube, and three questions about the past.

A sample is what a policy is given (frames with depth, camera and pose, an instruction) and the right action. The answers to
questions are actions, too: a direction for a color, a length for a number, the gripper for yes or no.
"""

# S samples, T frames of a sample (the last is now), H height, W width

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.fourd_vla.scenes import COLORS, Cameras, Scenes, random_cameras, render

__all__ = ["TASKS", "WORDS", "Samples", "Task", "direction_of"]

_NOISE = 2.0
"""Standard deviation of a pixel, of 255."""
_TABLE_M = 0.3
_TILE_M = 0.2
_GRAY = 180.0
_EVENT_AGES = (4, 17)
"""How long ago an event was, frames, first and last."""

WORDS = (
    "point to the colored cube",
    "point where the color of the cube tells",
    "how often was a cube here",
    "was a red cube here before",
)
"""All instructions."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Some samples of a task."""

    color_STHW3: Tensor
    depth_STHW: Tensor
    cameras: Cameras
    instruction: Sequence[str]
    move_S3: Tensor
    grip_S: Tensor
    answer_S: Tensor
    """int64: what is right, where that is one of several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What one recipe learns."""

    make: Callable[[int, torch.Generator], Samples]
    height: int
    width: int
    window: int
    keep: int
    answers: int
    """How many answers there are; 0: a place, measured by its distance."""
    steps: int
    """Updates of the recipe."""
    decode: Callable[[Tensor, Tensor], Tensor] = lambda move_S3, grip_S: torch.zeros(len(move_S3), dtype=torch.int64)
    """Translation and gripper's logit → answer."""


def direction_of(answer_S: Tensor, answers: int) -> Tensor:
    """Return the unit vectors [S, 3] on the table that stand for answers."""
    angle_S = 2 * math.pi * answer_S / answers
    return torch.stack([angle_S.cos(), angle_S.sin(), torch.zeros_like(angle_S)], dim=1)


def _point(count: int, generator: torch.Generator) -> Samples:
    """One frame of a colored cube before a background out of reach, from anywhere: where is it, in the robot's frame?"""
    scenes = _cubes(count, 1, generator)
    cameras = random_cameras(count, 48, 64, generator)
    color_SHW3, depth_SHW = render(scenes, cameras, floor=False)
    text = ["point to the colored cube"] * count
    move_S3 = scenes.center_SO3[:, 0]
    return Samples(
        _noisy(color_SHW3[:, None], generator),
        depth_SHW[:, None],
        cameras,
        text,
        move_S3,
        torch.ones(count),
        torch.zeros(count).long(),
    )


def _past(count: int, generator: torch.Generator) -> Samples:
    """A cube is there in one frame of the past only; its color tells where to point now."""
    shown_ST = torch.full((count, 20), -1)
    answer_S = torch.randint(len(COLORS), (count,), generator=generator)
    age_S = torch.randint(_EVENT_AGES[0], _EVENT_AGES[1] + 1, (count,), generator=generator)
    shown_ST[torch.arange(count), 19 - age_S] = answer_S
    move_S3 = direction_of(answer_S, len(COLORS))
    return _film(shown_ST, "point where the color of the cube tells", move_S3, torch.ones(count), answer_S, generator)


def _count(count: int, generator: torch.Generator) -> Samples:
    """A cube of one color flashes up never, once or twice; the length of the move says how often."""
    shown_ST = torch.full((count, 20), -1)
    answer_S = torch.randint(3, (count,), generator=generator)
    rows = torch.arange(count)
    color_S = torch.randint(len(COLORS), (count,), generator=generator)
    first_S = torch.randint(2, 8, (count,), generator=generator)
    second_S = torch.randint(10, 16, (count,), generator=generator)
    shown_ST[rows[answer_S >= 1], first_S[answer_S >= 1]] = color_S[answer_S >= 1]
    shown_ST[rows[answer_S >= 2], second_S[answer_S >= 2]] = color_S[answer_S >= 2]
    move_S3 = torch.stack([answer_S.float() - 1, torch.zeros(count), torch.zeros(count)], dim=1)
    return _film(shown_ST, "how often was a cube here", move_S3, torch.ones(count), answer_S, generator)


def _seen(count: int, generator: torch.Generator) -> Samples:
    """A cube was there in one frame of the past: a red one, or one of another color? The gripper closes for red."""
    shown_ST = torch.full((count, 20), -1)
    shown_S = torch.randint(1, len(COLORS), (count,), generator=generator)  # the first color is red
    answer_S = torch.randint(2, (count,), generator=generator)
    age_S = torch.randint(_EVENT_AGES[0], _EVENT_AGES[1] + 1, (count,), generator=generator)
    shown_ST[torch.arange(count), 19 - age_S] = shown_S * (1 - answer_S)
    return _film(shown_ST, "was a red cube here before", torch.zeros(count, 3), answer_S.float(), answer_S, generator)


def _nearest_direction(move_S3: Tensor, grip_S: Tensor) -> Tensor:
    return (move_S3 @ direction_of(torch.arange(len(COLORS)), len(COLORS)).T).argmax(dim=1)


TASKS: Mapping[str, Task] = {
    "point": Task(make=_point, height=48, width=64, window=1, keep=1, answers=0, steps=300),
    "past": Task(make=_past, height=32, width=32, window=20, keep=4, answers=len(COLORS), steps=120, decode=_nearest_direction),
    "count": Task(
        make=_count,
        height=32,
        width=32,
        window=20,
        keep=5,
        answers=3,
        steps=300,
        decode=lambda move_S3, grip_S: (move_S3[:, 0].round().long() + 1).clamp(0, 2),
    ),
    "seen": Task(
        make=_seen,
        height=32,
        width=32,
        window=20,
        keep=4,
        answers=2,
        steps=300,
        decode=lambda move_S3, grip_S: (grip_S > 0).long(),
    ),
}
"""By name."""


def _film(
    shown_ST: Tensor, text: str, move_S3: Tensor, grip_S: Tensor, answer_S: Tensor, generator: torch.Generator
) -> Samples:
    """Render films of a still camera in which a cube of color ``shown_ST`` (-1: none) stands at one place."""
    S = len(shown_ST)
    cameras = random_cameras(S, 32, 32, generator)
    place_S3 = torch.cat([0.15 * (2 * torch.rand((S, 2), generator=generator) - 1), torch.full((S, 1), 0.15)], dim=1)
    palette = torch.tensor(list(COLORS.values()))
    looks = []
    for color in range(-1, len(COLORS)):  # each sample needs few of these; rendering them all is quicker than choosing
        size_SO = torch.full((S, 1), 0.3 if color >= 0 else 0.0)
        looks.append(
            render(Scenes(place_S3[:, None], size_SO, palette[max(color, 0)].expand(S, 1, 3)), cameras, tile_m=_TILE_M)
        )
    color_SNHW3, depth_SNHW = (torch.stack([look[i] for look in looks], dim=1) for i in range(2))
    row_S1 = torch.arange(S)[:, None]
    color_STHW3 = _noisy(color_SNHW3[row_S1, shown_ST + 1], generator)
    return Samples(color_STHW3, depth_SNHW[row_S1, shown_ST + 1], cameras, [text] * S, move_S3, grip_S, answer_S)


def _cubes(count: int, cubes: int, generator: torch.Generator) -> Scenes:
    """Place cubes so that no two touch, each in its own part of the table, turned at random; the first one has a color."""
    angle_S = 2 * math.pi * torch.rand(count, generator=generator)
    radius_SO = 0.15 + (_TABLE_M - 0.15) * torch.rand((count, cubes), generator=generator)
    angle_SO = (
        angle_S[:, None] + 2 * math.pi * (torch.arange(cubes) + 0.3 * torch.rand((count, cubes), generator=generator)) / cubes
    )
    size_SO = 0.15 + 0.1 * torch.rand((count, cubes), generator=generator)
    center_SO3 = torch.stack([radius_SO * angle_SO.cos(), radius_SO * angle_SO.sin(), size_SO / 2], dim=2)
    rgb_SO3 = torch.full((count, cubes, 3), _GRAY)
    chosen_S = torch.randint(len(COLORS), (count,), generator=generator)
    rgb_SO3[:, 0] = torch.tensor(list(COLORS.values())).float()[chosen_S]
    return Scenes(center_SO3, size_SO, rgb_SO3)


def _noisy(color_STHW3: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(color_STHW3.shape, generator=generator) * _NOISE
    return (color_STHW3 + noise).round().clamp(0, 255).to(torch.uint8)
