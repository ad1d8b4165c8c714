"""Whole runs over frames that stay on a device: the same rows as with pixels in the rows, and no byte of a frame is copied."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pyarrow as pa
import pytest
from engine_workload import run_process
from launches import DEVICE, DeviceTensor, Launches, on_device
from real_data import REAL_DATA

import connectors.sources.torchcodec_capture as capture
from connectors.device_frames import ENCODING, kept_bytes
from connectors.extras import MissingExtra, need
from connectors.sinks.read import read_committed
from connectors.sources.video import VideoReader
from models.mamba.shapes import ShapesConfig, render_clips
from pipelines.api import Pipeline

ROOT = Path(__file__).resolve().parents[2]
CLIPS = sorted((REAL_DATA / "av").glob("*.mp4"))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        need("torchcodec.decoders", "this test")
    except MissingExtra as error:
        pytest.skip(f"FFmpeg's libraries are not here: {str(error)[:200]}")
    folder = tmp_path_factory.mktemp("films")
    render_clips(folder, config=ShapesConfig(frames=12), seeds=[900_000, 900_001])
    return folder


def values(films: Path | str, run: Path, device: str | None, **source: Any) -> dict[str, Any]:
    return {
        "name": "kept",
        "state": str(run / "state"),
        "epoch_s": 0.1,
        "sources": {"clips": {"type": "video", "path": str(films), "decoder": "torchcodec", "device": device, **source}},
        "operators": {
            "detect": {
                "type": "mamba",
                "input": "clips",
                "checkpoint": str(ROOT / "models/mamba/weights/shapes.safetensors"),
                "max_length": 600,
                "key_length": 120,
                "write_topk": 12,
                "score_threshold": 0.01,
                "max_batch": 1,  # products of other batches round differently, and how frames are batched depends on the time
            }
        },
        "sinks": {"rows": {"type": "parquet", "input": "detect", "path": str(run / "rows")}},
    }


def rows_of(run: Path) -> pa.Table:
    """All that was found, by stream and frame."""
    found = read_committed(run / "rows").drop_columns(["latency_ms"])
    return found.sort_by([("stream_id", "ascending"), ("sequence", "ascending")])


@dataclass
class Copied:
    """Bytes of frames that were copied on their way from the decoder to the operator's network."""

    launches: Launches
    least: int
    """Of a copy that is counted; what is smaller are places and counts."""
    in_rows: int = 0

    @property
    def to_device(self) -> int:
        return sum(event.bytes for event in self.launches.of("upload") if event.bytes >= self.least)

    @property
    def from_device(self) -> int:
        # Banks come back when a snapshot is taken.
        reads = [event for event in self.launches.of("read") if not event.place.startswith("operators/banks/")]
        return sum(event.bytes for event in reads if event.bytes >= self.least)


class OnDevice:
    """TorchCodec as it is with NVDEC: the tensors that it returns lie on the device."""

    cpu_fallback = False

    def __init__(self, decoder: Any) -> None:
        self._decoder, self.metadata = decoder, decoder.metadata

    def __len__(self) -> int:
        return len(self._decoder)

    def get_frame_at(self, index: int) -> Any:
        frame = self._decoder.get_frame_at(index)
        return SimpleNamespace(data=DeviceTensor(frame.data), pts_seconds=frame.pts_seconds)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, least: int) -> Iterator[Copied]:
    """Let a run find the device that is not there, and count what is copied from the first read on."""
    real, read = need("torchcodec.decoders", "this test").VideoDecoder, VideoReader.read

    def decoder(path: str, *, device: str, **options: Any) -> Any:
        made = real(path, device="cpu", **options)
        return made if device == "cpu" else OnDevice(made)

    with monkeypatch.context() as patch, on_device() as launches:
        copied = Copied(launches, least)
        began: list[VideoReader] = []

        def noted(reader: VideoReader, max_rows: int, max_bytes: int) -> pa.RecordBatch | None:
            if not began:
                launches.clear()  # the weights have been uploaded
            began.append(reader)
            batch = read(reader, max_rows, max_bytes)
            if batch is not None:
                images = zip(batch.column("image").to_pylist(), batch.column("encoding").to_pylist(), strict=True)
                copied.in_rows += sum(len(image) for image, encoding in images if encoding != ENCODING)
            return batch

        patch.setattr(capture, "decoders", SimpleNamespace(VideoDecoder=decoder))
        patch.setattr(VideoReader, "read", noted)
        for place in ("pipelines.spec.resolve_device", "pipelines.runtime.tasks.resolve_source_device"):
            patch.setattr(place, lambda name, where: DEVICE)
        yield copied
        assert began


