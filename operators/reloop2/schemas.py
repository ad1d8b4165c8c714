"""Schemas of ReLoop2's rows: impressions in, labels and model swaps in (control), predictions out. Knows no memory."""

from __future__ import annotations

from enum import IntFlag

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors import records

__all__ = ["CONTROL", "ID_TYPES", "IMPRESSION", "PREDICTION_FIELDS", "STATUSES", "Flag", "prediction_schema", "status_column"]

ID_TYPES = {"int64": pa.int64(), "string": pa.string()}

IMPRESSION = records.key_schema("impression", 1)
"""Besides the keys: ``impression_id`` (of the option ``id_type``) and the feature columns of the model."""

CONTROL = records.key_schema("ctr_label", 1, [pa.field("label", pa.float32())])
"""Besides these: ``impression_id``, and where models are swapped ``checkpoint`` (string, null in rows that are labels)."""

STATUSES = ("ok", "base_only", "rejected", "invalid_label", "model_swapped", "swap_failed")
"""``base_only``: ``y_pred`` is ``y_base`` and the impression is not remembered, ``error`` says why. ``rejected``: no
prediction. The last three answer control rows."""


class Flag(IntFlag):
    """Bits of the column ``flags``."""

    NO_MEMORY = 1
    """Nothing was readable; ``y_pred`` is ``y_base``."""
    DUPLICATE = 2
    """The impression's id is known; the first one waits for the label."""
    EARLY_LABEL = 4
    """The label was there before the impression."""
    CLOCK_JUMP = 8
    """``event_time`` ran ahead by more than ``max_jump_s``; for timeouts it counts as cut short."""
    TABLE_FOLDED = 16
    """The sketch has been halved, since its counters had come near their limit."""


PREDICTION_FIELDS = (
    pa.field("y_base", pa.float32()),
    pa.field("y_pred", pa.float32()),
    pa.field("y_err", pa.float32()),
    pa.field("ybar", pa.float32()),
    pa.field("ybar_base", pa.float32()),
    pa.field("n_hit", pa.int16()),
    pa.field("n_mem", pa.int64()),
    pa.field("model_version", pa.string()),
    pa.field("bank_version", pa.int64()),
    pa.field("flags", pa.int32()),
)


def prediction_schema(id_type: str, fingerprint: str) -> pa.Schema:
    """Return the output schema ``ctr_prediction.v1``."""
    fields = [pa.field("impression_id", ID_TYPES[id_type]), *PREDICTION_FIELDS]
    return records.output_schema("ctr_prediction", 1, fields, {"streambank.config": fingerprint})


def status_column(codes_B: npt.NDArray[np.int8]) -> pa.DictionaryArray:
    """Return the status column of indices into :data:`STATUSES`."""
    return pa.DictionaryArray.from_arrays(pa.array(codes_B, pa.int8()), _STATUSES)


_STATUSES = pa.array(STATUSES)
