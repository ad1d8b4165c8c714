"""When questions are answered: at once, when their time has come, or each time they rise; by whom; in which order rows come.

What every operator that answers has in common; what an answer is made of is the :class:`Method`'s. A question sees exactly the
rows of its stream that came before it, or those up to its ``at``; it changes no state of any stream.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from connectors.errors import nearest
from operators.answerers import Answerers
from operators.counters import Counters
from operators.output import OutputRows
from operators.pending import Pending
from operators.questions import (
    Question,
    QuestionLimits,
    QuestionOptions,
    Row,
    answer_batch,
    answer_row,
    question_rows,
    read_question,
)
from operators.standing import Standing
from operators.state import State
from operators.streams import NEVER_US, Refusal, Stream, StreamTable

__all__ = ["ANSWER_COUNTERS", "Answers", "Method", "merged_rows"]

ANSWER_COUNTERS = ("questions", "answers")
"""Of every operator that answers questions."""

_NAMES = 8
"""Streams that a message names."""

View = TypeVar("View")
Result = TypeVar("Result")
S = TypeVar("S", bound=Stream)


class Method(Protocol[View, Result]):
    """How one method answers."""

    def views(self, questions: Sequence[Question]) -> list[View]:
        """Return what each of some questions sees now of its stream, which is there; held until ``release``.

        What several see alike they may share: they are answered together, and let go of together.
        """

    def answer(self, questions: Sequence[Question], views: Sequence[View]) -> list[Result]:
        """Answer questions together, in this process."""

    def portable(self, question: Question, view: View) -> Any:
        """Return what a process of the pool answers this question from. Only called where there is a pool."""

    def row(self, question: Question, view: View, result: Result) -> Row:
        """Return the output row of an answer (``answer_row``), but for its ``lag_s``."""

    def release(self, view: View) -> None:
        """Let go of what a view holds."""


def _placed(question: Question, stream: Stream) -> Question:
    """Return the question with its offset as an event time; as it is where no row of the stream has had a time."""
    offset_us = question.at_offset_us
    if offset_us is None or stream.first_time_us == NEVER_US:
        return question
    from_us = stream.first_time_us if offset_us >= 0 else stream.last_time_us
    return dataclasses.replace(question, at_us=from_us + offset_us, at_offset_us=None)


@dataclass(slots=True)
class _Job(Generic[View, Result]):
    """Questions that are being answered together."""

    questions: list[Question]
    views: list[View]
    began_s: float
    future: Future[list[Result]] | None = None


class Answers(Generic[View, Result]):
    """Takes questions, keeps those that wait, and gives rows. ``pool`` None: everything is answered in this process."""

    def __init__(
        self,
        options: QuestionOptions,
        limits: QuestionLimits,
        schema: pa.Schema,
        *,
        streams: StreamTable[S],
        counters: Counters,
        method: Method[View, Result],
        pool: Answerers[Any, Result] | None = None,
        standing: Standing | None = None,
    ) -> None:
        self.standing = Standing(options, None, lambda text: ()) if standing is None else standing
        self._batch, self._limits, self._schema = options.batch_questions, limits, schema
        self._streams, self._counters, self._method, self._pool = streams, counters, method, pool
        self._waiting = Pending("waiting", options.max_waiting)
        self._jobs: deque[_Job[View, Result]] = deque()
        self._ready: list[Row] = []  # rows that wait for the next call
        self._watermark_us = NEVER_US
        self._lag_s = 0.0

    def ask(self, batch: pa.RecordBatch) -> list[Row]:
        """Take a batch of QUESTION rows; return rows of those that are answered at once, or cannot be. The others wait."""
        self._counters.add("questions", batch.num_rows)
        rows: dict[int, Row] = {}
        now: list[tuple[int, Question]] = []
        for number, row in enumerate(question_rows(batch)):
            if row.get("standing") is not None:
                rows[number] = self._stand(row)
                continue
            question = read_question(row, self._limits)
            if not isinstance(question, Question):
                rows[number] = answer_row(row, question.status, question.error)
                continue
            stream = self._streams.get(question.stream_id)
            if stream is None:
                rows[number] = answer_row(row, "unknown_stream", self._unknown(question.stream_id))
                continue
            question = _placed(question, stream)
            if question.at_offset_us is not None:
                rows[number] = answer_row(row, "bad_question", f"no row of {question.stream_id!r} has a time to count from yet")
            elif question.at_us is None or question.at_us <= stream.last_time_us or question.at_us < self._watermark_us:
                now.append((number, question))
            elif self._waiting.add(question.stream_id, question.at_us, question.to_json()):
                self._streams.changed(question.stream_id)
            else:
                reason = f"{self._waiting.limit} questions wait for times to come already (max_waiting); ask again later"
                rows[number] = answer_row(row, "too_many_waiting", reason)
        self.standing.prepare()
        answers = self._answer([question for _, question in now])
        if self._pool is None:
            rows |= {number: row for (number, _), row in zip(now, answers, strict=True)}
        return [rows[number] for number in sorted(rows)]

    def _stand(self, row: Row) -> Row:
        """Let a question stand, or no longer; return the row that says so."""
        problem = self.standing.problem(row)
        if problem is not None or not row["standing"]:
            if problem is None and not self.standing.withdraw(row["stream_id"], row["question_id"]):
                reason = f"no question {row['question_id']!r} about {row['stream_id']!r} stands"
                problem = Refusal("bad_question", reason)
            if problem is None:
                self._streams.changed(row["stream_id"])
            return answer_row(row, *(problem or ("withdrawn", None)))
        question = read_question(row, self._limits)
        if isinstance(question, Refusal):
            return answer_row(row, *question)
        if self._streams.get(question.stream_id) is None:
            return answer_row(row, "unknown_stream", self._unknown(question.stream_id))
        refused = self.standing.add(question, row.get("debounce_s"))
        self._streams.changed(question.stream_id)
        return answer_row(row, *(refused or ("standing", None)))

    def risen(self, questions: Sequence[Question]) -> list[Row]:
        """Answer standing questions that ``standing.look`` has found due, from what has come up to now."""
        return self._answer(questions)

    def _unknown(self, stream_id: str) -> str:
        known = list(self._streams)
        listed = ", ".join(map(repr, sorted(known)[:_NAMES])) or "none"
        more = f" and {len(known) - _NAMES} more" if len(known) > _NAMES else ""
        return f"no rows of {stream_id!r} have come{nearest(stream_id, known)}; known streams: {listed}{more}"

    def due(self, stream_id: str, time_us: int, prepare: Callable[[], None] = lambda: None) -> list[Row]:
        """Answer what a row of this time releases, before the row is written; ``prepare`` writes what came before it."""
        items = self._waiting.due(stream_id, time_us)
        if not items:
            return []
        prepare()
        return self._answer([Question(**item) for item in items])

    def advance(self, watermark_us: int) -> list[Row]:
        """Answer what waits for times before this one, in the order of these times: however event time gets there."""
        self._watermark_us = watermark_us
        due = self._waiting.due_everywhere(watermark_us)
        for stream_id, _ in due:
            self._streams.changed(stream_id)
        return self._answer([Question(**item) for _, item in due])

    def end(self, stream_id: str) -> None:
        """Answer what waits of a stream that ends from what has come; the rows come with the next call."""
        self._ready += self._answer([Question(**item) for item in self._waiting.close(stream_id)])
        self.standing.close(stream_id)

    def _answer(self, questions: Sequence[Question]) -> list[Row]:
        """Answer questions about streams that are here; with a pool, begin to: then there are no rows yet."""
        rows: list[Row] = []
        for start in range(0, len(questions), self._batch):
            part = list(questions[start : start + self._batch])
            job: _Job[View, Result] = _Job(part, self._method.views(part), time.perf_counter())
            if self._pool is None:
                rows += self._done(job, self._method.answer(job.questions, job.views))
            else:
                asked = [self._method.portable(*pair) for pair in zip(job.questions, job.views, strict=True)]
                job.future = self._pool.submit(asked)
                self._jobs.append(job)
        return rows

    def _done(self, job: _Job[View, Result], results: Sequence[Result]) -> list[Row]:
        self._lag_s = time.perf_counter() - job.began_s
        self._counters.add("answers", len(results))
        rows = []
        for question, view, result in zip(job.questions, job.views, results, strict=True):
            row = self._method.row(question, view, result) | {"lag_s": self._lag_s}
            # The same answer; whose question it is, and since when, differs.
            rows += [row, *(row | {"question_id": one.question_id, "asked_at": one.asked_us} for one in question.also)]
        for view in job.views:
            self._method.release(view)
        return rows

    def collect(self) -> None:
        """Take the answers of the pool that are there, in the order of asking; their rows come with the next ``batches``."""
        while self._jobs and self._jobs[0].future is not None and self._jobs[0].future.done():
            self._take_first()

    def wait(self) -> None:
        """Take all answers of the pool, however long it takes."""
        while self._jobs:
            self._take_first()

    def _take_first(self) -> None:
        job = self._jobs[0]
        assert self._pool is not None and job.future is not None
        results = self._pool.result(job.future)
        self._jobs.popleft()
        self._ready += self._done(job, results)

    def batches(self, rows: Sequence[Row] = ()) -> list[pa.RecordBatch]:
        """Return rows as a batch, behind those that were ready before."""
        self.collect()
        rows, self._ready = [*self._ready, *rows], []
        return [answer_batch(rows, self._schema)] if rows else []

    def add(self, row: Row) -> None:
        """Add a row of the method's own to those that come with the next call."""
        self._ready.append(row)

    def waits_for(self, stream_id: str) -> bool:
        """Whether questions about a stream wait for a time to come."""
        return self._waiting.holds(stream_id)

    @property
    def busy(self) -> bool:
        """Whether the pool is answering: views are held."""
        return bool(self._jobs)

    def gauges(self) -> dict[str, float]:
        """Return what waits, what is being answered and the last answer's lag, for ``metrics``."""
        in_progress = sum(len(job.questions) for job in self._jobs)
        return {
            "waiting": float(len(self._waiting)),
            "standing": float(len(self.standing)),
            "in_progress": float(in_progress),
            "lag_s": self._lag_s,
        }

    def export(self, state: State) -> None:
        """Add the questions that wait, and those that stand. Answers that are being made are no part of it: ``wait`` before."""
        self._waiting.export(state)
        self.standing.export(state)

    def load(self, state: State) -> None:
        """Replace the questions that wait, and those that stand, by those of a full ``state``; call ``wait`` before."""
        self._ready = []
        self._watermark_us = NEVER_US
        self._waiting.load(state)
        self.standing.load(state)

    def close(self) -> None:
        """End the pool; let go of what questions that are not answered hold. May be called twice."""
        if self._pool is not None:
            self._pool.close()
        for job in self._jobs:
            for view in job.views:
                self._method.release(view)
        self._jobs.clear()


def merged_rows(out: OutputRows, rows: Sequence[tuple[int, Row]]) -> list[pa.RecordBatch]:
    """Return the rows of a call in the order of its data: those of ``out``, and ``rows`` with the row of data each comes of.

    Of those of one row of data the ones of ``rows`` come first: an answer is set free before that row is looked at.
    """
    kept = out.batches({})
    if not rows:
        return kept
    numbers, made = zip(*rows, strict=True)
    batches = [answer_batch(made, out.schema), *kept]
    order = np.argsort(np.concatenate([np.array(numbers), out.kept()]), kind="stable")
    table = pa.Table.from_batches(batches).take(pa.array(order)).combine_chunks()
    return list(table.to_batches())
