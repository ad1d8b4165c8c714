"""Pictures with detections drawn on them: plain functions on BGR uint8 arrays, shared by the video sink and the viewer.

Nothing here knows about sinks, streams or files. Every function returns a new picture or draws into the one it is given, as
its first line says.
"""

# H height, W width, N boxes

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from connectors.extras import optional

cv2 = optional("cv2")

__all__ = [
    "LabeledBoxes",
    "Picture",
    "class_color",
    "decode_image",
    "draw_boxes",
    "draw_header",
    "draw_status",
    "panel_row",
    "panel_size",
    "placeholder",
    "resize_into",
]

Picture = NDArray[np.uint8]
"""[H, W, 3], blue, green, red."""
Color = tuple[int, int, int]

_DARK: Color = (38, 32, 28)
_LIGHT: Color = (245, 245, 245)
_MUTED: Color = (190, 180, 170)
_WARNING: Color = (40, 60, 200)
_GRAY: Color = (128, 128, 128)
_GAP_PX = 4
# encoding → (type, channels)
_RAW: dict[str, tuple[Any, int]] = {
    "raw_rgb8": (np.uint8, 3),
    "raw_bgr8": (np.uint8, 3),
    "raw_gray8": (np.uint8, 1),
    "raw_f32_rgb": ("<f4", 3),  # 0..255
}


@dataclass(frozen=True, slots=True)
class LabeledBoxes:
    """The detections of one picture. Boxes are x1, y1, x2, y2 in pixels of the original frame."""

    xyxy_N4: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    score_N: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    label_N: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def decode_image(data: bytes | pa.Buffer | None, encoding: str | None, height: int | None, width: int | None) -> Picture | None:
    """Decode the ``image`` of a frame record (see ``connectors.records.FRAME``); None where that is not possible."""
    if data is None or len(data) == 0:
        return None
    if encoding in _RAW:
        kind, channels = _RAW[encoding]
        values = np.frombuffer(data, np.uint8)
        if (
            height is None
            or width is None
            or min(height, width) <= 0
            or values.size != height * width * channels * np.dtype(kind).itemsize
        ):
            return None
        pixels: Any = values.view(kind).reshape(height, width, channels)
        if encoding == "raw_f32_rgb":
            pixels = np.nan_to_num(pixels).clip(0, 255).astype(np.uint8)
        if channels == 1:
            return np.repeat(pixels, 3, axis=2)
        return np.array(pixels if encoding == "raw_bgr8" else pixels[:, :, ::-1], order="C")
    try:
        # Applies the orientation tag, as the operators' decoder does: boxes are in pixels of the upright picture.
        decoded: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # a header that promises more pixels than OpenCV allows
        return None
    return decoded if decoded is not None and decoded.size else None


