"""The streaming operator ``rekv``: frames of many streams in, questions as control rows, answers out.

Decides which frames count and which blocks a question sees, batches frames and questions over streams, and keeps bookkeeping
and snapshots. A question sees exactly the frames of its stream that came before it, or those up to its ``at``; it changes no
state of any stream. A frame that was encoded gives no row.
"""

# K retrieved frames

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from connectors import records
from connectors.errors import RecoveryError
from connectors.extras import optional
from operators.banks import BlockReader, SlotTable, stream_seed
from operators.base import Context, Operator
from operators.images import Image, decode_image
from operators.rekv.answerers import Answerers
from operators.rekv.answering import Answered, Asked
from operators.rekv.config import ReKVOptions
from operators.rekv.encoder import FrameEncoding
from operators.rekv.rules import REASONS, next_keep, read_question
from operators.rekv.schemas import ANSWER, QUESTION, answer_schema
from operators.rekv.streams import FrameTimes, Inquiry, Stream, export_streams, import_streams
from operators.rekv.weights import load_answering, model_id, settings
from operators.state import State

cv2 = optional("cv2")

__all__ = ["ReKVOperator"]

_log = logging.getLogger(__name__)

Row = dict[str, Any]


class _Frame(NamedTuple):
    """A frame that is to be encoded."""

    number: int
    stream_id: str
    stream: Stream
    sequence: int
    time_us: int
    image: Image


@dataclass(slots=True)
class _Job:
    """Questions that are being answered together, and what they are answered from."""

    inquiries: list[Inquiry]
    asked: list[Asked]
    readers: list[BlockReader]
    times: list[FrameTimes]
    began_s: float
    future: Future[list[Answered]] | None = None


