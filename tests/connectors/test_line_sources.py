import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import assert_every_restart_is_exact, read_all

import connectors.sources.lines as lines_module
from connectors.errors import ConfigError, SourceError
from connectors.sources.csv import CsvOptions, CsvSource
from connectors.sources.jsonl import JsonlSource
from connectors.sources.tables import TableOptions


def jsonl(path, **options):
    return JsonlSource(TableOptions(path=str(path), **{"event_time": "t", "event_time_unit": "s", **options}))


def csv(path, **options):
    return CsvSource(CsvOptions(path=str(path), **{"event_time": "t", "event_time_unit": "s", **options}))


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows(table: pa.Table, *names: str) -> list[tuple]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def microseconds(table: pa.Table) -> list[int]:
    return table["event_time"].cast(pa.int64()).to_pylist()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(lines_module, "_BLOCK_BYTES", 100)


# JSON lines


def test_json_lines_become_records_with_keys_from_columns(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"k": "k042", "v": 0.844, "t": 17}\n{"k": "k001", "v": 2, "t": 17.5}\n')
    source = jsonl(path, stream_id="k")
    assert source.splits() == ["all"]
    table = read_all(source)
    assert table.schema.names == ["stream_id", "sequence", "event_time", "v", "error"]
    assert rows(table, "stream_id", "sequence", "v", "error") == [("k042", 0, 0.844, None), ("k001", 1, 2.0, None)]
    assert microseconds(table) == [17_000_000, 17_500_000]


def test_without_a_stream_column_every_file_is_a_stream(tmp_path):
    write(tmp_path / "b10.jsonl", '{"t": 1}\n')
    write(tmp_path / "b9.jsonl", '{"t": 2}\n')
    source = jsonl(tmp_path)
    assert source.splits() == ["b9", "b10"]
    assert read_all(source, "b10")["stream_id"].to_pylist() == ["b10"]
    assert source.open("b9", None).closes == ("b9",)


def test_with_a_stream_column_files_are_read_one_after_the_other(tmp_path):
    write(tmp_path / "2.jsonl", '{"k": "a", "t": 1}\n{"k": "b", "t": 2}\n')
    write(tmp_path / "10.jsonl", '{"k": "a", "t": 3}')
    table = read_all(jsonl(tmp_path, stream_id="k"))
    assert rows(table, "stream_id", "sequence") == [("a", 0), ("b", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("nonsense", "not a JSON object"),
        ("null", "not a JSON object"),
        ("[1, 2]", "not a JSON object"),
        ('{"v": 1, "t": 2', "JSON parse error"),
        ('{"v": "text", "t": 2}', "Column(/v) changed from number to string"),
        ('{"v": 1, "t": 2} {"v": 3, "t": 4}', "more than one record on the line"),
        ('{"v": 1, "t": 2} null', "more than one record on the line"),
        ('{"v": 1, "v": 2, "t": 2}', "specified twice"),
    ],
)
@pytest.mark.parametrize("where", [0, 3, 7])
def test_a_bad_json_line_is_a_row_with_an_error_in_its_place(tmp_path, bad, message, where):
    good = [f'{{"v": {i}, "t": {i}}}' for i in range(7)]
    path = write(tmp_path / "a.jsonl", "\n".join([*good[:where], bad, *good[where:]]) + "\n")
    table = read_all(jsonl(path))
    assert table["sequence"].to_pylist() == list(range(8))
    errors = table["error"].to_pylist()
    assert [i for i, error in enumerate(errors) if error] == [where]
    assert message in errors[where]
    assert f"line at byte {sum(len(line) + 1 for line in good[:where])}" in errors[where]
    assert [v for v in table["v"].to_pylist() if v is not None] == list(range(7))
    assert table["stream_id"].to_pylist() == ["a"] * 8
    assert microseconds(table)[where] == (where - 1) * 1_000_000 * (where > 0)


def test_bytes_that_are_no_utf8_spoil_only_their_line(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"k": "a", "t": 1}\n{"k": "\xff\xfe", "t": 2}\n{"k": "b", "t": 3}\n')
    table = read_all(jsonl(path, stream_id="k"))
    assert table["stream_id"].to_pylist() == ["a", "a", "b"]  # the bad line: the file's name
    assert "not UTF-8" in table["error"].to_pylist()[1]


