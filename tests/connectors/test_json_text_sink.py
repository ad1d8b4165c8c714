"""Arrow to JSON text, held against ``json`` on Python objects."""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors.sinks.json_text import json_lines, json_objects, json_values
from connectors.sinks.jsonl import JsonlOptions, JsonlSink

UTC = datetime.UTC


def loads(array: pa.Array) -> list[Any]:
    """Parse as strict JSON: Python's parser would take NaN."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return [json.loads(text, parse_constant=refuse) for text in json_values(array).to_pylist()]


def plain(value: Any) -> Any:
    """The slow reference: what JSON can say of a value."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


TEXT = st.text(max_size=20) | st.sampled_from(['"', "\\", '\\"', "\x00\x1f\n", "é\u2028😀", "</script>"])
BOX = st.fixed_dictionaries({"x": st.none() | st.floats(width=32), "word": st.none() | TEXT, "n": st.lists(st.integers(0, 9))})
KINDS = [
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.string(), TEXT),
    (pa.large_string(), TEXT),
    (pa.list_(pa.float64()), st.lists(st.none() | st.floats(), max_size=4)),
    (pa.large_list(pa.string()), st.lists(TEXT, max_size=4)),
    (pa.list_(pa.int32(), 2), st.lists(st.integers(-9, 9), min_size=2, max_size=2)),
    (pa.list_(pa.struct([("x", pa.float64()), ("word", pa.string()), ("n", pa.list_(pa.int8()))])), st.lists(st.none() | BOX)),
    (pa.map_(pa.string(), pa.float64()), st.dictionaries(TEXT, st.floats(), max_size=3).map(lambda d: list(d.items()))),
]


@pytest.mark.parametrize(("kind", "values"), KINDS, ids=[str(kind) for kind, _ in KINDS])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.heavy
def test_every_type_says_what_python_objects_would_say(kind: pa.DataType, values: Any, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.none() | values, max_size=8))
    array = pa.array(rows, kind)
    start = data.draw(st.integers(0, len(rows)))
    if pa.types.is_map(kind):
        expected: Any = [None if row is None else [[key, plain(value)] for key, value in row] for row in rows]
    else:
        expected = plain(array.to_pylist())
    assert loads(array) == expected
    assert loads(array.slice(start)) == expected[start:]
    assert loads(array.take(pa.array(range(len(rows) - 1, -1, -1), pa.int64()))) == expected[::-1]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
@example([1e10, 9999999999.0, 10000000001.0, -1e10, 1e15, 1e16, 2.0**53, 1e300, 5e-324, 1e-5])
def test_floats_read_back_bit_for_bit_and_stay_floats(values: list[float]) -> None:
    texts = json_values(pa.array(values)).to_pylist()
    back = [json.loads(text) for text in texts]
    assert np.array(back, np.float64).tobytes() == np.array(values).tobytes()
    assert all(isinstance(value, float) for value in back)


def test_float32_is_written_as_short_as_it_can_be() -> None:
    assert json_values(pa.array([0.1, 2.5, None], pa.float32())).to_pylist() == ["0.1", "2.5", "null"]


def test_nan_and_infinities_are_null() -> None:
    assert json_values(pa.array([float("nan"), float("inf"), -float("inf"), -0.0])).to_pylist() == ["null"] * 3 + ["-0.0"]


def test_times_are_iso_8601_and_in_utc() -> None:
    moment = datetime.datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)
    zoned = pa.array([moment, None], pa.timestamp("us", tz="Europe/Berlin"))
    assert json_values(zoned).to_pylist() == ['"2024-02-29T23:59:59.123456Z"', "null"]
    assert json_values(pa.array([moment.replace(tzinfo=None)], pa.timestamp("ms"))).to_pylist() == ['"2024-02-29T23:59:59.123"']
    assert json_values(pa.array([moment.date()], pa.date32())).to_pylist() == ['"2024-02-29"']
    assert json_values(pa.array([datetime.time(1, 2, 3)], pa.time32("s"))).to_pylist() == ['"01:02:03"']


