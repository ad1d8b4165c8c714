"""What only ``videostreaming`` adds to the schemas of :mod:`operators.questions`, and its statuses. Knows no model.

A question may have one more column, ``select_clips`` (int32): how many clips it selects.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from connectors import records
from operators import questions
from operators.streams import STREAM_LOSSES, STREAM_STATUSES

__all__ = ["ANSWER", "LOSSES", "REASONS", "SELECT_CLIPS", "STATUSES", "answer_schema"]

SELECT_CLIPS = "select_clips"

REASONS = {
    "no_video": "no frame that this question may see has come",
    "bad_question": "the question has no words that the model reads",
}
"""Why a question got a status by which the model answered nothing."""

STATUSES: Mapping[str, str] = {
    "ok": "the question was answered, or a clip was encoded (`clip_events`); other frames give no row",
    **STREAM_STATUSES,
    "clip_unusable": "the frame that ended a clip whose memory is not finite: it cannot be selected, the one before goes on",
    "bank_full": "the frame that ended a clip, the stream's share of the bank is used up, and `on_bank_full` is `refuse`",
    **questions.ANSWER_STATUSES,
    "no_video": REASONS["no_video"],
}

LOSSES: Mapping[str, str] = {
    **STREAM_LOSSES,
    "clips_dropped": "clips were forgotten since their stream's share of the bank was full; raise its size to keep more",
}
"""What is lost without a row that says so, as counted by ``metrics``."""

_TIMES = [pa.field("start", records.TIME_TYPE), pa.field("end", records.TIME_TYPE)]
_SELECTED = pa.struct(
    [pa.field("clip", pa.int64()), *_TIMES, pa.field("similarity", pa.float32()), pa.field("score", pa.float32())]
)
_INTERVAL = pa.struct([*_TIMES, pa.field("score", pa.float32())])
_CLIP = pa.struct(
    [
        pa.field("clip", pa.int64()),
        *_TIMES,
        pa.field("frames", pa.int32()),
        pa.field("indicator", pa.list_(pa.float32())),
    ]
)


def answer_schema(metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Return the schema of answers and of clips.

    ``selected``: the clips that the answer was written from, in the order of time; ``score`` is the share of a soft-max over
    all clips. ``intervals``: the same, neighboring clips joined and their scores added. ``clip``: of rows that tell of a clip,
    which have no question.
    """
    return questions.answer_schema(
        [
            pa.field("selected", pa.list_(_SELECTED)),
            pa.field("intervals", pa.list_(_INTERVAL)),
            pa.field("clips_seen", pa.int64()),
            pa.field("video_tokens", pa.int32()),
            pa.field("question_truncated", pa.bool_()),
            pa.field("clip", _CLIP),
        ],
        metadata,
    )


ANSWER = answer_schema()
