"""Source, operator and sink tasks, driven by hand."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from engine_workload import value_batch

from connectors.base import Reader
from connectors.errors import RecoveryError
from operators.base import Context
from operators.state import State
from pipelines.runtime.contracts import ReaderContract
from pipelines.runtime.edges import Inbox, Router
from pipelines.runtime.messages import (
    Barrier,
    Body,
    Close,
    Data,
    Edge,
    End,
    Event,
    Exhausted,
    OperatorAck,
    SourceAck,
    SplitState,
    TaskId,
)
from pipelines.runtime.open_streams import OpenStreams
from pipelines.runtime.operator_task import OperatorTask
from pipelines.runtime.snapshots import SnapshotWriter, read_chain
from pipelines.runtime.source_task import MAX_OPEN_SPLITS, SourceTask
from pipelines.testing import FakeClock, Gap, MemoryOptions, MemorySource
from pipelines.testing.running_mean import RunningMean, RunningMeanOptions

SOURCE, OTHER, OPERATOR, SINK = TaskId("src", 0), TaskId("other", 0), TaskId("op", 0), TaskId("sink", 0)


class Recorder:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Edge, int, Body]] = []

    def send(self, messages: Sequence[tuple[Edge, int, Body]]) -> None:
        self.sent += messages

    @property
    def bodies(self) -> list[Body]:
        return [body for _, _, body in self.sent]

    def sequences(self) -> list[int]:
        return [row for body in self.bodies if isinstance(body, Data) for row in body.batch.column("sequence").to_pylist()]


def source_task(
    splits: dict[str, list[Any]], recorder: Recorder, events: list[Event], clock: FakeClock, read_rows: int = 4
) -> SourceTask:
    source = MemorySource(MemoryOptions(splits=splits, schema=RunningMean.input_schema, clock=clock))
    return SourceTask(
        SOURCE,
        {name: SplitState() for name in splits},
        source.open,
        Router([Edge(SOURCE, SINK)], recorder),
        events.append,
        clock,
        ReaderContract("src", "memory", source.schema),
        read_rows=read_rows,
    )


def drive(task: SourceTask | OperatorTask, limit: int = 10_000) -> int:
    steps = 0
    while task.step():
        steps += 1
        assert steps < limit
    return steps


# -- source


def test_splits_take_turns_and_share_the_read_size() -> None:
    recorder, events = Recorder(), []
    splits = {name: [value_batch([name] * 4, 10 * i)] for i, name in enumerate("ab")}
    drive(source_task(splits, recorder, events, FakeClock()))
    assert recorder.sequences() == [0, 1, 10, 11, 2, 3, 12, 13]
    assert events == [Exhausted(SOURCE)]


def test_a_barrier_names_the_first_row_that_was_not_sent() -> None:
    recorder, events = Recorder(), []
    task = source_task({"a": [value_batch(["k"] * 10)]}, recorder, events, FakeClock())
    task.step()
    task.request_barrier(0, final=False)
    task.step()
    ack = events[0]
    assert isinstance(ack, SourceAck)
    assert ack.splits == {"a": SplitState({"item": 0, "row": 4}, False, 4)}
    assert recorder.bodies[1] == Barrier(0)
    drive(task)
    assert recorder.sequences() == list(range(10))


def test_an_exhausted_split_closes_its_streams_and_is_reported_as_done() -> None:
    recorder, events = Recorder(), []
    task = source_task({"a": [value_batch(["x", "y"])]}, recorder, events, FakeClock())
    drive(task)
    assert recorder.bodies[-1] == Close(("x", "y"))
    task.request_barrier(3, final=True)
    drive(task)
    assert recorder.bodies[-2:] == [Barrier(3), End()]
    assert isinstance(events[-1], SourceAck)
    assert events[-1].splits["a"].done
    assert task.ended


class Camera(Reader):
    """Never ends; drops what is not asked for."""

    def __init__(self) -> None:
        self.dropped = {}
        self.rows = 0

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        self.dropped = {"too late": 2 * self.rows}
        self.rows += 1
        return value_batch(["cam"], self.rows) if self.rows % 2 else None

    def position(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def test_splits_without_an_end_are_all_read_and_what_they_drop_is_counted() -> None:
    recorder, events, cameras = Recorder(), [], [Camera() for _ in range(MAX_OPEN_SPLITS + 5)]
    task = SourceTask(
        SOURCE,
        {str(n): SplitState() for n in range(len(cameras))},
        lambda name, position: cameras[int(name)],
        Router([Edge(SOURCE, SINK)], recorder),
        events.append,
        FakeClock(),
        ReaderContract("src", "camera", RunningMean.input_schema),
        read_rows=4,
        bounded=False,
        splits_end=False,
    )
    for _ in range(3 * len(cameras)):
        task.step()
    assert all(camera.rows >= 3 for camera in cameras)
    assert task.stats.dropped == {"too late": sum(camera.dropped["too late"] for camera in cameras)}
    assert not events


def test_a_source_without_an_end_is_never_exhausted() -> None:
    recorder, events = Recorder(), []
    task = SourceTask(
        SOURCE, {}, lambda name, position: Camera(), Router([Edge(SOURCE, SINK)], recorder), events.append, FakeClock(),
        ReaderContract("src", "camera", RunningMean.input_schema), read_rows=4, bounded=False,
    )  # fmt: skip
    assert not task.step()
    assert events == []


def test_a_source_in_a_gap_says_how_long_it_can_be_left_alone() -> None:
    recorder, events, clock = Recorder(), [], FakeClock()
    task = source_task({"a": [value_batch(["x"]), Gap(5.0), value_batch(["x"], 1)]}, recorder, events, clock)
    assert drive(task) == 1
    assert task.idle_s() == 5.0
    clock.advance(5.0)
    drive(task)
    assert recorder.sequences() == [0, 1]


def test_a_barrier_passes_while_a_source_waits() -> None:
    recorder, events, clock = Recorder(), [], FakeClock()
    task = source_task({"a": [value_batch(["x"]), Gap(5.0)]}, recorder, events, clock)
    drive(task)
    task.request_barrier(0, final=False)
    drive(task)
    assert recorder.bodies[-1] == Barrier(0)


def test_only_so_many_splits_are_open_at_a_time() -> None:
    recorder, events = Recorder(), []
    splits = {f"s{i}": [value_batch([f"s{i}"] * 3)] for i in range(3 * MAX_OPEN_SPLITS)}
    task = source_task(splits, recorder, events, FakeClock())
    most = 0
    while task.step():
        most = max(most, task.stats.splits_open)
    assert most == MAX_OPEN_SPLITS
    assert len(recorder.sequences()) == 9 * MAX_OPEN_SPLITS


# -- operator


class Rig:
    """An operator task with its surroundings."""

    def __init__(self, root: Path, *, inputs: tuple[str, ...] = ("src",), max_batch: int = 4, max_wait_s: float = 0.0) -> None:
        self.clock = FakeClock()
        self.recorder = Recorder()
        self.events: list[Event] = []
        self.root = root
        self.edges = {name: Edge(TaskId(name, 0), OPERATOR) for name in inputs}
        self.edges["ctl"] = Edge(TaskId("ctl", 0), OPERATOR, "control")
        self.inbox = Inbox(list(self.edges.values()), attempt=1)
        self.operator = RunningMean(RunningMeanOptions(), Context())
        self.writer = SnapshotWriter(root)
        self.sent = dict.fromkeys(self.edges, 0)
        self.task = OperatorTask(
            OPERATOR,
            self.operator,
            inputs,
            self.inbox,
            Router([Edge(OPERATOR, SINK)], self.recorder),
            self.writer,
            self.events.append,
            self.clock,
            attempt=1,
            max_batch=max_batch,
            max_wait_s=max_wait_s,
        )

    def send(self, edge: str, *bodies: Body) -> None:
        for body in bodies:
            self.inbox.offer(self.edges[edge], 1, self.sent[edge], body)
            self.sent[edge] += 1
        drive(self.task)

    def barrier(self, epoch: int) -> OperatorAck:
        for edge in self.edges:
            self.send(edge, Barrier(epoch))
        while not self.events:
            self.writer.submit(State(), "flush").result(10)  # behind the snapshot in the writer's queue
        ack = self.events.pop()
        assert isinstance(ack, OperatorAck)
        return ack


def test_rows_that_wait_are_processed_before_the_snapshot(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_batch=100, max_wait_s=60)
    rig.send("src", Data(value_batch(["a", "b", "a"])))
    assert rig.recorder.bodies == []
    ack = rig.barrier(0)
    assert rig.recorder.sequences() == [0, 1, 2]
    assert rig.recorder.bodies[-1] == Barrier(0)
    state = read_chain(tmp_path, ack.chain)
    assert dict(zip(state.streams, state.dense["count"].tolist(), strict=True)) == {"a": 2, "b": 1}


def test_every_tenth_snapshot_is_full_and_the_chain_gives_the_state(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    lengths = []
    for epoch in range(23):
        rig.send("src", Data(value_batch([f"k{epoch % 5}", "all"], 2 * epoch)))
        ack = rig.barrier(epoch)
        lengths.append(len(ack.chain))
        state = read_chain(tmp_path, ack.chain)
        counts = dict(zip(state.streams, state.dense["count"].tolist(), strict=True))
        assert counts["all"] == epoch + 1
        assert counts["k0"] == epoch // 5 + 1
    assert lengths == [*range(1, 11), *range(1, 11), 1, 2, 3]


def test_a_stream_is_closed_after_its_last_row_and_the_end_is_passed_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_batch=100, max_wait_s=1.0)
    rig.send("src", Data(value_batch(["a", "b"])), Close(("a",)))
    assert rig.recorder.bodies == []  # its row still waits
    rig.clock.advance(1.0)
    drive(rig.task)
    assert rig.recorder.sequences() == [0, 1]
    assert rig.recorder.bodies[-1] == Close(("a",))
    assert rig.operator.metrics() == {"streams": 1.0}


def test_a_stream_that_starts_afresh_is_apart_from_its_former_life(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_batch=100, max_wait_s=60.0)
    rig.send("src", Data(value_batch(["a", "a"])), Close(("a",)), Data(value_batch(["a"], 2)))
    rig.barrier(0)
    counts = [n for body in rig.recorder.bodies if isinstance(body, Data) for n in body.batch.column("n").to_pylist()]
    assert counts == [1, 2, 1]


def test_with_two_inputs_a_stream_ends_with_the_last_of_them(tmp_path: Path) -> None:
    rig = Rig(tmp_path, inputs=("left", "right"))
    rig.send("left", Data(value_batch(["a", "b"])))
    rig.send("right", Data(value_batch(["a"], 2)))
    rig.send("left", Close(("a", "b")))
    assert rig.recorder.bodies[-1] == Close(("b",))
    assert rig.barrier(0).open_streams == {"left": [], "right": ["a"]}
    rig.send("right", Close(("a",)))
    assert rig.recorder.bodies[-1] == Close(("a",))


def test_control_rows_see_the_data_rows_that_came_before_them(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_batch=100, max_wait_s=60.0)
    rig.send("src", Data(value_batch(["a"])))
    columns = value_batch(["a"]).columns[:3]
    control = pa.RecordBatch.from_arrays([*columns, pa.array([10.0])], schema=RunningMean.control_schema)
    rig.send("ctl", Data(control), Close(("a",)))
    rig.send("src", Data(value_batch(["a"], 1)))
    state = read_chain(tmp_path, rig.barrier(0).chain)
    first, second = (body.batch.column("m")[0].as_py() for body in rig.recorder.bodies if isinstance(body, Data))
    assert first < 1
    assert second > 5
    assert state.dense["sum"].item() == pytest.approx(first + 10 + (2 * second - first - 10))


def test_an_error_in_an_operator_names_the_task_and_the_batch(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.operator.process = lambda batch: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ZeroDivisionError) as raised:
        rig.send("src", Data(value_batch(["a"] * 3)))
    assert raised.value.__notes__ == ["in operator op[0], process of 3 rows"]


def test_a_snapshot_that_cannot_be_written_fails_the_task_and_not_the_epoch(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "snapshots").write_text("in the way")
    with pytest.raises(RecoveryError, match=r"snapshot .* cannot be written"):
        for _ in range(200):
            for edge in rig.edges:
                rig.send(edge, Barrier(0)) if rig.sent[edge] == 0 else drive(rig.task)
            rig.inbox.wait(0.05)
    assert rig.events == []


def test_the_end_follows_the_last_row(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_batch=100, max_wait_s=60.0)
    rig.send("src", Data(value_batch(["a"])), End())
    assert not rig.task.ended
    rig.send("ctl", End())
    assert rig.task.ended
    assert [type(body) for body in rig.recorder.bodies] == [Data, End]


# -- small parts


def test_open_streams_survive_a_snapshot() -> None:
    before = OpenStreams(["x", "y"])
    before.seen("x", ["a", "b"])
    before.seen("y", ["b"])
    after = OpenStreams(["x", "y"])
    after.restore(before.snapshot())
    assert after.close("x", ["a", "b"]) == ["a"]
    assert after.close("y", ["b"]) == ["b"]
    assert after.close("y", ["never seen"]) == ["never seen"]


def test_a_pickled_slice_does_not_carry_the_rest_of_its_batch() -> None:
    batch = value_batch(["key"] * 20_000)
    part = pickle.loads(pickle.dumps(Data(batch.slice(100, 10))))
    assert part.batch.equals(batch.slice(100, 10))
    assert part.batch.schema.equals(batch.schema, check_metadata=True)
    assert len(pickle.dumps(Data(batch.slice(100, 10)))) < 10_000
    buffers: list[pickle.PickleBuffer] = []
    assert len(pickle.dumps(Data(batch), protocol=5, buffer_callback=buffers.append)) < 2_000  # the columns go out of band
    assert pickle.loads(pickle.dumps(Data(batch), protocol=5)).batch.equals(batch)


def test_the_state_of_the_test_operator_has_no_views_of_its_bank() -> None:
    operator = RunningMean(RunningMeanOptions(), Context(device=torch.device("cpu")))
    operator.process(value_batch(["a"]))
    state = operator.snapshot()
    operator.process(value_batch(["a"], 1))
    assert state.dense["count"].tolist() == [1]