def test_types_without_a_json_word_become_text() -> None:
    (text,) = loads(pa.array([b"\x00\xff"], pa.binary()))
    assert base64.b64decode(text) == b"\x00\xff"
    assert loads(pa.array([datetime.timedelta(seconds=1.5)], pa.duration("ms"))) == [1.5]
    assert loads(pa.array([None, None], pa.null())) == [None, None]


def test_dictionaries_and_tensors_are_written_as_what_they_hold() -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.int8()), ['a"', "b"])
    assert loads(words) == ["b", None, 'a"']
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8, dtype=np.float32).reshape(2, 4))
    assert loads(tensor) == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]


def test_lines_hold_the_columns_in_order_with_escaped_names() -> None:
    batch = pa.record_batch({'a"b': pa.array([1, None]), "ü": pa.array(["x", None]), "z": pa.array([True, False])})
    text = bytes(json_lines(batch)[0]).decode()
    assert text == '{"a\\"b":1,"ü":"x","z":true}\n{"a\\"b":null,"ü":null,"z":false}\n'
    assert bytes(json_lines(batch.slice(1))[0]).decode() == text.splitlines(keepends=True)[1]
    assert bytes(json_lines(batch.slice(2))[0]) == b""


def strict(text: str) -> Any:
    """Parse as strict JSON with exact numbers."""
    return json.loads(text, parse_float=Decimal, parse_constant=lambda word: pytest.fail(word))


INT64 = st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 10**9, 1_000_000_001]) | st.integers(-(2**63), 2**63 - 1)
PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
EPOCH = datetime.datetime(1970, 1, 1)

Said = Callable[[Any], Any]
Leaf = tuple[pa.DataType, st.SearchStrategy[Any], Said]
"""A type, integers or texts that ``pa.array`` takes for it, and what JSON should say of one."""


