"""What a question sees, which clips it selects, how unusable questions, frames and clips are told, and who answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from video_streams import STEP_US, frames, image, interleaved, question, questions, rows_of
from videostreaming_streams import COLOR, operator

from connectors.errors import CheckpointMismatch, ConfigError, RecoveryError
from models.videostreaming.encoding import EncodedClip
from models.videostreaming.model import VideoStreamingModel
from operators.base import Context
from operators.videostreaming import VideoStreamingOperator, VideoStreamingOptions, encoder
from operators.videostreaming import answering as answering_module

SELECT = pa.field("select_clips", pa.int32())
CLIP = 4  # frames


def answer(made: Any, *rows: dict[str, Any], extra: tuple[pa.Field, ...] = ()) -> list[dict[str, Any]]:
    return rows_of(made.control(questions(rows, *extra)))


def content(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("answer", "confidence", "selected", "clips_seen", "as_of", "video_tokens"))


def seen_by(tiny: str, count: int, **options: Any) -> dict[str, Any]:
    """The answer of an operator that has seen so many frames."""
    made = operator(tiny, **options)
    made.process(frames(interleaved("a", count)))
    return answer(made, question("a", COLOR))[0]


def second(row: Any) -> float:
    return float(row.timestamp())


def test_an_answer_names_its_clips_with_times_and_scores(tiny_videostreaming: str) -> None:
    row = seen_by(tiny_videostreaming, 5 * CLIP + 1)
    assert (row["status"], row["clips_seen"], row["error"], row["video_tokens"]) == ("ok", 5, None, 2 * CLIP)
    assert second(row["as_of"]) == (5 * CLIP - 1) * STEP_US / 1e6
    numbers = [clip["clip"] for clip in row["selected"]]
    assert len(numbers) == 2 and numbers == sorted(numbers)
    for clip in row["selected"]:
        assert (second(clip["start"]), second(clip["end"])) == (2.0 * clip["clip"], 2.0 * clip["clip"] + 2.0)
        assert -1 <= clip["similarity"] <= 1 and 0 < clip["score"] < 1
    assert sum(one["score"] for one in row["intervals"]) == pytest.approx(sum(clip["score"] for clip in row["selected"]))
    assert row["intervals"][0]["start"] == row["selected"][0]["start"]
    assert row["intervals"][-1]["end"] == row["selected"][-1]["end"]


@pytest.mark.heavy
@pytest.mark.parametrize("files", [False, True])
def test_selection_over_all_tiers_is_that_of_all_indicators(files: bool, tiny_videostreaming: str, tmp_path: Path) -> None:
    """The device has room for two memories and all indicators; clip rows give the indicators to compare by hand."""
    block = CLIP * 32 * 4 + 24
    tiers: dict[str, Any] = {"device_gib": (40 * 128 + 2 * block) / 2**30, "host_gib": 20 * block / 2**30, "max_streams": 1}
    if files:
        tiers |= {"disk_gib": 0.01, "disk_path": str(tmp_path), "device_gib": 0.002, "host_gib": 3 * block / 2**30}
    rows, options = [], {"clips_per_stream": 20, "clip_events": True, "max_streams": 1}
    for given in (options, options | tiers):
        made = operator(tiny_videostreaming, **given)
        clips = [row["clip"] for row in rows_of(made.process(frames(interleaved("a", 20 * CLIP))))]
        assert len(clips) == 20
        rows.append(answer(made, question("a", COLOR), question("a", COLOR, select_clips=7), extra=(SELECT,)))
        made.close()
    assert rows[0] == rows[1]
    stored = torch.nn.functional.normalize(torch.tensor([clip["indicator"] for clip in clips]), dim=1)
    for row, count in zip(rows[0], (2, 7), strict=True):
        similarity = {clip["clip"]: clip["similarity"] for clip in row["selected"]}
        assert len(similarity) == count
        lowest = min(similarity.values())
        asked = _indicator(made, clips)
        scores = (stored @ asked).tolist()
        assert sorted(similarity) == sorted(sorted(range(20), key=lambda k: (-scores[k], -k))[:count])
        assert lowest == pytest.approx(sorted(scores)[-count], abs=1e-4)


def _indicator(made: VideoStreamingOperator, clips: list[dict[str, Any]]) -> torch.Tensor:
    """Return the indicator of the question, of length 1, from a memory that is made anew."""
    again = VideoStreamingOperator(made.options.__class__(checkpoint=made.options.checkpoint, device_gib=0.05), Context())
    again.process(frames(interleaved("a", len(clips) * CLIP)))
    ready = again._answering.ready
    with again._encoding.reader(0, len(clips)) as reader, torch.inference_mode():
        newest = answering_module.memory_of(reader)
        (found,) = answering_module.encode_questions(ready.model, [newest], [ready.asked_ids(COLOR)])
    return torch.nn.functional.normalize(found, dim=0)


def test_a_question_about_a_past_time_sees_the_clips_that_had_ended(tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming)
    made.process(frames(interleaved("a", 3 * CLIP)))
    at, just_before, too_early = answer(
        made,
        question("a", COLOR, at_us=(2 * CLIP - 1) * STEP_US),
        question("a", COLOR, at_us=(2 * CLIP - 1) * STEP_US - 1),
        question("a", COLOR, at_us=-1),
    )
    assert content(at) == content(seen_by(tiny_videostreaming, 2 * CLIP))
    assert content(just_before) == content(seen_by(tiny_videostreaming, CLIP))
    assert (too_early["status"], too_early["answer"]) == ("no_video", None)


def test_a_question_about_a_time_to_come_waits_until_the_stream_passes_it(tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming)
    made.process(frames(interleaved("a", 3)))
    assert answer(made, question("a", COLOR, at_us=2 * CLIP * STEP_US - 1)) == []
    again = operator(tiny_videostreaming)
    again.restore(made.snapshot())  # in the middle of a clip
    for one in (made, again):
        rows = rows_of(one.process(frames(interleaved("a", 3 * CLIP, start=3))))
        assert [content(row) for row in rows] == [content(seen_by(tiny_videostreaming, 2 * CLIP))]


def test_event_time_that_advances_sets_questions_free_though_no_frame_comes(tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming)
    made.process(frames(interleaved("a", CLIP)))
    assert answer(made, question("a", COLOR, at_us=5 * STEP_US)) == [] and made.metrics()["waiting"] == 1
    assert made.advance(5 * STEP_US) == []
    assert [content(row) for row in rows_of(made.advance(6 * STEP_US))] == [content(seen_by(tiny_videostreaming, CLIP))]


def test_before_the_first_clip_a_question_sees_the_frames_that_are_there(tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming)
    made.process(frames(interleaved("a", 1)))
    first = answer(made, question("a", COLOR))[0]
    assert (first["status"], first["clips_seen"], first["video_tokens"]) == ("ok", 1, 1)
    assert [second(first["selected"][0][name]) for name in ("start", "end")] == [0.0, 0.5]
    made.process(frames(interleaved("a", CLIP, start=1)))
    later = answer(made, question("a", COLOR))[0]
    assert content(later) == content(seen_by(tiny_videostreaming, CLIP)) and later["video_tokens"] == CLIP


def test_without_any_video_the_model_is_not_asked(tiny_videostreaming: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering_module, "answer_prompts", lambda *_: pytest.fail("the model was asked"))
    made = operator(tiny_videostreaming)
    made.process(frames(interleaved("a", 2 * CLIP)))
    rows = answer(made, question("a", COLOR, at_us=-5), question("nobody", COLOR))
    assert [(row["status"], row["answer"]) for row in rows] == [("no_video", None), ("unknown_stream", None)]


def test_with_include_open_the_open_clip_is_seen_and_nothing_of_it_is_kept(tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming, include_open=True, include_newest=True)
    made.process(frames(interleaved("a", 2 * CLIP + 3)))
    before = made.snapshot()
    rows = [answer(made, question("a", COLOR))[0] for _ in range(2)]
    assert rows[0] == rows[1] and rows[0]["clips_seen"] == 3
    assert rows[0]["selected"][-1]["clip"] == 2 and second(rows[0]["selected"][-1]["end"]) == (2 * CLIP + 3) * STEP_US / 1e6
    assert second(rows[0]["as_of"]) == (2 * CLIP + 2) * STEP_US / 1e6
    after = made.snapshot()
    for name, tensor in before.dense.items():
        assert torch.equal(tensor, after.dense[name]), name
    for name, stored in before.rows.items():
        assert torch.equal(stored.values_R, after.rows[name].values_R), name


def test_a_pause_ends_a_clip_and_a_short_clip_keeps_its_length(tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming, clip_events=True, clip_gap_s=1.0)
    seconds = [0.0, 0.5, 1.0, 4.0, 4.5, 5.0, 5.5, 6.0, 8.5, 11.0]
    rows = frames([("a", i) for i in range(len(seconds))], times_us=[round(1e6 * at) for at in seconds])
    clips = [row["clip"] for row in rows_of(made.process(rows))]
    told = [(clip["frames"], second(clip["start"]), second(clip["end"])) for clip in clips]
    assert told == [(3, 0.0, 1.5), (4, 4.0, 6.0), (1, 6.0, 6.5), (1, 8.5, 9.0)]
    assert [clip["clip"] for clip in clips] == [0, 1, 2, 3] and all(len(clip["indicator"]) == 32 for clip in clips)
    made.close_stream("a")
    assert [(row["clip"]["frames"], row["sequence"]) for row in rows_of(made.flush())] == [(1, 9)]


def test_slow_cameras_make_clips_of_fewer_frames_and_fast_ones_are_thinned_out(tiny_videostreaming: str) -> None:
    for step_s, told in ((1.0, [2, 2]), (0.125, [4])):
        made = operator(tiny_videostreaming, clip_events=True)
        count = 6 if step_s == 1.0 else 16
        rows = frames([("a", i) for i in range(count)], times_us=[round(1e6 * step_s * i) for i in range(count)])
        assert [row["clip"]["frames"] for row in rows_of(made.process(rows))] == told
        assert made.metrics()["skipped"] == (0 if step_s == 1.0 else 12)


def test_frames_of_other_sizes_and_corrupt_ones_do_not_disturb_a_clip(tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming)
    large = np.kron(image("a", 1), np.ones((2, 2, 1), np.uint8))
    pictures = [image("a", 0), None, large, image("a", 3), image("a", 4)]
    rows = rows_of(made.process(frames([("a", i) for i in range(5)], images=pictures)))
    assert [(row["sequence"], row["status"]) for row in rows] == [(1, "rejected_corrupt")]
    assert answer(made, question("a", COLOR))[0]["clips_seen"] == 1
    late = rows_of(made.process(frames([("a", 2), ("a", 4)])))
    assert [row["status"] for row in late] == ["late", "duplicate"]


def test_a_frame_whose_features_are_not_finite_is_skipped(tiny_videostreaming: str, monkeypatch: pytest.MonkeyPatch) -> None:
    see = VideoStreamingModel.frame_tokens

    def broken(model: Any, frames_FHW3: torch.Tensor) -> torch.Tensor:
        found = see(model, frames_FHW3)
        return found * torch.nan if torch.equal(frames_FHW3[0], torch.from_numpy(image("a", 2))) else found

    monkeypatch.setattr(VideoStreamingModel, "frame_tokens", broken)
    made = operator(tiny_videostreaming)
    rows = rows_of(made.process(frames(interleaved("a", CLIP + 1))))
    assert [(row["sequence"], row["status"]) for row in rows] == [(2, "rejected_corrupt")] and "not finite" in rows[0]["error"]
    assert made.metrics()["frames"] == CLIP and made.metrics()["clips"] == 1


@pytest.mark.parametrize("clips", [4, 40, 400])
def test_an_answer_reads_equally_many_video_tokens_whatever_the_length(clips: int, tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming, clips_per_stream=400, max_streams=1)
    width, generator = made._answering.ready.model.width, torch.Generator().manual_seed(clips)
    made.process(frames(interleaved("a", 1)))  # so that the stream is there
    bank = made._encoding.bank
    for k in range(clips):
        memory = torch.randn(1, 1, 1, CLIP, width, generator=generator)
        indicator = torch.nn.functional.normalize(torch.randn(1, 1, 1, width, generator=generator), dim=-1)
        bank.append([0], memory, memory, indicator, {"facts": torch.tensor([[[k, k + 1, CLIP]]])})
    with bank.reader(0) as reader:
        (found,) = made._answering([answering_module.ClipQuestion(COLOR, 1)], [reader])
    assert (found.video_tokens, len(found.chosen), reader.below) == (2 * CLIP, 2, clips)


def test_a_clip_whose_memory_is_not_finite_cannot_be_selected(
    tiny_videostreaming: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = encoder.encode_clips, []

    def broken(model: Any, clips: Any) -> list[EncodedClip]:
        calls.append([clip.memory_MD for clip in clips])
        done = encode(model, clips)
        return [EncodedClip(done[0].memory_MD * torch.nan, done[0].indicator_D)] if len(calls) in (1, 3) else done

    monkeypatch.setattr(encoder, "encode_clips", broken)
    made = operator(tiny_videostreaming, clip_events=True)
    rows = rows_of(made.process(frames(interleaved("a", 4 * CLIP))))
    told = [(row["status"], row["sequence"], row["clip"] and row["clip"]["clip"]) for row in rows]
    assert told == [("clip_unusable", 3, None), ("ok", 7, 1), ("clip_unusable", 11, None), ("ok", 15, 3)]
    seen = [memory[0] for memory in calls]
    assert seen[0] is None and seen[1] is None  # the first clip left nothing
    assert seen[3] is not None and torch.equal(seen[3], seen[2])  # the one before the broken one goes on
    picked = answer(made, question("a", COLOR, select_clips=4), extra=(SELECT,))[0]
    assert [clip["clip"] for clip in picked["selected"]] == [1, 3] and made.metrics()["clips_unusable"] == 2


def test_an_answer_from_a_memory_that_holds_no_numbers_is_told_as_such(tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming)
    made.process(frames(interleaved("a", 2 * CLIP)))
    pool = made._encoding.bank.tiers.home
    assert pool is not None
    pool.rows["memory"][:, 0] = torch.nan  # of the first clip; the newest one is also asked which clips to read
    row = answer(made, question("a", COLOR))[0]
    assert (row["status"], row["confidence"]) == ("not_finite", None)
    assert "confidence holds nan, which is no result" in row["error"]


def test_where_no_clip_is_usable_there_is_no_answer(tiny_videostreaming: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = encoder.encode_clips
    monkeypatch.setattr(
        encoder,
        "encode_clips",
        lambda model, clips: [EncodedClip(one.memory_MD * torch.inf, one.indicator_D) for one in encode(model, clips)],
    )
    made = operator(tiny_videostreaming)
    made.process(frames(interleaved("a", CLIP)))
    row = answer(made, question("a", COLOR))[0]
    assert row["status"] == "no_video" and "finite" in row["error"]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (question("a", " \n"), "bad_question"),
        (question("a", None), "bad_question"),
        (question("a", COLOR, max_tokens=6), "bad_question"),
        (question("a", COLOR, select_clips=0), "bad_question"),
        (question("a", COLOR, select_clips=100_000), "bad_question"),
        (question("a", "color" * 10_000), "question_too_long"),
    ],
)
def test_a_question_that_cannot_be_answered_becomes_a_row(asked: dict[str, Any], status: str, tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming)
    made.process(frames(interleaved("a", CLIP)))
    rows = answer(made, asked, question("a", COLOR), extra=(SELECT,))
    assert [row["status"] for row in rows] == [status, "ok"]
    assert rows[0]["error"] and rows[0]["answer"] is None
    assert content(rows[1]) == content(seen_by(tiny_videostreaming, CLIP))


def test_a_long_question_loses_its_beginning_or_is_refused(tiny_videostreaming: str) -> None:
    rows = []
    for more in ({}, {"on_long_question": "refuse"}):
        made = operator(tiny_videostreaming, max_question_tokens=5, **more)
        made.process(frames(interleaved("a", CLIP)))
        rows += answer(made, question("a", "red " * 30 + COLOR), question("a", "circle " * 30 + COLOR), question("a", "red?"))
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["question_too_long"] * 2 + ["ok"]
    assert [row["question_truncated"] for row in rows] == [True, True, False, None, None, False]
    assert rows[0]["answer"] == rows[1]["answer"] and rows[0]["confidence"] == rows[1]["confidence"]


def test_a_full_share_drops_its_oldest_clips_or_refuses_new_ones(tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming, clips_per_stream=3)
    made.process(frames(interleaved("a", 5 * CLIP)))
    row = answer(made, question("a", COLOR, select_clips=9), extra=(SELECT,))[0]
    assert [clip["clip"] for clip in row["selected"]] == [2, 3, 4] and made.metrics()["clips_dropped"] == 2
    refusing = operator(tiny_videostreaming, clips_per_stream=3, on_bank_full="refuse")
    rows = rows_of(refusing.process(frames(interleaved("a", 5 * CLIP))))
    assert [(row["sequence"], row["status"]) for row in rows] == [(15, "bank_full"), (19, "bank_full")]
    row = answer(refusing, question("a", COLOR, select_clips=9), extra=(SELECT,))[0]
    assert [clip["clip"] for clip in row["selected"]] == [0, 1, 2]


@pytest.mark.slow  # killed ones of tests/faults are part of every run
def test_answers_of_other_processes_are_the_same(tiny_videostreaming: str, tmp_path: Path) -> None:
    asked = [question("a", COLOR), question("b", "which circle"), question("a", COLOR, at_us=5 * STEP_US)]
    wanted: list[dict[str, Any]] = []
    for answerers in (0, 1):
        files = {"disk_gib": 0.01, "disk_path": str(tmp_path / str(answerers)), "device_gib": 0.002}
        made = operator(tiny_videostreaming, include_open=True, answerers=answerers, **files)
        made.process(frames(interleaved("ab", 2 * CLIP + 1)))
        rows = answer(made, *asked) + rows_of(made.flush())
        made.close()
        wanted = wanted or rows
        assert rows == wanted and len(rows) == 3


def test_streams_are_evicted_and_start_over(tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming, max_streams=1, clip_events=True)
    rows = rows_of(made.process(frames([*interleaved("a", CLIP + 1), *interleaved("b", CLIP), ("a", 9)])))
    told = [(row["stream_id"], row["status"], row["clip"] and row["clip"]["frames"]) for row in rows]
    assert sorted(told) == sorted([("a", "ok", 4), ("b", "ok", 4), ("a", "reset", None), ("a", "ok", 1)])
    assert answer(made, question("a", COLOR))[0]["clips_seen"] == 1


def test_memories_of_other_weights_or_clips_are_refused(tiny_videostreaming: str) -> None:
    made = operator(tiny_videostreaming)
    made.process(frames(interleaved("a", CLIP)))
    with pytest.raises(RecoveryError, match="memories are of no use to other weights"):
        operator(tiny_videostreaming, frames_per_clip=3).restore(made.snapshot())


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"answerers": 1}, ConfigError, "set disk_gib and disk_path"),
        ({"disk_gib": 1.0}, ConfigError, "give both"),
        ({"clips_per_stream": 10**9}, ConfigError, "clips_per_stream"),
        ({"frames_per_clip": 900}, ConfigError, "lower frames_per_clip"),
        ({"select_clips": 900}, ConfigError, "lower select_clips to at most"),
        ({"checkpoint": "nowhere"}, CheckpointMismatch, "does not exist"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], error: type[Exception], said: str, tiny_videostreaming: str
) -> None:
    with pytest.raises(error, match=said):
        operator(**{"checkpoint": tiny_videostreaming} | options)


def test_check_examines_without_building(tiny_videostreaming: str) -> None:
    given = VideoStreamingOptions(checkpoint=tiny_videostreaming)
    assert "selected" in VideoStreamingOperator.examine(given, "watch").names
    with pytest.raises(ConfigError, match="select_clips is -1"):
        VideoStreamingOperator.examine(VideoStreamingOptions(checkpoint=tiny_videostreaming, select_clips=-1), "watch")
