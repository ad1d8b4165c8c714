"""Questions that stand: when they rise, what a row says, and that the rows are the same however frames are cut and restored."""

# Q conditions

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from video_streams import frames, question, questions

from models.films import Film, make_film
from operators.banks import BlockReader
from operators.base import Context, Operator
from operators.rekv import ReKVOperator, ReKVOptions
from operators.standing import Edges
from operators.videostreaming import VideoStreamingOperator, VideoStreamingOptions

SECOND_US = 1_000_000
FILM = make_film(71, length=90, events=4)


def rekv(**options: Any) -> Operator:
    given: dict[str, Any] = {"sample_fps": 1.0, "device_gib": 0.05, "max_answer_tokens": 8, "max_streams": 2} | options
    return ReKVOperator(ReKVOptions(**given), Context(name="watch"))


def videostreaming(**options: Any) -> Operator:
    given: dict[str, Any] = {"device_gib": 0.05, "max_answer_tokens": 8, "max_streams": 2} | options
    return VideoStreamingOperator(VideoStreamingOptions(**given), Context(name="watch"))


BOTH = pytest.mark.parametrize("make", [rekv, videostreaming])
Make = Callable[..., Operator]


@cache
def pictures(film: Film) -> list[np.ndarray]:
    return list(film.frames())


def film_rows(start: int, stop: int, film: Film = FILM, stream: str = "cam") -> pa.RecordBatch:
    rows = [(stream, t) for t in range(start, stop)]
    return frames(rows, images=pictures(film)[start:stop], times_us=[t * SECOND_US for t in range(start, stop)])


def stand(text: str | None, id: str, *, stream: str = "cam", standing: bool = True, **more: Any) -> dict[str, Any]:
    return question(stream, text, question_id=id, standing=standing, **more)


def about(film: Film = FILM) -> list[str]:
    """Return a standing question about each event of a film."""
    return [f"what colour was the {event.shape}?" for event in film.events]


def rows_of(batches: Sequence[Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "lag_s"} for batch in batches for row in batch.to_pylist()]


def ask_all(one: Operator, texts: Sequence[str]) -> list[dict[str, Any]]:
    return rows_of(one.control(questions([stand(text, f"q{i}") for i, text in enumerate(texts)])))


def test_a_condition_rises_as_the_rule_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows, count = int(rng.integers(1, 4)), 5
        debounce_us_Q = rng.integers(0, 6, count)
        holds_TQ = rng.random((40, count)) < rng.uniform(0.2, 0.8)
        time_T = np.cumsum(rng.integers(1, 3, 40))
        edges = Edges.of(count)
        risen_TQ = np.array(
            [edges.step(int(t), holds_Q, rows, debounce_us_Q) for t, holds_Q in zip(time_T, holds_TQ, strict=True)]
        )
        for q in range(count):
            on, run, seen, wanted = False, 0, 0, []
            for t, holds in zip(time_T.tolist(), holds_TQ[:, q].tolist(), strict=True):
                run = run + 1 if holds else 0
                if on and not holds and t - seen > debounce_us_Q[q]:
                    on = False
                rises = not on and run >= rows
                on = on or rises
                seen = t if on and holds else seen
                wanted.append(rises)
            assert risen_TQ[:, q].tolist() == wanted


@BOTH
def test_a_standing_question_is_answered_each_time_that_it_comes_into_view(make: Make) -> None:
    one = make()
    first = one.process(film_rows(0, 1))
    acknowledged = ask_all(one, about())
    assert not first and [row["status"] for row in acknowledged] == ["standing"] * len(FILM.events)
    rows = rows_of(one.process(film_rows(1, FILM.length)))
    assert [row["question_id"] for row in rows] == [f"q{i}" for i in range(len(FILM.events))]
    right = [row["answer"] == event.color for row, event in zip(rows, FILM.events, strict=True)]
    assert sum(right) >= len(right) - 1  # of the newest few frames
    for row, event in zip(rows, FILM.events, strict=True):
        assert row["status"] in ("ok", "unsure")
        assert event.start < row["sequence"] < event.stop and row["event_time"].timestamp() == row["sequence"]
        assert row["as_of"] == row["event_time"] and row["asked_at"].timestamp() == 0 and row["match"] >= 0.5
        evidence = row["retrieved"][0] if "retrieved" in row else row["selected"]
        assert evidence  # the frames or clips that it was answered from
    assert one.metrics()["standing"] == len(FILM.events)


@pytest.mark.heavy
@BOTH
def test_rows_do_not_depend_on_cuts_or_a_restore(make: Make) -> None:
    whole = make()
    whole.process(film_rows(0, 1))
    ask_all(whole, about())
    wanted = rows_of(whole.process(film_rows(1, FILM.length)))
    cut, rows = make(), []
    cut.process(film_rows(0, 1))
    ask_all(cut, about())
    rng, start = np.random.default_rng(1), 1
    while start < FILM.length:
        stop = min(start + int(rng.integers(1, 12)), FILM.length)
        rows += rows_of(cut.process(film_rows(start, stop)))
        state, start = cut.snapshot(), stop
        cut.close()
        cut = make()
        cut.restore(state)
    assert len(wanted) == len(FILM.events)
    for row, other in zip(rows, wanted, strict=True):
        for name in ("match", "confidence"):
            assert row.pop(name) == pytest.approx(other.pop(name), abs=1e-4)
        for each in (row, other):
            each.pop("retrieved", None), each.pop("selected", None), each.pop("intervals", None)
        assert row == other


