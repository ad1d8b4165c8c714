"""Sound for films, as WAV, in the films and as tokens that become sound again: killed again and again, on one shard or three,
it is the sound of an undisturbed run, sample for sample."""

from __future__ import annotations

import signal
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_workload import run_process
from sound_models import write_model

from connectors.sinks.mp4 import Mp4Writer

NAMES = ("one", "two")


def films(folder: Path) -> Path:
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        random = np.random.default_rng(seed)
        writer = Mp4Writer(folder / f"{name}.mp4", size=(32, 32))
        for i in range(34 + 5 * seed):
            picture = np.repeat(np.repeat(random.integers(0, 256, (4, 4, 3), np.uint8), 8, 0), 8, 1)
            writer.write(picture, i * 50_000, 50_000)
        writer.finish()
    return folder


def values(films: Path, model: Path, run: Path, *, shards: int = 1, pace: Any = "max") -> dict[str, Any]:
    generator = {"type": "operators.specvqgan.operator:SpecVQGANOperator", "checkpoint": str(model)}
    codec = {"type": "operators.specvqgan_codec.operator:SpecVQGANCodecOperator", "checkpoint": str(model)}
    return {
        "name": "foley",
        "state": str(run / "state"),
        "epoch_s": 0.2,
        "sources": {"clips": {"type": "video", "path": str(films / "*.mp4"), "pace": pace}},
        "operators": {
            "foley": {**generator, "input": "clips", "shards": shards, "max_batch": 8},
            "play": {**codec, "mode": "decode", "input": "foley.tokens", "shards": shards},
        },
        "sinks": {
            "heard": {"type": "wav", "input": "foley.sound", "path": str(run / "wav")},
            "played": {"type": "wav", "input": "play.sound", "path": str(run / "played")},
            "film": {"type": "annotated_video", "inputs": ["clips", "foley.sound"], "mux": "sound", "path": str(run / "film")},
        },
    }


def played(path: Path) -> np.ndarray:
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def heard(path: Path) -> tuple[int, np.ndarray]:
    import av

    with av.open(str(path)) as film:
        count = sum(1 for _ in film.decode(video=0))
    with av.open(str(path)) as film:
        return count, np.concatenate([frame.to_ndarray().reshape(-1) for frame in film.decode(audio=0)])


@pytest.mark.slow
def test_killed_runs_and_other_shards_give_the_sound_of_an_undisturbed_run(tmp_path: Path) -> None:
    model, clips = write_model(tmp_path / "model"), films(tmp_path / "films")
    assert run_process(values(clips, model, tmp_path / "whole"), resume=True) == 0
    assert run_process(values(clips, model, tmp_path / "shards", shards=3), resume=True) == 0
    killed = values(clips, model, tmp_path / "killed", pace=4.0)
    for fault in ("after_prepare:epoch=0", "between_renames:epoch=1"):
        assert run_process(killed, resume=True, fault=fault) == -signal.SIGKILL
    assert run_process(killed, resume=True) == 0
    for name in NAMES:
        wanted = {folder: played(tmp_path / "whole" / folder / f"{name}.wav") for folder in ("wav", "played")}
        pictures, sound = heard(tmp_path / "whole" / "film" / f"{name}.mp4")
        assert len(wanted["wav"]) == len(wanted["played"]) > 30_000 and np.array_equal(sound, wanted["wav"])
        for run in ("shards", "killed"):
            for folder, samples in wanted.items():
                assert np.array_equal(played(tmp_path / run / folder / f"{name}.wav"), samples), f"{run}: {folder} of {name}"
            found, same = heard(tmp_path / run / "film" / f"{name}.mp4")
            assert found == pictures and np.array_equal(same, sound)
