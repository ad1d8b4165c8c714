"""Control rows that wait for their time, bounded per stream, as JSON in snapshots. Knows no schema and no clock."""

# N streams of a snapshot

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from operators.state import Rows, State

__all__ = ["Pending", "split_rows"]

Item = dict[str, Any]


class Pending:
    """Up to ``limit`` items per stream, in the order of their coming. ``name`` is that of their column in snapshots."""

    def __init__(self, name: str, limit: int) -> None:
        self._name, self.limit = name, limit
        self._items: dict[str, list[tuple[int, Item]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def add(self, stream_id: str, at_us: int, item: Mapping[str, Any]) -> bool:
        """Keep an item until event time is behind ``at_us``; False if there are ``limit`` of the stream already."""
        waiting = self._items.setdefault(stream_id, [])
        if len(waiting) >= self.limit:
            return False
        waiting.append((at_us, dict(item)))
        return True

    def due(self, stream_id: str, time_us: int) -> list[Item]:
        """Take the items out that a row of this time releases: it is behind what they may see. In the order of their times."""
        return [item for _, item in self._take(stream_id, time_us)]

    def due_everywhere(self, time_us: int) -> list[tuple[str, Item]]:
        """Take the items of all streams out that rows of this time would release, with their streams.

        In the order of their times, then streams: the same in whatever steps event time gets there.
        """
        taken = [(at_us, stream_id, item) for stream_id in list(self._items) for at_us, item in self._take(stream_id, time_us)]
        return [(stream_id, item) for _, stream_id, item in sorted(taken, key=lambda one: one[:2])]

    def _take(self, stream_id: str, time_us: int) -> list[tuple[int, Item]]:
        waiting = self._items.get(stream_id, ())
        ready = [pair for pair in waiting if pair[0] < time_us]
        if ready:
            self._items[stream_id] = [pair for pair in waiting if pair[0] >= time_us]
        return sorted(ready, key=lambda pair: pair[0])

    def holds(self, stream_id: str) -> bool:
        """Return whether items of a stream wait."""
        return bool(self._items.get(stream_id))

    def close(self, stream_id: str) -> list[Item]:
        """Take all items of a stream out."""
        return [item for _, item in self._items.pop(stream_id, [])]

    def export(self, state: State) -> None:
        """Add the items of the streams of ``state`` to it."""
        texts = [json.dumps(self._items[name]).encode() if self._items.get(name) else b"" for name in state.streams]
        data_R = torch.from_numpy(np.frombuffer(bytearray().join(texts), np.uint8).copy())
        state.rows[self._name] = Rows.full(torch.tensor([len(text) for text in texts], dtype=torch.int64), data_R)

    def load(self, state: State) -> None:
        """Replace all items by those of a full ``state``."""
        self._items = {}
        if state.streams:
            for stream_id, text in zip(state.streams, split_rows(state.rows[self._name]), strict=True):
                if len(text):
                    self._items[stream_id] = [(at_us, item) for at_us, item in json.loads(text.tobytes())]


def split_rows(rows: Rows) -> list[npt.NDArray[Any]]:
    """Return the rows of each stream of a full state."""
    return [part.numpy() for part in torch.split(rows.values_R, rows.length_N.tolist())]
