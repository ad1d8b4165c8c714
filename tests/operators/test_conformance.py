"""The conformance suite passes the project's operators, and catches an operator that breaks one promise at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from connectors import records
from connectors.errors import SchemaError
from operators.admission import admit_rows
from operators.banks import RowSpec, SlotBank, ring
from operators.base import Context, Operator, Output
from operators.counters import STREAM_COUNTERS, Counters
from operators.null import NullOperator, NullOptions
from operators.output import OutputRows
from operators.state import State
from operators.streams import STREAM_STATUSES, Stream, StreamOptions, StreamTable
from pipelines.testing import conformance
from pipelines.testing.conformance import ConformanceError, check_operator

INPUT = records.key_schema("number", 1, [pa.field("value", pa.float64()), pa.field("error", pa.string())])
OUTPUT = records.output_schema("mean", 1, [pa.field("mean", pa.float64())])
RECORD = records.key_schema("record", 1, [pa.field("mean", pa.float64())])
WINDOW = 4


@dataclass(slots=True)
class Offset(Stream):
    offset: float = 0.0


@dataclass(slots=True)
class Record(Offset):
    highest: float = -np.inf
    records: int = 0


class WindowMean(Operator):
    """Mean of the last values of each stream plus an offset that control rows set. Simple, correct, and easy to break."""

    Options = StreamOptions
    input_schema = INPUT
    output_schema = OUTPUT
    control_schema = INPUT
    statuses: ClassVar[dict[str, str]] = {"ok": "mean of the last values", **STREAM_STATUSES}

    def __init__(self) -> None:
        super().__init__(StreamOptions(), Context())
        self.counters = Counters(*STREAM_COUNTERS)
        self.streams = StreamTable("mean", self.open, self.options, kind=Offset, counters=self.counters)
        self.bank = SlotBank("values", {"value": RowSpec((), torch.float64)}, slots=4, capacity=WINDOW)

    def open(self, stream: str, slot: int) -> Offset:
        self.bank.open(torch.tensor([slot]), torch.tensor([0]))
        return Offset(slot)

    def read(self, value: float | None) -> str | None:
        return None if value is not None and np.isfinite(value) else f"value {value} is not finite"

    def one(self, stream: Offset, value: float) -> float:
        slot = torch.tensor([stream.slot])
        self.bank.write(slot, {"value": torch.tensor([[value]], dtype=torch.float64)}, torch.tensor([1]), ring)
        return float(self.bank.read(slot).rows["value"][0].sort().values.mean()) + stream.offset

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        out, values = OutputRows(batch, OUTPUT, self.statuses), batch.column("value").to_pylist()
        means: list[float | None] = [None] * batch.num_rows
        for row in admit_rows(batch, self.streams, out, lambda row, stream, time_us: (values[row], self.read(values[row]))):
            means[row.row] = self.one(row.stream, row.content)
        self.counters.note(out)
        return out.batches({"mean": pa.array(means, pa.float64())})

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        for row in batch.to_pylist():
            name = row["stream_id"]
            stream = self.streams.get(name) or self.streams.open(name).stream
            stream.offset = row["value"]
            self.streams.changed(name)
        return []

    def snapshot(self, *, incremental: bool = False) -> State:
        with self.streams.snapshot(incremental=incremental) as (state, streams):
            slots = torch.tensor([stream.slot for stream in streams], dtype=torch.int64)
            self.bank.export(slots, state, incremental=incremental)
        self.bank.mark_clean()
        return state

    def restore(self, state: State) -> None:
        live, streams = self.streams.restore(state, hint="")
        if streams:
            self.bank.load(torch.tensor([stream.slot for stream in streams]), live)

    def close_stream(self, stream_id: str) -> None:
        self.streams.close(stream_id)

    def metrics(self) -> dict[str, float]:
        return {"bank_bytes": float(self.bank.bytes()["device"])}


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


class TwoOutputs(WindowMean):
    """Gives its rows by name, and beside them those that exceed all before, which have no status and a count of their own."""

    output_schema = None
    outputs: ClassVar[dict[str, pa.Schema]] = {"means": OUTPUT, "records": RECORD}

    def __init__(self):
        super().__init__()
        self.streams = StreamTable("mean", self.open, self.options, kind=Record, counters=self.counters)

    def open(self, stream, slot):
        super().open(stream, slot)
        return Record(slot)

    def process(self, batch):
        return [out for rows in super().process(batch) for out in self.named(rows)]

    def named(self, rows):
        found = []
        for row in rows.to_pylist():
            stream = self.streams.get(row["stream_id"])
            if row["mean"] is not None and row["mean"] > stream.highest:
                stream.highest = row["mean"]
                found.append({**row, "sequence": stream.records})
                stream.records += 1
        return [Output("records", pa.RecordBatch.from_pylist(found, schema=RECORD)), Output("means", rows)]


def test_an_operator_with_two_outputs_passes():
    check(TwoOutputs)


class GivesAnUndeclaredOutput(TwoOutputs):
    def named(self, rows):
        return [Output("record", super().named(rows)[0].batch), Output("means", rows)]


class GivesAnotherSchema(TwoOutputs):
    def named(self, rows):
        return [Output("records", rows), Output("means", rows)]


class SharesBetweenStreamsOfOneOutput(TwoOutputs):
    def named(self, rows):
        records, means = super().named(rows)
        self.given = getattr(self, "given", 0) + records.batch.num_rows
        numbers = pa.array([self.given] * records.batch.num_rows, pa.int64())
        return [Output("records", records.batch.set_column(1, RECORD.field(1), numbers)), means]


class AnswersBadRowsTwice(TwoOutputs):
    def named(self, rows):
        bad = rows.filter(pc.is_valid(rows.column("error"))).select(RECORD.names)
        return [Output("records", bad.cast(RECORD)), Output("means", rows)]


class SharesBetweenStreams(WindowMean):
    def one(self, stream, value):
        self.last = getattr(self, "last", 0.0) * 0.5 + super().one(stream, value)
        return self.last


class DependsOnCuts(WindowMean):
    def process(self, batch):
        (out,) = super().process(batch)
        centered = pc.subtract(out.column("mean"), pc.mean(out.column("mean")))
        return [pa.RecordBatch.from_arrays([*out.columns[:3], centered, *out.columns[4:]], schema=OUTPUT)]


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
        for stream in self.streams.values():
            stream.offset = 0.0


class RestoresTheCounterOnly(WindowMean):
    def restore(self, state):
        super().restore(state)
        for rows in self.bank.rows.values():
            rows.zero_()


class LeaksViews(WindowMean):
    def snapshot(self, *, incremental=False):
        state = super().snapshot(incremental=incremental)
        if state.streams and not incremental:
            slot = self.streams.get(state.streams[0]).slot
            state.dense["values.written"] = self.bank._written_S[slot : slot + 1].expand(len(state.streams))
        return state


class SkipsDirtyRows(WindowMean):
    def snapshot(self, *, incremental=False):
        if incremental:
            self.bank.mark_clean()
        return super().snapshot(incremental=incremental)


class CountsForAllStreams(WindowMean):
    """Keeps a figure outside the streams, which a cut of the state loses."""

    def restore(self, state):
        super().restore(state)
        if len(state.streams) < 3:
            for stream in self.streams.values():
                stream.offset += 1.0


class RaisesOnBadRows(WindowMean):
    def process(self, batch):
        if batch.column("error").null_count < batch.num_rows:
            raise ValueError("unreadable")
        return super().process(batch)


class StoresBadRows(WindowMean):
    def process(self, batch):
        for row in batch.to_pylist():
            stream = self.streams.get(row["stream_id"])
            if stream is not None and (row["error"] or self.read(row["value"])):
                stream.offset += 1.0
        return super().process(batch)


class HidesBadRows(WindowMean):
    def process(self, batch):
        (out,) = super().process(batch)
        ok = pa.array(["ok"] * out.num_rows).cast(OUTPUT.field("status").type)
        return [pa.RecordBatch.from_arrays([*out.columns[:4], ok, pa.nulls(out.num_rows, pa.string())], schema=OUTPUT)]


class EmitsAnUndeclaredStatus(WindowMean):
    statuses = {name: meaning for name, meaning in WindowMean.statuses.items() if name != "rejected_corrupt"} | {"odd": "?"}

    def process(self, batch):
        self.statuses = WindowMean.statuses
        try:
            return super().process(batch)
        finally:
            del self.statuses


class LooksAtContentBeforeTime(WindowMean):
    """Says ``rejected_corrupt`` of a late row whose content is bad, where the order of admission says ``late`` first."""

    def process(self, batch):
        out, values = OutputRows(batch, OUTPUT, self.statuses), batch.column("value").to_pylist()
        problems = {row for row, value in enumerate(values) if self.read(value)}
        (answer,) = super().process(batch)
        if not problems:
            return [answer]
        for row, status in enumerate(answer.column("status").to_pylist()):
            out.set(row, "rejected_corrupt" if row in problems else status, answer.column("error")[row].as_py())
        return out.batches({"mean": answer.column("mean")})


class ClosesWindowsByStepsOfAdvance(WindowMean):
    """Forgets its offsets whenever event time advances, so that finer steps change answers."""

    def advance(self, watermark_us):
        for stream in self.streams.values():
            stream.offset += 1.0
        return []


class LeavesAThread(WindowMean):
    def __init__(self):
        super().__init__()
        self.wait = threading.Event()
        threading.Thread(target=self.wait.wait, args=(60,), daemon=True, name="left behind").start()


class LeavesAFile(WindowMean):
    def __init__(self):
        super().__init__()
        self.file = open(__file__)  # noqa: PTH123, SIM115
        self.kept.append(self.file)

    kept: ClassVar[list[Any]] = []


class LeavesAProcess(WindowMean):
    def __init__(self):
        super().__init__()
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


class RemembersClosedStreams(WindowMean):
    def close_stream(self, stream_id):
        pass


class KeepsOldRows(WindowMean):
    """Frees the slot but keeps its offset for the next stream of that name."""

    def close_stream(self, stream_id):
        stream = self.streams.get(stream_id)
        super().close_stream(stream_id)
        self.old = {stream_id: (stream.offset if stream else 0.0) + 1.0}

    def open(self, stream, slot):
        made = super().open(stream, slot)
        made.offset = getattr(self, "old", {}).get(stream, 0.0)
        return made


class HidesTheClose(WindowMean):
    def snapshot(self, *, incremental=False):
        state = super().snapshot(incremental=incremental)
        state.closed = []
        return state


class GrowsInSnapshot(WindowMean):
    def __init__(self):
        super().__init__()
        self.log: list[float] = []

    def one(self, stream, value):
        self.log.append(super().one(stream, value))
        return self.log[-1]

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
        return {"bank_bytes": float(self.bank.bytes()["device"] + int(self.bank.written(torch.tensor([0]))))}


class GivesNoNumber(WindowMean):
    def process(self, batch):
        (rows,) = super().process(batch)
        return [rows.set_column(3, OUTPUT.field(3), pc.sqrt(rows.column(3)))]


BROKEN = {
    "outputs": [GivesAnUndeclaredOutput, GivesAnotherSchema],
    "interleaving": [SharesBetweenStreams, DependsOnCuts, SharesBetweenStreamsOfOneOutput],
    "snapshot": [ForgetsInSnapshot, RestoresTheCounterOnly, LeaksViews, SkipsDirtyRows],
    "resharding": [CountsForAllStreams],
    "bad rows": [RaisesOnBadRows, StoresBadRows, HidesBadRows, AnswersBadRowsTwice],
    "statuses": [EmitsAnUndeclaredStatus],
    "numbers": [GivesNoNumber],
    "admission": [LooksAtContentBeforeTime],
    "advance": [ClosesWindowsByStepsOfAdvance],
    "close": [LeavesAThread, LeavesAFile, LeavesAProcess],
    "close_stream": [RemembersClosedStreams, KeepsOldRows, HidesTheClose],
    "bounded": [GrowsInSnapshot, GrowsInSecret, GrowsTheBank],
}


@pytest.mark.parametrize(("promise", "broken"), [(p, b) for p, all_of in BROKEN.items() for b in all_of])
def test_broken_operator_is_caught(promise: str, broken: type[WindowMean]):
    # Resharding is left out where the operator keeps something beside its streams.
    others = set(psutil.Process().children())  # a Ray or a Kafka that other tests of this process use
    try:
        with pytest.raises(ConformanceError, match=f"^{promise}: "):
            if promise == "close":  # without the patience for what a machine that is busy has not ended yet
                conformance.check_close(conformance.Case(make=broken, rows=numbers()), patience_s=0.1)
            check(broken, reshard=broken is not GrowsInSnapshot)
    finally:
        for child in set(psutil.Process().children()) - others:
            child.kill()
            child.wait()
        while LeavesAFile.kept:
            LeavesAFile.kept.pop().close()


def test_operator_that_looks_ahead_is_caught():
    case = conformance.Case(make=LooksAhead, rows=numbers())
    with pytest.raises(ConformanceError, match=r"^causal: "):
        conformance.check_causal(case)


class TellsLaterRows(TwoOutputs):
    """Puts the number of rows of the whole batch into the first row of one output."""

    def named(self, rows):
        records, means = super().named(rows)
        records = records.batch.set_column(3, "mean", pa.array([float(rows.num_rows)] * records.batch.num_rows))
        return [Output("records", records), means]


def test_a_named_output_that_looks_ahead_is_caught():
    conformance.check_causal(conformance.Case(make=TwoOutputs, rows=numbers()))
    with pytest.raises(ConformanceError, match=r"^causal: .* output 'records': column 'mean'"):
        conformance.check_causal(conformance.Case(make=TellsLaterRows, rows=numbers()))


def test_one_stream_is_too_little_to_check():
    with pytest.raises(ValueError, match="at least 2 streams"):
        check_operator(WindowMean, numbers(streams="a"))


def test_suite_imports_no_ray():
    code = "import sys, pipelines.testing.conformance; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=240).returncode == 0


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
