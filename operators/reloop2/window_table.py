"""Predictions that wait for their labels and for the end of their window. Knows no schema and no event-time rules.

A ring of fixed size: of more predictions than fit the oldest is dropped, wherever its window stands.
"""

# C rows of the ring, B rows of a call

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from operators.reloop2.ids import Bools, IdIndex, Ints
from operators.state import Patch, State

__all__ = ["Judged", "WindowTable"]

Floats = npt.NDArray[np.float32]

_PREFIX = "windows."


class Judged(NamedTuple):
    """Predictions of one window, in order of arrival."""

    base_B: Floats
    prediction_B: Floats
    group_B: Ints
    label_B: Floats
    """NaN where no label has come."""


class WindowTable:
    """The latest ``capacity`` predictions of windows that are open."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: dict[str, npt.NDArray[Any]] = {
            "id": np.zeros(capacity, np.int64),
            "window": np.zeros(capacity, np.int64),
            "group": np.zeros(capacity, np.int64),
            "base": np.zeros(capacity, np.float32),
            "prediction": np.zeros(capacity, np.float32),
            "label": np.zeros(capacity, np.float32),
            "held": np.zeros(capacity, np.bool_),
        }
        self._dirty = np.zeros(capacity, np.bool_)
        self._head = 0
        self.open: dict[int, int] = {}
        """Window that is not closed → its predictions that are still here."""
        self._index = IdIndex(lambda ids, rows: self._rows["held"][rows] & (self._rows["id"][rows] == ids))

    def bytes(self) -> int:
        """Return the bytes of all columns."""
        return sum(column.nbytes for column in self._rows.values()) + self._dirty.nbytes

    def add(self, ids_B: Ints, windows_B: Ints, groups_B: Ints, base_B: Floats, prediction_B: Floats) -> tuple[Bools, int]:
        """Append at most ``capacity`` predictions; return which were not since their id is there, and how many gave way."""
        first_B = np.zeros(len(ids_B), np.bool_)
        first_B[np.unique(ids_B, return_index=True)[1]] = True
        duplicate_B = ~first_B | (self._index.find(ids_B) >= 0)
        fresh_B = np.flatnonzero(~duplicate_B)
        row_B = (self._head + np.arange(len(fresh_B))) % self.capacity
        self._head = (self._head + len(fresh_B)) % self.capacity
        gone_B = row_B[self._rows["held"][row_B]]
        self._count(self._rows["window"][gone_B], -1)
        values: dict[str, npt.NDArray[Any]] = {
            "id": ids_B,
            "window": windows_B,
            "group": groups_B,
            "base": base_B,
            "prediction": prediction_B,
        }
        for name, column in values.items():
            self._rows[name][row_B] = column[fresh_B]
        self._rows["label"][row_B] = np.nan
        self._rows["held"][row_B] = self._dirty[row_B] = True
        self._count(windows_B[fresh_B], 1)
        self._index.put(ids_B[fresh_B], row_B)
        return duplicate_B, len(gone_B)

    def label(self, ids_B: Ints, label_B: Floats) -> tuple[Bools, int]:
        """Set the labels of predictions; return which ids are here, and how many of them had a label already."""
        row_B = self._index.find(ids_B)
        found_B = row_B >= 0
        first_B = np.zeros(len(ids_B), np.bool_)
        first_B[np.unique(ids_B, return_index=True)[1]] = True
        new_B = found_B & first_B
        new_B[new_B] = np.isnan(self._rows["label"][row_B[new_B]])
        self._rows["label"][row_B[new_B]] = label_B[new_B]
        self._dirty[row_B[new_B]] = True
        return found_B, int((found_B & ~new_B).sum())

    def close(self, window: int) -> Judged:
        """Take the predictions of a window out of the table."""
        row_B = np.flatnonzero(self._rows["held"] & (self._rows["window"] == window))
        row_B = row_B[np.argsort((row_B - self._head) % self.capacity)]  # the oldest stands at the head
        self._rows["held"][row_B] = False
        self._dirty[row_B] = True
        self.open.pop(window, None)
        return Judged(*(self._rows[name][row_B] for name in ("base", "prediction", "group", "label")))

    def _count(self, windows_B: Ints, step: int) -> None:
        for window, number in zip(*(part.tolist() for part in np.unique(windows_B, return_counts=True)), strict=True):
            self.open[window] = self.open.get(window, 0) + step * number

    # Snapshots

    def export(self, state: State, *, incremental: bool) -> None:
        """Add a copy to ``state``, or the rows that changed since the last call."""
        changed = torch.from_numpy(np.flatnonzero(self._dirty))
        for name, column in self._rows.items():
            if incremental:
                state.patches[_PREFIX + name] = Patch(changed, torch.from_numpy(column[changed.numpy()]))
            else:
                state.shared[_PREFIX + name] = torch.from_numpy(column.copy())
        state.shared[_PREFIX + "head"] = torch.tensor([self._head])
        state.shared[_PREFIX + "open"] = torch.tensor(sorted(self.open.items()), dtype=torch.int64).reshape(-1, 2)
        self._dirty[:] = False

    def load(self, state: State) -> None:
        """Replace everything by a full ``state`` of a table of the same capacity."""
        for name, column in self._rows.items():
            column[:] = state.shared[_PREFIX + name].numpy()
        self._head = int(state.shared[_PREFIX + "head"][0])
        self._dirty[:] = False
        self.open = dict(state.shared[_PREFIX + "open"].tolist())
        held_B = np.flatnonzero(self._rows["held"])
        self._index.clear()
        self._index.put(self._rows["id"][held_B], held_B)
