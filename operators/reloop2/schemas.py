"""ReLoop2's rows: impressions in, labels and model swaps in (control), predictions out. Knows no memory, decides nothing."""

# B rows of a batch

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from connectors import records
from operators.output import NOT_FINITE_STATUS
from operators.reloop2.ids import ID_TYPES
from operators.streams import STREAM_LOSSES, STREAM_STATUSES

__all__ = [
    "CONTROL",
    "COUNTS",
    "DUPLICATE",
    "IMPRESSION",
    "LOSSES",
    "METRICS",
    "PREDICTION_FIELDS",
    "STATUSES",
    "WINDOW",
    "WINDOW_STATUSES",
    "Flag",
    "Predictions",
    "bad_label",
    "model_paths",
    "prediction_schema",
]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

IMPRESSION = records.key_schema("impression", 1)
"""Besides the keys: ``impression_id`` (of the option ``id_type``) and the feature columns of the model."""

CONTROL = records.key_schema("ctr_label", 1, [pa.field("label", pa.float32())])
"""Besides these: ``impression_id``, and where models are swapped ``checkpoint`` (string, null in rows that are labels)."""

STATUSES: Mapping[str, str] = {
    "ok": "a prediction",
    "duplicate": "the impression's id is known: predicted, but the first one waits for the label",
    "rejected_corrupt": "a feature is null or not finite, or the source could not read the row: no prediction",
    "rejected_full": STREAM_STATUSES["rejected_full"] + ": `y_pred` is `y_base`, and the impression is not remembered",
    "reset": "the first impression after the stream's memory was evicted, predicted with an empty one",
    "base_only": "no usable id, or a hidden vector that is not finite: `y_pred` is `y_base`, the impression is not remembered",
    **NOT_FINITE_STATUS,
    "invalid_label": "answers a label that is null, out of range or without id; the impression goes on waiting",
    "model_swapped": "answers a control row with a `checkpoint`: the operator goes on with that model",
    "swap_failed": "answers a control row with a `checkpoint` that cannot be used; the model stays",
}

LOSSES: Mapping[str, str] = {
    **STREAM_LOSSES,
    "late": "labels came after label_timeout_s or a window's end and were not used",
    "early_refused": "labels that came before what they belong to, or belong to nothing, had no room to wait",
    "early_expired": "labels whose impression did not come within early_label_s",
    "waiting_dropped": "impressions waited for their label when room for others was needed; raise pending_capacity",
    "clock_jumps": "event times were further ahead than max_jump_s and counted as cut short",
}
"""What is lost without a row that says so, as counted by ``metrics``."""

DUPLICATE = "an impression with this id has come before; that one waits for the label"


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


WINDOW_STATUSES: Mapping[str, str] = {"ok": "the metrics of one window"}

METRICS = ("ctr", "logloss_base", "logloss_pred", "auc_base", "auc_pred", "gauc_base", "gauc_pred")
COUNTS = ("timeouts", "late_predictions", "duplicates", "duplicate_labels", "dropped")

WINDOW = records.output_schema(
    "ctr_window",
    1,
    [
        pa.field("window_start", records.TIME_TYPE),
        pa.field("n", pa.int64()),
        *(pa.field(name, pa.float64()) for name in METRICS),
        *(pa.field(name, pa.int64()) for name in COUNTS),
    ],
)
"""``event_time`` is the window's end, ``sequence`` its number. A metric that is not defined (one class only) is null.
``timeouts`` are of the window itself, the other counts of the time since the row before."""


class Predictions:
    """The columns of predictions for a batch of ``rows`` impressions, filled in any order; null where no prediction is set."""

    def __init__(self, rows: int) -> None:
        self._known_B = np.zeros(rows, np.bool_)
        self._flags = np.zeros(rows, np.int32)
        self._base, self._prediction, self._error, self._label_mean, self._base_mean = (
            np.full(rows, np.nan, np.float32) for _ in range(5)
        )
        self._hits = np.zeros(rows, np.int16)
        self._written, self._bank_version = (np.zeros(rows, np.int64) for _ in range(2))

    def base(self, rows_B: Ints, base_B: npt.NDArray[np.float32]) -> None:
        """Set the base prediction of rows as their prediction."""
        self._known_B[rows_B] = True
        self._base[rows_B] = self._prediction[rows_B] = base_B
        self._error[rows_B] = 0.0

    def corrected(self, rows_B: Ints, made_B5: npt.NDArray[np.float64]) -> None:
        """Set what the memory made of rows that have a base prediction: a row each of the numbers of ``Compensated``."""
        label_mean_B, base_mean_B, error_B, prediction_B, hits_B = made_B5.T
        read_B = hits_B > 0
        # Where nothing was read the base prediction stays, to the bit.
        self._prediction[rows_B[read_B]] = prediction_B[read_B]
        self._error[rows_B] = error_B
        self._label_mean[rows_B] = label_mean_B
        self._base_mean[rows_B] = base_mean_B
        self._hits[rows_B] = hits_B
        self.flag(rows_B[~read_B], Flag.NO_MEMORY)

    def memory(self, rows_B: Ints, written_B: npt.NDArray[np.float64], bank_version_B: Ints) -> None:
        """Set how much the memory held and how often it had changed when rows were predicted."""
        self._written[rows_B] = np.rint(written_B)
        self._bank_version[rows_B] = bank_version_B

    def flag(self, rows_B: Ints, flag: Flag) -> None:
        """Set a flag of rows."""
        self._flags[rows_B] |= int(flag)

    def columns(self) -> dict[str, pa.Array]:
        """Return the columns by name."""
        known_B, read_B = self._known_B, self._hits > 0
        return {
            "y_base": pa.array(self._base, mask=~known_B),
            "y_pred": pa.array(self._prediction, mask=~known_B),
            "y_err": pa.array(self._error, mask=~known_B),
            "ybar": pa.array(self._label_mean, mask=~read_B),
            "ybar_base": pa.array(self._base_mean, mask=~read_B),
            "n_hit": pa.array(self._hits, mask=~known_B),
            "n_mem": pa.array(self._written, mask=~known_B),
            "bank_version": pa.array(self._bank_version, mask=~known_B),
            "flags": pa.array(self._flags),
        }


def model_paths(batch: pa.RecordBatch, usable_B: Bools) -> dict[int, str]:
    """Return the usable control rows that bring a model, in order, and its path."""
    index = batch.schema.get_field_index("checkpoint")
    if index < 0:
        return {}
    column = batch.column(index)
    brings_B = column.is_valid().to_numpy(zero_copy_only=False) & usable_B
    return {row: column[row].as_py() for row in np.flatnonzero(brings_B).tolist()}


def bad_label(value: float | None, *, soft: bool) -> str:
    """Say what is wrong with a label."""
    if value is None:
        return "label is null"
    if soft:
        return f"label is {value:g}; allowed are numbers from 0 to 1"
    hint = "; for fractions set soft_labels" if 0 < value < 1 else ""
    return f"label is {value:g}; allowed are 0 and 1{hint}"
