"""VideoStreaming over films with questions in the order of event time; an operator that is killed while it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rekv_faults_workload import arm, films_pipeline

from operators.base import Context
from operators.videostreaming import VideoStreamingOperator, VideoStreamingOptions


class KilledOnce(VideoStreamingOperator):
    """Kills its process when a file beside its clips says so, at the 3rd answer or the 5th call of the encoder."""

    def __init__(self, options: VideoStreamingOptions, context: Context) -> None:
        super().__init__(options, context)
        arm(self, "encode", {"answering": 3, "encoding": 5})  # memories are in the files then, and in no snapshot


def pipeline(folder: Path, run: Path, **options: Any) -> dict[str, Any]:
    """Return a pipeline with clips of four seconds, so that there are many."""
    own = {"clip_seconds": 4.0, "frames_per_clip": 4, "batch_clips": 1, "include_open": True}
    return films_pipeline(folder, run, "videostreaming_faults_workload:KilledOnce", **(own | options))
