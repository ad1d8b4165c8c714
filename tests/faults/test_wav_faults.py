"""Sound that is written by a run which is killed again and again is the sound of an undisturbed run, sample for sample."""

from __future__ import annotations

import signal
import wave
from pathlib import Path
from typing import Any

import numpy as np
from engine_workload import run_process
from sound_files import noise, write_by_av, write_wav

RATE = 8000


def values(sounds: Path, run: Path) -> dict[str, Any]:
    return {
        "name": "sounds",
        "state": str(run / "state"),
        "epoch_s": 0.05,
        "sources": {"clips": {"type": "audio", "path": str(sounds), "piece_s": 0.1, "pace": 20.0}},
        "sinks": {"files": {"type": "wav", "input": "clips", "path": str(run / "wav")}},
    }


def played(path: Path) -> np.ndarray:
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())


def test_sound_of_a_run_that_is_killed_again_and_again_has_every_sample_once(tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    wanted = {"one": noise(12 * RATE + 77, 2, seed=1), "two": noise(11 * RATE, seed=2)}
    write_wav(sounds / "one.wav", wanted["one"], RATE)
    write_by_av(sounds / "two.flac", wanted["two"], RATE, "flac")
    faults = ("after_prepare:epoch=0", "after_manifest:epoch=0", "between_renames:epoch=1", "before_manifest:epoch=2")
    for fault in faults:
        assert run_process(values(sounds, tmp_path), resume=True, fault=fault) == -signal.SIGKILL
        for path in (tmp_path / "wav").glob("*.wav"):  # plays, and holds the begin of what is true
            made = played(path)
            assert np.array_equal(made, wanted[path.stem][: len(made)])
    assert run_process(values(sounds, tmp_path), resume=True) == 0
    assert sorted(path.name for path in (tmp_path / "wav").rglob("*.wav*")) == ["one.wav", "two.wav"]
    for name, samples in wanted.items():
        assert np.array_equal(played(tmp_path / "wav" / f"{name}.wav"), samples)
