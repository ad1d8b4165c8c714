"""The wheel, installed without any extra beside a folder with a ``models`` package of its own, runs a small pipeline there."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bare_environment import Environment, build_wheel, install, metadata

from connectors.extras import EXTRAS

STEPS = '''
"""The user's own step: a running sum per stream."""
from dataclasses import dataclass

import pyarrow as pa
import torch

import streambank as sb


@dataclass(frozen=True, kw_only=True)
class SumOptions:
    factor: int = sb.option(1, "What every value is multiplied by.")


class Sum(sb.Operator):
    Options = SumOptions
    input_schema = sb.key_schema("value", 1, [pa.field("v", pa.int64())])
    output_schema = sb.output_schema("sum", 1, [pa.field("sum", pa.int64())])
    statuses = {"ok": "the sum so far"}

    def __init__(self, options, context):
        super().__init__(options, context)
        self._sums = {}

    def process(self, batch):
        batch = batch.select(self.input_schema.names)
        rows = []
        for row in batch.to_pylist():
            self._sums[row["stream_id"]] = self._sums.get(row["stream_id"], 0) + self.options.factor * row.pop("v")
            rows.append({**row, "sum": self._sums[row["stream_id"]], "status": "ok", "error": None})
        return [pa.RecordBatch.from_pylist(rows, schema=self.output_schema)]

    def snapshot(self, *, incremental=False):
        return sb.State(streams=list(self._sums), dense={"sum": torch.tensor(list(self._sums.values()))})

    def restore(self, state):
        self._sums = dict(zip(state.streams, state.dense["sum"].tolist(), strict=True))

    def close_stream(self, stream_id):
        self._sums.pop(stream_id, None)
'''

PIPELINE = """
name: sums
state: out/state
sources:
  values: {type: jsonl, path: values.jsonl, event_time_unit: rows, columns: {stream_id: string, v: int64}}
operators:
  sum: {type: "steps:Sum", input: values, factor: 10}
sinks:
  rows: {type: parquet, input: sum, path: out/rows}
"""

SCRIPT = """
import sys

import streambank as sb

sys.path.append(".")
result = sb.Pipeline.load("sums.yaml", overrides={"state": "py/state", "sinks.rows.path": "py/rows"}).run()
print(result.report.status, result.table("rows").num_rows)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return install(wheel, tmp_path_factory.mktemp("bare"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder: a package ``models`` of their own, a step, values, a pipeline file and a script."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise AssertionError('the models of the working folder were imported')")
    (tmp_path / "steps.py").write_text(STEPS)
    rows = [{"stream_id": "ab"[i % 2], "v": i} for i in range(100)]
    (tmp_path / "values.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(PIPELINE)
    (tmp_path / "replay.py").write_text(SCRIPT)
    return tmp_path


def sums(folder: Path) -> dict[str, list[int]]:
    table = pq.read_table(folder, partitioning=None).sort_by("sequence")
    rows = table.select(["stream_id", "sum"]).to_pylist()
    return {stream: [row["sum"] for row in rows if row["stream_id"] == stream] for stream in "ab"}


def expected() -> dict[str, list[int]]:
    return {stream: [10 * sum(range(first, last + 1, 2)) for last in range(first, 100, 2)] for first, stream in enumerate("ab")}


def test_the_wheel_holds_the_license_types_weights_and_ready_pipelines(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "streambank.py" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    for package in ("connectors", "models", "operators", "pipelines"):
        assert f"{package}/py.typed" in names
    assert "pipelines/configs/shapes_demo.yaml" in names
    example = ("boxes.csv", "detect.yaml", "clips/belt.mp4")
    assert {f"pipelines/examples/fruit/{file}" for file in example} <= set(names)
    assert "models/mamba/weights/shapes.safetensors" in names
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == {
        "connectors",
        "models",
        "operators",
        "pipelines",
        "streambank.py",
    }


def test_the_wheel_says_its_license_and_its_extras(wheel: Path) -> None:
    fields = metadata(wheel)
    assert fields["License-Expression"] == ["Apache-2.0"]
    assert fields["License-File"] == ["LICENSE"]
    assert set(fields["Provides-Extra"]) >= {"all", "kafka", "ray", "rekv", "rgbd", "vision"}


def test_nothing_of_the_extras_and_of_the_checkout_is_there(bare: Environment, project: Path) -> None:
    code = (
        "import importlib.util as u, streambank, connectors, pipelines, operators\n"
        f"print([m for m in {list(EXTRAS)} if u.find_spec(m) is not None])\n"
        "print(streambank.__file__, connectors.__file__, pipelines.__file__, operators.__file__)"
    )
    done = bare.run("python", "-P", "-c", code, cwd=project)
    assert done.returncode == 0, done.stderr
    absent, places = done.stdout.splitlines()
    assert absent == "[]"
    assert all(place.startswith(str(bare.site)) for place in places.split())


def test_the_command_line_runs_a_pipeline_beside_a_foreign_models_package(bare: Environment, project: Path) -> None:
    checked = bare.run("streambank", "check", "sums.yaml", cwd=project)
    assert checked.returncode == 0, checked.stderr
    done = bare.run("streambank", "run", "sums.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    assert sums(project / "out" / "rows") == expected()


def test_python_runs_the_same_pipeline_by_the_public_name(bare: Environment, project: Path) -> None:
    done = bare.run("python", "-P", "replay.py", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["finished", "100"]
    assert sums(project / "py" / "rows") == expected()


def test_a_script_whose_folder_hides_our_models_is_told_what_to_do_and_that_works(bare: Environment, project: Path) -> None:
    hidden = bare.run("python", "replay.py", cwd=project)
    assert hidden.returncode == 1
    last = hidden.stderr.strip().splitlines()[-1]
    assert (
        f"the module 'models' is found at {project / 'models'}, which hides Streambank's own in {bare.site / 'models'}" in last
    )
    assert f"PYTHONPATH={bare.site}" in last
    (project / "models").rename(project / "networks")
    assert bare.run("python", "replay.py", cwd=project).returncode == 0


@pytest.mark.slow
def test_commands_that_look_at_our_models_take_ours(bare: Environment, project: Path) -> None:
    listed = bare.run("streambank", "list", cwd=project)
    assert "mamba" in listed.stdout, listed.stderr
    described = bare.run("streambank", "describe", "mamba", cwd=project)
    assert "installed by: pip install 'streambank[vision]'" in described.stdout, described.stderr
    training = bare.run("streambank", "train", "reloop2", "--help", cwd=project)
    assert training.returncode == 0, training.stderr


def test_check_and_run_of_a_pipeline_that_needs_extras_name_them(bare: Environment, project: Path) -> None:
    (project / "clip.mp4").touch()
    (project / "clips.yaml").write_text(
        "name: clips\nstate: out/state\nrunner: ray\nsources:\n  clips: {type: video, path: '*.mp4'}\n"
        "operators:\n  detect: {type: 'null', input: clips}\nsinks:\n  rows: {type: parquet, input: detect, path: out/rows}\n"
    )
    for command in ("check", "run"):
        done = bare.run("streambank", command, "clips.yaml", cwd=project)
        assert done.returncode == 2, done.stderr
        assert "opencv-python is not installed; run: pip install 'streambank[vision]'" in done.stderr
        assert "ray[default] is not installed; run: pip install 'streambank[ray]'" in done.stderr
        assert "Traceback" not in done.stderr
