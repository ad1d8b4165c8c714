"""How well a model answers about films it has not seen: with its memory, from evenly spread frames, from the last ones, blind.

The first three get the same number of frames, so the same number of tokens. Retrieval is judged by the frames of the event
that holds the answer. Where the memory's blocks are kept is up to the caller; every mode goes through the session that a
running stream has.
"""

# F frames, H rows, W columns

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.films import Film, FilmQuestion, questions
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.encoding import encode_frames
from models.rekv.generate import TokenAnswer, TokenQuestion, answer_questions
from models.rekv.loaders import VideoLanguageModel
from models.rekv.session import StreamView, open_stream
from models.rekv.store import ReadableBlocks, TensorStore, WritableBlocks

__all__ = ["MODES", "FilmBlocks", "FilmQuality", "OpenBlocks", "ask_film", "film_features", "film_quality"]

MODES = ("memory", "uniform", "recent", "blind")
"""Retrieval from all frames; as many frames evenly spread over the film; the newest ones; none, the question's text alone."""

_MAX_NEW_TOKENS = 8
_FRAMES_AT_ONCE = 128


class FilmBlocks(WritableBlocks, Protocol):
    """The blocks of one film, written and then read."""

    def reader(self) -> ReadableBlocks:
        """Return what was written."""


OpenBlocks = Callable[[TextDecoder, int], AbstractContextManager[FilmBlocks]]
"""Decoder and tokens per frame → empty blocks for the frames of one film."""


@dataclass(slots=True)
class FilmQuality:
    """Figures over all questions of all films."""

    questions: int
    accuracy: dict[str, float]
    """Per mode: share of answers that are right, word for word."""
    accuracy_by_kind: dict[str, dict[str, float]]
    recall: float
    """Mean share of the event's frames that a layer retrieved (at most as many as it may retrieve)."""
    recall_by_layer: list[float]
    guess: float
    """Share of right answers if to every kind of question the commonest of its right answers was given."""


def film_quality(
    model: VideoLanguageModel, config: ReKVConfig, films: Iterable[Film], *, blocks: OpenBlocks | None = None
) -> FilmQuality:
    """Ask every question about every film in every mode. ``blocks``: where encoded frames are kept; default: plain tensors."""
    right: dict[tuple[str, str], list[bool]] = {}
    wanted: dict[str, Counter[str]] = {}
    recalls: list[list[float]] = []
    for film in films:
        asked = questions(film, np.random.default_rng([film.seed, 3]))
        features_FTC = film_features(model, film)
        count = min(config.retrieve_frames, film.length)
        spread = (np.arange(count) + 0.5) * film.length / count
        views = {
            "memory": features_FTC,
            "uniform": features_FTC[torch.from_numpy(spread.astype(np.int64))],
            "recent": features_FTC[-count:],
            "blind": features_FTC[:0],
        }
        for one in asked:
            wanted.setdefault(one.kind, Counter())[one.answer] += 1
        for mode in MODES:
            answers = ask_film(model, config, views[mode], [one.text for one in asked], blocks=blocks)
            for one, answer in zip(asked, answers, strict=True):
                said = model.tokenizer.decode(answer.tokens) if model.tokenizer else ""
                right.setdefault((mode, one.kind), []).append(said == one.answer)
                if mode == "memory":
                    recalls.append([_recall(one, frames, config.retrieve_frames) for frames in answer.retrieved])
    by_layer = np.mean(recalls, axis=0)
    kinds = sorted({kind for _, kind in right})
    return FilmQuality(
        questions=len(recalls),
        accuracy={mode: float(np.mean([x for kind in kinds for x in right[mode, kind]])) for mode in MODES},
        accuracy_by_kind={kind: {mode: float(np.mean(right[mode, kind])) for mode in MODES} for kind in kinds},
        recall=float(by_layer.mean()),
        recall_by_layer=[float(x) for x in by_layer],
        guess=sum(max(answers.values()) for answers in wanted.values()) / len(recalls),
    )


def _plain_blocks(decoder: TextDecoder, tokens: int) -> AbstractContextManager[FilmBlocks]:
    return contextlib.nullcontext(TensorStore(decoder.layers))


def film_features(model: VideoLanguageModel, film: Film) -> Tensor:
    """Return the features of all frames of a film, [F, T, C]."""
    if model.video is not None:
        raise ValueError("films are watched by models that take frames of one size")
    starts = range(0, film.length, _FRAMES_AT_ONCE)
    frames = (film.frames(start, min(start + _FRAMES_AT_ONCE, film.length)) for start in starts)
    return torch.cat([model.frames(torch.from_numpy(part)) for part in frames])


def ask_film(
    model: VideoLanguageModel,
    config: ReKVConfig,
    features_FTC: Tensor,
    texts: Sequence[str],
    *,
    blocks: OpenBlocks | None = None,
) -> list[TokenAnswer]:
    """Encode the frames of a film and answer questions about all of it. ``blocks``: as for :func:`film_quality`."""
    decoder, tokens = model.decoder, features_FTC.shape[1]
    prefix, grid = model.prefix(), decoder.grid(tokens)
    with (blocks or _plain_blocks)(decoder, tokens) as kept:
        encode_frames(decoder, config, [open_stream(decoder, config, prefix, grid, kept)], [features_FTC])
        seen = StreamView(prefix, grid, kept.reader())
        batch = [
            TokenQuestion(
                stream=seen,
                question_ids_n=model.ids(text),
                prompt_ids_n=model.ids(model.prompts.open_ended(text)),
                max_new_tokens=_MAX_NEW_TOKENS,
                allow_blind=True,
            )
            for text in texts
        ]
        return answer_questions(decoder, config, batch, model.end_tokens)


def _recall(asked: FilmQuestion, frames: Tensor, most: int) -> float:
    wanted = set(asked.event.frames)
    return len(wanted & set(frames.tolist())) / min(len(wanted), most)
