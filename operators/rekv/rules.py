"""The operator's own rule as a plain function: which blocks a question names."""

# K frames of a stream

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["numbers_of"]


def numbers_of(sequences: Sequence[int], known_K: npt.NDArray[np.int64], first: int) -> tuple[int, ...]:
    """Return the blocks that hold the frames of these sequences; ``known_K``, ascending, are those of blocks ``first`` on.

    A frame that is not there gets a number that is none, which the model refuses.
    """
    place_K = np.searchsorted(known_K, sequences)
    there = [p < len(known_K) and known_K[p] == s for p, s in zip(place_K, sequences, strict=True)]
    return tuple(first + int(p) if ok else -1 for p, ok in zip(place_K, there, strict=True))
