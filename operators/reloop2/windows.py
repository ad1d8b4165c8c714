"""The operator ``ctr_windows``: predictions in, labels as control rows, one row of metrics per window of event time out.

Reads what ``reloop2`` gives; a window is judged when the labels of its last impression are due. It corrects nothing. Invariant:
the rows depend on the one order of predictions and labels, not on how they are cut into calls.
"""

# B rows of a call

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from connectors import records
from connectors.errors import RecoveryError
from models.reloop2.evaluate import evaluate
from operators.base import Context, Operator
from operators.reloop2.config import CtrWindowsOptions
from operators.reloop2.early import EarlyLabels
from operators.reloop2.ids import Bools, Ints, id_keys
from operators.reloop2.rows import event_times, row_ids
from operators.reloop2.schemas import CONTROL, status_column
from operators.reloop2.watermark import NEVER, Watermarks
from operators.reloop2.window_table import Judged, WindowTable
from operators.state import Rows, State

__all__ = ["CtrWindows"]

_METRICS = ("ctr", "logloss_base", "logloss_pred", "auc_base", "auc_pred", "gauc_base", "gauc_pred")
_COUNTS = ("timeouts", "late_predictions", "duplicates", "duplicate_labels", "dropped")
_LAST = np.iinfo(np.int64).max

WINDOW = records.output_schema(
    "ctr_window",
    1,
    [
        pa.field("window_start", records.TIME_TYPE),
        pa.field("n", pa.int64()),
        *(pa.field(name, pa.float64()) for name in _METRICS),
        *(pa.field(name, pa.int64()) for name in _COUNTS),
    ],
)
"""``event_time`` is the window's end, ``sequence`` its number. A metric that is not defined (one class only) is null.
``timeouts`` are of the window itself, the other counts of the time since the row before."""


