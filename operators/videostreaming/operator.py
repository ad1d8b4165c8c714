"""The streaming operator ``videostreaming``: frames of many streams in, questions as control rows, answers and clips out.

Decides which frames are kept, where clips end and when they are encoded: clips of many streams together, and what came before
a question that waited for it. Streams, admission, output rows and questions are the shared parts'.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from connectors import records
from models.uploads import download
from operators.answerers import answerers
from operators.answers import ANSWER_COUNTERS, Answers, merged_rows
from operators.banks import stream_seed
from operators.base import Context
from operators.block_rows import BlockRows
from operators.counters import STREAM_COUNTERS, Counters
from operators.frames import Frame, admit_frames
from operators.output import OutputRows
from operators.questions import QUESTION, QuestionLimits, Row
from operators.sampling import next_keep
from operators.standing import Look, Standing
from operators.state import State
from operators.streams import NEVER_US, StreamTable
from operators.videostreaming.answering import Answering
from operators.videostreaming.config import VideoStreamingOptions
from operators.videostreaming.declaration import VideoStreamingDeclaration
from operators.videostreaming.encoder import ClipEncoding, EndedClip, StoredClip
from operators.videostreaming.rules import CutRules, cut_clips
from operators.videostreaming.schemas import SELECT_CLIPS, STATUSES, answer_schema
from operators.videostreaming.streams import CLIP_COLUMNS, VideoStream, export_clips, load_clips
from operators.videostreaming.views import ClipsOfStreams
from operators.videostreaming.weights import load_answering, load_file_answering, load_gate, model_id

__all__ = ["VideoStreamingOperator"]

_UNUSABLE = "the memory of the clip that ended here is not finite; it cannot be selected, and the memory before it goes on"


@dataclass(frozen=True, slots=True)
class _Job:
    """A frame that is to be encoded."""

    row: int
    stream_id: str
    stream: VideoStream
    sequence: int
    time_us: int
    image: Frame


@dataclass(slots=True)
class _Call:
    """What one call of ``process`` has come to so far."""

    out: OutputRows
    queue: list[_Job] = field(default_factory=list)
    rows: list[tuple[int, Row]] = field(default_factory=list)
    """Answers to questions that waited or stand, and clips, with the row of the frame that they come of."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ended:
    """A clip that ended, with what its row tells."""

    stream_id: str
    stream: VideoStream
    clip: EndedClip
    times: tuple[int, int, int, int]
    """``CLIP_COLUMNS``."""
    sequence: int
    row: int | None
    """Of the frame by which it ended; None: the stream ended."""


