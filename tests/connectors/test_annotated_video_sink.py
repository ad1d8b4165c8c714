"""The sink ``annotated_video``: joining, drawing, files that players read, recovery."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import decord
import numpy as np
import pyarrow as pa
import pytest
from browser import needs_browser, shown
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.base import Staged
from connectors.drawing import class_color, decode_image
from connectors.errors import ConfigError, SinkError
from connectors.records import FRAME, TIME_TYPE, output_schema
from connectors.sinks.annotated_video import AnnotatedVideoOptions, AnnotatedVideoSink
from connectors.sinks.mp4 import Codec, Mp4Writer
from connectors.sinks.mp4_pieces import read_note
from pipelines.options import parse_options

EDGES = ("x1", "y1", "x2", "y2")
DETECTION = pa.struct([(edge, pa.float32()) for edge in EDGES] + [("score", pa.float32()), ("label", pa.int16())])
DETECTIONS = output_schema(
    "detections", 1, [pa.field("detections", pa.list_(DETECTION))], {"streambank.classes": json.dumps(["cat"])}
)
HEIGHT, WIDTH = 96, 128


def frames(
    stream: str,
    count: int,
    *,
    first: int = 0,
    step_us: int = 40_000,
    bad: tuple[int, ...] = (),
    times_us: Sequence[int] | None = None,
) -> pa.RecordBatch:
    numbers = range(first, first + count)
    times_us = [n * step_us for n in numbers] if times_us is None else times_us
    gray = [np.full((HEIGHT, WIDTH, 3), (60 + n) % 128, np.uint8).tobytes() for n in numbers]
    columns: list[Any] = [
        [stream] * count,
        list(numbers),
        pa.array(times_us, pa.int64()).cast(TIME_TYPE),
        [None if n in bad else image for n, image in zip(numbers, gray, strict=True)],
        ["raw_bgr8"] * count,
        pa.array([HEIGHT] * count, pa.int32()),
        pa.array([WIDTH] * count, pa.int32()),
        pa.array(["no image data" if n in bad else None for n in numbers], pa.string()),
    ]
    return pa.RecordBatch.from_arrays([pa.array(c) if isinstance(c, list) else c for c in columns], schema=FRAME)


def found(stream: str, sequences: list[int], status: str = "ok", step_us: int = 40_000) -> pa.RecordBatch:
    box = {"x1": 32.0, "y1": 24.0, "x2": 96.0, "y2": 80.0, "score": 0.9, "label": 0}
    count = len(sequences)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([stream] * count),
            pa.array(sequences, pa.int64()),
            pa.array([n * step_us for n in sequences], pa.int64()).cast(TIME_TYPE),
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
    sizes = {path: path.stat().st_size for path in sink.root.glob("*.mp4")}
    assert all(sizes.get(sink.root / final, 0) == int(at) for final, at in (file.final.split("@") for file in staged))
    sink.commit(epoch, staged)
    return [sink.root / file.final.split("@")[0] for file in staged]


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


def shown_us(path: Path) -> list[int]:
    """When each frame is shown, as FFmpeg's demuxer says: a library that had no part in writing the boxes."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [round(frame.pts * stream.time_base * 1_000_000) for frame in container.decode(stream)]


