"""The small pictures that demos end with: lines over a common axis, and rows of frames with words. Needs OpenCV."""

# P points of a line, H rows and W columns of a picture

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from connectors.extras import optional
from pipelines.viewing.canvas import Color, PngCanvas

if TYPE_CHECKING:
    from models.films import Film

cv2 = optional("cv2")

__all__ = ["film_frames", "line_chart", "write_sheet"]

Worded: TypeAlias = tuple[npt.NDArray[np.uint8], str]

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 900, 340, 60, 40, 20, 40
_COLORS: tuple[Color, ...] = ((150, 150, 150), (200, 60, 40), (40, 110, 180), (60, 140, 70))
_GRID: Color = (230, 230, 230)
_TICKS = 4


def line_chart(
    path: Path, title: str, lines: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], *, x: str, marks: Mapping[float, str] = {}
) -> None:
    """Write lines (name → x, y) as a PNG; ``marks`` are vertical lines with words."""
    series = {name: (np.asarray(at, np.float64), np.asarray(value, np.float64)) for name, (at, value) in lines.items()}
    all_x = np.concatenate([at for at, _ in series.values()])
    all_y = np.concatenate([value[np.isfinite(value)] for _, value in series.values()])
    (x0, x1), (y0, y1) = (all_x.min(), all_x.max()), (all_y.min(), all_y.max())
    x1, y1 = max(x1, x0 + 1e-9), max(y1, y0 + 1e-9)
    canvas = PngCanvas(_WIDTH, _HEIGHT)
    inner_w, inner_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(at_P: npt.NDArray[np.float64], value_P: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.stack([_LEFT + (at_P - x0) / (x1 - x0) * inner_w, _TOP + (y1 - value_P) / (y1 - y0) * inner_h], 1)

    for number in range(_TICKS + 1):
        height = y0 + (y1 - y0) * number / _TICKS
        here = place(np.array([x0, x1]), np.array([height, height]))
        canvas.line(here, _GRID)
        canvas.text(6, here[0, 1] + 4, f"{height:.3g}")
        along = x0 + (x1 - x0) * number / _TICKS
        canvas.text(_LEFT + inner_w * number / _TICKS - 10, _HEIGHT - 22, f"{along:.3g}")
    for mark, words in marks.items():
        canvas.line(place(np.array([mark, mark]), np.array([y0, y1])), (180, 180, 200))
        canvas.text(place(np.array([mark]), np.array([y1]))[0, 0] + 3, _TOP + 12, words, (120, 120, 150))
    canvas.text(_LEFT, 16, title)
    canvas.text(_WIDTH - _RIGHT - 8 * len(x), _HEIGHT - 6, x)
    for number, (name, (at, value)) in enumerate(series.items()):
        color = _COLORS[number % len(_COLORS)]
        canvas.line(place(at, value), color)
        canvas.text(_LEFT + 220 * number, 34, name, color)
    canvas.save(path)


def write_sheet(path: Path, rows: Sequence[tuple[str, Sequence[Worded]]], *, height: int = 120, left: int = 160) -> None:
    """Write rows of pictures (RGB) with a word below each as a PNG; pictures are scaled to one height.

    Each row begins with its heading, for which there are ``left`` pixels.
    """
    blank = np.full((height, left, 3), 255, np.uint8)
    made = [[_tile(picture, words, height) for picture, words in ((blank, heading), *row)] for heading, row in rows]
    width = max(sum(tile.shape[1] + 6 for tile in row) for row in made)
    strips = []
    for row in made:
        strip = np.full((height + 24, width, 3), 255, np.uint8)
        x = 0
        for tile in row:
            strip[: tile.shape[0], x : x + tile.shape[1]] = tile
            x += tile.shape[1] + 6
        strips.append(strip)
    cv2.imwrite(str(path), np.concatenate(strips)[..., ::-1])


def film_frames(film: Film, frames: Iterable[int]) -> list[Worded]:
    """Return frames of a film of one frame a second, with their times."""
    return [(film.frame(t), f"{t // 60:02}:{t % 60:02}") for t in frames]


def _tile(picture: npt.NDArray[np.uint8], words: str, height: int) -> npt.NDArray[np.uint8]:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    tile = np.full((height + 22, width, 3), 255, np.uint8)
    tile[:height] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    plain = words.encode("ascii", "replace").decode()
    cv2.putText(tile, plain, (2, height + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (40, 44, 52), 1, cv2.LINE_AA)
    return tile
