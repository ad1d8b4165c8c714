import os
import re
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mp4_files import container_times_us, index_first, number_of, numbered_frame, retime, rotate, write_video
from reading import assert_every_restart_is_exact, batches, read_all

import connectors.sources.random_access as random_access
import connectors.sources.video as video_module
from connectors.errors import ConfigError, SourceError
from connectors.records import FRAME
from connectors.sources.containers import codec_name, missing_bytes
from connectors.sources.random_access import even_spread, read_frames
from connectors.sources.video import VideoOptions, VideoSource

SHARED = Path(os.environ.get("STREAMBANK_SHARED", Path(__file__).resolve().parents[2] / "../shared"))
REAL_CLIPS = sorted((SHARED / "data/av").glob("*.mp4"))


def source(path, **options):
    return VideoSource(VideoOptions(path=str(path), **options))


def images(table: pa.Table) -> list[np.ndarray]:
    return [
        np.frombuffer(row["image"], np.uint8).reshape(row["height"], row["width"], 3)
        for row in table.to_pylist()
        if row["image"]
    ]


def times_us(table: pa.Table) -> list[int]:
    return table["event_time"].cast(pa.int64()).to_pylist()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 40)


def test_every_frame_of_a_file_is_one_row_in_order(clip):
    table = read_all(source(clip), rows=7)
    assert table.schema == FRAME
    assert [number_of(image) for image in images(table)] == list(range(40))
    assert table["sequence"].to_pylist() == list(range(40))
    assert set(table["stream_id"].to_pylist()) == {"clip"}
    assert set(table["encoding"].to_pylist()) == {"raw_bgr8"}
    assert table["error"].null_count == 40


def test_pixels_equal_those_of_a_plain_opencv_loop(clip):
    capture = cv2.VideoCapture(str(clip))
    plain = [capture.read()[1] for _ in range(40)]
    assert all(np.array_equal(a, b) for a, b in zip(images(read_all(source(clip), rows=9)), plain, strict=True))


def test_a_batch_stays_the_same_when_later_ones_are_read(clip):
    reader = source(clip).open("clip", None)
    kept = [(batch, batch.column("image").to_pylist()) for batch in batches(reader, 4)]
    assert len(kept) == 10
    assert all(batch.column("image").to_pylist() == then for batch, then in kept)


def test_a_batch_stops_at_the_byte_limit_but_holds_one_row(clip):
    frame = 48 * 80 * 3
    reader = source(clip).open("clip", None)
    assert reader.read(100, 3 * frame + 1).num_rows == 3
    assert reader.read(100, 5).num_rows == 1
    assert reader.read(2, 1 << 30).num_rows == 2
    assert reader.position()["frame"] == 6


def test_a_reader_reuses_its_memory_once_batches_are_dropped(clip):
    reader = source(clip).open("clip", None)
    addresses = {batch.column("image").buffers()[2].address for batch in batches(reader, 1)}
    assert len(addresses) <= 3


def test_variable_frame_rate_times_are_the_container_times(tmp_path):
    path = write_video(tmp_path / "vfr.mp4", 30)
    expected_s = retime(path, [512 * (1 + 3 * (i % 4 == 0)) + i for i in range(30)])
    table = read_all(source(path))
    assert times_us(table) == [round(t * 1e6) for t in expected_s]
    assert [number_of(image) for image in images(table)] == list(range(30))


@pytest.mark.heavy
@pytest.mark.skipif(not REAL_CLIPS, reason="the shared folder with real clips is not there")
@pytest.mark.parametrize("path", REAL_CLIPS, ids=lambda path: path.stem)
def test_real_clips_give_one_row_per_frame_at_the_container_times(path):
    expected = container_times_us(path)
    assert times_us(read_all(source(path))) == expected
    assert len(expected) > 100


