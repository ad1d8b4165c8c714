"""VideoStreaming keeps the promises of every operator: questions about now, the past and times to come, clip rows, files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from video_streams import STEP_US, frames, interleaved, question, questions
from videostreaming_streams import COLOR, operator

from pipelines.testing.conformance import Case, check_close, check_interleaving, check_operator

STREAMS = ("a", "b")
FRAMES = 16
ASKED = (
    (2, COLOR, 11 * STEP_US),
    (7, "when did a red circle come", 4 * STEP_US + 1),
    (12, "which circle", None),
    (13, " ", None),
)


def asked(streams: Sequence[str], about: Sequence[tuple[int, str, int | None]]) -> pa.RecordBatch:
    rows = [question(stream, text, time_us=n * STEP_US, at_us=at_us) for stream in streams for n, text, at_us in about]
    return questions(sorted(rows, key=lambda row: row["event_time"]))


def bad_rows() -> pa.RecordBatch:
    nan = np.full((16, 16, 3), np.nan, dtype=np.float32)
    batches = [
        frames([("a", 0)], images=[None]),
        frames([("a", 0)], images=[np.zeros((16, 0, 3), np.uint8)]),
        frames([("a", 0)], images=[nan], encoding="raw_f32_rgb"),
        frames([("a", 0)], encoding="jpeg"),
    ]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


SHORT = {"clip_seconds": 1.5, "frames_per_clip": 3, "similarity": "dot", "include_newest": True, "propagate": False}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"clip_events": True, "include_open": True}, id="clips"),
        pytest.param(SHORT | {"on_bank_full": "refuse"}, id="short", marks=pytest.mark.slow),
    ],
)
def test_videostreaming_conforms(options: dict[str, Any], tiny_videostreaming: str) -> None:
    check_operator(
        lambda: operator(tiny_videostreaming, max_streams=2, clips_per_stream=3, **options),
        frames(interleaved(STREAMS, FRAMES)),
        control=asked(STREAMS, ASKED),
        bad_rows=bad_rows(),
        ignore=("lag_s",),
    )


def test_videostreaming_conforms_with_batches_up_to_rounding(tiny_videostreaming: str) -> None:
    def make() -> Any:
        return operator(tiny_videostreaming, max_streams=3, batch_frames=8, batch_clips=4, batch_questions=4)

    compare = {"selected": same_clips, "intervals": same_clips}
    rows = frames(interleaved(STREAMS, FRAMES))
    case = Case(make=make, rows=rows, control=asked(STREAMS, ASKED), ignore=frozenset({"lag_s"}), compare=compare, rtol=1e-3)
    check_interleaving(case)


def same_clips(wanted: pa.Array, got: pa.Array) -> str | None:
    """Kernels round differently for other batch sizes."""
    for mine, other in zip(wanted.to_pylist(), got.to_pylist(), strict=True):
        if [row["start"] for row in mine or []] != [row["start"] for row in other or []]:
            return f"other clips: {other} instead of {mine}"
        scores = [[row["score"] for row in rows or []] for rows in (mine, other)]
        if not np.allclose(*scores, atol=1e-4):
            return f"other scores: {other} instead of {mine}"
    return None


@pytest.mark.slow
def test_close_ends_answering_processes(tiny_videostreaming: str, tmp_path: Path) -> None:
    folders = iter(range(100))

    def make() -> Any:
        files = {"disk_gib": 0.01, "disk_path": str(tmp_path / str(next(folders))), "device_gib": 0.002}
        return operator(tiny_videostreaming, max_streams=3, answerers=1, **files)

    rows = frames(interleaved(STREAMS, FRAMES))
    check_close(Case(make=make, rows=rows, control=asked(STREAMS, ((7, "which circle", None),))))


def test_restored_streams_go_on_from_files(tiny_videostreaming: str, tmp_path: Path) -> None:
    """The general suite makes several operators at a time, which one folder of files cannot serve."""
    options: dict[str, Any] = {"max_streams": 2, "disk_gib": 0.01, "disk_path": str(tmp_path / "clips"), "device_gib": 0.002}
    rows, later = frames(interleaved("ab", 10)), frames(interleaved("ab", 9, start=10))
    asks = questions([question("a", COLOR), question("b", "when did a red circle come")])
    undisturbed = operator(tiny_videostreaming, max_streams=2)
    undisturbed.process(rows)
    undisturbed.process(later)
    first = operator(tiny_videostreaming, **options)
    first.process(rows)
    state = first.snapshot()
    assert "watch.memory" not in state.rows, "memories stand in the snapshot though they are in files"
    first.process(frames(interleaved("ab", 3, start=10)))  # lost with the process
    second = operator(tiny_videostreaming, **options)
    second.restore(state)
    second.process(later)
    wanted, got = (made.control(asks)[0].drop_columns(["lag_s"]) for made in (undisturbed, second))
    assert got.to_pylist() == wanted.to_pylist()
    for made in (undisturbed, first, second):
        made.close()
