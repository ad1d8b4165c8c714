"""How well a model answers about films it has not seen: by selection, from the newest memories, without memory, from frames.

All get the same number of video tokens. ``uniform`` is the way without a memory of the whole film: as many clips as are
selected otherwise, spread evenly, each encoded for itself.
"""

# F frames, T frames of a clip, N tokens per frame, K clips, C width

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.films import Film, FilmQuestion, order_questions, questions
from models.videostreaming.answering import Prompt, Shown, answer_prompts
from models.videostreaming.encoding import Clip, EncodedClip, encode_clips, encode_questions
from models.videostreaming.loaders import VideoStreaming
from models.videostreaming.selection import similarities, stored_indicator, top_clips

__all__ = ["GAPS", "MODES", "FilmQuality", "ask_film", "encode_film", "film_features", "film_quality", "select"]

MODES = ("memory", "no_propagation", "last", "uniform", "blind")
"""Selected memories; the same of clips that see nothing of the past; the newest ones; clips spread evenly; none."""

GAPS = {"none before": range(0), "0-2 clips": range(3), "3-10 clips": range(3, 11), "over 10 clips": range(11, 10**6)}
"""How many clips lie between an event and the one before it, that of its end and that of the other's beginning not counted."""

_MAX_NEW_TOKENS = 8
_FRAMES_AT_ONCE = 128


@dataclass(slots=True)
class FilmQuality:
    """Figures over all questions of all films."""

    questions: int
    accuracy: dict[str, float]
    """Per mode: share of answers that are right, word for word; questions about what came before stand apart."""
    accuracy_by_kind: dict[str, dict[str, float]]
    recall: dict[str, float]
    """Per mode that selects: share of questions that selected a clip which shows the event asked about."""
    guess: float
    """Share of right answers if to every kind of question the commonest of its right answers was given."""
    before_guess: float
    """The same of questions about what came before."""
    before_by_film: dict[str, list[float]]
    """What came before: share of right answers per mode, of each film."""
    before_by_gap: dict[str, dict[str, float]]
    """What came before: share of right answers per mode, by the clips between the two events; ``GAPS``."""


def film_features(ready: VideoStreaming, film: Film) -> Tensor:
    """Return the features of all frames of a film, [F, N, C]."""
    starts = range(0, film.length, _FRAMES_AT_ONCE)
    frames = (film.frames(start, min(start + _FRAMES_AT_ONCE, film.length)) for start in starts)
    with torch.inference_mode():
        return torch.cat([ready.model.frame_tokens(torch.from_numpy(part)) for part in frames])


@torch.inference_mode()
def encode_film(ready: VideoStreaming, features_FNC: Tensor, *, propagate: bool = True) -> list[EncodedClip]:
    """Encode a film of one frame per second, clip after clip."""
    frames, encoded = ready.config.frames_per_clip, []
    memory: Tensor | None = None
    for k, part_TNC in enumerate(torch.split(features_FNC, frames)):
        time_ids = ready.time_ids(k * frames, k * frames + len(part_TNC), first=k == 0)
        (one,) = encode_clips(ready.model, [Clip(part_TNC, time_ids, memory)])
        memory = one.memory_MD if propagate else None
        encoded.append(one)
    return encoded


@torch.inference_mode()
def select(ready: VideoStreaming, encoded: Sequence[EncodedClip], texts: Sequence[str]) -> list[tuple[list[int], Tensor]]:
    """Return the clips that each question selects, ascending, and the similarity of all."""
    stored_KD = stored_indicator(torch.stack([one.indicator_D for one in encoded]), ready.config.similarity)
    ids = [ready.asked_ids(text) for text in texts]
    found = []
    for indicator_D in encode_questions(ready.model, [encoded[-1].memory_MD] * len(texts), ids):
        scores_K = similarities(indicator_D, stored_KD, ready.config.similarity)
        found.append((top_clips(scores_K, ready.config.select_clips).tolist(), scores_K))
    return found


