"""Control streams without an end: which runs they keep from ending, which streams they keep open, what is not aligned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from engine_workload import value_batch

from connectors.errors import ConfigError
from operators.base import Context
from pipelines.api import Pipeline
from pipelines.graph import Graph
from pipelines.runtime.contracts import ReaderContract
from pipelines.runtime.edges import Inbox, Router
from pipelines.runtime.messages import Close, Data, Edge, Event, Exhausted, SplitState, TaskId, Watermark
from pipelines.runtime.operator_task import OperatorTask
from pipelines.runtime.recovery import options_of
from pipelines.runtime.snapshots import SnapshotWriter
from pipelines.runtime.source_task import SourceTask
from pipelines.runtime.tasks import make_aligner
from pipelines.spec import OperatorSpec
from pipelines.testing import FakeClock, Gap, MemoryOptions, MemorySource
from pipelines.testing.running_mean import RunningMean, RunningMeanOptions

ASKING, DATA, OPERATOR, SINK = (TaskId(name, 0) for name in ("ask", "src", "op", "sink"))
QUESTIONS = {"type": "requests", "path": "questions", "columns": {"add": "double"}}


class Recorder:
    def __init__(self) -> None:
        self.bodies: list[Any] = []

    def send(self, messages: Any) -> None:
        self.bodies += [body for _, _, body in messages]


def source_task(events: list[Event], *, awaited: bool) -> SourceTask:
    """A source that is not bounded, with 3 rows that are there at once."""
    clock = FakeClock()
    rows = [value_batch(["a"] * 3), Gap(1e9)]
    source = MemorySource(MemoryOptions(splits={"s": rows}, schema=RunningMean.input_schema, clock=clock))
    router = Router([Edge(ASKING, OPERATOR, "control")], Recorder())
    contract = ReaderContract("ask", "memory", source.schema)
    return SourceTask(
        ASKING,
        {"s": SplitState()},
        source.open,
        router,
        events.append,
        clock,
        contract,
        read_rows=2,
        bounded=False,
        awaited=awaited,
    )


@pytest.mark.parametrize(("awaited", "expected"), [(False, [Exhausted(ASKING)]), (True, [])])
def test_a_source_without_an_end_counts_as_read_when_it_has_nothing_now_unless_it_is_awaited(
    awaited: bool, expected: list[Event]
) -> None:
    events: list[Event] = []
    task = source_task(events, awaited=awaited)
    assert task.step()
    assert events == []  # what is there is read first
    while task.step():
        pass
    task.step()
    assert events == expected
    assert task.stats.rows_out == 3


class Rig:
    """An operator task that gets values as data and offsets as control."""

    def __init__(
        self, root: Path, *, aligned: bool = False, keeps_streams: bool = False, kind: type[RunningMean] = RunningMean
    ) -> None:
        self.clock = FakeClock()
        self.recorder = Recorder()
        self.edges = {
            "src": Edge(DATA, OPERATOR, "data", aligned),
            "ask": Edge(ASKING, OPERATOR, "control", None),
        }
        inbox = self.inbox = Inbox(list(self.edges.values()), attempt=1)
        self.operator = kind(RunningMeanOptions(), Context())
        node = OperatorSpec(
            name="op", type="x", options=None, inputs=("src",), control=("ask",), align_s=1.0 if aligned else None,
            align_control=False,
        )  # fmt: skip
        self.task = OperatorTask(
            OPERATOR,
            self.operator,
            ("src",),
            inbox,
            Router([Edge(OPERATOR, SINK)], self.recorder),
            SnapshotWriter(root),
            lambda event: None,
            self.clock,
            attempt=1,
            max_batch=100,
            max_wait_s=0.0,
            aligner=make_aligner(node, inbox, (), root, shard=0, clock=self.clock),
            keeps_streams=keeps_streams,
        )
        self._sent = dict.fromkeys(self.edges, 0)

    def send(self, edge: str, body: Any) -> None:
        self.inbox.offer(self.edges[edge], 1, self._sent[edge], body)
        self._sent[edge] += 1
        while self.task.step():
            pass


def offsets() -> Data:
    batch = value_batch(["a"])
    return Data(batch.rename_columns([*batch.schema.names[:3], "add"]))


def test_control_rows_that_are_not_aligned_neither_wait_nor_hold_data_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, aligned=True)
    rig.send("ask", offsets())
    assert rig.task.stats.control_rows == 1  # though no data have come
    rig.send("src", Data(value_batch(["a", "a"]), 5_000_000))
    assert rig.recorder.bodies[0].batch.column("n").to_pylist() == [1, 2]  # though no watermark has come from the control input
    rig.send("src", Data(value_batch(["a"], start=7_000_000), 7_000_000))
    rig.send("ask", offsets())
    assert (rig.task.stats.control_rows, rig.task.stats.held_rows) == (2, 1)
    rig.send("src", Watermark(9_000_000))
    assert rig.task.stats.held_rows == 0


@pytest.mark.parametrize(("keeps", "left"), [(False, 0.0), (True, 1.0)])
def test_an_operator_that_stays_for_questions_does_not_forget_streams(keeps: bool, left: float, tmp_path: Path) -> None:
    rig = Rig(tmp_path, keeps_streams=keeps)
    rig.send("src", Data(value_batch(["a"])))
    rig.send("src", Close(("a",)))
    assert rig.operator.metrics()["streams"] == left
    assert any(isinstance(body, Close) for body in rig.recorder.bodies) == (not keeps)


class SaysMore(RunningMean):
    """Has a row left to say of each stream that ends."""

    left: list[pa.RecordBatch]

    def close_stream(self, stream_id: str) -> None:
        self.left = [*getattr(self, "left", []), *self.process(value_batch([stream_id]))]
        super().close_stream(stream_id)

    def flush(self) -> list[pa.RecordBatch]:
        left, self.left = getattr(self, "left", []), []
        return left


@pytest.mark.parametrize("aligned", [False, True])
def test_what_is_left_to_say_of_a_stream_comes_before_its_end(aligned: bool, tmp_path: Path) -> None:
    rig = Rig(tmp_path, aligned=aligned, kind=SaysMore)
    rig.send("src", Data(value_batch(["a", "b", "a"]), 5_000_000 if aligned else None))
    rig.send("src", Close(("a",)))
    if aligned:
        rig.send("src", Watermark(90_000_000))
    told = [body.batch.column("stream_id").to_pylist() if isinstance(body, Data) else body for body in rig.recorder.bodies]
    place = told.index(Close(("a",)))
    assert told[place - 1] == ["a"]
    assert not any("a" in rows for rows in told[place + 1 :] if isinstance(rows, list))


def values(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    mean = {"type": "pipelines.testing.running_mean:RunningMean", "input": "numbers", "control": "questions"}
    made: dict[str, Any] = {
        "name": "p",
        "state": str(tmp_path / "state"),
        "sources": {
            "numbers": {"type": "jsonl", "path": "x.jsonl", "event_time_unit": "rows"},
            "questions": {**QUESTIONS},
        },
        "operators": {"mean": mean},
        "sinks": {"rows": {"type": "jsonl", "input": "mean", "path": str(tmp_path / "rows")}},
    }
    for key, value in changes.items():
        section, node, name = key.split("__")
        made[section][node][name] = value
    return made


def test_a_run_awaits_data_and_what_is_told_to_stay(tmp_path: Path) -> None:
    spec = Pipeline.from_dict(values(tmp_path)).spec
    assert [spec.awaits(source) for source in spec.sources] == [True, False]
    assert not spec.keeps_streams(spec.operators[0])
    made = values(tmp_path)
    made["sinks"]["log"] = {"type": "jsonl", "input": "questions", "path": str(tmp_path / "log")}
    spec = Pipeline.from_dict(made).spec
    assert not spec.awaits(spec.sources[1])  # though they are written down
    spec = Pipeline.from_dict(values(tmp_path, sources__questions__stay=True)).spec
    assert [spec.awaits(source) for source in spec.sources] == [True, True]
    assert spec.keeps_streams(spec.operators[0])


def test_control_edges_that_are_not_aligned_ask_for_no_watermarks_and_are_part_of_what_must_not_change(tmp_path: Path) -> None:
    aligned = {"operators__mean__align_s": 1.0, "operators__mean__align_control": False}
    spec = Pipeline.from_dict(values(tmp_path, **aligned)).spec
    aligned_roles = {edge.role: edge.aligned for edge in Graph(spec).inputs_of(TaskId("mean", 0))}
    assert aligned_roles == {"data": True, "control": False}
    assert options_of(spec)["mean.align_control"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sources__numbers__stay": True},
            "sources.numbers.stay: does nothing for a source that operators do not read as control only",
        ),
        ({"operators__mean__align_control": False}, "align_control: does nothing without align_s and control"),
        ({"operators__mean__align_s": 1.0}, "'questions' delivers what people ask now, and align_s would wait for it"),
    ],
)
def test_keys_that_would_do_nothing_or_wait_for_ever_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Pipeline.from_dict(values(tmp_path, **changes))


def test_a_source_that_ends_cannot_stay(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"v": 1.0, "add": 1.0}\n')
    ends = {"type": "jsonl", "path": str(tmp_path / "x.jsonl"), "event_time_unit": "rows", "stay": True}
    made = values(tmp_path)
    made["sources"] = {"numbers": {**made["sources"]["numbers"], "path": str(tmp_path / "x.jsonl")}, "questions": ends}
    errors = [finding for finding in Pipeline.from_dict(made).check() if finding.level == "error"]
    assert [(finding.where, finding.message[:43]) for finding in errors] == [
        ("sources.questions.stay", "does nothing for a source that ends; remove")
    ]
