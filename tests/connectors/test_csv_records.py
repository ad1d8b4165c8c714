"""CSV text of any form against Python's csv module, and against what was written."""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import assert_every_restart_is_exact, read_all

import connectors.sources.csv as csv_module
import connectors.sources.lines as lines_module
from connectors.errors import ConfigError, SchemaError, SourceError
from connectors.records import key_schema, require
from connectors.sources.csv import CsvOptions, CsvSource
from connectors.sources.csv_records import Records
from connectors.sources.jsonl import JsonlSource

CONTROL = key_schema("ctr_label", 1, [pa.field("label", pa.float32())])


def source(path: Path, **options) -> CsvSource:
    return CsvSource(CsvOptions(path=str(path), **{"event_time": "t", "event_time_unit": "s", **options}))


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def values(path: Path, *names: str, **options) -> list[tuple]:
    table = read_all(source(path, **options))
    return list(zip(*(table[name].to_pylist() for name in (*names, "error")), strict=True))


def split(text: bytes, delimiter: str = ",") -> list[tuple[bytes, str | None]]:
    return [(text[start:end], problem) for start, end, problem in Records(delimiter).split(text)]


def written(rows: list[list], delimiter: str, line_end: str, quote_all: bool) -> str:
    """CSV as RFC 4180 has it. Python's csv module leaves the line ends of other systems unquoted."""

    def value(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if quote_all or set(text) & set('",;\n\r') else text

    return "".join(delimiter.join(value(str(text)) for text in row) + line_end for row in rows)


TEXT = st.text(st.sampled_from('ab,;"\n\r é'), max_size=12)


@given(
    rows=st.lists(st.lists(TEXT, min_size=2, max_size=3), min_size=1, max_size=6),
    delimiter=st.sampled_from(",;"),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    quote_all=st.booleans(),
    last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_text_is_cut_into_the_records_that_pythons_reader_finds(rows, delimiter, line_end, quote_all, last):
    text = written(rows, delimiter, line_end, quote_all)
    assert list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)) == rows
    got = split((text if last else text.removesuffix(line_end)).encode(), delimiter)
    assert [problem for _, problem in got] == [None] * len(rows)
    assert [Records(delimiter).values(record) for record, _ in got] == rows


@given(
    values=st.lists(TEXT, min_size=1, max_size=12),
    block=st.sampled_from([8, 64, 1 << 20]),
    quote_all=st.booleans(),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
)
@settings(max_examples=30, deadline=None)
def test_any_text_in_quotes_is_read_as_it_was_written(tmp_path_factory, values, block, quote_all, line_end):
    text = written([["t", "v"], *map(list, enumerate(values))], ",", line_end, quote_all)
    path = write(tmp_path_factory.mktemp("csv") / "a.csv", text)
    before = lines_module._BLOCK_BYTES
    lines_module._BLOCK_BYTES = block
    try:
        table = read_all(source(path, columns={"t": "int64", "v": "string"}), rows=5)
    finally:
        lines_module._BLOCK_BYTES = before
    assert table["v"].to_pylist() == values
    assert table["t"].to_pylist() == list(range(len(values)))
    assert table["error"].null_count == len(values)


@given(st.binary(max_size=60), st.sampled_from([None, "#"]))
def test_any_bytes_are_cut_and_nothing_but_blank_lines_and_comments_is_lost(text, comment):
    records = Records(",", comment)
    spans = list(records.split(text))
    assert all(start < end for start, end, _ in spans)
    outside = b"".join(
        text[a:b] for a, b in zip([0, *(end for _, end, _ in spans)], [*(s for s, _, _ in spans), len(text)], strict=True)
    )
    kept = [line for line in outside.replace(b"\r", b"\n").split(b"\n") if line]
    assert all(comment is not None and line.startswith(b"#") for line in kept)
    if records.lines_are_records(text):
        lines = [line for line in text.replace(b"\r", b"\n").split(b"\n") if line]
        assert [text[start:end] for start, end, _ in spans] == lines
    end = records.end(text, closed=False)
    whole = [span for span in spans if span[1] < end]
    assert list(records.split(text[:end])) == whole


