"""ReKV keeps the promises of every operator: questions about now, the past and times to come, each policy, files or none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rekv_streams import STEP_US, frames, interleaved, operator, question, questions

from operators.rekv.policies import EMLLM, BlockFloat, KVMerger, Policy, Scissorhands, ThinK
from pipelines.testing.conformance import Case, check_close, check_interleaving, check_operator

STREAMS = ("a", "b")
FRAMES = 8
COLOR = "which colour is it?"


ASKED = (
    (2, COLOR, 5 * STEP_US),
    (4, "when did a red circle come", 2 * STEP_US + 1),
    (5, "which circle", None),
    (6, " ", None),
)
FEW_ASKED = ((2, COLOR, 5 * STEP_US), (7, "which circle", None))


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


SHORT: dict[str, Any] = {"window_tokens": 12, "retrieve_frames": 2, "frames_per_stream": 5, "max_answer_tokens": 3}
SAMPLED = {"sample_fps": 1.0, "score": "cosine", "chunk_frames": 2}


@pytest.mark.parametrize("options", [pytest.param({}, id="plain"), pytest.param(SAMPLED, id="sampled", marks=pytest.mark.slow)])
def test_rekv_conforms(options: dict[str, Any], tiny_rekv: str) -> None:
    rows = frames(interleaved(STREAMS, FRAMES))
    bad = bad_rows() if not options else None  # of frames that are skipped nothing is decoded
    check_operator(
        lambda: operator(tiny_rekv, max_streams=2, **(SHORT | options)),
        rows,
        control=asked(STREAMS, ASKED),
        bad_rows=bad,
        ignore=("lag_s",),
        fill_after=2 if options else 1,  # sampled, a repetition fills less
    )


@pytest.mark.parametrize(
    "policy",
    [
        *(
            pytest.param(policy, marks=pytest.mark.slow)
            for policy in (
                KVMerger(heavy=0.25, scale_values=True),
                BlockFloat(),
                Scissorhands(),
                ThinK(),
                EMLLM(shortest=2, longest=3, refine=True, contiguity=0.5),
            )
        ),
    ],
    ids=lambda policy: policy.type,
)
def test_rekv_conforms_with_each_policy(policy: Policy, tiny_rekv: str) -> None:
    sizes: dict[str, Any] = {"window_tokens": 16, "retrieve_frames": 2, "frames_per_stream": 6}
    check_operator(
        lambda: operator(tiny_rekv, max_streams=2, policy=policy, **sizes),
        frames(interleaved("ab", 8)),
        control=asked("ab", FEW_ASKED),
        bad_rows=bad_rows(),
        ignore=("lag_s",),
    )


def test_rekv_conforms_with_batches_up_to_rounding(tiny_rekv: str) -> None:
    rows = frames(interleaved(STREAMS, FRAMES))
    make = lambda: operator(tiny_rekv, max_streams=3, batch_frames=8, batch_questions=4)  # noqa: E731
    compare = {"retrieved": same_frames}
    case = Case(make=make, rows=rows, control=asked(STREAMS, ASKED), ignore=frozenset({"lag_s"}), compare=compare, rtol=1e-4)
    check_interleaving(case)


def same_frames(wanted: pa.Array, got: pa.Array) -> str | None:
    """Kernels round differently for other batch sizes."""
    for a, b in zip(wanted.to_pylist(), got.to_pylist(), strict=True):
        for layer, other in zip(a or [], b or [], strict=True):
            if [f["sequence"] for f in layer] != [f["sequence"] for f in other]:
                return f"other frames: {other} instead of {layer}"
            if not np.allclose([f["score"] for f in layer], [f["score"] for f in other], rtol=1e-4, atol=1e-4):
                return f"other scores: {other} instead of {layer}"
    return None


@pytest.mark.slow  # tests/operators/test_answers.py has it for the part that both methods share
def test_close_ends_answering_processes(tiny_rekv: str, tmp_path: Path) -> None:
    folders = iter(range(100))

    def make() -> Any:
        files = {"disk_gib": 0.01, "disk_path": str(tmp_path / str(next(folders))), "device_gib": 0.002}
        return operator(tiny_rekv, max_streams=3, answerers=1, **files)

    check_close(Case(make=make, rows=frames(interleaved(STREAMS, FRAMES)), control=asked(STREAMS, FEW_ASKED)))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_close_unmaps_the_files_of_the_bank(tiny_rekv: str, tmp_path: Path) -> None:
    files: dict[str, Any] = {"disk_gib": 0.01, "disk_path": str(tmp_path), "device_gib": 0.002}
    first, second = operator(tiny_rekv, **files), operator(tiny_rekv, **files)
    first.process(frames(interleaved("a", 9)))
    second.restore(first.snapshot())
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    for made in (first, second):
        made.close()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_restored_streams_go_on_from_files(tiny_rekv: str, tmp_path: Path) -> None:
    """The general suite makes several operators at a time, which one folder of files cannot serve."""
    options: dict[str, Any] = {"max_streams": 2, "disk_gib": 0.01, "disk_path": str(tmp_path / "blocks"), "device_gib": 0.002}
    rows, later = frames(interleaved("ab", 9)), frames(interleaved("ab", 9, start=9))
    asks = questions([question("a", COLOR), question("b", "when did a red circle come")])
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
