"""Films of fruit on a conveyor belt, seen from above: the clip of the first example, and others like it with ground truth.

Rendered by this project, nothing is photographed: apples, oranges and lemons with peel, gloss and shadow, a gate that hides
part of the belt, a lamp that flickers, noise of a camera. The same seed gives the same pixels.
``python -m pipelines.demos.belt FILE.mp4 [SEED]`` writes one; the clip that comes with the package has seed 4.
"""

# H rows, W columns of a frame; S side of a fruit's picture, px

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from connectors.extras import optional

cv2 = optional("cv2")

__all__ = ["FPS", "KINDS", "SIZE", "Belt", "Fruit", "main", "make_belt", "write_belt"]

KINDS = ("apple", "orange", "lemon")
"""Classes, in label order."""
SIZE = (240, 320)
"""Height and width of a frame, px."""
FPS = 15.0

_SPEED = 4.5  # px a frame
_LANES = (78.0, 162.0)  # y, px
_APART = 44  # frames between two fruits of a lane, give or take
_GATE = (176, 200)  # columns that the gate hides
_FINE = 3  # pictures of fruit are drawn this much larger, then made small

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Fruit:
    """One piece of fruit and its way over the belt."""

    label: int
    first: float
    """Frame at which its center enters at the left edge; may lie before the film."""
    y: float
    picture_SS4: Floats
    """RGB times coverage, and coverage, 0–1."""
    half_2: tuple[float, float]
    """Half its width and height, px."""


@dataclass(frozen=True, slots=True, eq=False)
class Belt:
    """A film; any frame of it can be rendered on its own."""

    seed: int
    frames: int
    fruits: tuple[Fruit, ...]

    def boxes(self, t: int) -> tuple[Floats, NDArray[np.int64]]:
        """Return boxes ``[G, 4]`` (x1, y1, x2, y2 px, cut to the frame) and labels of what is at least half in frame ``t``."""
        height, width = SIZE
        boxes, labels = [], []
        for fruit in self.fruits:
            x, (half_x, half_y) = _SPEED * (t - fruit.first), fruit.half_2
            if 0 <= x <= width:
                box = (max(x - half_x, 0), max(fruit.y - half_y, 0), min(x + half_x, width), min(fruit.y + half_y, height))
                boxes.append(box)
                labels.append(fruit.label)
        return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)

    def frame(self, t: int) -> NDArray[np.uint8]:
        """Render frame ``t`` as [H, W, 3] RGB, 0–255."""
        image_HW3 = _rubber(t, self.seed)
        for fruit in self.fruits:
            _place(image_HW3, fruit, _SPEED * (t - fruit.first))
        _gate(image_HW3)
        rng = np.random.default_rng([self.seed, 3, t])
        image_HW3 *= _light() * (1.0 + 0.12 * np.sin(0.9 * t + self.seed) * (t % 23 < 9))
        image_HW3 += 0.008 * rng.standard_normal(image_HW3.shape, np.float32)
        frame_HW3: NDArray[np.uint8] = np.rint(np.clip(image_HW3, 0.0, 1.0) * 255.0).astype(np.uint8)
        return frame_HW3


def make_belt(seed: int, frames: int = 120) -> Belt:
    """Draw a film from ``seed`` (0 or more)."""
    rng = np.random.default_rng([seed, 0])
    crossing = SIZE[1] / _SPEED
    fruits = []
    for lane in _LANES:
        first = -crossing + rng.uniform(0, _APART)
        while first < frames:
            label = int(rng.integers(len(KINDS)))
            fruits.append(_fruit(label, first, lane + rng.uniform(-8, 8), rng))
            first += _APART * rng.uniform(0.55, 1.1)
    return Belt(seed, frames, tuple(fruits))


def write_belt(belt: Belt, path: Path) -> None:
    """Write a film as MP4."""
    from connectors.sinks.mp4 import Mp4Writer

    writer = Mp4Writer(path, size=(SIZE[1], SIZE[0]))
    try:
        for t in range(belt.frames):
            writer.write(np.ascontiguousarray(belt.frame(t)[..., ::-1]), round(t * 1e6 / FPS), round(1e6 / FPS))
    except BaseException:
        writer.abort()
        raise
    writer.finish()


