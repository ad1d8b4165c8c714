"""The operator's own rules as plain functions: which frames are encoded, and which questions can be answered at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.rekv.loaders import VideoLanguageModel
from operators.rekv.config import ReKVOptions
from operators.rekv.schemas import FRAME_SEQUENCES
from operators.rekv.streams import Inquiry

__all__ = ["REASONS", "Refusal", "next_keep", "read_question"]

REASONS = {
    "no_frames": "no frame that this question may see is in the bank",
    "bad_question": "the question has no words that the model reads",
    "bad_frames": "frame_sequences must be ascending, of frames that are in the bank, and fit into the window",
}
"""Why a question got a status by which the model answered nothing."""

_CHARACTERS = 64  # of one token at most, so that no book is cut into tokens before it is refused

Refusal = tuple[str, str]
"""Status and reason."""


def next_keep(time_us: int, due_us: int, fps: float | None) -> int | None:
    """Return from when on the next frame is encoded if this one is; None if this one is skipped.

    Frames are kept on a grid of ``1 / fps`` seconds that begins with the stream's first frame: the first frame in each cell.
    A microsecond of grace is for rounded times. After a gap the grid goes on, so nothing is made up for.
    """
    if fps is None:
        return time_us
    if time_us + 1 < due_us:
        return None
    step_us = round(1e6 / fps)
    origin_us = due_us if due_us > -(2**62) else time_us
    return origin_us + (max(time_us + 1 - origin_us, 0) // step_us + 1) * step_us


def read_question(row: Mapping[str, Any], model: VideoLanguageModel, options: ReKVOptions, window: int) -> Inquiry | Refusal:
    """Return what is asked by a control row, its times as integers, or why it cannot be."""
    text = row["question"]
    if row.get("error") is not None:
        return "bad_question", f"the row could not be read: {row['error']}"
    if text is None or not text.strip():
        return "bad_question", "the question is empty"
    limit = min(options.max_question_tokens, window)
    tokens = len(model.ids(model.prompts.open_ended(text))) if len(text) <= limit * _CHARACTERS else None
    if tokens is None or tokens > limit:
        size = f"{tokens} tokens with its prompt" if tokens is not None else f"{len(text)} characters"
        return (
            "question_too_long",
            f"the question has {size}; at most {limit} tokens are read (max_question_tokens, window_tokens)",
        )
    most = row["max_tokens"] if row["max_tokens"] is not None else options.max_answer_tokens
    if not 1 <= most <= options.max_answer_tokens:
        return "bad_question", f"max_tokens is {most}; it must be 1 to {options.max_answer_tokens} (max_answer_tokens)"
    return Inquiry(
        stream_id=row["stream_id"],
        sequence=row["sequence"],
        time_us=row["event_time"],
        question_id=row["question_id"],
        question=text,
        at_us=row["at"],
        max_tokens=most,
        frame_sequences=row.get(FRAME_SEQUENCES),
    )
