"""Trains a matcher on rendered frames of shapes, for any method whose encoders know the words of the films.

A text is about one to four things at once: a shape, a color, a number, the light. Frames are drawn singly, so films of every
seed are unseen. Everything is a function of the seed.
"""

# B frames and Q texts of a step, N rendered frames, W width of a word

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.film_training import film_stage, render_pool
from models.films import COLORS, COUNTS, PLURALS, SHAPES, TIMES, Event, make_film, wording
from models.standing.header import MatcherConfig
from models.standing.matcher import FrameMatcher, encoder_name, frame_vectors, save_matcher
from models.training import Training, TrainResult

__all__ = ["RECIPE", "About", "MatcherSchedule", "about_text", "draw_about", "run_matcher_recipe", "train_matcher"]

RECIPE = "standing"
"""Its name among the recipes of each method that it can be trained beside."""

_KINDS = ("color", "shape", "when", "count")
_FRAMES_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class MatcherSchedule:
    """Length and rate."""

    variants: int = 64
    """Rendered frames per kind of event."""
    texts: int = 12_000
    """Texts that are drawn once."""
    steps: int = 8000
    batch: int = 256
    rate: float = 3e-3
    unseen_films: int = 3
    """Films of ten minutes that the figures at the end come from."""


@dataclass(frozen=True, slots=True)
class About:
    """What a text is about: words of films, None where it does not matter."""

    shape: str | None = None
    color: str | None = None
    count: str | None = None
    time: str | None = None

    def holds(self, event: Event | None) -> bool:
        """Return whether a frame of this event shows it."""
        wanted = ((self.shape, "shape"), (self.color, "color"), (self.count, "count"), (self.time, "time"))
        return event is not None and all(word is None or getattr(event, name) == word for word, name in wanted)


def draw_about(rng: np.random.Generator, *, single: float = 0.4) -> About:
    """Draw what a text is about; a share of ``single`` is about a shape or a color alone."""
    shape, color = str(rng.choice(SHAPES)), str(rng.choice(list(COLORS)))
    if rng.random() < single:
        return About(shape=shape) if rng.random() < 0.5 else About(color=color)
    keep = rng.random(4) < (0.7, 0.7, 0.4, 0.3)
    if not keep[:2].any():
        keep[int(rng.integers(2))] = True
    count, time = str(rng.choice(COUNTS)), str(rng.choice(list(TIMES)))
    return About(*(word if kept else None for word, kept in zip((shape, color, count, time), keep, strict=True)))


def about_text(about: About, rng: np.random.Generator) -> str:
    """Return a question about it in a wording drawn from ``rng``; words are those of the films' questions and answers."""
    if about.count is None and about.time is None and (about.shape is None) != (about.color is None):
        event = Event(about.shape or "circle", about.color or "red", "", "", 0, 1)
        named, other = (event.color, event.shape) if about.shape is None else (event.shape, event.color)
        kinds = [kind for kind in _KINDS if _fits(kind, about)]
        while True:  # a wording names a shape or a color; one that names the other is about something else
            text = wording(str(rng.choice(kinds)), event, rng)
            if named in text and other not in text:
                return text
    many = about.count in COUNTS[1:]
    noun = ("things" if many else "thing") if about.shape is None else PLURALS[about.shape] if many else about.shape
    thing = " ".join(word for word in (about.count, about.color, noun) if word)
    time = f" {about.time}" if about.time else ""
    forms = ("when did the {} appear{}?", "when was the {} there{}?", "was the {} there{}?", "how many {} were there{}?")
    return forms[rng.integers(len(forms))].format(thing, time)


def _fits(kind: str, about: About) -> bool:
    return kind in ("when", "count") or (kind == "color") == (about.color is None)


