"""JSON texts of any source (files, Kafka messages, requests): integers, marks, line ends, times."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import read_all

import connectors.sources.lines as lines_module
from connectors.errors import ConfigError, SourceError
from connectors.kafka.decode import Messages, TableDecoder
from connectors.sources.jsonl import JsonlSource
from connectors.sources.requests import RequestsOptions, RequestsSource
from connectors.sources.tables import TableOptions

BOM = b"\xef\xbb\xbf"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(path: Path, **options) -> pa.Table:
    return read_all(JsonlSource(TableOptions(path=str(path), **{"event_time": "t", "event_time_unit": "s", **options})))


def decode(values: list[bytes], columns: dict[str, str], format: str = "json", **options) -> list[dict]:
    options = {"stream_id": None, "event_time": None, "event_time_unit": "auto", "sequence": None, **options}
    decoder = TableDecoder(format, columns, topic="t", **options)
    n = len(values)
    return decoder.decode(Messages("t/0", range(n), [1000] * n, [b"k"] * n, values, [()] * n), 0)[0].to_pylist()


def request(folder: Path, text: bytes, columns: dict[str, str]) -> list[dict]:
    source = RequestsSource(RequestsOptions(path=folder, columns=columns))
    folder.mkdir()
    write(folder / "a.json", text + b"\n")
    reader = source.open("requests", None)
    try:
        batch = reader.read(100, 1 << 20)
        return [] if batch is None else batch.to_pylist()
    finally:
        reader.close()


NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(2**53 - 2, 2**53 + 2),
    st.integers(2**63 - 2, 2**64 + 2),
    st.sampled_from([1.5, 2.0**60]),
)


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.sampled_from(["{}", "[0, {}]", '{{"x": {}}}', '[{{"x": [{}]}}]']))
@settings(max_examples=40, deadline=None)
def test_integers_are_exact_or_an_error_at_any_depth(tmp_path_factory, numbers, form):
    texts = [form.format(json.dumps(number)) for number in numbers]
    lines = "".join(f'{{"t": {i}, "v": {text}}}\n' for i, text in enumerate(texts))
    table = read(write(tmp_path_factory.mktemp("n") / "a.jsonl", lines))
    for value, error, text, number in zip(table["v"].to_pylist(), table["error"].to_pylist(), texts, numbers, strict=True):
        assert value == json.loads(text) if error is None else value is None and str(number) in error


@given(st.integers(0, 2**70))
@settings(max_examples=40, deadline=None)
def test_stream_ids_that_are_numbers_stay_apart(tmp_path_factory, number):
    lines = "".join(f'{{"t": {i}, "k": {number + i}}}\n' for i in range(3))
    table = read(write(tmp_path_factory.mktemp("k") / "a.jsonl", lines), stream_id="k")
    assert table["stream_id"].to_pylist() == [str(number + i) for i in range(3)]


def test_a_large_integer_behind_the_sample_is_an_error_that_says_what_to_declare(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "_SAMPLE_BYTES", 100)
    lines = [f'{{"t": {i}, "v": {i}.5}}' for i in range(100)]
    lines[30] = '{"t": 30, "v": 9007199254740993}'
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    table = read(path)
    assert table["v"].to_pylist()[29:32] == [29.5, None, 31.5]
    assert table["t" if "t" in table.column_names else "event_time"].null_count == 0
    (error,) = [error for error in table["error"].to_pylist() if error]
    assert error == (
        "column 'v': 9007199254740993 is an integer that double does not hold exactly; declare the column's type, "
        "such as columns: {v: 'decimal(38, 6)', …} with all others"
    )
    table = read(path, columns={"v": "decimal(38, 6)"})
    assert table["error"].null_count == 100
    assert int(table["v"].to_pylist()[30]) == 9007199254740993


def test_a_double_that_javascript_writes_in_full_is_that_double(tmp_path):
    table = read(
        write(tmp_path / "a.jsonl", '{"t": 1, "v": 1.5}\n{"t": 2, "v": 123456789012345680000}\n{"t": 3, "v": 1e300}\n')
    )
    assert table["v"].to_pylist() == [1.5, 1.2345678901234568e20, 1e300]
    assert table["error"].null_count == 3


def test_messages_hold_exact_integers_or_an_error():
    rows = decode([b'{"v": 9007199254740993}', b'{"v": 1.5}', b'{"v": 4}'], {"v": "double"})
    assert [row["v"] for row in rows] == [None, 1.5, 4.0]
    assert "9007199254740993 is an integer that double does not hold exactly" in rows[0]["error"]
    assert decode([b'{"v": 18446744073709551615}'], {"v": "uint64"})[0]["v"] == 2**64 - 1


@pytest.mark.parametrize("space", [b"", b" ", b"\r\n", b"\t"])
def test_a_byte_order_mark_begins_any_json_text(tmp_path, space):
    text = b"".join(BOM + space + b'{"t": %d, "v": %d}\n' % (i, i) for i in range(3))
    table = read(write(tmp_path / "a.jsonl", text))
    if space != b"\r\n":
        assert table["v"].to_pylist() == [0, 1, 2]
        assert table["error"].null_count == 3
    rows = decode([BOM + space + b'{"v": 1}', b'{"v": 2}', BOM + b"null"], {"v": "int64"})
    assert [row["v"] for row in rows] == [1, 2, None]
    assert [row["error"] is None for row in rows] == [True, True, False]
    rows = request(tmp_path / "requests", BOM + space.replace(b"\r\n", b"") + b'{"stream_id": "a", "v": 1}\n', {"v": "int64"})
    assert [(row["stream_id"], row["v"], row["error"]) for row in rows] == [("a", 1, None)]


def test_a_message_may_hold_line_ends(tmp_path):
    assert decode([b'{\n "v":\r\n 1\n}\n', b'\n{"v": 2}'], {"v": "int64"})[0]["v"] == 1


@pytest.mark.parametrize("block", [30, 1 << 20])
@pytest.mark.parametrize("last", [True, False])
def test_a_carriage_return_alone_ends_a_line(tmp_path, monkeypatch, block, last):
    monkeypatch.setattr(lines_module, "_BLOCK_BYTES", block)
    lines = [b'{"t": %d, "v": [%d]}' % (i, i) for i in range(9)]
    lines[4] = b"rubbish"
    table = read(write(tmp_path / "a.jsonl", b"\r".join(lines) + b"\r" * last))
    assert table["v"].to_pylist() == [None if i == 4 else [i] for i in range(9)]
    assert [i for i, error in enumerate(table["error"].to_pylist()) if error] == [4]


def test_joined_files_of_two_systems_are_read(tmp_path):
    text = b'{"t": 1}\r{"t": 2}\r' + BOM + b'{"t": 3}\n{"t":\r 4}\n'
    table = read(write(tmp_path / "a.jsonl", text))
    assert table["event_time"].cast(pa.int64()).to_pylist() == [10**6, 2 * 10**6, 3 * 10**6, 4 * 10**6]
    assert table["error"].null_count == 4


TIMES = ["2024-01-01T00:00:00.123456789Z", "20240101T000000,5+00", "2024-W01-1", "soon"]
COUNTS = [1704067200123, 1704067200500, 1704067200000, None]


def test_declared_times_know_every_notation_in_every_source(tmp_path):
    columns = {"at": "timestamp[ms]", "all": "list<timestamp[ms]>"}
    texts = [json.dumps({"t": 1, "stream_id": "k", "at": time, "all": [time]}) for time in TIMES]
    table = read(write(tmp_path / "a.jsonl", "\n".join(texts)), columns=columns)
    sources = [table.to_pylist(), decode([text.encode() for text in texts], columns)]
    sources.append(request(tmp_path / "requests", "\n".join(texts).encode(), columns))
    batch = pa.record_batch({"at": TIMES, "all": [[time] for time in TIMES]})
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    sources.append(decode([stream.getvalue().to_pybytes()], columns, "arrow"))
    for rows in sources:
        got = pa.Table.from_pylist(rows, pa.schema([("at", pa.timestamp("ms")), ("all", pa.list_(pa.timestamp("ms")))]))
        assert got["at"].cast(pa.int64()).to_pylist() == COUNTS
        assert got["all"].combine_chunks().flatten().cast(pa.int64()).to_pylist() == COUNTS[:3]
        assert [row["error"] is None for row in rows] == [True, True, True, False]


def test_a_value_of_an_arrow_message_that_does_not_fit_is_an_error():
    batch = pa.record_batch({"v": ["1", "two"]})
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    rows = decode([stream.getvalue().to_pybytes()], {"v": "int64"}, "arrow")
    assert [(row["v"], row["error"]) for row in rows] == [(1, None), (None, "column 'v': 'two' is no int64")]


def test_durations_and_half_floats_may_be_declared_and_what_json_cannot_hold_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"t": 1, "d": 1500, "h": 0.5}\n')
    table = read(path, columns={"d": "duration[ms]", "h": "halffloat"})
    assert (table["d"].to_pylist()[0].total_seconds(), table["h"].to_pylist()) == (1.5, [0.5])
    with pytest.raises(ConfigError, match="columns: 'd' cannot be month_day_nano_interval: text of this format holds none"):
        read(path, columns={"d": "month_day_nano_interval"})
    with pytest.raises(ConfigError, match="columns: 'd' cannot be month_day_nano_interval"):
        decode([b"{}"], {"d": "month_day_nano_interval"})


def test_an_empty_file_is_no_rows_where_the_columns_are_declared(tmp_path):
    path = write(tmp_path / "a.jsonl", "")
    table = read(path, columns={"t": "int64", "v": "double"})
    assert (table.num_rows, table.schema.field("v").type) == (0, pa.float64())
    with pytest.raises(SourceError, match="holds no record from which the columns could be told"):
        read(path)
