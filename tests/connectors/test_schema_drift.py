"""Files of one source that show a column with different types, against the values that were written."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import read_all

from connectors.sources.arrow import ArrowSource
from connectors.sources.parquet import ParquetSource
from connectors.sources.tables import TableOptions

SOURCES = {"parquet": ParquetSource, "arrow": ArrowSource}


def write(path: Path, column: pa.Array, name: str = "v") -> None:
    table = pa.table({"t": pa.array(range(len(column)), pa.int64()), name: column})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def read(folder: Path, written: list[pa.Array], suffix: str = "arrow", **options) -> pa.Table:
    for index, column in enumerate(written):
        write(folder / f"{index}.{suffix}", column)
    source = SOURCES[suffix](TableOptions(path=str(folder), event_time="t", event_time_unit="s", **options))
    return pa.concat_tables([read_all(source, split) for split in source.splits()])


NOTHING = pa.nulls(2)
PAIRS = [
    (NOTHING, pa.array(["cat", "dog"])),
    (NOTHING, pa.array([1.5, 2.5])),
    (NOTHING, pa.array([[1], [2, 3]])),
    (NOTHING, pa.array([{"x": 1}, {"x": 2}])),
    (pa.array([1], pa.int8()), pa.array([300, 2**40])),
    (pa.array([-1], pa.int64()), pa.array([2**64 - 1], pa.uint64())),
    (pa.array([200], pa.uint8()), pa.array([-1], pa.int8())),
    (pa.array([1], pa.int32()), pa.array([1.5])),
    (pa.array([1.5], pa.float32()), pa.array([1e300])),
    (pa.array([Decimal("1.5")]), pa.array([Decimal("12345678901234567890.125")])),
    (pa.array([7], pa.int64()), pa.array([Decimal("1.25")])),
    (pa.array(["a"]).dictionary_encode(), pa.array(["b"])),
    (pa.array(["a"]), pa.array(["b"]).dictionary_encode()),
    (pa.array(["a"], pa.string_view()), pa.array(["b"])),
    (pa.array(["a"], pa.large_string()), pa.array(["b"], pa.string_view())),
    (pa.array([b"a"], pa.binary(1)), pa.array([b"abc"])),
    (pa.array([[None]], pa.list_(pa.null())), pa.array([["x"]])),
    (pa.array([[1]], pa.list_(pa.int8())), pa.array([[1, 2**40]], pa.large_list(pa.int64()))),
    (pa.array([[1]], pa.list_(pa.int8(), 1)), pa.array([[1, 2]])),
    (pa.array([[1, 2]], pa.list_view(pa.int64())), pa.array([None, [3]], pa.list_(pa.int64()))),
    (pa.array([{}], pa.struct([])), pa.array([{"x": 1}])),
    (pa.array([{"x": 1}]), pa.array([{"x": 2.5, "y": "new"}])),
    (pa.array([{"x": [1]}], pa.struct([("x", pa.list_(pa.int8()))])), pa.array([{"x": [2**40]}])),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), pa.array([[("l", 2**40)]], pa.map_(pa.string(), pa.int64()))),
    (pa.array([1], pa.timestamp("s")), pa.array([1_500], pa.timestamp("ms", "UTC"))),
    (pa.array([1], pa.date32()), pa.array([1_500], pa.timestamp("ms"))),
    (pa.array([1], pa.time32("s")), pa.array([1_500_000], pa.time64("us"))),
    (pa.array([1], pa.duration("s")), pa.array([1_500], pa.duration("ms"))),
]


def meant(column: pa.Array) -> list:
    """What was written, in Python, with times as counts so that units and zones compare."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind):
        column = column.cast(pa.timestamp("us")) if pa.types.is_date(kind) else column
        unit = {"s": 10**6, "ms": 10**3, "us": 1}[column.type.unit]
        counts = column.cast(pa.int32()).cast(pa.int64()) if column.type.bit_width == 32 else column.cast(pa.int64())
        return [None if value is None else value * unit for value in counts.to_pylist()]
    return column.to_pylist()


def holds(got, wanted) -> bool:
    """Whether a read value is the written one; fields that the type has gained are null."""
    if isinstance(wanted, dict):
        return all(holds(value, wanted.get(name)) for name, value in got.items()) and wanted.keys() <= got.keys()
    if isinstance(wanted, list | tuple):
        return len(got) == len(wanted) and all(map(holds, got, wanted))
    return got == wanted