def main(arguments: Sequence[str]) -> None:
    """Write a film to the file that is the first argument, with the seed that is the second."""
    write_belt(make_belt(int(arguments[1]) if len(arguments) > 1 else 4), Path(arguments[0]))


def _fruit(label: int, first: float, y: float, rng: np.random.Generator) -> Fruit:
    """Draw one piece: a solid lit from the upper left, in the colors of its peel."""
    radius = rng.uniform(29.0, 35.0)
    half_x, half_y = radius * rng.uniform(0.97, 1.03), radius * rng.uniform(0.97, 1.03)
    if KINDS[label] == "lemon":
        half_x, half_y = radius * 1.22, radius * 0.86
    margin = 3.0
    side = int(np.ceil(2 * (max(half_x, half_y) + margin))) * _FINE
    at = (np.arange(side, dtype=np.float32) + 0.5) / _FINE - side / _FINE / 2
    x_SS, y_SS = (grid.astype(np.float32) for grid in np.meshgrid(at / half_x, at / half_y))
    along_SS = np.abs(x_SS)
    if KINDS[label] == "lemon":  # tips: narrower towards the ends
        y_SS = (y_SS / np.clip(1.0 - 0.42 * along_SS**3 + 0.16 * (along_SS > 0.86), 0.3, None)).astype(np.float32)
    square_SS = np.clip(x_SS**2 + y_SS**2, 0.0, None)
    inside_SS = (square_SS <= 1.0).astype(np.float32)
    z_SS = np.sqrt(np.clip(1.0 - square_SS, 0.0, 1.0))
    peel_SS3, bump, gloss = _peel(label, x_SS, y_SS, rng)
    slope_y, slope_x = np.gradient(bump)
    normal_SS3 = np.stack([x_SS - slope_x, y_SS - slope_y, z_SS + 0.15], axis=-1)
    normal_SS3 /= np.linalg.norm(normal_SS3, axis=-1, keepdims=True)
    sun = np.array([-0.45, -0.5, 0.74], np.float32)
    lit_SS1 = np.clip(normal_SS3 @ sun, 0.0, 1.0)[..., None]
    half = (sun + np.array([0, 0, 1], np.float32)) / np.linalg.norm(sun + np.array([0, 0, 1], np.float32))
    shine_SS1 = np.clip(normal_SS3 @ half, 0.0, 1.0)[..., None] ** 42
    color_SS3 = peel_SS3 * (0.30 + 0.78 * lit_SS1) + gloss * shine_SS1
    rgba_SS4 = np.concatenate([np.clip(color_SS3, 0, 1) * inside_SS[..., None], inside_SS[..., None]], axis=-1)
    small: Floats = cv2.resize(rgba_SS4.astype(np.float32), (side // _FINE, side // _FINE), interpolation=cv2.INTER_AREA)
    return Fruit(label, first, y, small, (half_x, half_y))


def _peel(label: int, x_SS: Floats, y_SS: Floats, rng: np.random.Generator) -> tuple[Floats, Floats, float]:
    """Return the color of the peel, its height and its gloss."""
    side = x_SS.shape[0]
    fine = _clouds(rng, side, 28)
    coarse = _clouds(rng, side, 5)
    if KINDS[label] == "orange":
        base = np.array([0.96, 0.52, 0.08], np.float32) + 0.05 * coarse[..., None]
        navel = np.exp(-((x_SS - 0.2) ** 2 + (y_SS + 0.1) ** 2) / 0.006)[..., None]
        return (base - navel * np.array([0.45, 0.15, 0.0])).astype(np.float32), 0.07 * fine * side / 60, 0.28
    if KINDS[label] == "lemon":
        base = np.array([0.97, 0.88, 0.22], np.float32) + 0.04 * coarse[..., None]
        green = np.clip(np.abs(x_SS) - 0.8, 0, 1)[..., None]
        return (base - green * np.array([0.9, 0.3, 0.2])).astype(np.float32), 0.05 * fine * side / 60, 0.35
    turn = rng.uniform(0, 2 * np.pi)
    angle = np.arctan2(y_SS + 0.12, x_SS - 0.08)
    streaks = 0.5 + 0.5 * np.sin(9 * angle + 4 * coarse + turn)
    blush = np.clip(0.55 + 0.5 * np.cos(angle - turn) + 0.3 * coarse, 0, 1)
    red, straw = np.array([0.74, 0.07, 0.09], np.float32), np.array([0.83, 0.62, 0.22], np.float32)
    mix = np.clip(blush + 0.25 * streaks, 0, 1)[..., None]
    hollow = np.exp(-((x_SS - 0.08) ** 2 + (y_SS + 0.12) ** 2) / 0.02)
    stem = ((np.abs(x_SS - 0.08 - 0.5 * (y_SS + 0.12)) < 0.035) & (y_SS > -0.32) & (y_SS < -0.08))[..., None]
    color = (red * mix + straw * (1 - mix)) * (1.0 - 0.55 * hollow[..., None])
    stemmed = np.where(stem, np.array([0.24, 0.15, 0.08], np.float32), color).astype(np.float32)
    return stemmed, (-0.03 * hollow * side / 60).astype(np.float32), 0.55


def _place(image_HW3: Floats, fruit: Fruit, x: float) -> None:
    """Draw a fruit and its shadow with its center at column ``x``."""
    height, width = SIZE
    side = fruit.picture_SS4.shape[0]
    if not -side < x < width + side:
        return
    move = np.array([[1, 0, x - side / 2], [0, 1, fruit.y - side / 2]], np.float32)
    rgba = cv2.warpAffine(fruit.picture_SS4, move, (width, height))
    shade = move.copy()
    shade[:, 2] += (7, 9)
    shadow = cv2.GaussianBlur(cv2.warpAffine(fruit.picture_SS4[..., 3], shade, (width, height)), (0, 0), 5)
    image_HW3 *= 1.0 - 0.55 * shadow[..., None]
    image_HW3 *= 1.0 - rgba[..., 3:]
    image_HW3 += rgba[..., :3]


def _rubber(t: int, seed: int) -> Floats:
    """Return the belt at frame ``t`` with its rails."""
    height, width = SIZE
    period = 416
    rng = np.random.default_rng([seed, 1])
    grain = cv2.resize(rng.standard_normal((height // 2, period // 2)).astype(np.float32), (period, height))
    stains = cv2.resize(rng.standard_normal((7, 10)).astype(np.float32), (period, height), interpolation=cv2.INTER_CUBIC)
    ribs = 0.022 * np.sin(2 * np.pi * np.arange(period) / 26)[None]
    texture = 0.27 + 0.014 * grain + 0.02 * stains + ribs.astype(np.float32)
    columns = (np.arange(width) - round(_SPEED * t)) % period
    image = texture[:, columns][..., None] * np.array([0.93, 1.0, 1.04], np.float32)
    y = np.arange(height, dtype=np.float32)
    rail = np.clip(np.minimum(y, height - 1 - y), 0, 16) < 15
    steel = 0.62 + 0.13 * np.sin(y / 2.6)
    image[rail] = steel[rail, None, None]
    return np.ascontiguousarray(image, np.float32)


def _gate(image_HW3: Floats) -> None:
    """Draw the bar across the belt, and its shadow."""
    left, right = _GATE
    image_HW3[:, right : right + 12] *= np.linspace(0.55, 1.0, 12, dtype=np.float32)[None, :, None]
    across = np.linspace(-1, 1, right - left, dtype=np.float32)
    image_HW3[:, left:right] = (0.42 + 0.30 * np.sqrt(1 - 0.9 * across**2))[None, :, None] * np.array(
        [1.0, 0.93, 0.62], np.float32
    )


def _light() -> Floats:
    """Return the brightness of each pixel under the lamp."""
    height, width = SIZE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    fall = ((x - 0.42 * width) / width) ** 2 + ((y - 0.45 * height) / height) ** 2
    light: Floats = (1.12 - 0.75 * fall)[..., None]
    return light


def _clouds(rng: np.random.Generator, side: int, cells: int) -> Floats:
    """Return smooth noise around 0."""
    noise = rng.standard_normal((cells, cells)).astype(np.float32)
    clouds: Floats = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return clouds


if __name__ == "__main__":
    main(sys.argv[1:])
