"""The streaming operator ``rekv``: frames of many streams in, questions as control rows, answers out.

Decides which frames are encoded and when: batches frames over streams, and writes what came before a question that waited for
it. Streams, admission, output rows and questions are the shared parts'; a frame that was encoded gives no row.
"""

# K frames of a stream

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from connectors import records
from models.rekv.qwen_vision import QwenVision
from operators.answerers import answerers
from operators.answers import ANSWER_COUNTERS, Answers, merged_rows
from operators.banks import stream_seed
from operators.base import Context
from operators.block_rows import BlockRows
from operators.counters import STREAM_COUNTERS, Counters
from operators.frames import Frame, admit_frames, stack_frames
from operators.output import OutputRows
from operators.questions import QUESTION, QuestionLimits, Row
from operators.rekv.answering import Answering
from operators.rekv.config import ReKVOptions
from operators.rekv.declaration import ReKVDeclaration
from operators.rekv.encoder import FrameEncoding
from operators.rekv.policies import policy_dict
from operators.rekv.schemas import FRAME_SEQUENCES, STATUSES, answer_schema
from operators.rekv.streams import (
    NOTED,
    Half,
    ReKVStream,
    VideoNumbers,
    export_halves,
    export_times,
    load_halves,
    load_times,
)
from operators.rekv.views import FramesOfStreams
from operators.rekv.weights import load_answering, load_file_answering, load_gate, model_id
from operators.rekv.windows import export_windows
from operators.sampling import next_keep
from operators.standing import Look, Standing
from operators.state import State
from operators.streams import NEVER_US, StreamTable

__all__ = ["ReKVOperator"]


@dataclass(frozen=True, slots=True)
class _Job:
    """A block that is to be encoded: a frame, or frames that share it."""

    row: int | None
    """Of the last frame; None where the stream ends."""
    stream_id: str
    stream: ReKVStream
    image: Frame
    """[H, W, 3], or of a family with frames of any size [P, H, W, 3]."""
    frames: Sequence[tuple[int, int]]
    """Event time and sequence of each."""


@dataclass(slots=True)
class _Call:
    """What one call of ``process`` has come to so far."""

    out: OutputRows
    queue: list[_Job] = field(default_factory=list)
    answers: list[tuple[int, Row]] = field(default_factory=list)
    """Answers to questions that waited or stand, with the row of the frame that set them free."""


