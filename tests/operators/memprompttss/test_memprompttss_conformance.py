"""MemPromptTSS keeps the promises of every operator: with and without prompts, several levels, every stride."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from memprompttss_streams import network, operator, prompts, samples, together, wave

from connectors import records
from operators.memprompttss.operator import MemPromptTSSOperator
from pipelines.testing.conformance import check_operator

STREAMS = ("a", "b", "c")


def rows(length: int) -> pa.RecordBatch:
    return together(*(samples(name, wave(length, seed)) for seed, name in enumerate(STREAMS)))


def bad_rows() -> pa.RecordBatch:
    values = [[1.0], None, [1.0, 2.0, 3.0], [1.0, 2.0]]
    columns = [pa.array(["a"] * 4), pa.array(range(4), pa.int64()), pa.array(range(4)).cast(records.TIME_TYPE)]
    columns += [pa.array(values, pa.list_(pa.float32())), pa.array([None] * 3 + ["the source could not read it"])]
    return pa.RecordBatch.from_arrays(columns, schema=records.SAMPLE)


def said(levels: int = 1) -> pa.RecordBatch:
    """Prompts about past, present and future, of every kind."""
    given: list[dict[str, Any]] = []
    for n, stream in enumerate(("a", "b")):
        given += [
            {"stream_id": stream, "said": 5.5, "kind": "tell", "state": n + 1, "prompt_id": "tell"},
            {"stream_id": stream, "said": 13.5 + n, "at": 2, "state": 1, "prompt_id": "first"},
            {"stream_id": stream, "said": 30.5, "at": 20, "state": n, "prompt_id": "label", "pinned": True},
            {"stream_id": stream, "said": 30.6, "at": 22, "state": 3, "aspect": "incorrect", "prompt_id": "not"},
            {"stream_id": stream, "said": 31.5, "at": 29, "kind": "boundary", "prompt_id": "boundary"},
            {"stream_id": stream, "said": 32.5, "at": 50, "state": 2, "prompt_id": "later"},
            {"stream_id": stream, "said": 41.5, "at": 30, "at_end": 40, "state": 2, "prompt_id": "range"},
            {"stream_id": stream, "said": 43.5, "state": 9, "prompt_id": "no state"},
            {"stream_id": stream, "said": 55.5, "kind": "retract", "target": "label", "prompt_id": "back"},
            {"stream_id": stream, "said": 57.5, "kind": "reset", "granularity": levels - 1, "prompt_id": "all"},
            {"stream_id": stream, "said": 58.5, "at": 56, "state": 0, "granularity": levels - 1, "prompt_id": "new"},
        ]
    return prompts(*given)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        pytest.param({}, {}, marks=pytest.mark.slow),
        pytest.param({"stride": 16, "min_segment": 0}, {}, marks=pytest.mark.slow),
        ({"granularities": [0, 1], "stride": 6, "provisional": False, "min_segment": 5}, {"granularities": (0, 1)}),
    ],
    ids=["as trained", "a window apart", "two levels"],
)
def test_memprompttss_conforms(options: dict[str, Any], trained: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = network(tmp_path, **trained)

    def make() -> MemPromptTSSOperator:
        return operator(checkpoint, **options)

    control = said(len(options.get("granularities", [0])))
    check_operator(make, rows(46), control=control, bad_rows=bad_rows(), fill_after=2, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_memprompttss_conforms_where_numbers_are_missing(tmp_path: Path) -> None:
    checkpoint, length = network(tmp_path), 48
    holes = {name: wave(length, seed) for seed, name in enumerate(STREAMS)}
    holes["a"][5:8, 0] = np.nan
    holes["b"][20:40, 1] = np.nan
    holes["c"][:3] = np.nan
    together_rows = together(*(samples(name, x_LC) for name, x_LC in holes.items()))
    check_operator(
        lambda: operator(checkpoint, max_hold=4, max_gap_s=0.2),
        together_rows,
        bad_rows=bad_rows(),
        fill_after=3,
        atol=1e-5,
        rtol=1e-4,
    )
