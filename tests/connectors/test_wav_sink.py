"""The sink ``wav``: files that any reader plays at any moment, pauses, restarts, crashes between the steps of a commit."""

from __future__ import annotations

import shutil
import wave
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sound_files import noise

from connectors import faults
from connectors.errors import ConfigError, SinkError
from connectors.records import PCM, TIME_TYPE, key_schema
from connectors.sinks import wav as module
from connectors.sinks.wav import WavOptions, WavSink

RATE = 8000


def rows(
    samples: np.ndarray, first: int = 0, *, piece: int = 500, stream: str = "a", rate: int = RATE, shift_us: int = 0
) -> pa.RecordBatch:
    """Rows of pcm.v1 of samples [moments, channels] that begin at moment ``first``."""
    parts = [samples[i : i + piece] for i in range(0, len(samples), piece)]
    at = [first + i * piece for i in range(len(parts))]
    columns = [
        pa.array([stream] * len(parts)),
        pa.array(at, pa.int64()),
        pa.array([round(n * 1e6 / rate) + shift_us for n in at], pa.int64()).cast(TIME_TYPE),
        pa.array([rate] * len(parts), pa.int32()),
        pa.array([samples.shape[1]] * len(parts), pa.int8()),
        pa.array([part.reshape(-1).tolist() for part in parts], pa.list_(pa.int16())),
        pa.nulls(len(parts), pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PCM)


def opened(path: Path, *, attempt: int = 1, **options: float) -> WavSink:
    sink = WavSink(WavOptions(path=path, **options))
    sink.open({"clips": PCM}, attempt=attempt, shard=0)
    return sink


def played(path: Path) -> np.ndarray:
    """Read by the standard library."""
    with wave.open(str(path), "rb") as file:
        assert file.getsampwidth() == 2
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())


def written(sink: WavSink, epoch: int, *batches: pa.RecordBatch) -> None:
    for batch in batches:
        sink.write("clips", batch)
    sink.commit(epoch, sink.prepare(epoch))


@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_grows_with_every_commit_and_plays_in_between(tmp_path, channels):
    sound = noise(9000, channels)
    sink = opened(tmp_path)
    for epoch, (start, end) in enumerate(((0, 3000), (3000, 3001), (3001, 9000))):
        sink.write("clips", rows(sound[start:end], start))
        before = played(tmp_path / "a.wav") if epoch else None
        staged = sink.prepare(epoch)
        assert epoch == 0 or np.array_equal(played(tmp_path / "a.wav"), before)  # nothing early
        sink.commit(epoch, staged)
        sink.commit(epoch, staged)  # twice is once
        assert np.array_equal(played(tmp_path / "a.wav"), sound[:end])
    assert sink.prepare(3) == []
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_readers_of_media_agree(tmp_path):
    import av

    sound = noise(4000, 2)
    sink = opened(tmp_path)
    written(sink, 0, rows(sound[:1000]))
    written(sink, 1, rows(sound[1000:], 1000))
    with av.open(str(tmp_path / "a.wav")) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        assert container.streams.audio[0].rate == RATE
    assert np.array_equal(np.concatenate(frames, 1).reshape(-1, 2), sound)


def test_pauses_become_silence_up_to_a_length(tmp_path):
    sound = noise(1000)
    sink = opened(tmp_path, max_pause_s=0.5)
    written(sink, 0, rows(sound), rows(sound, 1000, shift_us=250_000))
    written(sink, 1, rows(sound, 2000, shift_us=250_000 + 3_600_000_000))
    written(sink, 2, rows(sound, 3000, shift_us=250_004 + 3_600_000_000))
    quiet = np.zeros((2000, 1), np.int16), np.zeros((4000, 1), np.int16)
    assert np.array_equal(played(tmp_path / "a.wav"), np.concatenate([sound, quiet[0], sound, quiet[1], sound, sound]))


def test_rows_without_samples_leave_a_pause_and_odd_ones_are_counted(tmp_path):
    sound = noise(2000, 2)
    bad = rows(sound[500:1000], 500).set_column(5, PCM.field("samples"), pa.nulls(1, pa.list_(pa.int16())))
    odd = rows(sound[1000:1500], 1000).set_column(5, PCM.field("samples"), pa.array([[1, 2, 3]], pa.list_(pa.int16())))
    sink = opened(tmp_path)
    written(sink, 0, rows(sound[:500]), bad, odd, rows(sound[1500:], 1500), rows(sound[:500]))
    made = played(tmp_path / "a.wav")
    assert len(made) == 2000 and not made[500:1500].any()
    assert np.array_equal(made[:500], sound[:500]) and np.array_equal(made[1500:], sound[1500:])
    assert sink.incomplete() == {"hold no whole number of moments, or no rate or channels": 1, "came twice or late": 1}


