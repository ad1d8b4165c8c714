"""A film that is drawn by a run which is killed again and again is the film of an undisturbed run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from engine_workload import run_process

FRAMES, STEP_US = 120, 15_000  # 66.7 frames a second


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from connectors.sinks.mp4 import Mp4Writer

    path = tmp_path_factory.mktemp("clips") / "cam.mp4"
    writer = Mp4Writer(path, size=(64, 48))
    for n in range(FRAMES):
        writer.write(np.full((48, 64, 3), 40 + n, np.uint8), n * STEP_US, STEP_US)
    writer.finish()
    return path


def values(clip: Path, run: Path) -> dict[str, Any]:
    return {
        "name": "drawn",
        "state": str(run / "state"),
        "epoch_s": 0.05,
        "sources": {"clips": {"type": "video", "path": str(clip)}},
        "operators": {"mark": {"type": "marked_workload:Marker", "input": "clips", "max_batch": 8, "slow_s": 0.03}},
        "sinks": {"video": {"type": "annotated_video", "inputs": ["clips", "mark"], "path": str(run / "video")}},
    }


def shown(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [round(frame.pts * stream.time_base * 1_000_000) for frame in container.decode(stream)]


def test_a_film_of_a_run_that_is_killed_again_and_again_has_every_frame_once(clip: Path, tmp_path: Path) -> None:
    for fault in ("after_prepare:epoch=0", "after_manifest:epoch=0", "between_renames:epoch=1", "before_manifest:epoch=2"):
        assert run_process(values(clip, tmp_path), resume=True, fault=fault) == -signal.SIGKILL
    assert run_process(values(clip, tmp_path), resume=True) == 0
    path = tmp_path / "video" / "cam.mp4"
    assert [found.name for found in (tmp_path / "video").rglob("*.mp4*")] == ["cam.mp4"]
    assert shown(path) == [n * STEP_US for n in range(FRAMES)]
    capture = cv2.VideoCapture(str(path))
    for n in range(FRAMES):
        good, picture = capture.read()
        assert good
        header = picture.shape[0] - 48
        plain = picture[header + 40, 50].astype(int)  # outside of the box
        edge = picture[header + 29 : header + 32, 15:35].astype(int)  # its lower edge
        assert abs(plain.mean() - (40 + n)) < 8
        assert np.abs(edge - plain).max() > 40, f"frame {n} has no box, its own or a held one"
