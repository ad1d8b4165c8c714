"""The sink ``annotated_video``: joining, drawing, files that players read, recovery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import decord
import numpy as np
import pyarrow as pa
import pytest

from connectors.drawing import class_color, decode_image
from connectors.errors import ConfigError, SinkError
from connectors.records import FRAME, TIME_TYPE, output_schema
from connectors.sinks.annotated_video import AnnotatedVideoOptions, AnnotatedVideoSink, Mp4Writer

EDGES = ("x1", "y1", "x2", "y2")
DETECTION = pa.struct([(edge, pa.float32()) for edge in EDGES] + [("score", pa.float32()), ("label", pa.int16())])
DETECTIONS = output_schema(
    "detections", 1, [pa.field("detections", pa.list_(DETECTION))], {"streambank.classes": json.dumps(["cat"])}
)
HEIGHT, WIDTH = 96, 128


def frames(stream: str, count: int, *, first: int = 0, step_us: int = 40_000, bad: tuple[int, ...] = ()) -> pa.RecordBatch:
    numbers = range(first, first + count)
    gray = [np.full((HEIGHT, WIDTH, 3), (60 + n) % 128, np.uint8).tobytes() for n in numbers]
    columns: list[Any] = [
        [stream] * count,
        list(numbers),
        pa.array([n * step_us for n in numbers]).cast(TIME_TYPE),
        [None if n in bad else image for n, image in zip(numbers, gray, strict=True)],
        ["raw_bgr8"] * count,
        pa.array([HEIGHT] * count, pa.int32()),
        pa.array([WIDTH] * count, pa.int32()),
        pa.array(["no image data" if n in bad else None for n in numbers], pa.string()),
    ]
    return pa.RecordBatch.from_arrays([pa.array(c) if isinstance(c, list) else c for c in columns], schema=FRAME)


def found(stream: str, sequences: list[int], status: str = "ok") -> pa.RecordBatch:
    box = {"x1": 32.0, "y1": 24.0, "x2": 96.0, "y2": 80.0, "score": 0.9, "label": 0}
    count = len(sequences)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([stream] * count),
            pa.array(sequences, pa.int64()),
            pa.array([n * 40_000 for n in sequences]).cast(TIME_TYPE),
            pa.array([[box]] * count, pa.list_(DETECTION)),
            pa.array([status] * count).dictionary_encode().cast(DETECTIONS.field("status").type),
            pa.nulls(count, pa.string()),
        ],
        schema=DETECTIONS,
    )


def open_sink(path: Path, nodes: tuple[str, ...] = ("detect",), **options: Any) -> AnnotatedVideoSink:
    sink = AnnotatedVideoSink(AnnotatedVideoOptions(path=path, **options))
    sink.recover(-1, [])
    sink.open({"clips": FRAME, **dict.fromkeys(nodes, DETECTIONS)}, attempt=1, shard=0)
    return sink


def commit(sink: AnnotatedVideoSink, epoch: int = 0) -> list[Path]:
    staged = sink.prepare(epoch)
    assert not list(sink.root.rglob(f"part-{epoch:06d}-*"))
    sink.commit(epoch, staged)
    return [sink.root / file.final for file in staged]


def read(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    pictures = []
    while True:
        good, picture = capture.read()
        if not good:
            return pictures
        pictures.append(picture)


def has_box(picture: np.ndarray, left: int = 0) -> bool:
    """Tell whether the box's color stands at the lower edge of the box that ``found`` reports."""
    header = picture.shape[0] - HEIGHT
    edge = picture[header + 80, left + 40 : left + 90].astype(int)
    return bool((np.abs(edge - np.array(class_color(0))).max(axis=1) < 60).mean() > 0.8)


