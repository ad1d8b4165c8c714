"""The streaming operator ``resample``: samples of any rate in, samples at even times out, for models that know one rate.

Row n of a stream is n / rate_hz seconds after its first sample. What comes out are samples again, so that any operator of
sensor data can take them as its input; a row that cannot be used goes through with its error.
"""

# R rows of a batch, P those that count, N rows of a stream, M rows that come out, S slots, C channels

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from connectors import records
from operators.base import Context, Emitted, Output
from operators.counters import STREAM_COUNTERS, Counters
from operators.event_time import microseconds
from operators.output import finite_rows, status_column
from operators.resample.config import ResampleOptions
from operators.resample.declaration import OUTPUTS, ResampleDeclaration
from operators.resample.grid import interval_of, lines, means, time_of
from operators.samples import Samples, read_samples
from operators.state import State
from operators.streams import EVICTED, NEVER_US, Stream, StreamTable

__all__ = ["ResampleOperator"]

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(slots=True)
class GridStream(Stream):
    """One stream and its even times."""

    origin_us: int = NEVER_US
    """The time of interval 0: of the first sample, or of the first one after a pause."""
    interval: int = 0
    """The first one that has not come out."""
    rows: int = 0
    """Rows that have come out: the next ``sequence``."""


class _Block(NamedTuple):
    """Rows in the making, of one stream."""

    stream_id: str
    key_M: Ints
    sequence_M: Ints
    time_us_M: Ints
    values_MC: Doubles


