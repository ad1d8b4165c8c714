"""Folders that are being written to: new files are read once they are finished, each once, also over a restart."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from mp4_files import write_video

from connectors.base import Reader, Source
from connectors.errors import ConfigError
from connectors.sources import follow
from connectors.sources.images import ImagesOptions, ImagesSource
from connectors.sources.jsonl import JsonlSource
from connectors.sources.tables import TableOptions
from connectors.sources.video import VideoOptions, VideoSource


@pytest.fixture(autouse=True)
def _look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_LOOK_S", 0.0)


def old(path: Path, seconds: float = 60.0) -> None:
    """Make a file look as if nobody had written to it for a while."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def lines(path: Path, *values: int) -> None:
    path.write_text("".join(json.dumps({"k": f"k{n % 2}", "t": n, "v": n}) + "\n" for n in values))
    old(path)


def image(path: Path, value: int = 0) -> None:
    cv2.imwrite(str(path), np.full((8, 8, 3), value, np.uint8))
    old(path)


def drain(reader: Reader, column: str = "v") -> list[Any]:
    values: list[Any] = []
    while (batch := reader.read(2, 1 << 20)) is not None:
        values += batch.column(column).to_pylist()
    return values


def keyed(folder: Path, **options: Any) -> JsonlSource:
    given = {"path": str(folder), "stream_id": "k", "event_time": "t", "event_time_unit": "s", "follow": True, **options}
    return JsonlSource(TableOptions(**given))


def test_a_table_with_a_stream_column_goes_on_with_new_files_in_order(tmp_path: Path) -> None:
    lines(tmp_path / "a1.jsonl", 1, 2, 3)
    source = keyed(tmp_path)
    assert not source.bounded
    assert source.splits() == ["all"]
    assert source.discover() == []
    reader = source.open("all", None)
    assert drain(reader) == [1, 2, 3]
    assert not reader.exhausted
    assert drain(reader) == []
    lines(tmp_path / "a10.jsonl", 6, 7)
    lines(tmp_path / "a2.jsonl", 4, 5)
    assert drain(reader) == [4, 5, 6, 7]
    assert reader.unread == {}
    lines(tmp_path / "a3.jsonl", 99)  # sorts before what has been read
    assert drain(reader) == []
    assert reader.unread == {
        "a3.jsonl": "it came after 'a10.jsonl' had been read, and its name sorts before that; name files by time"
    }


def test_a_file_that_comes_too_late_while_nobody_reads_is_named_by_the_next_run(tmp_path: Path) -> None:
    lines(tmp_path / "a1.jsonl", 1)
    lines(tmp_path / "a5.jsonl", 5)
    reader = keyed(tmp_path).open("all", None)
    assert drain(reader) == [1, 5]
    position = json.loads(json.dumps(reader.position()))
    (tmp_path / "a2.jsonl").write_text((tmp_path / "a1.jsonl").read_text())
    old(tmp_path / "a2.jsonl", 30.0)
    lines(tmp_path / "a6.jsonl", 6)
    again = keyed(tmp_path).open("all", position)
    assert drain(again) == [6]
    assert list(again.unread) == ["a2.jsonl"]


def test_files_of_several_folders_have_names_of_their_own(tmp_path: Path) -> None:
    for number, name in enumerate("xy"):
        (tmp_path / name).mkdir()
        lines(tmp_path / name / "a1.jsonl", number)
    source = keyed(tmp_path, path=[str(tmp_path / "x"), str(tmp_path / "y")])
    reader = source.open("all", None)
    assert drain(reader) == [0, 1]
    lines(tmp_path / "y" / "a2.jsonl", 2)
    position = json.loads(json.dumps(reader.position()))
    assert drain(reader) == [2]
    assert drain(source.open("all", position)) == [2]


def test_a_file_is_read_when_nobody_writes_it_any_more(tmp_path: Path) -> None:
    lines(tmp_path / "a1.jsonl", 1)
    reader = keyed(tmp_path, settle_s=30.0).open("all", None)
    assert drain(reader) == [1]
    lines(tmp_path / "a2.jsonl", 2)
    old(tmp_path / "a2.jsonl", -3600.0)  # being written, for as long as this test may take
    assert drain(reader) == []
    old(tmp_path / "a2.jsonl")
    assert drain(reader) == [2]


