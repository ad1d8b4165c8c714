"""Tasks, inboxes and routers where an operator aligns its inputs by event time, driven by hand."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from engine_workload import value_batch

from operators.base import Context, Operator
from operators.state import State
from pipelines.api import Pipeline
from pipelines.graph import Graph
from pipelines.runtime import aligner as aligner_module
from pipelines.runtime import source_task, watermarks
from pipelines.runtime.contracts import ReaderContract
from pipelines.runtime.edges import Inbox, Router
from pipelines.runtime.keys import shard_of
from pipelines.runtime.manifest import OperatorState
from pipelines.runtime.messages import (
    END_OF_TIME,
    Barrier,
    BarrierAhead,
    Body,
    Close,
    Data,
    Edge,
    End,
    Event,
    OperatorAck,
    SourceAck,
    SplitState,
    TaskId,
    Watermark,
)
from pipelines.runtime.operator_task import OperatorTask
from pipelines.runtime.snapshots import SnapshotWriter
from pipelines.runtime.source_task import SourceTask
from pipelines.runtime.tasks import make_aligner
from pipelines.spec import OperatorSpec
from pipelines.testing import FakeClock, Gap, MemoryOptions, MemorySource
from pipelines.testing.running_mean import RunningMean, RunningMeanOptions

OPERATOR, SINK = TaskId("op", 0), TaskId("sink", 0)
SECOND = 1_000_000


class Recorder:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Edge, int, Body]] = []

    def send(self, messages: Sequence[tuple[Edge, int, Body]]) -> None:
        self.sent += messages

    @property
    def bodies(self) -> list[Body]:
        return [body for _, _, body in self.sent]


class Diary(Operator):
    """Writes down what it is handed, call by call: the sequences, control rows as negative numbers."""

    Options = RunningMeanOptions
    input_schema = RunningMean.input_schema
    control_schema = RunningMean.control_schema
    output_schema = RunningMean.input_schema

    def __init__(self) -> None:
        super().__init__(RunningMeanOptions(), Context())
        self.calls: list[list[int]] = []
        self.closed: list[tuple[str, int]] = []

    @property
    def rows(self) -> list[int]:
        return list(itertools.chain.from_iterable(self.calls))

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        self.calls.append(batch.column("sequence").to_pylist())
        return [batch]

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        self.calls.append([-number for number in batch.column("sequence").to_pylist()])
        return []

    def snapshot(self, *, incremental: bool = False) -> State:
        return State()

    def restore(self, state: State) -> None:
        return

    def close_stream(self, stream_id: str) -> None:
        self.closed.append((stream_id, len(self.rows)))


def data_rows(seconds: Iterable[float], stream: str = "a") -> pa.RecordBatch:
    """Rows whose sequence is ten times their second."""
    seconds = list(seconds)
    batch = value_batch([stream] * len(seconds))
    columns = list(batch.columns)
    columns[1] = pa.array([round(10 * second) for second in seconds], pa.int64())
    columns[2] = pa.array([round(second * SECOND) for second in seconds], pa.int64()).cast(columns[2].type)
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def control_rows(seconds: Iterable[float], stream: str = "a") -> pa.RecordBatch:
    rows = data_rows(seconds, stream)
    assert RunningMean.control_schema is not None
    values = pa.array([1.0] * rows.num_rows)
    return pa.RecordBatch.from_arrays([*rows.columns[:3], values], schema=RunningMean.control_schema)


def at(seconds: float) -> int:
    return round(seconds * SECOND)


class Almanac(Diary):
    """Writes down how far event time is as well, as ``(seconds,)``, and answers with a row."""

    def __init__(self) -> None:
        super().__init__()
        self.story: list[Any] = []

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        self.story += batch.column("sequence").to_pylist()
        return super().process(batch)

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        self.story += [-number for number in batch.column("sequence").to_pylist()]
        return super().control(batch)

    def advance(self, watermark_us: int) -> list[pa.RecordBatch]:
        self.story.append((watermark_us / SECOND,))
        return [data_rows([watermark_us / SECOND], "due")]


class Rig:
    """An aligning operator task with its surroundings."""

    def __init__(
        self,
        root: Path,
        *,
        inputs: tuple[str, ...] = ("src",),
        max_batch: int = 100,
        align_s: float = 1.0,
        align_wait_s: float | None = None,
        states: Sequence[OperatorState] = (),
        attempt: int = 1,
        downstream: bool = True,
        operator: Diary | None = None,
        max_wait_s: float = 0.0,
    ) -> None:
        self.clock = FakeClock()
        self.recorder = Recorder()
        self.events: list[Event] = []
        self.attempt = attempt
        self.edges = {name: Edge(TaskId(name, 0), OPERATOR, "data", True) for name in inputs}
        self.edges["ctl"] = Edge(TaskId("ctl", 0), OPERATOR, "control", True)
        self.inbox = Inbox(list(self.edges.values()), attempt=attempt, window=1000)
        self.operator = operator or Diary()
        self.writer = SnapshotWriter(root)
        self.sent = dict.fromkeys(self.edges, 0)
        node = OperatorSpec(
            name="op", type="x", options=None, inputs=inputs, control=("ctl",), align_s=align_s, align_wait_s=align_wait_s
        )
        self.task = OperatorTask(
            OPERATOR,
            self.operator,
            inputs,
            self.inbox,
            Router([Edge(OPERATOR, SINK, "data", downstream)], self.recorder),
            self.writer,
            self.events.append,
            self.clock,
            attempt=attempt,
            max_batch=max_batch,
            max_wait_s=max_wait_s,
            aligner=make_aligner(node, self.inbox, states, root, shard=0, clock=self.clock),
        )

    def send(self, edge: str, *bodies: Body) -> None:
        for body in bodies:
            self.inbox.offer(self.edges[edge], self.attempt, self.sent[edge], body)
            self.sent[edge] += 1
        self.drive()

    def drive(self) -> None:
        for _ in range(10_000):
            if not self.task.step():
                return
        raise AssertionError("the task does not come to rest")

    def barrier(self, epoch: int) -> OperatorState:
        for edge in self.edges:
            self.send(edge, Barrier(epoch))
        self.writer.submit(State(), "flush").result(10)  # behind the snapshot in the writer's queue
        [ack] = self.events
        self.events.clear()
        assert isinstance(ack, OperatorAck)
        return OperatorState(tuple(ack.chain), ack.open_streams, ack.alignment)


# -- operator


def test_control_rows_are_handed_over_with_their_span_and_not_as_they_arrive(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.send("ctl", Data(control_rows([0.2, 1.5]), at(1.5)))
    assert rig.operator.calls == []
    rig.send("src", Data(data_rows([0.1, 0.9, 1.1, 2.0]), at(2.0)))
    assert rig.operator.calls == [[1, 9], [-2]]
    rig.send("ctl", Watermark(END_OF_TIME))
    assert rig.operator.calls == [[1, 9], [-2], [11], [-15]]
    rig.send("src", Watermark(END_OF_TIME))
    assert rig.operator.calls[4:] == [[20]]
    assert (rig.task.stats.held_rows, rig.task.stats.late_rows) == (0, 0)


def test_what_is_set_free_is_cut_into_batches_and_stays_in_order_over_streams(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_batch=4, align_s=0)
    batches = [data_rows([n], stream) for n, stream in enumerate("aabbbabababab")]
    rig.send("src", Data(pa.concat_batches(batches), END_OF_TIME))
    rig.send("ctl", Data(control_rows([6]), END_OF_TIME))
    assert [len(call) for call in rig.operator.calls] == [4, 3, 1, 4, 2]
    assert rig.operator.rows == [0, 10, 20, 30, 40, 50, 60, -60, 70, 80, 90, 100, 110, 120]


def test_two_data_inputs_are_handed_over_by_span_and_then_as_they_are_listed(tmp_path: Path) -> None:
    rig = Rig(tmp_path, inputs=("src", "more"))
    rig.send("more", Data(data_rows([0.3, 1.3, 2.3]), END_OF_TIME))
    rig.send("src", Data(data_rows([0.8, 1.8, 2.8]), END_OF_TIME))
    rig.send("ctl", Watermark(END_OF_TIME))
    assert rig.operator.rows == [8, 3, 18, 13, 28, 23]


def test_rows_that_wait_at_a_barrier_are_in_the_snapshot_and_go_on_from_there(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.send("src", Data(data_rows([0.5, 3.5, 4.5]), at(4.5)), Close(("gone",)))
    rig.send("ctl", Data(control_rows([0.7, 2.5, 6.0]), at(2.0)))
    state = rig.barrier(0)
    assert rig.operator.rows == [5, -7]
    assert state.alignment is not None
    assert state.alignment.rows is not None
    assert (tmp_path / state.alignment.rows.path).is_file()
    assert [file.path for file in state.files()][1:] == [state.alignment.rows.path]

    again = Rig(tmp_path, states=[state], attempt=2)
    again.send("src", Watermark(at(4.5)))  # what a source begins with
    again.send("ctl", Watermark(END_OF_TIME))
    assert again.operator.rows == [-25, 35]
    again.send("src", Watermark(END_OF_TIME))
    assert again.operator.rows == [-25, 35, 45, -60]
    assert again.operator.closed == [("gone", 3)]

    rig.send("ctl", Watermark(END_OF_TIME))
    rig.send("src", Watermark(END_OF_TIME))
    assert rig.operator.rows == [5, -7, *again.operator.rows]  # as if there had been no barrier
    assert rig.operator.closed == [("gone", 5)]


def test_a_stop_leaves_what_waits_to_the_next_run(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.send("src", Data(data_rows([0.5, 1.5]), at(1.5)))
    rig.barrier(0)
    for edge in rig.edges:
        rig.send(edge, End())
    assert rig.task.ended
    assert rig.operator.rows == []


def test_a_stream_is_closed_when_its_rows_have_been_handed_over(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.send("src", Data(data_rows([0.5, 1.5])), Close(("a",)), Watermark(END_OF_TIME))
    rig.send("ctl", Data(control_rows([1.6, 2.5]), at(1.6)))
    assert rig.operator.closed == []
    rig.send("ctl", Watermark(at(2.5)))
    assert rig.operator.rows == [5, 15, -16]
    assert rig.operator.closed == [("a", 3)]
    assert Close(("a",)) in rig.recorder.bodies


def test_an_input_far_ahead_is_not_taken_but_barriers_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aligner_module, "AHEAD_ROWS", 10)
    rig = Rig(tmp_path)
    rig.send("src", *(Data(data_rows([n, n + 0.5]), at(n + 0.5)) for n in range(30)))
    assert rig.task.stats.held_rows == 12
    assert rig.inbox.backlog(rig.edges["src"]) == 24
    state = rig.barrier(0)  # the control input has nothing before it
    assert rig.inbox.backlog(rig.edges["src"]) == 0
    assert state.alignment is not None
    rig.send("ctl", Watermark(at(20.0)))
    assert rig.operator.rows == [5 * n for n in range(40)]


def test_a_silent_control_input_is_given_up_after_align_wait_s(tmp_path: Path) -> None:
    rig = Rig(tmp_path, align_wait_s=3.0)
    rig.send("src", Data(data_rows([0.5, 1.5, 2.5]), at(2.5)))
    assert rig.operator.rows == []
    assert rig.task.idle_s() == 3.0
    rig.clock.advance(3.0)
    rig.drive()
    assert rig.operator.rows == [5, 15, 25]  # the data input is silent too
    rig.send("ctl", Data(control_rows([1.0]), at(1.0)))
    rig.send("src", Data(data_rows([3.5]), at(3.5)))
    rig.send("ctl", Watermark(END_OF_TIME))
    rig.send("src", Watermark(END_OF_TIME))
    assert rig.operator.rows == [5, 15, 25, 35, -10]
    assert rig.task.stats.late_rows == 1


def test_the_watermark_is_passed_on_behind_the_rows_before_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.send("src", Data(data_rows([0.5, 1.5, 2.5]), at(2.5)))
    rig.send("ctl", Watermark(at(9.0)))
    rows, watermark = rig.recorder.bodies
    assert isinstance(rows, Data)
    assert rows.batch.num_rows == 2
    assert watermark == Watermark(at(2.0))
    for edge in rig.edges:
        rig.send(edge, Watermark(END_OF_TIME))
    assert rig.recorder.bodies[-1] == Watermark(END_OF_TIME)


@pytest.mark.parametrize(("downstream", "first"), [(True, "src"), (True, "ctl"), (False, "src")])
def test_the_operator_is_told_the_event_time_between_the_rows_before_and_those_behind(
    downstream: bool, first: str, tmp_path: Path
) -> None:
    almanac = Almanac()
    rig = Rig(tmp_path, operator=almanac, downstream=downstream, max_wait_s=60.0)  # batches would wait for a minute
    rig.send("src", Data(data_rows([0.5, 1.5, 2.5]), at(2.5)))
    assert almanac.story == []
    rig.send("ctl", Data(control_rows([1.2]), at(9.0)))
    assert almanac.story == [5, 15, -12, (2.0,)]
    rig.send("src", Data(data_rows([3.5]), at(3.5)))
    assert almanac.story[4:] == [25, (3.0,)]
    rig.send("src", Watermark(at(7.0)))  # no rows, and yet time has come further
    assert almanac.story[6:] == [35, (7.0,)]
    for edge in sorted(rig.edges, key=lambda edge: edge != first):  # whichever ends first
        rig.send(edge, Watermark(END_OF_TIME))
    assert almanac.story[8:] == [(9.0,)]  # how far the control rows had come; the end itself is no place in time
    sent = [body if isinstance(body, Watermark) else body.batch.column("sequence").to_pylist() for body in rig.recorder.bodies]
    marks = [Watermark(at(second)) for second in (2, 3, 7, 9)]
    wanted = [[5, 15], [20], marks[0], [25], [30], marks[1], [35], [70], marks[2], [90], Watermark(END_OF_TIME)]
    if first == "src":
        wanted.insert(-1, marks[3])
    assert sent == (wanted if downstream else [rows for rows in wanted if not isinstance(rows, Watermark)])


def test_what_time_makes_due_at_the_end_of_the_data_comes_after_the_last_rows(tmp_path: Path) -> None:
    almanac = Almanac()
    rig = Rig(tmp_path, operator=almanac)
    rig.send("src", Data(data_rows([0.5, 4.5]), END_OF_TIME))
    rig.send("ctl", Watermark(END_OF_TIME))
    assert almanac.story == [5, 45, (5.0,)]
    again = Rig(tmp_path, operator=Almanac(), states=[rig.barrier(0)], attempt=2)
    again.send("src", Watermark(END_OF_TIME))
    again.send("ctl", Watermark(END_OF_TIME))
    assert again.operator.calls == []


def test_without_alignment_nobody_tells_the_operator_the_event_time(tmp_path: Path) -> None:
    almanac, recorder = Almanac(), Recorder()
    edge = Edge(TaskId("src", 0), OPERATOR, "data", True)
    inbox = Inbox([edge], attempt=1, window=10)
    router = Router([Edge(OPERATOR, SINK, "data", True)], recorder)
    arguments: dict[str, Any] = {"attempt": 1, "max_batch": 4, "max_wait_s": 0.0}
    task = OperatorTask(OPERATOR, almanac, ("src",), inbox, router, SnapshotWriter(tmp_path), print, FakeClock(), **arguments)
    inbox.offer(edge, 1, 0, Data(data_rows([1, 2]), at(2)))
    while task.step():
        pass
    assert almanac.story == [10, 20]
    assert recorder.bodies[-1] == Watermark(at(2))


@pytest.mark.parametrize("asked", [True, False])
def test_an_operator_that_does_not_align_passes_watermarks_on_where_they_are_asked_for(asked: bool, tmp_path: Path) -> None:
    recorder, clock, events = Recorder(), FakeClock(), list[Event]()
    edges = [Edge(TaskId(name, 0), OPERATOR, "data", asked) for name in ("x", "y")]
    inbox = Inbox(edges, attempt=1, window=100)
    router = Router([Edge(OPERATOR, SINK, "data", asked)], recorder)
    writer = SnapshotWriter(tmp_path)
    arguments: dict[str, Any] = {"attempt": 1, "max_batch": 4, "max_wait_s": 1.0}
    task = OperatorTask(OPERATOR, Diary(), ("x", "y"), inbox, router, writer, events.append, clock, **arguments)
    inbox.offer(edges[0], 1, 0, Data(data_rows([1, 2, 3, 4, 5]), at(5)))
    inbox.offer(edges[1], 1, 0, Data(data_rows([3]), at(3)))
    while task.step():
        pass
    assert [type(body) for body in recorder.bodies] == [Data]  # two rows wait, one of them from before the watermark
    clock.advance(1.0)
    while task.step():
        pass
    kinds = [type(body) for body in recorder.bodies]
    assert kinds == [Data, Data, Data, Watermark] if asked else kinds == [Data, Data, Data]
    assert not asked or recorder.bodies[-1] == Watermark(at(3))


# -- inbox


def test_a_paused_edge_is_passed_over_and_wakes_nobody() -> None:
    a, b = Edge(TaskId("a", 0), SINK), Edge(TaskId("b", 0), SINK)
    inbox = Inbox([a, b], attempt=1, window=10)
    inbox.pause({a})
    inbox.offer(a, 1, 0, Close(("x",)))
    assert inbox.take() is None
    inbox.wait(0.0)
    assert inbox.backlog(a) == 1
    inbox.offer(b, 1, 0, Close(("y",)))
    assert inbox.take() == (b, Close(("y",)))
    inbox.pause(())
    assert inbox.take() == (a, Close(("x",)))


@pytest.mark.parametrize("sign", [Barrier(3), BarrierAhead(3)])
def test_paused_edges_are_taken_while_a_barrier_is_under_way(sign: Body) -> None:
    a, b = Edge(TaskId("a", 0), SINK), Edge(TaskId("b", 0), SINK)
    inbox = Inbox([a, b], attempt=1, window=10)
    inbox.pause({a})
    bodies: list[Body] = [Close(("x",)), Barrier(3), Close(("z",))]
    for sequence, body in enumerate(bodies):
        inbox.offer(a, 1, sequence, body)
    assert inbox.take() is None
    inbox.offer(b, 1, 0, sign)
    inbox.offer(b, 1, 1, Close(("y",)) if sign == Barrier(3) else Barrier(3))
    taken = [inbox.take() for _ in range(3)]
    assert taken[:2] == [(a, Close(("x",))), (None, Barrier(3))]
    assert taken[2] == ((b, Close(("y",))) if sign == Barrier(3) else None)
    assert inbox.backlog(a) == 1  # paused again
    assert inbox.under_way is None


def test_an_announcement_that_comes_after_the_barrier_is_of_no_account() -> None:
    a, b = Edge(TaskId("a", 0), SINK), Edge(TaskId("b", 0), SINK)
    inbox = Inbox([a, b], attempt=1, window=10)
    for edge, sequence, body in [(a, 0, Barrier(3)), (b, 0, Barrier(3)), (b, 1, BarrierAhead(3)), (a, 1, Close(("x",)))]:
        inbox.offer(edge, 1, sequence, body)
    inbox.pause({a})
    assert inbox.take() == (None, Barrier(3))
    assert inbox.take() is None
    assert inbox.under_way is None


def test_when_all_others_have_ended_paused_edges_are_taken() -> None:
    a, b = Edge(TaskId("a", 0), SINK), Edge(TaskId("b", 0), SINK)
    inbox = Inbox([a, b], attempt=1, window=10)
    inbox.pause({a})
    inbox.offer(a, 1, 0, Close(("x",)))
    inbox.offer(b, 1, 0, End())
    assert inbox.take() == (a, Close(("x",)))


def test_a_barrier_that_reaches_one_input_is_announced_behind_the_operator(tmp_path: Path) -> None:
    # Otherwise a task behind it may refuse the very messages that the barrier of the other input waits for.
    rig = Rig(tmp_path)
    rig.send("src", Barrier(7))
    assert rig.recorder.bodies == [BarrierAhead(7)]
    rig.send("ctl", Barrier(7))
    assert rig.recorder.bodies == [BarrierAhead(7), Barrier(7)]
    quiet = Rig(tmp_path, downstream=False)
    quiet.send("src", Barrier(7))
    assert quiet.recorder.bodies == []


# -- router and edges


def test_every_shard_gets_the_watermark_whether_it_gets_rows_or_not() -> None:
    recorder = Recorder()
    shards = [Edge(TaskId("src", 0), TaskId("op", n), "data", True) for n in range(3)]
    plain = [Edge(TaskId("src", 0), TaskId("sink", n)) for n in range(2)]
    router = Router([*shards, *plain], recorder)
    assert router.aligned
    router.send(Data(data_rows([1, 2], "key"), 7))
    owner = shard_of("key", 3)
    for edge, sequence, body in recorder.sent:
        assert sequence == 0
        if edge.receiver.node == "sink":
            assert isinstance(body, Data)
        elif edge.receiver.shard == owner:
            assert isinstance(body, Data)
            assert body.watermark_us == 7
        else:
            assert body == Watermark(7)
    assert len(recorder.sent) == 4
    router.send(Watermark(8))
    assert [edge.receiver.node for edge, _, _ in recorder.sent[4:]] == ["op"] * 3


def test_rows_keep_their_watermark_when_they_are_pickled() -> None:
    batch = data_rows(range(20_000))
    for part in (batch, batch.slice(5, 10)):
        back = pickle.loads(pickle.dumps(Data(part, 42)))
        assert back.watermark_us == 42
        assert back.batch.equals(part)


def test_watermarks_are_sent_only_where_an_operator_behind_asks_for_them(tmp_path: Path) -> None:
    source = {"type": "jsonl", "path": str(tmp_path), "stream_id": "k", "event_time": "t", "columns": {"v": "double"}}
    mean = {"type": "pipelines.testing.running_mean:RunningMean"}
    values = {
        "name": "n",
        "state": str(tmp_path / "state"),
        "sources": {"a": source, "b": source, "c": source},
        "operators": {
            "first": {**mean, "input": "a"},
            "second": {**mean, "input": "first", "control": "b", "align_s": 1, "align_wait_s": 5},
            "third": {**mean, "input": "second", "align_s": 3},
            "apart": {**mean, "inputs": ["c", "second"]},
        },
        "sinks": {"rows": {"type": "jsonl", "inputs": ["third", "apart"], "path": str(tmp_path / "rows")}},
    }
    graph = Graph(Pipeline.from_dict(values).spec)
    assert {str(edge): edge.aligned for edge in graph.edges} == {
        "a[0]->first[0]": True,
        "first[0]->second[0]": True,
        "b[0]->second[0]:control": True,
        "second[0]->third[0]": True,
        "c[0]->apart[0]": False,
        "second[0]->apart[0]": False,
        "third[0]->rows[0]": False,
        "apart[0]->rows[0]": False,
    }
    assert graph.split_wait_s("a") == math.inf  # the third operator, far behind, waits for ever
    values["operators"]["third"]["align_wait_s"] = 7
    assert Graph(Pipeline.from_dict(values).spec).split_wait_s("a") == 7


# -- source


def make_source(
    splits: dict[str, list[Any]], recorder: Recorder, events: list[Event], clock: FakeClock, **options: Any
) -> SourceTask:
    source = MemorySource(MemoryOptions(splits=splits, schema=RunningMean.input_schema, clock=clock))
    states = options.get("states") or {name: SplitState() for name in splits}
    router = Router([Edge(TaskId("src", 0), OPERATOR, "data", True)], recorder)
    wait_s = options.get("wait_s", math.inf)
    contract = ReaderContract("src", "memory", source.schema)
    return SourceTask(
        TaskId("src", 0), states, source.open, router, events.append, clock, contract, read_rows=2, split_wait_s=wait_s
    )


def run(task: SourceTask) -> None:
    while task.step():
        pass


def seconds_of(body: Body) -> list[int]:
    assert isinstance(body, Data)
    return [sequence // 10 for sequence in body.batch.column("sequence").to_pylist()]


def test_the_split_that_is_furthest_behind_is_read_first_and_sets_the_watermark() -> None:
    recorder, clock = Recorder(), FakeClock()
    splits = {"late": [data_rows(range(100, 106), "l")], "early": [data_rows(range(0, 200, 30), "e")]}
    run(make_source(splits, recorder, [], clock))
    sent = [(seconds_of(body), body.watermark_us) for body in recorder.bodies if isinstance(body, Data)]
    assert sent == [
        ([100, 101], None),  # nothing is known of the other one yet
        ([0, 30], at(30)),
        ([60, 90], at(90)),
        ([120, 150], at(101)),
        ([102, 103], at(103)),
        ([104, 105], at(105)),
        ([180], at(180)),
    ]
    assert [body for body in recorder.bodies if not isinstance(body, Data)] == [
        Close(("l",)),
        Watermark(at(150)),
        Close(("e",)),
        Watermark(END_OF_TIME),
    ]


def test_a_restart_goes_on_in_the_same_order() -> None:
    splits = {name: [data_rows([n * k for n in range(12)], name)] for name, k in (("a", 3), ("b", 5), ("c", 2))}
    whole = Recorder()
    run(make_source(splits, whole, [], FakeClock()))
    for stop in range(1, 20):
        first, second, events = Recorder(), Recorder(), list[Event]()
        task = make_source(splits, first, events, FakeClock())
        for _ in range(stop):
            task.step()
        task.request_barrier(0, final=True)
        task.step()
        [ack] = [event for event in events if isinstance(event, SourceAck)]
        run(make_source(splits, second, [], FakeClock(), states=ack.splits))
        rows = [seconds_of(body) for body in (*first.bodies, *second.bodies) if isinstance(body, Data)]
        assert rows == [seconds_of(body) for body in whole.bodies if isinstance(body, Data)]


def test_a_resumed_source_begins_with_the_watermark_that_it_had() -> None:
    splits = {name: [data_rows([n * k for n in range(12)], name)] for name, k in (("a", 3), ("b", 5))}
    states = {"a": SplitState({"item": 0, "row": 4}, False, 4, at(9)), "b": SplitState({"item": 0, "row": 2}, False, 2, at(5))}
    recorder = Recorder()
    make_source(splits, recorder, [], FakeClock(), states=states).step()
    assert recorder.bodies[0] == Watermark(at(5))


def test_a_split_that_waited_for_others_to_end_does_not_begin_before_the_watermark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_task, "MAX_OPEN_SPLITS", 1)
    splits = {"first": [data_rows([10, 20])], "second": [data_rows([15, 30], "s")]}
    for stop, known in [(1, at(20)), (2, at(20)), (3, at(30)), (4, END_OF_TIME)]:
        recorder, events = Recorder(), list[Event]()
        task = make_source(splits, recorder, events, FakeClock())
        for _ in range(stop):
            task.step()
        task.request_barrier(0, final=True)
        task.step()
        [ack] = [event for event in events if isinstance(event, SourceAck)]
        again = Recorder()
        run(make_source(splits, again, [], FakeClock(), states=ack.splits))
        assert again.bodies[0] == Watermark(known)


def test_before_the_last_barrier_a_source_that_has_ended_says_so() -> None:
    recorder, events = Recorder(), list[Event]()
    task = make_source({"a": [data_rows([1, 2])]}, recorder, events, FakeClock())
    task.step()
    task.step()  # the end of the split
    task.request_barrier(0, final=True)
    task.step()
    assert recorder.bodies[1:] == [Close(("a",)), Watermark(END_OF_TIME), Barrier(0), End()]


def test_a_source_reads_only_so_far_ahead_of_a_split_that_has_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermarks, "_AHEAD_ROWS", 6)
    recorder, clock = Recorder(), FakeClock()
    splits = {"busy": [data_rows(range(100))], "silent": [data_rows([0], "s"), Gap(60.0), data_rows([50], "s")]}
    task = make_source(splits, recorder, [], clock)
    run(task)
    assert len(recorder.sent) == 2 + 3  # the first rows of both, then no more than six
    clock.advance(60.0)
    run(task)
    assert isinstance(recorder.bodies[5], Data)
    assert recorder.bodies[5].batch.column("stream_id").to_pylist() == ["s"]
    assert recorder.bodies[-1] == Watermark(END_OF_TIME)


def test_a_split_that_is_silent_for_too_long_does_not_hold_the_watermark_back() -> None:
    recorder, clock = Recorder(), FakeClock()
    splits = {"busy": [data_rows(range(6))], "silent": [data_rows([0], "s"), Gap(60.0), data_rows([3], "s")]}
    task = make_source(splits, recorder, [], clock, wait_s=10.0)
    run(task)
    marks = [body.watermark_us for body in recorder.bodies if isinstance(body, Data) and body.watermark_us is not None]
    assert max(marks) == 0
    assert not [body for body in recorder.bodies if isinstance(body, Watermark)]
    clock.advance(60.0)
    run(task)
    assert recorder.bodies[-1] == Watermark(END_OF_TIME)
