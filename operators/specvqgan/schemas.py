"""Records of ``specvqgan``: frames, or features of frames, in; sound and its tokens out; statuses."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from connectors import records
from operators.specvqgan_codec.schemas import SOUND as PLAIN_SOUND
from operators.specvqgan_codec.schemas import TOKENS
from operators.streams import STREAM_STATUSES

__all__ = ["FEATURE", "OUTPUTS", "SOUND", "STATUSES", "TOKENS"]

FEATURE = records.key_schema("feature", 1, [pa.field("feature", pa.list_(pa.float32())), pa.field("error", pa.string())])
"""A frame whose feature somebody else has made."""

SOUND = records.output_schema(
    "pcm",
    1,
    [
        *(f for f in PLAIN_SOUND if f not in records.KEY_FIELDS and f not in records.STATUS_FIELDS),
        records.field("lookahead_cols", pa.int16(), unit="columns"),
    ],
)
"""Sound for the frames, 22,050 Hz mono. ``sequence``: the number of its first sample; ``event_time``: when it is heard, by the
clock of the frames. ``lookahead_cols``: columns of video behind the first new one that its window has seen."""

OUTPUTS: Mapping[str, pa.Schema] = {"sound": SOUND, "tokens": TOKENS}

STATUSES: Mapping[str, str] = {
    "ok": "a piece of sound, or its tokens",
    "gap": "as ok, and the first after a pause of more than `max_gap_s`, or after sound was left out",
    "repaired": "as ok, but a feature that it was made from held NaN, infinity or more than a million, which were replaced",
    **STREAM_STATUSES,
    "too_long": "with `exact`: the frame comes later than `exact_max_s`; the sound ends before it",
    "behind": "with `on_behind` drop: sound up to here was left out, because the clock was too far ahead",
    "model_failed": "the transformer gave no number for this stream, whose sound begins anew; check the checkpoint",
}