def test_start_time_moves_event_times(clip):
    assert times_us(read_all(source(clip, start_time="2026-01-01T00:00:00+01:00")))[1] == 1_767_222_000_000_000 + 40_000
    os.utime(clip, ns=(5_000_000_000, 5_000_000_000))
    assert times_us(read_all(source(clip, start_time="mtime")))[:2] == [5_000_000, 5_040_000]
    assert times_us(read_all(source(clip)))[:2] == [0, 40_000]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_by_metadata_is_applied_and_equal_for_references(tmp_path, degrees):
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[:24, :40] = (255, 255, 255)  # top left
    path = write_video(tmp_path / "turned.mp4", [picture] * 8)
    rotate(path, degrees)
    rows = images(read_all(source(path, references=2)))
    upright = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}[degrees]
    expected = cv2.rotate(picture, upright)
    assert len(rows) == 10
    for row in rows:
        assert row.shape == expected.shape
        assert np.abs(row.astype(int) - expected).mean() < 6


def test_max_fps_keeps_evenly_spread_frames_with_their_numbers(clip):
    table = read_all(source(clip, max_fps=5))
    assert table["sequence"].to_pylist() == list(range(0, 40, 5))
    assert [number_of(image) for image in images(table)] == list(range(0, 40, 5))
    assert source(clip, max_fps=5).open("clip", None).total_rows() == 8


def test_a_limit_above_the_frame_rate_keeps_everything(clip):
    assert read_all(source(clip, max_fps=25)).num_rows == 40
    assert read_all(source(clip, max_fps=1000)).num_rows == 40


def test_jpeg_encoding_keeps_the_picture_and_says_so(clip):
    rows = read_all(source(clip, encode="jpeg", jpeg_quality=80)).to_pylist()
    assert {row["encoding"] for row in rows} == {"jpeg"}
    decoded = [cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR) for row in rows]
    assert [number_of(image) for image in decoded] == list(range(40))
    assert decoded[0].shape[:2] == (rows[0]["height"], rows[0]["width"])


@pytest.mark.parametrize("options", [{}, {"max_fps": 10.0}, {"references": 3}, {"encode": "jpeg"}], ids=str)
def test_restart_at_any_position_delivers_exactly_the_rest(clip, options):
    assert_every_restart_is_exact(lambda: source(clip, **options), rows=3)


