"""An operator to test pipelines with: the running mean of ``v`` per stream, vectorized.

Exact: sums are added in the order of the rows, so the result does not depend on how rows are cut into batches.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from connectors import records
from connectors.options import option
from operators.base import Context, Operator
from operators.state import State

__all__ = ["RunningMean", "RunningMeanOptions"]

_WAVE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningMeanOptions:
    """Options of :class:`RunningMean`."""

    slow_s: float = option(0.0, "Seconds to sleep per batch, to play a slow model.", unit="s", ge=0)
    slow_until: str = option("", "A file; once it is there, nothing is slow anymore. Default: always slow.")

    def play(self) -> None:
        """Sleep for a batch."""
        if self.slow_s and not (self.slow_until and Path(self.slow_until).exists()):
            time.sleep(self.slow_s)


class RunningMean(Operator):
    """Out per row: ``n``, the number of values so far, and ``m``, their mean. A null or NaN value changes nothing."""

    Options = RunningMeanOptions
    input_schema = records.key_schema("value", 1, [pa.field("v", pa.float64())])
    control_schema = records.key_schema("offset", 1, [pa.field("add", pa.float64())])
    output_schema = records.output_schema("running_mean", 1, [pa.field("n", pa.int64()), pa.field("m", pa.float64())])
    statuses: ClassVar[Mapping[str, str]] = {
        "ok": "the mean with this value",
        "bad_value": "the value is null, NaN or infinite; the mean of those before",
    }

    def __init__(self, options: Any, context: Context) -> None:
        super().__init__(options, context)
        self._slots: dict[str, int] = {}
        self._names: list[str | None] = []
        self._free: list[int] = []
        self._count = np.zeros(64, np.int64)
        self._sum = np.zeros(64, np.float64)
        self._dirty = np.zeros(64, np.bool_)
        self._closed: list[str] = []

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Return one row per row."""
        self.options.play()
        encoded = batch.column("stream_id").dictionary_encode()
        slots = np.array([self._slot(name) for name in encoded.dictionary.to_pylist()], np.int64)
        codes = encoded.indices.to_numpy()
        values = batch.column("v").to_numpy(zero_copy_only=False)
        good = np.isfinite(values)
        n, sums = self._accumulate(slots[codes], np.where(good, values, 0.0), good)
        with np.errstate(invalid="ignore"):
            mean = sums / n
        bad = ~good
        columns = [*(batch.column(i) for i in range(3)), pa.array(n), pa.array(mean, mask=n == 0)]
        columns += [
            _status(bad),
            pa.array(["v is null, NaN or infinite" if b else None for b in bad], pa.string())
            if bad.any()
            else pa.nulls(len(n), pa.string()),
        ]
        return [pa.RecordBatch.from_arrays(columns, schema=self.output_schema)]

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Add ``add`` to the sums of the streams named; no answer."""
        for name, add in zip(batch.column("stream_id").to_pylist(), batch.column("add").to_pylist(), strict=True):
            slot = self._slot(name)
            self._sum[slot] += add
            self._dirty[slot] = True
        return []

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return counts and sums of all streams, or of those that changed."""
        chosen = [(name, slot) for name, slot in self._slots.items() if not incremental or self._dirty[slot]]
        slots = np.array([slot for _, slot in chosen], np.int64)
        closed, self._closed = self._closed, []
        self._dirty[:] = False
        return State(
            streams=[name for name, _ in chosen],
            dense={"count": torch.from_numpy(self._count[slots]), "sum": torch.from_numpy(self._sum[slots])},
            incremental=incremental,
            closed=closed if incremental else [],
        )

    def restore(self, state: State) -> None:
        """Take over the streams of ``state``."""
        self.__init__(self.options, self.context)  # type: ignore[misc]
        slots = np.array([self._slot(name) for name in state.streams], np.int64)
        if len(slots):
            self._count[slots] = state.dense["count"].numpy()
            self._sum[slots] = state.dense["sum"].numpy()
        self._dirty[:] = False

    def close_stream(self, stream_id: str) -> None:
        """Free the slot."""
        slot = self._slots.pop(stream_id, None)
        if slot is not None:
            self._count[slot], self._sum[slot], self._dirty[slot] = 0, 0.0, False
            self._free.append(slot)
            self._closed.append(stream_id)

    def metrics(self) -> dict[str, float]:
        """Return the number of open streams."""
        return {"streams": float(len(self._slots))}

    def _slot(self, name: str) -> int:
        slot = self._slots.get(name)
        if slot is None:
            slot = self._free.pop() if self._free else len(self._slots)
            if slot >= len(self._count):
                self._count = np.concatenate([self._count, np.zeros_like(self._count)])
                self._sum = np.concatenate([self._sum, np.zeros_like(self._sum)])
                self._dirty = np.concatenate([self._dirty, np.zeros_like(self._dirty)])
            self._slots[name] = slot
        return slot

    def _accumulate(
        self, slots: npt.NDArray[np.int64], values: npt.NDArray[np.float64], good: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return count and sum after each row: sequential sums per stream, streams side by side, 64 rows of each at a time."""
        order = np.argsort(slots, kind="stable")
        streams, starts, counts = np.unique(slots[order], return_index=True, return_counts=True)
        n = np.empty(len(slots), np.int64)
        sums = np.empty(len(slots), np.float64)
        for begin in range(0, int(counts.max(initial=0)), _WAVE):
            active = counts > begin
            width = min(_WAVE, int(counts.max()) - begin)
            columns = np.arange(width)
            inside = columns < (counts[active] - begin)[:, None]
            rows = order[np.minimum(starts[active][:, None] + begin + columns, len(order) - 1)]
            added = np.where(inside, values[rows], 0.0)
            added[:, 0] += self._sum[streams[active]]
            running = np.add.accumulate(added, axis=1)
            counted = np.cumsum(np.where(inside, good[rows], False), axis=1) + self._count[streams[active]][:, None]
            sums[rows[inside]] = running[inside]
            n[rows[inside]] = counted[inside]
            self._sum[streams[active]] = running[:, -1]
            self._count[streams[active]] = counted[:, -1]
        self._dirty[streams] = True
        return n, sums


def _status(bad: npt.NDArray[np.bool_]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(bad.astype(np.int8)), pa.array(["ok", "bad_value"]))
