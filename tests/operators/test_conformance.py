"""The conformance suite passes the project's operators, and catches an operator that breaks one promise at a time."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from connectors import records
from connectors.errors import SchemaError
from operators.banks import RowSpec, SlotBank, SlotTable, ring
from operators.base import Context, Operator
from operators.null import NullOperator, NullOptions
from operators.state import State
from pipelines.testing import conformance
from pipelines.testing.conformance import ConformanceError, check_operator

INPUT = records.key_schema("number", 1, [pa.field("value", pa.float64()), pa.field("error", pa.string())])
OUTPUT = records.output_schema("mean", 1, [pa.field("mean", pa.float64())])
WINDOW = 4


class WindowMean(Operator):
    """Mean of the last values of each stream plus an offset that control rows set. Simple, correct, and easy to break."""

    Options = NullOptions
    input_schema = INPUT
    output_schema = OUTPUT
    control_schema = INPUT

    def __init__(self) -> None:
        super().__init__(NullOptions(), Context())
        self.table = SlotTable(4)
        self.bank = SlotBank("values", {"value": RowSpec((), torch.float64)}, slots=4, capacity=WINDOW)
        self.offset: dict[str, float] = {}
        self.touched: set[str] = set()
        self.closed: set[str] = set()

    def slot(self, stream: str) -> torch.Tensor:
        if stream not in self.table:
            slot = torch.tensor([self.table.admit(stream)])
            self.bank.open(slot, torch.tensor([0]))
            self.offset[stream] = 0.0
        self.touched.add(stream)
        return torch.tensor([self.table.get(stream)])

    def one(self, stream: str, value: float | None, error: str | None) -> tuple[float | None, str, str | None]:
        if error is not None or value is None or not np.isfinite(value):
            return None, "rejected", error or f"value {value} is not finite"
        slot = self.slot(stream)
        self.bank.write(slot, {"value": torch.tensor([[value]], dtype=torch.float64)}, torch.tensor([1]), ring)
        values = self.bank.read(slot).rows["value"][0]
        return float(values.sort().values.mean()) + self.offset[stream], "ok", None

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        rows = batch.to_pylist()
        answers = [self.one(row["stream_id"], row["value"], row["error"]) for row in rows]
        means, statuses, errors = zip(*answers, strict=True)
        columns = [
            *batch.columns[:3],
            pa.array(means, pa.float64()),
            pa.array(statuses).cast(OUTPUT.field("status").type),
            pa.array(errors, pa.string()),
        ]
        return [pa.RecordBatch.from_arrays(columns, schema=OUTPUT)]

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        for row in batch.to_pylist():
            self.slot(row["stream_id"])
            self.offset[row["stream_id"]] = row["value"]
        return []

    def snapshot(self, *, incremental: bool = False) -> State:
        names = [name for name in self.table if not incremental or name in self.touched]
        state = State(streams=names, incremental=incremental, closed=sorted(self.closed) if incremental else [])
        state.dense["offset"] = torch.tensor([self.offset[name] for name in names], dtype=torch.float64)
        self.bank.export(
            torch.tensor([self.table.get(name) for name in names], dtype=torch.int64), state, incremental=incremental
        )
        self.bank.mark_clean()
        self.touched.clear()
        self.closed.clear()
        return state

    def restore(self, state: State) -> None:
        self.__init__()  # type: ignore[misc]
        for name in state.streams:
            self.slot(name)
        self.offset = dict(zip(state.streams, state.dense["offset"].tolist(), strict=True)) if state.streams else {}
        if state.streams:
            self.bank.load(torch.tensor([self.table.get(name) for name in state.streams]), state)
        self.touched.clear()

    def close_stream(self, stream_id: str) -> None:
        if self.table.release(stream_id) is not None:
            del self.offset[stream_id]
            self.closed.add(stream_id)
            self.touched.discard(stream_id)

    def metrics(self) -> dict[str, float]:
        return {"bank_bytes": float(self.bank.bytes())}


def numbers(length: int = 12, streams: str = "abc", value: float | None = None, error: str | None = None) -> pa.RecordBatch:
    rng = np.random.default_rng(1)
    total = length * len(streams)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([stream for _ in range(length) for stream in streams]),
            pa.array([i for i in range(length) for _ in streams], pa.int64()),
            pa.array([i * 1000 for i in range(length) for _ in streams], pa.timestamp("us", "UTC")),
            pa.array(rng.normal(size=total) if value is None else [value] * total, pa.float64()),
            pa.array([error] * total, pa.string()),
        ],
        schema=INPUT,
    )


def bad_numbers() -> pa.RecordBatch:
    one = [numbers(1, "a", value=float("nan")), numbers(1, "a", value=float("inf")), numbers(1, "a", error="unreadable")]
    return pa.Table.from_batches(one).combine_chunks().to_batches()[0]


def check(make: Any, **arguments: Any) -> None:
    settings = {"bad_rows": bad_numbers(), "control": numbers(4).slice(5, 4)} | arguments
    check_operator(make, numbers(), **settings)


def test_correct_operator_passes():
    check(WindowMean)


class SharesBetweenStreams(WindowMean):
    def one(self, stream, value, error):
        mean, *rest = super().one(stream, value, error)
        self.last = getattr(self, "last", 0.0) * 0.5 + (mean or 0.0)
        return self.last, *rest


class DependsOnCuts(WindowMean):
    def process(self, batch):
        (out,) = super().process(batch)
        centred = pc.subtract(out.column("mean"), pc.mean(out.column("mean")))
        return [pa.RecordBatch.from_arrays([*out.columns[:3], centred, *out.columns[4:]], schema=OUTPUT)]


class LooksAhead(WindowMean):
    """Gives each row the mean of the stream's *last* row in the batch; a cut-independent variant cannot look ahead."""

    def process(self, batch):
        (out,) = super().process(batch)
        last = {row["stream_id"]: row["mean"] for row in out.to_pylist()}
        means = pa.array([last[stream] for stream in out.column("stream_id").to_pylist()], pa.float64())
        return [pa.RecordBatch.from_arrays([*out.columns[:3], means, *out.columns[4:]], schema=OUTPUT)]