def test_a_deeply_nested_value_does_not_end_the_process(tmp_path):
    deep = b'{"q": ' + b"[" * 200_000 + b"]" * 200_000 + b', "t": 2}\n'
    table = read_all(jsonl(write(tmp_path / "a.jsonl", b'{"q": 1, "t": 1}\n' + deep), columns=["t"]))
    assert microseconds(table)[0] == 1_000_000
    assert read_all(jsonl(write(tmp_path / "b.jsonl", b'{"q": 1, "t": 1}\n' + deep)))["error"].null_count == 1


def test_blank_lines_and_carriage_returns_are_no_records(tmp_path):
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"v": 1, "t": 1}\r\n\r\n   \n  {"v": 2, "t": 2}\r\n\n{"v": 3, "t": 3}')
    table = read_all(jsonl(path))
    assert rows(table, "sequence", "v", "error") == [(0, 1, None), (1, 2, None), (2, 3, None)]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("k", "null", "column 'k' names no stream"),
        ("k", '""', "column 'k' names no stream"),
        ("t", "null", "column 't' is no time in 's': None"),
        ("t", "NaN", "column 't' is no time in 's': nan"),
        ("t", "1e30", "column 't' is no time in 's': 1e+30"),
        ("s", "null", "column 's' is no whole number: None"),
    ],
)
def test_unusable_keys_are_rows_with_an_error(tmp_path, key, value, message):
    good = {"k": '"x"', "t": "5.5", "s": "40"}
    records = [good, {**good, key: value, **({} if key == "s" else {"s": "41"})}, {**good, "s": "42"}]
    text = "".join("{" + ", ".join(f'"{name}": {text}' for name, text in record.items()) + "}\n" for record in records)
    table = read_all(jsonl(write(tmp_path / "a.jsonl", text), stream_id="k", sequence="s"))
    assert table["error"].to_pylist() == [None, message, None]
    assert table["stream_id"].to_pylist() == ["x", "a" if key == "k" else "x", "x"]
    assert microseconds(table) == [5_500_000] * 3
    assert table["sequence"].to_pylist() == [40, 1 if key == "s" else 41, 42]


def test_columns_show_their_type_over_the_whole_file(tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(lines_module, "_SAMPLE_BYTES", 200)
    text = "".join(f'{{"v": {i if i < 90 else i + 0.5}, "t": {i}}}\n' for i in range(100))
    table = read_all(jsonl(write(tmp_path / "a.jsonl", text)))
    assert table.schema.field("v").type == pa.float64()
    assert table["error"].null_count == 100


def test_declared_types_win_and_may_name_what_the_start_does_not_show(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"v": 1, "t": 1}\n')
    columns = {"v": "double", "late": "list<int32>"}
    table = read_all(jsonl(path, columns=columns))
    assert table.schema.field("v").type == pa.float64()
    assert table.schema.field("late").type == pa.list_(pa.int32())


def test_only_the_listed_columns_are_read(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1, "b": {"c": [1]}, "t": 1}\n')
    assert read_all(jsonl(path, columns=["b"])).schema.names == ["stream_id", "sequence", "event_time", "b", "error"]


def test_an_event_time_column_is_the_default_and_text_is_iso(tmp_path):
    times = ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00.25+01:00", "2026-01-01 00:00:01", "2026-13-01", "soon"]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"event_time": t}) + "\n" for t in times))
    table = read_all(JsonlSource(TableOptions(path=str(path))))
    start = 1_767_225_600_000_000
    assert microseconds(table) == [start, start + 250_000] + [start + 1_000_000] * 3
    assert [error is None for error in table["error"].to_pylist()] == [True, True, True, False, False]
    assert table["error"].to_pylist()[4] == "column 'event_time' is no time in 'iso': 'soon'"


@pytest.mark.parametrize(("unit", "number"), [("s", 1.5), ("ms", 1500), ("us", 1_500_000), ("ns", 1_500_000_999)])
def test_units_of_numbers(tmp_path, unit, number):
    path = write(tmp_path / "a.jsonl", json.dumps({"t": number}) + "\n")
    assert microseconds(read_all(jsonl(path, event_time_unit=unit))) == [1_500_000]


def test_rows_can_stand_for_time(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"v": 1}\n{"v": 2}\n')
    assert microseconds(read_all(jsonl(path, event_time=None, event_time_unit="rows"))) == [0, 1_000_000]
    table = read_all(jsonl(path, event_time=None, event_time_unit="rows", row_rate=100.0))
    assert microseconds(table) == [0, 10_000]


@pytest.mark.parametrize("unit", ["auto", "iso"])
def test_numbers_without_a_unit_are_refused(tmp_path, unit):
    path = write(tmp_path / "a.jsonl", '{"t": 1}\n')
    with pytest.raises(SourceError, match=r"event_time column 't' holds numbers \(int64\).*event_time_unit: s, ms, us or ns"):
        _ = jsonl(path, event_time_unit=unit).schema


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream_id": "kye"}, r"stream_id: no column 'kye' \(did you mean 'key'\?\); there are \['key', 't'\]"),
        ({"columns": ["x"]}, "columns: no column 'x'"),
        ({"event_time": None}, r"no column says when a row happened; name one by event_time: …, of \['key', 't'\]"),
    ],
)
def test_an_unknown_column_is_named_with_the_nearest_one(tmp_path, options, message):
    path = write(tmp_path / "a.jsonl", '{"key": "a", "t": 1}\n')
    with pytest.raises(SourceError, match=message):
        jsonl(path, **options).splits()


