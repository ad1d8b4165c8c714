"""The folder of requests: taken in order, read again exactly after a crash, deleted when no epoch needs them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from connectors.errors import ConfigError, SourceError
from connectors.sources.columns import parse_type, type_name
from connectors.sources.requests import RequestsOptions, RequestsReader, RequestsSource, put_requests

COLUMNS = {"question_id": "string", "question": "string", "at": "timestamp[us, UTC]"}
Open = Callable[..., tuple[RequestsSource, RequestsReader]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "questions"


@pytest.fixture
def opened(folder: Path) -> Iterator[Open]:
    readers: list[RequestsReader] = []

    def make(position: dict[str, Any] | None = None) -> tuple[RequestsSource, RequestsReader]:
        for reader in readers:  # a run that goes on has ended before
            reader.close()
        source = RequestsSource(RequestsOptions(path=folder, columns=COLUMNS))
        readers.append(source.open("requests", position))
        return source, readers[-1]

    yield make
    for reader in readers:
        reader.close()


def ask(folder: Path, *questions: str, stream: str = "cam") -> Path:
    return put_requests(folder, [{"stream_id": stream, "question": question} for question in questions])


def written(path: Path, after_s: float) -> None:
    """Let a file look as if it had been written this long after now."""
    then = time.time() + after_s
    os.utime(path, (then, then))


def read(reader: RequestsReader, rows: int = 100) -> list[dict[str, Any]]:
    """Read once, as soon as the folder may be looked into again."""
    time.sleep(reader.next_due() or 0.0)
    batch = reader.read(rows, 1 << 20)
    return [] if batch is None else batch.to_pylist()


def test_a_request_becomes_a_row_with_the_time_of_its_file(folder: Path, opened: Open) -> None:
    source, reader = opened()
    assert read(reader) == []
    before = time.time()
    put_requests(folder, [{"stream_id": "cam3", "question_id": "7", "question": "who?", "at": "2026-01-01T00:00:00Z", "x": 1}])
    [row] = read(reader)
    assert source.schema.names == ["stream_id", "sequence", "event_time", "question_id", "question", "at", "error"]
    assert (row["stream_id"], row["sequence"], row["question_id"], row["question"], row["error"]) == (
        "cam3",
        0,
        "7",
        "who?",
        None,
    )
    assert row["at"].isoformat() == "2026-01-01T00:00:00+00:00"
    assert before - 1 <= row["event_time"].timestamp() <= time.time() + 1  # times of files are a little coarse
    assert not reader.exhausted and not source.bounded


def test_requests_come_in_the_order_of_their_files_and_are_counted(folder: Path, opened: Open) -> None:
    ask(folder, "a", "b")
    ask(folder, "c", stream="other")
    _, reader = opened()
    assert [(row["question"], row["sequence"]) for row in read(reader)] == [("a", 0), ("b", 1), ("c", 2)]
    ask(folder, "d")
    assert [(row["question"], row["sequence"]) for row in read(reader)] == [("d", 3)]


def test_a_reader_opened_at_any_position_delivers_the_same_rows_again(folder: Path, opened: Open) -> None:
    for name in "abcd":
        ask(folder, *(f"{name}{n}" for n in range(3)))
    _, reader = opened()
    positions, whole = [(0, reader.position())], []
    while rows := read(reader, 2):
        whole += rows
        positions.append((len(whole), reader.position()))
    assert [row["sequence"] for row in whole] == list(range(12))
    for done, position in positions:
        _, reader = opened(json.loads(json.dumps(position)))
        assert read(reader) == whole[done:], done


def test_what_was_taken_and_not_committed_is_read_again_before_what_came_later(folder: Path, opened: Open) -> None:
    ask(folder, "first")
    _, reader = opened()
    committed = reader.position()
    assert [row["question"] for row in read(reader)] == ["first"]
    ask(folder, "later")
    _, reader = opened(committed)  # killed
    rows = read(reader)
    assert [(row["question"], row["sequence"]) for row in rows] == [("first", 0), ("later", 1)]


def test_files_go_when_two_later_epochs_have_been_committed(folder: Path, opened: Open) -> None:
    source, reader = opened()
    kept = []
    for epoch in range(8):
        ask(folder, f"q{epoch}")
        assert len(read(reader)) == 1
        assert source.discover() == []
        kept.append(len(list((folder / "taken").glob("*.jsonl"))))
    assert kept == [1, 2, 2, 2, 2, 2, 2, 2]
    assert list(folder.glob("*.jsonl")) == []


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.heavy
def test_thousands_of_files_that_have_waited_are_read_and_deleted_in_order(count: int, folder: Path, opened: Open) -> None:
    folder.mkdir()
    for n in range(count):
        (folder / f"{n:05d}.json").write_text(f'{{"stream_id": "s", "question": "{n}"}}\n')
    source, reader = opened()
    started, seen = time.process_time(), []
    while (batch := reader.read(500, 1 << 20)) is not None:
        seen += batch.column("question").to_pylist()
        source.discover()
        assert len(list((folder / "taken").iterdir())) <= 1001
    assert seen == [str(n) for n in range(count)]
    assert time.process_time() - started < 0.006 * count
    assert len(json.dumps(reader.position())) < 100


def test_a_file_that_is_being_written_waits_for_its_line_feed(folder: Path, opened: Open) -> None:
    _, reader = opened()
    (folder / "by_hand.json").write_text('{"stream_id": "cam", "question": "half')
    written(folder / "by_hand.json", 3600.0)  # it will not count as settled, however slow this test is
    assert read(reader) == []
    (folder / "by_hand.json").write_text('{"stream_id": "cam", "question": "whole"}\n')
    assert [row["question"] for row in read(reader)] == ["whole"]


def test_a_file_without_a_line_feed_counts_when_it_has_not_changed_for_a_second(folder: Path, opened: Open) -> None:
    _, reader = opened()
    (folder / "by_hand.json").write_text('{"stream_id": "cam", "question": "old"}')
    written(folder / "by_hand.json", -2.0)
    assert [row["question"] for row in read(reader)] == ["old"]


def test_bad_lines_and_files_become_rows_with_an_error_and_others_are_read(
    folder: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.sources.requests._MAX_FILE_BYTES", 1000)
    folder.mkdir()
    (folder / "1.json").write_text(
        'nonsense\n{"question": "whose?"}\n\n{"stream_id": "cam", "question": "fine", "at": "soon"}\n'
    )
    (folder / "2.json").write_text("x" * 2000 + "\n")
    (folder / "3.json").write_text("\n")
    (folder / "4.json").write_text('{"stream_id": "cam", "question": "good"}\n')
    (folder / "5.txt").write_text("not for us\n")
    _, reader = opened()
    rows = read(reader)
    errors = [row["error"] for row in rows]
    assert "not a JSON object" in errors[0]
    assert "names no stream" in errors[1]
    assert errors[2] == "column 'at' is no timestamp[us, tz=UTC]: 'soon'"
    assert "2001 bytes is too large; 1000 are allowed" in errors[3]
    assert (errors[4], rows[4]["question"]) == (None, "good")
    assert {row["stream_id"] for row in rows} == {"requests", "cam"}
    assert (folder / "5.txt").exists()


def test_a_taken_file_that_was_deleted_by_hand_is_left_out(
    folder: Path, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    ask(folder, "a", "b")
    ask(folder, "c")
    _, reader = opened()
    assert [row["question"] for row in read(reader, 1)] == ["a"]
    position = reader.position()
    (folder / "taken" / "000000000000.jsonl").unlink()
    _, reader = opened(position)
    assert [row["question"] for row in read(reader)] == ["c"]
    assert "request 0 has been deleted" in caplog.text


def test_a_second_run_is_told_that_the_folder_is_taken(folder: Path, opened: Open) -> None:
    opened()
    other = RequestsSource(RequestsOptions(path=folder, columns=COLUMNS))
    with pytest.raises(SourceError, match=r"another run takes requests from .*; give each pipeline a folder of its own"):
        other.open("requests", None)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = RequestsSource(RequestsOptions(path=tmp_path / "file" / "questions", columns=COLUMNS))
    with pytest.raises(SourceError, match="cannot be written: Not a directory"):
        source.open("requests", None)
    with pytest.raises(SourceError, match=r"cannot put a request into .*: Not a directory"):
        ask(tmp_path / "file" / "questions", "a")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "columns: is empty"),
        ({"sequence": "int64"}, "'sequence' is there in every row"),
        ({"question": "text"}, "'text' is no type"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        RequestsOptions(path=tmp_path, columns=columns)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.int32(), pa.timestamp("us", "UTC"), pa.timestamp("ms"), pa.list_(pa.float64())]
)
def test_the_name_of_a_type_is_read_back(kind: pa.DataType) -> None:
    assert parse_type(type_name(kind)) == kind