def placeholder(height: int, width: int, text: str) -> Picture:
    """Return a gray picture that says why there is no frame."""
    picture: Picture = np.full((height, width, 3), 96, np.uint8)
    cv2.line(picture, (0, 0), (width - 1, height - 1), _GRAY, 1, cv2.LINE_AA)
    cv2.line(picture, (0, height - 1), (width - 1, 0), _GRAY, 1, cv2.LINE_AA)
    scale, thickness, text_height = _text_style(height)
    line = _shorten(text, width - 16, scale, thickness)
    text_width = _text_width(line, scale, thickness)
    _put(picture, line, ((width - text_width) // 2, (height + text_height) // 2), scale, _LIGHT, thickness)
    return picture


def panel_size(height: int, width: int, *, scale: float, max_height: int) -> tuple[int, int]:
    """Return the (height, width) that a frame is drawn at: scaled, at most ``max_height``, both even for the codec."""
    factor = min(scale, max_height / height)
    return max(2, round(height * factor / 2) * 2), max(2, round(width * factor / 2) * 2)


def resize_into(picture: Picture, height: int, width: int) -> tuple[Picture, float, int, int]:
    """Fit a picture into [height, width] without distortion.

    Returns (picture, factor, left, top): a point (x, y) of the input lies at (x·factor + left, y·factor + top).
    """
    factor = min(height / picture.shape[0], width / picture.shape[1])
    inner_h, inner_w = max(1, round(picture.shape[0] * factor)), max(1, round(picture.shape[1] * factor))
    # A panel is rounded to even pixels; one or two pixels are no reason for a border.
    if abs(inner_h - height) <= 2 and abs(inner_w - width) <= 2:
        inner_h, inner_w = height, width
    if (inner_h, inner_w) != picture.shape[:2]:
        way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        picture = cv2.resize(picture, (inner_w, inner_h), interpolation=way)
    if (inner_h, inner_w) == (height, width):
        return picture, factor, 0, 0
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    canvas: Picture = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + inner_h, left : left + inner_w] = picture
    return canvas, factor, left, top


@lru_cache(maxsize=1024)
def class_color(label: int) -> Color:
    """Return the BGR color of a class number: the same in every frame and run, neighbors far apart in hue."""
    hue = (0.58 + label * 0.618033988749895) % 1.0  # the golden ratio spreads any number of hues
    lightness = (0.62, 0.52, 0.70)[label // 8 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(blue * 255), round(green * 255), round(red * 255)


def draw_boxes(
    picture: Picture,
    boxes: LabeledBoxes,
    classes: Sequence[str],
    *,
    min_score: float = 0.0,
    factor: float = 1.0,
    left: int = 0,
    top: int = 0,
) -> int:
    """Draw boxes with class name and score into ``picture``, the best on top; return how many were drawn.

    ``factor``, ``left`` and ``top`` come from :func:`resize_into`. Boxes that are not finite or empty are skipped.
    """
    good_N = np.isfinite(boxes.xyxy_N4).all(1) & (boxes.score_N >= min_score)
    good_N &= (boxes.xyxy_N4[:, 2] > boxes.xyxy_N4[:, 0]) & (boxes.xyxy_N4[:, 3] > boxes.xyxy_N4[:, 1])
    chosen = np.flatnonzero(good_N)
    chosen = chosen[np.argsort(boxes.score_N[chosen], kind="stable")]
    height, width = picture.shape[:2]
    line = max(1, round(height / 240))
    limit = np.array([width - 1, height - 1, width - 1, height - 1])
    corners_N4 = np.clip(boxes.xyxy_N4[chosen] * factor + np.array([left, top, left, top]), 0, limit).astype(int)
    labels = boxes.label_N[chosen].tolist()
    for label, (x1, y1, x2, y2) in zip(labels, corners_N4.tolist(), strict=True):
        cv2.rectangle(picture, (x1, y1), (x2, y2), class_color(label), line)
    # Words last, so that no box crosses them.
    for label, score, (x1, y1, _, y2) in zip(labels, boxes.score_N[chosen].tolist(), corners_N4.tolist(), strict=True):
        name = classes[label] if 0 <= label < len(classes) else f"class {label}"
        _tag(picture, f"{name} {score:.2f}", x1, y1, y2, class_color(label), line)
    return len(chosen)


def draw_header(width: int, height: int, title: str, note: str = "") -> Picture:
    """Return a dark bar with a title at the left and a note at the right, each cut where it does not fit."""
    bar: Picture = np.full((height, width, 3), _DARK, np.uint8)
    scale = height / 44
    thickness = max(1, round(height / 36))
    margin = max(3, height // 4)
    base = round(height * 0.68)
    title = _shorten(title, width - 2 * margin, scale, thickness)
    _put(bar, title, (margin, base), scale, _LIGHT, thickness)
    used = _text_width(title, scale, thickness) + 3 * margin
    small = scale * 0.82
    note = _shorten(note, width - used - margin, small, thickness)
    if note:
        _put(bar, note, (width - margin - _text_width(note, small, thickness), base), small, _MUTED, thickness)
    return bar


def draw_status(picture: Picture, status: str, error: str | None) -> None:
    """Draw a red bar with a row's status word and error along the lower edge of ``picture``."""
    height, width = picture.shape[:2]
    scale, thickness, text_height = _text_style(height)
    bar = text_height + 10
    cv2.rectangle(picture, (0, height - bar), (width - 1, height - 1), _WARNING, cv2.FILLED)
    text = f"{status}: {error}" if error else status
    _put(picture, _shorten(text, width - 12, scale, thickness), (6, height - 6), scale, _LIGHT, thickness)


def panel_row(panels: Sequence[Picture]) -> Picture:
    """Join panels of equal size side by side with a thin gap."""
    if len(panels) == 1:
        return panels[0]
    gap = np.full((panels[0].shape[0], _GAP_PX, 3), _DARK, np.uint8)
    joined: list[Picture] = [panels[0]]
    for panel in panels[1:]:
        joined += [gap, panel]
    return np.concatenate(joined, axis=1)


def _tag(picture: Picture, text: str, x1: int, y1: int, y2: int, color: Color, line: int) -> None:
    """Draw a filled label on top of a box, or inside it where there is no room above; always within the picture."""
    height, width = picture.shape[:2]
    scale, thickness, text_height = _text_style(height)
    (text_width, _), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    tag_width, tag_height = text_width + 6, text_height + base + 2
    left = int(np.clip(x1 - line // 2, 0, max(0, width - tag_width)))
    top = y1 - tag_height if y1 >= tag_height else min(y1, max(0, y2 - tag_height))
    top = int(np.clip(top, 0, max(0, height - tag_height)))
    cv2.rectangle(picture, (left, top), (left + tag_width - 1, top + tag_height - 1), color, cv2.FILLED)
    bright = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2] > 120
    _put(picture, text, (left + 3, top + text_height + 1), scale, (20, 20, 20) if bright else (255, 255, 255), thickness)


@lru_cache(maxsize=64)
def _text_style(picture_height: int) -> tuple[float, int, int]:
    """Return (font scale, thickness, height of a capital in pixels) that can be read at this picture height."""
    scale = float(np.clip(picture_height / 900, 0.34, 1.2))
    thickness = max(1, round(scale * 1.6))
    return scale, thickness, int(cv2.getTextSize("Ag", cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][1])


def _text_width(text: str, scale: float, thickness: int) -> int:
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)[0][0])


def _shorten(text: str, width: int, scale: float, thickness: int) -> str:
    """Cut a text to ``width`` pixels."""
    text = _drawable(text)
    if _text_width(text, scale, thickness) <= width:
        return text
    while text and _text_width(text + "...", scale, thickness) > width:
        text = text[: -max(1, len(text) // 8)]
    return text + "..." if text else ""


def _drawable(text: str) -> str:
    """Replace what OpenCV's stroke fonts cannot draw."""
    return "".join(c if " " <= c <= "~" else "?" for c in " ".join(text.split()))


def _put(picture: Picture, text: str, at: tuple[int, int], scale: float, color: Color, thickness: int) -> None:
    cv2.putText(picture, _drawable(text), at, cv2.FONT_HERSHEY_SIMPLEX, scale, color, thickness, cv2.LINE_AA)
