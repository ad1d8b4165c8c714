"""Who breaks a contract is named at the first batch, with what it did and what is expected, not by an error elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from engine_workload import value_batch

from connectors.base import Position, Reader
from connectors.errors import ContractError
from operators.state import State
from pipelines.runners import run
from pipelines.spec import OperatorSpec, PipelineSpec, SinkSpec, SourceSpec
from pipelines.testing import ListSink, ListSinkOptions, MemoryOptions, MemorySource, RowStore
from pipelines.testing.running_mean import RunningMean, RunningMeanOptions

SCHEMA = RunningMean.input_schema
GOOD = [value_batch(["a", "b"], 2 * n) for n in range(4)]


def renamed(batch: pa.RecordBatch, name: str, to: str) -> pa.RecordBatch:
    names = [to if column == name else column for column in batch.schema.names]
    return pa.RecordBatch.from_arrays(batch.columns, names=names)


class OtherColumn(RunningMean):
    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        return [renamed(out, "m", "mean") for out in super().process(batch)]


class LeavesOut(RunningMean):
    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        return [out.drop_columns(["n"]) for out in super().process(batch)]


class OtherType(RunningMean):
    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        return [out.set_column(3, "n", out.column("n").cast(pa.string())) for out in super().process(batch)]


class OtherOrder(RunningMean):
    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        return [out.select(list(reversed(out.schema.names))) for out in super().process(batch)]


class NoKeys(RunningMean):
    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        return [out.set_column(0, "stream_id", pa.nulls(out.num_rows, pa.string())) for out in super().process(batch)]


class GivesNone(RunningMean):
    def process(self, batch: pa.RecordBatch) -> Any:
        return None


class GivesABatch(RunningMean):
    def process(self, batch: pa.RecordBatch) -> Any:
        return super().process(batch)[0]


class GivesRows(RunningMean):
    def process(self, batch: pa.RecordBatch) -> Any:
        return [row for out in super().process(batch) for row in out.to_pylist()]


class FlushesNone(RunningMean):
    def flush(self) -> Any:
        return None


class NoState(RunningMean):
    def snapshot(self, *, incremental: bool = False) -> Any:
        return None


class StateOfItsOwn(RunningMean):
    def snapshot(self, *, incremental: bool = False) -> Any:
        return {"streams": []}


class AlwaysIncrements(RunningMean):
    def snapshot(self, *, incremental: bool = False) -> State:
        return super().snapshot(incremental=True)


class Undeclared(RunningMean):
    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        [out] = super().process(batch)
        status = pa.array(["okay"] * out.num_rows).dictionary_encode().cast(out.schema.field("status").type)
        return [out.set_column(out.schema.get_field_index("status"), out.schema.field("status"), status)]


class NoStatus(RunningMean):
    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        [out] = super().process(batch)
        kind = out.schema.field("status").type
        return [out.set_column(out.schema.get_field_index("status"), out.schema.field("status"), pa.nulls(out.num_rows, kind))]


class Haunted(RunningMean):
    """Gives the last row of a stream once more after it was told that the stream is over."""

    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(options, context)
        self.last: list[pa.RecordBatch] = []
        self.over = False

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        self.last = super().process(batch)
        return self.last

    def close_stream(self, stream_id: str) -> None:
        super().close_stream(stream_id)
        self.over = True

    def flush(self) -> list[pa.RecordBatch]:
        return self.last if self.over else []


class TextGauges(RunningMean):
    def metrics(self) -> Any:
        return {"streams": "many"}


class NoStatuses(RunningMean):
    statuses = {}  # noqa: RUF012


class NoSchema(RunningMean):
    output_schema = None  # type: ignore[assignment]


class KeysElsewhere(RunningMean):
    output_schema = pa.schema([("m", pa.float64()), *SCHEMA])


OPERATORS: list[tuple[type[RunningMean], str]] = [
    (OtherColumn, r"returned rows from process in which column 'm' is missing; return the columns of output_schema"),
    (LeavesOut, r"returned rows from process in which column 'n' is missing"),
    (OtherType, r"returned rows from process in which column 'n' is string, not int64; return"),
    (OtherOrder, r"returned rows from process in which the columns stand in the order"),
    (NoKeys, r"returned rows from process without stream_id; give every row the keys"),
    (GivesNone, r"returned None from process; return a list of record batches, \[\] for none"),
    (GivesABatch, r"returned a RecordBatch from process; return a list of record batches"),
    (GivesRows, r"returned a list with a dict from process; return a list of pyarrow\.RecordBatch"),
    (FlushesNone, r"returned None from flush; return a list"),
    (NoState, r"returned None from snapshot; return an operators\.state\.State"),
    (StateOfItsOwn, r"returned a dict from snapshot; return an operators\.state\.State"),
    (AlwaysIncrements, r"returned an increment from snapshot\(incremental=False\); return all state there"),
    (
        Undeclared,
        r"returned a row with the status 'okay' from process \(did you mean 'ok'\?\); declare it in statuses; it has ok",
    ),
    (NoStatus, r"returned a row without a status from process; declare it"),
    (
        Haunted,
        r"returned rows of stream 'a' from flush after close_stream\('a'\); return what is left of a stream by the flush",
    ),
    (TextGauges, r"returned a dict from metrics; return numbers by name"),
    (NoStatuses, r"declares no statuses; name each value of its column status"),
    (NoSchema, r"has the output_schema None; set output_schema"),
    (KeysElsewhere, r"has an output_schema in which column 1 is 'm', not 'stream_id'; make it with"),
]


class Items(MemorySource):
    """A source whose reader does what ``act`` makes of it."""

    act: Callable[[Reader], None] = staticmethod(lambda reader: None)

    def open(self, split: str, position: Position | None) -> Reader:
        reader = super().open(split, position)
        type(self).act(reader)
        return reader


def changed(what: str, value: Any) -> Callable[[Reader], None]:
    """Make a method of the reader return what ``value`` makes of its result."""

    def act(reader: Reader) -> None:
        method = getattr(reader, what)
        setattr(reader, what, lambda *arguments: value(method(*arguments)))

    return act


def without(column: int) -> Callable[[pa.RecordBatch | None], Any]:
    def change(batch: pa.RecordBatch | None) -> Any:
        if batch is None:
            return None
        name = batch.schema.names[column]
        return batch.set_column(column, name, pa.nulls(batch.num_rows, batch.schema.types[column]))

    return change


SOURCES: list[tuple[Callable[[Reader], None], str]] = [
    (
        changed("read", lambda batch: batch and batch.to_pylist()),
        r"returned a list with a dict from read of split 's'; return a",
    ),
    (changed("read", lambda batch: batch and renamed(batch, "v", "w")), r"rows of split 's' in which column 'v' is missing"),
    (
        changed("read", lambda batch: batch and batch.slice(0, 0)),
        r"returned 0 rows from read of split 's'; return 1 to max_rows",
    ),
    (changed("read", lambda batch: batch and pa.concat_batches([batch] * 99)), r"returned 198 rows from read of split 's'"),
    (changed("read", without(0)), r"delivered rows of split 's' without stream_id; give every row its keys"),
    (changed("read", without(2)), r"delivered rows of split 's' without event_time"),
    (changed("position", lambda position: None), r"returned None from position of split 's'; return a dict of JSON values"),
    (changed("position", lambda position: {"at": b"1"}), r"returned \{'at': b'1'\} \(Object of type bytes .* from position of"),
]


class Breaks(ListSink):
    def write(self, source: str, batch: pa.RecordBatch) -> None:
        raise KeyError("score")


class NoneStaged(ListSink):
    def prepare(self, epoch: int) -> Any:
        return None


class PathsStaged(ListSink):
    def prepare(self, epoch: int) -> Any:
        return [Path("rows.parquet"), *super().prepare(epoch)]


SINKS: list[tuple[type[ListSink], str]] = [
    (NoneStaged, r"returned None from prepare; return a list of connectors\.base\.Staged"),
    (PathsStaged, r"returned a list with a PosixPath from prepare"),
]


def pipeline(
    root: Path, *, operator: type[RunningMean] = RunningMean, source: type[MemorySource] = MemorySource, sink: Any = ListSink
) -> PipelineSpec:
    """A pipeline of these types, found as those of a user are."""

    def name(kind: type) -> str:
        return f"{kind.__module__}:{kind.__qualname__}"

    store = RowStore()
    return PipelineSpec(
        name="p",
        state=root / "state",
        epoch_s=10.0,
        sources=(SourceSpec(name="src", type=name(source), options=MemoryOptions(splits={"s": GOOD}, schema=SCHEMA)),),
        operators=(OperatorSpec(name="mean", type=name(operator), options=RunningMeanOptions(), inputs=("src",), max_batch=4),),
        sinks=(SinkSpec(name="out", type=name(sink), options=ListSinkOptions(store=store), inputs=("mean",)),),
    )


def test_the_unbroken_ones_run(tmp_path: Path) -> None:
    assert run(pipeline(tmp_path, source=Items)).status == "finished"


@pytest.mark.parametrize(("operator", "message"), OPERATORS, ids=[kind.__name__ for kind, _ in OPERATORS])
def test_an_operator_that_breaks_its_contract_is_named(operator: type[RunningMean], message: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=rf"^operator 'mean' \(\w+:{operator.__name__}\) ({message})"):
        run(pipeline(tmp_path, operator=operator))


@pytest.mark.parametrize(("act", "message"), SOURCES)
def test_a_source_that_breaks_its_contract_is_named(
    act: Callable[[Reader], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Items, "act", staticmethod(act))
    with pytest.raises(ContractError, match=rf"^source 'src' \(\w+:Items\) .*{message}"):
        run(pipeline(tmp_path, source=Items))


@pytest.mark.parametrize(("sink", "message"), SINKS, ids=[kind.__name__ for kind, _ in SINKS])
def test_a_sink_that_breaks_its_contract_is_named(sink: type[ListSink], message: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=rf"^sink 'out' \(\w+:{sink.__name__}\) {message}"):
        run(pipeline(tmp_path, sink=sink))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (None, "returned None as its splits"),
        ([1], "returned a list with a int as its"),
        (["s", "s"], "lists the split 's' twice"),
    ],
)
def test_splits_must_be_different_names(splits: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Items, "splits", lambda self: splits)
    with pytest.raises(ContractError, match=rf"the source \w+:Items {message}"):
        run(pipeline(tmp_path, source=Items))


def test_a_stream_that_comes_again_after_its_end_may_have_rows_again(tmp_path: Path) -> None:
    plan = pipeline(tmp_path)
    splits = {"s": GOOD, "t": GOOD}  # the same streams once more, when the first split has ended them
    again = SourceSpec(name="src", type=plan.sources[0].type, options=MemoryOptions(splits=splits, schema=SCHEMA))
    assert run(replace(plan, sources=(again,))).rows_committed["out"] == 16


def test_an_error_of_a_sink_says_in_which_one_and_of_what(tmp_path: Path) -> None:
    with pytest.raises(KeyError) as caught:
        run(pipeline(tmp_path, sink=Breaks))
    assert any("in sink out[0], write of" in note and "rows of 'mean'" in note for note in caught.value.__notes__)
