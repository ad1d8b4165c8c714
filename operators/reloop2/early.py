"""Labels that came before their impression. Knows ids, labels and times only.

Each lane holds a fixed number of them; one more is refused, so that no label is lost that was accepted. All columns are
allocated in the constructor; the order in which labels came cannot be told from the content.
"""

# S lanes, E labels of a lane, B rows of a call, L lanes of a call, N lanes of a snapshot

from __future__ import annotations

import numpy as np
import torch

from operators.reloop2.ids import Bools, IdIndex, Ints, rank_within
from operators.state import Rows, State

__all__ = ["EarlyLabels"]


class EarlyLabels:
    """Up to ``capacity`` labels for each of ``lanes`` lanes."""

    def __init__(self, lanes: int, capacity: int) -> None:
        self.lanes, self.capacity = lanes, capacity
        self._held_SE = np.zeros((lanes, capacity), np.bool_)
        self._held = self._held_SE.reshape(-1)
        self._ids = np.zeros(lanes * capacity, np.int64)
        self._label = np.zeros(lanes * capacity, np.float32)
        self._time_us = np.zeros(lanes * capacity, np.int64)
        self._count_S = np.zeros(lanes, np.int64)
        self._index = IdIndex(lambda ids, rows: self._held[rows] & (self._ids[rows] == ids))

    @staticmethod
    def bytes_needed(lanes: int, capacity: int) -> int:
        """Return what this costs, with the index when it is full."""
        return lanes * capacity * (1 + 8 + 4 + 8 + 2 * 16)

    def __len__(self) -> int:
        return int(self._count_S.sum())

    def add(self, lanes_B: Ints, ids_B: Ints, label_B: np.ndarray, time_us_B: Ints) -> tuple[int, int]:
        """Hold labels; return how many were there already (the first one stays) and how many found no room."""
        first_B = np.zeros(len(ids_B), np.bool_)
        first_B[np.unique(ids_B, return_index=True)[1]] = True
        new_B = np.flatnonzero(first_B & (self._index.find(ids_B) < 0))
        lane_B = lanes_B[new_B]
        rank_B = rank_within(lane_B)
        room_B = rank_B < self.capacity - self._count_S[lane_B]
        refused_ids = ids_B[new_B[~room_B]]
        refused = int(np.isin(ids_B, refused_ids).sum()) if len(refused_ids) else 0
        new_B, lane_B, rank_B = new_B[room_B], lane_B[room_B], rank_B[room_B]
        row_B = np.empty(len(new_B), np.int64)
        for lane in np.unique(lane_B).tolist():  # lanes that had early labels in this call: few
            mine_B = lane_B == lane
            row_B[mine_B] = lane * self.capacity + np.flatnonzero(~self._held_SE[lane])[: int(mine_B.sum())]
        self._held[row_B] = True
        self._ids[row_B], self._label[row_B], self._time_us[row_B] = ids_B[new_B], label_B[new_B], time_us_B[new_B]
        np.add.at(self._count_S, lane_B, 1)
        self._index.put(ids_B[new_B], row_B)
        return len(ids_B) - len(new_B) - refused, refused

    def take(self, ids_B: Ints) -> tuple[Bools, np.ndarray]:
        """Return which ids have a label here, and those labels; they are held no longer."""
        if not len(self):
            return np.zeros(len(ids_B), np.bool_), np.empty(0, np.float32)
        row_B = self._index.find(ids_B)
        found_B = row_B >= 0
        label_B = self._label[row_B[found_B]]
        self._drop(row_B[found_B])
        return found_B, label_B

    def expire(self, lanes_L: Ints, before_us_L: Ints) -> int:
        """Drop the labels of these lanes with a time up to ``before_us_L``; return how many."""
        busy_L = self._count_S[lanes_L] > 0
        if not busy_L.any():
            return 0
        lanes_L, before_us_L = lanes_L[busy_L], before_us_L[busy_L]
        old_LE = self._held_SE[lanes_L] & (self._time_us.reshape(self.lanes, -1)[lanes_L] <= before_us_L[:, None])
        at_L, column_L = np.nonzero(old_LE)
        self._drop(lanes_L[at_L] * self.capacity + column_L)
        return len(at_L)

    def clear(self, lane: int) -> None:
        """Forget all labels of a lane."""
        self._held_SE[lane] = False
        self._count_S[lane] = 0

    def _drop(self, row_B: Ints) -> None:
        self._held[row_B] = False
        np.subtract.at(self._count_S, row_B // self.capacity, 1)

    # Snapshots: always whole, since the labels held are few.

    def export(self, lanes_N: Ints, state: State) -> None:
        """Add these lanes to ``state`` as ``early``, ordered by id."""
        at_R, column_R = np.nonzero(self._held_SE[lanes_N])
        row_R = lanes_N[at_R] * self.capacity + column_R
        row_R = row_R[np.lexsort((self._ids[row_R], at_R))]
        columns = [self._ids[row_R], self._time_us[row_R], self._label[row_R].view(np.int32).astype(np.int64)]
        length_N = torch.from_numpy(self._count_S[lanes_N])
        state.rows["early"] = Rows.full(length_N, torch.from_numpy(np.stack(columns, axis=1)))

    def load(self, lanes_N: Ints, state: State) -> None:
        """Take these lanes from a full ``state``; all others must be empty."""
        stored = state.rows["early"]
        count_N = stored.count_N.numpy()
        row_R = np.repeat(lanes_N * self.capacity, count_N) + stored.index_R.numpy()
        values = stored.values_R.numpy()
        self._held[row_R] = True
        self._ids[row_R], self._time_us[row_R] = values[:, 0], values[:, 1]
        self._label[row_R] = values[:, 2].astype(np.int32).view(np.float32)
        self._count_S[lanes_N] = count_N
        self._index.put(self._ids[row_R], row_R)