@pytest.mark.parametrize("suffix", SOURCES)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].type} {pair[1].type}")
def test_a_column_holds_the_values_of_all_files(tmp_path, pair, turned, suffix):
    columns = list(reversed(pair)) if turned else list(pair)
    if suffix == "parquet" and any("struct<>" in str(column.type) for column in columns):
        pytest.skip("Parquet has no empty struct")
    table = read(tmp_path, columns, suffix)
    assert table["error"].null_count == table.num_rows, table["error"].to_pylist()
    wanted = [value for column in columns for value in meant(column)]
    got = meant(table["v"].combine_chunks()) if table["v"].num_chunks else []
    assert all(map(holds, got, wanted)), (got, wanted)
    assert len(got) == len(wanted)
    assert "view" not in str(table.schema.field("v").type)


INTEGERS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]


def whole(kind: pa.DataType) -> st.SearchStrategy:
    bits = kind.bit_width - pa.types.is_signed_integer(kind)
    return st.integers(-(2**bits) if pa.types.is_signed_integer(kind) else 0, 2**bits - 1)


NUMBERS = st.sampled_from([*INTEGERS, pa.float32(), pa.float64()]).flatmap(
    lambda kind: st.lists(
        st.one_of(st.none(), whole(kind) if pa.types.is_integer(kind) else st.floats(width=kind.bit_width, allow_nan=False)),
        min_size=1,
        max_size=3,
    ).map(lambda values: pa.array(values, kind))
)


@given(columns=st.lists(st.one_of(NUMBERS, st.just(NOTHING)), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numbers_of_any_width_stay_the_same_or_are_an_error(tmp_path_factory, columns):
    table = read(tmp_path_factory.mktemp("drift"), columns)
    wanted = [value for column in columns for value in column.to_pylist()]
    for row, value in zip(table.select(["v", "error"]).to_pylist(), wanted, strict=True):
        assert row["v"] == value if row["error"] is None else row["v"] is None and repr(value) in row["error"]


def test_types_that_do_not_go_together_are_told_value_by_value(tmp_path):
    table = read(tmp_path, [pa.array([1, 2]), pa.array(["3", "four"])])
    assert table["v"].to_pylist() == [1, 2, 3, None]
    assert table["error"].to_pylist() == [None, None, None, "column 'v' is no int64: 'four'"]


def test_a_finite_number_never_becomes_infinite(tmp_path):
    table = read(tmp_path, [pa.array([1.5, 1e300, np.inf])], columns={"v": "float"})
    assert table["v"].to_pylist() == [1.5, None, np.inf]
    assert table["error"].to_pylist() == [None, "column 'v' is no float: 1e+300", None]


def test_a_name_that_a_later_file_has_twice_is_an_error_of_that_file(tmp_path):
    write(tmp_path / "a.arrow", pa.array([1]))
    table = pa.table([pa.array([5]), pa.array([6]), pa.array([7])], names=["t", "v", "v"])
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    source = ArrowSource(TableOptions(path=str(tmp_path), event_time="t", event_time_unit="s"))
    (row,) = read_all(source, "b").to_pylist()
    assert row["error"] == "b.arrow: cannot be read on: there are 2 columns called 'v'; names must differ"


def test_a_file_written_by_polars_is_read(tmp_path):
    table = pa.table(
        {
            "t": pa.array(["2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z"], pa.string_view()),
            "cam": pa.array(["a", "b"], pa.string_view()),
            "kind": pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.uint32()), pa.array(["x", "y"], pa.string_view())),
            "tags": pa.array([["q"], None], pa.list_view(pa.string_view())),
        }
    )
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    got = read_all(ArrowSource(TableOptions(path=str(tmp_path), event_time="t", stream_id="cam")))
    assert got["stream_id"].to_pylist() == ["a", "b"]
    assert got["event_time"].cast(pa.int64()).to_pylist() == [1_704_067_200_000_000, 1_704_067_201_000_000]
    assert got["kind"].to_pylist() == ["y", "x"]
    assert got["tags"].to_pylist() == [["q"], None]
    assert got["error"].null_count == 2


BROKEN = pa.array([b"ok", b"\xff", b"fine"]).view(pa.string())


@pytest.mark.parametrize(
    "column",
    [
        BROKEN,
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), BROKEN),
        pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), BROKEN),
        pa.StructArray.from_arrays([BROKEN], names=["s"]),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("suffix", SOURCES)
def test_text_that_is_no_utf8_is_null_with_an_error(tmp_path, column, suffix):
    if suffix == "parquet" and pa.types.is_dictionary(column.type):
        pytest.skip("Arrow refuses the file as a whole, and its row says so")
    table = read(tmp_path, [column], suffix)
    table.validate(full=True)
    assert [value is None for value in table["v"].to_pylist()] == [False, True, False]
    assert table["error"].to_pylist() == [None, "column 'v' is no UTF-8", None]


def test_a_time_of_day_out_of_range_is_null_with_an_error(tmp_path):
    table = read(tmp_path, [pa.array([1, 90_000], pa.int32()).view(pa.time32("s"))])
    assert table["error"].to_pylist() == [None, "column 'v' holds no valid time32[s]"]
