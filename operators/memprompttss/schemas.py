"""Records of ``memprompttss``: prompts in; states, segments and events of the bank out."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from connectors import records
from operators.sampling_rate import RATE_STATUSES
from operators.streams import STREAM_STATUSES

__all__ = ["ALERTS", "BANK", "OUTPUTS", "PROMPT", "SEGMENTS", "STATES", "STATUSES"]

PROMPT = records.key_schema(
    "prompt",
    1,
    [
        pa.field("prompt_id", pa.string()),
        pa.field("kind", pa.string()),
        *(
            records.field(name, kind, optional=True)
            for name, kind in (
                ("at", records.TIME_TYPE),
                ("at_end", records.TIME_TYPE),
                ("at_offset_s", pa.float64()),
                ("state", pa.int32()),
                ("aspect", pa.string()),
                ("boundary", pa.bool_()),
                ("granularity", pa.int8()),
                ("target", pa.string()),
                ("pinned", pa.bool_()),
                ("author", pa.string()),
                ("context", pa.list_(pa.float32())),
                ("debounce_s", pa.float64()),
            )
        ),
    ],
)
"""What somebody says about a stream; ``event_time`` is when it was said.

``kind``: ``label`` (the state at ``at`` is ``state``), ``boundary`` (a segment starts at ``at``; with ``boundary`` false none
does), ``retract`` or ``pin`` (the prompt ``target``; ``pinned`` false takes the pin off), ``reset`` (forget all prompts of
the granularity), ``tell`` (give a row of ``alerts`` each time that a segment of ``state`` begins, but not within
``debounce_s`` of the end of the last one; ``retract`` ends it). ``at``: null: the newest sample; with ``at_end`` a range; in
its place ``at_offset_s``: seconds from the stream's first row, or below 0 before its newest one. ``aspect``: ``correct``, or
``incorrect``: it is not so. ``granularity``: null: the first one. ``context``: samples around ``at`` in the order of time,
channel by channel of each, for a prompt about what has left the history. Columns that a pipeline has no use for may be
missing."""

STATES = records.output_schema(
    "states",
    1,
    [
        pa.field("granularity", pa.int8()),
        pa.field("state", pa.int32()),
        pa.field("confidence", pa.float32()),
        pa.field("votes", pa.int16()),
        pa.field("final", pa.bool_()),
        pa.field("revision", pa.int32()),
        pa.field("caused_by", pa.list_(pa.string())),
    ],
)
"""The state of a sample. ``confidence``: mean probability over its ``votes`` windows. Not ``final``: later windows may differ.
A ``revision`` above 0 replaces an earlier final row and names the prompts that caused it. Refused samples have no state."""

SEGMENTS = records.output_schema(
    "segments",
    1,
    [
        pa.field("granularity", pa.int8()),
        pa.field("segment_id", pa.int64()),
        pa.field("end_sequence", pa.int64()),
        pa.field("end_time", records.TIME_TYPE),
        pa.field("state", pa.int32()),
        pa.field("mean_confidence", pa.float32()),
        pa.field("n_samples", pa.int64()),
        pa.field("final", pa.bool_()),
        pa.field("revision", pa.int32()),
        pa.field("supersedes", pa.int64()),
        pa.field("caused_by", pa.list_(pa.string())),
    ],
)
"""A segment: ``sequence`` and ``event_time`` are its first sample's, ``end_*`` its last one's so far. One row when it begins, a
``final`` one when it has ended; of rows of one ``segment_id`` the last one counts. ``n_samples`` 0: there is no such segment (a
revision withdrew it). ``supersedes``: the segment that had its first sample before. Final segments tile the samples."""

BANK = records.output_schema(
    "bank_events",
    1,
    [
        pa.field("granularity", pa.int8()),
        pa.field("prompt_id", pa.string()),
        pa.field("op", pa.string()),
        pa.field("slot", pa.int32()),
        pa.field("n_valid", pa.int32()),
    ],
)
"""What became of a prompt: ``write``, ``replace``, ``reencode`` (once the samples after it had come), ``evict``, ``expire``,
``retract``, ``pin``, ``reset``, ``tell``, or ``reject``; ``error`` says why. Keys are those of the control row that caused
it."""

ALERTS = records.output_schema(
    "alerts",
    1,
    [
        pa.field("granularity", pa.int8()),
        pa.field("prompt_id", pa.string()),
        pa.field("state", pa.int32()),
        pa.field("segment_id", pa.int64()),
        pa.field("mean_confidence", pa.float32()),
        pa.field("known_at", records.TIME_TYPE),
    ],
)
"""A stream has come into a state that the prompt ``tell`` of this id waits for. Keys are those of the first sample of the
segment, which is the evidence with its mean confidence so far; ``known_at``: the newest sample that it was told from."""

OUTPUTS: Mapping[str, pa.Schema] = {"states": STATES, "segments": SEGMENTS, "bank": BANK, "alerts": ALERTS}

STATUSES: Mapping[str, str] = {
    "ok": "the state of a sample, a segment, or what became of a prompt",
    "held": "a channel of the sample had no number; its last one was held",
    "no_state": "no window with this sample could be run: a channel had no number for more than max_hold samples",
    "padded": "the stream ended with less than a window, which was padded with its first sample",
    **STREAM_STATUSES,
    **RATE_STATUSES,
    "rejected_prompt": "the prompt cannot be used; `error` says why",
}
