"""Questions about streams and the rows of their answers: schemas, options, what can be asked at all. For operators that answer.

Knows no model: limits and the tokenizer are handed in. A question that cannot be answered becomes a row with a status, like an
answer; nothing that somebody asks raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from connectors import records
from connectors.errors import CheckpointMismatch, ConfigError
from connectors.options import option
from models.standing.header import read_matcher
from operators.output import finite_rows
from operators.streams import Refusal

__all__ = [
    "ANSWER_STATUSES",
    "GOOD_STATUSES",
    "QUESTION",
    "Question",
    "QuestionLimits",
    "QuestionOptions",
    "Row",
    "answer_batch",
    "answer_row",
    "answer_schema",
    "answered_row",
    "question_rows",
    "read_question",
]

QUESTION = records.key_schema(
    "question",
    1,
    [
        pa.field("question_id", pa.string()),
        pa.field("question", pa.string()),
        pa.field("at", records.TIME_TYPE),
        pa.field("max_tokens", pa.int32()),
        records.field("standing", pa.bool_(), optional=True),
        records.field("debounce_s", pa.float64(), unit="s", optional=True),
    ],
)
"""``at``: only rows up to this event time are seen; null: those that have come. ``event_time``: when it was asked.
One more column may be there, ``at_offset_s`` (float64) in place of ``at``: seconds from the stream's first row, or below 0
before its newest one. ``standing``: true: the question is answered each time that what it asks about comes into view; false:
the one with this ``question_id`` no longer is. ``debounce_s``: how long it must be out of view before it counts as coming
again."""

ANSWER_STATUSES: Mapping[str, str] = {
    "unsure": "answered, but with a confidence below unsure_below, or the question has words that the model does not know",
    "unknown_stream": "nothing of this stream has come, or it has ended or was evicted",
    "bad_question": "the question is empty or unreadable, or max_tokens is out of bounds",
    "question_too_long": "the question has more than max_question_tokens with its prompt",
    "too_many_waiting": "max_waiting questions of this stream wait for a time to come, or max_standing of them stand",
    "standing": "the question stands: there is a row with its answer each time that what it asks about comes into view",
    "withdrawn": "the question with this id stands no longer",
}
"""What every operator that answers can say of a question besides ``ok`` and its own."""

GOOD_STATUSES = frozenset({"ok", "standing", "withdrawn"})
"""Those by which nothing is wrong."""

_WORDS = 5  # that a message names
_CHARACTERS = 64  # of one token at most, so that no book is cut into tokens before it is refused

_LONGEST_S = 1e11  # three thousand years

Row = dict[str, Any]
"""An output row in the making; times are integers, microseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """Options of every operator that answers questions."""

    batch_questions: int = option(
        8, "Most questions answered together. 1: answers depend on batches in no bit, but take longer.", unit="questions", ge=1
    )
    max_question_tokens: int = option(1024, "Longer questions get the status `question_too_long`.", unit="tokens", ge=1)
    max_answer_tokens: int = option(
        256, "Tokens generated where a question does not set max_tokens, and the most that it may set.", unit="tokens", ge=1
    )
    max_waiting: int = option(
        16, "Questions per stream that may wait for a time that has not come yet.", unit="questions", ge=0
    )
    unsure_below: float | None = option(
        None,
        "Answers of less `confidence` get the status `unsure`; 0: none does. Default: what the model is calibrated to, else 0.",
        ge=0,
        le=1,
    )
    answerers: int = option(
        0,
        "Processes that answer while the operator goes on. 0: it answers between rows.",
        unit="processes",
        ge=0,
    )
    max_standing: int = option(1000, "Questions per stream that may stand.", unit="questions", ge=0)
    standing_matcher: str | None = option(
        None,
        "File of the matcher that tells when what a standing question asks about is there. Default: for the small model the "
        "one that comes with the package, else none.",
        path=True,
    )
    match_above: float = option(
        0.97, "From this probability of the matcher on a frame shows what a standing question asks about.", gt=0, lt=1
    )
    standing_frames: int = option(
        2, "Frames in succession that must show it before the question is answered.", unit="frames", ge=1
    )
    debounce_s: float = option(
        5.0, "How long it must be out of view to count as coming again, where a question does not say.", unit="s", ge=0
    )

    def check_matcher(self, name: str) -> None:
        """Raise ``CheckpointMismatch`` where the matcher that is given is none; reads its header only."""
        if self.standing_matcher is not None:
            file = Path(self.standing_matcher)
            if not file.is_file():
                raise CheckpointMismatch(
                    f"{name}: standing_matcher {str(file)!r} is no file; give one that was trained, or none"
                )
            read_matcher(file)

    def check_answerers(self, disk_gib: float) -> None:
        """Raise ``ConfigError`` where processes are to answer from files that the operator's bank does not have."""
        if self.answerers and not disk_gib:
            raise ConfigError(
                f"answerers={self.answerers} read the bank's files, and there are none; set disk_gib and disk_path (a folder "
                "below /dev/shm keeps them in memory), or answerers to 0"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question that is fit to be answered, with the keys of its row. Picklable; as JSON in snapshots while it waits."""

    stream_id: str
    sequence: int
    time_us: int
    question_id: str | None
    text: str
    at_us: int | None
    at_offset_us: int | None = None
    max_tokens: int
    extra: dict[str, Any] = field(default_factory=dict)
    """Columns that only one method reads."""
    asked_us: int | None = None
    """When a question that stands was asked; its keys are then those of the row at which it is answered."""
    match: float | None = None
    """How likely that row shows what it asks about."""
    also: tuple[Question, ...] = ()
    """Others that get the same answer."""

    def to_json(self) -> Row:
        """Return plain values for a snapshot; ``Question(**values)`` is the question again."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionLimits:
    """What an operator can be asked."""

    tokens: Callable[[str], int]
    """Tokens of a question with its prompt."""
    max_question_tokens: int
    max_answer_tokens: int
    set_by: str = "max_question_tokens"
    """Options that a message about a question's length names."""
    extra: tuple[str, ...] = ()
    """Columns that only this method reads; they may be missing."""


def question_rows(batch: pa.RecordBatch) -> list[Row]:
    """Return the rows of a batch of questions, times as integers."""
    columns = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in batch.columns]
    rows: list[Row] = pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()
    return rows


