"""Messages to rows and back, without a broker."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.errors import ConfigError, SinkError
from connectors.kafka.client import ConnectionOptions
from connectors.kafka.decode import FrameDecoder, Messages, TableDecoder
from connectors.kafka.encode import make_encoder
from connectors.kafka.messages import content_type, encoding_of
from connectors.records import FRAME, PCM, TIME_TYPE, key_schema
from connectors.sinks.tables import Columns

pytestmark = pytest.mark.filterwarnings("ignore:(read|open)_text is deprecated")  # kafka-python, when it is imported

SCHEMA = key_schema("point", 1, [pa.field("x", pa.float64()), pa.field("text", pa.string())])
DECLARED = {"stream_id": "string", "sequence": "int64", "event_time": "string", "x": "double", "text": "string"}


def messages(values: list[bytes], **more: Any) -> Messages:
    count = len(values)
    given: dict[str, Any] = {
        "offsets": range(100, 100 + count),
        "timestamps_ms": [1000] * count,
        "keys": [b"k"] * count,
        "headers": [[]] * count,
        **more,
    }
    return Messages("t/0", values=values, **given)


def table(format: str, columns: dict[str, str], **more: Any) -> TableDecoder:
    keys: dict[str, Any] = {"stream_id": None, "event_time": None, "event_time_unit": "auto", "sequence": None, **more}
    return TableDecoder(format, columns, topic="t", **keys)


def rows(streams: list[str], text: str = "t") -> pa.RecordBatch:
    count = len(streams)
    columns = [
        pa.array(streams),
        pa.array(range(count), pa.int64()),
        pa.array([1_700_000_000_000_000 + n for n in range(count)]).cast(TIME_TYPE),
        pa.array([n / 3 for n in range(count)]),
        pa.repeat(text, count),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def encode(format: str, batch: pa.RecordBatch, *, partitions: int = 3, max_bytes: int = 1 << 20) -> list[dict[str, Any]]:
    encoder = make_encoder(format, Columns(None, [], batch.schema), batch.schema, partitions=partitions, max_bytes=max_bytes)
    return [message for block in encoder.encode(batch) for message in block.to_pylist()]


@pytest.mark.parametrize("format", ["json", "arrow"])
def test_rows_come_back_as_they_were(format: str) -> None:
    batch = rows(["a", "b", "ü", "a", 'quote"\n'] * 7, text='line\n"ü"')
    sent = encode(format, batch)
    kind = {"event_time": "timestamp[us]"} if format == "arrow" else {}
    decoded, ends = table(format, {**DECLARED, **kind}).decode(messages([m["value"] for m in sent]), 0)
    assert ends[-1] == batch.num_rows
    back = sorted(decoded.drop_columns(["error"]).to_pylist(), key=lambda row: row["sequence"])
    assert back == batch.to_pylist()
    assert decoded.column("error").null_count == batch.num_rows


@pytest.mark.parametrize("format", ["json", "arrow"])
def test_sound_comes_back_as_it_was(format: str) -> None:
    parts = [np.arange(-3, 5), [32767, -32768], None]
    columns = [
        pa.array(["mic"] * 3),
        pa.array([0, 4, 5], pa.int64()),
        pa.array([0, 500, 625], pa.int64()).cast(TIME_TYPE),
        pa.array([8000, 8000, None], pa.int32()),
        pa.array([2, 2, None], pa.int8()),
        pa.array(parts, pa.list_(pa.int16())),
        pa.array([None, None, "cut"]),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=PCM)
    declared = {each.name: str(each.type) for each in PCM if each.name not in ("event_time", "samples")}
    declared |= {"event_time": "timestamp[us, UTC]", "samples": "list<int16>"}
    decoder = table(format, declared)
    decoded, _ = decoder.decode(messages([m["value"] for m in encode(format, batch)]), 0)
    assert decoded.select(PCM.names).to_pylist() == batch.to_pylist()
    assert decoder.schema.field("samples").type == PCM.field("samples").type


def test_the_rows_of_a_stream_stay_in_one_partition_in_order() -> None:
    streams = [f"s{n % 11}" for n in range(200)]
    place: dict[str, set[int]] = {}
    for message in encode("arrow", rows(streams), partitions=4):
        content = pa.ipc.open_stream(message["value"]).read_all()
        assert content.column("sequence").to_pylist() == sorted(content.column("sequence").to_pylist())
        for stream in content.column("stream_id").unique().to_pylist():
            place.setdefault(stream, set()).add(message["partition"])
    assert len(place) == 11
    assert all(len(partitions) == 1 for partitions in place.values())


def test_arrow_messages_are_cut_to_the_size_that_brokers_take() -> None:
    sent = encode("arrow", rows(["a"] * 100, text="y" * 200), partitions=1, max_bytes=8000)
    assert max(len(message["value"]) for message in sent) <= 8000
    assert sum(pa.ipc.open_stream(message["value"]).read_all().num_rows for message in sent) == 100
    with pytest.raises(SinkError, match=r"stream 'a', sequence 0\) is larger than"):
        encode("arrow", rows(["a"], text="y" * 9000), max_bytes=8000)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=30), st.integers().map(lambda n: b'{"x": %d}' % n)), min_size=1, max_size=12))
@pytest.mark.parametrize("format", ["json", "arrow"])
def test_no_content_of_a_message_raises_or_moves_another_row(format: str, values: list[bytes]) -> None:
    decoded, ends = table(format, {"x": "int64"}).decode(messages(values), 0)
    assert ends.tolist() == list(range(1, len(values) + 1))
    for value, row in zip(values, decoded.to_pylist(), strict=True):
        expected = parse(value) if format == "json" else None
        assert row["x"] == expected
        if format == "arrow":
            assert row["error"] is not None


def parse(value: bytes) -> int | None:
    try:
        found = json.loads(value).get("x")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, int) and -(1 << 63) <= found < 1 << 63 else None


def test_json_of_white_space_and_line_ends_is_one_row() -> None:
    values = [b'{"x": 1}', b' {\n "x":\r\n 2 }\n', b'{"x": 3}{"x": 4}', b'{"x": 5}\n{"x": 6}', b"[]", b"null", b'{"y": 7}']
    decoded, _ = table("json", {"x": "int64"}).decode(messages(values), 0)
    assert decoded.column("x").to_pylist() == [1, 2, None, None, None, None, None]
    assert decoded.column("error").is_valid().to_pylist() == [False, False, True, True, True, True, False]


def test_a_bad_time_takes_that_of_the_row_before() -> None:
    values = [b'{"t": null}', b'{"t": 5}', b'{"t": "x"}']
    decoded, _ = table("json", {"t": "int64"}, event_time="t", event_time_unit="s").decode(messages(values), 3_000_000)
    times = decoded.column("event_time").view(pa.int64()).to_pylist()
    assert times == [3_000_000, 5_000_000, 5_000_000]
    assert decoded.column("error").is_valid().to_pylist() == [True, False, True]


def test_arrow_rows_without_numbers_get_increasing_ones_by_offset() -> None:
    sent = [pa_stream([1, 2, 3]), pa_stream([4])]
    decoded, ends = table("arrow", {"x": "int64"}).decode(messages(sent), 0)
    assert ends.tolist() == [3, 4]
    assert decoded.column("sequence").to_pylist() == [100 << 20, (100 << 20) + 1, (100 << 20) + 2, 101 << 20]


def pa_stream(values: list[int]) -> bytes:
    content = pa.table({"x": values})
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, content.schema) as writer:
        writer.write_table(content)
    return bytes(buffer.getvalue())


def test_frames_of_every_encoding_come_back() -> None:
    raw = np.arange(2 * 3 * 3, dtype=np.uint8).tobytes()
    frames = pa.RecordBatch.from_arrays(
        [
            pa.array(["cam", "cam"]),
            pa.array([4, 5]),
            pa.array([1_700_000_000_000_001, 1_700_000_000_000_002]).cast(TIME_TYPE),
            pa.array([raw, None], pa.binary()),
            pa.array(["raw_bgr8", None]),
            pa.array([2, None], pa.int32()),
            pa.array([3, None], pa.int32()),
            pa.array([None, "no such file"]),
        ],
        schema=FRAME,
    )
    sent = encode("frame", frames)
    headers = [[(header["name"], header["value"]) for header in message["headers"]] for message in sent]
    back, _ = FrameDecoder().decode(messages([m["value"] for m in sent], keys=[m["key"] for m in sent], headers=headers), 0)
    good, bad = back.to_pylist()
    assert {name: good[name] for name in FRAME.names} == frames.to_pylist()[0]
    assert good["time_source"] is None
    assert (bad["sequence"], bad["image"]) == (5, None)
    assert bad["error"] is not None


def test_media_types_name_their_encoding() -> None:
    for encoding in ("jpeg", "png", "raw_bgr8", "raw_f32_rgb"):
        assert encoding_of(content_type(encoding)) == encoding
    assert encoding_of(b"text/plain") is None


def test_a_frame_sink_needs_frames() -> None:
    with pytest.raises(ConfigError, match="column 'image' is missing"):
        encode("frame", rows(["a"]))


def test_connection_options_are_checked() -> None:
    options = ConnectionOptions(bootstrap_servers="a:1, b:2")
    assert options.servers == ["a:1", "b:2"]
    with pytest.raises(ConfigError, match="bootstrap_servers: is empty"):
        ConnectionOptions(bootstrap_servers=" ,")
    with pytest.raises(ConfigError, match="ssl_certfile: must come together with ssl_keyfile"):
        ConnectionOptions(bootstrap_servers="a:1", security_protocol="SSL", ssl_certfile="c.pem")  # type: ignore[arg-type]


STAMPS = st.sampled_from([-1, -2, -(2**63), 2**63 - 1, 253_402_300_800_000]) | st.integers(0, 253_402_300_799_999)


@settings(max_examples=60, deadline=None)
@given(st.lists(STAMPS, min_size=1, max_size=8), st.sampled_from(["json", "arrow", "frame"]))
def test_a_message_without_a_timestamp_takes_the_time_of_the_row_before_and_says_so(stamps: list[int], format: str) -> None:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, pa.schema([("x", pa.int64())])) as writer:
        writer.write_batch(pa.record_batch({"x": pa.array([1, 2])}))
    value = {"json": b'{"x": 1}', "arrow": stream.getvalue().to_pybytes(), "frame": b"12"}[format]
    raw = [("ct", b"application/vnd.streambank.raw_gray8"), ("w", b"2"), ("h", b"1")]
    given_messages = messages([value] * len(stamps), timestamps_ms=stamps, headers=[raw] * len(stamps))
    decoder = FrameDecoder(3600) if format == "frame" else table(format, {"x": "int64"}, max_ahead_s=3600)
    decoded, _ = decoder.decode(given_messages, 7_000)
    before, expected = 7_000, []
    for stamp in stamps:
        known = 0 <= stamp < 253_402_300_800_000
        before = stamp * 1000 if known else before
        expected += [(before, known)] * (2 if format == "arrow" else 1)
    rows = list(
        zip(decoded.column("event_time").cast(pa.int64()).to_pylist(), decoded.column("error").to_pylist(), strict=True)
    )
    assert [time for time, _ in rows] == [time for time, _ in expected]
    assert [error is None or "no timestamp" not in error for _, error in rows] == [known for _, known in expected]
    if format == "frame":
        assert decoded.column("time_source").to_pylist() == ["broker" if known else "none" for _, known in expected]


def test_a_capture_time_of_minus_one_counts_as_missing() -> None:
    raw = [("ct", b"application/vnd.streambank.raw_gray8"), ("w", b"2"), ("h", b"1"), ("ts_ns", b"-1")]
    decoded, _ = FrameDecoder(3600).decode(messages([b"12"], timestamps_ms=[5], headers=[raw]), 0)
    assert decoded.column("event_time").cast(pa.int64()).to_pylist() == [5_000]
    assert decoded.column("time_source").to_pylist() == ["broker"]


def test_a_time_that_rows_tell_themselves_needs_no_timestamp() -> None:
    told = table("json", {"x": "int64", "event_time": "string"}, max_ahead_s=3600)
    decoded, _ = told.decode(messages([b'{"x": 1, "event_time": "2026-01-01T00:00:00Z"}'], timestamps_ms=[-1]), 0)
    assert decoded.column("error").null_count == 1
    assert decoded.column("event_time").cast(pa.int64()).to_pylist() == [1_767_225_600_000_000]