def test_duplicate_and_late_times_pass_untouched(tmp_path):
    path = write(tmp_path / "a.jsonl", "".join(f'{{"t": {t}}}\n' for t in (5, 5, 3, 9)))
    table = read_all(jsonl(path))
    assert microseconds(table) == [5_000_000, 5_000_000, 3_000_000, 9_000_000]
    assert table["error"].null_count == 4


def test_a_file_without_records_is_refused_and_one_beside_others_gives_no_rows(tmp_path):
    write(tmp_path / "b.jsonl", "")
    with pytest.raises(SourceError, match="holds no record from which the columns could be told"):
        jsonl(tmp_path).splits()
    write(tmp_path / "a.jsonl", '{"t": 1}\n')
    assert read_all(jsonl(tmp_path), "b").num_rows == 0


def test_a_line_too_long_is_one_row_and_is_not_kept_in_memory(tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(lines_module, "_MAX_LINE_BYTES", 300)
    text = '{"v": 1, "t": 1}\n{"v": "' + "x" * 5000 + '", "t": 2}\n{"v": 3, "t": 3}\n'
    table = read_all(jsonl(write(tmp_path / "a.jsonl", text), columns={"v": "int64"}))
    assert table["v"].to_pylist() == [1, None, 3]
    assert table["error"].to_pylist()[1] == "line at byte 17 is longer than 300 bytes"


@pytest.mark.heavy
def test_restart_at_any_position_delivers_exactly_the_rest(tmp_path, small_blocks):
    text = "".join("bad\n" if i % 11 == 3 else f'{{"v": {i}, "k": "{"ab"[i % 2]}", "t": {i}}}\n' for i in range(30))
    write(tmp_path / "a.jsonl", text)
    write(tmp_path / "b.jsonl", text[:-1])
    assert_every_restart_is_exact(lambda: jsonl(tmp_path), "b", rows=2)
    assert_every_restart_is_exact(lambda: jsonl(tmp_path, stream_id="k"), rows=3)


def test_a_changed_or_vanished_file_is_named_at_restart(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", '{"k": "x", "t": 1}\n{"k": "x", "t": 2}\n')
    reader = jsonl(tmp_path, stream_id="k").open("all", None)
    reader.read(1, 1 << 20)
    position = reader.position()
    write(tmp_path / "b.jsonl", '{"k": "x", "t": 1}\n')
    with pytest.raises(SourceError, match=r"b\.jsonl' has changed since the position was recorded \(its size went from"):
        jsonl(tmp_path, stream_id="k").open("all", position)
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(SourceError, match=r"the file 'b\.jsonl' .* has not been read to its end, and it is gone; put it back"):
        jsonl(tmp_path, stream_id="k").open("all", position)


def test_two_files_of_one_name_are_told_apart_by_path(tmp_path):
    for folder in "xy":
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.jsonl", '{"t": 1}\n')
    with pytest.raises(SourceError, match="would share the stream id 'a'"):
        jsonl(tmp_path / "*" / "a.jsonl").splits()
    assert jsonl(tmp_path / "*" / "a.jsonl", stream_names="path").splits() == ["x/a", "y/a"]


def test_a_missing_path_names_what_is_there(tmp_path):
    write(tmp_path / "events.jsonl", '{"t": 1}\n')
    with pytest.raises(SourceError, match=r"no such file or folder: .*nearest in .*: 'events\.jsonl'"):
        jsonl(tmp_path / "event.jsonl").splits()
    with pytest.raises(SourceError, match=r"nothing matches .*\(\.jsonl/\.ndjson files\).*'events\.jsonl'"):
        jsonl(tmp_path / "q*.jsonl").splits()


@given(
    values=st.lists(st.one_of(st.integers(-5, 5), st.just("bad")), min_size=1, max_size=30),
    block=st.integers(20, 200),
    rows_per_read=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_blocks_and_batch_sizes_never_change_the_rows(tmp_path_factory, values, block, rows_per_read):
    text = "".join("?\n" if v == "bad" else f'{{"v": {v}, "t": 0}}\n' for v in values)
    path = write(tmp_path_factory.mktemp("p") / "a.jsonl", text)
    options = {"columns": {"v": "int64", "t": "int64"}}
    if all(v == "bad" for v in values):
        return
    before = lines_module._BLOCK_BYTES
    lines_module._BLOCK_BYTES = block
    try:
        table = read_all(jsonl(path, **options), rows=rows_per_read)
    finally:
        lines_module._BLOCK_BYTES = before
    assert table["v"].to_pylist() == [None if v == "bad" else v for v in values]
    assert table["sequence"].to_pylist() == list(range(len(values)))


# CSV


def test_csv_rows_become_records(tmp_path):
    path = write(tmp_path / "m.csv", '\ufefft,machine,x\r\n1,007,"1,5"\r\n2,008,b\r\n')
    table = read_all(csv(path, stream_id="machine"))
    assert rows(table, "stream_id", "sequence", "x", "error") == [("007", 0, "1,5", None), ("008", 1, "b", None)]


def test_csv_with_another_delimiter_and_without_a_header(tmp_path):
    table = read_all(csv(write(tmp_path / "m.csv", "1;5\n2;6\n"), delimiter=";", header=False, event_time="f0"))
    assert rows(table, "f1") == [(5,), (6,)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [("1", "Expected 2 columns, got 1"), ("1,2,3", "Expected 2 columns, got 3"), ("4,abc", "invalid value 'abc'")],
)
def test_a_bad_csv_line_is_a_row_with_an_error_in_its_place(tmp_path, bad, message):
    path = write(tmp_path / "m.csv", f"t,x\n1,1.5\n2,2.5\n{bad}\n4,4.5\n")
    table = read_all(csv(path, columns={"x": "double"}))
    assert table["x"].to_pylist() == [1.5, 2.5, None, 4.5]
    errors = table["error"].to_pylist()
    assert message in errors[2]
    assert "line at byte 16" in errors[2]
    assert errors[:2] + errors[3:] == [None] * 3


def test_csv_files_may_order_their_columns_differently_but_not_lack_one(tmp_path):
    write(tmp_path / "a.csv", "t,x\n1,10\n")
    write(tmp_path / "b.csv", "x,t\n20,2\n")
    write(tmp_path / "c.csv", "t,y\n3,30\n")
    source = csv(tmp_path)
    assert [read_all(source, split)["x"].to_pylist() for split in "ab"] == [[10], [20]]
    (row,) = read_all(source, "c").to_pylist()
    assert row["error"] == "c.csv: cannot be read on: columns ['x'] of the first file are missing; there are ['t', 'y']"


@pytest.mark.heavy
def test_csv_restart_at_any_position_delivers_exactly_the_rest(tmp_path, small_blocks):
    text = "t,x\n" + "".join("oops\n" if i % 13 == 5 else f"{i},{i * 0.5}\n" for i in range(50))
    write(tmp_path / "a.csv", text)
    assert_every_restart_is_exact(lambda: csv(tmp_path / "a.csv"), rows=3)


def test_an_empty_field_is_null_and_an_empty_stream_name_an_error(tmp_path):
    path = write(tmp_path / "m.csv", "t,k,x\n1,a,\n2,,3\n")
    table = read_all(csv(path, stream_id="k"))
    assert rows(table, "stream_id", "x", "error") == [("a", None, None), ("m", 3, "column 'k' names no stream")]


def test_estimates_of_rows_are_close(tmp_path):
    path = write(tmp_path / "m.csv", "t,x\n" + "".join(f"{i},{i}\n" for i in range(1000)))
    source = csv(path)
    assert abs(source.open(source.splits()[0], None).total_rows() - 1000) < 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": ""}, "delimiter: '' is not usable"),
        ({"columns": {"x": "number"}}, "columns: 'number' is no type; allowed: bool"),
        ({"event_time": "t", "event_time_unit": "rows"}, "is not read with event_time_unit: rows"),
        ({"row_rate": 100.0}, "row_rate: 100.0 needs event_time_unit: rows; it is 'auto'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CsvOptions(path="x", **options)
