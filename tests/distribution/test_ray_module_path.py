"""On Ray, too, a package ``models`` of the working folder does not stand in for ours; types of the user are found there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]

STEP = '''
"""The user's own step: tells which packages the process that runs it has."""
import operators
import models
import pipelines

import pyarrow as pa
import streambank as sb
from operators.null.config import NullOptions


class Where(sb.Operator):
    Options = NullOptions
    input_schema = sb.key_schema("value", 1)
    output_schema = sb.output_schema("where", 1, [pa.field("places", pa.string())])
    statuses = {"ok": "always"}

    def process(self, batch):
        places = " ".join(module.__file__ for module in (models, operators, pipelines))
        rows = [
            {"stream_id": s.as_py(), "sequence": n.as_py(), "event_time": t.as_py(), "places": places, "status": "ok"}
            for s, n, t in zip(*(batch.column(i) for i in range(3)), strict=True)
        ]
        return [pa.RecordBatch.from_pylist(rows, schema=self.output_schema)]

    def snapshot(self, *, incremental=False):
        return sb.State(incremental=incremental)

    def restore(self, state):
        pass

    def close_stream(self, stream_id):
        pass
'''


@pytest.mark.ray
def test_actors_take_our_packages_and_the_types_of_the_working_folder(tmp_path: Path, ray_address: str) -> None:
    for package in ("models", "operators", "pipelines"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise AssertionError('a package of the working folder was imported')")
    (tmp_path / "own_step.py").write_text(STEP)
    (tmp_path / "v.jsonl").write_text('{"stream_id": "a"}\n{"stream_id": "b"}\n')
    (tmp_path / "p.yaml").write_text(
        "name: p\nstate: state\nrunner: ray\n"
        "sources:\n  v: {type: jsonl, path: v.jsonl, event_time_unit: rows, columns: {stream_id: string}}\n"
        "operators:\n  w: {type: 'own_step:Where', input: v}\n"
        "sinks:\n  rows: {type: parquet, input: w, path: rows}\n"
    )
    # As the installed command: its folder comes first on the path, then packages, and the working folder last.
    program = f"import sys; sys.argv[0] = {str(tmp_path / 'bin' / 'streambank')!r}; from streambank import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray_address}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "run", "p.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    places = pq.read_table(tmp_path / "rows", partitioning=None).column("places").to_pylist()
    ours = " ".join(str(ROOT / package / "__init__.py") for package in ("models", "operators", "pipelines"))
    assert places == [ours, ours]
