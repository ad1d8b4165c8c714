"""An operator with named outputs in whole pipelines: every row where it belongs, once, whatever dies and wherever it runs."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aligned_workload import enter
from engine_workload import hurry, run_here, run_process, value_batch
from outputs_workload import COUNT, PEAK, Peaks, PeaksOptions, committed, expected, peaks_pipeline, write_values

from connectors.errors import ContractError
from connectors.sinks.read import read_committed
from operators.base import Context, Emitted, Output
from pipelines.commands.inspect import inspect_state, state_text
from pipelines.commands.summary import problem_text, report_text
from pipelines.runtime.contracts import OperatorContract
from pipelines.runtime.manifest import read_manifests

ROWS = 3000

Values = dict[str, list[float | None]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("named") / "values"


@pytest.fixture(scope="module")
def values(folder: Path) -> Values:
    return write_values(folder, ROWS)


def require_all(values: Values, run: Path) -> None:
    counts, peaks = expected(values)
    assert committed(run) == (counts, peaks)
    means = read_committed(run / "means")
    assert means.num_rows == len(peaks)  # the operator behind one output has seen that one only
    last = {row["stream_id"]: row["m"] for row in means.sort_by("sequence").to_pylist()}
    for stream, mean in last.items():
        own = [value for name, _, value in peaks if name == stream]
        assert mean == pytest.approx(sum(own) / len(own))


@pytest.mark.heavy
def test_each_output_comes_out_where_the_file_says_and_is_counted_by_itself(
    folder: Path, values: Values, tmp_path: Path
) -> None:
    report = run_here(peaks_pipeline(folder, tmp_path))
    require_all(values, tmp_path)
    counts, peaks = expected(values)
    bad = sum(n is None for _, _, n in counts)
    tally = report.tallies["seen"]
    assert (tally.rows, {name: part.rows for name, part in tally.outputs.items()}) == (0, {"counts": ROWS, "peaks": len(peaks)})
    assert tally.outputs["counts"].statuses == {"ok": ROWS - bad, "rejected_corrupt": bad}
    assert not tally.outputs["peaks"].statuses
    assert not report.all_ok
    lines = [line.strip() for line in report_text("p", report, {}).splitlines()]
    assert f"seen.counts         {ROWS:,} rows: {ROWS - bad:,} ok, {bad} rejected_corrupt (v is None)" in lines
    assert f"seen.peaks            {len(peaks)} rows" in lines
    assert problem_text(report) == f"seen.counts: {bad} not ok"
    text = state_text(inspect_state(tmp_path / "state"))
    assert f"output counts: {ROWS:,} rows: {ROWS - bad:,} ok, {bad} rejected_corrupt" in text
    assert f"output peaks: {len(peaks)} rows" in text


@pytest.mark.parametrize("point", ["after_snapshot", "after_manifest", "between_renames"])
@pytest.mark.heavy
def test_a_kill_and_a_resume_with_other_shards_change_no_row_of_either_output(
    point: str, folder: Path, values: Values, tmp_path: Path
) -> None:
    pipeline = peaks_pipeline(folder, tmp_path, slow_s=0.05)
    assert run_process(pipeline, fault=f"{point}:epoch=2") == -signal.SIGKILL
    hurry(tmp_path)
    pipeline["operators"]["seen"]["shards"] = 3
    pipeline["operators"]["mean"]["shards"] = 2
    assert run_process(pipeline, resume=True) == 0
    require_all(values, tmp_path)
    tally = read_manifests(tmp_path / "state")[0].tallies["seen"]
    assert tally.outputs["counts"].rows == ROWS  # over both attempts, each row once


@pytest.mark.heavy
def test_an_aligned_operator_takes_two_outputs_of_one_in_the_order_of_event_time(
    folder: Path, values: Values, tmp_path: Path
) -> None:
    pipeline = peaks_pipeline(folder, tmp_path, slow_s=0.02, align_s=1, shards=2)
    pipeline["operators"]["ledger"] = {
        "type": "aligned_workload:StreamLedger",
        "input": "seen.counts",
        "control": "seen.peaks",
        "align_s": 20,
        "max_batch": 64,
        "max_wait_ms": 0,
    }
    pipeline["sinks"]["digests"] = {"type": "jsonl", "input": "ledger", "path": str(tmp_path / "digests")}
    assert run_process(pipeline, fault="after_manifest:epoch=2") == -signal.SIGKILL
    hurry(tmp_path)
    assert run_process(pipeline, resume=True) == 0
    require_all(values, tmp_path)
    got = read_committed(tmp_path / "digests").select(["stream_id", "sequence", "digest"]).to_pylist()
    assert sorted(map(str, got)) == sorted(map(str, digests(folder)))


def digests(folder: Path) -> list[dict[str, Any]]:
    """All rows of both outputs sorted at once: by span, data before control, then by time."""
    import json

    rows, peaks, highest = [], dict[str, int](), dict[str, float]()
    for line in (folder / "values.jsonl").read_text().splitlines():
        row = json.loads(line)
        stream, span = row["k"], row["t"] // 20_000
        rows.append((span, False, row["t"], stream, row["sequence"]))
        if row["v"] is not None and row["v"] > highest.get(stream, -1.0):
            highest[stream] = row["v"]
            rows.append((span, True, row["t"], stream, peaks.get(stream, 0)))
            peaks[stream] = peaks.get(stream, 0) + 1
    digest: dict[str, int] = {}
    found = []
    for _, control, _, stream, sequence in sorted(rows):
        digest[stream] = enter(digest.get(stream, 0), control, stream, sequence)
        if not control:
            found.append({"stream_id": stream, "sequence": sequence, "digest": digest[stream]})
    return found


@pytest.mark.slow  # both runners make their tasks by the same plan
@pytest.mark.usefixtures("ray_address")
def test_on_ray_both_outputs_come_out_as_on_local(folder: Path, values: Values, tmp_path: Path) -> None:
    report = run_here(peaks_pipeline(folder, tmp_path, shards=2), runner="ray")
    require_all(values, tmp_path)
    assert {name: part.rows for name, part in report.tallies["seen"].outputs.items()} == {
        "counts": ROWS,
        "peaks": len(expected(values)[1]),
    }


# Contracts


class Undeclared(Peaks):
    def process(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        return [Output("peak", one.batch) if one.name == "peaks" else one for one in super().process(batch)]


class Nameless(Peaks):
    def process(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        return [one.batch for one in super().process(batch)]


class Swapped(Peaks):
    def process(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        counts, peaks = super().process(batch)
        return [Output("counts", peaks.batch), Output("peaks", counts.batch)]


class NoRows(Peaks):
    def process(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        return [Output("counts", None)]


class Late(Peaks):
    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(options, context)
        self.outputs = {**self.outputs, "more": PEAK}


class Hidden(Peaks):
    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(options, context)
        self.output_schema = COUNT


class NoSchema(Peaks):
    outputs = {"counts": COUNT, "peaks": None}  # noqa: RUF012


class Dotted(Peaks):
    outputs = {"counts": COUNT, "peaks.of": PEAK}  # noqa: RUF012


class KeysElsewhere(Peaks):
    outputs = {"counts": COUNT, "peaks": pa.schema([("v", pa.float64()), *PEAK])}  # noqa: RUF012


BROKEN = [
    (
        Undeclared,
        r"rows of output 'peak' from process \(did you mean 'peaks'\?\), which it does not declare; outputs has counts, p",
    ),
    (Nameless, r"returned rows without an output from process; return Output\(NAME, rows\); it has counts, peaks"),
    (
        Swapped,
        r"returned rows of output 'counts' from process in which column 'n' is missing; .* columns of outputs\['counts'\]",
    ),
    (NoRows, r"returned Output\('counts', …\) with None from process; give it a pyarrow\.RecordBatch"),
    (Late, r"has the outputs 'counts', 'peaks', 'more', but its class declares counts, peaks; declare all names in the class"),
    (Hidden, r"has an output_schema beside its outputs that its class does not have; set output_schema in the class, too"),
    (NoSchema, r"has the outputs\['peaks'\] None; set outputs\['peaks'\] in __init__ or in the class"),
    (Dotted, r"has an output called 'peaks\.of'; use letters, digits"),
    (KeysElsewhere, r"has an outputs\['peaks'\] in which column 1 is 'v', not 'stream_id'; make it with .* or key_schema"),
]


@pytest.mark.parametrize(("kind", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_who_breaks_the_contract_of_named_outputs_is_named(kind: type[Peaks], message: str) -> None:
    def first_batch() -> None:
        operator = kind(PeaksOptions(), Context())
        contract = OperatorContract("seen", operator)
        contract.outputs("process", operator.process(value_batch(["a", "b"])))

    with pytest.raises(ContractError, match=rf"operator 'seen' \(test_named_outputs:{kind.__name__}\) .*{message}"):
        first_batch()


def test_an_operator_with_one_output_that_gives_another_one_is_told_what_it_has() -> None:
    from pipelines.testing.running_mean import RunningMean, RunningMeanOptions

    mean = RunningMean(RunningMeanOptions(), Context())
    [rows] = mean.process(value_batch(["a"]))
    with pytest.raises(ContractError, match=r"rows of output 'm' from process, .*; it has the one without a name only"):
        OperatorContract("mean", mean).outputs("process", [Output("m", rows)])


class Both(Peaks):
    """Has a main output beside a named one."""

    output_schema = COUNT
    outputs = {"peaks": PEAK}  # noqa: RUF012

    def process(self, batch: pa.RecordBatch) -> Sequence[Emitted]:
        """Return the counts without a name."""
        return [one.batch if one.name == "counts" else one for one in super().process(batch)]


def test_an_operator_may_have_an_output_without_a_name_beside_named_ones(folder: Path, values: Values, tmp_path: Path) -> None:
    pipeline = peaks_pipeline(folder, tmp_path)
    pipeline["operators"]["seen"]["type"] = "test_named_outputs:Both"
    pipeline["sinks"]["counts"]["input"] = "seen"
    report = run_here(pipeline)
    require_all(values, tmp_path)
    assert (report.tallies["seen"].rows, report.tallies["seen"].outputs["peaks"].rows) == (ROWS, len(expected(values)[1]))