@pytest.mark.heavy
def test_no_byte_of_a_frame_is_copied_between_decoder_and_operator_on_a_device(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = tmp_path / "film"
    render_clips(films, config=ShapesConfig(frames=3), seeds=[900_000])
    film = cv2.VideoCapture(str(next(films.glob("*.mp4"))))
    frames, pixels = 3, round(3 * film.get(cv2.CAP_PROP_FRAME_HEIGHT) * film.get(cv2.CAP_PROP_FRAME_WIDTH))
    with counted(monkeypatch, least=pixels // 3) as copied:  # one color of one frame
        report = Pipeline.from_dict(values(films, tmp_path / "kept", "cuda")).run().report
        assert (copied.in_rows, copied.to_device, copied.from_device) == (0, 0, 0), copied.launches.places("read")
        assert copied.launches.kernels > 50
        (detect,) = [task for task in report.tasks if task.task.node == "detect"]
        assert detect.gauges["kept_frame_bytes"] == kept_bytes() == 0  # given back, all of them
    with counted(monkeypatch, least=pixels // 3) as copied:
        Pipeline.from_dict(values(films, tmp_path / "carried", None)).run()
        assert copied.in_rows == frames * pixels
        assert copied.to_device == frames * pixels
        assert copied.from_device == 0
    assert rows_of(tmp_path / "kept").equals(rows_of(tmp_path / "carried"))
    assert rows_of(tmp_path / "kept").num_rows == frames


@pytest.mark.heavy
def test_kept_frames_give_the_rows_that_carried_ones_give(films: Path, tmp_path: Path) -> None:
    for name, device in (("carried", None), ("kept", "cpu")):
        Pipeline.from_dict(values(films, tmp_path / name, device)).run()
    rows = rows_of(tmp_path / "kept")
    assert rows.equals(rows_of(tmp_path / "carried"))
    assert set(rows.column("status").to_pylist()) == {"ok"}


@pytest.mark.heavy
@pytest.mark.skipif(not CLIPS, reason="the shared folder with real clips is not there")
def test_real_clips_give_the_same_rows_kept_or_carried(films: Path, tmp_path: Path) -> None:
    for name, device in (("carried", None), ("kept", "cpu")):
        Pipeline.from_dict(values(str(CLIPS[0]), tmp_path / name, device, max_fps=2.0)).run()
    rows = rows_of(tmp_path / "kept")
    assert rows.num_rows > 15
    assert rows.equals(rows_of(tmp_path / "carried"))


@pytest.mark.slow
def test_a_run_over_kept_frames_that_is_killed_gives_each_row_once(films: Path, tmp_path: Path) -> None:
    whole, killed = (values(films, tmp_path / name, "cpu", pace=pace) for name, pace in (("whole", "max"), ("killed", 2.0)))
    Pipeline.from_dict(whole).run()
    assert run_process(killed, resume=True, fault="after_prepare:epoch=1") == -signal.SIGKILL
    assert run_process(killed, resume=True) == 0
    assert rows_of(tmp_path / "killed").equals(rows_of(tmp_path / "whole"))


@pytest.mark.ray
@pytest.mark.heavy
@pytest.mark.usefixtures("ray_address")
def test_on_ray_kept_frames_reach_the_operator_in_its_own_process(films: Path, tmp_path: Path) -> None:
    from pipelines.runners import run

    carried, kept = values(films, tmp_path / "carried", None), values(films, tmp_path / "kept", "cpu")
    Pipeline.from_dict(carried).run()
    report = run(Pipeline.from_dict(kept).spec, runner="ray")
    (detect,) = [task for task in report.tasks if task.task.node == "detect"]
    assert detect.gauges["kept_frame_bytes"] == 0
    assert rows_of(tmp_path / "kept").equals(rows_of(tmp_path / "carried"))
