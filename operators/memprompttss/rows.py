"""Output rows in the making: blocks of arrays with the input row that gave rise to them, put in that order at the end.

So that what a stream gets does not depend on how its rows were cut into batches. Knows no memory and no network.
"""

# R rows

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.base import Emitted, Output
from operators.memprompttss.schemas import BANK, SEGMENTS, STATES, STATUSES
from operators.output import finite_rows, status_column

__all__ = ["Rows", "SegmentBlock", "StateBlock"]

Ints = npt.NDArray[np.int64]

_CODES = {name: code for code, name in enumerate(STATUSES)}
_NAMES = list(STATUSES)


class StateBlock:
    """States of many samples of many streams, one array per column."""

    __slots__ = ("cause", "columns", "key_R", "status_R", "stream_R")

    def __init__(
        self,
        key_R: Ints,
        stream_R: Ints,
        status_R: npt.NDArray[np.int8],
        columns: Mapping[str, npt.NDArray[Any]],
        cause: Sequence[str] | None = None,
    ) -> None:
        """``stream_R``: index into the names of streams. ``cause``: of all rows."""
        self.key_R, self.stream_R, self.status_R, self.columns, self.cause = key_R, stream_R, status_R, columns, cause


class SegmentBlock:
    """Segments of many streams, one array per column; what is left out is null."""

    __slots__ = ("columns", "key_R", "stream_R")

    def __init__(self, key_R: Ints, stream_R: Ints, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """``stream_R``: index into the names of streams."""
        self.key_R, self.stream_R, self.columns = key_R, stream_R, columns


class Rows:
    """Everything that one call of the operator gives out."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._blocks: list[StateBlock] = []
        self._refused: list[tuple[int, int, int, int, str, str | None]] = []
        self._segments: list[SegmentBlock | list[tuple[int, dict[str, Any]]]] = []
        self._bank: list[tuple[int, dict[str, Any]]] = []

    def stream(self, stream_id: str) -> int:
        """Return the index of a stream's name."""
        return self._names.setdefault(stream_id, len(self._names))

    def states(self, block: StateBlock) -> None:
        """Add states."""
        self._blocks.append(block)

    def sample(self, key: int, stream_id: str, sequence: int, time_us: int, status: str, error: str | None) -> None:
        """Add a row about a sample that has no state."""
        self._refused.append((key, self.stream(stream_id), sequence, time_us, status, error))

    def segment(self, key: int, stream_id: str, **columns: Any) -> None:
        """Add a row about a segment; times are integers."""
        if not self._segments or not isinstance(self._segments[-1], list):
            self._segments.append([])
        rows = self._segments[-1]
        assert isinstance(rows, list)
        rows.append((key, {"stream": self.stream(stream_id), **columns}))

    def segments(self, block: SegmentBlock) -> None:
        """Add segments."""
        self._segments.append(block)

    def event(self, key: int, **columns: Any) -> None:
        """Add an event of a bank."""
        self._bank.append((key, {"status": "ok", **columns}))

    def batches(self) -> list[Emitted]:
        """Return everything, in the order of the input rows, and of one row in the order in which it was added."""
        out: list[Emitted] = []
        if self._blocks or self._refused:
            out.append(Output("states", self._state_batch()))
        if self._segments:
            out.append(Output("segments", self._segment_batch()))
        if self._bank:
            self._bank.sort(key=lambda pair: pair[0])
            out.append(Output("bank", _batch([row for _, row in self._bank], BANK)))
        return out

    def _state_batch(self) -> pa.RecordBatch:
        refused = self._refused
        # A refused row stands between the states that rows before and after it gave rise to.
        key_R = np.concatenate([*(b.key_R for b in self._blocks), np.array([r[0] for r in refused], np.int64)])
        order_R = np.argsort(key_R, kind="stable")
        stream_R = np.concatenate([*(b.stream_R for b in self._blocks), np.array([r[1] for r in refused], np.int64)])
        status = [*(b.status_R for b in self._blocks), np.array([_CODES[r[4]] for r in refused], np.int8)]
        stated = sum(len(b.key_R) for b in self._blocks)
        take = pa.array(order_R)
        made: dict[str, pa.Array] = {
            "stream_id": pa.array(list(self._names), pa.string()).take(pa.array(stream_R[order_R])),
            "status": status_column(np.concatenate(status)[order_R], _NAMES),
        }
        for name, given in (("sequence", 2), ("event_time", 3)):
            values = [*(b.columns[name] for b in self._blocks), np.array([r[given] for r in refused], np.int64)]
            made[name] = pa.array(np.concatenate(values)[order_R])
        for field in STATES:
            if field.name in made:
                continue
            if field.name == "error":
                made["error"] = pa.array([None] * stated + [r[5] for r in refused], pa.string()).take(take)
            elif field.name == "caused_by":
                made["caused_by"] = self._causes(len(refused)).take(take)
            else:
                parts = [b.columns[field.name] for b in self._blocks]
                column = pa.array(np.concatenate(parts) if parts else np.zeros(0)).cast(field.type)
                made[field.name] = pa.concat_arrays([column, pa.nulls(len(refused), field.type)]).take(take)
        arrays = [made[field.name].cast(field.type) for field in STATES]
        return finite_rows(pa.RecordBatch.from_arrays(arrays, schema=STATES))

    def _segment_batch(self) -> pa.RecordBatch:
        parts = [_Part.of(part) for part in self._segments]
        take = pa.array(np.argsort(np.concatenate([part.key_R for part in parts]), kind="stable"))
        arrays = []
        for field in SEGMENTS:
            if field.name == "stream_id":
                streams = pa.array(np.concatenate([part.stream_R for part in parts]))
                arrays.append(pa.array(list(self._names), pa.string()).take(streams.take(take)))
            elif field.name == "status":
                arrays.append(status_column(np.full(len(take), _CODES["ok"], np.int8), _NAMES))
            else:
                column = pa.concat_arrays([part.column(field.name, field.type) for part in parts])
                arrays.append(column.take(take))
        return finite_rows(pa.RecordBatch.from_arrays(arrays, schema=SEGMENTS))

    def _causes(self, refused: int) -> pa.Array:
        kinds: list[Sequence[str]] = []
        index = []
        for block in self._blocks:
            if block.cause is not None:
                kinds.append(block.cause)
            place = len(kinds) - 1 if block.cause is not None else -1
            index.append(np.full(len(block.key_R), place))
        at_R = np.concatenate([*index, np.full(refused, -1)])
        causes = pa.array(kinds, pa.list_(pa.string()))
        return causes.take(pa.array(at_R, mask=at_R < 0))


class _Part(NamedTuple):
    key_R: Ints
    stream_R: Ints
    column: Callable[[str, pa.DataType], pa.Array]

    @staticmethod
    def of(part: SegmentBlock | list[tuple[int, dict[str, Any]]]) -> _Part:
        if isinstance(part, SegmentBlock):
            columns, size = part.columns, len(part.key_R)

            def column(name: str, kind: pa.DataType) -> pa.Array:
                return pa.array(columns[name]).cast(kind) if name in columns else pa.nulls(size, kind)

            return _Part(part.key_R, part.stream_R, column)
        key_R, stream_R = (
            np.array(values, np.int64) for values in zip(*((key, row["stream"]) for key, row in part), strict=True)
        )
        return _Part(key_R, stream_R, lambda name, kind: pa.array([row.get(name) for _, row in part], kind))


def _batch(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if pa.types.is_dictionary(field.type):
            arrays.append(status_column(np.array([_CODES[str(value)] for value in values], np.int8), _NAMES))
        else:
            arrays.append(pa.array(values, field.type))
    return finite_rows(pa.RecordBatch.from_arrays(arrays, schema=schema))
