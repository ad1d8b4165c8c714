"""Questions of an operator that answers, with a method of a few lines: refusals, waiting, and the order of the rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from connectors.errors import StreambankError
from operators.answerers import Answerers
from operators.answers import ANSWER_COUNTERS, Answers
from operators.counters import STREAM_COUNTERS, Counters
from operators.questions import (
    ANSWER_STATUSES,
    QUESTION,
    Question,
    QuestionLimits,
    QuestionOptions,
    Row,
    answer_row,
    answer_schema,
    answered_row,
    question_rows,
    read_question,
)
from operators.streams import Refusal, Stream, StreamOptions, StreamTable

SCHEMA = answer_schema([pa.field("seen", pa.int64())])
LIMITS = QuestionLimits(
    tokens=lambda text: len(text.split()),
    max_question_tokens=4,
    max_answer_tokens=8,
    set_by="max_question_tokens",
    extra=("speed",),
)


@dataclass
class Counting:
    """Answers with how many rows have come; notes what is held."""

    streams: StreamTable[Stream]
    held: int = 0
    batches: list[int] = field(default_factory=list)

    def views(self, questions: Sequence[Question]) -> list[int]:
        streams = [self.streams.get(question.stream_id) for question in questions]
        self.held += len(streams)
        return [stream.last_sequence + 1 for stream in streams if stream is not None]

    def answer(self, questions: Sequence[Question], views: Sequence[int]) -> list[str]:
        self.batches.append(len(questions))
        return [f"{view} rows" for view in views]

    def portable(self, question: Question, view: int) -> tuple[int, int]:
        return view, os.getpid()

    def row(self, question: Question, view: int, result: str) -> Row:
        return answer_row(question, "ok", None, answer=result, seen=view)

    def release(self, view: int) -> None:
        self.held -= 1


class Asked:
    """An operator reduced to its questions: two streams, the last row of each at 3 s."""

    def __init__(self, pool: Answerers[Any, str] | None = None, **options: Any) -> None:
        self.counters = Counters(*STREAM_COUNTERS, *ANSWER_COUNTERS)
        self.streams: StreamTable[Stream] = StreamTable(
            "counting",
            lambda stream_id, slot: Stream(slot),
            StreamOptions(),
            kind=Stream,
            counters=self.counters,
            ended=lambda stream_id, stream: self.answers.end(stream_id),
        )
        self.method = Counting(self.streams)
        self.answers: Answers[int, str] = Answers(
            QuestionOptions(**options),
            LIMITS,
            SCHEMA,
            streams=self.streams,
            counters=self.counters,
            method=self.method,
            pool=pool,
        )
        for stream_id in "ab":
            self.streams.open(stream_id)
            self.take(stream_id, 3)

    def take(self, stream_id: str, second: int) -> list[Row]:
        """Take a row that has come."""
        rows = self.answers.due(stream_id, second * 1_000_000)
        self.streams.accept(stream_id, second, second * 1_000_000)
        return rows

    def ask(self, *rows: dict[str, Any]) -> list[Row]:
        """Ask; ids are numbers."""
        return self.answers.ask(batch(*rows))


def batch(*rows: dict[str, Any], extra: Sequence[pa.Field] = ()) -> pa.RecordBatch:
    full = [
        {"stream_id": "a", "sequence": i, "event_time": 0, "question_id": str(i), "question": "how many?", **row}
        for i, row in enumerate(rows)
    ]
    offset = [pa.field("at_offset_s", pa.float64())] if any("at_offset_s" in row for row in rows) else []
    schema = pa.schema([*QUESTION, *offset, *extra])
    return pa.RecordBatch.from_arrays([pa.array([row.get(f.name) for row in full], f.type) for f in schema], schema=schema)


def at(second: int, stream_id: str = "a", **more: Any) -> dict[str, Any]:
    return {"stream_id": stream_id, "at": second * 1_000_000, **more}


def told(rows: Sequence[Row]) -> list[tuple[str, str, str | None]]:
    return [(row["question_id"], row["status"], row.get("answer")) for row in rows]


@pytest.mark.parametrize(
    ("row", "status", "words"),
    [
        ({"question": None}, "bad_question", "empty"),
        ({"question": " \n"}, "bad_question", "empty"),
        ({"max_tokens": 0}, "bad_question", "must be 1 to 8"),
        ({"max_tokens": 9}, "bad_question", "must be 1 to 8"),
        ({"question": "one two three four five"}, "question_too_long", "5 tokens with its prompt; at most 4"),
        ({"question": "x" * 257}, "question_too_long", "257 characters"),
        ({"stream_id": "c"}, "unknown_stream", "no rows of 'c' have come; known streams: 'a', 'b'"),
        ({"at": 0, "at_offset_s": 0.0}, "bad_question", "give one of them"),
        ({"at_offset_s": float("nan")}, "bad_question", "at_offset_s is nan"),
        ({"at_offset_s": -1e300}, "bad_question", "at_offset_s is -1e+300"),
        ({"error": "no JSON"}, "bad_question", "could not be read: no JSON"),
    ],
)
def test_a_question_that_cannot_be_answered_becomes_a_row_that_says_why(row: dict[str, Any], status: str, words: str) -> None:
    made = Asked()
    [answer] = made.answers.batches(made.answers.ask(batch(row, extra=[pa.field("error", pa.string())])))
    [got] = answer.to_pylist()
    assert (got["status"], got["answer"], got["question_id"]) == (status, None, "0")
    assert words in got["error"]
    assert status in ANSWER_STATUSES
    assert (made.counters["questions"], made.counters["answers"]) == (1, 0)


@pytest.mark.parametrize(
    ("confidence", "unsure_below", "words", "status", "error"),
    [
        (0.8, 0.8, (), "ok", None),
        (0.799, 0.8, (), "unsure", "its confidence in this answer is 0.799, below 0.8 (unsure_below)"),
        (0.9, 0.8, ("qua", "quo", "qua"), "unsure", "the model does not know the words 'qua', 'quo'"),
        (0.1, 0.0, ("qua",), "ok", None),
    ],
)
def test_an_answer_that_the_model_cannot_have_meant_is_unsure(
    confidence: float, unsure_below: float, words: tuple[str, ...], status: str, error: str | None
) -> None:
    question = read_question(question_rows(batch({}))[0], LIMITS)
    assert isinstance(question, Question)
    row = answered_row(question, "one", confidence, unsure_below=unsure_below, unknown_words=words)
    assert (row["status"], row["error"], row["answer"], row["confidence"]) == (status, error, "one", confidence)


def test_columns_of_a_method_come_with_the_question_where_they_are_given() -> None:
    rows = question_rows(batch({"speed": 2}, {"speed": None}, extra=[pa.field("speed", pa.int64())]))
    questions = [read_question(row, LIMITS) for row in rows]
    assert [q.extra for q in questions if isinstance(q, Question)] == [{"speed": 2}, {}]
    assert not any(isinstance(q, Refusal) for q in questions)
    first = questions[0]
    assert isinstance(first, Question) and Question(**first.to_json()) == first


def test_answers_come_in_the_order_of_asking_with_refusals_among_them() -> None:
    made = Asked(batch_questions=2)
    rows = made.ask({}, {"question": ""}, {"stream_id": "b"}, at(2), at(9))
    assert told(rows) == [("0", "ok", "4 rows"), ("1", "bad_question", None), ("2", "ok", "4 rows"), ("3", "ok", "4 rows")]
    assert made.method.batches == [2, 1] and made.method.held == 0
    assert made.answers.gauges()["waiting"] == 1


def test_a_question_waits_until_a_row_behind_its_time_comes_and_is_answered_before_that_row() -> None:
    made = Asked()
    assert made.ask(at(6), at(5), at(5, "b")) == []
    assert made.take("a", 5) == []
    assert told(made.take("a", 7)) == [("1", "ok", "6 rows"), ("0", "ok", "6 rows")]
    assert told(made.take("b", 6)) == [("2", "ok", "4 rows")]


@pytest.mark.parametrize("steps", [(10,), (5, 6, 10), tuple(range(4, 11))])
def test_answers_do_not_depend_on_the_steps_in_which_event_time_advances(steps: tuple[int, ...]) -> None:
    made = Asked()
    made.ask(at(8), at(5, "b"), at(5), at(5), at(20))
    rows = [row for step in steps for row in made.answers.advance(step * 1_000_000)]
    assert told(rows) == [("2", "ok", "4 rows"), ("3", "ok", "4 rows"), ("1", "ok", "4 rows"), ("0", "ok", "4 rows")]
    assert made.answers.gauges()["waiting"] == 1


def test_a_question_about_a_time_that_event_time_has_passed_is_answered_at_once() -> None:
    made = Asked()
    made.answers.advance(9_000_000)
    assert told(made.ask(at(8), at(9))) == [("0", "ok", "4 rows")]


def test_only_so_many_questions_of_a_stream_wait() -> None:
    made = Asked(max_waiting=1)
    rows = made.ask(at(8), at(9), at(9, "b"))
    assert told(rows) == [("1", "too_many_waiting", None)]
    assert "max_waiting" in rows[0]["error"]


def test_what_waits_is_answered_when_its_stream_ends_and_stands_in_snapshots() -> None:
    first, second = Asked(), Asked()
    first.ask(at(60, speed=None))
    with first.streams.snapshot(incremental=False) as (state, _):
        first.answers.export(state)
    state, _ = second.streams.restore(state, hint="")
    second.answers.load(state)
    second.streams.close("a")
    [rows] = second.answers.batches()
    assert told(rows.to_pylist()) == [("0", "ok", "4 rows")]
    assert second.answers.batches() == []


# Other processes


def loaded() -> Any:
    return answered


def answered(asked: Sequence[tuple[int, int]]) -> list[str]:
    if any(view == 13 for view, _ in asked):
        os._exit(3)
    return [f"{view} rows{'' if os.getpid() == parent else ', elsewhere'}" for view, parent in asked]


@pytest.mark.heavy
def test_other_processes_answer_in_the_order_of_asking_and_end_with_close() -> None:
    made = Asked(Answerers("counting", 1, loaded), batch_questions=2)
    assert told(made.ask({}, {"question": ""}, {"stream_id": "b"}, {})) == [("1", "bad_question", None)]
    assert made.answers.gauges()["in_progress"] == 3 and made.answers.busy
    made.answers.wait()
    [rows] = made.answers.batches()
    assert [row["answer"] for row in rows.to_pylist()] == ["4 rows, elsewhere"] * 3
    assert rows["question_id"].to_pylist() == ["0", "2", "3"]
    made.ask({})
    made.answers.close()
    made.answers.close()
    assert made.method.held == 0 and not made.answers.busy


@pytest.mark.parametrize("ends", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_process_that_ends_is_an_error_that_says_what_to_do(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none ends, the pool says so nevertheless."""
    pool = Answerers("counting", 1, loaded)
    if not ends:
        told: Future[list[str]] = Future()
        told.set_exception(BrokenProcessPool("a process was terminated"))
        monkeypatch.setattr(pool._pool, "submit", lambda *_: told)
    made = Asked(pool)
    made.take("a", 12)
    made.ask({})
    with pytest.raises(StreambankError, match=r"counting: a process that answers questions has ended .* lower answerers"):
        made.answers.wait()
    made.answers.close()
    assert made.method.held == 0
