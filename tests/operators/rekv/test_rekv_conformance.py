"""ReKV keeps the promises of every operator: questions about now, the past and times to come, with and without files."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rekv_streams import STEP_US, frames, interleaved, operator, question, questions

from pipelines.testing.conformance import check_operator

STREAMS = ("a", "b", "c")
FRAMES = 14


def asked() -> pa.RecordBatch:
    rows = []
    for stream in STREAMS:
        for n, text in ((2, "which colour is it?"), (7, "when did a red circle come"), (12, "which circle"), (13, " ")):
            at_us = {2: 9 * STEP_US, 7: 4 * STEP_US + 1, 12: None, 13: None}[n]
            rows.append(question(stream, text, time_us=n * STEP_US, at_us=at_us))
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


@pytest.mark.parametrize("options", [{}, {"sample_fps": 1.0, "score": "cosine", "chunk_frames": 2}], ids=["plain", "sampled"])
def test_rekv_conforms(options: dict[str, Any], tiny_rekv: str) -> None:
    rows = frames(interleaved(STREAMS, FRAMES))
    bad = bad_rows() if not options else None  # of frames that are skipped nothing is decoded
    check_operator(
        lambda: operator(tiny_rekv, max_streams=3, **options),
        rows,
        control=asked(),
        bad_rows=bad,
        ignore=("lag_s",),
        fill_after=2,
    )


def test_rekv_conforms_with_batches_up_to_rounding(tiny_rekv: str) -> None:
    from pipelines.testing.conformance import Case, check_interleaving

    rows = frames(interleaved(STREAMS, FRAMES))
    make = lambda: operator(tiny_rekv, max_streams=3, batch_frames=8, batch_questions=4)  # noqa: E731
    compare = {"retrieved": same_frames}
    check_interleaving(Case(make=make, rows=rows, control=asked(), ignore=frozenset({"lag_s"}), compare=compare))


def same_frames(wanted: pa.Array, got: pa.Array) -> str | None:
    """Kernels round differently for other batch sizes."""
    for a, b in zip(wanted.to_pylist(), got.to_pylist(), strict=True):
        for layer, other in zip(a or [], b or [], strict=True):
            if [f["sequence"] for f in layer] != [f["sequence"] for f in other]:
                return f"other frames: {other} instead of {layer}"
            if not np.allclose([f["score"] for f in layer], [f["score"] for f in other], rtol=1e-4, atol=1e-4):
                return f"other scores: {other} instead of {layer}"
    return None


def test_restored_streams_go_on_from_files(tiny_rekv: str, tmp_path: Path) -> None:
    """The general suite makes several operators at a time, which one folder of files cannot serve."""
    options: dict[str, Any] = {"max_streams": 2, "disk_gib": 0.01, "disk_path": str(tmp_path / "blocks"), "device_gib": 0.002}
    rows, later = frames(interleaved("ab", 9)), frames(interleaved("ab", 9, start=9))
    asks = questions([question("a", "which colour is it?"), question("b", "when did a red circle come")])
    undisturbed = operator(tiny_rekv, max_streams=2)
    undisturbed.process(rows)
    undisturbed.process(later)
    first = operator(tiny_rekv, **options)
    first.process(rows)
    state = first.snapshot()
    assert not [name for name in state.rows if "keys" in name], "blocks stand in the snapshot though they are in files"
    first.process(frames(interleaved("ab", 3, start=9)))  # lost with the process
    second = operator(tiny_rekv, **options)
    second.restore(state)
    second.process(later)
    wanted, got = (o.control(asks)[0].drop_columns(["lag_s"]) for o in (undisturbed, second))
    assert got.to_pylist() == wanted.to_pylist()
