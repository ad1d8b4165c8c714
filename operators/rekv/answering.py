"""From questions as text and blocks as a reader to answers as text. The same function serves the operator and its answerers.

Knows no bank, no stream id and no Arrow. Changes nothing: a question leaves no trace in the encoding.
"""

# N frames of a reader, K retrieved frames of a layer

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.rekv.config import ReKVConfig
from models.rekv.generate import TokenAnswer, TokenQuestion, answer_questions
from models.rekv.layouts import BlockNumbers, Grid, Layout
from models.rekv.loaders import VideoLanguageModel
from models.rekv.session import Prefix, StreamView
from models.rekv.steps import CompiledSteps
from models.rekv.store import ReadableBlocks
from models.rekv.vision import FrameEncoder
from operators.banks import BlockSpec
from operators.rekv.block_policies import BlockPolicy

__all__ = ["Answering", "BlockAnswer", "BlockQuestion", "NumbersFrom", "one_grid"]


@dataclass(frozen=True, slots=True)
class BlockQuestion:
    """A question that can be answered now, from blocks. Picklable."""

    text: str
    max_tokens: int
    frames: tuple[int, ...] | None = None
    """External retrieval: numbers of blocks."""
    numbers: BlockNumbers | None = None
    """Of the blocks, where they are not all alike."""


@dataclass(frozen=True, slots=True, eq=False)
class NumbersFrom:
    """Numbers of the blocks from ``first`` on. Picklable."""

    first: int
    rows_KW: npt.NDArray[np.int64]

    def at(self, blocks_K: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the numbers of blocks, [K, W]."""
        rows_KW: npt.NDArray[np.int64] = self.rows_KW[blocks_K - self.first]
        return rows_KW


@dataclass(frozen=True, slots=True)
class BlockAnswer:
    """An answer from blocks. Picklable, without tensors."""

    status: str
    text: str
    confidence: float
    """Of the answer, 0 to 1; NaN without one."""
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
    grid: Grid | None
    """None: blocks are not all alike."""
    spec: BlockSpec
    """Shape of a frame's blocks as they are written."""
    policy: BlockPolicy
    """How the blocks are stored, and which are read."""
    compiled: CompiledSteps | None = None

    def __call__(self, questions: Sequence[BlockQuestion], blocks: Sequence[ReadableBlocks]) -> list[BlockAnswer]:
        """Answer questions together, ``questions[i]`` from ``blocks[i]``."""
        asked = [self._question(question, reader) for question, reader in zip(questions, blocks, strict=True)]
        answers = answer_questions(self.model.decoder, self.config, asked, self.model.end_tokens, self.compiled)
        return [self._answer(answer, reader.first) for answer, reader in zip(answers, blocks, strict=True)]

    def layout(self, numbers: BlockNumbers | None) -> Layout:
        """Return where the blocks of a stream lie; ``numbers``: what is noted of them, where they are not all alike."""
        if self.grid is not None:
            return self.grid
        assert self.model.video is not None and numbers is not None
        return self.model.video.layout(numbers)

    @property
    def least_tokens(self) -> int:
        """Tokens of the smallest block."""
        return self.spec.tokens if self.model.video is None else self.model.video.least_tokens

    def _question(self, question: BlockQuestion, blocks: ReadableBlocks) -> TokenQuestion:
        policy = self.policy
        grid = self.layout(question.numbers)
        if policy.tokens != grid.tokens:
            grid = self.model.decoder.grid(policy.tokens)
        select = policy.select(blocks, self.config) if policy.select is not None else None
        return TokenQuestion(
            stream=StreamView(self.prefix, grid, blocks, select),
            question_ids_n=self.model.ids(question.text),
            prompt_ids_n=self.model.ids(self.model.prompts.open_ended(question.text)),
            max_new_tokens=question.max_tokens,
            frames=question.frames,
        )

    def _answer(self, answer: TokenAnswer, first: int) -> BlockAnswer:
        retrieved = []
        for frames_K, scores_N in zip(answer.retrieved, answer.scores, strict=True):
            scores_K = None if scores_N is None else scores_N[frames_K - first].float().cpu().numpy()
            retrieved.append((frames_K.cpu().numpy(), scores_K))
        tokenizer = self.model.tokenizer
        text = tokenizer.decode(answer.tokens) if tokenizer is not None and answer.status == "ok" else ""
        return BlockAnswer(answer.status, text, answer.confidence, answer.frames_seen, answer.context_truncated, retrieved)


def one_grid(model: VideoLanguageModel) -> Grid | None:
    """Return the positions of one frame's tokens, found by encoding an empty frame; None where frames are not all alike."""
    if not isinstance(model.frames, FrameEncoder):
        return None
    blank = torch.zeros(1, *model.frames.size, 3, dtype=torch.uint8)
    return model.decoder.grid(model.frames(blank).shape[1])
