"""Results that stay on the device until a call ends, so that the host waits for it once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.uploads import download

__all__ = ["Deferred"]

Note = Callable[..., None]
Ints = npt.NDArray[np.int64]


class Deferred:
    """What is to be noted of rows once it is on the host."""

    def __init__(self) -> None:
        self._parts: dict[Note, list[tuple[Ints, Sequence[Tensor]]]] = {}

    def add(self, note: Note, rows_n: Ints, *parts: Tensor) -> None:
        """Have ``note`` called with these rows, and with tensors [n, ...] as arrays; once for all that is added for it."""
        self._parts.setdefault(note, []).append((rows_n, parts))

    def take(self) -> None:
        """Bring everything to the host, and have it noted."""
        added, self._parts = self._parts, {}
        columns = [torch.cat(column) for parts in added.values() for column in zip(*(p for _, p in parts), strict=True)]
        found: list[npt.NDArray[Any]] = [column.numpy() for column in download(*columns)]
        for note, parts in added.items():
            own, found = found[: len(parts[0][1])], found[len(parts[0][1]) :]
            note(np.concatenate([rows_n for rows_n, _ in parts]), *own)
