"""The camera source against RTSP servers that are killed and started again, with both decoders."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports
from rtsp_camera import RtspCamera
from test_camera_source import decoder

from connectors.sources.camera import CameraOptions, CameraReader, CameraSource

__all__ = ["decoder"]

_PYTHON = "/usr/bin/python3"
_NEEDED = (
    "gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad "
    "gstreamer1.0-plugins-ugly"
)
_PROBE = (
    "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; Gst.init(None); "
    "assert all(map(Gst.ElementFactory.find, ['videotestsrc', 'x264enc', 'rtph264pay']))"
)


class GStreamerServer:
    """A child process; dies without a farewell."""

    def __init__(self) -> None:
        (self._port,) = free_ports()
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self._port}/camera"

    def start(self, width: int, height: int) -> None:
        command = [_PYTHON, str(Path(__file__).with_name("rtsp_server.py")), str(self._port), str(width), str(height)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@pytest.fixture(params=["ours", "gstreamer"])
def server(request: pytest.FixtureRequest) -> Iterator[RtspCamera | GStreamerServer]:
    if request.param == "ours":
        ours = RtspCamera()
        yield ours
        ours.kill()
        return
    there = shutil.which(_PYTHON) and subprocess.run([_PYTHON, "-c", _PROBE], capture_output=True, check=False).returncode == 0
    if not there:
        pytest.skip(f"no GStreamer RTSP server; apt-get install --no-install-recommends {_NEEDED}")
    made = GStreamerServer()
    yield made
    made.kill()


def until(reader: CameraReader, notice: str | None, count: int = 1) -> list[dict[str, Any]]:
    """Read until ``count`` rows with that notice have come; return them."""
    rows: list[dict[str, Any]] = []
    deadline = time.monotonic() + 120
    while len(rows) < count:
        assert time.monotonic() < deadline, f"no row with notice {notice!r}"
        batch = reader.read(1, 1 << 20)
        if batch is None:
            time.sleep(0.01)
        else:
            rows += [row for row in batch.to_pylist() if row["notice"] == notice]
    return rows


@pytest.mark.heavy
def test_an_rtsp_camera_that_dies_comes_back_with_its_new_size(server: RtspCamera | GStreamerServer, decoder: str) -> None:
    source = CameraSource(
        CameraOptions(
            cameras={"gate": server.url},
            decoder=decoder,
            open_timeout_s=30.0,
            read_timeout_s=30.0,
            reconnect_s=0.1,
            reconnect_max_s=0.5,
        )
    )
    reader = source.open(*source.splits(), None)  # before there is a server
    try:
        assert "cannot be opened" in until(reader, "lost")[0]["error"]
        server.start(320, 240)
        (row,) = until(reader, "back")
        assert (row["height"], row["width"], row["segment"]) == (240, 320, 1)
        times = [row["event_time"] for row in until(reader, None, 20)]
        assert times == sorted(set(times))
        server.kill()
        assert "no frame from rtsp://127.0.0.1" in until(reader, "lost")[0]["error"]
        server.start(160, 120)
        (row,) = until(reader, "back")
        assert (row["height"], row["width"], row["segment"]) == (120, 160, 2)
        assert len(row["image"]) == 120 * 160 * 3
    finally:
        reader.close()
