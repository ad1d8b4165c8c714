"""What a question sees of a stream, and the row that its answer becomes: ReKV's half of :mod:`operators.answers`."""

# K frames of a stream

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.banks import BlockReader, SharedBlocks
from operators.block_rows import BlockRows
from operators.questions import Question, Row, answer_row, answered_row
from operators.rekv.answering import Answering, BlockAnswer, BlockQuestion, NumbersFrom
from operators.rekv.encoder import FrameEncoding
from operators.rekv.rules import numbers_of
from operators.rekv.schemas import FRAME_SEQUENCES, REASONS
from operators.rekv.streams import NOTED, ReKVStream, VideoNumbers
from operators.streams import StreamTable

__all__ = ["FramesOfStreams", "FramesView"]


_NEWEST_FRAMES = 8
"""That a standing question is answered from."""


@dataclass(frozen=True, slots=True)
class FramesView:
    """The blocks of one stream that a question may see."""

    blocks: BlockReader
    times: BlockRows
    asked: BlockQuestion


class FramesOfStreams:
    """Opens blocks for questions."""

    def __init__(
        self, answering: Answering, encoding: FrameEncoding, streams: StreamTable[ReKVStream], unsure_below: float
    ) -> None:
        self._answering, self._encoding, self._streams = answering, encoding, streams
        self._unsure_below = unsure_below
        alike = answering.grid is not None
        self._first_sequence = 1 if alike else 2 + NOTED.index("first_sequence")
        self._frames = 2 + NOTED.index("frames")

    def views(self, questions: Sequence[Question]) -> list[FramesView]:
        """Open for each question the blocks of the frames up to its ``at``, or all that there are now.

        Those that are answered from given frames share what is open; others bring theirs near by themselves (``prefetch``).
        """
        readers: dict[tuple[int, int], BlockReader] = {}
        return [self._view(question, readers) for question in questions]

    def _view(self, question: Question, readers: dict[tuple[int, int], BlockReader]) -> FramesView:
        stream = self._streams.get(question.stream_id)
        assert stream is not None  # asked of streams that are there only
        first, written = self._encoding.first(stream.slot), stream.encoded.frames
        below = written if question.at_us is None else stream.times.below(first, written, question.at_us)
        frames = None
        if question.asked_us is not None:  # a question that stands is about what is there now
            frames = tuple(range(max(first, below - _NEWEST_FRAMES), below))
        if FRAME_SEQUENCES in question.extra:
            known_KW = stream.times.at(np.arange(first, below))
            frames = numbers_of(question.extra[FRAME_SEQUENCES], known_KW[:, 1], known_KW[:, self._first_sequence], first)
        numbers = None if self._answering.grid is not None else VideoNumbers(stream.times)
        asked = BlockQuestion(question.text, question.max_tokens, frames, numbers)
        reader = readers.get((stream.slot, below))
        if reader is None or frames is None:
            reader = self._encoding.reader(stream.slot, below)
        if frames is not None:
            readers[stream.slot, below] = reader
        return FramesView(reader, stream.times, asked)

    def answer(self, questions: Sequence[Question], views: Sequence[FramesView]) -> list[BlockAnswer]:
        """Answer here."""
        return self._answering([view.asked for view in views], [view.blocks for view in views])

    def portable(self, question: Question, view: FramesView) -> tuple[BlockQuestion, SharedBlocks]:
        """Return what an answerer needs, which reads the files."""
        asked, blocks = view.asked, view.blocks
        if asked.numbers is not None:
            noted_KW = asked.numbers.at(np.arange(blocks.first, blocks.below))
            asked = dataclasses.replace(asked, numbers=NumbersFrom(blocks.first, noted_KW))
        return asked, blocks.shared()

    def row(self, question: Question, view: FramesView, result: BlockAnswer) -> Row:
        """Return the row of an answer."""
        if result.status == "ok":
            row = answered_row(
                question,
                result.text,
                result.confidence,
                unsure_below=self._unsure_below,
                unknown_words=self._answering.model.unknown(question.text),
            )
        else:
            row = answer_row(question, result.status, REASONS.get(result.status))
        row["frames_seen"], row["as_of"] = result.frames_seen, None
        if len(view.blocks):
            newest = view.times.at(np.array([view.blocks.below - 1]))[0].tolist()
            row["as_of"] = newest[0]
            if view.asked.numbers is not None:
                row["frames_seen"] = newest[self._frames]
        if result.status == "ok":
            row["retrieved"] = [_retrieved(view.times, *layer) for layer in result.retrieved]
            row["context_truncated"] = result.context_truncated
        return row

    def release(self, view: FramesView) -> None:
        """Let the bank have the blocks back."""
        view.blocks.close()


def _retrieved(times: BlockRows, blocks_K: Any, scores_K: Any) -> list[Row]:
    """Return the frames that a layer retrieved, in order of time."""
    scores = [None] * len(blocks_K) if scores_K is None else scores_K.tolist()
    rows = zip(times.at(blocks_K)[:, :2].tolist(), scores, strict=True)
    return [{"event_time": at, "sequence": sequence, "score": score} for (at, sequence), score in rows]
