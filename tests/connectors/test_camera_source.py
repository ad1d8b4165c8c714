"""Cameras that stall, die, change size, come and go: nothing raises, nothing leaks, every gap is marked."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from mjpeg_camera import MjpegCamera

from connectors.errors import ConfigError, SourceError
from connectors.sources.camera import CAMERA_FRAME, CameraOptions, CameraReader, CameraSource
from connectors.sources.camera_list import masked

FAST: dict[str, Any] = {"open_timeout_s": 2.0, "read_timeout_s": 0.4, "reconnect_s": 0.02, "reconnect_max_s": 0.1}


@pytest.fixture
def camera() -> Iterator[MjpegCamera]:
    made = MjpegCamera()
    yield made
    made.die()


Open = Callable[..., CameraReader]


@pytest.fixture
def opened() -> Iterator[Open]:
    readers: list[CameraReader] = []

    def open_(cameras: dict[str, str], position: dict[str, Any] | None = None, **options: Any) -> CameraReader:
        source = CameraSource(CameraOptions(cameras=cameras, **{**FAST, **options}))
        readers.append(source.open(next(iter(source.splits())), position))
        return readers[-1]

    yield open_
    for reader in readers:
        reader.close()


def wait(what: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        got = what()
        if got:
            return got
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def until(reader: CameraReader, condition: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Read row by row until one fulfils the condition; return all rows read."""
    rows: list[dict[str, Any]] = []

    def look() -> bool:
        batch = reader.read(1, 1 << 20)
        if batch is not None:
            assert batch.schema == CAMERA_FRAME
            rows.extend(batch.to_pylist())
        return bool(rows) and condition(rows[-1])

    wait(look)
    return rows


def is_frame(row: dict[str, Any]) -> bool:
    return row["image"] is not None


def test_frames_come_with_wall_clock_times_and_counters(camera: MjpegCamera, opened: Open) -> None:
    before = time.time()
    reader = opened({"gate": camera.url})
    rows = until(reader, lambda row: row["sequence"] == 4)
    assert [row["sequence"] for row in rows] == [0, 1, 2, 3, 4]
    assert {row["stream_id"] for row in rows} == {"gate"}
    times = [row["event_time"].timestamp() for row in rows]
    assert before < times[0] < times[-1] < time.time()
    assert times == sorted(set(times))
    assert {(row["encoding"], row["height"], row["width"], len(row["image"])) for row in rows} == {
        ("raw_bgr8", 48, 64, 48 * 64 * 3)
    }
    assert {(row["segment"], row["notice"], row["error"]) for row in rows} == {(1, None, None)}


def test_what_is_not_taken_in_time_gives_way_and_is_counted(camera: MjpegCamera, opened: Open) -> None:
    reader = opened({"gate": camera.url})
    first = until(reader, is_frame)[-1]
    time.sleep(0.3)
    second = until(reader, is_frame)[-1]
    assert second["gap"] > 3
    assert reader.dropped["gave way to newer frames"] == first["gap"] + second["gap"]
    # the brightness counts frames: what came is the newest one
    step = np.frombuffer(second["image"], np.uint8).mean() - np.frombuffer(first["image"], np.uint8).mean()
    assert step == pytest.approx(second["gap"] + 1, abs=1.5)


def test_every_frame_mode_keeps_a_bounded_number(camera: MjpegCamera, opened: Open) -> None:
    reader = opened({"gate": camera.url}, mode="every_frame", keep_frames=8)
    until(reader, is_frame)
    time.sleep(0.5)
    batch = wait(lambda: reader.read(100, 1 << 24))
    assert batch.num_rows <= 8
    gaps = batch["gap"].to_pylist()
    assert gaps[0] > 0
    assert gaps[1:] == [0] * (batch.num_rows - 1)


def test_frames_are_left_out_for_max_fps_without_being_called_a_gap(camera: MjpegCamera, opened: Open) -> None:
    reader = opened({"gate": camera.url}, mode="every_frame", max_fps=10.0)
    rows = until(reader, lambda row: row["sequence"] == 5)
    assert {row["gap"] for row in rows} == {0}
    seconds = (rows[-1]["event_time"] - rows[1]["event_time"]).total_seconds()
    assert seconds == pytest.approx(0.4, abs=0.2)


