"""The local runner on in-memory sources and a fake clock."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from engine_workload import value_batch

from connectors.base import Position, Reader, Sink, Source, Staged
from connectors.errors import ConfigError, RecoveryError, SinkError
from operators.base import Context
from pipelines.check import check_spec
from pipelines.runners import Progress, run
from pipelines.runners.local import LocalRunner
from pipelines.runners.report import RunReport
from pipelines.spec import OperatorSpec, PipelineSpec, SinkSpec, SourceSpec
from pipelines.testing import (
    Crash,
    End,
    FakeClock,
    Gap,
    InjectedCrash,
    ListSink,
    ListSinkOptions,
    MemoryOptions,
    RowStore,
)
from pipelines.testing.running_mean import RunningMean, RunningMeanOptions

SCHEMA = RunningMean.input_schema
BATCHES = [value_batch([f"k{i % 7}" for i in range(50)], 50 * j) for j in range(20)]


def source(name: str, splits: Mapping[str, Sequence[Any]], **options: Any) -> SourceSpec:
    schema = options.pop("schema", SCHEMA)
    parallelism = options.pop("parallelism", 1)
    settings = MemoryOptions(splits=splits, schema=schema, **options)
    return SourceSpec(name=name, type="pipelines.testing:MemorySource", options=settings, parallelism=parallelism)


def operator(name: str, *inputs: str, **engine: Any) -> OperatorSpec:
    values = {"max_batch": 16, "max_wait_ms": 0.0, **engine}
    return OperatorSpec(
        name=name, type="pipelines.testing.running_mean:RunningMean", options=RunningMeanOptions(), inputs=inputs, **values
    )


def sink(store: RowStore, *inputs: str, name: str = "out", shards: int = 1) -> SinkSpec:
    return SinkSpec(
        name=name, type="pipelines.testing:ListSink", options=ListSinkOptions(store=store), inputs=inputs, shards=shards
    )


def spec(root: Path, sources: Sequence[Any], operators: Sequence[Any], sinks: Sequence[Any], **engine: Any) -> PipelineSpec:
    return PipelineSpec(
        name="p",
        state=root,
        sources=tuple(sources),
        operators=tuple(operators),
        sinks=tuple(sinks),
        **{"epoch_s": 10.0, **engine},
    )


def simple(
    root: Path, items: Sequence[Any], store: RowStore, clock: Any = time.monotonic, *, epoch_s: float = 10.0, **engine: Any
) -> PipelineSpec:
    first = source("src", {"a": items}, clock=clock)
    return spec(root, [first], [operator("op", "src", **engine)], [sink(store, "op")], epoch_s=epoch_s)


def run_fake(plan: PipelineSpec, clock: FakeClock, *, resume: bool = False, **options: Any) -> RunReport:
    settings = {"on_progress": None, "stop": threading.Event(), **options}
    return LocalRunner(plan, resume=resume, clock=clock, **settings).run()


@pytest.fixture(scope="module")
def expected() -> dict[str, list[dict[str, Any]]]:
    from operators.base import Context

    mean = RunningMean(RunningMeanOptions(), Context())
    streams: dict[str, list[dict[str, Any]]] = {}
    for batch in BATCHES:
        for row in mean.process(batch)[0].to_pylist():
            streams.setdefault(row["stream_id"], []).append(row)
    return streams


def test_rows_go_through_and_the_report_counts_them(tmp_path: Path, expected: Any) -> None:
    store = RowStore()
    report = run(simple(tmp_path, BATCHES, store), runner="local")
    assert store.by_stream() == expected
    assert report.status == "finished"
    assert report.rows_committed == {"src": 1000, "out": 1000}
    by_task = {str(stats.task): stats for stats in report.tasks}
    assert by_task["op[0]"].rows_in == by_task["op[0]"].rows_out == by_task["out[0]"].rows_out == 1000
    assert by_task["src[0]"].splits_done == 1


@pytest.mark.parametrize("places", [(3,), (0, 10), (5, 6, 19)])
@pytest.mark.heavy
def test_run_until_the_crash_and_again_gives_the_rows_of_an_undisturbed_run(
    places: tuple[int, ...], tmp_path: Path, expected: Any
) -> None:
    items: list[Any] = [item for batch in BATCHES for item in (batch, Gap(0.3))]
    for place in reversed(places):
        items.insert(2 * place + 1, Crash())
    store, clock = RowStore(), FakeClock()
    plan = simple(tmp_path, items, store, clock, epoch_s=1.0)
    for crash, place in enumerate(places):
        with pytest.raises(InjectedCrash):
            run_fake(plan, clock, resume=crash > 0)
        assert len(store.rows()) <= 50 * place
    assert run_fake(plan, clock, resume=True).status == "finished"
    assert store.by_stream() == expected
    assert store.staged == {}


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 5)])
@pytest.mark.heavy
def test_the_number_of_shards_may_change_on_resume(before: int, after: int, tmp_path: Path, expected: Any) -> None:
    store, clock = RowStore(), FakeClock()
    items = [*BATCHES[:5], Gap(1.0), *BATCHES[5:11], Crash(), *BATCHES[11:]]
    with pytest.raises(InjectedCrash):
        run_fake(simple(tmp_path, items, store, clock, epoch_s=0.5, shards=before), clock)
    assert len(store.rows()) == 250
    run_fake(simple(tmp_path, items, store, clock, epoch_s=0.5, shards=after), clock, resume=True)
    assert store.by_stream() == expected


@pytest.mark.heavy
def test_sink_shards_and_source_parallelism_give_the_same_rows(tmp_path: Path, expected: Any) -> None:
    by_key = {f"k{k}": [b.filter(pa.compute.equal(b["stream_id"], f"k{k}")) for b in BATCHES] for k in range(7)}
    store = RowStore()
    plan = spec(
        tmp_path, [source("src", by_key, parallelism=3)], [operator("op", "src", shards=2)], [sink(store, "op", shards=2)]
    )
    run(plan, runner="local")
    assert store.by_stream() == expected


def test_epochs_follow_the_clock(tmp_path: Path) -> None:
    items = [value_batch(["k"]), Gap(25.0), value_batch(["k"], 1)]
    clock, store = FakeClock(), RowStore()
    plan = spec(tmp_path, [source("src", {"a": items}, clock=clock)], [operator("op", "src")], [sink(store, "op")])
    report = run_fake(plan, clock)
    assert report.epochs == 3  # at 10 s, at 20 s, and the last one
    assert sorted(store.committed) == ["000000-000", "000002-000"]


def test_a_batch_waits_for_others_only_as_long_as_allowed(tmp_path: Path) -> None:
    items = [value_batch(["k"]), Gap(1.0), value_batch(["k"], 1), Gap(0.01), value_batch(["k"], 2)]
    clock, store = FakeClock(), RowStore()
    plan = spec(
        tmp_path, [source("src", {"a": items}, clock=clock)], [operator("op", "src", max_wait_ms=50.0)], [sink(store, "op")]
    )
    report = run_fake(plan, clock)
    assert {str(stats.task): stats.batches for stats in report.tasks}["op[0]"] == 2
    assert len(store.rows()) == 3


def test_the_end_marker_ends_a_split(tmp_path: Path) -> None:
    store = RowStore()
    run(simple(tmp_path, [BATCHES[0], End(), BATCHES[1]], store), runner="local")
    assert len(store.rows()) == 50


def test_a_stop_commits_and_resume_goes_on(tmp_path: Path, expected: Any) -> None:
    store, stop = RowStore(), threading.Event()
    clock = FakeClock()
    items = [*BATCHES[:9], Gap(3.0), *BATCHES[9:]]

    def progress(reading: Progress) -> None:
        assert reading.rows_read == 450
        assert reading.rows_left == 550
        stop.set()

    plan = spec(tmp_path, [source("src", {"a": items}, clock=clock)], [operator("op", "src")], [sink(store, "op")])
    report = run_fake(plan, clock, on_progress=progress, stop=stop)
    assert report.status == "stopped"
    assert len(store.rows()) == 450
    assert run_fake(plan, clock, resume=True).status == "finished"
    assert store.by_stream() == expected


def test_resuming_a_finished_run_does_nothing_and_starting_it_over_is_refused(tmp_path: Path) -> None:
    store = RowStore()
    plan = simple(tmp_path, BATCHES, store)
    run(plan, runner="local")
    report = run(plan, runner="local", resume=True)
    assert (report.status, report.epochs, len(store.rows())) == ("already finished", 0, 1000)
    with pytest.raises(
        RecoveryError,
        match=r"a run of pipeline 'p' that is finished\. Read .* with --resume, or run it again from the start with --fresh",
    ):
        run(plan, runner="local")


def test_resume_without_anything_to_resume_starts_at_the_beginning(tmp_path: Path, expected: Any) -> None:
    store = RowStore()
    run(simple(tmp_path, BATCHES, store), runner="local", resume=True)
    assert store.by_stream() == expected


@pytest.mark.heavy
def test_operators_in_a_row_and_a_sink_of_several_inputs_stay_aligned(tmp_path: Path) -> None:
    store = RowStore()

    class Chain(RunningMean):
        """Takes the mean of the mean."""

        def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
            columns = [*(batch.column(i) for i in range(3)), batch.column("m")]
            return super().process(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))

    second = OperatorSpec(name="second", type="chain:Chain", options=RunningMeanOptions(), inputs=("first",), shards=2)
    object.__setattr__(second, "build", lambda device=None: Chain(RunningMeanOptions(), _context()))
    clock = FakeClock()
    items = [*BATCHES[:8], Gap(1.0), *BATCHES[8:12], Crash(), *BATCHES[12:]]
    plan = spec(
        tmp_path,
        [source("src", {"a": items}, clock=clock)],
        [operator("first", "src"), second],
        [sink(store, "src", "first", "second")],
        epoch_s=0.5,
    )
    with pytest.raises(InjectedCrash):
        run_fake(plan, clock)
    assert len(store.rows()) == 3 * 400
    run_fake(plan, clock, resume=True)
    assert len(store.rows()) == 3 * 1000
    for batches in store.committed.values():  # whatever is visible of an epoch is there from all three inputs
        rows = [row for batch in batches for row in batch.to_pylist()]
        assert len({(r["stream_id"], r["sequence"]) for r in rows}) * 3 == len(rows)


@pytest.mark.heavy
def test_two_inputs_of_one_operator_lose_and_double_nothing(tmp_path: Path) -> None:
    left = [value_batch([f"l{i % 3}" for i in range(20)], 20 * j) for j in range(10)]
    right = [value_batch([f"r{i % 3}" for i in range(20)], 20 * j) for j in range(10)]
    store, clock = RowStore(), FakeClock()
    plan = spec(
        tmp_path,
        [
            source("a", {"s": [*left[:3], Gap(1.0), left[3], Crash(), *left[4:]]}, clock=clock),
            source("b", {"s": [*right[:6], Gap(3.0), right[6], Crash(), *right[7:]]}, clock=clock),
        ],
        [operator("op", "a", "b", shards=2)],
        [sink(store, "op")],
        epoch_s=0.4,
    )
    for resume, rows_then in ((False, 180), (True, 320)):
        with pytest.raises(InjectedCrash):
            run_fake(plan, clock, resume=resume)
        assert len(store.rows()) == rows_then
    run_fake(plan, clock, resume=True)
    for name, rows in store.by_stream().items():
        assert [row["n"] for row in rows] == list(range(1, len(rows) + 1)), name
    assert len(store.rows()) == 400


def test_control_rows_reach_the_operator_and_their_effect_is_recovered(tmp_path: Path) -> None:
    control = pa.RecordBatch.from_arrays(
        [*value_batch(["k0"]).columns[:3], pa.array([100.0])], schema=RunningMean.control_schema
    )
    store, clock = RowStore(), FakeClock()
    data = [value_batch(["k0"]), Gap(2.0), Crash(), value_batch(["k0"], 1)]
    assert RunningMean.control_schema is not None
    plan = spec(
        tmp_path,
        [
            source("src", {"a": data}, clock=clock),
            source("ctl", {"c": [Gap(1.0), control]}, clock=clock, schema=RunningMean.control_schema),
        ],
        [operator("op", "src", control=("ctl",))],
        [sink(store, "op")],
        epoch_s=0.5,
    )
    with pytest.raises(InjectedCrash):
        run_fake(plan, clock)
    run_fake(plan, clock, resume=True)
    first, second = (row["m"] for row in store.rows())
    assert first < 1
    assert second > 50


def test_the_streams_of_a_split_that_ended_are_closed(tmp_path: Path) -> None:
    splits = {f"s{i}": [value_batch([f"k{i}"] * 5)] for i in range(30)}
    store = RowStore()
    report = run(spec(tmp_path, [source("src", splits)], [operator("op", "src")], [sink(store, "op")]), runner="local")
    assert {str(stats.task): stats.gauges for stats in report.tasks}["op[0]"] == {"streams": 0.0}


class FullDisk(ListSink):
    """Has no room for the third epoch."""

    def prepare(self, epoch: int) -> list[Staged]:
        if epoch == 2 and not self.options.store.__dict__.get("freed"):
            raise SinkError("rows: the disk is full: No space left on device")
        return super().prepare(epoch)


def test_a_full_disk_ends_the_run_with_a_clear_error_and_it_can_be_resumed(tmp_path: Path, expected: Any) -> None:
    store, clock = RowStore(), FakeClock()
    items = [item for batch in BATCHES for item in (batch, Gap(0.3))]
    plan = simple(tmp_path, items, store, clock, epoch_s=1.0)
    object.__setattr__(plan.sinks[0], "build", lambda: FullDisk(ListSinkOptions(store=store)))
    with pytest.raises(SinkError, match="No space left on device"):
        run_fake(plan, clock)
    assert sorted(store.committed) == ["000000-000", "000001-000"]
    store.freed = True  # type: ignore[attr-defined]
    run_fake(plan, clock, resume=True)
    assert store.by_stream() == expected


@dataclass(frozen=True, kw_only=True)
class EndlessOptions:
    taken: list[int] = field(default_factory=list)


class EndlessSource(Source, Reader):
    """Delivers for ever."""

    Options: ClassVar[type] = EndlessOptions
    bounded = False

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    def splits(self) -> list[str]:
        return ["all"]

    def open(self, split: str, position: Position | None) -> Reader:
        return self

    def read(self, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
        self.options.taken.append(max_rows)
        return value_batch(["k"] * max_rows)

    def position(self) -> Position:
        return {}

    def close(self) -> None:
        """Nothing to release."""


class BoundedSink(Sink):
    """Notes how many rows were read when a batch reaches it."""

    def open(self, schemas: Mapping[str, pa.Schema], *, attempt: int, shard: int) -> None:
        self.taken: list[int] = self.options.taken
        self.ahead: list[int] = self.options.ahead
        self.written = 0

    def write(self, source: str, batch: pa.RecordBatch) -> None:
        self.ahead.append(sum(self.taken) - self.written)
        self.written += batch.num_rows
        if self.written >= 5000:
            self.options.stop.set()

    def prepare(self, epoch: int) -> list[Staged]:
        return []

    def commit(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Nothing is staged."""

    def recover(self, epoch: int, staged: Sequence[Staged]) -> None:
        """Nothing is staged."""

    def close(self) -> None:
        """Nothing to release."""