class ReKVOperator(ReKVDeclaration):
    """The operator at work; what can be known of it before stands in its declaration."""

    def __init__(self, options: ReKVOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: ReKVOptions = options
        self._answering = load_answering(options, context.name, context.device)
        self.model_id = model_id(self._answering)
        self.output_schema = answer_schema({"streambank.model_id": self.model_id})
        self._encoding = FrameEncoding(context.name, self._answering, options, context.device)
        self._width = 2 + (len(NOTED) if self._answering.model.video is not None else 0)
        self._counters = Counters(*STREAM_COUNTERS, *ANSWER_COUNTERS, "frames", "skipped", "frames_dropped")
        self._streams = StreamTable(
            context.name,
            self._make,
            options,
            kind=ReKVStream,
            counters=self._counters,
            opened=lambda stream_id, stream: self._encoding.open(stream.slot, stream_seed(0, stream_id, "blocks")),
            ended=self._end,
        )
        self._answers = Answers(
            options,
            _limits(self._answering, options),
            self.output_schema,
            streams=self._streams,
            counters=self._counters,
            method=FramesOfStreams(self._answering, self._encoding, self._streams, _unsure_below(self._answering, options)),
            pool=answerers(
                context.name, options.answerers, functools.partial(load_file_answering, options, context.name, context.device)
            ),
            standing=Standing(options, load_gate(options, self._answering), self._answering.model.unknown),
        )

    def _make(self, stream_id: str, slot: int) -> ReKVStream:
        times = BlockRows(self._encoding.frames_per_stream, width=self._width)
        return ReKVStream(slot, encoded=self._encoding.make(slot, VideoNumbers(times)), times=times)

    def _end(self, stream_id: str, stream: ReKVStream) -> None:
        if stream.half is not None and self._answers.waits_for(stream_id):
            last = [_completed(None, stream_id, stream, stream.half)]
            self._write(None, last, self._encoding.features([job.image for job in last]))
        self._answers.end(stream_id)
        self._encoding.bank.release([stream.slot])

    # Frames

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Encode the frames of the batch that the sampling keeps. Rows come of frames that cannot be used, and of questions
        that waited for them.
        """
        records.require(batch, self.input_schema, self.context.name)
        call = _Call(OutputRows(batch, self.output_schema, STATUSES))
        for frame in admit_frames(
            batch,
            self._streams,
            call.out,
            before_eviction=lambda stream: self._encode(call),  # its frames come before its end
            wanted=lambda stream, time_us: self._next_keep(stream, time_us) is not None,
        ):
            stream, time_us = frame.stream, frame.time_us
            due = self._answers.due(frame.stream_id, time_us, prepare=lambda: self._encode(call))
            call.answers += [(frame.row, row) for row in due]
            keep_us = self._next_keep(stream, time_us)
            if keep_us is None or frame.content is None:
                self._counters.add("skipped")
                continue
            stream.next_keep_us = keep_us
            call.queue += self._blocks(frame.row, frame.stream_id, stream, frame.content, time_us, frame.sequence)
        self._encode(call)
        self._counters.note(call.out)
        self._counters.add("rejected", call.out.count("bank_full"))
        call.out.drop_rest()
        return self._answers.batches() + merged_rows(call.out, call.answers)

    def _next_keep(self, stream: ReKVStream | None, time_us: int) -> int | None:
        return next_keep(time_us, NEVER_US if stream is None else stream.next_keep_us, self.options.sample_fps)

    def _blocks(self, row: int, stream_id: str, stream: ReKVStream, image: Frame, time_us: int, sequence: int) -> list[_Job]:
        """Return the blocks that a frame completes. Of two frames that share one the first waits for the second."""
        vision = self._answering.model.frames
        if not isinstance(vision, QwenVision):
            return [_Job(row, stream_id, stream, image, [(time_us, sequence)])]
        done, new = [], Half(vision.resize(image), time_us, sequence)
        if stream.half is not None and stream.half.image.shape == new.image.shape:
            images = stack_frames((stream.half.image, new.image))
            frames = [(stream.half.time_us, stream.half.sequence), (time_us, sequence)]
            stream.half = None
            return [_Job(row, stream_id, stream, images, frames)]
        if stream.half is not None:  # of another size: it will find no second
            done.append(_completed(row, stream_id, stream, stream.half))
        if vision.frames_per_block == 1:
            return [*done, _completed(row, stream_id, stream, new)]
        stream.half = new
        return done

    def _encode(self, call: _Call) -> None:
        """Encode the queue, which becomes empty, streams together; answer what stands at the frames where it rises."""
        queue, call.queue = call.queue, []
        if not queue:
            return
        features = self._encoding.features([job.image for job in queue])
        looks = [
            None if tokens_TC is None else Look(job.stream_id, job.frames[-1][1], job.frames[-1][0], tokens_TC)
            for job, tokens_TC in zip(queue, features, strict=True)
        ]
        start = 0
        for place, questions in sorted(self._answers.standing.look(looks).items()):
            self._write(call.out, queue[start : place + 1], features[start : place + 1])
            call.answers += [(queue[place].row or 0, row) for row in self._answers.risen(questions)]
            start = place + 1
        self._write(call.out, queue[start:], features[start:])

    def _write(self, out: OutputRows | None, queue: Sequence[_Job], features_of: Sequence[torch.Tensor | None]) -> None:
        """Write blocks to the memories of their streams. Frames that cannot be used are told in ``out``."""
        parts: dict[int, tuple[list[_Job], list[torch.Tensor]]] = {}
        for job, tokens_TC in zip(queue, features_of, strict=True):
            jobs, features = parts.setdefault(job.stream.slot, ([], []))
            if tokens_TC is None:
                _tell(out, job, "rejected_corrupt", "the features of this frame are not finite")
            elif self.options.on_bank_full == "refuse" and len(jobs) >= self._encoding.room(job.stream.slot):
                held = self._encoding.frames_per_stream
                reason = f"the stream has {held} frames; raise the bank's budget, or set on_bank_full to drop_oldest"
                _tell(out, job, "bank_full", reason)
            else:
                jobs.append(job)
                features.append(tokens_TC)
        used = [(jobs[0].stream, jobs, features) for jobs, features in parts.values() if jobs]
        if not used:
            return
        if self._answers.busy and any(len(jobs) > self._encoding.room(stream.slot) for stream, jobs, _ in used):
            self._answers.wait()  # the oldest blocks must go, and questions may still read them
        dropped = self._encoding.bank.dropped
        # As many at a time as a stream keeps beside its newest, by which the next ones are placed.
        most = max(self._encoding.frames_per_stream - 1, 1)
        for start in range(0, max(len(jobs) for _, jobs, _ in used), most):
            parts_now = [(s, jobs[start : start + most], f[start : start + most]) for s, jobs, f in used if len(jobs) > start]
            blocks = [self._noted(*part) for part in parts_now]
            self._encoding.append([stream.encoded for stream, _, _ in parts_now], blocks)
        self._counters.add("frames", sum(len(job.frames) for _, jobs, _ in used for job in jobs))
        self._counters.add("frames_dropped", self._encoding.bank.dropped - dropped)

    def _noted(self, stream: ReKVStream, jobs: Sequence[_Job], features: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Note what blocks are about to be encoded; return them with their words."""
        rows_K2 = np.array([job.frames[-1] for job in jobs], dtype=np.int64)
        block, video = stream.encoded.frames, self._answering.model.video
        if video is None:
            stream.times.put(block, rows_K2)
            return features
        elapsed_us = np.array([(job.frames[0][0], job.frames[-1][0]) for job in jobs], np.int64) - stream.first_time_us
        seconds = elapsed_us.mean(axis=1) / 1e6
        parts = [
            video.block(tokens_TC, job.image.shape[1], job.image.shape[2], at_s)
            for job, tokens_TC, at_s in zip(jobs, features, seconds.tolist(), strict=True)
        ]
        layout = video.layout(VideoNumbers(stream.times))
        places_K6 = layout.rows(block, [shape for _, shape in parts], elapsed_us[:, 0].tolist())
        seen = stream.times.at(np.array([block - 1]))[0, -1] if block else 0
        counts_K = seen + np.cumsum([len(job.frames) for job in jobs])
        firsts_K = np.array([job.frames[0][1] for job in jobs])
        stream.times.put(block, np.column_stack((rows_K2, places_K6, firsts_K, counts_K)))
        return [block_nC for block_nC, _ in parts]

    # Questions

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take questions; answer those that can be. The others wait for their time to come."""
        records.require(batch, QUESTION, self.context.name)
        return self._answers.batches(self._answers.ask(batch))

    def advance(self, watermark_us: int) -> list[pa.RecordBatch]:
        """Answer the questions about times before this one: no frame that they could see is to come."""
        return self._answers.batches(self._answers.advance(watermark_us))

    def flush(self) -> list[pa.RecordBatch]:
        """Wait for the answers that are being made; return them and those to questions of streams that have ended."""
        self._answers.wait()
        return self._answers.batches()

    # Streams

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream. Questions that wait for a later time are answered from what came; see ``flush``."""
        self._streams.close(stream_id)

    def metrics(self) -> dict[str, float]:
        """Return bytes, what waits, and counts of the whole run."""
        tiers = self._encoding.bank.bytes()
        windows = sum(stream.encoded.bytes() for stream in self._streams.values())
        return {
            "bank_bytes": float(sum(tiers.values()) + windows),
            **{f"bank_bytes_{tier}": float(size) for tier, size in tiers.items()},
            "streams": float(len(self._streams)),
            **self._answers.gauges(),
            **self._counters.gauges(),
        }

    def close(self) -> None:
        """End the processes that answer and the bank's thread, and unmap its files."""
        self._answers.close()
        self._encoding.bank.close()

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of all streams, or of those that changed since the last call with their new blocks.

        Answers that are being made are no part of it: the engine calls ``flush`` before.
        """
        with self._streams.snapshot(incremental=incremental, **self._identity()) as (state, streams):
            encoded = [stream.encoded for stream in streams]
            self._encoding.bank.export([stream.slot for stream in streams], state, incremental=incremental)
            if not self._answering.policy.is_exact:
                clean = [stream.times.clean for stream in streams]
                export_windows(encoded, clean, state, self._answering.config.window_tokens, incremental=incremental)
            export_times(streams, state, width=self._width, incremental=incremental)
            if self._answering.model.video is not None:
                export_halves(streams, state)
            self._answers.export(state)
            self._encoding.bank.mark_clean()
        return state

    def restore(self, state: State) -> None:
        """Replace all streams by those of a full ``state``."""
        hint = (
            "blocks are of no use to other weights or policies; resume with the same checkpoint, window_tokens, sink_overlap "
            "and policy, or start with an empty state folder"
        )
        self._answers.wait()
        state, streams = self._streams.restore(state, hint=hint, **self._identity())
        slots, encoded = [stream.slot for stream in streams], [stream.encoded for stream in streams]
        self._encoding.load(slots, encoded, state)
        if streams:
            load_times(streams, state)
            self._encoding.load_windows(slots, encoded, state)
            if self._answering.model.video is not None:
                load_halves(streams, state)
        self._answers.load(state)
        self._encoding.bank.mark_clean()

    def _identity(self) -> dict[str, object]:
        return {"model_id": self.model_id, "policy": policy_dict(self.options.policy)}


def _limits(answering: Answering, options: ReKVOptions) -> QuestionLimits:
    model, window = answering.model, answering.config.window_tokens
    return QuestionLimits(
        tokens=lambda text: len(model.ids(model.prompts.open_ended(text))),
        max_question_tokens=min(options.max_question_tokens, window),
        max_answer_tokens=options.max_answer_tokens,
        set_by="max_question_tokens, window_tokens",
        extra=(FRAME_SEQUENCES,),
    )


def _unsure_below(answering: Answering, options: ReKVOptions) -> float:
    return answering.model.unsure_below if options.unsure_below is None else options.unsure_below


def _completed(row: int | None, stream_id: str, stream: ReKVStream, half: Half) -> _Job:
    """Return the block of a frame that no other shares; the tower sees it twice."""
    stream.half = None
    return _Job(row, stream_id, stream, half.image[None], [(half.time_us, half.sequence)])


def _tell(out: OutputRows | None, job: _Job, status: str, reason: str) -> None:
    if out is not None and job.row is not None:
        out.set(job.row, status, reason)