def test_old_frames_are_dropped_and_counted(camera: MjpegCamera, opened: Open) -> None:
    reader = opened({"gate": camera.url}, mode="every_frame", keep_frames=500, max_lag_s=0.1)
    until(reader, is_frame)
    time.sleep(0.4)
    wait(lambda: reader.read(500, 1 << 26))
    assert reader.dropped["older than max_lag_s"] > 3


def test_a_stall_and_a_death_are_told_and_the_stream_comes_back(camera: MjpegCamera, opened: Open) -> None:
    reader = opened({"gate": camera.url})
    until(reader, is_frame)
    camera.stalled.set()
    rows = until(reader, lambda row: row["notice"] == "lost")
    assert rows[-1]["image"] is None
    assert rows[-1]["error"].startswith(f"lost: no frame from {camera.url} within 0.4 s")
    camera.stalled.clear()
    assert [row["notice"] for row in until(reader, is_frame)] == ["back"]
    camera.die()
    until(reader, lambda row: row["notice"] == "lost")
    time.sleep(0.5)  # several tries in vain; the loss is told once
    assert reader.read(10, 1 << 20) is None
    camera.start()
    row = until(reader, is_frame)[-1]
    assert (row["notice"], row["segment"]) == ("back", 3)
    assert until(reader, is_frame)[-1]["notice"] is None


def test_a_camera_that_changes_its_size_goes_on(camera: MjpegCamera, opened: Open) -> None:
    reader = opened({"gate": camera.url})
    until(reader, is_frame)
    camera.size = (24, 32)
    connections = camera.connections
    rows = until(reader, lambda row: row["sequence"] > 20)
    assert {(row["height"], row["width"], row["segment"]) for row in rows} == {(48, 64, 1)}  # FFmpeg scales in a connection
    assert camera.connections == connections
    camera.die()
    camera.start()
    row = until(reader, lambda row: row["height"] == 24)[-1]
    assert (row["width"], row["segment"], row["notice"]) == (32, 2, "back")


def test_counters_go_on_after_a_resume_and_time_never_goes_back(camera: MjpegCamera, opened: Open) -> None:
    ahead_us = time.time_ns() // 1000 + 60_000_000  # the clock was a minute ahead when the run ended
    reader = opened({"gate": camera.url}, {"sequence": 100, "segment": 7, "time_us": ahead_us})
    rows = until(reader, lambda row: row["sequence"] == 102)
    assert [row["sequence"] for row in rows] == [100, 101, 102]
    assert (rows[0]["segment"], rows[0]["notice"]) == (8, "back")
    stamps = [round(row["event_time"].timestamp() * 1e6) for row in rows]
    assert stamps == [ahead_us + 1, ahead_us + 2, ahead_us + 3]
    position = reader.position()
    assert position == {"sequence": 103, "segment": 8, "time_us": ahead_us + 3}


def test_a_hundred_reconnects_leak_no_thread_and_no_descriptor(camera: MjpegCamera, opened: Open) -> None:
    camera.fps = 400.0
    reader = opened({"gate": camera.url}, reconnect_s=0.001, reconnect_max_s=0.002)
    until(reader, is_frame)

    def usage() -> tuple[int, int]:
        gc.collect()
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    for n in range(110):
        if n == 10:
            threads, files = usage()
        connections = camera.connections
        camera.die()
        camera.start()
        wait(lambda seen=connections: camera.connections > seen)
        until(reader, is_frame)
    assert camera.connections >= 110
    wait(lambda: usage()[0] <= threads + 2 and usage()[1] <= files + 4, 10)