def test_a_verified_seek_gives_the_same_frames_as_decoding_from_the_start(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", 400)
    monkeypatch.setattr(video_module, "_SEEK_FROM_FRAME", 10)
    seeks = []
    original = video_module.VideoReader._seek
    monkeypatch.setattr(video_module.VideoReader, "_seek", lambda self: seeks.append(original(self)) or seeks[-1])
    assert_every_restart_is_exact(lambda: source(path), rows=90)
    assert seeks == [True] * 4


def test_a_seek_that_lands_on_other_pixels_is_not_trusted(clip, monkeypatch):
    monkeypatch.setattr(video_module, "_SEEK_FROM_FRAME", 1)
    reader = source(clip).open("clip", None)
    reader.read(20, 1 << 30)
    position = {**reader.position(), "crc": 1}
    assert number_of(images(read_all(source(clip), "clip", position))[0]) == 20


def test_an_ended_split_stays_ended_without_decoding(clip):
    reader = source(clip).open("clip", None)
    list(batches(reader))
    again = source(clip).open("clip", reader.position())
    assert again.exhausted
    assert again.closes == ("clip",)
    assert again.read(1, 1) is None


def test_a_changed_file_is_refused_at_restart(tmp_path):
    path = write_video(tmp_path / "a.mp4", 10)
    reader = source(path).open("a", None)
    reader.read(3, 1 << 30)
    write_video(path, 12)
    with pytest.raises(SourceError, match=r"a\.mp4' has changed since the position was recorded \(its size went from"):
        source(path).open("a", reader.position())


def test_references_come_first_and_are_spread_over_the_file(clip):
    table = read_all(source(clip, references=14))
    roles = table["role"].to_pylist()
    assert roles == ["reference"] * 14 + [None] * 40
    assert table["sequence"].to_pylist() == list(range(-14, 40))
    assert [number_of(image) for image in images(table)[:14]] == [round(i * 39 / 13) for i in range(14)]
    assert set(times_us(table)[:15]) == {0}


def test_references_by_opencv_equal_those_by_decord(clip):
    wanted = even_spread(5, 40)
    by_decord = read_frames(clip, wanted)
    by_opencv = read_frames(clip, wanted, decoded_limit_bytes=0)
    assert [number_of(frame) for frame in by_decord] == wanted
    assert all(np.array_equal(a, b) for a, b in zip(by_decord, by_opencv, strict=True))


def test_a_file_above_the_decoded_limit_is_not_given_to_decord(clip, monkeypatch):
    monkeypatch.setattr(random_access, "_by_decord", lambda *_: pytest.fail("decord keeps every frame of the file in memory"))
    assert len(read_frames(clip, [0, 39], decoded_limit_bytes=40 * 48 * 80 * 3 - 1)) == 2


def test_decord_that_hangs_is_left_behind(clip, monkeypatch):
    import threading

    import decord

    release = threading.Event()
    monkeypatch.setattr(random_access, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(decord, "VideoReader", lambda *_, **__: release.wait(30))
    assert [number_of(frame) for frame in read_frames(clip, [3, 9])] == [3, 9]
    release.set()


def test_frame_numbers_behind_the_end_give_the_last_frame(clip):
    assert [number_of(frame) for frame in read_frames(clip, [0, 99])] == [0, 39]


def test_an_empty_file_is_one_row_with_an_error(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (row,) = read_all(source(tmp_path / "empty.mp4")).to_pylist()
    assert (row["stream_id"], row["sequence"], row["image"]) == ("empty", 0, None)
    assert row["error"] == "empty.mp4: the file is empty"


def test_garbage_is_one_row_with_an_error(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (row,) = read_all(source(tmp_path / "noise.mp4", references=4)).to_pylist()
    assert row["error"] == "noise.mp4: no frame can be decoded; not a video, or damaged"


def test_a_file_cut_before_its_index_is_one_row_with_an_error(tmp_path):
    path = write_video(tmp_path / "cut.mp4", 20)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (row,) = read_all(source(path)).to_pylist()
    assert re.fullmatch(r"cut\.mp4: the file ends \d+ bytes early, after 0 decodable frames", row["error"])


def test_a_file_cut_in_the_middle_gives_its_frames_and_then_an_error(tmp_path):
    path = write_video(tmp_path / "cut.mp4", 60)
    index_first(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 1500])
    table = read_all(source(path))
    *good, last = table.to_pylist()
    assert 5 < len(good) < 60
    assert [number_of(image) for image in images(table)][:5] == list(range(5))
    assert all(row["error"] is None for row in good)
    assert last["error"].startswith("cut.mp4: the file ends 1500 bytes early, after ")
    assert last["sequence"] == len(good)
    assert_every_restart_is_exact(lambda: source(path), rows=11)


def test_a_file_that_vanishes_while_it_waits_is_one_row_with_an_error(tmp_path):
    write_video(tmp_path / "a.mp4", 5)
    clips = source(tmp_path)
    reader = clips.open(*clips.splits(), None)
    reader.close()
    (tmp_path / "a.mp4").unlink()
    assert reader.read(9, 1 << 30).to_pylist()[0]["error"] == "a.mp4: cannot be read: No such file or directory"


def test_a_bad_file_leaves_its_neighbors_alone(tmp_path):
    write_video(tmp_path / "a.mp4", 5)
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    write_video(tmp_path / "c.mp4", 6)
    clips = source(tmp_path)
    assert clips.splits() == ["a", "b", "c"]
    assert [read_all(clips, split)["error"].null_count for split in clips.splits()] == [5, 0, 6]


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_cut_avi_and_matroska_files_are_noticed(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 25, (80, 48))
    for i in range(40):
        writer.write(numbered_frame(i))
    writer.release()
    assert missing_bytes(path) == 0
    assert read_all(source(path))["error"].null_count == 40
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 700])
    assert missing_bytes(path) == 700
    assert "ends 700 bytes early" in read_all(source(path))["error"].to_pylist()[-1]


TAILS = [
    b"\0" * 9000,
    b"abcdefgh" * 900,
    bytes(range(256)) * 30,
    b"\0\0\xff\xffmdaX" * 20,
    b"\0\0\0\0abcd",
    b"\0\0\0\x01wxyz" + b"\xff" * 8,
]


@pytest.mark.parametrize("tail", TAILS, ids=range(len(TAILS)))
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi", ".mkv", ".ts"])
def test_bytes_behind_the_end_of_a_container_are_no_error(tmp_path, suffix, tail):
    path = tmp_path / f"clip{suffix}"
    write_video(path, 12)
    with path.open("ab") as file:
        file.write(tail)
    table = read_all(source(path))
    assert [number_of(image) for image in images(table)] == list(range(12))
    assert table["error"].null_count == 12


def test_a_recording_that_never_was_finished_has_no_length(tmp_path):
    path = write_video(tmp_path / "clip.avi", 12)
    data = bytearray(path.read_bytes())
    data[4:8] = b"\xff" * 4
    path.write_bytes(data)
    table = read_all(source(path))
    assert (table.num_rows, table["error"].null_count) == (12, 12)


def test_a_change_of_resolution_inside_a_file_goes_on_in_the_first_size(tmp_path):
    frames = [numbered_frame(i, *((48, 80) if i < 5 else (96, 160))) for i in range(10)]
    (tmp_path / "sizes.mjpeg").write_bytes(b"".join(cv2.imencode(".jpg", frame)[1].tobytes() for frame in frames))
    table = read_all(source(tmp_path / "sizes.mjpeg"))
    assert [number_of(image) for image in images(table)] == list(range(10))
    assert set(table["height"].to_pylist()) == {48}


def test_streams_are_called_like_files_and_may_not_collide(tmp_path):
    for folder in ("left", "right"):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "cam.mp4", 3)
    with pytest.raises(SourceError, match=r"two files would share the stream id 'cam'.*stream_names: path"):
        source(tmp_path / "*" / "*.mp4").splits()
    assert source(tmp_path / "*" / "*.mp4", stream_names="path").splits() == ["left/cam", "right/cam"]