def ask_film(ready: VideoStreaming, film: Film, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Return what the model answers to questions at the end of a film, and how sure it is."""
    encoded = encode_film(ready, film_features(ready, film))
    return _answers(ready, encoded, [places for places, _ in select(ready, encoded, texts)], texts)


def film_quality(ready: VideoStreaming, films: Iterable[Film], modes: Sequence[str] = MODES) -> FilmQuality:
    """Ask every question about every film in every mode."""
    right: dict[tuple[str, str], list[bool]] = {}
    found: dict[str, list[bool]] = {}
    wanted: dict[str, Counter[str]] = {}
    by_film: dict[str, list[float]] = {}
    by_gap: dict[tuple[str, str], list[bool]] = {}
    for film in films:
        rng = np.random.default_rng([film.seed, 3])
        asked = [*questions(film, rng), *order_questions(film, rng)]
        texts = [one.text for one in asked]
        for one in asked:
            wanted.setdefault(one.kind, Counter())[one.answer] += 1
        features_FNC = film_features(ready, film)
        clips = {True: encode_film(ready, features_FNC), False: encode_film(ready, features_FNC, propagate=False)}
        count = ready.config.select_clips
        for mode in modes:
            encoded = clips[mode == "memory" or mode == "last"]
            length = len(encoded)
            spread = ((np.arange(count) + 0.5) * length / count).astype(int).tolist()
            fixed = {"last": list(range(length - count, length)), "uniform": spread, "blind": []}
            chosen = [fixed[mode]] * len(asked) if mode in fixed else [places for places, _ in select(ready, encoded, texts)]
            answers = _answers(ready, encoded, chosen, texts)
            past = [said == one.answer for one, (said, _) in zip(asked, answers, strict=True) if one.kind == "before"]
            by_film.setdefault(mode, []).append(float(np.mean(past)))
            for one, (said, _), places in zip(asked, answers, chosen, strict=True):
                right.setdefault((mode, one.kind), []).append(said == one.answer)
                found.setdefault(mode, []).append(_shows(one, places, ready.config.frames_per_clip))
                if one.kind == "before":
                    by_gap.setdefault((_gap(film, one, ready.config.frames_per_clip), mode), []).append(said == one.answer)
    kinds = sorted({kind for _, kind in right})
    plain = [kind for kind in kinds if kind != "before"]
    every = {kind: sum(answers.values()) for kind, answers in wanted.items()}
    commonest = {kind: max(answers.values()) for kind, answers in wanted.items()}
    return FilmQuality(
        questions=len(next(iter(found.values()))),
        accuracy={mode: float(np.mean([x for kind in plain for x in right[mode, kind]])) for mode in modes},
        accuracy_by_kind={kind: {mode: float(np.mean(right[mode, kind])) for mode in modes} for kind in kinds},
        recall={mode: float(np.mean(found[mode])) for mode in modes},
        guess=sum(commonest[kind] for kind in plain) / sum(every[kind] for kind in plain),
        before_guess=commonest["before"] / every["before"],
        before_by_film=by_film,
        before_by_gap={
            gap: {mode: float(np.mean(by_gap[gap, mode])) for mode in modes} for gap in GAPS if (gap, modes[0]) in by_gap
        },
    )


def _shows(asked: FilmQuestion, places: Sequence[int], frames: int) -> bool:
    """Tell whether a chosen clip has a frame of the event."""
    return any(asked.event.start < (k + 1) * frames and asked.event.stop > k * frames for k in places)


def _gap(film: Film, asked: FilmQuestion, frames: int) -> str:
    """Return which of ``GAPS`` lies before an event."""
    place = film.events.index(asked.event)
    if not place:
        return "none before"
    between = asked.event.start // frames - (film.events[place - 1].stop - 1) // frames - 1
    return next(gap for gap, clips in GAPS.items() if max(between, 0) in clips)


def _answers(
    ready: VideoStreaming, encoded: Sequence[EncodedClip], chosen: Sequence[Sequence[int]], texts: Sequence[str]
) -> list[tuple[str, float]]:
    """Return what is answered to each question from the chosen clips, and how sure the model is."""
    frames, prefix = ready.config.frames_per_clip, ready.prefix_ids()
    prompts = []
    for places, text in zip(chosen, texts, strict=True):
        shown = [Shown(ready.shown_ids(k * frames, (k + 1) * frames), encoded[k].memory_MD) for k in places]
        prompts.append(Prompt(prefix, shown, ready.prompt_ids(text)))
    tokens, confidences = answer_prompts(ready.model, prompts, [_MAX_NEW_TOKENS] * len(texts), ready.end_tokens)
    return [(ready.tokenizer.decode(said), sure) for said, sure in zip(tokens, confidences, strict=True)]
