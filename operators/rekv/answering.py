"""From questions as text and blocks as a reader to answers as text. The same function serves the operator and its answerers.

Knows no bank, no stream id and no Arrow. Changes nothing: a question leaves no trace in the encoding.
"""

# N frames of a reader, K retrieved frames of a layer

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.rekv.config import ReKVConfig
from models.rekv.generate import Answer, Question, answer_questions
from models.rekv.loaders import VideoLanguageModel
from models.rekv.rotary import Grid
from models.rekv.session import Prefix, StreamView
from models.rekv.store import BlockReader

__all__ = ["Answered", "Answering", "Asked"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that can be answered now. Picklable."""

    question: str
    max_tokens: int
    frames: tuple[int, ...] | None = None
    """External retrieval: numbers of blocks."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer. Picklable, without tensors."""

    status: str
    text: str
    frames_seen: int
    context_truncated: bool
    retrieved: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32] | None]]
    """Per layer: numbers of the blocks, [K], and their scores."""


@dataclass(frozen=True, slots=True, eq=False)
class Answering:
    """A model that answers."""

    model: VideoLanguageModel
    config: ReKVConfig
    prefix: Prefix
    grid: Grid

    def __call__(self, asked: Sequence[Asked], blocks: Sequence[BlockReader]) -> list[Answered]:
        """Answer questions together, ``asked[i]`` from ``blocks[i]``."""
        questions = [self._question(one, reader) for one, reader in zip(asked, blocks, strict=True)]
        answers = answer_questions(self.model.decoder, self.config, questions, self.model.end_tokens)
        return [self._answered(answer, reader.first) for answer, reader in zip(answers, blocks, strict=True)]

    def _question(self, asked: Asked, blocks: BlockReader) -> Question:
        return Question(
            stream=StreamView(self.prefix, self.grid, blocks),
            question_ids_n=self.model.ids(asked.question),
            prompt_ids_n=self.model.ids(self.model.prompts.open_ended(asked.question)),
            max_new_tokens=asked.max_tokens,
            frames=asked.frames,
        )

    def _answered(self, answer: Answer, first: int) -> Answered:
        retrieved = []
        for frames_K, scores_N in zip(answer.retrieved, answer.scores, strict=True):
            scores_K = None if scores_N is None else scores_N[frames_K - first].float().cpu().numpy()
            retrieved.append((frames_K.cpu().numpy(), scores_K))
        tokenizer = self.model.tokenizer
        text = tokenizer.decode(answer.tokens) if tokenizer is not None and answer.status == "ok" else ""
        return Answered(answer.status, text, answer.frames_seen, answer.context_truncated, retrieved)


def rekv_config(own: ReKVConfig | None, **given: object) -> ReKVConfig:
    """Return the model's own settings, or the published ones, with what is given and not None."""
    return dataclasses.replace(own or ReKVConfig(), **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]


def one_grid(model: VideoLanguageModel) -> Grid:
    """Return the positions of one frame's tokens, found by encoding an empty frame."""
    assert model.frames is not None  # the loader of the operator has refused families without frames
    blank = torch.zeros(1, *model.frames.size, 3, dtype=torch.uint8)
    return model.decoder.grid(model.frames(blank).shape[1])
