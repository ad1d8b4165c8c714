"""Small pictures for people: lines over a common axis, lanes of signals and states, rows of pictures with words. Needs OpenCV.

Every function returns a picture, red, green, blue; nothing here knows what is shown.
"""

# P points of a line, N points of a lane, H rows and W columns of a picture

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from connectors import durable
from connectors.canvas import Color, PngCanvas, color_of
from connectors.extras import optional

cv2 = optional("cv2")

__all__ = ["Lane", "Picture", "Worded", "heat", "line_chart", "sheet", "strip_chart", "write_picture"]

Picture: TypeAlias = npt.NDArray[np.uint8]
"""[H, W, 3], red, green, blue."""
Worded: TypeAlias = tuple[Picture, str]
"""A picture and what is written below it."""

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 900, 340, 60, 40, 20, 40
_COLORS: tuple[Color, ...] = ((150, 150, 150), (200, 60, 40), (40, 110, 180), (60, 140, 70))
_GRID: Color = (230, 230, 230)
_INK: Color = (59, 110, 168)
_MARK: Color = (200, 40, 40)
_TICKS = 4
_NAMES, _SIGNAL, _BAND, _GAP = 170, 44, 18, 6


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lane:
    """One row of a strip chart: a signal or states, one per point of the common axis, and ticks at some of its points."""

    name: str
    values_N: npt.ArrayLike | None = None
    states_N: npt.ArrayLike | None = None
    """Whole numbers, which get colors; below 0: none."""
    ticks: Sequence[float] = ()
    """Numbers of points, from 0."""


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture as a PNG, in one step. Raise ``OSError`` where that cannot be."""
    _, data = cv2.imencode(".png", picture[..., ::-1])  # OpenCV takes blue first
    durable.write(path, data.tobytes())


def line_chart(
    title: str, lines: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], *, x: str, marks: Mapping[float, str] = {}
) -> Picture:
    """Draw lines (name → x, y); ``marks`` are vertical lines with words."""
    series = {name: (np.asarray(at, np.float64), np.asarray(value, np.float64)) for name, (at, value) in lines.items()}
    (x0, x1), (y0, y1) = (_reach(np.concatenate(values)) for values in zip(*series.values(), strict=True))
    canvas = PngCanvas(_WIDTH, _HEIGHT)
    inner_w, inner_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(at_P: npt.NDArray[np.float64], value_P: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.stack([_LEFT + (at_P - x0) / (x1 - x0) * inner_w, _TOP + (y1 - value_P) / (y1 - y0) * inner_h], 1)

    for height in _round_numbers(y0, y1):
        here = place(np.array([x0, x1]), np.array([height, height]))
        canvas.line(here, _GRID)
        canvas.text(6, here[0, 1] + 4, f"{height:.6g}")
    for along in _round_numbers(x0, x1):
        canvas.text(place(np.array([along]), np.array([y0]))[0, 0] - 10, _HEIGHT - 22, f"{along:.6g}")
    for mark, words in marks.items():
        canvas.line(place(np.array([mark, mark]), np.array([y0, y1])), (180, 180, 200))
        canvas.text(place(np.array([mark]), np.array([y1]))[0, 0] + 3, _TOP + 12, words, (120, 120, 150))
    canvas.text(_LEFT, 16, title)
    canvas.text(_WIDTH - _RIGHT - 8 * len(x), _HEIGHT - 6, x)
    for number, (name, (at, value)) in enumerate(series.items()):
        color = _COLORS[number % len(_COLORS)]
        canvas.line(place(at, value), color)
        canvas.text(_LEFT + 220 * number, 34, name, color)
    return canvas.picture()


def _reach(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the least and the largest number, apart from each other also where there is one or none."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return (low, high) if high > low else (low, low + max(1.0, abs(low)))


def _round_numbers(low: float, high: float) -> list[float]:
    """Return four to ten numbers from ``low`` to ``high`` that are easy to read: steps of 1, 2 or 5 times a power of ten."""
    size = 10.0 ** math.floor(math.log10((high - low) / _TICKS))
    step = max(size * factor for factor in (1, 2, 5) if size * factor <= (high - low) / _TICKS)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def strip_chart(title: str, lanes: Sequence[Lane]) -> Picture:
    """Draw lanes below one another over a common axis. Signals are scaled to their lanes."""
    heights = [_BAND if lane.values_N is None else _SIGNAL for lane in lanes]
    canvas = PngCanvas(_WIDTH, 26 + sum(heights) + _GAP * len(lanes))
    canvas.text(6, 16, title)
    y, width = 26.0, _WIDTH - _NAMES - _RIGHT
    for lane, height in zip(lanes, heights, strict=True):
        canvas.text(6, y + height / 2 + 4, lane.name[:26])
        shown = lane.states_N if lane.values_N is None else lane.values_N
        step = width / max(1, len(np.asarray(shown)))
        if lane.values_N is None:
            _bands(canvas, np.asarray(lane.states_N, np.int64), y, step)
        else:
            _signal(canvas, np.asarray(lane.values_N, np.float64), y, step)
        for tick in lane.ticks:
            canvas.rect(_NAMES + tick * step, y, 1.5, height, _MARK)
        y += height + _GAP
    return canvas.picture()


def _bands(canvas: PngCanvas, state_N: npt.NDArray[np.int64], y: float, step: float) -> None:
    starts = np.flatnonzero(np.append(True, state_N[1:] != state_N[:-1])) if len(state_N) else np.empty(0, np.int64)
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(state_N)], strict=False):
        state, width = int(state_N[start]), (stop - start) * step
        canvas.rect(_NAMES + start * step, y, width, _BAND, color_of(state))
        if state >= 0 and width > 8 * len(str(state)) + 4:
            canvas.text(_NAMES + start * step + 3, y + 13, str(state))


def _signal(canvas: PngCanvas, value_N: npt.NDArray[np.float64], y: float, step: float) -> None:
    finite = value_N[np.isfinite(value_N)]
    if not len(finite):
        return
    low, high = finite.min(), finite.max()
    share_N = (value_N - low) / (high - low if high > low else 1.0)
    canvas.line(np.stack([_NAMES + (np.arange(len(value_N)) + 0.5) * step, y + 2 + (_SIGNAL - 4) * (1 - share_N)], 1), _INK)


def heat(value_HW: npt.NDArray[np.floating], low: float, high: float, *, scale: int = 1) -> Picture:
    """Return a table of numbers as colors, its first row at the bottom; each number is ``scale`` pixels wide and high."""
    share_HW = np.clip((np.nan_to_num(value_HW, nan=low) - low) / (high - low), 0, 1)[::-1]
    byte_HW = np.repeat(np.repeat((255 * share_HW).astype(np.uint8), scale, 0), scale, 1)
    return np.ascontiguousarray(cv2.applyColorMap(byte_HW, cv2.COLORMAP_INFERNO)[..., ::-1])


def sheet(rows: Sequence[tuple[str, Sequence[Worded]]], *, height: int = 120, left: int = 160) -> Picture:
    """Put pictures into rows, a word below each; they are scaled to one height.

    Each row begins with its heading of one or more lines, for which there are ``left`` pixels.
    """
    made = [[_heading(words, height, left), *(_tile(picture, told, height) for picture, told in row)] for words, row in rows]
    width = max(sum(tile.shape[1] + 6 for tile in row) for row in made)
    strips = []
    for row in made:
        strip = np.full((height + 24, width, 3), 255, np.uint8)
        x = 0
        for tile in row:
            strip[: tile.shape[0], x : x + tile.shape[1]] = tile
            x += tile.shape[1] + 6
        strips.append(strip)
    return np.concatenate(strips)


def _heading(words: str, height: int, left: int) -> Picture:
    canvas, lines = PngCanvas(left, height + 22), words.split("\n")
    for number, line in enumerate(lines):
        canvas.text(2, height / 2 + 4 + 18 * (number - (len(lines) - 1) / 2), line)
    return canvas.picture()


def _tile(picture: Picture, words: str, height: int) -> Picture:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    canvas = PngCanvas(width, height + 22)
    canvas.text(2, height + 15, words)
    tile = canvas.picture()
    how = cv2.INTER_AREA if height < picture.shape[0] else cv2.INTER_CUBIC
    tile[:height] = cv2.resize(picture, (width, height), interpolation=how)
    return tile
