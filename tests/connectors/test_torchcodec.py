"""The decoder ``torchcodec``: what the tests of recorded files ask of times, numbers, sizes and restarts, it gives as well."""

import numpy as np
import pytest
import test_video_source as by_opencv
from mp4_files import write_video
from test_torchcodec_live import record
from test_video_source import (
    av1,
    clip,
    test_a_batch_stops_at_the_byte_limit_but_holds_one_row,
    test_a_file_cut_before_its_index_is_one_row_with_an_error,
    test_an_empty_file_is_one_row_with_an_error,
    test_an_ended_split_stays_ended_without_decoding,
    test_every_frame_of_a_file_is_one_row_in_order,
    test_garbage_is_one_row_with_an_error,
    test_jpeg_encoding_keeps_the_picture_and_says_so,
    test_max_fps_keeps_evenly_spread_frames_with_their_numbers,
    test_real_clips_give_one_row_per_frame_at_the_container_times,
    test_restart_at_any_position_delivers_exactly_the_rest,
    test_start_time_moves_event_times,
    test_variable_frame_rate_times_are_the_container_times,
)

import connectors.sources.torchcodec_capture as capture
from connectors.extras import MissingExtra, need
from connectors.sources.video import VideoOptions, VideoSource

__all__ = [
    "av1",
    "clip",
    "test_a_batch_stops_at_the_byte_limit_but_holds_one_row",
    "test_a_file_cut_before_its_index_is_one_row_with_an_error",
    "test_an_empty_file_is_one_row_with_an_error",
    "test_an_ended_split_stays_ended_without_decoding",
    "test_every_frame_of_a_file_is_one_row_in_order",
    "test_garbage_is_one_row_with_an_error",
    "test_jpeg_encoding_keeps_the_picture_and_says_so",
    "test_max_fps_keeps_evenly_spread_frames_with_their_numbers",
    "test_real_clips_give_one_row_per_frame_at_the_container_times",
    "test_restart_at_any_position_delivers_exactly_the_rest",
    "test_start_time_moves_event_times",
    "test_variable_frame_rate_times_are_the_container_times",
]


@pytest.fixture(autouse=True)
def _decoded_by_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        need("torchcodec.decoders", "this test")
    except MissingExtra as error:
        pytest.skip(f"FFmpeg's libraries are not here: {str(error)[:200]}")
    monkeypatch.setattr(
        by_opencv, "source", lambda path, **options: VideoSource(VideoOptions(path=str(path), decoder="torchcodec", **options))
    )


def test_both_decoders_see_the_same_picture(tmp_path) -> None:
    path = write_video(tmp_path / "film.mp4", 6)
    both = [
        by_opencv.images(by_opencv.read_all(VideoSource(VideoOptions(path=str(path), decoder=name))))
        for name in ("opencv", "torchcodec")
    ]
    for a, b in zip(*both, strict=True):
        assert np.abs(a.astype(int) - b).mean() < 2  # their color conversions round differently


def test_a_codec_that_opencv_lacks_is_decoded(av1) -> None:
    table = by_opencv.read_all(by_opencv.source(av1))
    assert [by_opencv.number_of(image) for image in by_opencv.images(table)] == list(range(20))


def test_a_file_whose_first_frames_it_passes_over_is_refused_in_one_row(tmp_path) -> None:
    path = record(tmp_path / "film.ts", "libx264", bf="3")
    (row,) = by_opencv.read_all(by_opencv.source(path)).to_pylist()
    assert row["image"] is None
    assert row["error"] == (
        "film.ts: torchcodec begins 0.400 s behind the first frame of such a file; use decoder: opencv, or copy it: ffmpeg -i "
        "film.ts -c copy film.mkv"
    )
    copied = record(tmp_path / "film.mkv", "libx264", bf="3")
    assert [by_opencv.number_of(image) for image in by_opencv.images(by_opencv.read_all(by_opencv.source(copied)))] == [
        *range(40)
    ]


def test_frames_that_it_leaves_out_at_the_end_are_told(tmp_path, monkeypatch) -> None:
    path = write_video(tmp_path / "film.mp4", 10)
    grab = capture.TorchCodecCapture.grab
    monkeypatch.setattr(capture.TorchCodecCapture, "grab", lambda self: self._next < 7 and grab(self))
    *rows, last = by_opencv.read_all(by_opencv.source(path)).to_pylist()
    assert len(rows) == 7
    assert last["error"].startswith("film.mp4: torchcodec decodes 7 of its 10 frames; use decoder: opencv, or copy it")
