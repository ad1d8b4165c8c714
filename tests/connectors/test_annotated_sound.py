"""The sink ``annotated_video`` with sound: heard with its frames, sample for sample, in files that grow and survive a crash."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from browser import needs_browser, shown

from connectors.errors import ConfigError
from connectors.records import FRAME, PCM, TIME_TYPE
from connectors.sinks.annotated_video import AnnotatedVideoOptions, AnnotatedVideoSink

RATE, STEP_US = 22_050, 50_000
SOUND = np.round(9000 * np.sin(np.arange(5 * RATE) ** 1.2 / 90)).astype(np.int16)


def frames(first: int, count: int, stream: str = "clip") -> pa.RecordBatch:
    numbers = range(first, first + count)
    columns: list[Any] = [
        pa.array([stream] * count),
        pa.array(numbers, pa.int64()),
        pa.array([1_000_000 + n * STEP_US for n in numbers], pa.int64()).cast(TIME_TYPE),
        pa.array([np.full((48, 64, 3), n % 200, np.uint8).tobytes() for n in numbers]),
        pa.array(["raw_rgb8"] * count),
        pa.array([48] * count, pa.int32()),
        pa.array([64] * count, pa.int32()),
        pa.nulls(count, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=FRAME)


def sound(start: int, stop: int, stream: str = "clip", *, rate: int = RATE, shift_us: int = 0) -> pa.RecordBatch:
    columns: list[Any] = [
        pa.array([stream]),
        pa.array([start], pa.int64()),
        pa.array([1_000_000 + round(start * 1e6 / RATE) + shift_us], pa.int64()).cast(TIME_TYPE),
        pa.array([rate], pa.int32()),
        pa.array([1], pa.int8()),
        pa.array([SOUND[start:stop]], pa.list_(pa.int16())),
        pa.nulls(1, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PCM)


def open_sink(path: Path, attempt: int = 1, epoch: int = -1, staged: Any = (), **options: Any) -> AnnotatedVideoSink:
    sink = AnnotatedVideoSink(AnnotatedVideoOptions(path=path, mux="sound", **options))
    sink.recover(epoch, list(staged))
    sink.open({"clips": FRAME, "make.sound": PCM}, attempt=attempt, shard=0)
    return sink


EPOCHS = [
    [("clips", frames(0, 20))],
    [("clips", frames(20, 20)), ("make.sound", sound(0, 30_000))],  # sound comes an epoch later than its frames
    [("make.sound", sound(30_000, 50_001))],
    [("clips", frames(40, 7)), ("make.sound", sound(50_001, 51_000))],
]


def heard(path: Path) -> tuple[int, np.ndarray, list[float]]:
    """Return the number of pictures, the samples from the start of the file, and the times of the pictures."""
    with av.open(str(path)) as file:
        times = [float(frame.pts * frame.time_base) for frame in file.decode(video=0)]
    with av.open(str(path)) as file:
        parts, at = [], 0
        for frame in file.decode(audio=0):
            start = round(float(frame.pts * frame.time_base) * RATE)
            assert start == at, "pieces of sound leave a hole"
            parts.append(frame.to_ndarray().reshape(-1))
            at += frame.samples
    return len(times), np.concatenate(parts) if parts else np.zeros(0, np.int16), times


def run(sink: AnnotatedVideoSink, epochs: range) -> Path:
    for epoch in epochs:
        for source, batch in EPOCHS[epoch]:
            sink.write(source, batch)
        sink.commit(epoch, sink.prepare(epoch))
    return sink.root / "clip.mp4"


def test_sound_is_heard_with_its_frames_sample_for_sample(tmp_path: Path) -> None:
    path = run(open_sink(tmp_path), range(4))
    count, samples, times = heard(path)
    assert count == 47 and np.allclose(times, np.arange(47) * STEP_US / 1e6)
    assert np.array_equal(samples, SOUND[:51_000])


def test_a_file_can_be_played_after_every_epoch(tmp_path: Path) -> None:
    sink = open_sink(tmp_path)
    for epoch, (pictures, moments) in enumerate([(20, 0), (40, 30_000), (40, 50_001), (47, 51_000)]):
        count, samples, _ = heard(run(sink, range(epoch, epoch + 1)))
        assert count == pictures and np.array_equal(samples, SOUND[:moments])


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("committed", [True, False], ids=["killed while committing", "killed before"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, cut: int, committed: bool) -> None:
    wanted = run(open_sink(tmp_path / "whole"), range(4)).read_bytes()
    first = open_sink(tmp_path / "killed")
    run(first, range(cut))
    for source, batch in EPOCHS[cut]:
        first.write(source, batch)
    staged = first.prepare(cut)
    done = cut if committed else cut - 1
    second = open_sink(tmp_path / "killed", attempt=2, epoch=done, staged=staged if committed else ())
    path = run(second, range(done + 1, 4))
    assert path.read_bytes() == wanted


def test_pauses_are_silence_and_what_was_heard_is_not_heard_again(tmp_path: Path) -> None:
    sink = open_sink(tmp_path)
    sink.write("clips", frames(0, 60))
    sink.write("make.sound", sound(0, 10_000))
    sink.write("make.sound", sound(0, 10_000))  # twice
    sink.write("make.sound", sound(10_000, 20_000, shift_us=500_000))  # half a second later
    sink.write("make.sound", sound(20_000, 30_000, rate=44_100))
    sink.write("make.sound", sound(30_000, 34_000))  # begins before the end of what is there
    sink.commit(0, sink.prepare(0))
    _, samples, _ = heard(tmp_path / "clip.mp4")
    gap = round(0.5 * RATE)
    joined = [SOUND[:10_000], np.zeros(gap, np.int16), SOUND[10_000:20_000], SOUND[20_000 + gap : 34_000]]
    assert np.array_equal(samples, np.concatenate(joined))
    assert sink.incomplete() == {"sound comes twice or late": 1, "sound has 44100 Hz; set sound_rate": 1}


def test_inputs_and_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fps=25 would part frames from their sound"):
        AnnotatedVideoOptions(path=tmp_path, mux="sound", fps=25.0)
    with pytest.raises(ConfigError, match="sound from none"):
        AnnotatedVideoSink(AnnotatedVideoOptions(path=tmp_path, mux="sound")).examine({"clips": FRAME})
    with pytest.raises(ConfigError, match=r"\['make.sound'\] give sound; set mux: sound"):
        AnnotatedVideoSink(AnnotatedVideoOptions(path=tmp_path)).examine({"clips": FRAME, "make.sound": PCM})


PLAYER = """<!doctype html><script>
const told = document.createElement("p"), film = Uint8Array.from(atob("FILM"), letter => letter.charCodeAt(0));
document.documentElement.append(told);
new OfflineAudioContext(1, 1, 22050).decodeAudioData(film.buffer).then(
  sound => told.textContent = [sound.length, sound.getChannelData(0)[30000].toFixed(6), "told"].join(" "),
  error => told.textContent = "error " + error + " told");
</script>"""


@pytest.mark.slow
@needs_browser
def test_a_browser_hears_the_sound_of_the_film(tmp_path: Path) -> None:
    path = run(open_sink(tmp_path / "out"), range(4))
    (tmp_path / "page.html").write_text(PLAYER.replace("FILM", base64.b64encode(path.read_bytes()).decode()))
    (said,) = re.findall(r"<p>(.*?)</p>", shown(tmp_path / "page.html", until="told</p>"))
    length, sample, _ = said.split()
    assert int(length) == 51_000 and float(sample) == pytest.approx(SOUND[30_000] / 32768, abs=1e-5)
