"""Stretches of films that the small model learns from: clips of rendered frames, questions about them, facts to be carried.

Each memory is also asked for the facts it must carry (``carried.py`` says why), and a question about what came before an event
can select no clip from before that event in which the answer stands by itself.
"""

# B stretches, K clips, T frames of a clip, N tokens per frame, C width, P frames of the pool, F frames, A facts

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.film_training import FramePool
from models.films import COLORS, COUNTS, NOTHING, SHAPES, TIMES, Event, answer_of, before_wording, wording
from models.videostreaming.carried import carried_facts
from models.videostreaming.losses import Asked

__all__ = ["KINDS", "Lesson", "Stretch", "Stretches"]

KINDS = ("color", "shape", "when", "count")
"""Of the questions whose answer the event itself shows."""

_FILM_CLIPS = 75  # of a film of ten minutes: how late a stretch may begin
_EVENT_FRAMES = (5, 9)
_WITH_PAST = 0.75  # of the questions about what came before: about an event that has one before it, or "nothing" answers most


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """A stretch of a film."""

    rows_KT: NDArray[np.int64]
    """Rows of the pool."""
    events: list[Event]
    """In the order of time, with frames counted from the stretch's first one."""
    times_s: list[tuple[float, float]]
    """Start and end of each clip."""


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Stretches of equal length and questions about them."""

    features_BKTNC: Tensor
    times_s: list[list[tuple[float, float]]]
    asked: list[Asked]
    facts_BKA: Tensor
    """What the memory of each clip is to carry on."""


class Stretches:
    """Draws stretches of films from rendered frames, and questions about them. Everything is a function of ``rng``."""

    def __init__(
        self, pool: FramePool, features_PNC: Tensor, rng: np.random.Generator, *, frames: int, clip_seconds: float
    ) -> None:
        """``features_PNC``: what the vision tower makes of the pool's frames; ``frames``: of a clip."""
        self._pool, self._features_PNC, self.rng = pool, features_PNC, rng
        self._frames, self._clip_seconds = frames, clip_seconds

    def again(self, rng: np.random.Generator) -> Stretches:
        """Return the same frames drawn from by another generator."""
        return Stretches(self._pool, self._features_PNC, rng, frames=self._frames, clip_seconds=self._clip_seconds)

    def lesson(self, number: int, clips: int, *, most_events: int, asked: int, before: float, among: bool = False) -> Lesson:
        """Draw ``number`` stretches of so many clips with ``asked`` questions about each."""
        drawn = [self.stretch(clips, most_events) for _ in range(number)]
        questions = [self.ask(stretch, b, before, among=among) for b, stretch in enumerate(drawn) for _ in range(asked)]
        rows_BKT = torch.from_numpy(np.stack([stretch.rows_KT for stretch in drawn]))
        facts = [carried_facts(stretch.events, clips, self._frames) for stretch in drawn]
        return Lesson(self._features_PNC[rows_BKT], [stretch.times_s for stretch in drawn], questions, torch.stack(facts))

    def stretch(self, clips: int, most_events: int) -> Stretch:
        """Draw a stretch of so many clips with up to so many events of different shapes and colors."""
        rng, length = self.rng, clips * self._frames
        number = int(rng.integers(1, most_events + 1))
        lengths = rng.integers(_EVENT_FRAMES[0], _EVENT_FRAMES[1] + 1, number)
        lengths = np.minimum(lengths, max(length // number - 1, 1))
        gaps = np.sort(rng.choice(length - int(lengths.sum()) + 1, number, replace=True))
        starts = gaps + np.cumsum(lengths) - lengths
        shapes, colors = rng.permutation(len(SHAPES)), rng.permutation(len(COLORS))
        counts = rng.integers(len(COUNTS), size=number)
        # The light changes as time goes on, in up to four parts of any length.
        time_F = np.searchsorted(np.sort(rng.integers(0, length + 1, len(TIMES) - 1)), np.arange(length), side="right")
        keys = [(0, 0, 0, int(time)) for time in time_F]
        events = []
        for e in range(number):
            span = range(int(starts[e]), int(starts[e] + lengths[e]))
            time = int(time_F[span.start])
            for frame in span:
                keys[frame] = (int(shapes[e]) + 1, int(colors[e]) + 1, int(counts[e]) + 1, time)
            said = (SHAPES[shapes[e]], list(COLORS)[colors[e]], COUNTS[counts[e]], list(TIMES)[time])
            events.append(Event(*said, span.start, span.stop))
        rows = [int(self._pool.rows[key][rng.integers(len(self._pool.rows[key]))]) for key in keys]
        first = int(rng.integers(0, _FILM_CLIPS - clips + 1))
        times_s = [(self._clip_seconds * k, self._clip_seconds * (k + 1)) for k in range(first, first + clips)]
        return Stretch(np.array(rows).reshape(clips, self._frames), events, times_s)

    def ask(self, stretch: Stretch, number: int, before: float, *, among: bool = False) -> Asked:
        """Draw a question about an event of stretch ``number``; a share of ``before`` is about what came before the event.

        The clips of the event are relevant; to a question about what came before only the one where it begins. That question
        can select no clip from before it; ``among``: only none from where the answer was first to be seen.
        """
        rng, events = self.rng, stretch.events
        place = int(rng.integers(len(events)))
        past = rng.random() < before
        if past and len(events) > 1 and rng.random() < _WITH_PAST:
            place = int(rng.integers(1, len(events)))
        event = events[place]
        first, last = event.start // self._frames, (event.stop - 1) // self._frames
        relevant_K = torch.zeros(len(stretch.rows_KT), dtype=torch.bool)
        relevant_K[first : (first if past else last) + 1] = True
        if past:
            earlier = events[place - 1] if place else None
            answer = NOTHING if earlier is None else earlier.color
            told_from = 0 if not among else first if earlier is None else earlier.start // self._frames
            return Asked(number, before_wording(event, rng), answer, relevant_K, hidden=range(told_from, first))
        kind = KINDS[rng.integers(len(KINDS))]
        return Asked(number, wording(kind, event, rng), answer_of(kind, event), relevant_K)