def test_cameras_come_and_go_with_their_file(camera: MjpegCamera, tmp_path: Path) -> None:
    listed = tmp_path / "cameras.yaml"
    listed.write_text(f"gate: {camera.url}\n")
    source = CameraSource(CameraOptions(cameras_file=listed, **FAST))
    assert source.splits() == ["gate"]
    assert source.discover() == []
    gate = source.open("gate", None)
    until(gate, is_frame)

    listed.write_text(f"gate: {camera.url}\nyard: {camera.url}\n")
    assert wait(source.discover) == ["yard"]
    assert source.discover() == []
    yard = source.open("yard", None)
    until(yard, is_frame)

    listed.write_text(f"yard: {camera.url}\n")

    def gone() -> bool:
        gate.read(1, 1 << 20)
        return bool(gate.ended)

    wait(gone)
    assert list(gate.ended) == ["gate"]
    assert gate.read(1, 1 << 20) is None
    assert not gate.ended
    listed.write_text(f"yard: {camera.url}\ngate: {camera.url}\n")
    assert until(gate, is_frame)[-1]["notice"] == "back"

    listed.write_text("gate: [")  # half written: the last list stays valid
    time.sleep(1.1)
    until(gate, is_frame)
    gate.close()
    yard.close()


def test_a_source_with_a_duration_ends(camera: MjpegCamera, opened: Open) -> None:
    reader = opened({"gate": camera.url}, duration_s=0.3)
    wait(lambda: reader.read(10, 1 << 24) is None and reader.exhausted)
    assert list(reader.closes) == ["gate"]
    assert CameraSource(CameraOptions(cameras={"a": "0"}, duration_s=1.0)).bounded
    assert not CameraSource(CameraOptions(cameras={"a": "0"})).bounded


def test_jpeg_frames_are_encoded(camera: MjpegCamera, opened: Open) -> None:
    row = until(opened({"gate": camera.url}, encode="jpeg", jpeg_quality=50), is_frame)[-1]
    assert row["encoding"] == "jpeg"
    assert row["image"][:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give 'cameras'"),
        ({"cameras": {"a": "clip.mp4"}}, "for a recorded file use a source of type video"),
        ({"cameras": {"a": "gopher://x"}}, "scheme 'gopher' is not known; allowed: rtsp"),
        ({"cameras": {"a": ""}}, "is no address"),
        ({"cameras": {"a": "0"}, "password": "x"}, "'password' needs 'user'"),
        ({"cameras": {"a": "0"}, "jpeg_quality": 5}, "needs encode: jpeg"),
        ({"cameras": {"a": "0"}, "reconnect_s": 9.0, "reconnect_max_s": 1.0}, "is below reconnect_s"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CameraOptions(**options)


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a", "must hold lines like"), ("gate: clip.mp4", "camera 'gate': 'clip.mp4' is neither"), ("a: [", "is no YAML")],
)
def test_a_wrong_list_of_cameras_is_told_at_the_start(text: str, message: str, tmp_path: Path) -> None:
    listed = tmp_path / "cameras.yaml"
    listed.write_text(text)
    with pytest.raises(SourceError, match=message):
        CameraSource(CameraOptions(cameras_file=listed)).splits()


def test_credentials_go_into_urls_and_are_never_shown() -> None:
    options = CameraOptions(cameras={"a": "rtsp://host/x", "b": "rtsp://me:pw@host/x", "c": "0"}, user="u", password="p@/")
    source = CameraSource(options)
    assert source._list.addresses() == {"a": "rtsp://u:p%40%2F@host/x", "b": "rtsp://me:pw@host/x", "c": "0"}
    assert masked("rtsp://u:p%40@host/x") == "rtsp://***@host/x"
    assert masked("http://host/a@b") == "http://host/a@b"


def test_one_process_has_one_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
    with pytest.raises(SourceError, match="use one transport"):
        CameraSource(CameraOptions(cameras={"a": "rtsp://127.0.0.1:9/x"}, transport="udp")).open("a", None)


def test_rows_are_frames_for_operators() -> None:
    from connectors.records import FRAME

    assert CAMERA_FRAME.names[: len(FRAME)] == FRAME.names
    assert pa.schema(list(CAMERA_FRAME)[: len(FRAME)]) == pa.schema(list(FRAME))
