"""Arrow to JSON text, held against ``json`` on Python objects."""

from __future__ import annotations

import base64
import datetime
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors.sinks.json_text import json_lines, json_values

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
    text = bytes(json_lines(batch)).decode()
    assert text == '{"a\\"b":1,"ü":"x","z":true}\n{"a\\"b":null,"ü":null,"z":false}\n'
    assert bytes(json_lines(batch.slice(1))).decode() == text.splitlines(keepends=True)[1]
    assert bytes(json_lines(batch.slice(2))) == b""