class ForgetsInSnapshot(WindowMean):
    def restore(self, state):
        super().restore(state)
        self.offset = dict.fromkeys(self.offset, 0.0)


class RestoresTheCounterOnly(WindowMean):
    def restore(self, state):
        super().restore(state)
        for rows in self.bank.rows.values():
            rows.zero_()


class LeaksViews(WindowMean):
    def snapshot(self, *, incremental=False):
        state = super().snapshot(incremental=incremental)
        if state.streams and not incremental:
            slots = [self.table.get(name) for name in state.streams]
            state.dense["values.written"] = self.bank._written_S[slots[0] : slots[0] + 1].expand(len(slots))
        return state


class SkipsDirtyRows(WindowMean):
    def snapshot(self, *, incremental=False):
        if incremental:
            self.bank.mark_clean()
        return super().snapshot(incremental=incremental)


class CountsForAllStreams(WindowMean):
    """Keeps a figure outside the streams, which a cut of the state loses."""

    def one(self, stream, value, error):
        mean, *rest = super().one(stream, value, error)
        self.rows_seen = getattr(self, "rows_seen", 0) + 1
        return mean, *rest

    def snapshot(self, *, incremental=False):
        state = super().snapshot(incremental=incremental)
        self.order = sorted(state.streams)
        return state

    def restore(self, state):
        super().restore(state)
        if len(state.streams) < 3:
            self.offset = {name: value + 1.0 for name, value in self.offset.items()}


class RaisesOnBadRows(WindowMean):
    def one(self, stream, value, error):
        if error:
            raise ValueError(error)
        return super().one(stream, value, error)


class StoresBadRows(WindowMean):
    def one(self, stream, value, error):
        answer = super().one(stream, value, error)
        if answer[1] != "ok":
            self.offset[stream] = self.offset.get(stream, 0.0) + 1.0
        return answer


class HidesBadRows(WindowMean):
    def one(self, stream, value, error):
        mean, _, _ = super().one(stream, value, error)
        return mean, "ok", None


class RemembersClosedStreams(WindowMean):
    def close_stream(self, stream_id):
        if stream_id in self.table:
            self.touched.discard(stream_id)


