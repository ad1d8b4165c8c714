"""Rendered clips with sound: a ball bounces, and what one sees decides what one hears.

A bounce is an onset, the color of the ball is the pitch, its shape the timbre. The ball falls as a ball does, so how high it
flies tells when it lands; the time of each flight is drawn, so that the past does not tell the rhythm. Where the ball hits, the
ground glows in its color for a moment. The same seed gives the same clip; frames and samples are made on demand, not stored.
"""

# H rows, W columns, N samples

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from connectors.errors import ConfigError
from models.films import COLORS, SIDE, coverage
from models.specvqgan.config import HOP, RATE

__all__ = ["PITCHES_HZ", "SHAPES", "Bounce", "Clip", "make_clip"]

PITCHES_HZ: dict[str, float] = {
    color: number * RATE / HOP for color, number in {"red": 5, "green": 7, "blue": 11, "yellow": 16}.items()
}
"""Color → pitch, near A4, D5, B5 and F6: multiples of the rate of mel frames, 86 Hz. What convolutions make of a spectrogram
that stands still repeats from frame to frame, so that a small vocoder has no other pitches. No partial of one is another one.
"""
SHAPES = ("circle", "square")
"""A circle sounds nearly pure, a square has odd partials."""

_PARTIALS = {"circle": {1: 1.0, 2: 0.12}, "square": {1: 0.8, 3: 0.4, 5: 0.25}}
_LEVEL, _ATTACK_S, _DECAY_S, _NOTE_S = 0.5, 0.002, 0.06, 0.75
_FLIGHT_S = (0.45, 1.1)
_ASIDE_PX, _DRIFT_PX = 2.0, 0.5
_RADIUS_PX, _GROUND_PX, _RISE_PX = 6.0, 37.0, 29.0
_LIGHT, _SHADE, _NOISE, _GLOW_S = 190.0, 110.0, 4.0, 0.08


@dataclass(frozen=True, slots=True)
class Bounce:
    """One time that the ball hits the ground."""

    time_s: float
    color: str
    """Of the ball from the top of its flight before to the top of its flight behind."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One ball for some seconds."""

    seed: int
    seconds: float
    shape: str
    bounces: tuple[Bounce, ...]
    """In order; the first one lies before the clip and the last one behind it, as the ball comes from and goes to somewhere."""
    across_px: tuple[float, float]
    """Where the ball begins from the left, and its speed per second; it turns around at the sides."""

    @property
    def heard(self) -> tuple[Bounce, ...]:
        """The bounces within the clip: the truth about its onsets and pitches."""
        return tuple(one for one in self.bounces if 0 <= one.time_s < self.seconds)

    def frame(self, time_s: float) -> NDArray[np.uint8]:
        """Render what is seen at a time as [H, W, 3] RGB."""
        height, color, last = self._ball(time_s)
        start, speed = self.across_px
        low, high = _RADIUS_PX + 1, SIDE - _RADIUS_PX - 1
        x = low + abs((start + speed * time_s - low + (high - low)) % (2 * (high - low)) - (high - low))
        image = np.full((SIDE, SIDE, 3), _LIGHT, np.float32)
        glow = float(np.exp(-(time_s - last.time_s) / _GLOW_S))
        image[round(_GROUND_PX + _RADIUS_PX - 1) :] = _SHADE + glow * (np.array(COLORS[last.color], np.float32) - _SHADE)
        center = np.array([x, _GROUND_PX - _RISE_PX * height])
        image += coverage(self.shape, center, _RADIUS_PX)[..., None] * (np.array(COLORS[color], np.float32) - image)
        noise = np.random.default_rng([self.seed, 1, round(1e6 * time_s)])
        image += _NOISE * noise.standard_normal(image.shape, np.float32)
        return np.rint(np.clip(image, 0, 255)).astype(np.uint8)

    def frames(self, rate: float) -> NDArray[np.uint8]:
        """Render the whole clip at so many frames per second as [F, H, W, 3] RGB."""
        return np.stack([self.frame(number / rate) for number in range(int(self.seconds * rate))])

    def samples(self) -> NDArray[np.float32]:
        """Return what is heard at 22,050 Hz as [N] in [-1, 1]; a bounce begins at the sample nearest to its time."""
        length = round(self.seconds * RATE)
        heard_N = np.zeros(length + round((_NOTE_S + 1) * RATE), np.float64)
        for one in self.heard:
            first = round(one.time_s * RATE)
            note_N = _note(self.shape, one.color)
            heard_N[first : first + len(note_N)] += note_N
        return heard_N[:length].astype(np.float32)

    def _ball(self, time_s: float) -> tuple[float, str, Bounce]:
        """Return height (1: the highest flight) and color of the ball, and its last bounce."""
        after = next(i for i, one in enumerate(self.bounces) if one.time_s > time_s)
        down, up = self.bounces[after], self.bounces[after - 1]
        flight_s = down.time_s - up.time_s
        way = (time_s - up.time_s) / flight_s
        return (flight_s / _FLIGHT_S[1]) ** 2 * 4 * way * (1 - way), (up if way < 0.5 else down).color, up


def make_clip(seed: int, seconds: float = 10.0) -> Clip:
    """Draw a clip. Raises ``ConfigError`` for one without length."""
    if not 0 < seconds < 3600:
        raise ConfigError(f"clips: seconds is {seconds}; more than 0 and less than 3600 are needed")
    rng = np.random.default_rng([seed, 0])
    colors = list(PITCHES_HZ)
    time_s = -float(rng.uniform(0.05, 1.0)) * _FLIGHT_S[1]
    bounces = []
    while True:
        bounces.append(Bounce(time_s, colors[rng.integers(len(colors))]))
        if time_s > seconds:
            break
        flight_s = float(rng.uniform(*_FLIGHT_S))
        # The flight that the clip begins in must reach into it.
        time_s += max(flight_s, -time_s + 1e-3) if len(bounces) == 1 else flight_s
    across_px = (SIDE / 2 + float(rng.uniform(-_ASIDE_PX, _ASIDE_PX)), float(rng.uniform(-_DRIFT_PX, _DRIFT_PX)))
    return Clip(seed, seconds, SHAPES[rng.integers(len(SHAPES))], tuple(bounces), across_px)


def _note(shape: str, color: str) -> NDArray[np.float64]:
    time_N = np.arange(round(_NOTE_S * RATE)) / RATE
    fade_N = np.minimum(time_N / _ATTACK_S, 1.0) * np.exp(-time_N / _DECAY_S)
    tone_N = sum(
        (level * np.sin(2 * np.pi * number * PITCHES_HZ[color] * time_N) for number, level in _PARTIALS[shape].items()),
        np.zeros(len(time_N)),
    )
    return np.asarray(_LEVEL * fade_N * tone_N)
