"""Source ``audio``: exact samples and times of sound files and of videos, restarts at any row, and files that are damaged."""

import os
import wave
from pathlib import Path

import numpy as np
import pytest
from mp4_files import write_video
from reading import assert_every_restart_is_exact, read_all
from sound_files import noise, tone, write_by_av, write_wav

from connectors.errors import ConfigError, SourceError
from connectors.records import PCM, schema_name
from connectors.sources.audio import AudioOptions, AudioSource, _Cutter
from connectors.sources.sound_track import Sound


def source(path: Path, **options: object) -> AudioSource:
    return AudioSource(AudioOptions(path=str(path), **options))


def samples_of(table) -> np.ndarray:
    good = table.filter(table["error"].is_null())
    (channels,) = set(good["channels"].to_pylist())
    return good["samples"].combine_chunks().flatten().to_numpy().reshape(-1, channels)


def times_us(table) -> list[int]:
    return table["event_time"].cast("int64").to_pylist()


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_wav_files_give_their_samples_and_times(tmp_path, rate, channels):
    wanted = noise(3 * rate // 2 + 7, channels)
    table = read_all(source(write_wav(tmp_path / "take 1.wav", wanted, rate)), rows=4)
    assert table.schema.equals(PCM) and schema_name(table.schema) == "pcm.v1"
    assert np.array_equal(samples_of(table), wanted)
    starts = list(range(0, len(wanted), rate // 4)) if rate % 4 == 0 else list(range(0, len(wanted), round(rate / 4)))
    assert table["sequence"].to_pylist() == starts
    assert times_us(table) == [round(start * 1e6 / rate) for start in starts]
    assert set(table["stream_id"].to_pylist()) == {"take 1"} and set(table["sample_rate"].to_pylist()) == {rate}
    assert table["error"].null_count == table.num_rows


def test_flac_is_exact_and_other_widths_keep_their_upper_16_bits(tmp_path):
    wanted = noise(9000, 2)
    assert np.array_equal(samples_of(read_all(source(write_by_av(tmp_path / "a.flac", wanted, 8000, "flac")))), wanted)
    for width in (3, 4):
        path = write_wav(tmp_path / f"w{width}.wav", wanted, 8000, width)
        assert np.array_equal(samples_of(read_all(source(path))), wanted)
    eight = samples_of(read_all(source(write_wav(tmp_path / "w1.wav", wanted, 8000, 1))))
    assert np.array_equal(eight, wanted & ~0xFF)


def test_the_sound_of_a_video_is_cut_to_its_length(tmp_path):
    wanted = tone(22050, 22050)
    path = write_by_av(tmp_path / "clip.mp4", wanted, 22050, "aac", video=True)
    table = read_all(source(path))
    made = samples_of(table)
    assert len(made) == len(wanted)  # no padding of the codec, at either end
    inner = slice(2048, -2048)
    assert np.abs(made[inner].astype(int) - wanted[inner]).mean() < 200
    assert times_us(table)[:2] == [0, 250_000] or abs(times_us(table)[1] - 250_000) < 50


def test_pieces_do_not_depend_on_how_rows_are_asked_for(tmp_path):
    path = write_wav(tmp_path / "a.wav", noise(30_000), 8000)
    whole = read_all(source(path))
    assert read_all(source(path), rows=1).equals(whole) and read_all(source(path), rows=3).equals(whole)
    reader = source(path, piece_s=0.1).open("a", None)
    assert reader.total_rows() == 38
    assert reader.read(100, 5).num_rows == 1 and reader.read(100, 3 * 1600).num_rows == 3


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp4"])
def test_restarts_are_exact(tmp_path, suffix):
    samples = noise(8000 * 14 + 123, 2)
    path = tmp_path / f"a.{suffix}"
    if suffix == "wav":
        write_wav(path, samples, 8000)
    else:
        write_by_av(path, samples, 8000, "flac" if suffix == "flac" else "aac")
    assert_every_restart_is_exact(lambda: source(path, piece_s=0.7), rows=3)


def test_a_position_of_another_file_or_another_piece_length_is_refused(tmp_path):
    path = write_wav(tmp_path / "a.wav", noise(30_000), 8000)
    reader = source(path).open("a", None)
    reader.read(3, 1 << 20)
    position = reader.position()
    with pytest.raises(SourceError, match="has no piece at sample 6000, where the position says to go on"):
        source(path, piece_s=0.4).open("a", position)
    write_wav(path, noise(30_001), 8000)
    with pytest.raises(SourceError, match="has changed since the position was recorded"):
        source(path).open("a", position)


def test_a_pause_in_the_container_starts_a_row_at_its_time(tmp_path):
    wanted = noise(8 * 1024)
    path = write_by_av(tmp_path / "gap.mkv", wanted, 8000, "pcm_s16le", gap=(4096, 3))
    table = read_all(source(path, piece_s=10.0))
    assert np.array_equal(samples_of(table), wanted)
    assert table["sequence"].to_pylist() == [0, 4096]
    assert times_us(table) == [0, 512_000 + 3_000_000]
    assert_every_restart_is_exact(lambda: source(path, piece_s=0.2), rows=2)


def test_time_that_goes_back_never_falls_behind_a_row(tmp_path):
    def pieces(*times_us: int | None) -> list[tuple[int, int]]:
        cutter, found = _Cutter(0.1), []
        for i, time_us in enumerate(times_us):
            found += cutter.add(Sound(noise(800), 8000, 800 * i, time_us))
        return [(piece.at, piece.time_us) for piece in [*found, *cutter.rest()]]

    assert pieces(0, 100_000, None, 300_003) == [(0, 0), (800, 100_000), (1600, 200_000), (2400, 300_000)]
    assert pieces(0, 100_000, 150_000, 250_000) == [(0, 0), (800, 100_000), (1600, 150_000), (2400, 250_000)]
    assert pieces(0, 100_000, 50_000, 0) == [(0, 0), (800, 100_000), (1600, 200_000), (2400, 300_000)]
    assert pieces(0, 100_000, 900_000, 200_000) == [(0, 0), (800, 100_000), (1600, 900_000), (2400, 1_000_000)]


def test_start_time_moves_event_times(tmp_path):
    path = write_wav(tmp_path / "a.wav", noise(8000), 8000)
    assert times_us(read_all(source(path, start_time="2026-01-01T00:00:00Z")))[1] == 1_767_225_600_000_000 + 250_000
    os.utime(path, ns=(5_000_000_000, 5_000_000_000))
    assert times_us(read_all(source(path, start_time="mtime")))[0] == 5_000_000
    with pytest.raises(ConfigError, match="is not an ISO 8601 time"):
        source(path, start_time="yesterday")


def errors_of(path: Path, **options: object) -> tuple[list[str], np.ndarray | None]:
    s = source(path, **options)
    (split,) = s.splits()
    reader, rows = s.open(split, None), []
    while not reader.exhausted:
        batch = reader.read(10, 1 << 20)
        rows += [] if batch is None else batch.to_pylist()
    wrong = [row for row in rows if row["error"]]
    assert all(row["samples"] is None and row["sample_rate"] is None for row in wrong)
    assert (path.name in reader.unread) == bool(wrong)
    times = [row["event_time"] for row in rows]
    assert times == sorted(times)
    return [row["error"] for row in wrong], np.concatenate([row["samples"] for row in rows if not row["error"]] or [[]])


def test_files_that_hold_no_sound_say_so(tmp_path):
    for name, content, message in (
        ("empty.wav", b"", "empty.wav: the file is empty"),
        ("text.wav", b"no sound " * 100, "text.wav: is no sound or video file, or damaged"),
        ("cut.flac", b"fLaC\0\0", "cut.flac: "),
    ):
        (tmp_path / name).write_bytes(content)
        found, sound = errors_of(tmp_path / name)
        assert len(found) == 1 and found[0].startswith(message), found
        assert not len(sound)
    silent = write_video(tmp_path / "silent.mp4", 5)
    assert errors_of(silent)[0] == ["silent.mp4: has no sound track 0: it has none, only video"]
    one = write_wav(tmp_path / "one.wav", noise(800), 8000)
    assert errors_of(one, track=2)[0] == ["one.wav: has no sound track 2: it has 1"]
    with wave.open(str(tmp_path / "none.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
    assert len(errors_of(tmp_path / "none.wav")[0]) == 1


def test_a_file_that_is_cut_short_gives_what_decodes_and_then_says_so(tmp_path):
    wanted = noise(40_000)
    for name in ("a.wav", "a.flac"):
        path = tmp_path / name
        if name == "a.wav":
            write_wav(path, wanted, 8000)
        else:
            write_by_av(path, wanted, 8000, "flac")
        path.write_bytes(path.read_bytes()[:50_000])
        found, sound = errors_of(path)
        assert len(found) == 1 and ("early" in found[0] or "promises" in found[0] or "cannot be decoded" in found[0]), found
        assert 10_000 < len(sound) < 30_000 and np.array_equal(sound, wanted[: len(sound), 0])


def test_damage_in_the_middle_is_told_where_it_lies_and_the_rest_is_heard(tmp_path):
    path = write_by_av(tmp_path / "a.mp4", tone(80_000, 8000), 8000, "aac")
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + len(data) // 3
    data[middle : middle + 400] = bytes(np.random.default_rng(1).integers(0, 256, 400, dtype=np.uint8))
    path.write_bytes(data)
    found, sound = errors_of(path)
    assert len(found) == 1 and "cannot be decoded" in found[0] and "after" in found[0], found
    assert 60_000 < len(sound) < 80_000
    table = read_all(source(path))
    last = table.num_rows - 1
    assert times_us(table)[last] > table["sequence"][last].as_py() * 125 + 100_000  # what is lost is a pause


def test_a_folder_gives_a_stream_per_file_and_names_that_repeat_are_refused(tmp_path):
    (tmp_path / "b").mkdir()
    write_wav(tmp_path / "one.wav", noise(100), 8000)
    write_by_av(tmp_path / "b" / "one.flac", noise(5000), 8000, "flac")
    (tmp_path / "notes.txt").write_text("x")
    assert source(tmp_path).splits() == ["one"]
    both = AudioOptions(path=[str(tmp_path), str(tmp_path / "b")])
    with pytest.raises(SourceError, match="two files would share the stream id 'one'"):
        AudioSource(both).splits()
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(SourceError, match="it is a named pipe"):
        source(tmp_path).splits()
