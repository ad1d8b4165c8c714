"""Records of ``specvqgan_codec``: blocks of tokens, and sound; its statuses."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from connectors import records
from operators.streams import STREAM_STATUSES

__all__ = ["BLOCK", "SOUND", "STATUSES", "TOKENS"]

_FIELDS = (
    pa.field("codebook", pa.string()),
    records.field("n_samples", pa.int32(), unit="samples at 22050 Hz"),
    records.field("n_cols", pa.int16(), unit="columns"),
    pa.field("bits", pa.int8()),
    pa.field("payload", pa.binary()),
)

TOKENS = records.output_schema("sound_tokens", 1, _FIELDS)
"""A block of sound as tokens. ``sequence``: the number of its first sample at 22,050 Hz in the stream; ``event_time``: when it
is heard. ``payload``: 5 tokens per column, column by column, from low to high frequencies, ``bits`` bits each, the first in the
highest bits. ``codebook`` names the codebook that they are of. ``n_samples``: how many it stands for: 4096 per column, but for
the last block of a piece."""

BLOCK = records.key_schema("sound_tokens", 1, [*_FIELDS, pa.field("error", pa.string())])
"""What a row must have to be decoded."""

SOUND = records.output_schema("pcm", 1, [f for f in records.PCM if f not in records.KEY_FIELDS and f.name != "error"])
"""Sound at 22,050 Hz, mono. ``sequence``: the number of its first sample."""

STATUSES: Mapping[str, str] = {
    "ok": "a block of tokens, or a piece of sound",
    "gap": "as ok, and the first after a pause of more than `max_gap_s` or a change of the sample rate: a piece of its own",
    "repaired": "as ok, but samples that were NaN or infinite were replaced by 0",
    **STREAM_STATUSES,
}
