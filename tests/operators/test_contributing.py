"""The operator of CONTRIBUTING.md is short, and keeps every promise as printed."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from operators.base import Context
from pipelines import registry
from pipelines.testing.conformance import check_operator

PAGE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def smooth(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    module = types.ModuleType("smooth")
    module.__dict__["code"] = code
    monkeypatch.setitem(sys.modules, "smooth", module)
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    return module


def numbers(schema: pa.Schema, values: list[float | None], errors: list[str | None]) -> pa.RecordBatch:
    rows = range(len(values))
    arrays = [
        pa.array(["ab"[row % 2] for row in rows]),
        pa.array([row // 2 for row in rows], pa.int64()),
        pa.array([row // 2 * 1000 for row in rows], pa.timestamp("us", "UTC")),
        pa.array(values, pa.float64()),
        pa.array(errors, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@pytest.mark.heavy
def test_operator_of_the_page_has_under_60_lines_and_conforms(smooth: types.ModuleType):
    lines = [line for line in smooth.code.splitlines() if line.strip()]
    assert len(lines) < 60
    operator = registry.load("operator", "smooth:Smooth")
    good = numbers(operator.input_schema, np.random.default_rng(0).normal(size=20).tolist(), [None] * 20)
    bad = numbers(operator.input_schema, [float("nan"), None, 1.0], [None, None, "unreadable"])
    check_operator(lambda: operator(operator.Options(weight=0.25), Context()), good, bad_rows=bad)


def test_operator_of_the_page_smooths(smooth: types.ModuleType):
    operator = smooth.Smooth(smooth.SmoothOptions(), Context())
    (out,) = operator.process(numbers(operator.input_schema, [1.0, 10.0, 2.0, 20.0], [None] * 4))
    assert out.column("mean").to_pylist() == [1.0, 10.0, 1.5, 15.0]