def test_each_frame_becomes_one_picture_with_its_boxes(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    sink.write("clips", frames("cam", 20))
    sink.write("detect", found("cam", list(range(0, 20, 2))))
    sink.write("detect", found("cam", [19]))
    (path,) = commit(sink)
    assert path.relative_to(sink.root).as_posix() == "cam/part-000000-000-0000.mp4"
    pictures = read(path)
    assert len(pictures) == 20
    assert [has_box(picture) for picture in pictures] == [n % 2 == 0 or n == 19 for n in range(20)]
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == pytest.approx(25.0)
    assert len(decord.VideoReader(str(path), num_threads=1)) == 20


def test_detections_that_come_before_their_frames_are_drawn(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    sink.write("detect", found("cam", [0, 1, 2]))
    sink.write("clips", frames("cam", 3))
    (path,) = commit(sink)
    assert all(has_box(picture) for picture in read(path))


def test_two_detectors_stand_side_by_side_and_do_not_mix(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out", ("plain", "memory"))
    sink.write("clips", frames("cam", 4))
    sink.write("memory", found("cam", [0, 1, 2, 3]))
    sink.write("plain", found("cam", []))
    (path,) = commit(sink)
    picture = read(path)[2]
    right = picture.shape[1] - WIDTH
    assert right > WIDTH
    assert not has_box(picture)
    assert has_box(picture, right)


def test_streams_get_a_file_each_and_every_epoch_its_own(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    sink.write("clips", frames("a/b", 3))
    sink.write("clips", frames("..", 3))
    first = commit(sink, 0)
    sink.write("clips", frames("..", 2, first=3))
    second = commit(sink, 1)
    assert sorted(path.relative_to(sink.root).as_posix() for path in first + second) == [
        "%2E./part-000000-000-0001.mp4",
        "%2E./part-000001-000-0000.mp4",
        "a%2Fb/part-000000-000-0000.mp4",
    ]
    assert [len(read(path)) for path in second] == [2]


def test_drawn_frames_do_not_wait_in_memory(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    for first in range(0, 200, 10):
        sink.write("clips", frames("cam", 10, first=first))
        sink.write("detect", found("cam", [first + 9]))
        stream = sink._streams["cam"]
        assert len(stream.frames) + len(stream.drawn) + sum(map(len, stream.rows.values())) <= 20
    sink.close()


def test_a_frame_that_cannot_be_decoded_becomes_a_gray_picture(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    sink.write("clips", frames("cam", 3, bad=(1,)))
    sink.write("detect", found("cam", [0, 1, 2], status="rejected_corrupt"))
    (path,) = commit(sink)
    pictures = read(path)
    assert len(pictures) == 3
    assert pictures[1].shape == pictures[0].shape


def test_reference_frames_and_repeats_are_left_out(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    batch = frames("cam", 2)
    references = frames("cam", 2, first=-2).append_column("role", pa.array(["reference"] * 2))
    sink.write("clips", references)
    sink.write("clips", batch)
    sink.write("clips", batch)
    (path,) = commit(sink)
    assert len(read(path)) == 2


def test_a_change_of_resolution_keeps_the_size_of_the_file(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    sink.write("clips", frames("cam", 2))
    small = np.zeros((40, 90, 3), np.uint8).tobytes()
    odd = frames("cam", 1, first=2).to_pylist()[0] | {"image": small, "height": 40, "width": 90}
    sink.write("clips", pa.RecordBatch.from_pylist([odd], schema=FRAME))
    (path,) = commit(sink)
    assert len({picture.shape for picture in read(path)}) == 1


def test_what_was_not_prepared_leaves_nothing_behind(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    sink.write("clips", frames("cam", 30))
    sink.write("detect", found("cam", [29]))
    sink.close()
    assert not list((tmp_path / "out").rglob("*.mp4*"))


def test_recovery_finishes_a_commit_and_removes_the_rest(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    sink.write("clips", frames("cam", 5))
    staged = sink.prepare(0)
    sink.write("clips", frames("cam", 5, first=5))
    sink.prepare(1)  # never committed: its manifest was not written
    again = AnnotatedVideoSink(AnnotatedVideoOptions(path=tmp_path / "out"))
    again.recover(0, staged)
    assert [path.name for path in (tmp_path / "out").rglob("*.mp4*")] == ["part-000000-000-0000.mp4"]
    again.recover(0, staged)


def test_inputs_without_frames_or_detections_are_refused(tmp_path: Path) -> None:
    sink = AnnotatedVideoSink(AnnotatedVideoOptions(path=tmp_path))
    with pytest.raises(ConfigError, match="frames come from none"):
        sink.examine({"detect": DETECTIONS})
    with pytest.raises(ConfigError, match="detections from none"):
        sink.examine({"clips": FRAME})


def test_a_file_that_lost_frames_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    writer = Mp4Writer(path, fps=25.0, size=(64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.write(np.zeros((32, 64, 3), np.uint8))  # OpenCV drops a picture of another size without a word, as on a full disk
    with pytest.raises(SinkError, match="1 of 2 frames"):
        writer.finish()
    with pytest.raises(SinkError, match="cannot write"):
        Mp4Writer(tmp_path / "missing" / "x.mp4", fps=25.0, size=(64, 64))


def test_frames_without_an_answer_do_not_fill_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = open_sink(tmp_path / "out", max_waiting_bytes=1 << 20)  # 28 frames
    for first in range(0, 100, 10):
        sink.write("clips", frames("cam", 10, first=first))
        assert sum(frame.picture.nbytes for frame in sink._streams["cam"].frames) <= 1 << 20
    sink.write("detect", found("cam", [98, 99]))
    (path,) = commit(sink)
    assert [has_box(picture) for picture in read(path)] == [False] * 98 + [True] * 2
    assert "72 frames were drawn before their detections came" in caplog.text


@pytest.mark.parametrize("channels", ["raw_rgb8", "raw_bgr8", "raw_gray8", "raw_f32_rgb", "png"])
def test_every_encoding_of_a_frame_gives_the_same_picture(channels: str) -> None:
    bgr = np.zeros((6, 4, 3), np.uint8)
    bgr[:] = (200, 200, 200) if channels == "raw_gray8" else (10, 120, 250)
    data = {
        "raw_rgb8": bgr[:, :, ::-1].tobytes(),
        "raw_bgr8": bgr.tobytes(),
        "raw_gray8": bgr[:, :, 0].tobytes(),
        "raw_f32_rgb": bgr[:, :, ::-1].astype("<f4").tobytes(),
        "png": cv2.imencode(".png", bgr)[1].tobytes(),
    }[channels]
    picture = decode_image(data, channels, 6, 4)
    assert picture is not None
    assert np.array_equal(picture, bgr)
    picture[:] = 0  # it is the caller's own
    for bad in (None, b"", data[:-1] if channels != "png" else data[:20]):
        assert decode_image(bad, channels, 6, 4) is None


def test_a_photo_is_turned_upright_as_its_orientation_tag_says() -> None:
    tall = np.zeros((32, 16, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", tall)[1].tobytes()
    # APP1 with one EXIF entry: orientation 6, a quarter turn.
    tag = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    turned = jpeg[:2] + b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag + jpeg[2:]
    picture = decode_image(turned, "jpeg", 32, 16)
    assert picture is not None
    assert picture.shape == (16, 32, 3)
