"""Greedy answers: retrieve context for a batch of questions, read their prompts, then one token after the other.

What cannot be answered gets a status instead of an exception; nothing of it is encoded. Works on token ids; texts, prompts
and tokenizers are the business of ``prompts`` and ``loaders``.
"""

# B questions, V vocabulary, N frames, L layers, n tokens

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.greedy import greedy
from models.rekv.answering import Context, Request, read_text, reading, retrieve
from models.rekv.config import ReKVConfig
from models.rekv.decoder import TextDecoder
from models.rekv.session import StreamView
from models.rekv.steps import CompiledSteps

__all__ = ["TokenAnswer", "TokenQuestion", "answer_questions", "read_answers"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TokenQuestion:
    """One question as token ids."""

    stream: StreamView
    """Its blocks are what the question may see."""
    question_ids_n: Tensor
    """The bare question, which retrieves."""
    prompt_ids_n: Tensor
    """The whole prompt after the video, which is answered."""
    max_new_tokens: int = 256
    frames: Sequence[int] | None = None
    """External retrieval: use these frames in every layer."""
    allow_blind: bool = False
    """Answer from the text alone while there are no frames."""


@dataclass(slots=True, eq=False, kw_only=True)
class TokenAnswer:
    """The tokens, and what they were answered from."""

    status: str
    """ok, no_frames, bad_question (no token in question or prompt, or nothing to generate), bad_frames."""
    tokens: list[int] = field(default_factory=list)
    """Ends with the end token if it was reached."""
    frames_seen: int = 0
    """Frames of the stream up to the question, those that the bank has dropped included."""
    retrieved: list[Tensor] = field(default_factory=list)
    """Per layer: the frames, ascending."""
    scores: list[Tensor | None] = field(default_factory=list)
    """Per layer: the score of each frame that is there, [N] float32, oldest first; None where frames were given."""
    confidence: float = math.nan
    """Geometric mean of the probabilities that the model gave the tokens, 0 to 1; NaN without an answer."""
    context_truncated: bool = False
    """Context and text outgrew the window, so that the last tokens did not see all of it."""


def answer_questions(
    decoder: TextDecoder,
    config: ReKVConfig,
    questions: Sequence[TokenQuestion],
    end_tokens: Collection[int],
    compiled: CompiledSteps | None = None,
) -> list[TokenAnswer]:
    """Answer a batch of questions greedily, each as if it were alone. Streams are not changed.

    ``compiled``: of this decoder; its steps are taken where they can be.
    """
    answers = [TokenAnswer(status=_status(q, config), frames_seen=q.stream.blocks.below) for q in questions]
    good = [i for i, answer in enumerate(answers) if answer.status == "ok"]
    good.sort(key=lambda i: _length(questions[i]))  # neighbors of one length attend together
    if not good:
        return answers
    asked = [questions[i] for i in good]
    requests = [Request(q.stream, q.question_ids_n, None if q.frames is None else torch.tensor(q.frames)) for q in asked]
    room = max(len(q.prompt_ids_n) for q in asked) + max(q.max_new_tokens for q in asked)
    context, _ = retrieve(decoder, config, requests, room, compiled)
    prompts, limits = [q.prompt_ids_n for q in asked], [q.max_new_tokens for q in asked]
    tokens, confidences = read_answers(decoder, config, context, prompts, limits, end_tokens)
    for row, i in enumerate(good):
        layers = range(decoder.layers)
        answers[i].tokens, answers[i].confidence = tokens[row], confidences[row]
        answers[i].retrieved = [context.frames[layer][row] for layer in layers]
        answers[i].scores = [context.scores[layer][row] for layer in layers]
        read = len(asked[row].prompt_ids_n) + len(tokens[row]) - 1  # the last token is not read
        answers[i].context_truncated = max(context.lengths[layer][row] for layer in layers) + read > config.window_tokens
    return answers


@torch.inference_mode()
def read_answers(
    decoder: TextDecoder,
    config: ReKVConfig,
    context: Context,
    prompts: Sequence[Tensor],
    limits: Sequence[int],
    end_tokens: Collection[int],
    steps: list[Tensor] | None = None,
) -> tuple[list[list[int]], list[float]]:
    """Read the prompts and answer them from their contexts; see :func:`models.greedy.greedy`."""
    first_BC = torch.stack([part[-1] for part in read_text(decoder, config, context, prompts)])
    return greedy(decoder.logits(first_BC), reading(decoder, config, context), limits, end_tokens, steps)


def _length(question: TokenQuestion) -> tuple[int, ...]:
    if question.frames is None:
        return (1, len(question.question_ids_n), len(question.prompt_ids_n))
    return (0, len(question.frames), len(question.prompt_ids_n))


def _status(question: TokenQuestion, config: ReKVConfig) -> str:
    if not len(question.question_ids_n) or not len(question.prompt_ids_n) or question.max_new_tokens < 1:
        return "bad_question"
    blocks, empty = question.stream.blocks, question.stream.blocks.below == question.stream.blocks.first
    if question.frames is not None:
        frames = list(question.frames)
        ascending = all(a < b for a, b in itertools.pairwise(frames))
        inside = not frames or (frames[0] >= blocks.first and frames[-1] < blocks.below)
        if not (ascending and inside and len(frames) * question.stream.grid.tokens <= config.window_tokens):
            return "bad_frames"
        empty = not frames
    return "no_frames" if empty and not question.allow_blind else "ok"
