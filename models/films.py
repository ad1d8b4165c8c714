"""Films of colored shapes for the small model: long, mostly empty, with short events that questions are asked about.

An event is a few seconds of one, two or three equal objects; within a film no two events share shape or color. The light
tells the time of day. NumPy and OpenCV only; the same seed gives the same pixels, and any frame can be rendered on its own.
"""

# F frames, H rows, W columns, P corners

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from connectors.errors import ConfigError, SinkError
from connectors.extras import optional

cv2 = optional("cv2")

__all__ = [
    "COLORS",
    "COUNTS",
    "NOTHING",
    "PLURALS",
    "SHAPES",
    "SIDE",
    "TIMES",
    "Event",
    "Film",
    "FilmQuestion",
    "answer_of",
    "before_wording",
    "coverage",
    "make_film",
    "order_questions",
    "questions",
    "render",
    "wording",
    "write_mp4",
]

SIDE = 48
"""Rows and columns of a frame, px."""
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 25, 25),
    "green": (30, 175, 40),
    "blue": (40, 60, 230),
    "yellow": (240, 225, 30),
    "magenta": (220, 40, 210),
    "cyan": (40, 215, 220),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
COUNTS = ("one", "two", "three")
TIMES: dict[str, tuple[int, int, int]] = {
    "in the morning": (150, 150, 120),
    "at noon": (225, 225, 225),
    "in the evening": (150, 95, 80),
    "at night": (35, 35, 50),
}
"""What is said about a time of day → the light of the background, RGB."""
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses", "ring": "rings"}

_WORDINGS = {
    "color": ("what colour was the {shape}?", "which colour did the {shape} have?"),
    "shape": ("which shape was {color}?", "what shape was the {color} thing?"),
    "when": ("when did the {shape} appear?", "when was the {color} thing there?"),
    "count": ("how many {plural} were there?", "how many {color} things were there?"),
}
NOTHING = "nothing"
_BEFORE = ("which colour came before the {shape}?", "what colour was there before the {shape}?")

_OUTLINES = {
    "square": np.array([[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]]),
    "triangle": np.array([[0.0, -1.0], [1.0, 0.8], [-1.0, 0.8]]),
    # Corners clockwise from the top: x, then y.
    "cross": np.array([[-3, 3, 3, 10, 10, 3, 3, -3, -3, -10, -10, -3], [-10, -10, -3, -3, 3, 3, 10, 10, 3, 3, -3, -3]]).T / 10,
}
_SPOTS = np.array([[12.0, 12.0], [36.0, 12.0], [12.0, 36.0], [36.0, 36.0]])
_JITTER_PX, _NOISE = 3.0, 6.0
_SUBPIXEL_BITS = 4
_SPEED = 0.8  # px per frame