@pytest.mark.heavy
def test_no_more_is_read_than_the_sinks_have_taken_and_one_batch(tmp_path: Path) -> None:
    @dataclass
    class Shared:
        taken: list[int]
        ahead: list[int]
        stop: threading.Event

    shared = Shared([], [], threading.Event())
    endless = SourceSpec(name="src", type=f"{__name__}:EndlessSource", options=None)
    object.__setattr__(endless, "build", lambda: EndlessSource(EndlessOptions(taken=shared.taken)))
    bounded = SinkSpec(name="out", type=f"{__name__}:BoundedSink", options=EndlessOptions(), inputs=("op",))
    object.__setattr__(bounded, "build", lambda: BoundedSink(shared))
    object.__setattr__(endless, "options", EndlessOptions())
    plan = spec(tmp_path, [endless], [operator("op", "src")], [bounded], epoch_s=0.01)
    report = run(plan, runner="local", stop=shared.stop)
    assert report.status == "stopped"
    assert max(shared.ahead) <= 2 * 16


def test_an_unknown_runner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'flink' is not a runner; allowed: 'local', 'ray'"):
        run(simple(tmp_path, BATCHES, RowStore()), runner="flink")


def _context() -> Any:
    from operators.base import Context

    return Context()


class OneMemory(RunningMean):
    """One memory for all streams of a shard."""

    @classmethod
    def keyed(cls, options: Any) -> bool:
        return False


