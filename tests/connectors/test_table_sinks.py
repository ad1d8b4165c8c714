"""Parquet, Arrow IPC and JSON lines: what readers of other projects see, and how sinks deal with schemas and memory."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from connectors.errors import ConfigError, SchemaError, SourceError
from connectors.records import TIME_TYPE, output_schema
from connectors.sinks.arrow import ArrowOptions, ArrowSink
from connectors.sinks.jsonl import JsonlOptions, JsonlSink
from connectors.sinks.parquet import ParquetOptions, ParquetSink
from connectors.sinks.read import committed_files, read_committed
from connectors.sinks.staged import FileSink

SCHEMA = output_schema("numbers", 1, [pa.field("value", pa.float64(), metadata={"unit": "px"})], {"made.by": "a test"})
HOUR_US = 3_600_000_000
KINDS: list[tuple[Any, Any]] = [(ParquetSink, ParquetOptions), (ArrowSink, ArrowOptions), (JsonlSink, JsonlOptions)]


def batch(start: int, count: int, *, streams: int = 3, words: tuple[str, ...] = ("ok", "late")) -> pa.RecordBatch:
    """Rows of several streams, an hour apart; each batch brings a dictionary of its own."""
    rows = range(start, start + count)
    columns = [
        pa.array([f"cam {n % streams}" for n in rows]),
        pa.array(rows, pa.int64()),
        pa.array([n * HOUR_US for n in rows]).cast(TIME_TYPE),
        pa.array([n / 7 for n in rows]),
        pa.array([words[n % len(words)] for n in rows]).dictionary_encode().cast(SCHEMA.field("status").type),
        pa.array([None if n % 4 else f"row {n}" for n in rows], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def opened(kind: Any, options: Any, schema: pa.Schema = SCHEMA, **more: Any) -> FileSink:
    sink: FileSink = kind(options(**more))
    sink.open({"node": schema}, attempt=1, shard=0)
    return sink


def written(kind: Any, options: Any, path: Path, *batches: pa.RecordBatch, **more: Any) -> list[Path]:
    """Write one epoch and commit it."""
    sink = opened(kind, options, batches[0].schema, path=path, **more)
    for rows in batches:
        sink.write("node", rows)
    sink.commit(0, sink.prepare(0))
    sink.close()
    return committed_files(path)


def plain(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda row: row["sequence"])


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_rows_come_back_as_they_were_written(kind: Any, options: Any, tmp_path: Path) -> None:
    batches = [batch(0, 30), batch(30, 1), batch(31, 50, words=("ok", "lost", "late"))]
    written(kind, options, tmp_path, *batches)
    table = read_committed(tmp_path, schema=SCHEMA)
    assert plain(table) == pa.Table.from_batches(batches).to_pylist()


@pytest.mark.parametrize(("kind", "options"), KINDS[:2])
def test_names_units_and_versions_of_a_schema_are_kept(kind: Any, options: Any, tmp_path: Path) -> None:
    written(kind, options, tmp_path, batch(0, 30))
    table = read_committed(tmp_path)
    assert table.schema.metadata == SCHEMA.metadata
    assert table.schema.field("value").metadata[b"unit"] == b"px"
    assert table.schema.field("event_time").type == TIME_TYPE


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_order_within_a_stream_is_kept(kind: Any, options: Any, tmp_path: Path) -> None:
    sink = opened(kind, options, path=tmp_path)
    for epoch in range(3):
        sink.write("node", batch(epoch * 20, 13))
        sink.write("node", batch(epoch * 20 + 13, 7))
        sink.commit(epoch, sink.prepare(epoch))
    table = read_committed(tmp_path)
    for stream in ("cam 0", "cam 1", "cam 2"):
        numbers = [row["sequence"] for row in table.to_pylist() if row["stream_id"] == stream]
        assert len(numbers) == 20
        assert numbers == sorted(numbers)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_schema_that_changes_on_the_way_begins_a_new_file(kind: Any, options: Any, tmp_path: Path) -> None:
    more = batch(10, 10).append_column("extra", pa.array(range(10), pa.int64()))
    written(kind, options, tmp_path, batch(0, 10), more, batch(20, 10))
    table = read_committed(tmp_path)
    assert sorted(table["sequence"].to_pylist()) == list(range(30))
    assert table["extra"].null_count == 20
    if kind is not JsonlSink:
        schemas = [pq.read_schema(f) if kind is ParquetSink else pa.ipc.open_file(f).schema for f in committed_files(tmp_path)]
        assert [("extra" in schema.names) for schema in schemas].count(True) == 1


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_more_words_than_one_dictionary_can_number_are_kept(kind: Any, options: Any, tmp_path: Path) -> None:
    batches = [batch(n * 50, 50, streams=1, words=tuple(f"{n}.{i}" for i in range(50))) for n in range(6)]
    written(kind, options, tmp_path, *batches)
    table = read_committed(tmp_path)
    words = dict(zip(table["sequence"].to_pylist(), table["status"].to_pylist(), strict=True))
    assert words == {n: f"{n // 50}.{n % 50}" for n in range(300)}


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_columns_are_chosen_renamed_and_left_out(kind: Any, options: Any, tmp_path: Path) -> None:
    written(kind, options, tmp_path / "a", batch(0, 3), columns=["sequence", "stream_id"])
    assert read_committed(tmp_path / "a").column_names == ["sequence", "stream_id"]
    written(kind, options, tmp_path / "b", batch(0, 3), columns={"stream_id": "k", "value": "m"})
    assert read_committed(tmp_path / "b").to_pylist()[0] == {"k": "cam 0", "m": 0.0}
    written(kind, options, tmp_path / "c", batch(0, 3), exclude=["value", "error"])
    assert read_committed(tmp_path / "c").column_names == ["stream_id", "sequence", "event_time", "status"]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_wrong_columns_are_refused_before_anything_is_written(kind: Any, options: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'valeu' \(did you mean 'value'\?\)"):
        opened(kind, options, path=tmp_path / "out", columns=["valeu"])
    with pytest.raises(ConfigError, match="'exclude' names 'image'"):
        opened(kind, options, path=tmp_path / "out", exclude=["image"])
    with pytest.raises(ConfigError, match="both given"):
        options(path=tmp_path, columns=["value"], exclude=["error"])
    with pytest.raises(ConfigError, match="name 'a' to more than one"):
        options(path=tmp_path, columns={"value": "a", "error": "a"})
    with pytest.raises(ConfigError, match="empty"):
        options(path=tmp_path, columns=[])
    with pytest.raises(ConfigError, match=r"takes one input, not \['a', 'b'\]"):
        kind(options(path=tmp_path / "out")).open({"a": SCHEMA, "b": SCHEMA}, attempt=1, shard=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_chosen_column_that_goes_away_is_an_error(kind: Any, options: Any, tmp_path: Path) -> None:
    sink = opened(kind, options, path=tmp_path, columns=["stream_id", "value"])
    with pytest.raises(SchemaError, match="'value' is no longer in the input"):
        sink.write("node", batch(0, 3).drop_columns(["value"]))
    sink.close()


# -- Parquet


def test_arrow_and_duckdb_read_a_partitioned_dataset_and_see_no_staged_file(tmp_path: Path) -> None:
    sink = opened(ParquetSink, ParquetOptions, path=tmp_path, partition_by=["stream", "date"])
    sink.write("node", batch(0, 60))
    sink.commit(0, sink.prepare(0))
    sink.write("node", batch(60, 30))
    sink.prepare(1)  # staged, not committed
    sink.write("node", batch(90, 30))
    folders = {str(path.parent.relative_to(tmp_path)) for path in committed_files(tmp_path)}
    days = ("1970-01-01", "1970-01-02", "1970-01-03")
    assert folders == {f"stream=cam%20{stream}/date={day}" for stream in range(3) for day in days}
    table = ds.dataset(tmp_path, format="parquet", partitioning="hive").to_table()
    assert plain(table.select(SCHEMA.names)) == batch(0, 60).to_pylist()
    assert table["stream"].to_pylist() == table["stream_id"].to_pylist()
    everything = f"read_parquet('{tmp_path}/**/*.parquet', hive_partitioning = true)"
    with duckdb.connect() as connection:
        found = connection.sql(
            f"select stream, date, count(*), sum(value) from {everything} group by all order by all"
        ).fetchall()
        assert len(found) == 9
        assert found[0] == ("cam 0", datetime.date(1970, 1, 1), 8, pytest.approx(sum(n / 7 for n in range(0, 24, 3))))
        assert connection.sql(f"select count(*) from {everything} where date = '1970-01-02'").fetchall() == [(24,)]


def test_the_default_partition_is_the_utc_day(tmp_path: Path) -> None:
    times = [-1, 0, 86_399_999_999, 86_400_000_000]
    rows = batch(0, 4).set_column(2, SCHEMA.field(2), pa.array(times).cast(TIME_TYPE))
    files = written(ParquetSink, ParquetOptions, tmp_path, rows)
    counts = {file.parent.name: pq.read_metadata(file).num_rows for file in files}
    assert counts == {"date=1969-12-31": 1, "date=1970-01-01": 2, "date=1970-01-02": 1}


def test_without_partitions_the_files_lie_in_the_folder_itself(tmp_path: Path) -> None:
    (file,) = written(ParquetSink, ParquetOptions, tmp_path, batch(0, 60), partition_by=[])
    assert file == tmp_path / "part-000000-000-0000.parquet"


def test_many_partitions_are_written_with_few_open_files_and_bounded_memory(tmp_path: Path) -> None:
    limit = 1 << 16
    sink = opened(ParquetSink, ParquetOptions, path=tmp_path, partition_by=["stream"], max_open_files=2, row_group_bytes=limit)
    assert isinstance(sink, ParquetSink)
    for start in range(0, 8_000, 500):
        sink.write("node", batch(start, 500, streams=25))
        assert sum(file.waiting.bytes for file in sink._files.values()) <= limit
        assert sum(file.staged is not None for file in sink._files.values()) <= 2
    sink.commit(0, sink.prepare(0))
    assert read_committed(tmp_path).num_rows == 8_000
    assert len(committed_files(tmp_path)) >= 25


def test_small_batches_share_a_row_group_and_large_ones_are_cut_off(tmp_path: Path) -> None:
    batches = [batch(start, 10) for start in range(0, 250, 10)]
    (file,) = written(ParquetSink, ParquetOptions, tmp_path, *batches, partition_by=[], row_group_rows=100)
    groups = pq.read_metadata(file)
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [100, 100, 50]
    assert groups.row_group(0).column(0).compression == "ZSTD"
    assert groups.row_group(0).column(0).has_dictionary_page
    assert not groups.row_group(0).column(3).has_dictionary_page
    assert groups.row_group(0).column(1).statistics.max == 99


def test_a_batch_larger_than_a_row_group_is_cut_into_several(tmp_path: Path) -> None:
    by_rows = written(ParquetSink, ParquetOptions, tmp_path / "a", batch(0, 950), partition_by=[], row_group_rows=100)
    by_size = written(ParquetSink, ParquetOptions, tmp_path / "b", batch(0, 9_000), partition_by=[], row_group_bytes=1 << 16)
    groups = pq.read_metadata(by_rows[0])
    assert max(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) < 200
    assert pq.read_metadata(by_size[0]).num_row_groups >= 4


def test_a_type_that_parquet_cannot_store_is_refused_with_the_name_of_its_column(tmp_path: Path) -> None:
    schema = output_schema("x", 1, [pa.field("odd", pa.struct([]))])
    with pytest.raises(ConfigError, match=r"cannot store column 'odd'.*exclude: \[odd\]"):
        ParquetSink(ParquetOptions(path=tmp_path / "out")).examine({"node": schema})
    opened(ParquetSink, ParquetOptions, schema, path=tmp_path / "out", exclude=["odd"]).close()


def test_a_column_with_the_name_of_a_partition_folder_is_refused(tmp_path: Path) -> None:
    schema = output_schema("x", 1, [pa.field("date", pa.string())])
    with pytest.raises(ConfigError, match="also a folder of the dataset"):
        opened(ParquetSink, ParquetOptions, schema, path=tmp_path)
    opened(ParquetSink, ParquetOptions, schema, path=tmp_path, exclude=["date"]).close()


@pytest.mark.parametrize("keys", [["day"], ["date", "date"]])
def test_unknown_partition_keys_are_refused(keys: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allowed are stream and date"):
        ParquetOptions(path=tmp_path, partition_by=keys)


# -- Arrow IPC


def test_arrow_files_are_read_as_a_dataset(tmp_path: Path) -> None:
    written(ArrowSink, ArrowOptions, tmp_path, *(batch(n, 10, words=(f"word {n}", "ok")) for n in range(0, 100, 10)))
    table = ds.dataset(tmp_path, format="ipc").to_table()
    assert table["sequence"].to_pylist() == list(range(100))
    assert table["status"].to_pylist()[::10] == [f"word {n}" for n in range(0, 100, 10)]


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_every_compression_reads_back(compression: str, tmp_path: Path) -> None:
    written(ArrowSink, ArrowOptions, tmp_path, batch(0, 10), compression=compression)
    assert read_committed(tmp_path).num_rows == 10


# -- JSON lines


def test_a_line_is_exactly_the_chosen_columns_in_their_order(tmp_path: Path) -> None:
    schema = pa.schema([("stream_id", pa.string()), ("count", pa.int64()), ("mean", pa.float64())])
    rows = pa.record_batch([["k042", "k001"], [1, 2], [0.844, 3.0]], schema=schema)
    names = {"stream_id": "k", "count": "n", "mean": "m"}
    (file,) = written(JsonlSink, JsonlOptions, tmp_path, rows, columns=names)
    assert file.read_text() == '{"k":"k042","n":1,"m":0.844}\n{"k":"k001","n":2,"m":3.0}\n'


def test_long_batches_are_cut_and_short_ones_joined_without_losing_a_line(tmp_path: Path) -> None:
    schema = pa.schema([("stream_id", pa.string()), ("n", pa.int64())])
    count = 100_000
    long = pa.record_batch([["s"] * count, range(count)], schema=schema)
    short = [pa.record_batch([["s"], [count + n]], schema=schema) for n in range(300)]
    (file,) = written(JsonlSink, JsonlOptions, tmp_path, long, *short)
    assert [json.loads(line)["n"] for line in file.read_text().splitlines()] == list(range(count + 300))


# -- reading back


def test_json_lines_are_read_back_with_the_types_of_a_schema(tmp_path: Path) -> None:
    columns: dict[str, tuple[pa.DataType, list[Any]]] = {
        "stream_id": (pa.dictionary(pa.int8(), pa.string()), ["a", None, "a"]),
        "raw": (pa.binary(), [b"\x00\xff", None, b""]),
        "key": (pa.binary(2), [b"ab", b"cd", None]),
        "day": (pa.date32(), [datetime.date(2024, 2, 29), None, None]),
        "hour": (pa.time32("s"), [datetime.time(1, 2, 3), None, None]),
        "box": (pa.list_(pa.float32(), 2), [[1.0, 2.5], None, [0.0, -1.0]]),
        "half": (pa.float16(), [0.5, None, 2.0]),
        "small": (pa.int8(), [1, None, -128]),
    }
    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()])
    rows = pa.RecordBatch.from_arrays([pa.array(values, kind) for kind, values in columns.values()], schema=schema)
    written(JsonlSink, JsonlOptions, tmp_path, rows)
    table = read_committed(tmp_path, schema=schema)
    assert table.schema == schema
    assert table.to_pylist() == rows.to_pylist()


def test_reading_a_folder_without_rows_needs_a_schema(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no committed rows"):
        read_committed(tmp_path)
    assert read_committed(tmp_path, schema=SCHEMA).schema == SCHEMA
    with pytest.raises(SourceError, match="not a folder"):
        read_committed(tmp_path / "missing", schema=SCHEMA)


def test_reading_two_sinks_as_one_is_refused(tmp_path: Path) -> None:
    written(JsonlSink, JsonlOptions, tmp_path / "a", batch(0, 3))
    written(ArrowSink, ArrowOptions, tmp_path / "b", batch(0, 3))
    with pytest.raises(SourceError, match=r"2 formats \(.arrow, .jsonl\)"):
        read_committed(tmp_path)


def test_reading_a_damaged_file_names_it(tmp_path: Path) -> None:
    for name in ("parquet", "arrow", "jsonl"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"part-000000-000-0000.{name}").write_text('{"a": [')
        with pytest.raises(SourceError, match=f"part-000000-000-0000.{name} cannot be read"):
            read_committed(folder)


def test_rows_that_do_not_fit_the_schema_are_an_error(tmp_path: Path) -> None:
    written(ArrowSink, ArrowOptions, tmp_path, batch(0, 3))
    with pytest.raises(SourceError, match="do not fit the given schema"):
        read_committed(tmp_path, schema=pa.schema([("stream_id", pa.float64())]))