@dataclass(frozen=True, slots=True)
class Event:
    """Some equal objects for some frames; ``shape``, ``color``, ``count`` and ``time`` are words of the answers."""

    shape: str
    color: str
    count: str
    time: str
    start: int
    """First frame."""
    stop: int
    """Behind the last frame."""

    @property
    def frames(self) -> range:
        """The frames that show it."""
        return range(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class FilmQuestion:
    """A question about a film in plain words, its answer, and the event that holds it."""

    kind: str
    text: str
    answer: str
    event: Event


@dataclass(frozen=True, slots=True)
class Film:
    """One film as a list of events."""

    seed: int
    length: int
    """Frames."""
    events: tuple[Event, ...]

    def frame(self, t: int) -> NDArray[np.uint8]:
        """Render frame ``t`` as [H, W, 3] RGB."""
        event = next((e for e in self.events if t in e.frames), None)
        time = list(TIMES)[min(t * len(TIMES) // self.length, len(TIMES) - 1)]
        noise = np.random.default_rng([self.seed, 1, t])
        if event is None:
            return render(None, time, 0, noise, noise)
        # Where the objects are is drawn once per event, so that they move and do not jump.
        return render(event, time, t - event.start, np.random.default_rng([self.seed, 2, event.start]), noise)

    def frames(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Render frames as [F, H, W, 3] RGB."""
        return np.stack([self.frame(t) for t in range(start, self.length if stop is None else stop)])


def make_film(seed: int, *, length: int = 600, events: int = 5, shortest: int = 5, longest: int = 9) -> Film:
    """Draw a film of ``length`` frames with ``events`` events of ``shortest`` to ``longest`` frames. Raises ``ConfigError``."""
    if not 1 <= events <= len(SHAPES) or not 1 <= shortest <= longest or events * longest * 2 > length:
        raise ConfigError(
            f"films: {events} events of {shortest} to {longest} frames in {length} frames; at most {len(SHAPES)} events, "
            "and at most half of the frames may show one"
        )
    rng = np.random.default_rng([seed, 0])
    lengths = rng.integers(shortest, longest + 1, events)
    gaps = np.sort(rng.choice(length - int(lengths.sum()), events, replace=False))
    starts = gaps + np.concatenate(([0], np.cumsum(lengths)[:-1]))
    shapes, colors = rng.permutation(len(SHAPES)), rng.permutation(len(COLORS))
    made = []
    for i in range(events):
        # An event belongs to the time of day in which it begins; the light changes with it at the latest at its end.
        start, stop = int(starts[i]), int(starts[i] + lengths[i])
        quarter = [min(t * len(TIMES) // length, len(TIMES) - 1) for t in (start, stop - 1)]
        if quarter[0] != quarter[1]:
            stop = next(t for t in range(start, stop) if min(t * len(TIMES) // length, len(TIMES) - 1) != quarter[0])
        made.append(
            Event(
                SHAPES[shapes[i]],
                list(COLORS)[colors[i]],
                COUNTS[rng.integers(len(COUNTS))],
                list(TIMES)[quarter[0]],
                start,
                stop,
            )
        )
    return Film(seed, length, tuple(made))


def questions(film: Film, rng: np.random.Generator) -> list[FilmQuestion]:
    """Return one question of each kind about each event, in a wording drawn from ``rng``."""
    return [
        FilmQuestion(kind, wording(kind, event, rng), answer_of(kind, event), event)
        for event in film.events
        for kind in _WORDINGS
    ]


def order_questions(film: Film, rng: np.random.Generator) -> list[FilmQuestion]:
    """Return a question about each event whose answer stands in the event before: its color, or ``NOTHING``."""
    return [
        FilmQuestion("before", before_wording(event, rng), before.color if before is not None else NOTHING, event)
        for before, event in zip((None, *film.events[:-1]), film.events, strict=True)
    ]


def before_wording(event: Event, rng: np.random.Generator) -> str:
    """Return a question for the color of what came before an event."""
    return _BEFORE[rng.integers(len(_BEFORE))].format(shape=event.shape)


def wording(kind: str, event: Event, rng: np.random.Generator) -> str:
    """Return a question of a kind ("color", "shape", "when", "count") about an event."""
    text = _WORDINGS[kind][rng.integers(len(_WORDINGS[kind]))]
    return text.format(shape=event.shape, color=event.color, plural=PLURALS[event.shape])


def answer_of(kind: str, event: Event) -> str:
    """Return the right answer to a question of a kind."""
    return {"color": event.color, "shape": event.shape, "when": event.time, "count": event.count}[kind]


def render(
    event: Event | None, time: str, step: int, places: np.random.Generator, noise: np.random.Generator
) -> NDArray[np.uint8]:
    """Render a frame [H, W, 3] RGB: ``step`` frames into an event, or none; ``places`` draws where its objects are."""
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = TIMES[time]
    image *= np.linspace(1.06, 0.94, SIDE, dtype=np.float32)[:, None, None]
    if event is not None:
        count = COUNTS.index(event.count) + 1
        for spot in places.permutation(len(_SPOTS))[:count]:
            center = _SPOTS[spot] + places.uniform(-_JITTER_PX, _JITTER_PX, 2)
            angle, radius = places.uniform(0, 2 * np.pi), places.uniform(6.0, 8.5)
            # To and fro, so that an object stays on its spot for an event of any length.
            swing = _SPEED * (2 - abs(step % 8 - 4))
            center = center + swing * np.array([np.cos(angle), np.sin(angle)])
            alpha = coverage(event.shape, center, radius)
            image += alpha[..., None] * (np.array(COLORS[event.color], np.float32) - image)
    image += _NOISE * noise.standard_normal(image.shape, np.float32)
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def write_mp4(film: Film, path: str | Path, *, fps: float = 1.0, scale: int = 5) -> None:
    """Write a film as MP4, each side enlarged ``scale`` times. Raises ``SinkError``."""
    side = SIDE * scale
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (side, side))
    if not writer.isOpened():
        raise SinkError(
            f"cannot write {path} at {fps:g} frames a second: the folder must exist, OpenCV must be able to write 'mp4v' in "
            "MP4; it takes no rate whose numerator is above 65535"
        )
    try:
        for t in range(film.length):
            large = cv2.resize(film.frame(t), (side, side), interpolation=cv2.INTER_CUBIC)
            writer.write(cv2.cvtColor(large, cv2.COLOR_RGB2BGR))
    finally:
        writer.release()


def coverage(shape: str, center_2: NDArray[np.float64], radius: float) -> NDArray[np.float32]:
    """Return the share of each pixel that the shape covers, [H, W]."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    scale = 1 << _SUBPIXEL_BITS
    if shape in _OUTLINES:
        corners_P2 = np.rint((center_2 - 0.5 + radius * _OUTLINES[shape]) * scale).astype(np.int32)
        cv2.fillPoly(mask, [corners_P2], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    else:
        x, y = np.rint((center_2 - 0.5) * scale).astype(int).tolist()
        cv2.circle(mask, (x, y), round(radius * scale), 255, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)
        if shape == "ring":
            cv2.circle(mask, (x, y), round(0.55 * radius * scale), 0, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)
    return mask.astype(np.float32) / 255.0
