"""Cameras decoded by TorchCodec: every frame of every codec once and in order, whatever breaks in between."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from mjpeg_camera import MjpegCamera
from mp4_files import number_of, numbered_frame
from scripted_camera import ScriptedCamera
from test_camera_source import PATIENT, camera, is_frame, rows_of, until

from connectors.device_frames import ENCODING, find, kept_bytes, release
from connectors.errors import ConfigError
from connectors.extras import MissingExtra, need
from connectors.sources.camera import CameraOptions, CameraSource
from connectors.sources.torchcodec_live import LiveCapture, PacketFile, connect_by_torchcodec

__all__ = ["camera"]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _needs_torchcodec() -> None:
    try:
        need("torchcodec.decoders", "this test")
    except MissingExtra as error:
        pytest.skip(f"FFmpeg's libraries are not here: {str(error)[:200]}")


def record(path: Path, codec: str, frames: int = 40, *, pixels: str = "yuv420p", **options: str) -> Path:
    """Write numbered frames, a key frame in every ten."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options={"g": "10", **options})
        stream.width, stream.height, stream.pix_fmt = 80, 48, pixels
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="bgr24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def numbers(capture: LiveCapture) -> list[int | None]:
    """Grab to the end."""
    found: list[int | None] = []
    while capture.grab():
        image = capture.retrieve()[1]
        found.append(None if image is None else number_of(image))
    capture.release()
    return found


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx264", {"bf": "3"}),
        ("ts", "libx264", {"bf": "3"}),
        ("ts", "libx264", {"bf": "0", "tune": "zerolatency"}),
        ("mp4", "libx265", {"x265-params": "log-level=none"}),
        ("ts", "libx265", {"x265-params": "log-level=none"}),
        ("avi", "mjpeg", {"pixels": "yuvj420p"}),
        ("mp4", "mpeg4", {}),
        ("ts", "mpeg2video", {}),
        ("webm", "libvpx", {"deadline": "realtime", "cpu-used": "8"}),
        ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    ],
)
def test_every_frame_of_a_codec_comes_once_and_in_order(suffix: str, codec: str, options: Any, tmp_path: Path) -> None:
    path = record(tmp_path / f"film.{suffix}", codec, **options)
    plain = [frame.to_ndarray(format="rgb24") for frame in av.open(str(path)).decode(video=0)]
    capture = LiveCapture(av.open(str(path)), None)
    for expected in plain:
        assert capture.grab()
        assert np.array_equal(capture.retrieve()[1][..., ::-1], expected)
    assert not capture.grab()
    capture.release()
    assert not capture.grab()


def test_a_camera_that_is_joined_between_key_frames_begins_at_one(tmp_path: Path) -> None:
    data = record(tmp_path / "film.ts", "libx264", bf="0").read_bytes()
    packets = [packet for packet in av.open(str(tmp_path / "film.ts")).demux(video=0) if packet.pos is not None]
    begin = packets[4].pos  # the first key frame is gone
    found = numbers(LiveCapture(av.open(io.BytesIO(data[: 188 * 2] + data[begin:])), None))
    assert found[-30:] == list(range(10, 40))
    assert len(found) < 40


def test_a_packet_that_cannot_be_decoded_is_a_frame_without_an_image(tmp_path: Path) -> None:
    container = av.open(str(record(tmp_path / "film.avi", "mjpeg", pixels="yuvj420p")))

    class Damaged:
        streams = container.streams

        def demux(self, stream: Any) -> Iterator[Any]:
            for number, packet in enumerate(container.demux(stream)):
                if number in (0, 7):
                    bad = av.Packet(b"no picture")
                    bad.pts, bad.dts, bad.time_base = packet.pts, packet.dts, packet.time_base
                    packet = bad
                yield packet

        def close(self) -> None:
            container.close()

    found = numbers(LiveCapture(Damaged(), None))
    assert found[0] in range(1, 7)  # what was read while no frame had come is passed over
    assert found == [*range(found[0], 7), None, *range(8, 40)]


def test_times_that_jump_or_are_missing_go_on_at_the_rate(tmp_path: Path) -> None:
    container = av.open(str(record(tmp_path / "film.mp4", "mpeg4", frames=12)))
    stream = container.streams.video[0]
    packets = [packet for packet in container.demux(stream) if packet.size]
    step = packets[1].pts - packets[0].pts
    for packet in packets[4:8]:
        packet.pts += 1_000 * 25 * step
    for packet in packets[8:]:
        packet.pts = None
    file = PacketFile(container)
    times = []
    for packet in packets:
        file.packets += 1
        times.append(file._time_of(packet))
    assert times == [1_000_000 + 40_000 * number for number in range(12)]


def test_what_was_read_is_forgotten(tmp_path: Path) -> None:
    container = av.open(str(record(tmp_path / "film.mp4", "mpeg4", frames=30)))
    file = PacketFile(container)
    start = file.read(100)
    assert file.read(1 << 20) and file.read(1) == b""  # no more than there is without waiting for another packet
    assert file.seek(0) == 0
    assert file.read(100) == start
    assert file.seek(7, os.SEEK_END) == -1
    file.keep_nothing()
    assert file.seek(0) == -1
    while not file.ended:
        file.read(1 << 20)
    assert len(file._content) == 0
    assert file.packets == 30