def test_each_frame_becomes_one_picture_with_its_boxes(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out", hold_s=0.0)
    sink.write("clips", frames("cam", 20))
    sink.write("detect", found("cam", list(range(0, 20, 2))))
    sink.write("detect", found("cam", [19]))
    (path,) = commit(sink)
    assert path.relative_to(sink.root).as_posix() == "cam.mp4"
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


@pytest.mark.parametrize(("plain", "memory"), [("plain", "memory"), ("detect.plain", "detect.memory")])
def test_two_detectors_or_two_outputs_of_one_stand_side_by_side_and_do_not_mix(plain: str, memory: str, tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out", (plain, memory))
    sink.write("clips", frames("cam", 4))
    sink.write(memory, found("cam", [0, 1, 2, 3]))
    sink.write(plain, found("cam", []))
    (path,) = commit(sink)
    picture = read(path)[2]
    right = picture.shape[1] - WIDTH
    assert right > WIDTH
    assert not has_box(picture)
    assert has_box(picture, right)


def test_every_stream_has_one_file_that_grows_with_every_commit(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    sink.write("clips", frames("a/b", 3))
    sink.write("clips", frames("..", 3))
    commit(sink, 0)
    sink.write("clips", frames("..", 2, first=3))
    commit(sink, 1)
    commit(sink, 2)  # nothing came
    sink.write("clips", frames("..", 4, first=5))
    commit(sink, 3)
    assert sorted(path.name for path in sink.root.rglob("*.mp4")) == ["%2E..mp4", "a%2Fb.mp4"]
    assert len(read(sink.root / "a%2Fb.mp4")) == 3
    assert shown_us(sink.root / "%2E..mp4") == [40_000 * n for n in range(9)]
    assert len(decord.VideoReader(str(sink.root / "%2E..mp4"), num_threads=1)) == 9


def test_drawn_frames_do_not_wait_in_memory(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out")
    for first in range(0, 200, 10):
        sink.write("clips", frames("cam", 10, first=first))
        sink.write("detect", found("cam", [first + 9]))
        stream = sink._streams["cam"]
        assert len(stream.frames) + sum(map(len, stream.rows.values())) <= 20
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
    assert [path.name for path in (tmp_path / "out").rglob("*.mp4*")] == ["cam.mp4"]
    again.recover(0, staged)
    assert len(read(tmp_path / "out" / "cam.mp4")) == 5


def test_inputs_without_frames_or_detections_are_refused(tmp_path: Path) -> None:
    sink = AnnotatedVideoSink(AnnotatedVideoOptions(path=tmp_path))
    with pytest.raises(ConfigError, match="frames come from none"):
        sink.examine({"detect": DETECTIONS})
    with pytest.raises(ConfigError, match="detections from none"):
        sink.examine({"clips": FRAME})


STEPS = list(range(4_000, 50_001, 100))


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.parametrize("every", [46, pytest.param(1, marks=pytest.mark.slow)])
def test_a_video_of_any_frame_step_opens_and_tells_its_rate(tmp_path: Path, codec: Codec, every: int) -> None:
    for step in STEPS[::every]:
        path = tmp_path / f"{step}.mp4"
        writer = Mp4Writer(path, size=(32, 32), codec=codec)
        for n in range(4):
            writer.write(np.full((32, 32, 3), 60 * n, np.uint8), n * step, step)
        writer.finish()
        assert shown_us(path) == [n * step for n in range(4)]
        assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == pytest.approx(1e6 / step, rel=1e-3)


def test_a_film_may_have_every_frame_step_from_4_to_50_milliseconds(tmp_path: Path) -> None:
    times = [0, *(int(total) for total in np.cumsum(STEPS))]
    sink = open_sink(tmp_path / "out", scale=0.25)
    for epoch, first in enumerate(range(0, len(times), 100)):
        part = times[first : first + 100]
        sink.write("clips", frames("cam", len(part), first=first, times_us=part))
        commit(sink, epoch)
    assert shown_us(tmp_path / "out" / "cam.mp4") == times


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.integers(4_000, 50_000) | st.integers(1, 4_000_000), min_size=1, max_size=12),
    cuts=st.sets(st.integers(1, 12), max_size=3),
)
@pytest.mark.heavy
def test_frames_are_shown_at_their_event_times_however_epochs_cut_them(
    tmp_path: Path, steps: list[int], cuts: set[int]
) -> None:
    root = tmp_path / "out"
    shutil.rmtree(root, ignore_errors=True)
    times = [7_000_000, *(7_000_000 + int(total) for total in np.cumsum(steps))]
    sink, epoch = open_sink(root), 0
    bounds = sorted({0, len(times), *(cut for cut in cuts if cut < len(times))})
    for epoch, (first, end) in enumerate(itertools.pairwise(bounds)):
        sink.write("clips", frames("cam", end - first, first=first, times_us=times[first:end]))
        commit(sink, epoch)
    assert shown_us(root / "cam.mp4") == [time - 7_000_000 for time in times]


@pytest.mark.parametrize(("times_ms", "shown_ms"), [
    ([0, 40, 80, 3_600_000, 3_600_040], [0, 40, 80, 5080, 5120]),  # a pause of an hour
    ([0, 40, 40, 80], [0, 40, 80, 120]),
    ([1000, 1040, 0, 40], [0, 40, 80, 120]),  # time went back
])  # fmt: skip
def test_pauses_are_cut_and_time_never_goes_back(tmp_path: Path, times_ms: list[int], shown_ms: list[int]) -> None:
    sink = open_sink(tmp_path / "out")
    sink.write("clips", frames("cam", len(times_ms), times_us=[1000 * time for time in times_ms]))
    (path,) = commit(sink)
    assert shown_us(path) == [1000 * time for time in shown_ms]


def test_a_frame_rate_that_is_given_holds_over_all_epochs(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out", fps=30.0)
    for epoch in range(3):
        sink.write("clips", frames("cam", 7, first=7 * epoch, step_us=12_345))
        commit(sink, epoch)
    assert shown_us(tmp_path / "out" / "cam.mp4") == [round(n * 1e6 / 30) for n in range(21)]


@pytest.mark.parametrize("rate", [0.0, -1.0, 0.001, 1001.0, 1e9, float("nan"), float("inf")])
def test_a_rate_that_no_player_shows_is_named(tmp_path: Path, rate: float) -> None:
    value, problems = parse_options(AnnotatedVideoOptions, {"path": str(tmp_path), "fps": rate})
    assert value is None
    assert "fps" in str(problems[0]) and str(rate).split(".")[0] in str(problems[0])


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_files_are_of_the_codecs_that_browsers_play(tmp_path: Path, codec: str) -> None:
    sink = open_sink(tmp_path / "out", codec=codec)
    sink.write("clips", frames("cam", 60))
    (path,) = commit(sink)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == (codec, "yuv420p")
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
    places = [n for n, key in enumerate(keys) if key]
    assert places[0] == 0
    assert max(np.diff([*places, len(keys)])) <= 50  # players seek to these
    data = path.read_bytes()
    assert data.find(b"ftyp") == 4
    assert 0 < data.find(b"moov") < data.find(b"moof") < data.find(b"mdat")  # a browser can begin before it has all


def test_an_encoder_that_is_not_there_is_named_with_another_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from connectors.sinks import mp4

    monkeypatch.setattr(mp4, "_has", lambda name: name == "libvpx-vp9")
    sink = AnnotatedVideoSink(AnnotatedVideoOptions(path=tmp_path))
    with pytest.raises(SinkError, match=r"this build of PyAV has no encoder for h264 \(libx264, .*set codec: vp9"):
        sink.open({"clips": FRAME, "detect": DETECTIONS}, attempt=1, shard=0)


def test_boxes_stay_between_sampled_frames_for_as_long_as_asked(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out", hold_s=0.12)
    sink.write("clips", frames("cam", 14))
    empty = found("cam", [8]).set_column(3, "detections", pa.array([[]], DETECTIONS.field("detections").type))
    sink.write("detect", found("cam", [2]))
    sink.write("detect", empty.cast(DETECTIONS))
    sink.write("detect", found("cam", [11]))
    (path,) = commit(sink)
    #  three steps of 40 ms after the row of frame 2; none after the row without boxes
    assert [n for n, picture in enumerate(read(path)) if has_box(picture)] == [2, 3, 4, 5, 11, 12, 13]


def test_boxes_stay_over_commits_and_restarts(tmp_path: Path) -> None:
    for restart in (False, True):
        root = tmp_path / str(restart)
        sink = open_sink(root)
        sink.write("clips", frames("cam", 5))
        sink.write("detect", found("cam", [4]))
        staged = sink.prepare(0)
        sink.commit(0, staged)
        if restart:
            sink.close()
            sink = AnnotatedVideoSink(AnnotatedVideoOptions(path=root))
            sink.recover(0, staged)
            sink.open({"clips": FRAME, "detect": DETECTIONS}, attempt=2, shard=1)
        sink.write("clips", frames("cam", 3, first=5))
        commit(sink, 1)
    pictures = [read(tmp_path / str(restart) / "cam.mp4") for restart in (False, True)]
    assert [has_box(picture) for picture in pictures[0]] == [False] * 4 + [True] * 4
    assert np.array_equal(pictures[0], pictures[1])
    assert (tmp_path / "False" / "cam.mp4").read_bytes() == (tmp_path / "True" / "cam.mp4").read_bytes()


def restarted(root: Path, epoch: int, staged: list[Staged], attempt: int) -> AnnotatedVideoSink:
    sink = AnnotatedVideoSink(AnnotatedVideoOptions(path=root))
    sink.recover(epoch, staged)
    sink.open({"clips": FRAME, "detect": DETECTIONS}, attempt=attempt, shard=0)
    return sink


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["go on", "lost", "before commit", "in commit", "after commit", "twice"]), min_size=1, max_size=6)
)
@pytest.mark.heavy
def test_a_kill_at_any_moment_gives_the_file_of_an_undisturbed_run(tmp_path: Path, kills: list[str]) -> None:
    for name in ("plain", "killed"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    plain, killed = open_sink(tmp_path / "plain"), open_sink(tmp_path / "killed")
    staged: list[Staged] = []
    for epoch, kill in enumerate(kills):
        rows = [("clips", frames("cam", 3, first=3 * epoch)), ("detect", found("cam", [3 * epoch + 1]))]
        for source, batch in rows:
            plain.write(source, batch)
            killed.write(source, batch)
        plain.commit(epoch, plain.prepare(epoch))
        if kill == "lost":  # before the manifest: the epoch never was
            killed.prepare(epoch)
            killed = restarted(tmp_path / "killed", epoch - 1, staged, 10 + epoch)
            for source, batch in rows:
                killed.write(source, batch)
        staged = killed.prepare(epoch)
        target = tmp_path / "killed" / "cam.mp4"
        if kill == "in commit":  # a part of the piece is in the file
            with target.open("ab") as file:
                file.write((tmp_path / "killed" / staged[0].staged).read_bytes()[: staged[0].bytes // 2])
        elif kill in ("after commit", "twice"):
            kept = (tmp_path / "killed" / staged[0].staged).read_bytes()
            killed.commit(epoch, staged)
            if kill == "twice":  # flushed, but the piece was not deleted yet
                (tmp_path / "killed" / staged[0].staged).write_bytes(kept)
        if kill == "go on":
            killed.commit(epoch, staged)
        else:
            killed = restarted(tmp_path / "killed", epoch, staged, 20 + epoch)
    assert (tmp_path / "killed" / "cam.mp4").read_bytes() == (tmp_path / "plain" / "cam.mp4").read_bytes()
    assert len(read(tmp_path / "killed" / "cam.mp4")) == 3 * len(kills)
    assert [path.name for path in (tmp_path / "killed").iterdir() if path.name != "_staging"] == ["cam.mp4"]


def two_epochs(root: Path) -> list[Staged]:
    sink = open_sink(root)
    for epoch in range(2):
        sink.write("clips", frames("cam", 3, first=3 * epoch))
        staged = sink.prepare(epoch)
        sink.commit(epoch, staged)
    return staged


def test_a_file_that_was_deleted_or_cut_is_told_at_the_restart(tmp_path: Path) -> None:
    staged = two_epochs(tmp_path / "out")
    path = tmp_path / "out" / "cam.mp4"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], None):
        path.write_bytes(damaged) if damaged is not None else path.unlink()
        with pytest.raises(SinkError, match=r"cam\.mp4 has \d+ bytes, but epoch 1 was committed up to byte"):
            restarted(tmp_path / "out", 1, staged, 2)


def test_files_of_another_run_or_another_program_are_not_touched(tmp_path: Path) -> None:
    two_epochs(tmp_path / "out")
    with pytest.raises(SinkError, match=r"which this run did not write .this run starts over"):
        restarted(tmp_path / "out", -1, [], 2)
    with pytest.raises(SinkError, match=r"which this run did not write .this run's newest epoch is 0"):
        restarted(tmp_path / "out", 0, [], 2)
    (tmp_path / "other").mkdir()
    writer = Mp4Writer(tmp_path / "other" / "cam.mp4", size=(64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8), 0, 40_000)
    writer.finish()
    before = (tmp_path / "other" / "cam.mp4").read_bytes()
    sink = open_sink(tmp_path / "other")
    with pytest.raises(SinkError, match=r"cam\.mp4 was not written by this sink"):
        sink.write("clips", frames("cam", 3))
    assert (tmp_path / "other" / "cam.mp4").read_bytes() == before


def test_a_run_that_goes_on_with_other_panels_begins_a_file_of_its_own(tmp_path: Path) -> None:
    staged = two_epochs(tmp_path / "out")
    sink = AnnotatedVideoSink(AnnotatedVideoOptions(path=tmp_path / "out", codec="vp9"))
    sink.recover(1, staged)
    sink.open({"clips": FRAME, "detect": DETECTIONS}, attempt=2, shard=0)
    sink.write("clips", frames("cam", 4, first=6))
    commit(sink, 2)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == ["cam+2.mp4", "cam.mp4"]
    assert len(read(tmp_path / "out" / "cam.mp4")) == 6
    assert len(read(tmp_path / "out" / "cam+2.mp4")) == 4


def test_the_size_of_the_first_frame_stays_that_of_the_file_after_a_restart(tmp_path: Path) -> None:
    staged = two_epochs(tmp_path / "out")
    sink = restarted(tmp_path / "out", 1, staged, 2)
    small = frames("cam", 1, first=6).to_pylist()[0] | {"image": bytes(40 * 90 * 3), "height": 40, "width": 90}
    sink.write("clips", pa.RecordBatch.from_pylist([small], schema=FRAME))
    (path,) = commit(sink, 2)
    assert [picture.shape for picture in read(path)] == [read(path)[0].shape] * 7


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_ends_the_epoch_with_what_to_do(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        sink = open_sink(disk / "out")
        noise = np.random.default_rng(0)
        batch = frames("cam", 60)
        images = pa.array([noise.bytes(HEIGHT * WIDTH * 3) for _ in range(60)], pa.binary())
        sink.write("clips", batch.set_column(3, FRAME.field("image"), images))
        with pytest.raises(SinkError, match=r"disk .or the quota. is full.*free space"):
            sink.prepare(0)
        sink.close()
        assert not list(disk.rglob("*.mp4*"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_up_in_a_commit_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = open_sink(tmp_path / "out")
    sink.write("clips", frames("cam", 3))
    staged = sink.prepare(0)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            SinkError, match=r"disk .* is full.*Epoch 0 is committed and its part of the file is kept.*--resume"
        ):
            sink.commit(0, staged)
    restarted(tmp_path / "out", 0, staged, 2)
    assert len(read(tmp_path / "out" / "cam.mp4")) == 3


def test_the_note_of_a_file_says_how_to_go_on(tmp_path: Path) -> None:
    two_epochs(tmp_path / "out")
    path = tmp_path / "out" / "cam.mp4"
    known = read_note(path)
    assert known is not None
    assert known[0] == path.stat().st_size
    assert {name: known[1][name] for name in ("epoch", "frames", "fragments")} == {"epoch": 1, "frames": 6, "fragments": 2}
    for data in (b"", b"x" * 100, path.read_bytes()[:-1], path.read_bytes() + b"\0" * 4):
        (tmp_path / "x.mp4").write_bytes(data)
        assert read_note(tmp_path / "x.mp4") is None


def test_a_writer_that_gives_up_leaves_nothing_behind(tmp_path: Path) -> None:
    writer = Mp4Writer(tmp_path / "x.mp4", size=(64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8), 0, 40_000)
    writer.abort()
    assert not list(tmp_path.iterdir())
    with pytest.raises(SinkError, match="cannot write"):
        Mp4Writer(tmp_path / "missing" / "x.mp4", size=(64, 64))


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


PLAYER = """<title>page</title><video muted src="SOURCE"></video><script>
const video = document.querySelector("video"), page = document.createElement("canvas"), told = document.createElement("p");
const light = () => {
  page.width = video.videoWidth; page.height = video.videoHeight;
  page.getContext("2d").drawImage(video, 0, 0);
  return page.getContext("2d").getImageData(4, video.videoHeight - 5, 1, 1).data[0];
};
video.onerror = () => told.textContent = "error: " + video.error.message;
video.onseeked = () => {
  let brightness; try { brightness = light(); } catch (error) { brightness = error.name; }
  told.textContent = [video.videoWidth, video.videoHeight, video.duration.toFixed(2), brightness, "told"].join(" ");
};
video.onloadeddata = () => video.currentTime = 1.5;
document.body.append(told);
</script>"""


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_a_browser_plays_the_film_of_many_commits_and_finds_a_place_in_it(codec: Codec, tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out", codec=codec)
    for epoch in range(10):  # two seconds
        sink.write("clips", frames("cam", 5, first=5 * epoch))
        sink.write("detect", found("cam", list(range(5 * epoch, 5 * epoch + 5))))
        (film,) = commit(sink, epoch)
    (tmp_path / "page.html").write_text(PLAYER.replace("SOURCE", film.as_uri()))
    (told,) = re.findall(r"<p>(.*?)</p>", shown(tmp_path / "page.html", until="told</p>"))
    picture = read(film)[37]  # 1.5 seconds lie between two frames
    width, height, duration, light, _ = told.split()
    assert (int(height), int(width), duration) == (*picture.shape[:2], "2.00")
    assert abs(int(light) - int(picture[-5, 4, 2])) <= 4
