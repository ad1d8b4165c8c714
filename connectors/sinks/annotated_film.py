"""What an annotated film must remember from one epoch to the next, and its form as the note that ends a file's piece."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from connectors.drawing import LabeledBoxes

__all__ = ["STEP_US", "Film", "Row", "film_of", "note_of"]

STEP_US = 40_000
"""How long a frame is shown of which nothing is known."""


@dataclass(slots=True)
class Row:
    """What one node found in one frame."""

    time_us: int
    boxes: LabeledBoxes
    status: str
    error: str | None


@dataclass(slots=True)
class Film:
    """How to go on with a file, after its last piece; all of it stands in the file's note."""

    number: int
    """1, and more where a run went on with another size or encoder."""
    panel: tuple[int, int]
    """Height and width, fixed by the first frame of the file."""
    end: int = 0
    """Bytes so far."""
    head: str | None = None
    fragments: int = 0
    frames: int = 0
    shown_us: int = 0
    """When the last frame is shown, from the start of the file."""
    time_us: int | None = None
    """Its event time."""
    step_us: int = STEP_US
    """The last step between two frames."""
    start_us: int | None = None
    """Event time of the first frame."""
    sounded: int = 0
    """Moments of sound so far."""
    sound_sequence: int | None = None
    """Of the last row of sound."""
    held: dict[str, Row] = field(default_factory=dict)
    """Node → its last row."""


def note_of(film: Film, epoch: int) -> dict[str, Any]:
    """Return what must be known to go on with a file after ``epoch``, as JSON values."""
    note = {name: value for name, value in asdict(film).items() if name not in ("held", "number", "end")}
    held = {node: [row.time_us, *(part.tolist() for part in _parts(row.boxes))] for node, row in film.held.items()}
    return {"epoch": epoch, **note, "held": held}


def film_of(number: int, end: int, note: dict[str, Any]) -> Film:
    """Return how to go on with the file of this number and size that ends with ``note``."""
    known = {name: value for name, value in note.items() if name not in ("epoch", "held")}
    film = Film(number=number, end=end, **{**known, "panel": tuple(note["panel"])})
    for node, (time_us, xyxy, score, label) in note["held"].items():
        boxes = LabeledBoxes(
            np.reshape(np.array(xyxy, np.float32), (-1, 4)), np.array(score, np.float32), np.array(label, np.int64)
        )
        film.held[node] = Row(time_us, boxes, "ok", None)
    return film


def _parts(boxes: LabeledBoxes) -> tuple[Any, ...]:
    return boxes.xyxy_N4, boxes.score_N, boxes.label_N
