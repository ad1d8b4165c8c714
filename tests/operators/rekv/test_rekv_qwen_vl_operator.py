"""The operator with Qwen-VL: pairs of frames of any size, questions between them, restarts in the middle of a pair."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from kept_frames import keep
from qwen_models import QWEN, model_folder
from rekv_streams import STEP_US, frames, interleaved, operator, question, questions, rows_of

from connectors.device_frames import KeptFrames
from connectors.errors import ConfigError
from models.rekv import loaders
from models.rekv.checkpoint import load_checkpoint
from operators.questions import Question
from operators.rekv.policies import BlockFloat, Policy, Scissorhands
from operators.rekv.weights import load_file_answering
from pipelines.testing._compare import clone_state, state_difference
from pipelines.testing.conformance import check_operator

COLOR = "what color is this"
FEW = [pytest.param("qwen2_vl", marks=pytest.mark.slow), "qwen2_5_vl", "qwen3_vl"]
SIZES: dict[str, Any] = {"frame_tokens": 4, "window_tokens": 24, "retrieve_frames": 4, "frames_per_stream": 16}
WITH_WORDS = SIZES | {"window_tokens": 64, "retrieve_frames": 3, "frames_per_stream": 44}


@pytest.fixture(scope="session")
def qwen_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a tiny checkpoint folder of each family."""
    return {family: model_folder(tmp_path_factory.mktemp(family), family) for family in QWEN}


