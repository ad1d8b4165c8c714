"""Each row of a batch comes out with its status and error, in order; dropped ones do not come out."""

import numpy as np
import pyarrow as pa
import pytest

from connectors import records
from operators.output import OutputRows

INPUT = records.key_schema("number", 1)
OUTPUT = records.output_schema("half", 1, [pa.field("half", pa.float64()), pa.field("note", pa.string())])
STATUSES = {"ok": "fine", "late": "behind", "reset": "forgotten"}


def rows(number: int) -> OutputRows:
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(["a"] * number),
            pa.array(range(number), pa.int64()),
            pa.array(range(number), pa.timestamp("us", "UTC")),
        ],
        schema=INPUT,
    )
    return OutputRows(batch, OUTPUT, STATUSES)


def test_rows_keep_their_order_and_missing_columns_are_null():
    out = rows(4)
    out.set(1, "late", "too late")
    out.drop(2)
    (batch,) = out.batches({"half": pa.array([0.0, None, 1.0, 1.5])})
    assert batch.schema == OUTPUT
    assert batch.column("sequence").to_pylist() == [0, 1, 3] and batch.column("half").to_pylist() == [0.0, None, 1.5]
    assert batch.column("status").to_pylist() == ["ok", "late", "ok"]
    assert batch.column("error").to_pylist() == [None, "too late", None] and batch.column("note").null_count == 3


def test_reasons_add_up_and_the_last_status_counts():
    out = rows(1)
    out.set(0, "reset", "a pause")
    out.set(0, "late", "a cut")
    (batch,) = out.batches({})
    assert batch.column("status").to_pylist() == ["late"] and batch.column("error").to_pylist() == ["a pause; a cut"]


def test_many_rows_get_a_status_at_once():
    out = rows(5)
    out.set_rows(np.array([1, 3]), "late", ["x", None])
    assert out.count("late") == 2 and out.count("late", "reset", "never declared") == 2 and out.is_ok(0) and not out.is_ok(1)
    out.drop_rest()
    (batch,) = out.batches({})
    assert batch.column("sequence").to_pylist() == [1, 3] and batch.column("error").to_pylist() == ["x", None]


def test_no_row_left_gives_no_batch():
    out = rows(2)
    out.drop(0)
    out.drop(1)
    assert out.batches({}) == []


def test_undeclared_status_is_our_own_fault():
    with pytest.raises(KeyError):
        rows(1).set(0, "odd")
