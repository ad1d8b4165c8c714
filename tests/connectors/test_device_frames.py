"""Frames that stay where they were decoded: a row names its frame or nothing, and what is kept is bounded."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import test_video_source as by_pixels
from mp4_files import number_of, write_video

from connectors import device_frames
from connectors.device_frames import ENCODING, KeptFrames, find, kept_bytes, release
from connectors.errors import ConfigError
from connectors.extras import MissingExtra, need
from connectors.sources.camera import CameraOptions
from connectors.sources.paced import open_paced
from connectors.sources.video import VideoOptions, VideoSource

FRAME_BYTES = 48 * 80 * 3


@pytest.fixture(autouse=True)
def _nothing_is_kept_yet() -> None:
    gc.collect()
    assert kept_bytes() == 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        need("torchcodec.decoders", "this test")
    except MissingExtra as error:
        pytest.skip(f"FFmpeg's libraries are not here: {str(error)[:200]}")
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 40)


def source(path: Path, **options: Any) -> VideoSource:
    return VideoSource(VideoOptions(path=str(path), decoder="torchcodec", **options))


def pixels(batch: pa.RecordBatch) -> list[np.ndarray]:
    """BGR, as rows with pixels have them."""
    assert set(batch.column("encoding").to_pylist()) == {ENCODING}
    return [find(handle).numpy()[..., ::-1] for handle in batch.column("image").to_pylist()]


def read_on(reader: Any, rows: int = 7) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    while not reader.exhausted:
        batch = reader.read(rows, 1 << 24)
        if batch is not None:
            found += [image.copy() for image in pixels(batch)]
            release(batch)
    return found


def test_kept_frames_are_those_that_rows_carry_else_with_the_same_times_and_numbers(clip: Path) -> None:
    carried = by_pixels.read_all(source(clip))
    reader = source(clip, device="cpu").open("clip", None)
    batch = reader.read(100, 1 << 24)
    assert batch.drop_columns(["image", "encoding"]) == carried.drop_columns(["image", "encoding"]).to_batches()[0]
    assert all(np.array_equal(a, b) for a, b in zip(pixels(batch), by_pixels.images(carried), strict=True))


def test_a_batch_of_kept_frames_stops_at_the_byte_limit_of_their_pixels(clip: Path) -> None:
    reader = source(clip, device="cpu").open("clip", None)
    assert reader.read(100, 3 * FRAME_BYTES + 1).num_rows == 3
    assert reader.read(100, 5).num_rows == 1
    assert reader.read(2, 1 << 30).num_rows == 2


def test_a_source_waits_while_as_many_frames_are_kept_as_may_be(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = source(clip, device="cpu")
    assert kept._kept is not None
    monkeypatch.setattr(kept._kept, "_limit", 4 * FRAME_BYTES)
    reader = kept.open("clip", None)
    first = reader.read(100, 1 << 24)
    assert first.num_rows == 4
    assert kept_bytes() == kept._kept.bytes == 4 * FRAME_BYTES
    assert reader.read(100, 1 << 24) is None
    assert not reader.exhausted
    release(first)
    assert kept_bytes() == 0
    assert [number_of(image) for image in pixels(reader.read(100, 1 << 24))] == [4, 5, 6, 7]


def test_a_frame_that_was_given_back_or_is_another_processs_is_none(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = source(clip, device="cpu")
    batch = owner.open("clip", None).read(2, 1 << 24)
    mine, other = batch.column("image").to_pylist()
    release(batch.slice(0, 1))
    release(batch.slice(0, 1))  # again
    assert find(mine) is None
    assert find(other) is not None
    assert find(other[:-1]) is find(b"") is find(None) is None
    monkeypatch.setattr(device_frames, "_process", device_frames._process)
    device_frames._forked()  # what a child of this process does
    assert find(other) is None


def test_frames_go_with_their_source(clip: Path) -> None:
    owner = source(clip, device="cpu")
    batch = owner.open("clip", None).read(5, 1 << 24)
    assert kept_bytes() == 5 * FRAME_BYTES
    del owner
    gc.collect()
    assert kept_bytes() == 0
    assert find(batch.column("image")[0].as_py()) is None


def test_giving_back_leaves_rows_with_pixels_alone(clip: Path) -> None:
    kept = KeptFrames(100)
    release(source(clip).open("clip", None).read(3, 1 << 24))
    release(pa.record_batch({"value": [1]}))
    kept.put("a frame", 60)
    assert not kept.full
    kept.put("another", 60)
    assert kept.full
    assert len(kept) == 2


@pytest.mark.parametrize("pace", ["max", 1000.0])
def test_a_restart_at_any_position_decodes_exactly_the_rest_again(clip: Path, pace: Any) -> None:
    wanted = by_pixels.images(by_pixels.read_all(source(clip)))
    for rows in (1, 5, 13):
        first = source(clip, device="cpu", pace=pace)
        reader = open_paced(first, "clip", None)
        done = 0
        while done < 17:
            batch = reader.read(rows, 1 << 24)
            done += 0 if batch is None else batch.num_rows
        again = source(clip, device="cpu", pace=pace)
        rest = read_on(open_paced(again, "clip", reader.position()))
        assert len(rest) == 40 - done
        assert all(np.array_equal(a, b) for a, b in zip(rest, wanted[done:], strict=True))
        assert again._kept is not None
        assert again._kept.bytes == 0


def test_reference_frames_carry_their_pixels(clip: Path) -> None:
    batch = source(clip, device="cpu", references=3).open("clip", None).read(3, 1 << 24)
    assert set(batch.column("encoding").to_pylist()) == {"raw_bgr8"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu", "decoder": "torchcodec"}, "'gpu' is no device; allowed: cpu, cuda, cuda:N"),
        ({"device": "cuda"}, "device: 'cuda' needs decoder: torchcodec; it is 'opencv'"),
        ({"device": "cpu", "decoder": "torchcodec", "encode": "jpeg"}, "leaves frames as they are; remove encode"),
        ({"device_mib": 64}, "device_mib: 64 does nothing without device"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_for_files_and_cameras(options: dict[str, Any], message: str) -> None:
    for make in (lambda: VideoOptions(path="x.mp4", **options), lambda: CameraOptions(cameras={"a": "http://a/"}, **options)):
        with pytest.raises(ConfigError, match=message):
            make()
