"""Films with questions in the order of event time, and operators that answer which are killed while they work."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from operators.base import Context
from operators.rekv import ReKVOperator
from operators.rekv.config import ReKVOptions
from operators.videostreaming import VideoStreamingOperator, VideoStreamingOptions

FRAMES = 40
QUESTIONS = ((5, None), (12, 7), (20, 30), (33, None), (36, 2), (38, 500))
"""When asked, and about what time, in seconds; 500 never comes."""


class KilledReKV(ReKVOperator):
    """Kills its process when a file beside its blocks says so, at the 3rd answer or the 12th call of the encoder."""

    def __init__(self, options: ReKVOptions, context: Context) -> None:
        super().__init__(options, context)
        arm(self, "append", {"answering": 3, "encoding": 12})  # blocks are in the files then, and in no snapshot


class KilledVideoStreaming(VideoStreamingOperator):
    """The same at the 3rd answer or the 5th call of the encoder."""

    def __init__(self, options: VideoStreamingOptions, context: Context) -> None:
        super().__init__(options, context)
        arm(self, "encode", {"answering": 3, "encoding": 5})


def arm(operator: Any, encode: str, left: dict[str, int]) -> None:
    """Let an operator that answers kill its process after so many calls, when a file beside its blocks says so."""

    def reach(what: str) -> None:
        left[what] -= 1
        marker = Path(str(operator.options.disk_path)).parent / f"kill-{what}"
        if left[what] <= 0 and marker.exists():
            marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    encoding, answer = getattr(operator._encoding, encode), operator._answers._answer

    def encoding_and(*given: Any) -> Any:
        done = encoding(*given)
        reach("encoding")
        return done

    def answering_and(questions: Sequence[Any]) -> Any:
        rows = answer(questions)
        if questions:
            reach("answering")
        return rows

    setattr(operator._encoding, encode, encoding_and)
    operator._answers._answer = answering_and


def write_films(folder: Path) -> None:
    """Write two films of a frame a second, and questions about them."""
    (folder / "films").mkdir()
    for name in "ab":
        rng = np.random.default_rng(ord(name))
        writer = cv2.VideoWriter(str(folder / "films" / f"{name}.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 1.0, (96, 96))
        for _ in range(FRAMES):
            writer.write(cv2.resize(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8), (96, 96)))
        writer.release()
    lines = [
        {
            "stream_id": name,
            "t": asked,
            "question_id": f"{name}{i}",
            "question": "what colour was the circle?",
            "at": None if about is None else f"1970-01-01T00:{about // 60:02d}:{about % 60:02d}Z",
        }
        for i, (asked, about) in enumerate(QUESTIONS)
        for name in "ab"
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


OWN: dict[str, dict[str, Any]] = {
    "rekv": {"type": "answering_faults_workload:KilledReKV", "sample_fps": 1},
    # Clips of four seconds, so that there are many.
    "videostreaming": {
        "type": "answering_faults_workload:KilledVideoStreaming",
        "clip_seconds": 4.0,
        "frames_per_clip": 4,
        "batch_clips": 1,
        "include_open": True,
    },
    # Kills fall between the two frames of a block.
    "rekv_qwen_vl": {
        "type": "answering_faults_workload:KilledReKV",
        "sample_fps": 1,
        "frame_tokens": 4,
        "window_tokens": 24,
        "retrieve_frames": 4,
    },
}


def pipeline(method: str, folder: Path, run: Path, **options: Any) -> dict[str, Any]:
    """Return the pipeline of a method. ``batch_*`` 1: the same bits however rows are cut into batches."""
    columns = {"question_id": "string", "question": "string", "at": "timestamp[us, UTC]", "max_tokens": "int32"}
    weights = {"checkpoint": str(folder / "qwen")} if method == "rekv_qwen_vl" else {}
    watch = {
        **OWN[method],
        **weights,
        "input": "films",
        "control": "questions",
        "align_s": 1,
        "batch_frames": 1,
        "batch_questions": 1,
        "max_batch": 4,
        "max_streams": 2,
        "max_answer_tokens": 6,
        "device_gib": 0.01,
        "disk_gib": 0.01,
        "disk_path": str(run / "blocks"),
        **options,
    }
    questions = {
        "type": "jsonl",
        "path": str(folder / "questions.jsonl"),
        "stream_id": "stream_id",
        "event_time": "t",
        "event_time_unit": "s",
        "columns": columns,
    }
    return {
        "name": "films",
        "state": str(run / "state"),
        "epoch_s": 0.05,
        "sources": {"films": {"type": "video", "path": str(folder / "films" / "*.mp4")}, "questions": questions},
        "operators": {"watch": watch},
        "sinks": {"answers": {"type": "parquet", "input": "watch", "path": str(run / "rows")}},
    }
