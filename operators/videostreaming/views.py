"""What a question sees of a stream, and the row that its answer becomes: this method's half of :mod:`operators.answers`."""

# K clips of a stream

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from operators.banks import BlockReader, SharedBlocks
from operators.questions import Question, Row, answer_row, answered_row
from operators.streams import StreamTable
from operators.videostreaming.answering import Answering, ChosenClip, ClipAnswer, ClipQuestion, OpenClip
from operators.videostreaming.encoder import ClipEncoding
from operators.videostreaming.rules import joined
from operators.videostreaming.schemas import REASONS, SELECT_CLIPS
from operators.videostreaming.streams import VideoStream

__all__ = ["ClipsOfStreams", "ClipsView"]


_NEWEST_CLIPS = 1
"""That a standing question is answered from: the open one, or the one that has just ended."""


@dataclass(frozen=True, slots=True)
class ClipsView:
    """The memories of one stream that a question may see, and what is open of the clip behind them."""

    blocks: BlockReader
    asked: ClipQuestion
    start_us: int
    """Event time from which the model counts."""
    as_of_us: int | None
    """Event time of the newest frame that is seen; None without one."""


class ClipsOfStreams:
    """Opens memories for questions."""

    def __init__(
        self,
        answering: Answering,
        encoding: ClipEncoding,
        streams: StreamTable[VideoStream],
        *,
        frame_us: int,
        include_open: bool,
        unsure_below: float,
    ) -> None:
        self._answering, self._encoding, self._streams = answering, encoding, streams
        self._frame_us, self._include_open, self._unsure_below = frame_us, include_open, unsure_below

    def views(self, questions: Sequence[Question]) -> list[ClipsView]:
        """Open for each question the memories of the clips that had ended at its ``at``, or all that there are now.

        Those that see the same share it.
        """
        readers: dict[tuple[int, int], BlockReader] = {}
        opened: dict[tuple[int, int], OpenClip] = {}
        return [self._view(question, readers, opened) for question in questions]

    def _view(
        self, question: Question, readers: dict[tuple[int, int], BlockReader], opened: dict[tuple[int, int], OpenClip]
    ) -> ClipsView:
        stream = self._streams.get(question.stream_id)
        assert stream is not None  # asked of streams that are there only
        first, written = self._encoding.first(stream.slot), stream.encoded
        at_us = question.at_us
        below = written if at_us is None else stream.clips.below(first, written, at_us)
        seen = [time_us for time_us in stream.open_times if at_us is None or time_us <= at_us] if below == written else []
        stands = question.asked_us is not None  # such a question is about what is there now
        part = None
        if seen and (self._include_open or below == first or stands):
            key = (stream.slot, len(seen))
            if key not in opened:
                opened[key] = self._open(stream, seen)
            part = opened[key]
        as_of_us = seen[-1] if part is not None else None
        if as_of_us is None and below > first:
            as_of_us = int(stream.clips.at(np.array([below - 1]))[0, 2])
        newest = _NEWEST_CLIPS if stands else None
        asked = ClipQuestion(question.text, question.max_tokens, question.extra.get(SELECT_CLIPS), part, newest)
        key = (stream.slot, below)
        if key not in readers:
            readers[key] = self._encoding.reader(*key)
        return ClipsView(readers[key], asked, stream.start_us, as_of_us)

    def _open(self, stream: VideoStream, times: Sequence[int]) -> OpenClip:
        features_TNC = self._encoding.open_frames(stream.slot, len(times))
        start_us, end_us = times[0] - stream.start_us, times[-1] - stream.start_us + self._frame_us
        return OpenClip(features_TNC.clone(), start_us, end_us)

    def answer(self, questions: Sequence[Question], views: Sequence[ClipsView]) -> list[ClipAnswer]:
        """Answer here."""
        return self._answering([view.asked for view in views], [view.blocks for view in views])

    def portable(self, question: Question, view: ClipsView) -> tuple[ClipQuestion, SharedBlocks]:
        """Return what an answerer needs, which reads the files."""
        return view.asked, view.blocks.shared()

    def row(self, question: Question, view: ClipsView, result: ClipAnswer) -> Row:
        """Return the row of an answer."""
        ready = self._answering.ready
        if result.status == "ok":
            unknown = ready.tokenizer.unknown(question.text)
            row = answered_row(question, result.text, result.confidence, unsure_below=self._unsure_below, unknown_words=unknown)
            row["selected"] = [_selected(view.start_us, clip) for clip in result.chosen]
            row["intervals"] = _intervals(view.start_us, result.chosen)
            row["video_tokens"] = result.video_tokens
            row["question_truncated"] = result.truncated
        else:
            row = answer_row(question, result.status, result.error or REASONS.get(result.status))
        row["clips_seen"] = view.blocks.below + (view.asked.open is not None)
        row["as_of"] = view.as_of_us
        return row

    def release(self, view: ClipsView) -> None:
        """Let the bank have the memories back."""
        view.blocks.close()


def _selected(start_us: int, clip: ChosenClip) -> Row:
    return {
        "clip": clip.number,
        "start": start_us + clip.start_us,
        "end": start_us + clip.end_us,
        "similarity": clip.similarity,
        "score": clip.score,
    }


def _intervals(start_us: int, chosen: Sequence[ChosenClip]) -> list[Row]:
    """Join neighboring clips."""
    runs = [[chosen[place] for place in run] for run in joined([clip.number for clip in chosen])]
    return [
        {
            "start": start_us + run[0].start_us,
            "end": start_us + run[-1].end_us,
            "score": sum(clip.score for clip in run),
        }
        for run in runs
    ]
