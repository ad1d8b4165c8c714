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
from scripted_camera import WALL_S, ScriptedCamera

from connectors.errors import ConfigError, SourceError
from connectors.extras import MissingExtra, need
from connectors.sources.camera import CAMERA_FRAME, CameraOptions, CameraReader, CameraSource
from connectors.sources.camera_list import masked
from pipelines.testing import FakeClock

PATIENT: dict[str, Any] = {"open_timeout_s": 30.0, "read_timeout_s": 30.0, "reconnect_s": 0.02, "reconnect_max_s": 0.1}
"""No loss but those that the test brings about, on a machine however busy."""


@pytest.fixture
def camera() -> Iterator[MjpegCamera]:
    made = MjpegCamera()
    yield made
    made.die()


@pytest.fixture
def scripted() -> Iterator[ScriptedCamera]:
    made = ScriptedCamera()
    yield made
    made.close()


@pytest.fixture(params=["opencv", "torchcodec"])
def decoder(request: pytest.FixtureRequest) -> str:
    """What is asked of cameras is asked with both decoders."""
    if request.param == "torchcodec":
        try:
            need("torchcodec.decoders", "this test")
        except MissingExtra as error:
            pytest.skip(f"FFmpeg's libraries are not here: {str(error)[:200]}")
    return str(request.param)


Open = Callable[..., CameraReader]


@pytest.fixture
def opened(decoder: str) -> Iterator[Open]:
    readers: list[CameraReader] = []

    def open_(cameras: dict[str, str], position: dict[str, Any] | None = None, **options: Any) -> CameraReader:
        source = CameraSource(CameraOptions(cameras=cameras, **{**PATIENT, "decoder": decoder, **options}))
        readers.append(source.open(next(iter(source.splits())), position))
        return readers[-1]

    yield open_
    for reader in readers:
        reader.close()


