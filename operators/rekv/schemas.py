"""Arrow schemas of questions and answers. Knows no model.

A question may have one more column, ``frame_sequences`` (list<int64>): retrieval from outside, these frames in every layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from connectors import records

__all__ = ["ANSWER", "FRAME_SEQUENCES", "QUESTION", "answer_schema"]

FRAME_SEQUENCES = "frame_sequences"

QUESTION = records.key_schema(
    "question",
    1,
    [
        pa.field("question_id", pa.string()),
        pa.field("question", pa.string()),
        pa.field("at", records.TIME_TYPE),
        pa.field("max_tokens", pa.int32()),
    ],
)
"""``at``: only frames up to this event time are seen; null: those that have come. ``event_time``: when it was asked."""

_RETRIEVED = pa.struct(
    [
        pa.field("event_time", records.TIME_TYPE),
        pa.field("sequence", pa.int64()),
        pa.field("score", pa.float32()),
    ]
)


def answer_schema(metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Return the schema of answers. Rows of frames that could not be used have the same columns, without a question."""
    return records.output_schema(
        "answer",
        1,
        [
            pa.field("question_id", pa.string()),
            pa.field("question", pa.string()),
            pa.field("answer", pa.string()),
            pa.field("asked_at", records.TIME_TYPE),
            pa.field("as_of", records.TIME_TYPE),
            pa.field("retrieved", pa.list_(pa.list_(_RETRIEVED))),
            pa.field("frames_seen", pa.int64()),
            pa.field("context_truncated", pa.bool_()),
            records.field("lag_s", pa.float64(), unit="s"),
        ],
        metadata,
    )


ANSWER = answer_schema()
"""``as_of``: event time of the newest frame that the answer could use. ``retrieved``: per layer, the frames in order of time,
with their scores (null where they were given). ``lag_s``: from the moment the question could be answered to its answer; the one
column that is not repeatable."""