class KeepsOldRows(WindowMean):
    """Frees the slot but keeps its offset for the next stream of that name."""

    def close_stream(self, stream_id):
        offset = self.offset.get(stream_id, 0.0)
        super().close_stream(stream_id)
        self.kept = {stream_id: offset + 1.0}

    def slot(self, stream):
        new = stream not in self.table
        slot = super().slot(stream)
        if new:
            self.offset[stream] = getattr(self, "kept", {}).get(stream, 0.0)
        return slot


class HidesTheClose(WindowMean):
    def snapshot(self, *, incremental=False):
        state = super().snapshot(incremental=incremental)
        state.closed = []
        return state


class GrowsInSnapshot(WindowMean):
    def __init__(self):
        super().__init__()
        self.log: list[float] = []

    def one(self, stream, value, error):
        answer = super().one(stream, value, error)
        if answer[1] == "ok":
            self.log.append(answer[0])
        return answer

    def snapshot(self, *, incremental=False):
        state = super().snapshot(incremental=incremental)
        state.shared["log"] = torch.tensor(self.log, dtype=torch.float64)
        return state

    def restore(self, state):
        super().restore(state)
        self.log = state.shared["log"].tolist() if "log" in state.shared else []


class GrowsInSecret(WindowMean):
    def process(self, batch):
        self.history = [*getattr(self, "history", []), bytes(16384)]
        return super().process(batch)


class GrowsTheBank(WindowMean):
    def metrics(self):
        return {"bank_bytes": float(self.bank.bytes() + int(self.bank.written(torch.tensor([0]))))}


BROKEN = {
    "interleaving": [SharesBetweenStreams, DependsOnCuts],
    "snapshot": [ForgetsInSnapshot, RestoresTheCounterOnly, LeaksViews, SkipsDirtyRows],
    "resharding": [CountsForAllStreams],
    "bad rows": [RaisesOnBadRows, StoresBadRows, HidesBadRows],
    "close": [RemembersClosedStreams, KeepsOldRows, HidesTheClose],
    "bounded": [GrowsInSnapshot, GrowsInSecret, GrowsTheBank],
}


@pytest.mark.parametrize(("promise", "broken"), [(p, b) for p, all_of in BROKEN.items() for b in all_of])
def test_broken_operator_is_caught(promise: str, broken: type[WindowMean]):
    # Resharding is left out where the operator keeps something beside its streams.
    with pytest.raises(ConformanceError, match=f"^{promise}: "):
        check(broken, reshard=broken is not GrowsInSnapshot)


def test_operator_that_looks_ahead_is_caught():
    case = conformance.Case(make=LooksAhead, rows=numbers())
    with pytest.raises(ConformanceError, match=r"^causal: "):
        conformance.check_causal(case)


def test_one_stream_is_too_little_to_check():
    with pytest.raises(ValueError, match="at least 2 streams"):
        check_operator(WindowMean, numbers(streams="a"))


def test_suite_imports_no_ray():
    code = "import sys, pipelines.testing.conformance; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def frame_rows(error: str | None = None) -> pa.RecordBatch:
    count = 8
    arrays = [
        pa.array(["a", "b"] * 4),
        pa.array([i // 2 for i in range(count)], pa.int64()),
        pa.array([i // 2 * 1000 for i in range(count)], pa.timestamp("us", "UTC")),
        pa.array([b"xyz" * (i + 1) for i in range(count)], pa.binary()),
        pa.array(["raw_rgb8"] * count),
        pa.array([1] * count, pa.int32()),
        pa.array([i + 1 for i in range(count)], pa.int32()),
        pa.array([error] * count, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=records.FRAME)


def test_null_conforms():
    check_operator(lambda: NullOperator(NullOptions(), Context()), frame_rows(), bad_rows=frame_rows("truncated").slice(0, 2))


def test_null_forwards_keys_and_sizes_only():
    (out,) = NullOperator(NullOptions(), Context()).process(frame_rows())
    assert out.schema.names == ["stream_id", "sequence", "event_time", "height", "width", "status", "error"]
    assert out.column("width").to_pylist() == list(range(1, 9))
    with pytest.raises(SchemaError, match="column 'image'"):
        NullOperator(NullOptions(), Context()).process(frame_rows().drop_columns(["image"]))
