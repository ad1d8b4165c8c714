"""Which stream has which lane of the operator's tables, and the counters of each lane. Holds no rows and no labels.

With one memory for all rows there is one lane without a name; else every stream has a lane of its own, and the stream idle
longest gives its lane up when one more arrives. Invariant: who gives way depends on the order of the rows, not on their cuts.
"""

# S lanes, B rows of a call, N lanes of a snapshot

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import torch

from operators.banks import SlotTable, stream_seed
from operators.reloop2.ids import Ints
from operators.state import State

__all__ = ["Lanes"]

_COUNTERS = ("impressions", "version", "used", "period")


class Lanes:
    """Lanes ``0..number-1``. ``ended`` is told of lanes that streams give up."""

    def __init__(self, number: int, *, per_key: bool, ended: Callable[[str, int], None]) -> None:
        self.number, self.per_key = number, per_key
        self._ended = ended
        self._table = SlotTable(number)
        self.impressions_S = np.zeros(number, np.int64)
        """Impressions of a lane so far; a micro-batch ends at every multiple of its size."""
        self.version_S = np.zeros(number, np.int64)
        """Times that the lane's memory has changed."""
        self.period_S = np.zeros(number, np.int64)
        """The span of ``reset_every_s`` that the lane's memory belongs to."""
        self._used_S = np.zeros(number, np.int64)
        self._total = 0
        self._touched: set[str] = set()
        self._closed: set[str] = set()
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._table) if self.per_key else self.number

    def salts(self, streams: pa.Array) -> Ints | None:
        """Return a number per row that keeps ids of different streams apart; None where ids must be unique over all streams."""
        if not self.per_key:
            return None
        names, codes_B = _encode(streams)
        return np.array([stream_seed(0, name) for name in names], np.int64)[codes_B]

    def parts(self, streams: pa.Array, rows_B: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Yield ``rows_B`` with their lanes, in order, in as many parts as it takes for every stream to have one.

        ``streams`` names the stream of every row of the batch. A part must be dealt with before the next is asked for.
        """
        if not self.per_key:
            if len(rows_B):
                yield rows_B, np.zeros(len(rows_B), np.int64)
            return
        names, codes_B = _encode(streams)
        while len(rows_B):
            codes = codes_B[rows_B]
            distinct, first = np.unique(codes, return_index=True)
            stop = len(rows_B)
            for code, row in zip(distinct[np.argsort(first)].tolist(), np.sort(first).tolist(), strict=True):
                if names[code] in self._table:
                    continue
                if self._table.full:
                    if row > 0:
                        stop = row
                        break
                    self.evict()
                self._open(names[code])
            codes = codes[:stop]
            distinct, last = np.unique(codes[::-1], return_index=True)
            lane_of = np.zeros(len(names), np.int64)
            # The stream of the last row comes last: that is the order in which they will have to give way.
            for code, back in sorted(zip(distinct.tolist(), last.tolist(), strict=True), key=lambda pair: -pair[1]):
                name = names[code]
                lane = self._table.get(name)
                assert lane is not None  # opened above, or there before
                lane_of[code] = lane
                self._table.touch(name)
                self._used_S[lane] = self._total + stop - back
                self._touched.add(name)
            self._total += stop
            yield rows_B[:stop], lane_of[codes]
            rows_B = rows_B[stop:]

    def lookup(self, streams: pa.Array) -> Ints:
        """Return the lane of each row's stream; a stream without one gets a free one, -1 if there is none.

        Marks the streams as changed; only one that is new counts as used.
        """
        if not self.per_key:
            return np.zeros(len(streams), np.int64)
        names, codes_B = _encode(streams)
        lane_of = np.full(len(names), -1, np.int64)
        for code, name in enumerate(names):
            if name not in self._table and not self._table.full:
                self._open(name)
                self._total += 1
                self._used_S[self._table.get(name)] = self._total
            lane = self._table.get(name)
            if lane is not None:
                lane_of[code] = lane
                self._touched.add(name)
        return lane_of[codes_B]

    def touch_all(self) -> None:
        """Mark all streams as changed."""
        self._touched.update(self._table)

    def close(self, stream_id: str) -> None:
        """End a stream, if it has a lane."""
        lane = self._table.release(stream_id)
        if lane is not None:
            self.impressions_S[lane] = self.version_S[lane] = self.period_S[lane] = self._used_S[lane] = 0
            self._touched.discard(stream_id)
            self._closed.add(stream_id)
            self._ended(stream_id, lane)

    def evict(self) -> None:
        """End the stream idle longest."""
        self.evictions += 1
        self.close(self._table.idle_longest())

    def _open(self, name: str) -> None:
        lane = self._table.admit(name)
        self._touched.add(name)
        self._used_S[lane] = 0

    # Snapshots

    def export(self, state: State, *, incremental: bool) -> Ints:
        """Name the lanes that go into ``state``, or those that have changed, and add their counters; return them."""
        names = [name for name in self._table if not incremental or name in self._touched]
        if self.per_key:
            state.streams, state.closed = names, sorted(self._closed) if incremental else []
            lanes_N = np.array([self._table.get(name) for name in names], np.int64)
        else:
            lanes_N = np.arange(self.number)
        for name, counter_S in self._counters().items():
            state.dense[f"lanes.{name}"] = torch.from_numpy(counter_S[lanes_N])
        self._touched.clear()
        self._closed.clear()
        return lanes_N

    def load(self, state: State) -> Ints:
        """Take over the streams of a full ``state``, which must not be more than the lanes; return their lanes."""
        for stream in list(self._table):
            self.close(stream)
        if self.per_key and state.streams:
            used = state.dense["lanes.used"].tolist()
            for i in sorted(range(len(used)), key=used.__getitem__):  # the least recently used first
                self._table.admit(state.streams[i])
            lanes_N = np.array([self._table.get(name) for name in state.streams], np.int64)
        else:
            lanes_N = np.arange(0 if self.per_key else self.number)
        if len(lanes_N):
            for name, counter_S in self._counters().items():
                counter_S[lanes_N] = state.dense[f"lanes.{name}"].numpy()
        self._total = int(self._used_S.max(initial=0))
        self._touched.clear()
        self._closed.clear()
        return lanes_N

    def _counters(self) -> dict[str, Ints]:
        arrays = (self.impressions_S, self.version_S, self._used_S, self.period_S)
        return dict(zip(_COUNTERS, arrays, strict=True))


def _encode(column: pa.Array) -> tuple[list[str], Ints]:
    """Return the distinct names and, per row, the index of its own."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
