from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import assert_every_restart_is_exact, read_all

import connectors.sources.parquet as parquet_module
from connectors.errors import SourceError
from connectors.records import FRAME, TIME_TYPE
from connectors.sources.arrow import ArrowSource
from connectors.sources.parquet import ParquetSource
from connectors.sources.tables import TableOptions

START_US = 1_767_225_600_000_000


def readings(rows: int, first: int = 0) -> pa.Table:
    numbers = np.arange(first, first + rows)
    return pa.table(
        {
            "machine": pa.array([f"m{n % 3}" for n in numbers]),
            "at": pa.array(START_US * 1000 + numbers * 1_000_000_123, pa.timestamp("ns")),
            "value": pa.array(numbers * 0.5),
        }
    )


def write_parquet(path: Path, table: pa.Table, **options) -> Path:
    pq.write_table(table, path, **options)
    return path


def write_file(path: Path, table: pa.Table, rows: int = 10) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def write_stream(path: Path, table: pa.Table, rows: int = 10) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


FORMATS = {
    "parquet": (ParquetSource, "a.parquet", lambda path, table: write_parquet(path, table, row_group_size=10)),
    "arrow file": (ArrowSource, "a.arrow", write_file),
    "arrow stream": (ArrowSource, "a.arrows", write_stream),
}


@pytest.fixture(params=FORMATS)
def kind(request):
    return FORMATS[request.param]


def make(source, path, **options):
    return source(TableOptions(path=str(path), **{"event_time": "at", **options}))


