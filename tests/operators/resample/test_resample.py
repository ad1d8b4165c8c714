"""Samples of any rate become samples at even times, whatever they are cut into; a network takes them as they are."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from connectors import records
from operators.base import Context, Output
from operators.resample import ResampleOperator, ResampleOptions
from pipelines.testing.conformance import check_operator

_MS = 1000


def samples(stream: str, time_us_N: np.ndarray, values_NC: np.ndarray) -> pa.RecordBatch:
    values = pa.array([[None if np.isnan(v) else float(v) for v in row] for row in values_NC], pa.list_(pa.float32()))
    columns = [pa.array([stream] * len(time_us_N)), pa.array(range(len(time_us_N)), pa.int64())]
    columns += [pa.array(time_us_N.tolist()).cast(records.TIME_TYPE), values, pa.nulls(len(time_us_N), pa.string())]
    return pa.RecordBatch.from_arrays(columns, schema=records.SAMPLE)


def make(**options: Any) -> ResampleOperator:
    return ResampleOperator(ResampleOptions(**{"rate_hz": 25.0, "channels": 2, **options}), Context(name="even"))


def run(operator: ResampleOperator, *batches: pa.RecordBatch) -> list[dict[str, Any]]:
    out = [each for batch in batches for each in operator.process(batch)]
    out += operator.advance(2**62)
    rows = []
    for each in out:
        assert isinstance(each, Output)
        times = each.batch.column("event_time").cast(pa.int64()).to_pylist()
        rows += [row | {"event_time": time_us} for row, time_us in zip(each.batch.to_pylist(), times, strict=True)]
    return rows


def uneven(count: int, step_us: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    time_us_N = 5_000_000 + np.arange(count) * step_us + rng.integers(-step_us // 3, step_us // 3, count)
    return time_us_N, rng.normal(size=(count, 2)).astype(np.float32)


def test_means_are_those_of_the_samples_of_each_interval() -> None:
    time_us_N, values_NC = uneven(200, 9 * _MS, 0)
    values_NC[20:30, 0] = np.nan
    rows = run(make(), samples("a", time_us_N, values_NC))
    number_N = (time_us_N - time_us_N[0]) // (40 * _MS)
    assert [row["sequence"] for row in rows] == list(range(number_N[-1] + 1))
    for n, row in enumerate(rows):
        assert (row["event_time"], row["status"]) == (time_us_N[0] + n * 40 * _MS, "ok")
        for c, value in enumerate(row["values"]):
            mine = values_NC[number_N == n, c]
            mine = mine[~np.isnan(mine)]
            assert value == (None if not len(mine) else pytest.approx(mine.mean(), abs=1e-6))
    assert any(row["values"][0] is None for row in rows)


def test_lines_go_through_the_samples_on_both_sides() -> None:
    time_us_N, values_NC = uneven(60, 70 * _MS, 1)
    values_NC[10, 1] = np.nan
    rows = run(make(method="line"), samples("a", time_us_N, values_NC))
    grid = time_us_N[0] + 40 * _MS * np.arange((time_us_N[-1] - time_us_N[0]) // (40 * _MS) + 1)
    assert [row["event_time"] for row in rows] == grid.tolist()
    wanted = np.stack([np.interp(grid, time_us_N, values_NC[:, c]) for c in range(2)], axis=1)
    found = np.array([row["values"] for row in rows], float)
    np.testing.assert_allclose(found[:, 0], wanted[:, 0], atol=1e-6)
    beside = (grid > time_us_N[9]) & (grid < time_us_N[11])
    assert np.isnan(found[beside, 1]).all() and not np.isnan(found[~beside, 1]).any()


@pytest.mark.parametrize("method", ["mean", "line"])
def test_samples_that_have_the_rate_come_out_as_they_are(method: str) -> None:
    time_us_N, values_NC = 7 + np.arange(50) * 40 * _MS, uneven(50, 1000, 2)[1]
    rows = run(make(method=method), samples("a", time_us_N, values_NC))
    assert [row["event_time"] for row in rows] == time_us_N.tolist()
    assert np.array([row["values"] for row in rows], np.float32).tolist() == values_NC.tolist()


@pytest.mark.parametrize(("method", "step_us"), [("mean", 7 * _MS), ("line", 90 * _MS)])
def test_cuts_change_no_bit_and_nothing_is_put_into_a_pause(method: str, step_us: int) -> None:
    time_us_N, values_NC = uneven(300, step_us, 3)
    time_us_N[140:] += 3_000_000
    batch = samples("a", time_us_N, values_NC)
    whole = run(make(method=method), batch)
    one_by_one = run(make(method=method), *(batch.slice(n, 1) for n in range(300)))
    assert one_by_one == whole
    inside = [r for r in whole if time_us_N[139] + 40 * _MS < r["event_time"] < time_us_N[140]]
    assert not inside and int(time_us_N[140]) in [row["event_time"] for row in whole]


def bad_rows() -> pa.RecordBatch:
    values = [[1.0], None, [1.0, 2.0, 3.0], [1.0, 2.0]]
    columns = [pa.array(["a"] * 4), pa.array(range(4), pa.int64()), pa.array(range(4)).cast(records.TIME_TYPE)]
    columns += [pa.array(values, pa.list_(pa.float32())), pa.array([None] * 3 + ["the source could not read it"])]
    return pa.RecordBatch.from_arrays(columns, schema=records.SAMPLE)


@pytest.mark.parametrize(("method", "step_us"), [pytest.param("mean", 11 * _MS, marks=pytest.mark.slow), ("line", 60 * _MS)])
def test_resample_conforms(method: str, step_us: int) -> None:
    rows = [samples(name, *uneven(24, step_us, seed)) for seed, name in enumerate("abc")]
    together = pa.Table.from_batches(rows).combine_chunks().to_batches()[0]
    check_operator(lambda: make(method=method), together, bad_rows=bad_rows(), fill_after=2)
