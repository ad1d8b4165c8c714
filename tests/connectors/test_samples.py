"""Sensor tables as samples: a column per channel or a row per value, many streams, any damage; and this machine as a sensor."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import assert_every_restart_is_exact, read_all

from connectors.errors import ConfigError, SourceError
from connectors.records import SAMPLE, channels_of, require, sample_schema, sample_values, schema_name
from connectors.sources import lines
from connectors.sources.csv import CsvOptions, CsvSource
from connectors.sources.host import HostOptions, HostReader, HostSource
from connectors.sources.jsonl import JsonlSource
from connectors.sources.parquet import ParquetSource
from connectors.sources.tables import TableOptions

WIDE = """\
machine,t,acc x,acc y,temp,state,note
a,0.00,1,2.5,20,7,fine
b,0.00,-1,0.5,,7,fine
a,0.01,2,NaN,21,8,odd
b,0.01,1e39,0.25,22,8,
"""
LONG = """\
t,machine,channel,value
0.00,a,x,1
0.00,b,y,0.5
0.00,a,y,2.5
0.01,a,x,2
0.01,a,z,9
0.01,a,y,3.5
0.02,a,x,4
"""


def csv(folder: Path, text: str, **options: Any) -> CsvSource:
    file = folder / "plant.csv"
    file.write_text(text)
    return CsvSource(CsvOptions(path=str(file), stream_id="machine", event_time="t", event_time_unit="s", **options))


def rows(source: CsvSource | JsonlSource | ParquetSource) -> list[tuple[Any, ...]]:
    """Stream, sequence, time in seconds, values, error."""
    table = read_all(source)
    return [
        (row["stream_id"], row["sequence"], row["event_time"].timestamp(), row["values"], row["error"])
        for row in table.to_pylist()
    ]


# The record


def test_values_are_a_matrix_in_which_what_is_missing_is_nan() -> None:
    values = [[1.0, None], [2.0, 3.0], None, [4.0], [5.0, float("nan")]]
    keys = [pa.array(["a"] * 5), pa.array(range(5), pa.int64()), pa.array(range(5), pa.int64()).cast(SAMPLE.field(2).type)]
    batch = pa.RecordBatch.from_arrays(
        [*keys, pa.array(values, pa.list_(pa.float32())), pa.nulls(5, pa.string())], schema=SAMPLE
    )
    got, wrong = sample_values(batch, 2)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [[1, np.nan], [2, 3], [np.nan] * 2, [np.nan] * 2, [5, np.nan]])
    assert wrong.tolist() == [False, False, True, True, False]
    got, wrong = sample_values(batch.slice(1, 1), 2)  # a view into a longer batch
    assert (got.tolist(), wrong.tolist()) == ([[2.0, 3.0]], [False])
    assert sample_values(batch.slice(0, 0), 2)[0].shape == (0, 2)


def test_the_schema_names_its_channels() -> None:
    schema = sample_schema(["x", "y"], [pa.field("state", pa.int32())])
    assert schema.names == ["stream_id", "sequence", "event_time", "values", "state", "error"]
    assert (schema_name(schema), channels_of(schema), channels_of(SAMPLE)) == ("sample.v1", ["x", "y"], None)


# A column per channel


def test_columns_are_packed_in_the_order_given_and_others_stand_beside_them_where_asked(tmp_path: Path) -> None:
    source = csv(tmp_path, WIDE, channels=["temp", "acc x"], columns=["state"])
    assert channels_of(source.schema) == ["temp", "acc x"]
    assert source.schema.names == ["stream_id", "sequence", "event_time", "values", "state", "error"]
    table = read_all(source)
    require(table.combine_chunks().to_batches()[0], SAMPLE, "an operator")
    assert table["values"].to_pylist() == [[20.0, 1.0], [None, -1.0], [21.0, 2.0], [22.0, None]]
    assert table["state"].to_pylist() == [7, 7, 8, 8]
    assert table["stream_id"].to_pylist() == ["a", "b", "a", "b"]
    assert table["error"].to_pylist() == [None, None, None, "channel 'acc x' is no number: 1e+39"]  # no float32


def test_all_takes_the_columns_of_numbers_that_are_nothing_else(tmp_path: Path) -> None:
    source = csv(tmp_path, WIDE, channels="all", columns=["state", "note"])
    assert channels_of(source.schema) == ["acc x", "acc y", "temp"]
    first, *_, last = read_all(source)["values"].to_pylist()
    assert (first, last) == ([1.0, 2.5, 20.0], [None, 0.25, 22.0])
    assert csv(tmp_path, WIDE, channels="all").schema.names == ["stream_id", "sequence", "event_time", "values", "error"]


@pytest.mark.parametrize(
    ("kind", "cells", "wanted"),
    [
        (pa.int8(), [1, None, -3], [1.0, None, -3.0]),
        (pa.int64(), [2**24 + 1, 2**53, 0], [float(2**24), float(2**53), 0.0]),
        (pa.uint64(), [2**63, 1, 2], [float(2**63), 1.0, 2.0]),
        (pa.float16(), [np.float16(0.5), None, np.float16(2)], [0.5, None, 2.0]),
        (pa.float64(), [1e300, 0.1, float("inf")], [None, float(np.float32(0.1)), float("inf")]),
        (pa.bool_(), [True, False, None], [1.0, 0.0, None]),
        (pa.decimal128(8, 2), [None, None, None], [None, None, None]),
        (pa.string(), ["1.5", "-2", "x"], [1.5, -2.0, None]),
        (pa.null(), [None, None, None], [None, None, None]),
        (pa.dictionary(pa.int8(), pa.string()), ["1", "2", "1"], [1.0, 2.0, 1.0]),
    ],
    ids=str,
)
def test_any_type_that_can_hold_numbers_is_a_channel(kind: pa.DataType, cells: Any, wanted: Any, tmp_path: Path) -> None:
    table = pa.table({"event_time": pa.array([0, 1, 2], pa.timestamp("ms")), "c": pa.array(cells, kind)})
    if pa.types.is_null(kind):
        table = table.set_column(1, "c", pa.nulls(3))
    pq.write_table(table, tmp_path / "m.parquet")
    found = read_all(ParquetSource(TableOptions(path=str(tmp_path), channels=["c"])))
    assert [row[0] for row in found["values"].to_pylist()] == wanted
    lost = [cell is not None and value is None for cell, value in zip(cells, wanted, strict=True)]
    assert [error is not None for error in found["error"].to_pylist()] == lost


def test_files_are_streams_and_numbers_that_other_files_have_as_text_are_read(tmp_path: Path) -> None:
    for name, kind in (("a", pa.int32()), ("b", pa.float64()), ("c", pa.float32())):
        columns = {"x": pa.array([1, 2], kind), "y": pa.array([3, 4], kind), "state": pa.array([0, 1], pa.int32())}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    options = TableOptions(path=str(tmp_path), channels=["x", "y"], columns=["state"], event_time_unit="rows", row_rate=100.0)
    source = ParquetSource(options)
    assert source.splits() == ["a", "b", "c"]
    for split in source.splits():
        table = read_all(source, split)
        assert table["values"].to_pylist() == [[1.0, 3.0], [2.0, 4.0]]
        assert [time.timestamp() for time in table["event_time"].to_pylist()] == [0.0, 0.01]


WRONG = [
    (WIDE, {"channels": ["acc z"]}, SourceError, r"channels: no column 'acc z' \(did you mean 'acc [xy]'\?\); there are"),
    (WIDE, {"channels": "temp"}, ConfigError, r"channels: must be a list of columns, such as \[temp\], or all; got 'temp'"),
    (WIDE, {"channels": []}, ConfigError, r"channels: the list is empty; name columns, each once"),
    (WIDE, {"channels": ["temp", "temp"]}, ConfigError, r"channels: 'temp' stands twice"),
    ("machine,t,n\na,1,x\n", {"channels": "all"}, SourceError, r"no column but the keys and 'columns' holds numbers"),
    ("machine,t,values,x\na,1,2,3\n", {"channels": ["x"], "columns": ["values"]}, SourceError, r"rename the column of that"),
    (LONG, {"channel": "channel", "channels": ["x"]}, ConfigError, r"channel: belongs together with value"),
    (LONG, {"channel": "channel", "value": "value"}, ConfigError, r"channels: list the channels to read, .* 'channel'"),
    (LONG, {"channel": "channel", "value": "value", "channels": "all"}, ConfigError, r"channels: list the channels"),
    (LONG, {"channel": "chanel", "value": "value", "channels": ["x"]}, SourceError, r"channel: no column 'chanel' \(did you"),
    (LONG, {"channel": "channel", "value": "v", "channels": ["x"]}, SourceError, r"value: no column 'v'"),
    (LONG, {"channel": "channel", "value": "value", "channels": ["x", "machine"]}, SourceError, r"'machine' is a column"),
    (LONG, {"channel": "channel", "value": "value", "channels": ["x"], "sequence": "t"}, ConfigError, r"sequence: does not go"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options", "error", "message"), WRONG)
def test_what_cannot_be_packed_is_refused_by_name(
    text: str, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        _ = csv(tmp_path, text, **options).schema


def test_a_column_of_times_is_no_channel(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"event_time": pa.array([0], pa.timestamp("ms")), "c": pa.array([0], pa.date32())}), tmp_path / "m.parquet"
    )
    with pytest.raises(SourceError, match=r"channels: column 'c' is date32\[day\]; a channel holds numbers"):
        _ = ParquetSource(TableOptions(path=str(tmp_path), channels=["c"])).schema


# A row per value


def long(folder: Path, text: str, channels: str = "xy", **options: Any) -> CsvSource:
    return csv(folder, text, channel="channel", value="value", channels=list(channels), **options)


def test_rows_of_one_stream_and_time_become_one_sample(tmp_path: Path) -> None:
    source = long(tmp_path, LONG)
    assert source.schema.names == ["stream_id", "sequence", "event_time", "values", "error"]
    assert channels_of(source.schema) == ["x", "y"]
    assert rows(source) == [
        ("a", 0, 0.0, [1.0, 2.5], None),
        ("b", 1, 0.0, [None, 0.5], None),
        ("a", 2, 0.01, [2.0, 3.5], None),
        ("a", 3, 0.02, [4.0, None], None),
    ]


def test_a_channel_may_be_called_like_the_column_that_names_it(tmp_path: Path) -> None:
    text = "t,machine,value,channel\n0,a,channel,7\n0,a,value,8\n"
    source = csv(tmp_path, text, channel="value", value="channel", channels=["value", "channel"])
    assert rows(source) == [("a", 0, 0.0, [8.0, 7.0], None)]


def test_damage_in_a_long_file_is_told_in_the_sample_or_a_row_of_its_own(tmp_path: Path) -> None:
    text = (
        "t,machine,channel,value\n"
        "0.0,a,x,1\n0.0,a,x,2\n0.0,a,y,3\n"  # twice
        "0.1,a,x,5\n0.1,a\n0.1,a,y,6\n"  # a short line within a sample
        "0.2,a,,7\n0.2,a,y,8\n"  # no channel
    )
    got = rows(long(tmp_path, text))
    assert [(stream, time, values) for stream, _, time, values, _ in got] == [
        ("a", 0.0, [2.0, 3.0]),
        ("a", 0.1, [5.0, 6.0]),
        ("plant", 0.1, [None, None]),
        ("a", 0.2, [None, 8.0]),
    ]
    errors = [error for *_, error in got]
    assert errors[0] == "channel 'x' has 2 values at this time"
    assert errors[1] is None
    assert "columns" in errors[2]  # what the CSV parser says
    assert errors[3] == "column 'channel' names no channel"


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    table = pa.table(
        {
            "machine": ["a"] * 3,
            "t": [0.0, 0.0, 1.0],
            "channel": pa.array(["x", "y", "x"]).dictionary_encode(),
            "value": ["1.5", "high", None],
            "label": [7, 8, 9],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    options = TableOptions(
        path=str(tmp_path), stream_id="machine", event_time="t", event_time_unit="s", channel="channel", value="value",
        channels=["x", "y"], columns=["label"],
    )  # fmt: skip
    got = read_all(ParquetSource(options)).to_pylist()
    assert [(row["values"], row["label"], row["error"]) for row in got] == [
        ([1.5, None], 7, "column 'value' is no number: 'high'"),
        ([None, None], 9, None),
    ]


def gathered(lines_of: list[tuple[str, int, str, float]], channels: str) -> list[tuple[str, int, list[float | None]]]:
    """By hand: of neighbors of equal time the streams among them, of each the last value of each channel."""
    found = []
    for time, own in itertools.groupby(lines_of, key=lambda line: line[1]):
        streams: dict[str, dict[str, float]] = {}
        for stream, _, channel, value in own:
            streams.setdefault(stream, {})[channel] = value
        found += [(stream, time, [values.get(channel) for channel in channels]) for stream, values in streams.items()]
    return found


LINES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.sampled_from("xyz"), st.integers(0, 9)), max_size=60)


def write_csv(folder: Path, own: list[Any]) -> Callable[[], CsvSource]:
    text = "t,machine,channel,value\n" + "".join(f"{time},{stream},{channel},{value}\n" for stream, time, channel, value in own)
    options = long(folder, text).options
    return lambda: CsvSource(options)


def write_jsonl(folder: Path, own: list[Any]) -> Callable[[], JsonlSource]:
    text = "".join(json.dumps(dict(zip(("m", "t", "c", "v"), line, strict=True))) + "\n" for line in own)
    (folder / "m.jsonl").write_text(text)
    options = TableOptions(
        path=str(folder / "m.jsonl"), stream_id="m", event_time="t", event_time_unit="s", channel="c", value="v",
        channels=["x", "y"],
    )  # fmt: skip
    return lambda: JsonlSource(options)


def write_parquet(folder: Path, own: list[Any]) -> Callable[[], ParquetSource]:
    columns = list(zip(*own, strict=True))
    table = pa.table(dict(zip(("m", "t", "c", "v"), columns, strict=True)))
    pq.write_table(table, folder / "m.parquet", row_group_size=7)
    options = TableOptions(
        path=str(folder / "m.parquet"), stream_id="m", event_time="t", event_time_unit="s", channel="c", value="v",
        channels=["x", "y"],
    )  # fmt: skip
    return lambda: ParquetSource(options)


@pytest.mark.heavy
@settings(max_examples=20)
@given(own=LINES.filter(bool))
@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_any_long_file_is_gathered_as_by_hand(write: Any, own: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    source = write(tmp_path_factory.mktemp("long"), own)()
    wanted = [row for row in gathered(own, "xy")]
    got = [(stream, int(time), values) for stream, _, time, values, _ in rows(source)]
    assert got == [(stream, time, values) for stream, time, values in wanted]


@pytest.mark.heavy
@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet])
def test_every_restart_within_a_long_file_is_exact(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 256)
    draw = random.Random(2)
    own = [(f"s{time % 3}", time, channel, draw.random()) for time in range(30) for channel in "xyz"[: 1 + draw.randrange(3)]]
    make = write(tmp_path, own)
    assert_every_restart_is_exact(make)
    assert len(rows(make())) == 30


# This machine


def test_the_host_is_a_sensor_of_the_channels_asked_for() -> None:
    source = HostSource(HostOptions(channels=["memory", "cpu"]))
    assert channels_of(source.schema) == ["memory", "cpu"]
    now = itertools.count()
    reader = HostReader("here", HostOptions(interval_s=1.0, channels=["memory", "cpu"]), None, lambda: float(next(now)))
    batch = reader.read(1, 1)
    assert batch is not None
    assert batch.schema.equals(source.schema, check_metadata=True)
    values, wrong = sample_values(batch, 2)
    assert not wrong.any()
    assert 0 < values[0, 0] <= 100
    everything = HostSource(HostOptions(channels="all")).schema
    assert channels_of(everything) == list(HostSource(HostOptions()).schema.names[3:-1])
    with pytest.raises(ConfigError, match=r"channels: there is no 'cpus' \(did you mean 'cpu'\?\); allowed: cpu, memory"):
        HostOptions(channels=["cpus"])