class ReKVOperator(Operator):
    """Video question answering from a bank of key/value blocks per stream (ReKV; arXiv 2503.00540)."""

    Options = ReKVOptions
    input_schema = records.FRAME
    control_schema = QUESTION
    output_schema = ANSWER

    def __init__(self, options: ReKVOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: ReKVOptions = options
        self._answering = load_answering(options, context.name, context.device)
        self.model_id = model_id(self._answering)
        self.output_schema = answer_schema({"streambank.model_id": self.model_id})
        self._encoding = FrameEncoding(context.name, self._answering, options, context.device)
        self._answerers = Answerers(options, context.name, context.device) if options.answerers else None
        self._streams: dict[str, Stream] = {}
        self._table = SlotTable(options.max_streams)
        self._touched: set[str] = set()
        self._closed: set[str] = set()
        self._tick = 0
        self._pending: deque[_Job] = deque()
        self._ready: list[Row] = []  # rows that wait for the next call
        self._counts = dict.fromkeys(("frames", "skipped", "late", "rejected", "evictions", "questions", "answers"), 0)
        self._lag_s = 0.0

    @classmethod
    def examine(cls, options: ReKVOptions, name: str) -> pa.Schema:
        """Check the checkpoint's place and the settings; return the output schema."""
        settings(options, name)
        return ANSWER

    # Frames

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Encode the frames of the batch that the sampling keeps. Rows come of frames that cannot be used, and of questions
        that waited for them.
        """
        records.require(batch, self.input_schema, self.context.name)
        out: list[tuple[int, Row]] = []
        queue: list[_Frame] = []
        columns = (batch.column(name).to_pylist() for name in ("stream_id", "sequence", "error"))
        times = batch.column("event_time").cast(pa.int64()).to_pylist()
        for number, (stream_id, sequence, error, time_us) in enumerate(zip(*columns, times, strict=True)):
            keys = (stream_id, sequence, time_us)
            if error is not None:
                out.append((number, self._refused(keys, "rejected_corrupt", error)))
                continue
            stream = self._streams.get(stream_id)
            problem = stream.lateness(sequence, time_us) if stream is not None else None
            if problem is not None:
                out.append((number, self._refused(keys, "late", problem)))
                continue
            keep_us = next_keep(time_us, stream.next_keep_us if stream is not None else -(2**63), self.options.sample_fps)
            image = None
            if keep_us is not None:
                image, reason = _decode(batch, number)
                if image is None:
                    out.append((number, self._refused(keys, "rejected_corrupt", reason)))
                    continue
            if stream is None:
                stream = self._open(stream_id, queue, out)
                if stream is None:
                    reason = f"all {self.options.max_streams} slots are taken; raise max_streams or set on_streams_full='evict'"
                    out.append((number, self._refused(keys, "rejected_full", reason)))
                    continue
            due = stream.due(time_us)
            if due:
                self._encode(queue, out)
                out += [(number, row) for row in self._answer(due)]
            self._note(stream_id, stream, sequence, time_us)
            if image is None or keep_us is None:
                self._counts["skipped"] += 1
                continue
            stream.next_keep_us = keep_us
            queue.append(_Frame(number, stream_id, stream, sequence, time_us, image))
        self._encode(queue, out)
        rows = [row for _, row in sorted(out, key=lambda pair: pair[0])]
        return self._rows(rows)

    def _note(self, stream_id: str, stream: Stream, sequence: int, time_us: int) -> None:
        self._tick += 1
        stream.used, stream.last_sequence, stream.last_time_us = self._tick, sequence, time_us
        self._table.touch(stream_id)
        self._touched.add(stream_id)

    def _open(self, stream_id: str, queue: list[_Frame], out: list[tuple[int, Row]]) -> Stream | None:
        """Give a slot to a new stream; None if there is none to be had."""
        if self._table.full:
            if self.options.on_streams_full == "reject":
                return None
            self._encode(queue, out)  # the frames of the stream that goes come before its end
            idle = self._table.idle_longest()
            self.close_stream(idle)
            self._counts["evictions"] += 1
            _log.info("operator=%s evicted stream=%r, %d slots in use", self.context.name, idle, len(self._table))
        slot = self._table.admit(stream_id)
        encoded = self._encoding.open(slot, stream_seed(0, stream_id, "blocks"))
        stream = self._streams[stream_id] = Stream(slot, encoded, FrameTimes(self._encoding.frames_per_stream))
        return stream

    def _encode(self, queue: list[_Frame], out: list[tuple[int, Row]]) -> None:
        """Encode the queue, which becomes empty, streams together."""
        if not queue:
            return
        parts: dict[str, tuple[list[_Frame], list[torch.Tensor]]] = {}
        for frame, tokens_TC in zip(queue, self._encoding.features([frame.image for frame in queue]), strict=True):
            frames, features = parts.setdefault(frame.stream_id, ([], []))
            if tokens_TC is None:
                reason = "the features of this frame are not finite"
                out.append((frame.number, self._refused(frame[1:2] + frame[3:5], "rejected_corrupt", reason)))
            elif self.options.on_full == "refuse" and len(frames) >= self._encoding.room(frame.stream.slot):
                reason = f"the stream has {self._encoding.frames_per_stream} frames; raise the bank's budget or set on_full"
                out.append((frame.number, self._refused(frame[1:2] + frame[3:5], "bank_full", reason)))
            else:
                frames.append(frame)
                features.append(tokens_TC)
        queue.clear()
        used = [part for part in parts.values() if part[0]]
        if not used:
            return
        if self._pending and any(len(frames) > self._encoding.room(frames[0].stream.slot) for frames, _ in used):
            self._finish(all_of_them=True)  # the oldest blocks must go, and questions may still read them
        for frames, _ in used:
            rows_K2 = np.array([(frame.time_us, frame.sequence) for frame in frames], dtype=np.int64)
            period = frames[0].stream.times.period
            start = frames[0].stream.encoded.frames + len(rows_K2) - len(rows_K2[-period:])
            frames[0].stream.times.put(start, rows_K2[-period:])
        self._encoding.append([frames[0].stream.encoded for frames, _ in used], [features for _, features in used])
        self._counts["frames"] += sum(len(frames) for frames, _ in used)

    # Questions

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take questions; answer those that can be. The others wait for their time to come."""
        records.require(batch, QUESTION, self.context.name)
        self._counts["questions"] += batch.num_rows
        refused: dict[int, Row] = {}
        now: list[tuple[int, Inquiry]] = []
        for number, row in enumerate(_plain_times(batch).to_pylist()):
            inquiry = read_question(row, self._answering.model, self.options, self._answering.config.window_tokens)
            if not isinstance(inquiry, Inquiry):
                refused[number] = _question_row(row, *inquiry)
                continue
            stream = self._streams.get(inquiry.stream_id)
            if stream is None:
                refused[number] = _question_row(row, "unknown_stream", f"no frames of {inquiry.stream_id!r} have come")
            elif inquiry.at_us is not None and inquiry.at_us > stream.last_time_us:
                if len(stream.waiting) >= self.options.max_waiting:
                    reason = f"{len(stream.waiting)} questions wait for times to come already (max_waiting); ask again later"
                    refused[number] = _question_row(row, "too_many_waiting", reason)
                else:
                    stream.waiting.append(inquiry)
                    self._touched.add(inquiry.stream_id)
            else:
                now.append((number, inquiry))
        answers = self._answer([inquiry for _, inquiry in now])
        if self._answerers is None:
            refused |= {number: row for (number, _), row in zip(now, answers, strict=True)}
        return self._rows([refused[number] for number in sorted(refused)])

    def _answer(self, inquiries: Sequence[Inquiry]) -> list[Row]:
        """Answer questions about streams that are here; with answerers, begin to: then there are no rows yet."""
        rows: list[Row] = []
        for start in range(0, len(inquiries), self.options.batch_questions):
            job = self._job(list(inquiries[start : start + self.options.batch_questions]))
            if self._answerers is not None:
                job.future = self._answerers.submit(job.asked, [reader.shared() for reader in job.readers])
                self._pending.append(job)
            else:
                rows += self._done(job, self._answering(job.asked, job.readers))
        return rows

    def _job(self, inquiries: list[Inquiry]) -> _Job:
        job = _Job(inquiries, [], [], [], time.perf_counter())
        for inquiry in inquiries:
            stream = self._streams[inquiry.stream_id]
            first, written = self._encoding.first(stream.slot), stream.encoded.frames
            below = written if inquiry.at_us is None else stream.times.below(first, written, inquiry.at_us)
            job.readers.append(self._encoding.reader(stream.slot, below))
            job.times.append(stream.times)
            frames = None
            if inquiry.frame_sequences is not None:
                known_K = stream.times.at(np.arange(first, below))[:, 1]
                place_K = np.searchsorted(known_K, inquiry.frame_sequences)
                there = [p < len(known_K) and known_K[p] == s for p, s in zip(place_K, inquiry.frame_sequences, strict=True)]
                # A frame that is not there gets a number that is none, which the model refuses.
                frames = tuple(first + int(p) if ok else -1 for p, ok in zip(place_K, there, strict=True))
            job.asked.append(Asked(inquiry.question, inquiry.max_tokens, frames))
        return job

    def _done(self, job: _Job, answers: Sequence[Answered]) -> list[Row]:
        """Return the rows of answered questions and let the bank have the blocks back."""
        self._lag_s = time.perf_counter() - job.began_s
        self._counts["answers"] += len(answers)
        rows = []
        for inquiry, answer, reader, times in zip(job.inquiries, answers, job.readers, job.times, strict=True):
            row = _question_row(_as_row(inquiry), answer.status, REASONS.get(answer.status))
            row |= {
                "frames_seen": answer.frames_seen,
                "as_of": int(times.at(np.array([reader.below - 1]))[0, 0]) if len(reader) else None,
                "lag_s": self._lag_s,
            }
            if answer.status == "ok":
                row |= {
                    "answer": answer.text,
                    "retrieved": [_retrieved(times, *layer) for layer in answer.retrieved],
                    "context_truncated": answer.context_truncated,
                }
            reader.close()
            rows.append(row)
        return rows

    def _finish(self, *, all_of_them: bool = False) -> None:
        """Take the answers of the processes in the order of asking: those that are there, or all, however long it takes."""
        while self._pending and self._answerers is not None:
            future = self._pending[0].future
            assert future is not None
            if not (all_of_them or future.done()):
                return
            try:
                answers = future.result()
            except BrokenProcessPool as error:
                raise self._answerers.broken() from error
            self._ready += self._done(self._pending.popleft(), answers)

    def flush(self) -> list[pa.RecordBatch]:
        """Wait for the answers that are being made; return them and those to questions of streams that have ended."""
        self._finish(all_of_them=True)
        return self._rows([])

    # Rows

    def _rows(self, rows: list[Row]) -> list[pa.RecordBatch]:
        """Return rows as a batch, behind those that were ready before."""
        self._finish()
        rows, self._ready = [*self._ready, *rows], []
        if not rows:
            return []
        columns = [
            pa.array([row.get(field.name) for row in rows], pa.string()).dictionary_encode().cast(field.type)
            if pa.types.is_dictionary(field.type)
            else pa.array([row.get(field.name) for row in rows], field.type)
            for field in self.output_schema
        ]
        return [pa.RecordBatch.from_arrays(columns, schema=self.output_schema)]

    def _refused(self, keys: tuple[Any, ...], status: str, reason: str) -> Row:
        """Return the row of a frame that is not encoded."""
        self._counts["late" if status == "late" else "rejected"] += 1
        return dict(zip(("stream_id", "sequence", "event_time"), keys, strict=True)) | {"status": status, "error": reason}

    # Streams

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream. Questions that wait for a later time are answered from what came; see ``flush``."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        waiting, stream.waiting = stream.waiting, []
        self._ready += self._answer(waiting)
        del self._streams[stream_id]
        self._table.release(stream_id)
        self._encoding.bank.release([stream.slot])
        self._touched.discard(stream_id)
        self._closed.add(stream_id)

    def metrics(self) -> dict[str, float]:
        """Return bytes, what waits, and counts since the start of this process."""
        tiers = self._encoding.bank.bytes()
        windows = sum(stream.encoded.bytes() for stream in self._streams.values())
        return {
            "bank_bytes": float(sum(tiers.values()) + windows),
            **{f"bank_bytes_{tier}": float(size) for tier, size in tiers.items()},
            "slots_used": float(len(self._table)),
            "frames_dropped": float(self._encoding.bank.dropped),
            "questions_waiting": float(sum(len(stream.waiting) for stream in self._streams.values())),
            "questions_in_work": float(sum(len(job.inquiries) for job in self._pending)),
            "answer_lag_s": self._lag_s,
            **{name: float(count) for name, count in self._counts.items()},
        }

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of all streams, or of those that changed since the last call with their new blocks.

        Answers that are being made are no part of it: the engine calls ``flush`` before.
        """
        names = [name for name in self._streams if not incremental or name in self._touched]
        streams = [self._streams[name] for name in names]
        state = State(streams=names, incremental=incremental, closed=sorted(self._closed) if incremental else [])
        self._encoding.bank.export([stream.slot for stream in streams], state, incremental=incremental)
        export_streams(streams, state, incremental=incremental)
        state.meta["model_id"] = self.model_id
        self._encoding.bank.mark_clean()
        self._touched.clear()
        self._closed.clear()
        return state

    def restore(self, state: State) -> None:
        """Replace all streams by those of a full ``state``."""
        name = self.context.name
        if state.incremental:
            raise RecoveryError(f"{name}: an incremental snapshot cannot be restored; apply it to a full one first")
        made_by = state.meta.get("model_id", self.model_id)
        if made_by != self.model_id:
            raise RecoveryError(
                f"{name}: the snapshot was made with weights and window {made_by}, these are {self.model_id}; blocks are of no "
                "use to other weights, so resume with the same checkpoint, window_tokens and sink_overlap"
            )
        if len(state.streams) > self.options.max_streams:
            raise RecoveryError(
                f"{name}: the snapshot holds {len(state.streams)} streams, max_streams is {self.options.max_streams}; raise "
                "it, or resume with more shards"
            )
        self._finish(all_of_them=True)
        self._ready = []
        self._table.clear()
        self._streams = {}
        if state.streams:
            used = state.dense["used"].tolist()
            slots = [0] * len(used)
            for i in sorted(range(len(used)), key=used.__getitem__):  # the least recently used first
                slots[i] = self._table.admit(state.streams[i])
            period = self._encoding.frames_per_stream
            encoded = self._encoding.reopen(slots, state)
            streams = [Stream(slot, one, FrameTimes(period)) for slot, one in zip(slots, encoded, strict=True)]
            import_streams(streams, state)
            self._streams = dict(zip(state.streams, streams, strict=True))
        else:
            self._encoding.bank.release(range(self.options.max_streams))
        self._tick = max((stream.used for stream in self._streams.values()), default=0)
        self._encoding.bank.mark_clean()
        self._touched.clear()
        self._closed.clear()


def _decode(batch: pa.RecordBatch, row: int) -> tuple[Image | None, str]:
    """Decode one frame, or say why not. Frames that are skipped are never decoded."""
    image, encoding, height, width = (batch.column(name)[row] for name in ("image", "encoding", "height", "width"))
    if not image.is_valid:
        return None, "the row has no image"
    try:
        decoded = decode_image(image.as_buffer(), encoding.as_py(), height.as_py(), width.as_py())
    except (ValueError, cv2.error) as problem:
        return None, str(problem)
    return (decoded, "") if decoded.size else (None, "the image has no pixels")


def _plain_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with times as integers, microseconds since 1970."""
    columns = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _as_row(inquiry: Inquiry) -> Row:
    return {
        "stream_id": inquiry.stream_id,
        "sequence": inquiry.sequence,
        "event_time": inquiry.time_us,
        "question_id": inquiry.question_id,
        "question": inquiry.question,
    }


def _question_row(asked: Row, status: str, reason: str | None) -> Row:
    """Return the row of a question without an answer yet."""
    keys = ("stream_id", "sequence", "event_time", "question_id", "question")
    return {key: asked[key] for key in keys} | {"asked_at": asked["event_time"], "status": status, "error": reason}


def _retrieved(times: FrameTimes, blocks_K: Any, scores_K: Any) -> list[Row]:
    """Return the frames that a layer retrieved, in order of time."""
    scores = [None] * len(blocks_K) if scores_K is None else scores_K.tolist()
    rows = zip(times.at(blocks_K).tolist(), scores, strict=True)
    return [{"event_time": at, "sequence": sequence, "score": score} for (at, sequence), score in rows]