@pytest.mark.parametrize("rows", range(8))
def test_a_followed_table_resumes_at_any_row_and_forgets_files_that_it_has_read(rows: int, tmp_path: Path) -> None:
    for n in range(3):
        lines(tmp_path / f"a{n}.jsonl", 2 * n, 2 * n + 1)
    reader = keyed(tmp_path).open("all", None)
    first: list[int] = []
    while len(first) < rows and (batch := reader.read(1, 1 << 20)) is not None:
        first += batch.column("v").to_pylist()
    position = json.loads(json.dumps(reader.position()))
    needed = {name for name, _, _ in position["files"]}
    assert len(needed) <= 3 - (rows - 1) // 2
    for path in tmp_path.iterdir():
        if path.name not in needed:
            path.unlink()  # it has been read
    lines(tmp_path / "a3.jsonl", 6)
    again = keyed(tmp_path).open("all", position)
    assert first + drain(again) == [0, 1, 2, 3, 4, 5, 6]


def test_nothing_grows_with_the_number_of_files(tmp_path: Path) -> None:
    lines(tmp_path / "a0.jsonl", 0)
    reader = keyed(tmp_path).open("all", None)
    sizes = []
    for n in range(1, 50):
        lines(tmp_path / f"a{n}.jsonl", n)
        drain(reader)
        sizes.append(len(json.dumps(reader.position())))
    assert max(sizes) - min(sizes) < 16


Made = Callable[[Path, int], None]


def table_file(folder: Path, n: int) -> None:
    lines(folder / f"f{n}.jsonl", n)


def video_file(folder: Path, n: int) -> None:
    write_video(folder / f"f{n}.mp4", 2)
    old(folder / f"f{n}.mp4")


def source_of(kind: str, folder: Path) -> Source:
    if kind == "video":
        return VideoSource(VideoOptions(path=str(folder), follow=True))
    return JsonlSource(TableOptions(path=str(folder), event_time="t", event_time_unit="s", follow=True))


@pytest.mark.parametrize(("kind", "make"), [("table", table_file), ("video", video_file)])
def test_where_a_file_is_a_stream_new_files_are_new_streams_that_end(kind: str, make: Made, tmp_path: Path) -> None:
    make(tmp_path, 1)
    source = source_of(kind, tmp_path)
    assert source.splits() == ["f1"]
    make(tmp_path, 2)
    assert source.discover() == ["f2"]
    assert source.discover() == []
    reader = source.open("f2", None)
    assert set(drain(reader, "stream_id")) == {"f2"}
    assert reader.exhausted
    assert list(reader.closes) == ["f2"]


def test_videos_may_come_into_an_empty_folder_and_names_count_once(tmp_path: Path) -> None:
    source = source_of("video", tmp_path)
    assert source.splits() == []
    video_file(tmp_path, 1)
    assert source.discover() == ["f1"]
    write_video(tmp_path / "f1.mov.mp4", 1)
    (tmp_path / "f1.mov.mp4").rename(tmp_path / "f1.mov")
    old(tmp_path / "f1.mov")
    assert source.discover() == []  # the same stream id as f1.mp4
    assert source.unread == {str(tmp_path / "f1.mov"): f"{tmp_path / 'f1.mp4'} has the same stream id"}


def test_images_of_a_folder_that_is_written_to_come_once_each(tmp_path: Path) -> None:
    cam = tmp_path / "cam"
    cam.mkdir()
    image(cam / "i1.png")
    source = ImagesSource(ImagesOptions(path=str(tmp_path), follow=True))
    assert source.splits() == ["cam"]
    reader = source.open("cam", None)
    assert drain(reader, "sequence") == [0]
    image(cam / "i2.png")
    image(cam / "i10.png")
    assert drain(reader, "sequence") == [1, 2]
    assert not reader.exhausted
    position = json.loads(json.dumps(reader.position()))
    image(cam / "i11.png")
    again = ImagesSource(ImagesOptions(path=str(tmp_path), follow=True)).open("cam", position)
    batch = again.read(10, 1 << 20)
    assert batch is not None
    assert batch.column("sequence").to_pylist() == [3]
    assert batch.column("event_time").cast(pa.int64()).to_pylist() == [3 * 40_000]
    (tmp_path / "new").mkdir()
    image(tmp_path / "new" / "a.png")
    assert source.discover() == ["new"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"settle_s": 1.0}, "no effect without follow"), ({"follow": True, "stream_names": "path"}, "needs stream_names: stem")],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoOptions(path="x", **options)
