"""The operator's own rules as plain functions: which frames are encoded, and which blocks a question names."""

# K frames of a stream

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from operators.streams import NEVER_US

__all__ = ["next_keep", "numbers_of"]


def next_keep(time_us: int, due_us: int, fps: float | None) -> int | None:
    """Return from when on the next frame is encoded if this one is; None if this one is skipped.

    Frames are kept on a grid of ``1 / fps`` seconds that begins with the stream's first frame (``due_us`` is ``NEVER_US``): the
    first frame in each cell. A microsecond of grace is for rounded times. After a gap the grid goes on, so nothing is made up
    for.
    """
    if fps is None:
        return time_us
    if time_us + 1 < due_us:
        return None
    step_us = round(1e6 / fps)
    origin_us = time_us if due_us == NEVER_US else due_us
    return origin_us + (max(time_us + 1 - origin_us, 0) // step_us + 1) * step_us


def numbers_of(sequences: Sequence[int], known_K: npt.NDArray[np.int64], first: int) -> tuple[int, ...]:
    """Return the blocks that hold the frames of these sequences; ``known_K``, ascending, are those of blocks ``first`` on.

    A frame that is not there gets a number that is none, which the model refuses.
    """
    place_K = np.searchsorted(known_K, sequences)
    there = [p < len(known_K) and known_K[p] == s for p, s in zip(place_K, sequences, strict=True)]
    return tuple(first + int(p) if ok else -1 for p, ok in zip(place_K, there, strict=True))
