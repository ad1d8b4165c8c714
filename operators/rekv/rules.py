"""The operator's own rule as a plain function: which blocks a question names."""

# K blocks of a stream

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["numbers_of"]


def numbers_of(
    sequences: Sequence[int], last_K: npt.NDArray[np.int64], first_K: npt.NDArray[np.int64], first: int
) -> tuple[int, ...]:
    """Return the blocks that hold the frames of these sequences, each once; they are those of blocks ``first`` on.

    ``last_K`` and ``first_K``, ascending: of the last and the first frame of each block. A frame that is not there gets a
    number that is none, which the model refuses.
    """
    numbers: list[int] = []
    before = None
    for sequence, place in zip(sequences, np.searchsorted(last_K, sequences).tolist(), strict=True):
        there = place < len(last_K) and sequence in (last_K[place], first_K[place])
        number = first + place if there else -1
        if not there or before is None or sequence <= before or number != numbers[-1]:
            numbers.append(number)
        before = sequence
    return tuple(numbers)
