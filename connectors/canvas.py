"""A drawing surface with rectangles, lines and texts, as SVG for a page or as pixels. Knows nothing of what is drawn."""

# H height, W width

from __future__ import annotations

import colorsys
import html
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from connectors.extras import optional

cv2 = optional("cv2")

__all__ = ["Canvas", "Color", "PngCanvas", "SvgCanvas", "color_of"]

Color = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

_NONE: Color = (225, 225, 225)


def color_of(number: int) -> Color:
    """Return one light color per state or class, neighbors far apart; gray for none (below 0)."""
    if number < 0:
        return _NONE
    red, green, blue = colorsys.hls_to_rgb(number * 0.61803398875 % 1.0, 0.72 if number % 2 else 0.62, 0.55)
    return round(255 * red), round(255 * green), round(255 * blue)


class Canvas(ABC):
    """``width`` by ``height`` pixels, the origin at the top left."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height

    @abstractmethod
    def rect(self, x: float, y: float, width: float, height: float, color: Color, title: str = "") -> None:
        """Fill a rectangle; ``title`` is shown where one points at it, if the surface can."""

    @abstractmethod
    def line(self, points_N2: npt.NDArray[np.float64], color: Color) -> None:
        """Draw a line through points; one that is NaN interrupts it."""

    @abstractmethod
    def text(self, x: float, y: float, text: str, color: Color = (40, 44, 52)) -> None:
        """Write one line; ``y`` is its base."""


class SvgCanvas(Canvas):
    """Collects elements of an SVG picture."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self._parts: list[str] = []

    def rect(self, x: float, y: float, width: float, height: float, color: Color, title: str = "") -> None:
        """See the base."""
        told = f"<title>{html.escape(title)}</title>" if title else ""
        shape = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self._parts.append(f'<rect {shape} style="fill:{_hex(color)}">{told}</rect>')

    def line(self, points_N2: npt.NDArray[np.float64], color: Color) -> None:
        """See the base."""
        for part in _pieces(points_N2):
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in part.tolist())
            self._parts.append(f'<polyline points="{points}" style="fill:none;stroke:{_hex(color)};stroke-width:1"/>')

    def text(self, x: float, y: float, text: str, color: Color = (40, 44, 52)) -> None:
        """See the base."""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" style="font:12px sans-serif;fill:{_hex(color)}">{html.escape(text)}</text>'
        )

    def svg(self) -> str:
        """Return the picture as an element of a page."""
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        return f'<svg {size} role="img">{"".join(self._parts)}</svg>'


class PngCanvas(Canvas):
    """Draws into pixels, by OpenCV."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self._picture_HW3 = np.full((height, width, 3), 255, np.uint8)

    def rect(self, x: float, y: float, width: float, height: float, color: Color, title: str = "") -> None:
        """See the base."""
        left, top = round(x), round(y)
        right, bottom = max(left + 1, round(x + width)), max(top + 1, round(y + height))
        self._picture_HW3[max(0, top) : bottom, max(0, left) : right] = color[::-1]

    def line(self, points_N2: npt.NDArray[np.float64], color: Color) -> None:
        """See the base."""
        for part in _pieces(points_N2):
            points = np.rint(part).astype(np.int32).reshape(-1, 1, 2)
            cv2.polylines(self._picture_HW3, [points], False, color[::-1], 1, cv2.LINE_AA)

    def text(self, x: float, y: float, text: str, color: Color = (40, 44, 52)) -> None:
        """See the base. OpenCV's letters are ASCII; others are question marks."""
        plain = text.encode("ascii", "replace").decode()
        cv2.putText(self._picture_HW3, plain, (round(x), round(y)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, color[::-1], 1, cv2.LINE_AA)

    def picture(self) -> npt.NDArray[np.uint8]:
        """Return what is drawn so far, [H, W, 3], red, green, blue."""
        return np.ascontiguousarray(self._picture_HW3[..., ::-1])


def _pieces(points_N2: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Cut a line at points that are NaN; pieces of one point get a second one."""
    good = np.isfinite(points_N2).all(axis=1)
    edges = np.flatnonzero(np.diff(good.astype(np.int8), prepend=0, append=0))
    pieces = [points_N2[start:stop] for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]
    return [piece if len(piece) > 1 else np.concatenate([piece, piece + np.array([0.5, 0.0])]) for piece in pieces]


def _hex(color: Color) -> str:
    return "#" + "".join(f"{part:02x}" for part in color)