def train_matcher(
    frames: Callable[[Tensor], Tensor],
    words: Callable[[str], Tensor],
    *,
    seed: int = 0,
    schedule: MatcherSchedule | None = None,
    training: Training | None = None,
) -> FrameMatcher:
    """Train a matcher. ``frames``: uint8 RGB [F, H, W, 3] to tokens [F, T, C]; ``words``: a text to its embeddings [n, W]."""
    schedule, training = schedule or MatcherSchedule(), training or Training()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rng = np.random.default_rng([seed, 11])
        pool = render_pool(schedule.variants, rng)
        with torch.no_grad():
            parts = torch.split(pool.frames_NHW3, _FRAMES_AT_ONCE)
            vectors_NX = torch.cat([frame_vectors(list(frames(part))) for part in parts])
        config = MatcherConfig(frame_width=vectors_NX.shape[1], word_width=words("red").shape[1])
        matcher = FrameMatcher(config)
        abouts = [draw_about(rng) for _ in range(schedule.texts)]
        with torch.no_grad():
            sums_QW = torch.stack([words(about_text(about, rng)).float().sum(dim=0) for about in abouts])
        wanted_Q4 = _wanted(abouts)
        labels_N4 = torch.stack([pool.labels[name] for name in ("shape", "color", "count", "when")], dim=1)

        def losses(step: int) -> Iterator[Mapping[str, Tensor]]:
            rows = torch.from_numpy(rng.integers(len(vectors_NX), size=schedule.batch))
            asked = torch.from_numpy(rng.integers(len(abouts), size=schedule.batch))
            logits_BQ = matcher.logits(vectors_NX[rows], matcher.sums(sums_QW[asked]))
            truth_BQ = _truth(labels_N4[rows], wanted_Q4[asked])
            yield {"match": binary_cross_entropy_with_logits(logits_BQ, truth_BQ.float())}

        training.run(film_stage("match", schedule.steps, schedule.rate, matcher, losses, rng, kept=matcher))
    return matcher.eval().requires_grad_(False)


def _wanted(abouts: Sequence[About]) -> Tensor:
    """Return what texts are about as labels of frames, [Q, 4]; -1 where it does not matter."""
    lists = (("", *SHAPES), ("", *COLORS), ("", *COUNTS), tuple(TIMES))
    return torch.tensor(
        [
            [-1 if word is None else words.index(word) for word, words in zip(dataclasses.astuple(about), lists, strict=True)]
            for about in abouts
        ]
    )


def _truth(labels_B4: Tensor, wanted_Q4: Tensor) -> Tensor:
    """Return which frames show what texts are about, [B, Q]."""
    same_BQ4 = (labels_B4[:, None] == wanted_Q4) | (wanted_Q4 == -1)
    return same_BQ4.all(dim=2) & (labels_B4[:, None, 0] > 0)


def run_matcher_recipe(
    training: Training,
    method: str,
    seed: int,
    *,
    frames: Callable[[Tensor], Tensor],
    words: Callable[[str], Tensor],
    words_VW: Tensor,
    schedule: MatcherSchedule | None = None,
) -> TrainResult:
    """Train a matcher beside a method's small model, write ``standing.safetensors`` and measure it on unseen films.

    ``words_VW``: the table of ``words``, by which the file names the model.
    """
    schedule = schedule or MatcherSchedule()
    settings = {"method": method, "recipe": RECIPE, "seed": seed, "schedule": dataclasses.asdict(schedule)}
    if (complete := training.open(settings)) is not None:
        return complete
    matcher = train_matcher(frames, words, seed=seed, schedule=schedule, training=training)
    weights = training.path / f"{RECIPE}.safetensors"
    save_matcher(matcher, weights, encoders=encoder_name(words_VW))
    return training.finish(weights, _measure(matcher, frames, words, schedule.unseen_films, seed))


@torch.inference_mode()
def _measure(
    matcher: FrameMatcher, frames: Callable[[Tensor], Tensor], words: Callable[[str], Tensor], films: int, seed: int
) -> dict[str, float]:
    """Return the share of frames that show what a text is about and are matched, and of those that do not and are."""
    rng = np.random.default_rng([seed, 12])
    hits = shown = wrong = others = 0
    for number in range(films):
        film = make_film(number)
        abouts = [draw_about(rng) for _ in range(40)]
        texts_QE = matcher.texts([words(about_text(about, rng)) for about in abouts])
        parts = torch.split(torch.from_numpy(film.frames()), _FRAMES_AT_ONCE)
        vectors_FX = torch.cat([frame_vectors(list(frames(part))) for part in parts])
        matched_FQ = matcher.logits(vectors_FX, texts_QE) >= 0
        truth_FQ = torch.zeros_like(matched_FQ)
        for event in film.events:
            truth_FQ[event.start : event.stop] = torch.tensor([about.holds(event) for about in abouts])
        hits, shown = hits + int((matched_FQ & truth_FQ).sum()), shown + int(truth_FQ.sum())
        wrong, others = wrong + int((matched_FQ & ~truth_FQ).sum()), others + int((~truth_FQ).sum())
    return {"frames_found": hits / max(shown, 1), "frames_wrong": wrong / max(others, 1)}