@BOTH
def test_the_same_question_of_many_is_answered_once(make: Make) -> None:
    one = make(max_standing=300)
    one.process(film_rows(0, 1))
    text = about()[0]
    ask_all(one, [text] * 300)
    rows = rows_of(one.process(film_rows(1, FILM.events[0].stop)))
    assert sorted(row["question_id"] for row in rows) == sorted(f"q{i}" for i in range(300))
    assert len({(row["answer"], row["sequence"]) for row in rows}) == 1
    assert one.metrics()["answers"] == 1


@pytest.mark.heavy
@BOTH
def test_questions_that_rise_at_one_frame_share_what_they_see_and_are_answered_as_one_by_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = FILM.events[0]
    texts = [f"{word} the {event.shape}{more}?" for word in ("was", "where was", "what colour was") for more in ("", " there")]
    gathered: list[int] = []
    gather = BlockReader.gather

    def counted(reader: BlockReader, layer: int, *given: Any) -> Any:
        gathered.append(layer)
        return gather(reader, layer, *given)

    monkeypatch.setattr(BlockReader, "gather", counted)
    found, counts = [], []
    for together, asked in ((1, texts), (16, texts), (16, texts[-1:])):
        one = make(batch_questions=together)
        one.process(film_rows(0, 1))
        ask_all(one, asked)
        gathered.clear()
        found.append(rows_of(one.process(film_rows(1, event.stop))))
        counts.append(len(gathered))
    assert len({row["sequence"] for row in found[0]}) == 1 and len(found[0]) >= 4
    assert len(found[2]) == 1 and counts[0] > counts[1] == counts[2]  # many read no more than one does
    for row, other in zip(*found[:2], strict=True):
        assert row.pop("confidence") == pytest.approx(other.pop("confidence"), abs=1e-5)
        for each in (row, other):
            for name in ("selected", "intervals"):
                each[name] = [
                    {k: v for k, v in one.items() if k not in ("similarity", "score")} for one in each.get(name) or []
                ]
        assert row == other


@BOTH
def test_a_withdrawn_question_is_not_answered_and_one_with_its_id_takes_its_place(make: Make) -> None:
    one, texts = make(), about()
    one.process(film_rows(0, 1))
    ask_all(one, texts[:2])
    said = one.control(questions([stand(None, "q0", standing=False), stand(texts[2], "q1"), stand(None, "q7", standing=False)]))
    assert [row["status"] for row in rows_of(said)] == ["withdrawn", "standing", "bad_question"]
    rows = rows_of(one.process(film_rows(1, FILM.length)))
    assert [(row["question_id"], row["question"]) for row in rows] == [("q1", texts[2])]


def test_debounce_decides_what_counts_as_coming_again() -> None:
    event = FILM.events[0]
    shown = [pictures(FILM)[event.start + 1]] * 2
    empty = [pictures(FILM)[0]] * 4
    images = [*empty, *shown, *empty, *shown, *empty]
    one = rekv()
    stream = frames(
        [("cam", t) for t in range(len(images))], images=images, times_us=[t * SECOND_US for t in range(len(images))]
    )
    one.process(stream.slice(0, 1))
    one.control(questions([stand(about()[0], "short", debounce_s=2.0), stand(about()[0], "long", debounce_s=30.0)]))
    rows = rows_of(one.process(stream.slice(1)))
    assert [(row["question_id"], row["sequence"]) for row in rows] == [("short", 5), ("long", 5), ("short", 11)]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"question_id": None}, "bad_question", "question_id"),
    ({"at": 5}, "bad_question", "leave out at"),
    ({"debounce_s": -1.0}, "bad_question", "debounce_s is -1.0"),
    ({"stream_id": "nobody"}, "unknown_stream", "nobody"),
    ({"question": "is the zebra there?"}, "bad_question", "'zebra'"),
    ({"question": " "}, "bad_question", "empty"),
]


@pytest.mark.parametrize(("change", "status", "error"), REFUSED)
def test_a_standing_question_that_cannot_be_used_gets_a_row(change: dict[str, Any], status: str, error: str) -> None:
    one = rekv()
    one.process(film_rows(0, 1))
    [row] = rows_of(one.control(questions([stand(about()[0], "q") | change])))
    assert (row["status"], error in row["error"]) == (status, True)
    assert one.metrics()["standing"] == 0


def test_more_than_max_standing_are_refused() -> None:
    one = rekv(max_standing=1)
    one.process(film_rows(0, 1))
    assert [row["status"] for row in ask_all(one, about()[:2])] == ["standing", "too_many_waiting"]


def test_a_checkpoint_without_a_matcher_says_so(tiny_model: str) -> None:
    one = rekv(checkpoint=tiny_model)
    one.process(film_rows(0, 1))
    [row] = ask_all(one, ["which colour is it?"])
    assert row["status"] == "bad_question" and "standing_matcher" in row["error"]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from models.rekv.small import build_small, save_small
    from models.tokenizers import WordTokenizer

    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        save_small(build_small(WordTokenizer.of(["which colour is it? watch the video. answer:"]), side=48), path)
    return str(Path(path))