class VideoStreamingOperator(VideoStreamingDeclaration):
    """The operator at work; what can be known of it before stands in its declaration."""

    def __init__(self, options: VideoStreamingOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: VideoStreamingOptions = options
        self._answering = load_answering(options, context.name, context.device)
        config = self._answering.ready.config
        self._fps = config.frames_per_clip / config.clip_seconds
        self._frame_us = round(1e6 / self._fps)
        self._rules = CutRules(config.frames_per_clip, round(config.clip_seconds * 1e6), round(options.clip_gap_s * 1e6))
        self.model_id = model_id(self._answering)
        self.output_schema = answer_schema({"streambank.model_id": self.model_id})
        self._encoding = ClipEncoding(context.name, self._answering, options, context.device)
        self._counters = Counters(
            *STREAM_COUNTERS, *ANSWER_COUNTERS, "frames", "skipped", "clips", "clips_unusable", "clips_dropped"
        )
        self._streams = StreamTable(
            context.name,
            self._make,
            options,
            kind=VideoStream,
            counters=self._counters,
            opened=lambda stream_id, stream: self._encoding.open(stream.slot, stream_seed(0, stream_id, "clips")),
            ended=self._end,
        )
        self._indicators: list[tuple[dict[str, Any], Tensor]] = []
        """Of clips that are told in rows, with what tells them, until the call ends."""
        ready = self._answering.ready
        self._answers = Answers(
            options,
            _limits(self._answering, options),
            self.output_schema,
            streams=self._streams,
            counters=self._counters,
            method=ClipsOfStreams(
                self._answering,
                self._encoding,
                self._streams,
                frame_us=self._frame_us,
                include_open=options.include_open,
                unsure_below=ready.unsure_below if options.unsure_below is None else options.unsure_below,
            ),
            pool=answerers(
                context.name, options.answerers, functools.partial(load_file_answering, options, context.name, context.device)
            ),
            standing=Standing(options, load_gate(options, self._answering), ready.encoder_tokenizer.unknown),
        )

    def _make(self, stream_id: str, slot: int) -> VideoStream:
        return VideoStream(slot, clips=BlockRows(self._encoding.clips_per_stream, width=len(CLIP_COLUMNS)))

    def _end(self, stream_id: str, stream: VideoStream) -> None:
        """Encode the clip that is open where somebody is still to hear of it, and answer who waits."""
        if stream.open_times and (self.options.clip_events or self._answers.waits_for(stream_id)):
            frames = self._encoding.open_frames(stream.slot, len(stream.open_times))
            self._note([self._ended(stream_id, stream, frames, stream.open_times, stream.last_time_us, None)], None)
        self._answers.end(stream_id)
        self._encoding.release(stream.slot)

    # Frames

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take the frames of the batch that the sampling keeps, and encode the clips that end.

        Rows come of frames that cannot be used, of questions that waited for them, and of clips where these are wanted.
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
            call.rows += [(frame.row, row) for row in due]
            keep_us = self._next_keep(stream, time_us)
            if keep_us is None or frame.content is None:
                self._counters.add("skipped")
                continue
            stream.next_keep_us = keep_us
            call.queue.append(_Job(frame.row, frame.stream_id, stream, frame.sequence, time_us, frame.content))
        self._encode(call)
        self._take_indicators()
        self._counters.note(call.out)
        self._counters.add("rejected", call.out.count("bank_full"))
        call.out.drop_rest()
        return self._answers.batches() + merged_rows(call.out, call.rows)

    def _next_keep(self, stream: VideoStream | None, time_us: int) -> int | None:
        return next_keep(time_us, NEVER_US if stream is None else stream.next_keep_us, self._fps)

    def _encode(self, call: _Call) -> None:
        """Encode the queue, which becomes empty; answer what stands at the frames where it rises."""
        queue, call.queue = call.queue, []
        if not queue:
            return
        features = self._encoding.features([job.image for job in queue])
        looks = [
            None if tokens_NC is None else Look(job.stream_id, job.sequence, job.time_us, tokens_NC)
            for job, tokens_NC in zip(queue, features, strict=True)
        ]
        start = 0
        for place, questions in sorted(self._answers.standing.look(looks).items()):
            self._write(call, queue[start : place + 1], features[start : place + 1])
            call.rows += [(queue[place].row, row) for row in self._answers.risen(questions)]
            start = place + 1
        self._write(call, queue[start:], features[start:])

    def _write(self, call: _Call, queue: Sequence[_Job], features_of: Sequence[Tensor | None]) -> None:
        """Write frames: clips that end to memories, streams together."""
        parts: dict[int, tuple[list[_Job], list[Tensor]]] = {}
        for job, tokens_NC in zip(queue, features_of, strict=True):
            if tokens_NC is None:
                call.out.set(job.row, "rejected_corrupt", "the features of this frame are not finite")
                continue
            jobs, features = parts.setdefault(job.stream.slot, ([], []))
            jobs.append(job)
            features.append(tokens_NC)
        ended, slots, clears, rest = [], [], [], []
        for jobs, features in parts.values():
            clips, cleared, left = self._cut(jobs, torch.stack(features))
            ended += clips
            slots.append(jobs[0].stream.slot)
            clears.append(cleared)
            rest.append(left)
        self._counters.add("frames", sum(len(jobs) for jobs, _ in parts.values()))
        self._note(ended, call)
        if slots:
            self._encoding.keep_open(slots, clears, rest)

    def _cut(self, jobs: Sequence[_Job], features_nNC: Tensor) -> tuple[list[_Ended], bool, tuple[Tensor, list[int]]]:
        """Cut the new frames of a stream into clips.

        Return those that end, whether the open clip is among them, and the frames to be added to the open clip.
        """
        stream, new = jobs[0].stream, [job.time_us for job in jobs]
        if stream.start_us == NEVER_US:
            stream.start_us = new[0]
        known, times = len(stream.open_times), stream.open_times + new
        cuts, open_from = cut_clips(times, known, self._rules)
        stream.last_kept = jobs[-1].sequence
        stream.open_times = times[open_from:]
        if not cuts:
            return [], False, (features_nNC, new)
        if known:
            features_nNC = torch.cat((self._encoding.open_frames(stream.slot, known), features_nNC))
        ended = [
            self._ended(
                jobs[0].stream_id,
                stream,
                features_nNC[cut.start : cut.stop],
                times[cut.start : cut.stop],
                times[cut.by],
                jobs[cut.by - known],
            )
            for cut in cuts
        ]
        return ended, True, (features_nNC[open_from:], times[open_from:])

    def _ended(
        self, stream_id: str, stream: VideoStream, frames_TNC: Tensor, times: Sequence[int], known_us: int, by: _Job | None
    ) -> _Ended:
        number = stream.encoded
        stream.encoded += 1
        start_us, end_us = times[0] - stream.start_us, times[-1] - stream.start_us + self._frame_us
        return _Ended(
            stream_id,
            stream,
            EndedClip(stream.slot, number, frames_TNC, start_us, end_us),
            (known_us, times[0], times[-1], len(times)),
            stream.last_kept if by is None else by.sequence,
            None if by is None else by.row,
        )

    def _note(self, ended: Sequence[_Ended], call: _Call | None) -> None:
        """Encode clips and note what became of them. ``call`` None: their stream ends."""
        if not ended:
            return
        slots = [one.stream.slot for one in ended]
        if self._answers.busy and any(slots.count(slot) > self._encoding.room(slot) for slot in set(slots)):
            self._answers.wait()  # the oldest memories must go, and questions may still read them
        dropped = self._encoding.bank.dropped
        stored = self._encoding.encode([one.clip for one in ended])
        self._counters.add("clips_dropped", self._encoding.bank.dropped - dropped)
        for one, clip in zip(ended, stored, strict=True):
            self._note_one(one, clip, call)

    def _note_one(self, one: _Ended, clip: StoredClip, call: _Call | None) -> None:
        known_us, _, last_us, frames = one.times
        if not clip.stored:
            one.stream.encoded -= 1
            if call is not None and one.row is not None:
                held = self._encoding.clips_per_stream
                reason = f"the stream has {held} clips; raise the bank's budget, or set on_bank_full to drop_oldest"
                call.out.set(one.row, "bank_full", reason)
            return
        number = one.clip.number
        one.stream.clips.put(number, np.array([one.times], dtype=np.int64))
        self._counters.add("clips")
        if not clip.usable:
            self._counters.add("clips_unusable")
            if call is not None and one.row is not None:
                call.out.set(one.row, "clip_unusable", _UNUSABLE)
            return
        if self.options.clip_events:
            told = {
                "clip": number,
                "start": one.times[1],
                "end": last_us + self._frame_us,
                "frames": frames,
                "indicator": list[float](),
            }
            row = {
                "stream_id": one.stream_id,
                "sequence": one.sequence,
                "event_time": known_us,
                "status": "ok",
                "clip": told,
            }
            self._indicators.append((told, clip.indicator_D))
            if call is None or one.row is None:
                self._take_indicators()
                self._answers.add(row)
            else:
                call.rows.append((one.row, row))

    def _take_indicators(self) -> None:
        """Bring the indicators that rows tell to the host, all at once."""
        told, self._indicators = self._indicators, []
        for (clip, _), indicator_D in zip(told, download(*(there_D for _, there_D in told)), strict=True):
            clip["indicator"] = indicator_D.tolist()

    # Questions

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take questions; answer those that can be. The others wait for their time to come."""
        records.require(batch, QUESTION, self.context.name)
        return self._answers.batches(self._answers.ask(batch))

    def advance(self, watermark_us: int) -> list[pa.RecordBatch]:
        """Answer the questions about times before this one: no frame that they could see is to come."""
        return self._answers.batches(self._answers.advance(watermark_us))

    def flush(self) -> list[pa.RecordBatch]:
        """Wait for the answers that are being made; return them and what is left to say of streams that have ended."""
        self._answers.wait()
        return self._answers.batches()

    # Streams

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream. Its open clip ends, and questions that wait are answered from what came; see ``flush``."""
        self._streams.close(stream_id)

    def metrics(self) -> dict[str, float]:
        """Return bytes, what waits, and counts of the whole run."""
        tiers = self._encoding.bytes()
        return {
            "bank_bytes": float(sum(tiers.values())),
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
        """Return a copy of all streams, or of those that changed since the last call with their new memories.

        Answers that are being made are no part of it: the engine calls ``flush`` before.
        """
        with self._streams.snapshot(incremental=incremental, model_id=self.model_id) as (state, streams):
            self._encoding.export([stream.slot for stream in streams], state, incremental=incremental)
            export_clips(streams, state, incremental=incremental)
            self._answers.export(state)
            self._encoding.mark_clean()
        return state

    def restore(self, state: State) -> None:
        """Replace all streams by those of a full ``state``."""
        hint = (
            "memories are of no use to other weights; resume with the same checkpoint, clip_seconds, frames_per_clip, "
            "propagate and similarity, or start with an empty state folder"
        )
        self._answers.wait()
        state, streams = self._streams.restore(state, hint=hint, model_id=self.model_id)
        self._encoding.load([stream.slot for stream in streams], state)
        if streams:
            load_clips(streams, state)
        for stream in streams:
            stream.open_times = self._encoding.open_times(stream.slot)
        self._answers.load(state)
        self._encoding.mark_clean()


def _limits(answering: Answering, options: VideoStreamingOptions) -> QuestionLimits:
    ready = answering.ready

    def tokens(text: str) -> int:
        # What is cut is never too long; texts beyond all reason are refused before they are looked at.
        return 0 if options.on_long_question == "cut" else len(ready.prompt_ids(text))

    return QuestionLimits(
        tokens=tokens,
        max_question_tokens=options.max_question_tokens,
        max_answer_tokens=options.max_answer_tokens,
        set_by="max_question_tokens, on_long_question",
        extra=(SELECT_CLIPS,),
    )
