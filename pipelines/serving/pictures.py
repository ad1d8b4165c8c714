"""Frames as JPEG for a browser, with boxes drawn on them. Knows no stream and no server."""

# H height, W width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from connectors.drawing import LabeledBoxes, decode_image, draw_boxes, panel_size, placeholder, resize_into
from connectors.extras import optional

cv2 = optional("cv2")

__all__ = ["Boxes", "Frame", "jpeg"]

_EMPTY_HW = (240, 320)
_SMALLEST = 192
"""Smaller frames are enlarged so far that words can be read on them."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as a source delivers it."""

    stream: str
    sequence: int
    time_us: int
    image: bytes | None
    encoding: str | None
    height: int | None
    width: int | None


@dataclass(frozen=True, slots=True)
class Boxes:
    """What a node has detected in a frame."""

    node: str
    sequence: int
    boxes: LabeledBoxes
    classes: Sequence[str]


def jpeg(
    frame: Frame, boxes: Sequence[Boxes] = (), *, max_height: int = 480, min_score: float = 0.3, quality: int = 85
) -> bytes:
    """Return a frame with the boxes that belong to it."""
    picture = decode_image(frame.image, frame.encoding, frame.height, frame.width)
    if picture is None:
        picture = placeholder(*_EMPTY_HW, "this frame cannot be decoded")
    height, width = panel_size(*picture.shape[:2], scale=max(1.0, _SMALLEST / picture.shape[0]), max_height=max_height)
    panel, factor, left, top = resize_into(picture, height, width)
    for one in boxes:
        if one.sequence <= frame.sequence:  # the last ones; a newer frame's would not fit
            draw_boxes(panel, one.boxes, one.classes, min_score=min_score, factor=factor, left=left, top=top)
    good, data = cv2.imencode(".jpg", panel, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert good  # any uint8 picture can be encoded
    encoded: bytes = data.tobytes()
    return encoded