@pytest.fixture(autouse=True)
def _weights_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They never change, and the tests make many operators."""
    monkeypatch.setattr(loaders, "load_checkpoint", _read)


@cache
def _read(path: Path, **given: Any) -> Any:
    return load_checkpoint(path, **given)


def made(folders: dict[str, str], family: str = "qwen2_5_vl", **options: Any) -> Any:
    return operator(folders[family], **((WITH_WORDS if family == "qwen3_vl" else SIZES) | options))


def answer(one: Any, *rows: dict[str, Any], extra: tuple[pa.Field, ...] = ()) -> list[dict[str, Any]]:
    return rows_of(one.control(questions(rows, *extra)))


def pictures(count: int) -> list[np.ndarray]:
    """Noise of three sizes, in runs of odd length."""
    noise = np.random.default_rng(5)
    sizes = [(16, 16), (16, 16), (16, 16), (8, 24), (8, 24), (30, 8), (30, 8)]
    return [noise.integers(0, 256, (*sizes[i % len(sizes)], 3), np.uint8) for i in range(count)]


def sized(count: int, start: int = 0, **more: Any) -> pa.RecordBatch:
    return frames(interleaved("a", count, start=start), images=pictures(20)[start : start + count], **more)


@pytest.mark.slow
@pytest.mark.parametrize("family", QWEN)
def test_rekv_conforms_with_qwen_vl(family: str, qwen_folders: dict[str, str]) -> None:
    rows = [question(s, COLOR, time_us=n * STEP_US, at_us=at) for n, at in ((3, 5 * STEP_US), (5, None)) for s in "ab"]
    bad = frames([("a", 0), ("a", 0)], images=[None, np.zeros((16, 0, 3), np.uint8)])
    check_operator(
        lambda: made(qwen_folders, family, max_streams=2),
        frames(interleaved("ab", 7)),
        control=questions(rows),
        bad_rows=bad,
        ignore=("lag_s",),
        fill_after=5 if family != "qwen3_vl" else 13,
    )


def test_a_pair_is_a_block_and_a_frame_of_another_size_begins_a_new_one(qwen_folders: dict[str, str]) -> None:
    one = made(qwen_folders)
    one.process(sized(7))
    (row,) = answer(one, question("a", COLOR))
    # 0 1 | 2 | 3 4 | 5 6: the third frame found no second of its size
    assert (row["status"], row["frames_seen"], row["as_of"].timestamp()) == ("ok", 7, 6 * STEP_US / 1e6)
    assert [f["sequence"] for f in row["retrieved"][0]] == [1, 2, 4, 6]
    one.process(sized(1, start=7))
    assert answer(one, question("a", COLOR))[0] | {"question_id": "0"} == row, "half a pair is not seen yet"
    extra = (pa.field("frame_sequences", pa.list_(pa.int64())),)
    given = [question("a", COLOR, frame_sequences=chosen) for chosen in ([0, 1, 2, 5], [2, 3, 4], [7], [6, 5], [1, 1])]
    rows = answer(one, *given, extra=extra)
    assert [r["status"] for r in rows] == ["ok", "ok", "bad_frames", "bad_frames", "bad_frames"]
    assert [[f["sequence"] for f in r["retrieved"][0]] for r in rows[:2]] == [[1, 2, 6], [2, 4]]
    single = made(qwen_folders, frames_per_block=1)
    single.process(sized(3))
    assert [f["sequence"] for f in answer(single, question("a", COLOR))[0]["retrieved"][0]] == [0, 1, 2]


@pytest.mark.parametrize("family", FEW)
def test_a_past_time_and_times_moved_by_a_constant(family: str, qwen_folders: dict[str, str]) -> None:
    one, then, late = (made(qwen_folders, family) for _ in range(3))
    one.process(sized(14))
    then.process(sized(8))
    (past,) = answer(one, question("a", COLOR, at_us=8 * STEP_US - 1))
    (as_then,) = answer(then, question("a", COLOR))
    assert past == as_then | {"asked_at": past["asked_at"]} and past["status"] == "ok"
    shift = 86_400_000_000
    late.process(sized(14, times_us=[n * STEP_US + shift for n in range(14)]))
    wanted, moved = answer(one, question("a", COLOR))[0], answer(late, question("a", COLOR))[0]
    for name in ("answer", "confidence", "frames_seen"):
        assert wanted[name] == moved[name]
    kept = [[[(f["sequence"], f["score"]) for f in layer] for layer in row["retrieved"]] for row in (wanted, moved)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize(
    "policy", [pytest.param(None, id="plain"), pytest.param(BlockFloat(), id="four_bits", marks=pytest.mark.slow)]
)
def test_a_run_goes_on_from_the_middle_of_a_pair(family: str, policy: Policy | None, qwen_folders: dict[str, str]) -> None:
    """From a full snapshot with an increment laid over it, to the last bit of all that is kept."""
    first, second = (made(qwen_folders, family, policy=policy) for _ in range(2))
    first.process(sized(5))
    state = clone_state(first.snapshot())
    first.process(sized(5, start=5))
    second.restore(state.apply(clone_state(first.snapshot(incremental=True))))
    for one in (first, second):
        one.process(sized(9, start=10))
    asked = question("a", COLOR), question("a", COLOR, at_us=11 * STEP_US)
    assert answer(first, *asked) == answer(second, *asked)
    assert state_difference(first.snapshot(), second.snapshot()) is None


def test_a_waiting_question_sees_the_last_frame_of_a_stream_that_ends(qwen_folders: dict[str, str]) -> None:
    one = made(qwen_folders)
    one.process(sized(3))
    answer(one, question("a", COLOR, at_us=60 * STEP_US))
    one.close_stream("a")
    (row,) = rows_of(one.flush())
    assert (row["frames_seen"], row["as_of"].timestamp()) == (3, 2 * STEP_US / 1e6)


def test_processes_that_answer_get_the_places_of_blocks(qwen_folders: dict[str, str], tmp_path: Path) -> None:
    """The same call as an answerer makes, from the files, without the process."""
    files: dict[str, Any] = {"disk_gib": 0.01, "disk_path": str(tmp_path), "device_gib": 0.002}
    one = made(qwen_folders, **files)
    one.process(sized(14))
    method = one._answers._method
    asked = Question(stream_id="a", sequence=0, time_us=0, question_id="0", text=COLOR, at_us=None, max_tokens=4)
    (view,) = method.views([asked])
    (here,) = method.answer([asked], [view])
    (there,) = load_file_answering(one.options, "watch", one.context.device)([method.portable(asked, view)])
    assert (there.text, there.confidence) == (here.text, here.confidence)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": Scissorhands()}, "places on the axes of qwen2_5_vl are not stored"),
        ({"frames_per_stream": 9}, "a window of 24 tokens needs 16"),
        ({"frame_tokens": 12}, "retrieved frames of 12 tokens exceed"),
    ],
)
def test_options_that_do_not_fit_qwen_vl_are_refused(
    options: dict[str, Any], message: str, qwen_folders: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=message):
        made(qwen_folders, **options)


def test_other_families_take_no_options_of_qwen_vl(tiny_rekv: str) -> None:
    with pytest.raises(ConfigError, match="frame_tokens=8"):
        operator(tiny_rekv, frame_tokens=8)


def test_frames_that_are_kept_where_they_were_decoded_give_the_same_memory(qwen_folders: dict[str, str]) -> None:
    kept, found = KeptFrames(1 << 30), []
    for place in (lambda batch: batch, lambda batch: keep(batch, kept)):
        one = made(qwen_folders)
        for start in (0, 3, 6):  # pairs lie across calls
            one.process(place(sized(3, start)))
        found.append(one.snapshot())
    assert len(kept) == 9
    assert state_difference(*found) is None