class ResampleOperator(ResampleDeclaration):
    """The operator at work; what can be known of it before stands in its declaration."""

    def __init__(self, options: ResampleOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: ResampleOptions = options
        self._sum_SC = np.zeros((options.max_streams, options.channels))
        self._count_SC = np.zeros((options.max_streams, options.channels), np.int64)
        self._last_SC = np.zeros((options.max_streams, options.channels))
        self._codes = {name: code for code, name in enumerate(self.statuses)}
        self._counters = Counters(*STREAM_COUNTERS)
        self._streams = StreamTable(context.name, self._open, options, kind=GridStream, counters=self._counters)

    def _open(self, stream_id: str, slot: int) -> GridStream:
        self._sum_SC[slot], self._count_SC[slot], self._last_SC[slot] = 0, 0, 0
        return GridStream(slot)

    # Rows

    def process(self, batch: pa.RecordBatch) -> list[Emitted]:
        """Take samples in; return those of even times that they complete."""
        records.require(batch, self.input_schema, self.context.name)
        names, blocks = batch.column("stream_id"), list[_Block]()
        refused: list[tuple[int, str, str]] = []
        samples = read_samples(batch, self.options.channels, self._streams, lambda *row: refused.append(row))
        for _, status, _ in refused:
            self._counters.add("late" if status in ("late", "duplicate") else "rejected")
        for rows_P, slots_P, returned in self._streams.assign(names, samples.accepted_R):
            order_P = np.argsort(slots_P, kind="stable")
            for rows_N in np.split(rows_P[order_P], np.flatnonzero(np.diff(slots_P[order_P])) + 1):
                stream_id = names[int(rows_N[0])].as_py()
                if stream_id in returned:
                    refused.append((int(rows_N[0]), "reset", EVICTED))
                    self._counters.add("reset")
                blocks += self._take(stream_id, samples, rows_N)
        return self._rows(batch, blocks, refused)

    def _take(self, stream_id: str, samples: Samples, rows_N: Ints) -> list[_Block]:
        """Take in rows of one stream, in parts without a pause."""
        stream = self._streams.get(stream_id)
        assert stream is not None
        time_us_N = samples.time_us_R[rows_N]
        before_N = np.concatenate([[stream.last_time_us], time_us_N[:-1]])
        begins_N = (time_us_N - before_N > microseconds(self.options.max_gap_s)) | (before_N == NEVER_US)
        blocks: list[_Block] = []
        for first, end in zip(*_parts(begins_N), strict=True):
            if begins_N[first]:
                blocks += self._end(stream_id, stream, int(rows_N[first]))
                stream.origin_us, stream.interval = int(time_us_N[first]), 0
            part = slice(first, end)
            values_NC = samples.values_RC[rows_N[part]].astype(np.float64)
            if self.options.method == "mean":
                made = self._means(stream, rows_N[part], time_us_N[part], values_NC)
            else:
                made = self._lines(stream, rows_N[part], time_us_N[part], values_NC, begins=bool(begins_N[first]))
            blocks.append(self._block(stream_id, stream, *made))
            stream.last_time_us = int(time_us_N[end - 1])
        stream.last_sequence = int(samples.sequence_R[rows_N[-1]])
        if stream.first_time_us == NEVER_US:
            stream.first_time_us = int(time_us_N[0])
        return blocks

    def _means(self, stream: GridStream, rows_N: Ints, time_us_N: Ints, values_NC: Doubles) -> tuple[Ints, Doubles]:
        slot = stream.slot
        number_N = interval_of(time_us_N - stream.origin_us, self.options.rate_hz)
        number_N = np.maximum(number_N, stream.interval)  # one behind the watermark counts where it still can
        found = means(number_N, values_NC, stream.interval, self._sum_SC[slot], self._count_SC[slot])
        self._sum_SC[slot], self._count_SC[slot] = found.sum_C, found.count_C
        number_M = stream.interval + np.arange(len(found.mean_MC))
        return rows_N[np.searchsorted(number_N, number_M, side="right")], found.mean_MC

    def _lines(
        self, stream: GridStream, rows_N: Ints, time_us_N: Ints, values_NC: Doubles, *, begins: bool
    ) -> tuple[Ints, Doubles]:
        if not begins:
            time_us_N = np.concatenate([[stream.last_time_us], time_us_N])
            values_NC = np.concatenate([self._last_SC[stream.slot][None], values_NC])
            rows_N = np.concatenate([rows_N[:1], rows_N])
        self._last_SC[stream.slot] = values_NC[-1]
        last = int(interval_of(time_us_N[-1:] - stream.origin_us, self.options.rate_hz)[0])
        time_us_M = stream.origin_us + time_of(np.arange(stream.interval, last + 1), self.options.rate_hz)
        return rows_N[np.searchsorted(time_us_N, time_us_M)], lines(time_us_M, time_us_N, values_NC)

    def _end(self, stream_id: str, stream: GridStream, key: int) -> list[_Block]:
        """Let the open interval of a stream come out."""
        slot = stream.slot
        if stream.origin_us == NEVER_US or self.options.method == "line":
            return []
        sum_C, count_C = self._sum_SC[slot].copy(), self._count_SC[slot].copy()
        self._sum_SC[slot], self._count_SC[slot] = 0, 0
        mean_1C = np.where(count_C > 0, sum_C / np.maximum(count_C, 1), np.nan)[None]
        return [self._block(stream_id, stream, np.array([key]), mean_1C)]

    def _block(self, stream_id: str, stream: GridStream, key_M: Ints, values_MC: Doubles) -> _Block:
        """Number the next rows of a stream."""
        count_M = np.arange(len(key_M))
        time_us_M = stream.origin_us + time_of(stream.interval + count_M, self.options.rate_hz)
        block = _Block(stream_id, key_M, stream.rows + count_M, time_us_M, values_MC)
        stream.interval, stream.rows = stream.interval + len(key_M), stream.rows + len(key_M)
        return block

    def _rows(self, batch: pa.RecordBatch | None, blocks: list[_Block], refused: list[tuple[int, str, str]]) -> list[Emitted]:
        """Return blocks and refused rows as one batch, in the order of the rows that gave rise to them."""
        said, made = [row for row, _, _ in refused], sum(len(block.key_M) for block in blocks)
        if not made + len(said):
            return []
        names = [block.stream_id for block in blocks]
        of_M = np.repeat(np.arange(len(blocks)), [len(block.key_M) for block in blocks])
        flat = np.concatenate([np.zeros((0, self.options.channels)), *(block.values_MC for block in blocks)]).astype(np.float32)
        offsets = pa.array(np.arange(made + 1, dtype=np.int32) * self.options.channels)
        columns = [
            pa.array(names, pa.string()).take(pa.array(of_M)),
            pa.array(np.concatenate([np.zeros(0, np.int64), *(block.sequence_M for block in blocks)])),
            pa.array(np.concatenate([np.zeros(0, np.int64), *(block.time_us_M for block in blocks)])).cast(records.TIME_TYPE),
            pa.ListArray.from_arrays(offsets, pa.array(flat.reshape(-1), from_pandas=True)),
        ]
        key_R = np.concatenate([np.array(said, np.int64), *(block.key_M for block in blocks)])
        if said:
            assert batch is not None
            keys = batch.select(["stream_id", "sequence", "event_time"]).take(pa.array(said)).columns
            columns = [pa.concat_arrays(pair) for pair in zip(keys, columns[:3], strict=True)] + [
                pa.concat_arrays([pa.nulls(len(said), columns[3].type), columns[3]])
            ]
        codes_R = np.array([self._codes[status] for _, status, _ in refused] + [0] * made, np.int8)
        errors = pa.array([error for _, _, error in refused] + [None] * made, pa.string())
        order = pa.array(np.argsort(key_R, kind="stable"))
        arrays = [column.take(order) for column in (*columns, status_column(codes_R, list(self.statuses)), errors)]
        arrays = [array.cast(field.type) for array, field in zip(arrays, OUTPUTS["samples"], strict=True)]
        return [Output("samples", finite_rows(pa.RecordBatch.from_arrays(arrays, schema=OUTPUTS["samples"])))]

    # Ends and snapshots

    def advance(self, watermark_us: int) -> list[Emitted]:
        """Return the means of intervals that are over."""
        over: list[_Block] = []
        for stream_id in list(self._streams):
            stream = self._streams.get(stream_id)
            assert stream is not None
            if not self._count_SC[stream.slot].any():
                continue
            if stream.origin_us + int(time_of(np.array(stream.interval + 1), self.options.rate_hz)) <= watermark_us:
                over += self._end(stream_id, stream, 0)
                self._streams.changed(stream_id)
        return self._rows(None, over, [])

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream. The interval that it ends in does not come out: whether it is whole, nobody knows."""
        self._streams.close(stream_id)

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of everything, or of what changed since the last call."""
        with self._streams.snapshot(incremental=incremental, settings=self._settings) as (state, streams):
            slots = [stream.slot for stream in streams]
            for name, array in self._arrays().items():
                state.dense[name] = torch.from_numpy(array[slots])
        return state

    def restore(self, state: State) -> None:
        """Replace everything by a full ``state``."""
        hint = "even times were counted with these options, so resume with the same ones"
        live, streams = self._streams.restore(state, hint=hint, settings=self._settings)
        slots = [stream.slot for stream in streams]
        for name, array in self._arrays().items():
            array[:] = 0
            if slots:
                array[slots] = live.dense[name].numpy()

    @property
    def _settings(self) -> str:
        return f"rate_hz {self.options.rate_hz:g}, channels {self.options.channels}, method {self.options.method}"

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        return {"sum": self._sum_SC, "count": self._count_SC, "last": self._last_SC}

    def metrics(self) -> dict[str, float]:
        """Return streams and counts of the whole run."""
        return {
            "bank_bytes": float(sum(array.nbytes for array in self._arrays().values())),
            "streams": float(len(self._streams)),
            **self._counters.gauges(),
        }


def _parts(begins_N: npt.NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """Return where parts begin and end: at the first row, and where something begins anew."""
    first = [0, *(n for n in np.flatnonzero(begins_N).tolist() if n)]
    return first, [*first[1:], len(begins_N)]