def test_a_quote_that_is_never_closed_is_an_error_of_its_line_alone(tmp_path):
    path = write(tmp_path / "a.csv", 't,v\n1,"open\n2,b\n3,"c"\n4,d\n5,"open at the end\n')
    got = values(path, "v")
    assert [v for v, _ in got] == [None, "b", "c", "d", None]
    assert [error is None for _, error in got] == [False, True, True, True, False]
    assert got[0][1] == "line at byte 4: a quote is opened and not closed: b'1,\"open'"


@pytest.mark.parametrize("block", [16, 40, 1 << 20])
def test_a_value_with_line_ends_is_one_row_and_restarts_are_exact(tmp_path, monkeypatch, block):
    monkeypatch.setattr(lines_module, "_BLOCK_BYTES", block)
    text = "t,v\n" + "".join(f'{i},"line {i}\nand, ""more"" {i}"\n' if i % 3 else f"{i},plain\n" for i in range(20))
    path = write(tmp_path / "a.csv", text)
    got = values(path, "v")
    assert got == [(f'line {i}\nand, "more" {i}' if i % 3 else "plain", None) for i in range(20)]
    assert_every_restart_is_exact(lambda: source(path), rows=3)


def test_a_quote_within_a_plain_value_is_a_letter(tmp_path):
    path = write(tmp_path / "a.csv", 't,v,w\n1,5" pipe,"x,\ny"\n2,3" rod,z\n')
    assert values(path, "v", "w") == [('5" pipe', "x,\ny", None), ('3" rod', "z", None)]


def test_the_types_are_not_told_from_the_inside_of_a_quoted_value(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "_SAMPLE_BYTES", 200)
    text = "t,v,note\n" + "".join(f'{i},{i}.5,"first line\nsecond, line {i}\n{i},third"\n' for i in range(100))
    table = read_all(source(write(tmp_path / "a.csv", text)))
    assert table.schema.field("v").type == pa.float64()
    assert table["v"].to_pylist() == [i + 0.5 for i in range(100)]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system_are_line_ends(tmp_path, monkeypatch, line_end):
    monkeypatch.setattr(lines_module, "_BLOCK_BYTES", 10)
    path = write(tmp_path / "a.csv", line_end.join(["t,v", *(f"{i},{i * 10}" for i in range(9))]))
    assert values(path, "v") == [(i * 10, None) for i in range(9)]
    assert_every_restart_is_exact(lambda: source(path), rows=2)


def test_a_long_header_and_a_header_in_quotes_are_read(tmp_path):
    name = "x" * 200_000
    path = write(tmp_path / "a.csv", f't,"v\n,2",{name}\n1,5,6\n')
    assert values(path, "v\n,2", name) == [(5, 6, None)]


def test_a_first_line_without_end_is_an_error_of_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_module, "_MAX_HEADER_BYTES", 100)
    write(tmp_path / "a.csv", "t,s,v\n1,m,2\n")
    write(tmp_path / "b.csv", "x" * 1000)
    write(tmp_path / "c.csv", "t,s,v\n2,m,3\n")
    got = values(tmp_path, "v", stream_id="s")
    assert got[1][1] == "b.csv: cannot be read on: its first line is longer than 100 bytes"
    assert [v for v, _ in got] == [2, None, 3]


@pytest.mark.parametrize("columns", [None, {"v": "double"}])
def test_a_column_named_twice_is_refused_unless_it_is_not_read(tmp_path, columns):
    path = write(tmp_path / "a.csv", "t,v,v,w\n1,2,3,4\n")
    with pytest.raises(SourceError, match="there are 2 columns called 'v'; names must differ"):
        source(path, columns=columns).splits()
    assert values(path, "w", columns=["w"]) == [(4, None)]


