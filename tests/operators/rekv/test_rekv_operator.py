"""What a question sees, how unusable questions and frames are answered, and by whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from rekv_streams import STEP_US, frames, interleaved, operator, question, questions, rows_of

from connectors.errors import ConfigError, RecoveryError, StreambankError
from operators.rekv import ReKVOptions

COLOR = "which colour is it?"


def answer(made: Any, *rows: dict[str, Any], extra: tuple[pa.Field, ...] = ()) -> list[dict[str, Any]]:
    return rows_of(made.control(questions(rows, *extra)))


def content(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("answer", "retrieved", "frames_seen", "as_of"))


def seen_by(tiny: str, count: int) -> dict[str, Any]:
    """The answer of an operator that has seen so many frames."""
    made = operator(tiny)
    made.process(frames(interleaved("a", count)))
    return answer(made, question("a", COLOR))[0]


def test_an_answer_names_the_frames_of_every_layer_with_times_and_scores(tiny_rekv: str) -> None:
    row = seen_by(tiny_rekv, 8)
    assert (row["status"], row["frames_seen"], row["error"]) == ("ok", 8, None)
    assert row["as_of"].timestamp() == 7 * STEP_US / 1e6
    assert len(row["retrieved"]) == 3
    for layer in row["retrieved"]:
        assert len(layer) == 4
        assert all(f["event_time"].timestamp() == f["sequence"] * STEP_US / 1e6 and f["score"] is not None for f in layer)
        assert [f["sequence"] for f in layer] == sorted(f["sequence"] for f in layer)


def test_a_question_about_a_past_time_sees_exactly_the_frames_up_to_it(tiny_rekv: str) -> None:
    made = operator(tiny_rekv)
    made.process(frames(interleaved("a", 9)))
    at, just_before = answer(made, question("a", COLOR, at_us=5 * STEP_US), question("a", COLOR, at_us=5 * STEP_US - 1))
    assert content(at) == content(seen_by(tiny_rekv, 6))
    assert content(just_before) == content(seen_by(tiny_rekv, 5))


def test_an_answer_from_a_memory_that_holds_no_numbers_is_told_as_such(tiny_rekv: str) -> None:
    made = operator(tiny_rekv)
    made.process(frames(interleaved("ab", 8)))
    pool = made._encoding.bank.tiers.home
    assert pool is not None
    pool.rows["values"][:] = torch.nan
    row = answer(made, question("a", COLOR))[0]
    assert (row["status"], row["confidence"]) == ("not_finite", None)
    assert "confidence holds nan, which is no result" in row["error"]


def test_a_time_is_counted_from_the_first_frame_or_back_from_the_newest(tiny_rekv: str) -> None:
    made = operator(tiny_rekv)
    made.process(frames(interleaved("a", 7, start=2)))
    step_s = STEP_US / 1e6
    third, last_but_one = answer(made, question("a", COLOR, at_offset_s=2 * step_s), question("a", COLOR, at_offset_s=-step_s))
    wanted = answer(made, question("a", COLOR, at_us=4 * STEP_US), question("a", COLOR, at_us=7 * STEP_US))
    assert [content(third), content(last_but_one)] == [content(row) for row in wanted]
    assert (third["as_of"].timestamp(), last_but_one["as_of"].timestamp()) == (4 * step_s, 7 * step_s)
    assert answer(made, question("a", COLOR, at_offset_s=20 * step_s)) == []  # waits, from the first frame on
    again = operator(tiny_rekv)
    again.restore(made.snapshot())
    assert answer(again, question("a", COLOR, at_offset_s=2 * step_s))[0]["as_of"].timestamp() == 4 * step_s


def test_answers_below_the_confidence_that_is_asked_for_are_unsure(tiny_rekv: str) -> None:
    rows = []
    for unsure_below in (None, 0.0, 1.0):
        made = operator(tiny_rekv, unsure_below=unsure_below)
        made.process(frames(interleaved("a", 4)))
        rows += answer(made, question("a", COLOR))
    assert [row["status"] for row in rows] == ["ok", "ok", "unsure"]
    assert len({row["answer"] for row in rows}) == 1 and 0 < rows[0]["confidence"] < 1


def test_a_question_about_a_time_to_come_waits_until_the_stream_passes_it(tiny_rekv: str) -> None:
    made = operator(tiny_rekv)
    made.process(frames(interleaved("a", 3)))
    assert answer(made, question("a", COLOR, at_us=6 * STEP_US)) == []
    assert rows_of(made.process(frames(interleaved("a", 4, start=3)))) == []  # frame 6 is at the time, not behind it
    rows = rows_of(made.process(frames(interleaved("a", 5, start=7))))
    assert [content(row) for row in rows] == [content(seen_by(tiny_rekv, 7))]


def test_event_time_that_advances_sets_questions_free_though_no_frame_comes(tiny_rekv: str) -> None:
    made = operator(tiny_rekv)
    made.process(frames(interleaved("a", 7)))
    assert answer(made, question("a", COLOR, at_us=6 * STEP_US + 2), question("a", COLOR, at_us=9 * STEP_US)) == []
    assert made.metrics()["waiting"] == 2
    assert made.advance(6 * STEP_US + 2) == []  # a frame at that very time may still come
    rows = rows_of(made.advance(8 * STEP_US))
    assert [content(row) for row in rows] == [content(seen_by(tiny_rekv, 7))]
    assert made.snapshot(incremental=True).streams == ["a"] and made.metrics()["waiting"] == 1


def test_a_waiting_question_is_answered_when_its_stream_ends_and_survives_a_restart(tiny_rekv: str) -> None:
    first, second = operator(tiny_rekv), operator(tiny_rekv)
    first.process(frames(interleaved("a", 3)))
    answer(first, question("a", COLOR, at_us=60 * STEP_US))
    second.restore(first.snapshot())
    second.close_stream("a")
    assert [content(row) for row in rows_of(second.flush())] == [content(seen_by(tiny_rekv, 3))]
    assert second.flush() == []


def test_only_so_many_questions_wait(tiny_rekv: str) -> None:
    made = operator(tiny_rekv, max_waiting=2)
    made.process(frames(interleaved("a", 3)))
    rows = answer(made, *[question("a", COLOR, at_us=60 * STEP_US)] * 3)
    assert [(row["question_id"], row["status"]) for row in rows] == [("2", "too_many_waiting")]
    assert len(rows_of(made.process(frames([("a", 70)])))) == 2


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (question("nobody", COLOR), "unknown_stream"),
        (question("a", " \n"), "bad_question"),
        (question("a", None), "bad_question"),
        (question("a", COLOR, max_tokens=0), "bad_question"),
        (question("a", COLOR, max_tokens=6), "bad_question"),
        (question("a", "color " * 40), "question_too_long"),
        (question("a", "color" * 10_000), "question_too_long"),
        (question("a", COLOR, at_us=-1), "no_frames"),
    ],
)
def test_a_question_that_cannot_be_answered_becomes_a_row(asked: dict[str, Any], status: str, tiny_rekv: str) -> None:
    made = operator(tiny_rekv)
    made.process(frames(interleaved("a", 3)))
    rows = answer(made, asked, question("a", COLOR))
    assert [row["status"] for row in rows] == [status, "ok"]
    assert rows[0]["error"] and rows[0]["answer"] is None and rows[0]["question"] == asked["question"]
    assert content(rows[1]) == content(seen_by(tiny_rekv, 3))


def test_frames_may_be_given_from_outside(tiny_rekv: str) -> None:
    made = operator(tiny_rekv)
    made.process(frames(interleaved("a", 8)))
    extra = (pa.field("frame_sequences", pa.list_(pa.int64())),)
    wanted = [question("a", COLOR, frame_sequences=chosen) for chosen in ([1, 2, 6], [6, 1], [99], None)]
    rows = answer(made, *wanted, extra=extra)
    assert [row["status"] for row in rows] == ["ok", "bad_frames", "bad_frames", "ok"]
    assert [[f["sequence"] for f in layer] for layer in rows[0]["retrieved"]] == [[1, 2, 6]] * 3
    assert all(f["score"] is None for layer in rows[0]["retrieved"] for f in layer)


def test_questions_change_no_state(tiny_rekv: str) -> None:
    from pipelines.testing._compare import clone_state, state_difference

    made = operator(tiny_rekv)
    made.process(frames(interleaved("ab", 8)))
    before = clone_state(made.snapshot())
    once = answer(made, question("a", COLOR), question("b", COLOR))
    assert answer(made, question("a", COLOR), question("b", COLOR)) == once
    after = made.snapshot()
    before.additive, after.additive = {}, {}  # they are counted
    assert state_difference(before, after) is None


def test_late_frames_are_told_and_skipped_ones_counted(tiny_rekv: str) -> None:
    made = operator(tiny_rekv, sample_fps=0.5)
    rows = rows_of(made.process(frames([("a", 0), ("a", 1), ("a", 4), ("a", 4), ("a", 3), ("a", 8)])))
    assert [(row["sequence"], row["status"]) for row in rows] == [(4, "duplicate"), (3, "late")]
    gauges = made.metrics()
    assert (gauges["frames"], gauges["skipped"], gauges["late"]) == (3, 1, 2)
    resumed = operator(tiny_rekv, sample_fps=0.5)
    resumed.restore(made.snapshot())
    assert (resumed.metrics()["frames"], resumed.metrics()["late"]) == (3, 2)
    assert [f["sequence"] for f in answer(made, question("a", COLOR))[0]["retrieved"][0]] == [0, 4, 8]


def test_features_that_are_not_finite_never_reach_the_bank(tiny_rekv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = operator(tiny_rekv)
    rows = frames(interleaved("a", 4))
    features = made._encoding.features
    spoiled = lambda images: [None if i == 2 else x for i, x in enumerate(features(images))]  # noqa: E731
    monkeypatch.setattr(made._encoding, "features", spoiled)
    assert [(row["sequence"], row["status"]) for row in rows_of(made.process(rows))] == [(2, "rejected_corrupt")]
    assert answer(made, question("a", COLOR))[0]["frames_seen"] == 3


def test_a_full_share_drops_the_oldest_or_refuses(tiny_rekv: str) -> None:
    dropping, refusing = (operator(tiny_rekv, on_bank_full=rule) for rule in ("drop_oldest", "refuse"))
    rows = frames(interleaved("a", 13))
    assert dropping.process(rows) == []
    assert [(row["sequence"], row["status"]) for row in rows_of(refusing.process(rows))] == [
        (n, "bank_full") for n in (10, 11, 12)
    ]
    assert (dropping.metrics()["frames_dropped"], refusing.metrics()["rejected"]) == (3, 3)
    newest, old = answer(dropping, question("a", COLOR), question("a", COLOR, at_us=2 * STEP_US))
    assert newest["frames_seen"] == 13 and min(f["sequence"] for f in newest["retrieved"][0]) >= 3
    assert old["status"] == "no_frames"
    assert answer(refusing, question("a", COLOR))[0]["frames_seen"] == 10


def test_the_answer_that_a_frame_sets_free_comes_before_what_becomes_of_the_frame(tiny_rekv: str) -> None:
    made = operator(tiny_rekv, on_bank_full="refuse")
    made.process(frames(interleaved("a", 10)))
    answer(made, question("a", COLOR, at_us=11 * STEP_US))
    rows = rows_of(made.process(frames([("a", 11), ("a", 12), ("a", 13)])))
    assert [(row["sequence"], row["status"]) for row in rows] == [
        (11, "bank_full"),
        (0, "ok"),
        (12, "bank_full"),
        (13, "bank_full"),
    ]


def test_one_stream_too_many_is_rejected_or_takes_the_place_of_the_idle_one(tiny_rekv: str) -> None:
    rejecting, evicting = (operator(tiny_rekv, max_streams=2, on_streams_full=rule) for rule in ("reject", "evict"))
    rows = frames([*interleaved("ab", 2), ("c", 0)])
    assert [row["status"] for row in rows_of(rejecting.process(rows))] == ["rejected_full"]
    assert rejecting.metrics()["rejected"] == 1
    evicting.process(rows)
    assert [row["status"] for row in answer(evicting, *(question(s, COLOR) for s in "abc"))] == ["unknown_stream", "ok", "ok"]


def test_a_stream_that_comes_back_after_its_eviction_says_so_once(tiny_rekv: str) -> None:
    made = operator(tiny_rekv, max_streams=1)
    made.process(frames(interleaved("a", 3)))
    answer(made, question("a", COLOR, at_us=60 * STEP_US))
    rows = rows_of(made.process(frames([("b", 0), ("a", 3), ("a", 4)])))
    assert [(row["stream_id"], row["status"], row["question_id"]) for row in rows] == [("a", "ok", "0"), ("a", "reset", None)]
    assert content(rows[0]) == content(seen_by(tiny_rekv, 3))
    assert "evicted" in rows[1]["error"] and rows[1]["sequence"] == 3
    assert (made.metrics()["evictions"], made.metrics()["reset"], made.metrics()["streams"]) == (2, 1, 1)
    assert answer(made, question("a", COLOR))[0]["frames_seen"] == 2


def test_a_snapshot_of_other_weights_is_refused(tiny_rekv: str) -> None:
    made = operator(tiny_rekv)
    made.process(frames(interleaved("a", 3)))
    with pytest.raises(RecoveryError, match="window"):
        operator(tiny_rekv, window_tokens=28).restore(made.snapshot())


@pytest.mark.heavy
@pytest.mark.slow
def test_processes_that_answer_from_the_same_files_give_the_same_rows(tiny_rekv: str, tmp_path: Path) -> None:
    def run(made: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for start in range(0, 24, 4):  # more than a stream's share: oldest frames go while questions are open
            rows += rows_of(made.process(frames(interleaved("ab", 4, start=start))))
            rows += answer(made, question("a", COLOR, question_id=f"a{start}"), question("b", COLOR, question_id=f"b{start}"))
            if start == 8:
                rows += answer(made, question("b", COLOR, question_id="later", at_us=14 * STEP_US))
        made.close_stream("a")
        rows += rows_of(made.flush())
        return sorted(rows, key=lambda row: row["question_id"])

    files: dict[str, Any] = {"disk_gib": 0.01, "device_gib": 0.002}
    alone = run(operator(tiny_rekv, disk_path=str(tmp_path / "one"), **files))
    others = set(psutil.Process().children(recursive=True))  # a Ray or a Kafka that other tests of this process use
    beside = operator(tiny_rekv, disk_path=str(tmp_path / "two"), answerers=1, **files)
    try:
        assert run(beside) == alone
        assert len(alone) == 13 and all(row["status"] == "ok" for row in alone)
        for process in set(psutil.Process().children(recursive=True)) - others:
            if "resource_tracker" not in " ".join(process.cmdline()):
                process.kill()
        with pytest.raises(StreambankError, match="has ended"):
            for _ in range(100):
                answer(beside, question("b", COLOR))
                beside.flush()
    finally:
        beside.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answerers": 1}, "disk_gib"),
        ({"disk_gib": 1.0}, "disk_path"),
        ({"representatives": "host"}, "host_gib"),
        ({"frames_per_stream": 3}, "window of 24 tokens needs"),
        ({"frames_per_stream": 10**9}, "do not fit"),
        ({"retrieve_frames": 40}, "window_tokens"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str, tiny_rekv: str) -> None:
    with pytest.raises((ConfigError, StreambankError), match=message):
        operator(tiny_rekv, **options)


def test_frames_of_different_sizes_and_float_frames_are_taken(tiny_rekv: str) -> None:
    made = operator(tiny_rekv, batch_frames=8)
    sizes = [np.full((16 + 8 * n, 20, 3), 40 * n, np.uint8) for n in range(3)]
    assert made.process(frames(interleaved("a", 3), images=sizes)) == []
    floats = [np.full((16, 16, 3), 12.5, np.float32)]
    assert made.process(frames([("a", 3)], images=floats, encoding="raw_f32_rgb")) == []
    assert answer(made, question("a", COLOR))[0]["frames_seen"] == 4


def test_without_a_checkpoint_it_is_the_small_model_of_the_package() -> None:
    from operators.rekv.settings import settings

    assert settings(ReKVOptions(), "watch").window_tokens == 128


def test_a_checkpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(StreambankError, match="'nowhere' does not exist"):
        operator("nowhere")
