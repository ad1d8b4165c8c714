"""The output rows of one batch: numpy columns filled in any order, made into a record batch at the end. Decides nothing."""

# B rows of the batch

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from operators.reloop2.compensation import Compensated
from operators.reloop2.ids import Bools, Ints
from operators.reloop2.schemas import STATUSES, Flag, status_column

__all__ = ["Predictions", "answers"]

_CODES = {name: np.int8(code) for code, name in enumerate(STATUSES)}


class Predictions:
    """Predictions for the impressions of ``batch``; until told otherwise each is ``rejected``."""

    def __init__(self, batch: pa.RecordBatch, model_version: str) -> None:
        rows = batch.num_rows
        self._batch = batch
        self._model_version = model_version
        self._status = np.full(rows, _CODES["rejected"])
        self._flags = np.zeros(rows, np.int32)
        self._base = np.full(rows, np.nan, np.float32)
        self._prediction = np.full(rows, np.nan, np.float32)
        self._error = np.full(rows, np.nan, np.float32)
        self._label_mean = np.full(rows, np.nan, np.float32)
        self._base_mean = np.full(rows, np.nan, np.float32)
        self._hits = np.zeros(rows, np.int16)
        self._written = np.zeros(rows, np.int64)
        self._bank_version = np.zeros(rows, np.int64)

    def base(self, rows_B: Ints, base_B: np.ndarray, status: str) -> None:
        """Set the base prediction of rows as their prediction."""
        self._status[rows_B] = _CODES[status]
        self._base[rows_B] = self._prediction[rows_B] = base_B
        self._error[rows_B] = 0.0

    def corrected(self, rows_B: Ints, found: Compensated, written_B: npt.NDArray[np.float64], bank_version_B: Ints) -> None:
        """Set what the memory made of rows that have a base prediction."""
        read_B = (found.hits_B > 0).cpu().numpy()
        # Where nothing was read the base prediction stays, to the bit.
        self._prediction[rows_B[read_B]] = found.prediction_B.cpu().numpy()[read_B]
        self._error[rows_B] = found.error_B.cpu().numpy()
        self._label_mean[rows_B] = found.label_mean_B.cpu().numpy()
        self._base_mean[rows_B] = found.base_mean_B.cpu().numpy()
        self._hits[rows_B] = found.hits_B.cpu().numpy()
        self._written[rows_B] = np.rint(written_B)
        self._bank_version[rows_B] = bank_version_B
        self.flag(rows_B[~read_B], Flag.NO_MEMORY)

    def flag(self, rows_B: Ints, flag: Flag) -> None:
        """Set a flag of rows."""
        self._flags[rows_B] |= int(flag)

    def batch(self, schema: pa.Schema, errors: Sequence[str | None] | None) -> pa.RecordBatch:
        """Return the output rows. ``errors``: what was wrong with each row, None if nothing was with any."""
        rows = self._batch.num_rows
        read_B = self._hits > 0
        known_B = self._status != _CODES["rejected"]
        columns = [
            *(self._batch.column(name) for name in ("stream_id", "sequence", "event_time")),
            self._batch.column("impression_id").cast(schema.field("impression_id").type),
            _floats(self._base, known_B),
            _floats(self._prediction, known_B),
            _floats(self._error, known_B),
            _floats(self._label_mean, read_B),
            _floats(self._base_mean, read_B),
            pa.array(self._hits, mask=~known_B),
            pa.array(self._written, mask=~known_B),
            pa.array([self._model_version], pa.string()).take(pa.array(np.zeros(rows, np.int32))),
            pa.array(self._bank_version, mask=~known_B),
            pa.array(self._flags),
            status_column(self._status),
            pa.nulls(rows, pa.string()) if errors is None else pa.array(errors, pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)


def answers(
    batch: pa.RecordBatch,
    rows: Sequence[int],
    statuses: Sequence[str],
    errors: Sequence[str | None],
    schema: pa.Schema,
    model: str,
) -> pa.RecordBatch:
    """Return answers to the control rows ``rows`` of ``batch``: keys, id, model, status and error; the rest is null."""
    taken = batch.take(pa.array(rows, pa.int64()))
    given = {name: taken.column(name) for name in ("stream_id", "sequence", "event_time")}
    given["impression_id"] = taken.column("impression_id").cast(schema.field("impression_id").type)
    given["model_version"] = pa.array([model] * len(rows), pa.string())
    given["status"] = status_column(np.array([_CODES[status] for status in statuses], np.int8))
    given["error"] = pa.array(errors, pa.string())
    columns = [given[field.name] if field.name in given else pa.nulls(len(rows), field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _floats(values: np.ndarray, known_B: Bools) -> pa.Array:
    return pa.array(values, pa.float32(), mask=~known_B)
