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

_LOOK_EVERY = 8


@torch.inference_mode()
def greedy(
    logits_BV: Tensor,
    read: Callable[[Tensor], Tensor],
    limits: Sequence[int],
    end_tokens: Collection[int],
    steps: list[Tensor] | None = None,
    look_every: int | None = None,
) -> tuple[list[list[int]], list[float]]:
    """Generate at most ``limits[i]`` tokens each, up to and with an end token.

    ``logits_BV`` are those of the first token; ``read`` reads a token of each question [B] and returns the logits of the next.
    Return the tokens and the confidence of each answer: the geometric mean of the probabilities of its tokens. ``steps``
    receives the logits of every step. ``look_every``: the host learns of the tokens after so many steps, so up to as many less
    one are read in vain; by default after each on the CPU and after 8 on a device, which would stand still meanwhile.
    """
    if look_every is None:
        look_every = 1 if logits_BV.device.type == "cpu" else _LOOK_EVERY
    answers: list[list[int]] = [[] for _ in limits]
    sums = [0.0] * len(limits)  # of log probabilities
    running = [True] * len(limits)
    unseen: list[Tensor] = []
    while True:
        if steps is not None:
            steps.append(logits_BV)
        next_B = logits_BV.argmax(dim=-1)
        likely_B = logits_BV.float().log_softmax(dim=-1).gather(1, next_B[:, None])[:, 0]
        unseen.append(torch.stack((next_B.double(), likely_B.double())))
        if len(unseen) == look_every or max(map(len, answers)) + len(unseen) == max(limits):
            for tokens, likely in torch.stack(unseen).tolist():
                for row in range(len(limits)):
                    if running[row]:
                        answers[row].append(int(tokens[row]))
                        sums[row] += likely[row]
                        running[row] = answers[row][-1] not in end_tokens and len(answers[row]) < limits[row]
            unseen = []
            if not any(running):
                return answers, [math.exp(total / len(answer)) for total, answer in zip(sums, answers, strict=True)]
        logits_BV = read(next_B)
