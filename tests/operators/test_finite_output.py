"""A number that is NaN or infinite leaves no operator as the result of a computation that went well."""

import math

import pyarrow as pa

from connectors import records
from operators.made_rows import MadeRows
from operators.output import NOT_FINITE_STATUS, OutputRows, finite_rows
from operators.streams import STREAM_STATUSES

_SCORED = pa.struct([pa.field("sequence", pa.int64()), pa.field("score", pa.float32())])
SCHEMA = records.output_schema(
    "answer",
    1,
    [
        pa.field("confidence", pa.float32()),
        pa.field("retrieved", pa.list_(pa.list_(_SCORED))),
        pa.field("point", pa.list_(pa.float64(), 2)),
        records.field("next_s", pa.float64(), infinite=True),
    ],
)
STATUSES = {"ok": "fine", **STREAM_STATUSES}


def batch(*rows: dict[str, object]) -> pa.RecordBatch:
    keys = [{"stream_id": "a", "sequence": i, "event_time": i, "status": "ok"} | row for i, row in enumerate(rows)]
    arrays = [
        pa.array([row.get(field.name) for row in keys], pa.string()).dictionary_encode().cast(field.type)
        if field.name == "status"
        else pa.array([row.get(field.name) for row in keys], field.type)
        for field in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def scored(*scores: float | None) -> list[list[dict[str, object]]]:
    return [[{"sequence": i, "score": score}] for i, score in enumerate(scores)]


def test_rows_of_numbers_and_nulls_stay_as_they_are():
    good = batch(
        {"confidence": 0.5, "retrieved": scored(0.1, None), "point": [0.0, 1.0], "next_s": math.inf},
        {"status": "late", "error": "too late"},
        {"retrieved": []},
    )
    assert finite_rows(good) is good
    assert finite_rows(good.slice(0, 0)).num_rows == 0


def test_what_is_no_number_is_null_and_the_row_says_so():
    got = finite_rows(
        batch(
            {"confidence": 0.5},
            {"confidence": math.nan, "point": [0.0, 1.0]},
            {"confidence": -math.inf, "error": "the words are new", "status": "late"},
            {"retrieved": scored(0.5, math.nan), "confidence": 0.25},
            {"point": [math.inf, 0.0]},
            {"next_s": math.nan},
        )
    )
    assert got.schema == SCHEMA and got.schema.metadata == SCHEMA.metadata
    rows = got.to_pylist()
    assert [row["status"] for row in rows] == ["ok"] + ["not_finite"] * 5
    assert [row["confidence"] for row in rows] == [0.5, None, None, 0.25, None, None]
    assert rows[1]["point"] == [0.0, 1.0] and rows[3]["retrieved"] is rows[4]["point"] is rows[5]["next_s"] is None
    assert rows[0]["error"] is None
    assert rows[1]["error"] == "confidence holds nan, which is no result; check the checkpoint and its precision"
    assert rows[2]["error"].startswith("the words are new; confidence holds -inf, which")
    assert rows[3]["error"].startswith("retrieved holds NaN or infinity, which")


def test_rows_of_operators_are_looked_at_where_the_status_is_declared():
    keys = batch({"confidence": 0.5}).select(["stream_id", "sequence", "event_time"])
    confidence = {"confidence": pa.array([math.nan], pa.float32())}
    (plain,) = OutputRows(keys, SCHEMA, {"ok": "fine"}).batches(confidence)
    (looked,) = OutputRows(keys, SCHEMA, STATUSES).batches(confidence)
    assert plain.column("status").to_pylist() == ["ok"] and looked.column("status").to_pylist() == ["not_finite"]
    made = MadeRows("answers", SCHEMA, {"ok": "fine", **NOT_FINITE_STATUS})
    made.add(0, stream_id="a", sequence=0, event_time=0, confidence=math.inf)
    (output,) = made.batches()
    assert output.batch.column("status").to_pylist() == ["not_finite"]