def test_a_missing_file_is_named_with_its_nearest_neighbor(tmp_path):
    write_video(tmp_path / "street_1.mp4", 2)
    with pytest.raises(SourceError, match=r"no such file or folder: .*street1\.mp4.* nearest in .*'street_1\.mp4'"):
        source(tmp_path / "street1.mp4").splits()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_time": "yesterday"}, "start_time: 'yesterday' is not an ISO 8601 time"),
        ({"pace": "fast"}, "pace: 'fast' is not a pace; allowed: 'max', 'realtime'"),
        ({"pace": 0}, "pace: 0 is not a pace"),
        ({"catch_up": True}, "catch_up: true needs a pace to fall behind of"),
        ({"jpeg_quality": 50}, "jpeg_quality: 50 needs encode: jpeg; it is 'raw'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        VideoOptions(path="x.mp4", **options)


@pytest.fixture(scope="module")
def takes(tmp_path_factory) -> Path:
    """MPEG-TS files of 8 to 14 frames, to be joined as `cat` does."""
    folder = tmp_path_factory.mktemp("takes")
    for count in range(8, 15):
        write_video(folder / f"{count}.ts", count)
    return folder


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(8, 14), min_size=1, max_size=5), max_fps=st.sampled_from([None, 5.0, 12.5, 25.0]))
def test_event_time_goes_on_where_the_time_of_joined_files_starts_again(takes, lengths, max_fps):
    path = takes / "joined" / "cam.ts"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join((takes / f"{count}.ts").read_bytes() for count in lengths))
    table = read_all(source(path, max_fps=max_fps))
    kept = range(0, sum(lengths), round(25 / max_fps) if max_fps else 1)
    numbers = [number for count in lengths for number in range(count)]
    assert table["sequence"].to_pylist() == list(kept)
    assert times_us(table) == [40_000 * number for number in kept]
    assert [number_of(image) for image in images(table)] == [numbers[number] for number in kept]


def test_a_restart_within_joined_files_is_exact_and_never_seeks_by_time(takes, monkeypatch):
    path = takes / "twice.ts"
    path.write_bytes((takes / "12.ts").read_bytes() * 3)
    monkeypatch.setattr(video_module, "_SEEK_FROM_FRAME", 1)
    for options in ({}, {"max_fps": 5.0}):
        assert_every_restart_is_exact(lambda options=options: source(path, **options), rows=5)


