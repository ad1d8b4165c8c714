"""From votes to states of samples: sums of probabilities, the best state, and which samples are final when."""

# B slots, N samples, K states, W windows, T samples of a window

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Decided", "decide", "sum_votes"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Decided(NamedTuple):
    """States of samples, of any shape."""

    state: npt.NDArray[np.int32]
    """-1: no window voted."""
    confidence: Floats
    votes: npt.NDArray[np.int16]


def decide(sum_K: Floats, count: Ints) -> Decided:
    """Return the best states of sums of probabilities [.., K] and numbers of votes [..]."""
    state = sum_K.argmax(-1).astype(np.int32)
    best = sum_K.reshape(-1, sum_K.shape[-1])[np.arange(state.size), state.ravel()].reshape(state.shape)
    none = count == 0
    confidence = np.where(none, np.float32(0), best / np.maximum(count, 1).astype(np.float32))
    return Decided(np.where(none, np.int32(-1), state), confidence, count.astype(np.int16))


def sum_votes(start_W: Ints, probability_WTK: Floats, first: int, length: int) -> tuple[Floats, Ints]:
    """Add up the votes of windows, in order, for samples ``first`` to ``first + length`` - 1."""
    window, classes = probability_WTK.shape[1:] if len(start_W) else (0, probability_WTK.shape[2])
    sum_NK, count_N = np.zeros((length, classes), np.float32), np.zeros(length, np.int64)
    for start, votes_TK in zip((start_W - first).tolist(), probability_WTK, strict=True):
        sum_NK[start : start + window] += votes_TK
        count_N[start : start + window] += 1
    return sum_NK, count_N