def test_an_operator_that_is_not_keyed_cannot_be_resumed_with_another_number_of_shards(tmp_path: Path) -> None:
    def plan(shards: int) -> PipelineSpec:
        node = replace(operator("op", "src", shards=shards), type="test_local_runner:OneMemory")
        first = source("src", {"a": items}, clock=clock)
        return spec(tmp_path / "state", [first], [node], [sink(store, "op")], epoch_s=0.5)

    store, clock = RowStore(), FakeClock()
    items = [*BATCHES[:3], Gap(1.0), BATCHES[3], Crash(), *BATCHES[4:]]
    with pytest.raises(InjectedCrash):
        run_fake(plan(2), clock)
    with pytest.raises(RecoveryError, match=r"operators\.op\.shards: is 3, but epoch \d+ was written with 2, and .*OneMemory"):
        run_fake(plan(3), clock, resume=True)
    errors = [finding for finding in check_spec(plan(3)) if finding.level == "error"]
    assert [finding.where for finding in errors] == ["operators.op.shards"]
    assert "resume with 'shards: 2', or start in a new state folder" in errors[0].message
    assert run_fake(plan(2), clock, resume=True).status == "finished"


class Closing(RunningMean):
    """Keeps a list of what is made and not closed."""

    open: ClassVar[list[str]] = []

    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(options, context)
        self.open.append(context.name)

    def close(self) -> None:
        if self.context.name in self.open:
            self.open.remove(self.context.name)