def test_a_run_goes_on_in_the_file_of_the_one_before(tmp_path):
    sound = noise(6000)
    sink = opened(tmp_path)
    written(sink, 0, rows(sound[:2000]), rows(sound[:500], stream="b"))
    sink.write("clips", rows(sound[2000:3000], 2000))  # not committed
    sink.close()
    assert np.array_equal(played(tmp_path / "a.wav"), sound[:2000])
    again = WavSink(WavOptions(path=tmp_path))
    again.recover(0, [])
    again.open({"clips": PCM}, attempt=2, shard=0)
    written(again, 1, rows(sound[2000:], 2000))
    assert np.array_equal(played(tmp_path / "a.wav"), sound) and np.array_equal(played(tmp_path / "b.wav"), sound[:500])
    fresh = WavSink(WavOptions(path=tmp_path))
    with pytest.raises(SinkError, match="which this run did not write"):
        fresh.recover(-1, [])


class Crash(Exception):
    pass


@pytest.mark.parametrize("step", ["before", "appended", "sealed"])
@pytest.mark.parametrize("epochs_before", [0, 1])
def test_a_commit_that_was_cut_off_is_finished_by_the_next_run(tmp_path, monkeypatch, step, epochs_before):
    sound = noise(5000)
    sink = opened(tmp_path / "out")
    if epochs_before:
        written(sink, 0, rows(sound[:2000]))
    done = 2000 * epochs_before
    sink.write("clips", rows(sound[done:4000], done))
    staged = sink.prepare(epochs_before)

    def crash(*_: object) -> None:
        raise Crash

    if step == "appended":
        monkeypatch.setattr(faults, "reach", crash)
    elif step == "sealed":
        monkeypatch.setattr(Path, "unlink", crash)
    if step != "before":
        with pytest.raises(Crash):
            sink.commit(epochs_before, staged)
        monkeypatch.undo()
    if epochs_before or step != "before":
        made = played(tmp_path / "out" / "a.wav")  # plays whatever has happened
        assert np.array_equal(made, sound[: 4000 if step == "sealed" else done])
    copy = shutil.copytree(tmp_path / "out", tmp_path / "copy")
    again = WavSink(WavOptions(path=copy))
    again.recover(epochs_before, staged)
    assert np.array_equal(played(copy / "a.wav"), sound[:4000])
    again.recover(epochs_before, staged)
    again.open({"clips": PCM}, attempt=2, shard=0)
    written(again, epochs_before + 1, rows(sound[4000:], 4000))
    assert np.array_equal(played(copy / "a.wav"), sound)
    assert [path.name for path in copy.iterdir() if path.suffix == ".wav"] == ["a.wav"]


def test_another_rate_and_a_full_file_go_on_in_a_file_of_their_own(tmp_path, monkeypatch):
    sound = noise(4000)
    sink = opened(tmp_path)
    written(sink, 0, rows(sound[:1000]), rows(sound[1000:2000], 1000, rate=16000))
    assert np.array_equal(played(tmp_path / "a.wav"), sound[:1000])
    assert np.array_equal(played(tmp_path / "a+2.wav"), sound[1000:2000])
    monkeypatch.setattr(module, "_MOST_BYTES", 2 * 1500)
    written(sink, 1, rows(sound[2000:], 2000, rate=16000))
    made = [played(tmp_path / f"a+{n}.wav") for n in (2, 3)]
    assert [len(part) for part in made] == [1500, 1500]
    assert np.array_equal(np.concatenate(made), sound[1000:])
    sink.close()
    again = WavSink(WavOptions(path=tmp_path))
    again.recover(1, [])
    again.open({"clips": PCM}, attempt=2, shard=0)
    written(again, 2, rows(sound[:100], 4000, rate=16000))
    assert np.array_equal(played(tmp_path / "a+4.wav"), sound[:100])


def test_a_file_that_was_changed_is_refused(tmp_path):
    sink = opened(tmp_path)
    written(sink, 0, rows(noise(1000)))
    sink.close()
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-10])
    again = opened(tmp_path, attempt=2)
    with pytest.raises(SinkError, match="was not written by this sink, or was changed"):
        again.write("clips", rows(noise(10), 1000))


def test_names_of_streams_stay_inside_the_folder(tmp_path):
    sink = opened(tmp_path / "out")
    written(sink, 0, *(rows(noise(10), stream=name) for name in ("../up", "a/b", ".hidden", "x" * 400, "ü 🎧")))
    assert len(list((tmp_path / "out").glob("*.wav"))) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_inputs_that_hold_no_sound_are_refused(tmp_path):
    sink = WavSink(WavOptions(path=tmp_path))
    with pytest.raises(ConfigError, match="there is no column 'samples'; there is no whole number 'sample_rate'"):
        sink.examine({"clips": key_schema("x", 1, [])})
    with pytest.raises(ConfigError, match="'samples' is list<item: float>, not a list of int16"):
        fields = [pa.field("samples", pa.list_(pa.float32())), pa.field("sample_rate", pa.int32())]
        sink.examine({"clips": key_schema("x", 1, fields)})
    with pytest.raises(ConfigError, match="takes one input"):
        sink.examine({"a": PCM, "b": PCM})