class CtrWindows(Operator):
    """Metrics of all predictions of a shard; ``stream_id`` of its rows is the operator's name."""

    Options = CtrWindowsOptions
    input_schema = records.key_schema(
        "ctr_prediction", 1, [pa.field("y_base", pa.float32()), pa.field("y_pred", pa.float32()), pa.field("flags", pa.int32())]
    )
    control_schema = CONTROL
    output_schema = WINDOW

    def __init__(self, options: CtrWindowsOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: CtrWindowsOptions = options
        self._window_us, self._timeout_us = _us(options.window_s), _us(options.label_timeout_s)
        self._lateness_us = _us(options.allowed_lateness_s)
        self._table = WindowTable(options.capacity)
        self._early = EarlyLabels(1, options.early_capacity)
        self._times = Watermarks(1, lateness_us=self._lateness_us, idle_us=0, jump_us=_us(options.max_jump_s))
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._early_counts = {"early_refused": 0, "early_expired": 0}

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take predictions; return a row for every window that has ended by them. Rows without a prediction are passed over."""
        records.require(batch, self.input_schema, self.context.name)
        batch = batch.filter(pc.is_valid(batch.column("y_pred")))
        if not batch.num_rows:
            return []
        ids_B, no_id_B = self._ids(batch)
        before_us = int(self._times.latest_S[0])
        times_B, _ = self._times.advance(np.zeros(len(ids_B), np.int64), event_times(batch))
        latest_B = np.maximum.accumulate(np.maximum(times_B, before_us))
        windows_B = times_B // self._window_us
        due_B = self._due(windows_B)
        late_B = due_B <= np.concatenate([[before_us], latest_B[:-1]]) - self._lateness_us
        used_B = ~late_B & ~no_id_B
        groups_B = self._groups(batch)
        base_B, prediction_B = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("y_base", "y_pred"))
        outputs: list[pa.RecordBatch] = []
        start = 0
        while start < len(ids_B):
            # Up to the row that ends a window: what comes behind it is another window's.
            open_us = min(map(self._due, self._table.open), default=_LAST)
            first_due_B = np.minimum(np.minimum.accumulate(np.where(used_B, due_B, _LAST)[start:]), open_us)
            ends = np.flatnonzero(latest_B[start:] - self._lateness_us >= first_due_B)
            stop = min(start + self._table.capacity, start + int(ends[0]) + 1 if len(ends) else len(ids_B))
            self._counts["late_predictions"] += int(late_B[start:stop].sum())
            rows_B = start + np.flatnonzero(used_B[start:stop])
            self._add(ids_B[rows_B], windows_B[rows_B], groups_B[rows_B], base_B[rows_B], prediction_B[rows_B])
            outputs += self._close(int(latest_B[stop - 1]))
            start = stop
        return outputs

    def _add(self, ids_B: Ints, windows_B: Ints, groups_B: Ints, base_B: np.ndarray, prediction_B: np.ndarray) -> None:
        duplicate_B, dropped = self._table.add(ids_B, windows_B, groups_B, base_B, prediction_B)
        self._counts["duplicates"] += int(duplicate_B.sum())
        self._counts["dropped"] += dropped
        fresh_B = ids_B[~duplicate_B]
        early_B, label_B = self._early.take(fresh_B)
        self._table.label(fresh_B[early_B], label_B)

    def _close(self, latest_us: int) -> list[pa.RecordBatch]:
        """Judge the windows whose labels are all due."""
        mark_us = latest_us - self._lateness_us
        over = sorted(window for window in self._table.open if self._due(window) <= mark_us)
        if over:
            expired_us = np.array([mark_us - _us(self.options.early_label_s)])
            self._early_counts["early_expired"] += self._early.expire(np.zeros(1, np.int64), expired_us)
        return [self._row(window, self._table.close(window)) for window in over]

    def _row(self, window: int, judged: Judged) -> pa.RecordBatch:
        unlabelled_B = np.isnan(judged.label_B)
        self._counts["timeouts"] = int(unlabelled_B.sum())
        used_B: Bools = np.ones_like(unlabelled_B) if self.options.on_timeout == "negative" else ~unlabelled_B
        label_B, group_B = np.nan_to_num(judged.label_B)[used_B], judged.group_B[used_B]
        base, pred = (
            evaluate(label_B, column[used_B], group_B if self.options.group != "none" else None)
            for column in (judged.base_B, judged.prediction_B)
        )
        start_us = window * self._window_us
        values = {
            "stream_id": self.context.name,
            "sequence": window,
            "event_time": start_us + self._window_us,
            "window_start": start_us,
            "n": base.rows,
            "ctr": float(label_B.mean()) if len(label_B) else None,
            **{f"{metric}_base": getattr(base, metric) for metric in ("logloss", "auc", "gauc")},
            **{f"{metric}_pred": getattr(pred, metric) for metric in ("logloss", "auc", "gauc")},
            **self._counts,
        }
        self._counts = dict.fromkeys(_COUNTS, 0)
        columns = [pa.array([values[field.name]], field.type) for field in WINDOW if field.name in values]
        return pa.RecordBatch.from_arrays(
            [*columns, status_column(np.zeros(1, np.int8)), pa.nulls(1, pa.string())], schema=WINDOW
        )

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take labels. Rows that are none are passed over: ``reloop2``, which reads the same rows, answers them."""
        records.require(batch, CONTROL, self.context.name)
        label = batch.column("label")
        fine = pc.fill_null(pc.and_(pc.greater_equal(label, 0.0), pc.less_equal(label, 1.0)), False)
        batch = batch.filter(fine)
        if not batch.num_rows:
            return []
        ids_B, no_id_B = self._ids(batch)
        ids_B, label_B = ids_B[~no_id_B], batch.column("label").to_numpy(zero_copy_only=False)[~no_id_B]
        found_B, known = self._table.label(ids_B, label_B)
        self._counts["duplicate_labels"] += known
        early_B = np.flatnonzero(~found_B)
        latest_us = int(self._times.latest_S[0])
        since_B = event_times(batch)[~no_id_B][early_B] if latest_us == NEVER else np.full(len(early_B), latest_us)
        known, refused = self._early.add(np.zeros(len(early_B), np.int64), ids_B[early_B], label_B[early_B], since_B)
        self._counts["duplicate_labels"] += known
        self._early_counts["early_refused"] += refused
        return []

    def _ids(self, batch: pa.RecordBatch) -> tuple[Ints, Bools]:
        return row_ids(batch, self.options.id_type, None, self.context.name)

    def _groups(self, batch: pa.RecordBatch) -> Ints:
        """Return a number per row that tells streams apart."""
        if self.options.group == "none":
            return np.zeros(batch.num_rows, np.int64)
        return id_keys(batch.column("stream_id"))[0]

    def _due(self, window: Ints | int) -> Ints | int:
        """Return the event time at which the labels of a window are due."""
        return (window + 1) * self._window_us + self._timeout_us

    def close_stream(self, stream_id: str) -> None:
        """Do nothing: windows are of all streams."""

    def metrics(self) -> dict[str, float]:
        """Return bytes, and what waits."""
        return {
            "bank_bytes": float(self._table.bytes()),
            "waiting": float(sum(self._table.open.values())),
            "early": float(len(self._early)),
            **{name: float(count) for name, count in self._early_counts.items()},
        }

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of everything, or of what changed since the last call."""
        state = State(incremental=incremental)
        self._early.export(np.zeros(1, np.int64), state)
        state.shared = {"early": state.rows.pop("early").values_R}
        self._table.export(state, incremental=incremental)
        state.shared["latest"] = torch.from_numpy(self._times.latest_S.copy())
        state.shared["counts"] = torch.tensor([*self._counts.values(), *self._early_counts.values()])
        state.additive["shards"] = torch.ones(1, dtype=torch.int64)
        state.meta = self._sizes()
        return state

    def restore(self, state: State) -> None:
        """Replace everything by a full ``state``. Raise ``RecoveryError`` where it is of tables of another size."""
        name = self.context.name
        if state.incremental:
            raise RecoveryError(f"{name}: an incremental snapshot cannot be restored; apply it to a full one first")
        wanted = self._sizes()
        if state.meta != wanted:
            raise RecoveryError(f"{name}: the snapshot is of {state.meta}, this is {wanted}; use the options of the first run")
        if int(state.additive["shards"][0]) != 1:
            raise RecoveryError(
                f"{name}: windows are of all streams of a shard and cannot be cut or joined; resume with the number of shards "
                "of the first run"
            )
        self._early.clear(0)
        labels = state.shared["early"]
        self._early.load(np.zeros(1, np.int64), State(rows={"early": Rows.full(torch.tensor([len(labels)]), labels)}))
        self._table.load(state)
        self._times.latest_S[:] = state.shared["latest"].numpy()
        counts = state.shared["counts"].tolist()
        self._counts = dict(zip(_COUNTS, counts, strict=False))
        self._early_counts = dict(zip(self._early_counts, counts[len(_COUNTS) :], strict=True))

    def _sizes(self) -> dict[str, int]:
        return {"capacity": self.options.capacity, "early_capacity": self.options.early_capacity}


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