def read_question(row: Row, limits: QuestionLimits) -> Question | Refusal:
    """Return what is asked by a row of :func:`question_rows`, or why it cannot be."""
    text = row["question"]
    if row.get("error") is not None:
        return Refusal("bad_question", f"the row could not be read: {row['error']}")
    if text is None or not text.strip():
        return Refusal("bad_question", "the question is empty")
    most = limits.max_question_tokens
    tokens = limits.tokens(text) if len(text) <= most * _CHARACTERS else None
    if tokens is None or tokens > most:
        size = f"{tokens} tokens with its prompt" if tokens is not None else f"{len(text)} characters"
        return Refusal("question_too_long", f"the question has {size}; at most {most} tokens are read ({limits.set_by})")
    answer_tokens = row["max_tokens"] if row["max_tokens"] is not None else limits.max_answer_tokens
    if not 1 <= answer_tokens <= limits.max_answer_tokens:
        reason = f"max_tokens is {answer_tokens}; it must be 1 to {limits.max_answer_tokens} (max_answer_tokens)"
        return Refusal("bad_question", reason)
    offset_us, problem = _offset(row)
    if problem is not None:
        return Refusal("bad_question", problem)
    return Question(
        stream_id=row["stream_id"],
        sequence=row["sequence"],
        time_us=row["event_time"],
        question_id=row["question_id"],
        text=text,
        at_us=row["at"],
        at_offset_us=offset_us,
        max_tokens=answer_tokens,
        extra={name: row[name] for name in limits.extra if row.get(name) is not None},
    )


def _offset(row: Row) -> tuple[int | None, str | None]:
    """Return ``at_offset_s`` in microseconds, and what is wrong with it."""
    offset_s = row.get("at_offset_s")
    if offset_s is None:
        return None, None
    if row["at"] is not None:
        return None, "the question has both at and at_offset_s; give one of them"
    if not isinstance(offset_s, int | float) or not abs(offset_s) < _LONGEST_S:  # also not a number
        return None, f"at_offset_s is {offset_s!r}; it must be a number of seconds between -{_LONGEST_S:g} and {_LONGEST_S:g}"
    return round(offset_s * 1e6), None


def answer_schema(own: Sequence[pa.Field], metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Return the schema of answers with a method's ``own`` columns: what the answer rests on.

    ``confidence``: geometric mean of the probabilities that the model gave the tokens of its answer, 0 to 1. ``as_of``: event
    time of the newest row that the answer could use. ``match``: of a standing question: how likely this row shows what it asks
    about; its keys are those of that row, ``asked_at`` is when it was asked. ``lag_s``: from the moment the question could be
    answered to its answer; the one column that is not repeatable. Rows of data that could not be used have no question.
    """
    return records.output_schema(
        "answer",
        1,
        [
            pa.field("question_id", pa.string()),
            pa.field("question", pa.string()),
            pa.field("answer", pa.string()),
            pa.field("confidence", pa.float32()),
            pa.field("asked_at", records.TIME_TYPE),
            pa.field("as_of", records.TIME_TYPE),
            *own,
            pa.field("match", pa.float32()),
            records.field("lag_s", pa.float64(), unit="s"),
        ],
        metadata,
    )


def answer_row(question: Question | Row, status: str, error: str | None, **more: Any) -> Row:
    """Return the output row of a question, or of a row that is none; ``more`` are further columns."""
    if isinstance(question, Question):
        q = question
        row = {"stream_id": q.stream_id, "sequence": q.sequence, "event_time": q.time_us, "question_id": q.question_id}
        row |= {"question": q.text, "asked_at": q.time_us if q.asked_us is None else q.asked_us, "match": q.match}
    else:
        row = {key: question[key] for key in ("stream_id", "sequence", "event_time", "question_id", "question")}
        row["asked_at"] = row["event_time"]
    return {**row, "status": status, "error": error, **more}


def answered_row(
    question: Question, text: str, confidence: float, *, unsure_below: float, unknown_words: Sequence[str] = ()
) -> Row:
    """Return the output row of an answer: ``unsure`` where the model cannot have meant it."""
    reasons = []
    if unknown_words and unsure_below:
        words = ", ".join(repr(word) for word in list(dict.fromkeys(unknown_words))[:_WORDS])
        reasons.append(f"the model does not know the words {words}")
    if confidence < unsure_below:
        reasons.append(f"its confidence in this answer is {confidence:.3f}, below {unsure_below:g} (unsure_below)")
    status = "unsure" if reasons else "ok"
    return answer_row(question, status, "; ".join(reasons) or None, answer=text, confidence=confidence)


def answer_batch(rows: Sequence[Row], schema: pa.Schema) -> pa.RecordBatch:
    """Return output rows as a batch; those with NaN or infinity get the status ``not_finite``."""
    columns = [
        pa.array([row.get(field.name) for row in rows], pa.string()).dictionary_encode().cast(field.type)
        if pa.types.is_dictionary(field.type)
        else pa.array([row.get(field.name) for row in rows], field.type)
        for field in schema
    ]
    return finite_rows(pa.RecordBatch.from_arrays(columns, schema=schema))