@pytest.mark.parametrize(("container_ms", "expected_ms"), [
    ([0, 40, 80, 70, 120, 160], [0, 40, 80, 80, 120, 160]),  # a frame told a little late
    ([0, 40, 80, 0, 40, 80], [0, 40, 80, 80, 80, 80]),  # no longer than two steps: taken for jitter
    ([0, 40, 80, 120, 0, 40, 0], [0, 40, 80, 120, 160, 200, 200]),
    ([0, 40, 9000, 9040, 100, 140], [0, 40, 9000, 9040, 9080, 9120]),  # a jump ahead is a pause, and kept
    ([0, 0, 0, 0], [0, 40, 80, 120]),  # no times at all
    ([0, 0, 40, 80], [0, 40, 40, 80]),
])  # fmt: skip
def test_times_of_a_file_never_go_back(clip, monkeypatch, container_ms, expected_ms):
    class Scripted:
        def __init__(self, *_):
            self.at = -1

        def isOpened(self):
            return True

        def grab(self):
            self.at += 1
            return self.at < len(container_ms)

        def retrieve(self, slot=None):
            return True, numbered_frame(self.at)

        def get(self, what):
            return {cv2.CAP_PROP_POS_MSEC: container_ms[min(self.at, len(container_ms) - 1)], cv2.CAP_PROP_FPS: 25.0}.get(
                what, 0
            )

        def release(self):
            pass

    monkeypatch.setattr(video_module.cv2, "VideoCapture", Scripted)
    assert times_us(read_all(source(clip))) == [1000 * time for time in expected_ms]


@pytest.fixture(scope="module")
def av1(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("av1") / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libsvtav1", rate=25, options={"preset": "12", "svtav1-params": "lp=1"})
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, 64, 80), format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_codec_that_opencv_lacks_is_decoded_by_another_library(av1):
    assert not cv2.VideoCapture(str(av1)).grab()
    table = read_all(source(av1, references=3), rows=6)
    assert [number_of(image) for image in images(table)] == [0, 10, 19, *range(20)]
    assert times_us(table)[3:] == [40_000 * number for number in range(20)]
    assert table["error"].null_count == 23
    assert_every_restart_is_exact(lambda: source(av1, max_fps=10.0), rows=3)


def test_a_codec_without_a_decoder_is_named_with_a_remedy(tmp_path, av1, monkeypatch):
    for suffix, ours, other in ((".mkv", b"V_MPEG4/ISO/ASP", b"V_QQQQQ/ISO/ASP"), (".avi", b"mp4v", b"qqqq")):
        path = write_video(tmp_path / f"x{suffix}", 5)
        path.write_bytes(path.read_bytes().replace(ours, other))
        (error,) = read_all(source(path))["error"].to_pylist()
        assert re.search("its codec is '(V_QQQQQ/ISO/ASP|qqqq)', which neither OpenCV nor PyAV has a decoder for here", error)
        assert f"ffmpeg -i x{suffix} -c:v libx264 x-h264.mp4" in error
    monkeypatch.setitem(sys.modules, "av", None)  # not installed
    (error,) = read_all(source(av1))["error"].to_pylist()
    assert error.startswith(
        "clip.mkv: its codec is AV1, which OpenCV has no decoder for; PyAV has more: pip install 'streambank[vision]'"
    )
    assert error.endswith("or convert it: ffmpeg -i clip.mkv -c:v libx264 clip-h264.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
def test_the_codec_of_a_container_is_read_without_a_decoder(tmp_path, suffix):
    written = {".mkv": "'V_MPEG4/ISO/ASP'"}.get(suffix, "'mp4v'")
    assert codec_name(write_video(tmp_path / f"x{suffix}", 3)) in (written, "'FMP4'")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 9)
    assert codec_name(tmp_path / "noise") is None


def test_a_damaged_file_of_a_known_codec_is_not_blamed_on_the_codec(tmp_path):
    path = write_video(tmp_path / "x.mp4", 5)
    data = path.read_bytes()
    at = data.find(b"mdat") + 4
    end = data.find(b"moov") - 4
    path.write_bytes(data[:at] + b"\0" * (end - at) + data[end:])
    (error,) = read_all(source(path))["error"].to_pylist()
    assert error == "x.mp4: no frame can be decoded; not a video, or damaged"
