"""The Kafka source against a real broker: every message once and in order, from any position, or a reason why not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from kafka import KafkaProducer, TopicPartition
from kafka_broker import PASSWORD, USER, Broker

from connectors.base import Position
from connectors.errors import ConfigError, SourceError
from connectors.sources.kafka import KafkaReader, KafkaSource, KafkaSourceOptions
from pipelines import Pipeline

Topic = Callable[..., str]
T0_MS = 1_700_000_000_000
NUMBERS = {"x": "int64"}


def source(broker: Broker, topic: str, **more: Any) -> KafkaSource:
    settings: dict[str, Any] = {"until": "latest", **more}
    if settings.get("format") != "frame":
        settings.setdefault("columns", NUMBERS)
    return KafkaSource(KafkaSourceOptions(**{"bootstrap_servers": broker.address, "topic": topic, **settings}))


def send(broker: Broker, topic: str, messages: list[tuple[bytes | None, bytes | None]], **more: Any) -> None:
    """Send ``(key, value)`` messages to partition 0, a millisecond apart."""
    producer = KafkaProducer(bootstrap_servers=broker.address, max_request_size=64 << 20)
    futures = [
        producer.send(
            topic, value, key, partition=more.get("partition", 0), timestamp_ms=T0_MS + n, headers=more.get("headers")
        )
        for n, (key, value) in enumerate(messages)
    ]
    for future in futures:
        future.get(60)
    producer.close()


def numbers(first: int, count: int, key: bytes | None = b"k") -> list[tuple[bytes | None, bytes | None]]:
    return [(key, b'{"x": %d}' % n) for n in range(first, first + count)]


def read(opened: KafkaReader, rows: int = 1000, most: int | None = None) -> list[dict[str, Any]]:
    """Read to the end, or ``most`` rows; a stream that ended stands as ``{"ended": …}``."""
    got: list[dict[str, Any]] = []
    while not opened.exhausted and (most is None or len(got) < most):
        batch = opened.read(rows, 16 << 20)
        got += batch.to_pylist() if batch is not None else []
        got += [{"ended": stream} for stream in opened.ended]
    return got


def read_all(from_source: KafkaSource, position: Position | None = None, split: str | None = None) -> list[dict[str, Any]]:
    opened = from_source.open(split or from_source.splits()[0], position)
    rows = read(opened)
    opened.close()
    return rows


def test_json_rows_carry_key_timestamp_and_offset(broker: Broker, topic: Topic) -> None:
    name = topic()
    send(broker, name, [(b"a", b'{"x": 1, "more": [1]}'), (b"\xff", b'{"x": 2}'), (None, b'{\n "x": 3\n}'), (b"b", b"broken")])
    rows = read_all(source(broker, name))
    assert [row["stream_id"] for row in rows] == ["a", f"{name}/0", f"{name}/0", "b"]
    assert [row["sequence"] for row in rows] == [0, 1, 2, 3]
    assert [row["x"] for row in rows] == [1, 2, 3, None]
    assert [row["event_time"].timestamp() for row in rows] == pytest.approx([T0_MS / 1000 + n / 1000 for n in range(4)])
    assert [row["error"] is None for row in rows] == [True, False, True, False]
    assert "JSON" in rows[3]["error"]


def test_keys_may_come_from_headers_and_fields(broker: Broker, topic: Topic) -> None:
    name = topic()
    send(broker, name, [(b"key", b'{"x": 5, "t": 12.5}')], headers=[("camera", b"cam7"), ("n", b"41")])
    given = {"stream_id": "header:camera", "sequence": "header:n", "event_time": "t", "event_time_unit": "s"}
    (row,) = read_all(source(broker, name, columns={"x": "int64", "t": "double"}, **given))
    assert (row["stream_id"], row["sequence"], row["event_time"].timestamp(), row["x"]) == ("cam7", 41, 12.5, 5)
    assert row["error"] is None


@pytest.mark.parametrize("format", ["json", "arrow"])
def test_a_reader_goes_on_exactly_where_any_position_says(broker: Broker, topic: Topic, format: str) -> None:
    name = topic()
    if format == "json":
        send(broker, name, numbers(0, 40))
    else:
        send(broker, name, [(None, ipc({"x": list(range(n, n + 8))})) for n in range(0, 40, 8)])
    from_source = source(broker, name, format=format)
    (split,) = from_source.splits()
    opened = from_source.open(split, None)
    positions, rows = [opened.position()], []
    while not opened.exhausted:
        batch = opened.read(3, 16 << 20)
        if batch is not None:
            rows += batch.to_pylist()
            positions.append(opened.position())
    opened.close()
    assert [row["x"] for row in rows] == list(range(40))
    assert len({row["sequence"] for row in rows}) == 40
    send(broker, name, numbers(100, 5))  # after the end that the first run settled on
    for position in (*positions[::3], positions[-1]):
        position = json.loads(json.dumps(position))
        again = read_all(source(broker, name, format=format), position, split)
        assert again == rows[len(rows) - len(again) :]
    assert again == []


def ipc(columns: dict[str, Any]) -> bytes:
    table = pa.table(columns)
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return bytes(buffer.getvalue())


def test_arrow_messages_that_are_not_as_declared_do_not_stop_the_stream(broker: Broker, topic: Topic) -> None:
    name = topic()
    good = ipc({"x": [1, 2], "who": ["a", "b"]})
    messages = [
        good,
        good[:40],
        ipc({"who": ["c"]}),
        ipc({"x": ["7", "seven"], "who": ["d", "d"]}),
        b"no arrow",
        ipc({"x": []}),
    ]
    send(broker, name, [(b"k", message) for message in messages])
    rows = read_all(source(broker, name, format="arrow", stream_id="who", columns={"x": "int64", "who": "string"}))
    assert [row["x"] for row in rows] == [1, 2, None, None, 7, None, None, None]
    assert [row["stream_id"] for row in rows] == ["a", "b", f"{name}/0", "c", "d", "d", f"{name}/0", f"{name}/0"]
    assert [row["error"] is None for row in rows] == [True, True, False, True, True, False, False, False]
    assert "seven" in rows[5]["error"]


def jpeg() -> bytes:
    import cv2

    return bytes(cv2.imencode(".jpg", np.zeros((8, 12, 3), np.uint8))[1])


def test_frames_take_time_and_number_from_headers_and_say_where_they_do_not(broker: Broker, topic: Topic) -> None:
    name = topic()
    image = jpeg()
    headers = [("ct", b"image/jpeg"), ("ts_ns", b"1500000000000000000"), ("seq", b"90"), ("w", b"12"), ("h", b"8")]
    send(broker, name, [(b"cam", image)], headers=headers)
    send(broker, name, [(b"cam", image), (b"cam", image[:-20]), (None, b""), (b"cam", b"no image")])
    raw = [("ct", b"application/vnd.streambank.raw_gray8"), ("w", b"3"), ("h", b"2")]
    send(broker, name, [(b"cam", b"123456"), (b"cam", b"12345")], headers=raw)
    rows = read_all(source(broker, name, format="frame"))
    first = rows[0]
    assert (first["stream_id"], first["sequence"], first["event_time"].timestamp()) == ("cam", 90, 1.5e9)
    assert (first["encoding"], first["height"], first["width"], first["time_source"]) == ("jpeg", 8, 12, None)
    assert first["image"] == image
    assert (rows[1]["sequence"], rows[1]["time_source"], rows[1]["event_time"].timestamp()) == (1, "broker", T0_MS / 1000)
    assert ["cut short" in rows[2]["error"], rows[2]["image"], rows[3]["stream_id"]] == [True, None, f"{name}/0"]
    assert [row["error"] is None for row in rows] == [True, True, False, False, False, True, False]
    assert (rows[5]["encoding"], rows[5]["height"], rows[5]["width"], rows[5]["image"]) == ("raw_gray8", 2, 3, b"123456")


@pytest.mark.parametrize("format", ["json", "arrow"])
def test_a_time_from_the_future_gives_way_to_the_timestamp_of_its_message(broker: Broker, topic: Topic, format: str) -> None:
    name = topic()
    ahead_ms = [0, 3_600_000, 3_600_003, -7_200_000, 10**12, 1]
    rows_ms = [T0_MS + ahead for ahead in ahead_ms]
    if format == "json":
        send(broker, name, [(b"k", json.dumps({"x": n, "at": at}).encode()) for n, at in enumerate(rows_ms)])
        stamps_ms = [T0_MS + n for n in range(len(rows_ms))]
    else:
        send(broker, name, [(b"k", ipc({"x": [0, 1, 2], "at": rows_ms[:3]})), (b"k", ipc({"x": [3, 4, 5], "at": rows_ms[3:]}))])
        stamps_ms = [T0_MS] * 3 + [T0_MS + 1] * 3
    columns = {"columns": {"x": "int64", "at": "int64"}, "event_time": "at", "event_time_unit": "ms", "format": format}
    rows = read_all(source(broker, name, **columns))
    future = [at > stamp + 3_600_000 for at, stamp in zip(rows_ms, stamps_ms, strict=True)]
    assert future == [False, False, True, False, True, False]
    wanted = [stamp if late else at for at, stamp, late in zip(rows_ms, stamps_ms, future, strict=True)]
    assert [round(row["event_time"].timestamp() * 1000) for row in rows] == wanted
    assert [row["error"] is not None and "3600 s ahead of the message's timestamp" in row["error"] for row in rows] == future
    free = read_all(source(broker, name, **columns, max_ahead_s=None))
    assert [(round(row["event_time"].timestamp() * 1000), row["error"]) for row in free] == [(at, None) for at in rows_ms]


def test_a_frame_from_the_future_takes_the_timestamp_of_its_message(broker: Broker, topic: Topic) -> None:
    name = topic()
    for ahead_s in (3600, 3601):
        send(broker, name, [(b"cam", jpeg())], headers=[("ts_ns", b"%d" % ((T0_MS + ahead_s * 1000) * 10**6))])
    rows = read_all(source(broker, name, format="frame"))
    assert [(row["event_time"].timestamp() - T0_MS / 1000, row["time_source"]) for row in rows] == [(3600, None), (0, "broker")]
    assert all(row["error"] is None for row in rows)


def test_a_silent_partition_and_clocks_gone_wrong_do_not_stop_event_time(broker: Broker, topic: Topic, tmp_path: Path) -> None:
    """Partition 1 never says anything; the clock of partition 0 jumps years ahead once, and back by a minute."""
    name = topic(2)
    seconds = [0, 1, 2, 3 * 10**8, 4, 5, -60, 6, 7, 20, 40]
    send(broker, name, [(b"k", json.dumps({"v": 1.0, "at": T0_MS + 1000 * at}).encode()) for at in seconds])
    spec = {
        "name": "clocks",
        "state": str(tmp_path / "state"),
        "epoch_s": 0.2,
        "sources": {
            "in": {
                "type": "kafka",
                "bootstrap_servers": broker.address,
                "topic": name,
                "columns": {"v": "double", "at": "int64"},
                "event_time": "at",
                "event_time_unit": "ms",
            }
        },
        "operators": {
            "mean": {
                "type": "pipelines.testing.running_mean:RunningMean",
                "input": "in",
                "align_s": 10,
                "align_wait_s": 0.5,
                "max_wait_ms": 0,
            }
        },
        "sinks": {"out": {"type": "jsonl", "input": "mean", "path": str(tmp_path / "out")}},
    }
    stop = threading.Event()

    def watch(progress: Any) -> None:
        if progress.rows_written >= len(seconds) - 2:  # all but those of the last span, and of the one before
            stop.set()

    guard = threading.Timer(120, stop.set)
    guard.start()
    result = Pipeline.from_dict(spec).run(on_progress=watch, stop=stop)
    guard.cancel()
    rows = result.table("out").to_pylist()
    assert sorted(row["sequence"] for row in rows)[: len(seconds) - 2] == list(range(len(seconds) - 2))
    assert [row["n"] for row in rows] == list(range(1, len(rows) + 1))


def test_an_empty_message_ends_the_stream_of_its_key_at_its_place(broker: Broker, topic: Topic) -> None:
    name = topic()
    send(broker, name, [*numbers(0, 2, b"a"), *numbers(2, 1, b"b"), (b"a", None), (b"b", b""), *numbers(3, 2, b"a")])
    rows = read_all(source(broker, name))
    assert [row.get("x", row.get("ended")) for row in rows] == [0, 1, 2, "a", "b", 3, 4]
    from_source = source(broker, name)
    opened = from_source.open(from_source.splits()[0], None)
    before = read(opened, rows=2, most=2)
    position = opened.position()
    opened.close()
    after = read_all(source(broker, name), position)
    assert [row.get("x", row.get("ended")) for row in before + after] == [0, 1, 2, "a", "b", 3, 4]


def test_a_bounded_run_ends_behind_aborted_transactions_and_never_shows_them(broker: Broker, topic: Topic) -> None:
    name = topic()
    producer = KafkaProducer(bootstrap_servers=broker.address, transactional_id=name)
    producer.init_transactions()
    for outcome in ("commit", "abort", "commit", "abort"):
        producer.begin_transaction()
        for _ in range(5):
            producer.send(name, b'{"x": %d}' % (outcome == "commit"), b"k")
        producer.flush()
        producer.commit_transaction() if outcome == "commit" else producer.abort_transaction()
    producer.close()
    assert [row["x"] for row in read_all(source(broker, name))] == [1] * 10
    assert sorted(row["x"] for row in read_all(source(broker, name, isolation_level="read_uncommitted"))) == [0] * 10 + [1] * 10


def test_a_partition_that_nobody_reads_for_long_neither_piles_up_nor_gets_stuck(broker: Broker, topic: Topic) -> None:
    name = topic(2)
    for partition in (0, 1):
        send(broker, name, numbers(0, 3000), partition=partition)
    from_source = source(broker, name)
    idle, busy = (from_source.open(split, None) for split in from_source.splits())
    assert [row["x"] for row in read(busy, rows=10)] == list(range(3000))
    waiting = from_source._shared._waiting if from_source._shared is not None else {}
    assert max(map(len, waiting.values())) <= 30
    assert [row["x"] for row in read(idle, rows=10)] == list(range(3000))
    for opened in (idle, busy):
        opened.close()


def test_start_may_be_the_latest_message_or_a_time(broker: Broker, topic: Topic) -> None:
    name = topic()
    send(broker, name, numbers(0, 10))
    assert read_all(source(broker, name, start="latest")) == []
    rows = read_all(source(broker, name, start="2023-11-14T22:13:20.007Z"))
    assert [row["x"] for row in rows] == [7, 8, 9]
    assert read_all(source(broker, name, start="2033-01-01T00:00:00Z")) == []


def gap(broker: Broker, topic: str) -> Position:
    """Return the position 3 of a topic whose messages before offset 6 are gone."""
    send(broker, topic, numbers(0, 10))
    with broker.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): 6})
    return {"offset": 3, "row": 0, "time_us": 0, "end": 10}


def test_messages_deleted_before_they_were_read_are_an_error_that_names_both_offsets(broker: Broker, topic: Topic) -> None:
    name = topic()
    position = gap(broker, name)
    with pytest.raises(SourceError, match=rf"{name}/0 begins at offset 6, .* goes on at offset 3: 3 messages .* on_gap"):
        source(broker, name).open(f"{name}/0", position)
    earliest = source(broker, name, on_gap="earliest")
    assert [row["x"] for row in read_all(earliest, position, f"{name}/0")] == [6, 7, 8, 9]
    assert read_all(source(broker, name, on_gap="latest"), position, f"{name}/0") == []


def test_messages_that_on_gap_passes_over_are_counted(broker: Broker, topic: Topic) -> None:
    name = topic()
    opened = source(broker, name, on_gap="earliest").open(f"{name}/0", gap(broker, name))
    assert dict(opened.dropped) == {"messages were deleted from the topic before they were read (on_gap)": 3}
    opened.close()


def test_a_partition_that_was_read_to_its_end_is_read_on_where_more_has_come(broker: Broker, topic: Topic) -> None:
    name = topic()
    send(broker, name, numbers(0, 3))
    opened = source(broker, name).open(f"{name}/0", None)
    assert [row["x"] for row in read(opened)] == [0, 1, 2]
    ended = opened.position()
    opened.close()
    assert source(broker, name).grown(f"{name}/0", ended) is None
    send(broker, name, numbers(3, 2))
    position = source(broker, name).grown(f"{name}/0", ended)
    assert position is not None
    assert [row["x"] for row in read_all(source(broker, name), position, f"{name}/0")] == [3, 4]
    endless = source(broker, name, until="never")
    assert endless.grown(f"{name}/0", ended) == {**ended, "end": None}


def test_messages_deleted_while_a_reader_waits_are_noticed(broker: Broker, topic: Topic) -> None:
    name = topic()
    send(broker, name, numbers(0, 10))
    from_source = source(broker, name, until="never")
    opened = from_source.open(f"{name}/0", {"offset": 3, "row": 0, "time_us": 0, "end": None})
    with broker.admin() as admin:
        admin.delete_records({TopicPartition(name, 0): 6})
    with pytest.raises(SourceError, match=r"begins at offset 6, .* goes on at offset 3"):
        read(opened, most=1)
    opened.close()


def test_a_topic_that_was_made_anew_is_an_error(broker: Broker, topic: Topic) -> None:
    name = topic()
    send(broker, name, numbers(0, 2))
    with pytest.raises(SourceError, match=r"ends at offset 2, before offset 30 .* recreated"):
        source(broker, name, on_gap="earliest").open(f"{name}/0", {"offset": 30, "row": 0, "time_us": 0, "end": None})


def test_a_message_of_20_megabytes_arrives(broker: Broker, topic: Topic) -> None:
    name = topic(max_message_bytes=str(32 << 20))
    text = "y" * (20 << 20)
    send(broker, name, [*numbers(0, 1), (b"k", json.dumps({"x": 1, "text": text}).encode()), *numbers(2, 1)])
    rows = read_all(source(broker, name, columns={"x": "int64", "text": "string"}))
    assert [row["x"] for row in rows] == [0, 1, 2]
    assert rows[1]["text"] == text


def test_encrypted_and_authenticated_connections_read(broker: Broker, topic: Topic) -> None:
    name = topic()
    send(broker, name, numbers(0, 3))
    tls = {"security_protocol": "SSL", "ssl_cafile": broker.ca_file, "bootstrap_servers": broker.tls_address}
    assert len(read_all(source(broker, name, **tls))) == 3
    sasl = {"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": USER, "sasl_password": PASSWORD}
    both = {**tls, **sasl, "security_protocol": "SASL_SSL", "bootstrap_servers": broker.sasl_address}
    assert len(read_all(source(broker, name, **both))) == 3


@pytest.mark.parametrize("wrong", [{"sasl_password": "wrong"}, {"ssl_cafile": None}])
def test_a_connection_that_is_refused_says_what_to_check(broker: Broker, topic: Topic, wrong: dict[str, Any]) -> None:
    given = {"ssl_cafile": broker.ca_file, "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": USER, "sasl_password": PASSWORD}
    options = {**given, "security_protocol": "SASL_SSL", "bootstrap_servers": broker.sasl_address, **wrong}
    refused = source(broker, topic(), **options)
    refused.listing_s = 1.0
    with pytest.raises(SourceError, match="certificate, user and password") as caught:
        refused.splits()
    assert PASSWORD not in str(caught.value)


def test_a_topic_that_is_not_there_is_named_with_the_nearest(broker: Broker, topic: Topic) -> None:
    name = topic()
    with pytest.raises(SourceError, match=rf"topic '{name}x' is not there \(did you mean '{name}'\?\)"):
        source(broker, f"{name}x").splits()


def test_a_partition_that_is_added_is_read_from_its_beginning_at_the_next_epoch(
    broker: Broker, topic: Topic, tmp_path: Path
) -> None:
    name = topic()
    send(broker, name, numbers(0, 3))
    spec = {
        "name": "grow",
        "state": str(tmp_path / "state"),
        "epoch_s": 0.2,
        "sources": {
            "in": {
                "type": "kafka",
                "bootstrap_servers": broker.address,
                "topic": name,
                "columns": NUMBERS,
                "start": "latest",
                "discover_s": 0.2,
            }
        },
        "sinks": {"out": {"type": "jsonl", "input": "in", "path": str(tmp_path / "out")}},
    }
    stop, added = threading.Event(), threading.Event()

    def watch(progress: Any) -> None:
        if not added.is_set():
            added.set()
            broker.add_partitions(name, 2)
            send(broker, name, numbers(10, 4), partition=1)
        elif progress.rows_read >= 4:
            stop.set()

    result = Pipeline.from_dict(spec).run(on_progress=watch, stop=stop)
    assert sorted(row["x"] for row in result.table("out").to_pylist()) == [10, 11, 12, 13]


def test_options_say_what_is_wrong() -> None:
    base = {"bootstrap_servers": "h:9092", "topic": "t"}
    for given, message in (
        ({}, "columns: is missing"),
        ({"bootstrap_servers": "h"}, "'h' is not host:port"),
        ({"format": "frame", "columns": NUMBERS}, "columns: has no effect with format: frame"),
        ({"columns": NUMBERS, "start": "soon"}, "start: must be earliest, latest or an ISO 8601 time"),
        ({"columns": {"x": "int65"}}, "'int65' is no type"),
        ({"columns": NUMBERS, "security_protocol": "SASL_SSL"}, "sasl_mechanism: is missing"),
        ({"columns": NUMBERS, "ssl_cafile": Path("ca.pem")}, "ssl_cafile: has no effect"),
    ):
        with pytest.raises(ConfigError, match=message):
            KafkaSourceOptions(**{**base, **given})
    options = KafkaSourceOptions(**base, columns=NUMBERS, stream_id="xx")
    with pytest.raises(ConfigError, match=r"stream_id: 'xx' is no column \(did you mean 'x'\?\)"):
        _ = KafkaSource(options).schema
