"""Greedy answers: token after token for a batch of questions, each up to its own end. Knows no network.

The whole batch runs until its longest answer is complete; what a finished answer reads further does not count.
"""

# B questions, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

__all__ = ["greedy"]


@torch.inference_mode()
def greedy(
    logits_BV: Tensor,
    read: Callable[[Tensor], Tensor],
    limits: Sequence[int],
    end_tokens: Collection[int],
    steps: list[Tensor] | None = None,
) -> tuple[list[list[int]], list[float]]:
    """Generate at most ``limits[i]`` tokens each, up to and with an end token.

    ``logits_BV`` are those of the first token; ``read`` reads a token of each question [B] and returns the logits of the next.
    Return the tokens and the confidence of each answer: the geometric mean of the probabilities of its tokens. ``steps``
    receives the logits of every step.
    """
    answers: list[list[int]] = [[] for _ in limits]
    sums = [0.0] * len(limits)  # of log probabilities
    running = [True] * len(limits)
    while True:
        if steps is not None:
            steps.append(logits_BV)
        next_B = logits_BV.argmax(dim=-1)
        likely_B = logits_BV.float().log_softmax(dim=-1).gather(1, next_B[:, None])[:, 0]
        for row, (token, likely) in enumerate(zip(next_B.tolist(), likely_B.tolist(), strict=True)):
            if running[row]:
                answers[row].append(token)
                sums[row] += likely
                running[row] = token not in end_tokens and len(answers[row]) < limits[row]
        if not any(running):
            return answers, [math.exp(total / len(answer)) for total, answer in zip(sums, answers, strict=True)]
        logits_BV = read(next_B)
