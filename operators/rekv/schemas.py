"""What only ``rekv`` adds to the schemas of :mod:`operators.questions`, and its statuses. Knows no model.

A question may have one more column, ``frame_sequences`` (list<int64>): retrieval from outside, these frames in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from connectors import records
from operators import questions
from operators.streams import STREAM_LOSSES, STREAM_STATUSES

__all__ = ["ANSWER", "FRAME_SEQUENCES", "LOSSES", "REASONS", "STATUSES", "answer_schema"]

FRAME_SEQUENCES = "frame_sequences"

REASONS = {
    "no_frames": "no frame that this question may see is in the bank",
    "bad_question": "the question has no words that the model reads",
    "bad_frames": "frame_sequences must be ascending, of frames that are in the bank, and fit into the window",
}
"""Why a question got a status by which the model answered nothing."""

STATUSES: Mapping[str, str] = {
    "ok": "the question was answered; frames that are encoded or skipped give no row",
    **STREAM_STATUSES,
    "bank_full": "a frame, the stream's share of the bank is used up, and `on_bank_full` is `refuse`",
    **questions.ANSWER_STATUSES,
    "no_frames": REASONS["no_frames"],
    "bad_frames": REASONS["bad_frames"],
}

LOSSES: Mapping[str, str] = {
    **STREAM_LOSSES,
    "frames_dropped": "frames were forgotten since their stream's share of the bank was full; raise its size to keep more",
}
"""What is lost without a row that says so, as counted by ``metrics``."""

_RETRIEVED = pa.struct(
    [
        pa.field("event_time", records.TIME_TYPE),
        pa.field("sequence", pa.int64()),
        pa.field("score", pa.float32()),
    ]
)


def answer_schema(metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Return the schema of answers.

    ``retrieved``: per layer, the frames in order of time, with their scores (null where they were given).
    """
    return questions.answer_schema(
        [
            pa.field("retrieved", pa.list_(pa.list_(_RETRIEVED))),
            pa.field("frames_seen", pa.int64()),
            pa.field("context_truncated", pa.bool_()),
        ],
        metadata,
    )


ANSWER = answer_schema()