def test_columns_become_keys_and_values(tmp_path, kind):
    source, name, write = kind
    path = write(tmp_path / name, readings(25))
    table = read_all(make(source, path, stream_id="machine"), rows=4)
    assert table.schema.names == ["stream_id", "sequence", "event_time", "value", "error"]
    assert table["stream_id"].to_pylist() == [f"m{n % 3}" for n in range(25)]
    assert table["sequence"].to_pylist() == list(range(25))
    assert table["event_time"].type == TIME_TYPE
    assert table["event_time"].cast(pa.int64()).to_pylist() == [START_US + n * 1_000_000 + n * 123 // 1000 for n in range(25)]
    assert table["value"].to_pylist() == [n * 0.5 for n in range(25)]
    assert table["error"].null_count == 25


def test_restart_at_any_position_delivers_exactly_the_rest(tmp_path, kind, monkeypatch):
    source, name, write = kind
    monkeypatch.setattr(parquet_module, "_MAX_CHUNK_ROWS", 4)
    write(tmp_path / name, readings(25))
    write(tmp_path / f"b{name}", readings(15, 25))
    assert_every_restart_is_exact(lambda: make(source, tmp_path, stream_id="machine"), rows=3)
    assert_every_restart_is_exact(lambda: make(source, tmp_path / name), rows=7)


def test_an_unreadable_file_is_one_row_with_an_error_and_its_neighbors_are_read(tmp_path, kind):
    source, name, write = kind
    write(tmp_path / f"a{name}", readings(5))
    (tmp_path / f"b{name}").write_bytes(b"no table at all, whatever the name says")
    write(tmp_path / f"c{name}", readings(5))
    table = read_all(make(source, tmp_path, stream_id="machine"))
    assert table.num_rows == 11
    assert table["sequence"].to_pylist() == list(range(11))
    errors = table["error"].to_pylist()
    assert errors[5].startswith(f"b{name}: cannot be read on: ")
    assert [error is None for error in errors] == [True] * 5 + [False] + [True] * 5


def test_a_cut_file_is_told(tmp_path, kind):
    source, name, write = kind
    write(tmp_path / f"a{name}", readings(5))
    data = write(tmp_path / f"b{name}", readings(40)).read_bytes()
    (tmp_path / f"b{name}").write_bytes(data[: len(data) * 2 // 3])
    table = read_all(make(source, tmp_path, stream_id="machine"))
    assert table["error"].to_pylist()[-1].startswith(f"b{name}: cannot be read on: ")
    assert table["error"].null_count == table.num_rows - 1


def test_a_file_of_other_columns_is_one_row_with_an_error(tmp_path, kind):
    source, name, write = kind
    write(tmp_path / f"a{name}", readings(5))
    write(tmp_path / f"b{name}", readings(5).drop_columns("value"))
    table = read_all(make(source, tmp_path, stream_id="machine"))
    assert table["error"].to_pylist()[5] == (
        f"b{name}: cannot be read on: columns ['value'] of the first file are missing; there are ['machine', 'at']"
    )


def test_no_readable_file_is_a_source_error(tmp_path, kind):
    source, name, _ = kind
    (tmp_path / name).write_bytes(b"rubbish rubbish rubbish")
    with pytest.raises(SourceError, match=r"cannot be read: .*no file of this source tells its columns"):
        make(source, tmp_path).splits()


def test_columns_may_be_chosen_and_cast(tmp_path, kind):
    source, name, write = kind
    path = write(tmp_path / name, readings(3))
    table = read_all(make(source, path, columns={"machine": "string", "value": "float"}))
    assert table.schema.names == ["stream_id", "sequence", "event_time", "machine", "value", "error"]
    assert table["value"].type == pa.float32()


def test_values_that_cannot_be_cast_are_null_with_an_error(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", pa.table({"at": [1, 2, 3], "x": ["1", "two", "3"]}))
    table = read_all(make(ParquetSource, path, event_time_unit="s", columns={"x": "int64"}))
    assert table["x"].to_pylist() == [1, None, 3]
    assert table["error"].to_pylist() == [None, "column 'x' is no int64: 'two'", None]


def test_files_whose_types_differ_are_cast_to_the_first(tmp_path):
    write_parquet(tmp_path / "a.parquet", pa.table({"at": [1], "x": pa.array([1.5], pa.float64())}))
    write_parquet(tmp_path / "b.parquet", pa.table({"at": [2], "x": pa.array([2.5], pa.float32())}))
    assert read_all(make(ParquetSource, tmp_path, event_time_unit="s"), "b")["x"].to_pylist() == [2.5]


def test_nan_and_null_keys_are_rows_with_an_error_and_nan_values_pass(tmp_path):
    table = pa.table(
        {
            "machine": pa.array([1.0, float("nan"), 2.0, None]),
            "at": pa.array([1.0, 2.0, float("nan"), None]),
            "value": pa.array([float("nan")] * 4),
        }
    )
    path = write_parquet(tmp_path / "a.parquet", table)
    got = read_all(make(ParquetSource, path, stream_id="machine", event_time_unit="s"))
    assert got["stream_id"].to_pylist() == ["1", "a", "2", "a"]
    assert got["event_time"].cast(pa.int64()).to_pylist() == [1_000_000, 2_000_000, 2_000_000, 2_000_000]
    assert [error is None for error in got["error"].to_pylist()] == [True, False, False, False]
    assert all(np.isnan(got["value"].to_pylist()))


def test_stream_names_that_are_no_utf8_are_rows_with_an_error(tmp_path):
    names = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    path = write_file(tmp_path / "f.arrow", pa.table({"at": [1, 2, 3], "machine": names}))
    got = read_all(make(ArrowSource, path, stream_id="machine", event_time_unit="s"))
    assert got["stream_id"].to_pylist() == ["a", "f", "c"]
    assert got["error"].to_pylist() == [None, "column 'machine' is no UTF-8", None]


def test_recorded_frames_replay_as_they_are(tmp_path):
    pixels = np.full((2, 2, 3), np.nan, np.float32).tobytes()
    frames = pa.table(
        {
            "stream_id": ["cam", "cam"],
            "sequence": [5, 9],
            "event_time": pa.array([START_US, START_US + 1], TIME_TYPE),
            "image": [pixels, None],
            "encoding": ["raw_f32_rgb", None],
            "height": pa.array([2, None], pa.int32()),
            "width": pa.array([2, None], pa.int32()),
            "error": [None, "camera lost"],
        },
        schema=FRAME,
    )
    path = write_parquet(tmp_path / "a.parquet", frames)
    got = read_all(ParquetSource(TableOptions(path=str(path))))
    assert got.equals(frames)
    assert got.schema.metadata == FRAME.metadata


def test_dictionary_columns_and_text_times_are_keys_too(tmp_path):
    table = pa.table({"machine": pa.array(["a", "b"]).dictionary_encode(), "at": ["2026-01-01T00:00:00Z"] * 2})
    got = read_all(make(ArrowSource, write_file(tmp_path / "a.arrow", table), stream_id="machine"))
    assert got["stream_id"].to_pylist() == ["a", "b"]
    assert got["event_time"].cast(pa.int64()).to_pylist() == [START_US] * 2


def test_a_value_column_in_the_way_of_a_key_is_refused(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", readings(2).append_column("sequence", pa.array([7, 8])).append_column("n", [[1, 2]])
    )
    with pytest.raises(SourceError, match="column 'sequence' would be in the way of the key 'sequence', which is 'n'"):
        make(ParquetSource, path, sequence="n").splits()
    got = read_all(make(ParquetSource, path, sequence="n", columns=["value"]))
    assert got["sequence"].to_pylist() == [1, 2]


def test_a_key_column_that_is_listed_is_a_value_too(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", readings(2))
    got = read_all(make(ParquetSource, path, stream_id="machine", columns=["machine", "at"]))
    assert got["machine"].to_pylist() == got["stream_id"].to_pylist() == ["m0", "m1"]
    assert got.schema.names == ["stream_id", "sequence", "event_time", "machine", "at", "error"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_beyond_the_year_9999_are_rows_with_an_error(tmp_path, unit):
    table = pa.table({"at": pa.array([1, 2**63 - 1, -(2**63) + 1, 2], pa.timestamp(unit))})
    got = read_all(make(ArrowSource, write_file(tmp_path / "a.arrow", table)))
    is_fine = [error is None for error in got["error"].to_pylist()]
    assert is_fine == ([True] * 4 if unit == "ns" else [True, False, False, True])  # 64 bits of ns end in 2262


def test_an_unknown_column_is_named_with_the_nearest_one(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", readings(2))
    with pytest.raises(SourceError, match=r"stream_id: no column 'machin' \(did you mean 'machine'\?\)"):
        make(ParquetSource, path, stream_id="machin").splits()


def test_parquet_knows_its_rows(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", readings(25))
    source = make(ParquetSource, path)
    assert source.open("a", None).total_rows() == 25


def test_big_row_groups_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "_CHUNK_BYTES", 4096)
    path = write_parquet(
        tmp_path / "a.parquet", pa.table({"at": range(200), "blob": [b"x" * 1000 + bytes([i]) for i in range(200)]})
    )
    source = make(ParquetSource, path, event_time_unit="s")
    reader = source.open("a", None)
    assert reader.read(1 << 20, 1 << 30).num_rows < 20
    assert read_all(source).num_rows == 200


def test_arrow_memory_stays_flat_over_a_long_file(tmp_path):
    path = tmp_path / "a.arrow"
    table = pa.table({"at": pa.array(range(20_000)), "x": pa.array(np.zeros(20_000))})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for _ in range(50):
            writer.write_table(table)
    reader = make(ArrowSource, path, event_time_unit="s").open("a", None)
    held = []
    while not reader.exhausted:
        reader.read(5000, 1 << 30)
        held.append(pa.total_allocated_bytes())
    assert max(held[len(held) // 2 :]) <= max(held[: len(held) // 2]) + 1_000_000
    assert max(held) < 20 * table.nbytes