def test_a_column_named_twice_in_a_later_file_is_an_error_of_that_file(tmp_path):
    write(tmp_path / "a.csv", "t,s,v\n1,m,2\n")
    write(tmp_path / "b.csv", "t,s,v,v\n1,m,2,3\n")
    got = values(tmp_path, "v", stream_id="s")
    assert got[1][1] == "b.csv: cannot be read on: there are 2 columns called 'v'; names must differ"


def test_files_of_a_quiet_hour_give_no_rows(tmp_path):
    for name in "abce":
        write(tmp_path / f"{name}.csv", "t,v\n" if name != "b" else "")
    write(tmp_path / "d.csv", "t,v\n1,2.5\n")
    files = source(tmp_path)
    assert files.splits() == list("abcde")
    assert [read_all(files, split)["v"].to_pylist() for split in "abcde"] == [[], [], [], [2.5], []]


def test_headers_alone_are_a_source_without_rows(tmp_path):
    path = write(tmp_path / "a.csv", "t,v\n")
    assert read_all(source(path)).num_rows == 0
    table = read_all(source(path, columns={"t": "int64", "v": "double"}))
    assert (table.num_rows, table.schema.field("v").type) == (0, pa.float64())
    table = read_all(source(write(tmp_path / "b.csv", ""), columns={"t": "int64", "v": "double"}))
    assert (table.num_rows, table.schema.field("v").type) == (0, pa.float64())


def test_a_followed_folder_may_be_empty_where_the_types_are_declared(tmp_path):
    files = source(tmp_path, follow=True, settle_s=0.0, columns={"t": "int64", "v": "double"})
    assert files.splits() == []
    write(tmp_path / "a.csv", "t,v\n1,2.5\n")
    assert files.discover() == ["a"]
    assert read_all(files, "a")["v"].to_pylist() == [2.5]


def test_a_followed_folder_without_records_asks_for_the_types(tmp_path):
    write(tmp_path / "a.csv", "t,v\n")
    with pytest.raises(
        SourceError, match=r"no record yet that tells the types of \['t'\]; declare them, such as columns: \{t:"
    ):
        source(tmp_path, follow=True, settle_s=0.0, columns={"v": "double"}).splits()


def test_a_byte_order_mark_in_the_middle_is_no_part_of_a_value(tmp_path):
    path = write(tmp_path / "a.csv", "\ufefft,s\n1,a\n\ufeff2,b\n")
    assert values(path, "s", columns=["s"]) == [("a", None), ("b", None)]
    path = write(tmp_path / "b.csv", "\ufeffs,t\na,1\n\ufeffb,2\n")
    assert values(path, "s") == [("a", None), ("b", None)]


def test_text_of_another_encoding_is_named(tmp_path):
    write(tmp_path / "a.csv", "t,s,v\n1,m,2\n")
    write(tmp_path / "b.csv", "t,s,v\n1,m,2\n".encode("utf-16"))
    assert values(tmp_path, "v", stream_id="s")[1][1] == "b.csv: cannot be read on: it is UTF-16 text; save it as UTF-8"
    with pytest.raises(SourceError, match=r"b\.csv' cannot be read: it is UTF-16 text; save it as UTF-8"):
        source(tmp_path / "b.csv").splits()


def test_a_byte_that_is_no_utf8_leaves_text_text(tmp_path):
    path = write(tmp_path / "a.csv", b"t,v\n1,a\n2,\xff\n3,c\n")
    table = read_all(source(path))
    assert table["v"].to_pylist() == ["a", None, "c"]
    assert "invalid UTF8" in table["error"].to_pylist()[1]


TUM = """# color images
# file: 'rgbd "desk.bag'
# timestamp filename
1305031102.175304 rgb/1305031102.175304.png
1305031102.211214 rgb/1305031102.211214.png
# the end
"""


@pytest.mark.parametrize("block", [20, 1 << 20])
def test_comment_lines_are_left_out(tmp_path, monkeypatch, block):
    monkeypatch.setattr(lines_module, "_BLOCK_BYTES", block)
    path = write(tmp_path / "rgb.txt", TUM)
    options = {"delimiter": " ", "header": False, "comment": "#", "event_time": "f0"}
    table = read_all(source(path, **options))
    assert table["event_time"].cast(pa.int64()).to_pylist() == [1305031102175304, 1305031102211214]
    assert table["f1"].to_pylist() == ["rgb/1305031102.175304.png", "rgb/1305031102.211214.png"]
    assert table["error"].null_count == 2
    assert_every_restart_is_exact(lambda: source(path, **options), rows=1)