@pytest.mark.parametrize("items", [BATCHES[:2], [BATCHES[0], Crash()]])
def test_operators_are_closed_when_the_run_ends_also_after_a_failure(items: Sequence[Any], tmp_path: Path) -> None:
    nodes = [replace(operator(name, up), type="test_local_runner:Closing") for name, up in (("one", "src"), ("two", "src"))]
    plan = spec(tmp_path / "state", [source("src", {"a": items})], nodes, [sink(RowStore(), "one", "two")])
    with contextlib.suppress(InjectedCrash):
        run(plan, runner="local")
    assert Closing.open == []


class Unfit(Closing):
    """Cannot go on from any state."""

    def restore(self, state: Any) -> None:
        raise RecoveryError("does not fit")


def test_an_operator_whose_state_does_not_fit_is_closed_too(tmp_path: Path) -> None:
    clock = FakeClock()
    plan = simple(tmp_path, [BATCHES[0], Gap(1.0), Crash(), BATCHES[1]], RowStore(), clock, epoch_s=0.5)
    with pytest.raises(InjectedCrash):
        run_fake(plan, clock)
    object.__setattr__(plan.operators[0], "build", lambda device=None: Unfit(RunningMeanOptions(), Context(name="op")))
    with pytest.raises(RecoveryError, match="does not fit"):
        run_fake(plan, clock, resume=True)
    assert Closing.open == []