def moment(value: int, per_second: int) -> str | None:
    """The slow reference of times: None outside of the years 1 to 9999, fractions cut to microseconds for comparison."""
    try:
        time = EPOCH + datetime.timedelta(microseconds=value * 1_000_000 // per_second)
    except OverflowError:
        return None
    return time.isoformat(sep="T", timespec="microseconds")


LEAVES: list[Leaf] = [
    (pa.string_view(), TEXT, str),
    (pa.large_string(), TEXT, str),
    (pa.binary_view(), st.binary(max_size=20), lambda v: base64.b64encode(v).decode()),
    (pa.binary(3), st.binary(min_size=3, max_size=3), lambda v: base64.b64encode(v).decode()),
    (pa.decimal128(38, 4), st.decimals(-(10**20), 10**20, places=4), str),
    (
        pa.float32(),
        st.floats(width=32, allow_subnormal=False),
        lambda v: Decimal(str(np.float32(v))) if math.isfinite(v) else None,
    ),
    (pa.date32(), st.integers(-(2**31), 2**31 - 1), lambda v: (moment(v * 86_400, 1) or "")[:10] or None),
    (pa.month_day_nano_interval(), st.tuples(*[st.integers(-9, 9)] * 3), list),
    (pa.uint64(), st.integers(0, 2**64 - 1), int),
    *[(pa.duration(unit), INT64, lambda v, n=per: Decimal(v) / n) for unit, per in PER_SECOND.items()],
    *[(pa.timestamp(unit), INT64, lambda v, n=per: moment(v, n)) for unit, per in PER_SECOND.items()],
]


def entries(leaf: Leaf) -> Leaf:
    kind, values, said = leaf
    pairs = st.lists(st.tuples(st.text(max_size=3), st.none() | values), max_size=3)
    return pa.map_(pa.string_view(), kind), pairs, lambda v: [[key, None if item is None else said(item)] for key, item in v]


def lists(leaf: Leaf, make: Callable[[pa.DataType], pa.DataType]) -> Leaf:
    kind, values, said = leaf
    return make(kind), st.lists(st.none() | values, max_size=3), lambda v: [None if item is None else said(item) for item in v]


def structs(leaf: Leaf) -> Leaf:
    kind, values, said = leaf
    fixed = st.fixed_dictionaries({"a": st.none() | values, "b": st.none() | TEXT})
    struct = pa.struct([("a", kind), ("b", pa.string())])
    return struct, fixed, lambda v: {"a": None if v["a"] is None else said(v["a"]), "b": v["b"]}


@st.composite
def columns_of_any_type(draw: st.DrawFn) -> tuple[pa.Array, list[Any]]:
    """A column and what JSON should say of each value."""
    leaf = draw(st.sampled_from(LEAVES))
    for _ in range(draw(st.integers(0, 2))):
        wrap = draw(st.sampled_from(["list", "large", "view", "large view", "struct", "map"]))
        makers = {"list": pa.list_, "large": pa.large_list, "view": pa.list_view, "large view": pa.large_list_view}
        leaf = structs(leaf) if wrap == "struct" else entries(leaf) if wrap == "map" else lists(leaf, makers[wrap])
    kind, values, said = leaf
    rows = draw(st.lists(st.none() | values, max_size=6))
    return pa.array(rows, kind), [None if row is None else said(row) for row in rows]


def same(text: Any, expected: Any) -> bool:
    """Compare; times to the digits that both have."""
    if isinstance(expected, dict):
        return text.keys() == expected.keys() and all(same(text[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(text) == len(expected) and all(same(a, b) for a, b in zip(text, expected, strict=True))
    if isinstance(text, str) and isinstance(expected, str) and text[10:11] == "T":
        return expected.startswith(text[:26])
    return bool(text == expected) and isinstance(text, bool) == isinstance(expected, bool)


@settings(max_examples=60, deadline=None)
@given(columns_of_any_type())
@pytest.mark.heavy
def test_every_type_within_every_other_is_written_exactly(column: tuple[pa.Array, list[Any]]) -> None:
    array, expected = column
    for part, said in ((array, expected), (array[1:], expected[1:])):
        assert same([strict(text) for text in json_values(part).to_pylist()], said)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.none() | st.integers(0, 9)), max_size=8), st.booleans())
@pytest.mark.heavy
def test_unions_are_written_as_the_value_they_hold(rows: list[tuple[bool, int | None]], sparse: bool) -> None:
    durations, words = [n for second, n in rows if not second], [None if n is None else f"w{n}" for second, n in rows if second]
    codes = pa.array([7 if second else 3 for second, _ in rows], pa.int8())
    if sparse:
        texts = pa.array([None if n is None else f"w{n}" for _, n in rows], pa.string())
        children = [pa.array([n for _, n in rows], pa.duration("ns")), texts]
        array = pa.UnionArray.from_sparse(codes, children, ["d", "w"], [3, 7])
    else:
        count, offsets = {True: 0, False: 0}, []
        for second, _ in rows:
            offsets.append(count[second])
            count[second] += 1
        children = [pa.array(durations, pa.duration("ns")), pa.array(words, pa.string())]
        array = pa.UnionArray.from_dense(codes, pa.array(offsets, pa.int32()), children, ["d", "w"], [3, 7])
    expected = [None if n is None else f"w{n}" if second else Decimal(n) / 10**9 for second, n in rows]
    assert [strict(text) for text in json_values(array).to_pylist()] == expected
    assert [strict(text) for text in json_values(array[1:]).to_pylist()] == expected[1:]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.none() | st.sampled_from("abc"), max_size=9), st.integers(0, 9))
def test_runs_are_written_value_by_value(values: list[str | None], start: int) -> None:
    array = pa.RunEndEncodedArray.from_arrays(pa.array(range(1, len(values) + 1), pa.int32()), pa.array(values, pa.string()))
    assert loads(array[start:]) == values[start:]


def test_a_nanosecond_is_not_lost() -> None:
    texts = json_values(pa.array([1_000_000_001, 2_000_000_000, -1, None, -(2**63)], pa.duration("ns"))).to_pylist()
    assert texts == ["1.000000001", "2.0", "-0.000000001", "null", "-9223372036.854775808"]


BYTES = st.binary(max_size=6) | st.sampled_from([b"\xff", b"\xed\xa0\x80", "é".encode(), b"\xc3", b'"\\\n'])


def decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.none() | BYTES, max_size=8), st.integers(0, 3), st.sampled_from(["string", "view", "list"]))
@pytest.mark.heavy
def test_lines_are_valid_text_whatever_the_bytes(values: list[bytes | None], start: int, kind: str) -> None:
    column = pa.array(values, pa.binary()).view(pa.string())
    if kind == "list":
        column = pa.ListArray.from_arrays(list(range(len(values) + 1)), column)
    elif kind == "view":
        column = pa.array(values, pa.binary_view()).view(pa.string_view())
    batch = pa.record_batch({"n": pa.array(range(len(values))), "label": column}).slice(start)
    lines = bytes(json_lines(batch)[0]).decode("utf-8").splitlines()
    expected = [[decoded(v)] if kind == "list" else decoded(v) for v in values]
    assert [json.loads(line)["label"] for line in lines] == expected[start:]


def with_error(values: dict[str, pa.Array], errors: list[str | None]) -> pa.RecordBatch:
    return pa.record_batch({**values, "error": pa.array(errors, pa.string())})


def test_what_cannot_be_written_is_null_and_named_in_the_error_of_its_row() -> None:
    label = pa.array([b"ok", b"\xff", b"fine", b"\xff"]).view(pa.string())
    at = pa.array([0, 0, 2**62, 2**62], pa.int64()).view(pa.timestamp("us", tz="UTC"))
    rows = [
        json.loads(line)
        for line in bytes(json_lines(with_error({"label": label, "at": at}, [None, None, "before", "before"]))[0]).splitlines()
    ]
    bad_label, bad_time = (
        "column 'label' is not UTF-8; written as null",
        "column 'at' holds a time outside of the years 1 to 9999; written as null",
    )
    assert [row["label"] for row in rows] == ["ok", None, "fine", None]
    assert [row["at"] is None for row in rows] == [False, False, True, True]
    assert [row["error"] for row in rows] == [None, bad_label, f"before; {bad_time}", f"before; {bad_label}; {bad_time}"]
    whole = with_error({"label": label, "at": at}, [None] * 4)
    assert json_objects(whole)[0].to_pylist()[1] == json.dumps(
        {"label": None, "at": "1970-01-01T00:00:00.000000Z", "error": bad_label}, separators=(",", ":")
    )


def test_an_error_column_that_is_no_text_itself_is_valid_json() -> None:
    batch = pa.record_batch({"error": pa.array([b"\xff", None, b"x"]).view(pa.string())})
    rows = [json.loads(line)["error"] for line in bytes(json_lines(batch)[0]).splitlines()]
    assert rows == ["column 'error' is not UTF-8; written as null", None, "x"]


def test_without_an_error_column_the_log_says_it(caplog: pytest.LogCaptureFixture) -> None:
    lines = bytes(json_lines(pa.record_batch({"at": pa.array([-1, 3], pa.int32()).view(pa.time32("s"))}))[0])
    assert lines == b'{"at":null}\n{"at":"00:00:03"}\n'
    assert "rows=1 column 'at' holds a time of day that is not within 24 hours; written as null" in caplog.text


def test_the_sink_writes_a_file_that_any_reader_takes(tmp_path: Path) -> None:
    sink = JsonlSink(JsonlOptions(path=tmp_path))
    elapsed = pa.array([[("a", 1_000_000_001)], [("b", None)]], pa.map_(pa.string(), pa.duration("ns")))
    batch = with_error({"label": pa.array([b"\xff", b"x"]).view(pa.string()), "elapsed": elapsed}, [None, None])
    sink.recover(-1, [])
    sink.open({"rows": batch.schema}, attempt=1, shard=0)
    sink.write("rows", batch)
    sink.commit(0, sink.prepare(0))
    (path,) = tmp_path.glob("*.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(row["label"], row["elapsed"]) for row in rows] == [(None, [["a", 1.000000001]]), ("x", [["b", None]])]
    assert [row["error"] for row in rows] == ["column 'label' is not UTF-8; written as null", None]