def test_a_codec_that_torchcodec_does_not_get_is_named_in_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opens = str(record(tmp_path / "film.nut", "ffv1")), av.open
    monkeypatch.setattr(av, "open", lambda *_, **__: opens(path))
    source = CameraSource(CameraOptions(cameras={"gate": "http://u:p@camera/"}, decoder="torchcodec", **PATIENT))
    reader = source.open("gate", None)
    try:
        (row,) = until(reader, lambda row: True)
        assert row["notice"] == "lost"
        assert row["error"].startswith("lost: http://***@camera/: its codec is ffv1; torchcodec takes av1, h264, hevc, mjpeg")
        assert row["error"].endswith("use decoder: opencv")
    finally:
        reader.close()


def test_a_password_is_in_no_row_and_no_log(camera: MjpegCamera, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    url = camera.url.replace("://", "://me:secret@")
    options = CameraOptions(cameras={"gate": url}, decoder="torchcodec", **{**PATIENT, "read_timeout_s": 0.3})
    reader = CameraSource(options).open("gate", None)
    try:
        rows = until(reader, is_frame)
        camera.stalled.set()
        rows += until(reader, lambda row: row["notice"] == "lost")
        camera.die()
        assert "camera_ended error=" in caplog.text and "***@127.0.0.1" in caplog.text
        assert "secret" not in caplog.text + str(rows)
    finally:
        reader.close()


LEAVES = """
import os, sys, time
import torchcodec.decoders
from connectors.sources.camera import CameraOptions, CameraSource
for how in sys.argv[2:]:  # all that is imported is shared, no thread has begun
    child = os.fork()
    if child == 0:
        break
    print(how, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    input()
else:
    sys.exit()
options = CameraOptions(cameras={"gate": sys.argv[1]}, decoder="torchcodec", read_timeout_s=1.0)
reader = CameraSource(options).open("gate", None)
while reader.read(1, 1 << 20) is None:
    time.sleep(0.01)
print("there", flush=True)
input()
if how == "closed":
    reader.close()
"""


@pytest.mark.heavy
@pytest.mark.slow
def test_a_process_ends_well_while_a_camera_is_silent(camera: MjpegCamera) -> None:
    """Whether its reader is closed or left open."""
    ways = ["closed", "left open"]
    command = [sys.executable, "-c", LEAVES, camera.url, *ways]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, bufsize=1) as process:
        assert process.stdin is not None and process.stdout is not None
        for how in ways:
            assert process.stdout.readline() == "there\n"
            camera.stalled.set()
            process.stdin.write("\n")
            assert process.stdout.readline() == f"{how} 0\n"
            camera.stalled.clear()
            process.stdin.write("\n")
    assert process.returncode == 0


@pytest.mark.parametrize("address", ["0", "/dev/video0"])
def test_devices_of_the_machine_are_refused_with_what_is_allowed(address: str, tmp_path: Path) -> None:
    message = f"'{address}' is a device of this machine, from which torchcodec cannot read; use decoder: opencv, or a URL"
    with pytest.raises(ConfigError, match=f"cameras.gate: {message}"):
        CameraOptions(cameras={"gate": address}, decoder="torchcodec")
    with pytest.raises(LookupError, match=message):  # of cameras_file
        connect_by_torchcodec(address, None, transport="tcp", device=None)  # type: ignore[arg-type]


def test_frames_of_a_camera_stay_on_the_device_until_they_are_given_back(camera: MjpegCamera) -> None:
    options = CameraOptions(cameras={"gate": camera.url}, decoder="torchcodec", device="cpu", mode="every_frame", **PATIENT)
    source = CameraSource(options)
    assert CameraSource.keeps_frames(options) == "cpu"
    reader = source.open("gate", None)
    try:
        until(reader, is_frame)
        batch = None
        while batch is None:
            batch = reader.read(4, 1 << 20)
        rows = batch.to_pylist()
        assert {(row["encoding"], row["height"], row["width"], row["segment"]) for row in rows} == {(ENCODING, 48, 64, 1)}
        frame = find(rows[0]["image"])
        assert (tuple(frame.shape), str(frame.dtype)) == ((48, 64, 3), "torch.uint8")
        assert frame.float().std() < 2  # one gray
        before = kept_bytes()
        release(batch)
        assert kept_bytes() == before - 48 * 64 * 3 * len(rows)
    finally:
        reader.close()


def test_a_camera_waits_while_as_many_frames_are_kept_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame:
        def __init__(self, image: Any) -> None:
            self.shape, self.size = image.shape, image.size

    scripted = ScriptedCamera()
    try:
        retrieve = scripted.retrieve
        monkeypatch.setattr(scripted, "retrieve", lambda: (True, Frame(retrieve()[1])))
        reader = scripted.open(mode="every_frame", decoder="torchcodec", device="cpu", device_mib=1)
        scripted.frames(3, size=(400, 600))
        batch = reader.read(10, 1 << 24)
        assert batch.num_rows == 2  # the second goes beyond the limit
        scripted.frames(2, size=(400, 600))
        assert reader.read(10, 1 << 24) is None
        release(batch)
        assert [row["sequence"] for row in rows_of(reader)] == [2, 3]
    finally:
        scripted.close()