def test_comment_lines_may_stand_before_a_header_and_are_no_comments_within_quotes(tmp_path):
    path = write(tmp_path / "a.csv", '# made by hand\n\nt,v\n1,"two\n#lines"\n#2,no\n3,#yes\n')
    assert values(path, "v", comment="#") == [("two\n#lines", None), ("#yes", None)]


@pytest.mark.parametrize("options", [{"comment": ""}, {"comment": "a\nb"}, {"delimiter": "§"}])
def test_comments_and_delimiters_that_cannot_be_told_are_refused(options):
    with pytest.raises(ConfigError, match="is not usable"):
        CsvOptions(path="x", **options)


def test_declared_times_know_every_notation_and_nothing_is_null(tmp_path):
    path = write(tmp_path / "a.csv", "t,at\n1,2024-01-01T00:00:00.123456789+01\n2,\n3,NA\n4,soon\n5,20240101\n")
    table = read_all(source(path, columns={"at": "timestamp[ms, UTC]"}))
    assert table["at"].cast(pa.int64()).to_pylist() == [1704063600123, None, None, None, 1704067200000]
    assert table["error"].to_pylist() == [None, None, None, "column 'at' is no timestamp[ms, tz=UTC]: 'soon'", None]


def test_a_type_that_text_cannot_hold_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "t,v\n1,2\n")
    with pytest.raises(ConfigError, match="columns: 'v' cannot be list<item: float>: text of this format holds none"):
        source(path, columns={"v": "list<float>"}).splits()


INTEGERS = st.one_of(st.integers(-(2**70), 2**70), st.integers(2**53 - 2, 2**53 + 2), st.integers(2**63 - 2, 2**64 + 2))


@given(st.lists(st.one_of(INTEGERS, st.sampled_from([1.5, 1e300, 2.0**60])), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_integers_are_exact_or_an_error(tmp_path_factory, numbers):
    path = write(tmp_path_factory.mktemp("n") / "a.csv", "t,v\n" + "".join(f"{i},{n}\n" for i, n in enumerate(numbers)))
    for (value, error), number in zip(values(path, "v"), numbers, strict=True):
        assert value == number if error is None else value is None and str(number) in error


def test_stream_ids_are_text(tmp_path):
    path = write(tmp_path / "a.csv", "t,k\n1,007\n2,18446744073709551617\n")
    assert read_all(source(path, stream_id="k"))["stream_id"].to_pylist() == ["007", "18446744073709551617"]


@pytest.mark.parametrize(("kind", "name"), [("jsonl", JsonlSource), ("csv", CsvSource)])
@pytest.mark.parametrize(("told", "label"), [("true", 1.0), ("1", 1.0), ("0", 0.0), ("false", 0.0)])
def test_labels_that_are_whole_or_true_and_false_may_be_declared_as_float(tmp_path, kind, name, told, label):
    text = f'{{"t": 1, "label": {told}}}\n' if kind == "jsonl" else f"t,label\n1,{told}\n"
    path = write(tmp_path / f"a.{kind}", text)
    files = name(name.Options(path=str(path), event_time="t", event_time_unit="s"))
    with pytest.raises(
        SchemaError,
        match=r"column 'label' is (bool|int64), not float; .* declare columns: \{label: float, …\} there, with all others",
    ):
        require(pa.RecordBatch.from_pylist([], files.schema), CONTROL, "x")
    files = name(name.Options(path=str(path), event_time="t", event_time_unit="s", columns={"label": "float"}))
    table = read_all(files)
    assert (table["label"].to_pylist(), table["error"].to_pylist()) == ([label], [None])
    require(table.to_batches()[0], CONTROL, "x")