def wait(what: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        got = what()
        if got:
            return got
        assert time.monotonic() < deadline, "nothing came in time"
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


def rows_of(reader: CameraReader) -> list[dict[str, Any]]:
    """All rows that wait."""
    batch = reader.read(1000, 1 << 26)
    return [] if batch is None else batch.to_pylist()


def times_us(rows: list[dict[str, Any]]) -> list[int]:
    """Microseconds after the beginning of the script."""
    return [round((row["event_time"].timestamp() - WALL_S) * 1e6) for row in rows]


def test_frames_of_a_server_come_in_order(camera: MjpegCamera, opened: Open) -> None:
    before = time.time()
    reader = opened({"gate": camera.url})
    rows = until(reader, lambda row: row["sequence"] == 4)
    assert [row["sequence"] for row in rows] == [0, 1, 2, 3, 4]
    assert {row["stream_id"] for row in rows} == {"gate"}
    times = [row["event_time"].timestamp() for row in rows]
    assert abs(times[0] - before) < 600  # of the day
    assert times == sorted(set(times))
    assert {(row["encoding"], row["height"], row["width"], len(row["image"])) for row in rows} == {
        ("raw_bgr8", 48, 64, 48 * 64 * 3)
    }
    assert {(row["segment"], row["notice"], row["error"]) for row in rows} == {(1, None, None)}


def test_frames_have_the_time_of_the_day_at_which_they_were_grabbed(scripted: ScriptedCamera) -> None:
    reader = scripted.open(mode="every_frame")
    scripted.frames(3, every_s=0.25)
    assert times_us(rows_of(reader)) == [250_000, 500_000, 750_000]
    scripted.wall_offset_s -= 3600.0  # set back; a stream's time goes on
    scripted.frames(2, every_s=0.25)
    assert times_us(rows_of(reader)) == [750_001, 750_002]


def test_what_is_not_taken_in_time_gives_way_and_is_counted(scripted: ScriptedCamera) -> None:
    reader = scripted.open()
    scripted.frames(2, value=10)
    assert [(row["sequence"], row["gap"], row["image"][0]) for row in rows_of(reader)] == [(0, 1, 11)]
    scripted.frames(6, value=20)
    assert [(row["sequence"], row["gap"], row["image"][0]) for row in rows_of(reader)] == [(1, 5, 25)]
    assert reader.dropped == {"gave way to newer frames": 6}


def test_every_frame_mode_keeps_a_bounded_number(scripted: ScriptedCamera) -> None:
    reader = scripted.open(mode="every_frame", keep_frames=8)
    scripted.frames(25, value=100)
    rows = rows_of(reader)
    assert [row["image"][0] for row in rows] == list(range(117, 125))
    assert [row["gap"] for row in rows] == [17, 0, 0, 0, 0, 0, 0, 0]


def test_frames_are_left_out_for_max_fps_without_being_called_a_gap(scripted: ScriptedCamera) -> None:
    reader = scripted.open(mode="every_frame", max_fps=10.0)
    scripted.frames(33, every_s=1 / 32)
    rows = rows_of(reader)
    assert {row["gap"] for row in rows} == {0}
    assert len(rows) == 11  # a second and its two ends
    steps = np.diff([row["event_time"].timestamp() for row in rows])
    assert steps.mean() == pytest.approx(0.1, abs=0.005)
    assert steps.max() < 0.1 + 1 / 32
    assert reader.dropped == {"gave way to newer frames": 0}


def test_old_frames_are_dropped_and_counted(scripted: ScriptedCamera) -> None:
    reader = scripted.open(mode="every_frame", keep_frames=500, max_lag_s=0.11)
    scripted.frames(20, every_s=0.02)
    assert len(rows_of(reader)) == 6  # the newest and those up to 0.10 s before
    assert reader.dropped["older than max_lag_s"] == 14


def test_a_loss_is_told_once_and_the_stream_comes_back(scripted: ScriptedCamera) -> None:
    reader = scripted.open()
    scripted.frames()
    assert [row["notice"] for row in rows_of(reader)] == [None]
    scripted.fail()
    (row,) = rows_of(reader)
    assert (row["notice"], row["image"], row["segment"], row["sequence"]) == ("lost", None, 1, 1)
    assert row["error"] == "lost: no frame from http://scripted/ within 5 s, or it has ended"
    for _ in range(5):
        scripted.fail()  # to connect
        assert rows_of(reader) == []
    scripted.frames()
    assert [(row["notice"], row["segment"], row["error"]) for row in rows_of(reader)] == [("back", 2, None)]
    scripted.frames()
    assert [(row["notice"], row["segment"], row["error"]) for row in rows_of(reader)] == [(None, 2, None)]
    scripted.frames(size=(8, 6))
    assert [(row["notice"], row["segment"], row["height"]) for row in rows_of(reader)] == [("resized", 3, 8)]


def test_a_server_that_stalls_and_dies_is_told_and_found_again(camera: MjpegCamera, opened: Open) -> None:
    reader = opened({"gate": camera.url}, read_timeout_s=0.4)
    rows = until(reader, is_frame)
    camera.stalled.set()
    rows += until(reader, lambda row: row["notice"] == "lost")
    assert rows[-1]["error"].startswith(f"lost: no frame from {camera.url} within 0.4 s")
    camera.stalled.clear()
    rows += until(reader, is_frame)
    camera.die()
    rows += until(reader, lambda row: row["notice"] == "lost")
    camera.start()
    rows += until(reader, is_frame)
    notices = [row["notice"] for row in rows if row["notice"] is not None]
    # Two losses and two returns; more where this machine lets the camera itself wait for 0.4 s.
    assert notices == ["lost", "back"] * (len(notices) // 2)
    assert len(notices) >= 4
    assert rows[-1]["segment"] == 1 + len(notices) // 2


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


def test_counters_go_on_after_a_resume_and_time_never_goes_back(scripted: ScriptedCamera) -> None:
    ahead_us = 60_000_000  # the clock was a minute ahead when the run ended
    position = {"sequence": 100, "segment": 7, "time_us": round(WALL_S * 1e6) + ahead_us}
    reader = scripted.open(position, mode="every_frame")
    scripted.frames(3)
    rows = rows_of(reader)
    assert [row["sequence"] for row in rows] == [100, 101, 102]
    assert (rows[0]["segment"], rows[0]["notice"]) == (8, "back")
    assert times_us(rows) == [ahead_us + 1, ahead_us + 2, ahead_us + 3]
    assert reader.position() == {"sequence": 103, "segment": 8, "time_us": position["time_us"] + 3}


@pytest.mark.heavy
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
    wait(lambda: usage()[0] <= threads + 2 and usage()[1] <= files + 4)


def test_cameras_come_and_go_with_their_file(camera: MjpegCamera, tmp_path: Path, decoder: str) -> None:
    clock = FakeClock()
    listed = tmp_path / "cameras.yaml"
    listed.write_text(f"gate: {camera.url}\n")
    source = CameraSource(CameraOptions(cameras_file=listed, decoder=decoder, **PATIENT), clock=clock)
    assert source.splits() == ["gate"]
    assert source.discover() == []
    gate = source.open("gate", None)
    until(gate, is_frame)

    listed.write_text(f"gate: {camera.url}\nyard: {camera.url}\n")
    assert source.discover() == []  # looked at a moment ago
    clock.advance(1.0)
    assert source.discover() == ["yard"]
    assert source.discover() == []
    yard = source.open("yard", None)
    until(yard, is_frame)

    listed.write_text(f"yard: {camera.url}\n")
    clock.advance(1.0)
    gate.read(1, 1 << 20)
    assert list(gate.ended) == ["gate"]
    assert gate.read(1, 1 << 20) is None
    assert not gate.ended
    listed.write_text(f"yard: {camera.url}\ngate: {camera.url}\n")
    clock.advance(1.0)
    assert until(gate, is_frame)[-1]["notice"] == "back"

    listed.write_text("gate: [")  # half written: the last list stays valid
    clock.advance(1.0)
    until(gate, is_frame)
    gate.close()
    yard.close()


def test_a_source_with_a_duration_ends(scripted: ScriptedCamera) -> None:
    reader = scripted.open(duration_s=0.5)
    scripted.frames(every_s=0.25)
    assert len(rows_of(reader)) == 1
    assert not reader.exhausted
    scripted.frames(every_s=0.25)
    assert rows_of(reader) == []
    assert reader.exhausted
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
