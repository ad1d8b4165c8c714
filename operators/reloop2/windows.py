"""The operator ``ctr_windows``: predictions in, labels as control rows, one row of metrics per window of event time out.

Reads what ``reloop2`` gives; a prediction belongs to the window of its own event time, and a window is judged when the labels
of its last impression are due. It corrects nothing. Invariant: the rows depend on the one order of predictions and labels, not
on how they are cut into calls, nor on the steps in which ``advance`` comes.
"""

# B rows of a call, C rows of the table

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from connectors import records
from connectors.errors import RecoveryError
from connectors.records import NEVER_US
from models.reloop2.evaluate import evaluate
from operators.base import Context
from operators.counters import Counters
from operators.event_time import EventTime, earlier, event_times, microseconds
from operators.output import status_column
from operators.reloop2.config import CtrWindowsOptions
from operators.reloop2.declaration import CtrWindowsDeclaration
from operators.reloop2.ids import Bools, IdIndex, Ints, first_of_each, id_keys, row_ids
from operators.reloop2.join import EarlyLabels
from operators.reloop2.schemas import CONTROL, COUNTS, WINDOW, WINDOW_STATUSES
from operators.state import Patch, State, from_shared, to_shared
from operators.streams import require_full

__all__ = ["CtrWindows", "Judged", "WindowTable"]

Floats = npt.NDArray[np.float32]

_VERSION = 2
"""Of snapshots."""

_ALL = np.zeros(1, np.int64)  # the one slot of a memory that belongs to no stream

_LATER = np.iinfo(np.int64).max


class CtrWindows(CtrWindowsDeclaration):
    """The operator at work; what can be known of it before stands in its declaration."""

    def __init__(self, options: CtrWindowsOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: CtrWindowsOptions = options
        self._window_us, self._timeout_us = microseconds(options.window_s), microseconds(options.label_timeout_s)
        self._table = WindowTable(options.capacity)
        self._early = EarlyLabels(1, options.early_capacity)
        self._times = EventTime(
            context.name, 1, aligned=context.aligned, lateness_s=options.allowed_lateness_s, max_jump_s=options.max_jump_s
        )
        self._since = dict.fromkeys(COUNTS, 0)  # the last row
        self._counters = Counters("windows", "late", "early_refused", "early_expired")

    # Predictions

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take predictions; return a row for every window that has ended by them. Rows without a prediction are passed over."""
        records.require(batch, self.input_schema, self.context.name)
        batch = batch.filter(pc.is_valid(batch.column("y_pred")))
        if not batch.num_rows:
            return []
        ids_B, no_id_B = self._ids(batch)
        own_us_B = event_times(batch)
        before_us = self._times.latest_S[:1].copy()
        times_B, _ = self._times.note(np.zeros(len(ids_B), np.int64), own_us_B)
        latest_B = np.maximum.accumulate(np.maximum(times_B, before_us[0]))
        windows_B = own_us_B // self._window_us
        due_B = self._due(windows_B)
        late_B = due_B <= self._times.due(np.concatenate([before_us, latest_B[:-1]]))
        used_B = ~late_B & ~no_id_B
        groups_B = self._groups(batch)
        base_B, prediction_B = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("y_base", "y_pred"))
        mark_B = self._times.due(latest_B)
        outputs: list[pa.RecordBatch] = []
        start = 0
        while start < len(ids_B):
            # Up to the row that ends a window, which in an aligned run ends it before it is taken itself.
            open_us = min(map(self._due, self._table.open), default=_LATER)
            first_due_B = np.minimum(np.minimum.accumulate(np.where(used_B, due_B, _LATER)[start:]), open_us)
            ends = np.flatnonzero(mark_B[start:] >= first_due_B)
            stop = start + int(ends[0]) + (0 if self._times.aligned else 1) if len(ends) else len(ids_B)
            stop = min(start + self._table.capacity, stop)
            closing = stop if self._times.aligned else stop - 1
            rows_B = start + np.flatnonzero(used_B[start:stop])
            self._count_late(int(late_B[start:stop].sum()))
            self._add(ids_B[rows_B], windows_B[rows_B], groups_B[rows_B], base_B[rows_B], prediction_B[rows_B])
            if closing < len(ids_B):
                outputs += self._close(int(mark_B[closing]))
            start = stop
        return outputs

    def _add(self, ids_B: Ints, windows_B: Ints, groups_B: Ints, base_B: Floats, prediction_B: Floats) -> None:
        duplicate_B, dropped = self._table.add(ids_B, windows_B, groups_B, base_B, prediction_B)
        self._since["duplicates"] += int(duplicate_B.sum())
        self._since["dropped"] += dropped
        fresh_B = ids_B[~duplicate_B]
        early_B, label_B = self._early.take(fresh_B)
        self._table.label(fresh_B[early_B], label_B)

    def _count_late(self, rows: int) -> None:
        self._since["late_predictions"] += rows
        self._counters.add("late", rows)

    # Windows

    def advance(self, watermark_us: int) -> list[pa.RecordBatch]:
        """Return a row for every window that has ended by this event time."""
        self._times.advance(watermark_us)
        return self._close(int(self._times.due(self._times.latest_S)[0]))

    def _close(self, mark_us: int) -> list[pa.RecordBatch]:
        """Judge the windows whose labels are all due, in order."""
        rows = []
        for window in sorted(window for window in self._table.open if self._due(window) <= mark_us):
            # What comes between a window's end and the call that finds it must not matter where calls come in any steps.
            ended_us = self._due(window) if self._times.aligned else mark_us
            expired_us = earlier(np.array([ended_us]), microseconds(self.options.early_label_s))
            self._counters.add("early_expired", self._early.expire(_ALL, expired_us))
            rows.append(self._row(window, self._table.close(window)))
        return rows

    def _row(self, window: int, judged: Judged) -> pa.RecordBatch:
        unlabeled_B = np.isnan(judged.label_B)
        self._since["timeouts"] = int(unlabeled_B.sum())
        used_B: Bools = np.ones_like(unlabeled_B) if self.options.on_timeout == "negative" else ~unlabeled_B
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
            **self._since,
        }
        self._since = dict.fromkeys(COUNTS, 0)
        self._counters.add("windows")
        columns = [pa.array([values[field.name]], field.type) for field in WINDOW if field.name in values]
        status = status_column(np.zeros(1, np.int8), list(WINDOW_STATUSES))
        return pa.RecordBatch.from_arrays([*columns, status, pa.nulls(1, pa.string())], schema=WINDOW)

    # Labels

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take labels; in an aligned run return a row for every window that has ended by their event times.

        Rows that are no labels are passed over: ``reloop2``, which reads the same rows, answers them.
        """
        records.require(batch, CONTROL, self.context.name)
        label = batch.column("label")
        fine = pc.fill_null(pc.and_(pc.greater_equal(label, 0.0), pc.less_equal(label, 1.0)), False)
        batch = batch.filter(fine)
        if not batch.num_rows:
            return []
        ids_B, no_id_B = self._ids(batch)
        label_B, times_B = batch.column("label").to_numpy(zero_copy_only=False)[~no_id_B], event_times(batch)[~no_id_B]
        ids_B = ids_B[~no_id_B]
        if not self._times.aligned:
            self._label(ids_B, label_B, times_B)
            return []
        outputs: list[pa.RecordBatch] = []
        before_us = int(self._times.latest_S[0])
        mark_B = self._times.due(np.maximum.accumulate(np.maximum(times_B, before_us)))
        self._times.note(np.zeros(len(ids_B), np.int64), times_B)
        start = 0
        while start < len(ids_B):
            ends = np.flatnonzero(mark_B[start:] >= min(map(self._due, self._table.open), default=_LATER))
            stop = start + int(ends[0]) if len(ends) else len(ids_B)
            self._label(ids_B[start:stop], label_B[start:stop], times_B[start:stop])
            if len(ends):
                outputs += self._close(int(mark_B[stop]))
            start = stop
        return outputs

    def _label(self, ids_B: Ints, label_B: Floats, times_B: Ints) -> None:
        found_B, known = self._table.label(ids_B, label_B)
        self._since["duplicate_labels"] += known
        early_B = np.flatnonzero(~found_B)
        since_B = times_B[early_B]
        latest_us = int(self._times.latest_S[0])
        if not self._times.aligned and latest_us != NEVER_US:
            since_B = np.full(len(early_B), latest_us)  # its own clock does not matter
        known, refused = self._early.add(np.zeros(len(early_B), np.int64), ids_B[early_B], label_B[early_B], since_B)
        self._since["duplicate_labels"] += known
        self._counters.add("early_refused", refused)

    def _ids(self, batch: pa.RecordBatch) -> tuple[Ints, Bools]:
        return row_ids(batch, self.options.id_type, None, self.context.name)

    def _groups(self, batch: pa.RecordBatch) -> Ints:
        """Return a number per row that tells streams apart."""
        if self.options.group == "none":
            return np.zeros(batch.num_rows, np.int64)
        return id_keys(batch.column("stream_id"))[0]

    def _due(self, window: Any) -> Any:
        """Return the event time at which the labels of a window, or of an array of windows, are due."""
        return (window + 1) * self._window_us + self._timeout_us

    def close_stream(self, stream_id: str) -> None:
        """Do nothing: windows are of all streams."""

    def metrics(self) -> dict[str, float]:
        """Return bytes, what waits, and counts of the whole run."""
        return {
            "bank_bytes": float(self._table.bytes()),
            "waiting": float(sum(self._table.open.values())),
            "in_progress": float(len(self._table.open)),
            "early": float(len(self._early)),
            **self._counters.gauges(),
        }

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of everything, or of what changed since the last call."""
        state = State(incremental=incremental)
        self._early.export(_ALL, state)
        to_shared(state)
        self._table.export(state, incremental=incremental)
        self._table.mark_clean()
        state.shared["latest_us"] = torch.from_numpy(self._times.latest_S.copy())
        state.shared["since"] = torch.tensor([*self._since.values()])
        self._counters.export(state)
        state.meta |= self._sizes()
        return state

    def restore(self, state: State) -> None:
        """Replace everything by a full ``state``. Raise ``RecoveryError`` where it is of tables of another size."""
        name = self.context.name
        require_full(state, name)
        wanted = self._sizes()
        found = {key: state.meta.get(key) for key in wanted}
        if found["version"] != _VERSION:
            raise RecoveryError(
                f"{name}: the snapshot was written by an earlier version of this operator, which counted other things; finish "
                "the run with that version, or start in a new state folder"
            )
        if found != wanted:
            raise RecoveryError(f"{name}: the snapshot is of {found}, this is {wanted}; use the options of the first run")
        self._counters.load(state, name)
        self._early.clear(0)
        self._early.load(_ALL, from_shared(state))
        self._table.load(state)
        self._times.latest_S[:] = state.shared["latest_us"].numpy()
        self._since = dict(zip(COUNTS, state.shared["since"].tolist(), strict=True))

    def _sizes(self) -> dict[str, int]:
        return {"version": _VERSION, "capacity": self.options.capacity, "early_capacity": self.options.early_capacity}


class Judged(NamedTuple):
    """Predictions of one window, in order of arrival."""

    base_B: Floats
    prediction_B: Floats
    group_B: Ints
    label_B: Floats
    """NaN where no label has come."""


class WindowTable:
    """The latest ``capacity`` predictions of open windows; of more the oldest is dropped, wherever its window stands."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: dict[str, npt.NDArray[Any]] = {
            "id": np.zeros(capacity, np.int64),
            "window": np.zeros(capacity, np.int64),
            "group": np.zeros(capacity, np.int64),
            "base": np.zeros(capacity, np.float32),
            "prediction": np.zeros(capacity, np.float32),
            "label": np.zeros(capacity, np.float32),
            "held": np.zeros(capacity, np.bool_),
        }
        self._dirty = np.zeros(capacity, np.bool_)
        self._head = 0
        self.open: dict[int, int] = {}
        """Window that is not closed → its predictions that are still here."""
        self._index = IdIndex(lambda ids, rows: self._rows["held"][rows] & (self._rows["id"][rows] == ids))

    def bytes(self) -> int:
        """Return the bytes of all columns."""
        return sum(column.nbytes for column in self._rows.values()) + self._dirty.nbytes

    def add(self, ids_B: Ints, windows_B: Ints, groups_B: Ints, base_B: Floats, prediction_B: Floats) -> tuple[Bools, int]:
        """Append at most ``capacity`` predictions; return which were not since their id is there, and how many gave way."""
        duplicate_B = ~first_of_each(ids_B) | (self._index.find(ids_B) >= 0)
        fresh_B = np.flatnonzero(~duplicate_B)
        row_B = (self._head + np.arange(len(fresh_B))) % self.capacity
        self._head = (self._head + len(fresh_B)) % self.capacity
        gone_B = row_B[self._rows["held"][row_B]]
        self._count(self._rows["window"][gone_B], -1)
        values: dict[str, npt.NDArray[Any]] = {
            "id": ids_B,
            "window": windows_B,
            "group": groups_B,
            "base": base_B,
            "prediction": prediction_B,
        }
        for name, column in values.items():
            self._rows[name][row_B] = column[fresh_B]
        self._rows["label"][row_B] = np.nan
        self._rows["held"][row_B] = self._dirty[row_B] = True
        self._count(windows_B[fresh_B], 1)
        self._index.put(ids_B[fresh_B], row_B)
        return duplicate_B, len(gone_B)

    def label(self, ids_B: Ints, label_B: Floats) -> tuple[Bools, int]:
        """Set the labels of predictions; return which ids are here, and how many of them had a label already."""
        row_B = self._index.find(ids_B)
        found_B = row_B >= 0
        new_B = found_B & first_of_each(ids_B)
        new_B[new_B] = np.isnan(self._rows["label"][row_B[new_B]])
        self._rows["label"][row_B[new_B]] = label_B[new_B]
        self._dirty[row_B[new_B]] = True
        return found_B, int((found_B & ~new_B).sum())

    def close(self, window: int) -> Judged:
        """Take the predictions of a window out of the table."""
        row_B = np.flatnonzero(self._rows["held"] & (self._rows["window"] == window))
        row_B = row_B[np.argsort((row_B - self._head) % self.capacity)]  # the oldest stands at the head
        self._rows["held"][row_B] = False
        self._dirty[row_B] = True
        self.open.pop(window, None)
        return Judged(*(self._rows[name][row_B] for name in ("base", "prediction", "group", "label")))

    def _count(self, windows_B: Ints, step: int) -> None:
        for window, number in zip(*(part.tolist() for part in np.unique(windows_B, return_counts=True)), strict=True):
            self.open[window] = self.open.get(window, 0) + step * number

    # Snapshots

    def export(self, state: State, *, incremental: bool) -> None:
        """Add a copy to ``state``, or the rows that changed since ``mark_clean``."""
        changed = torch.from_numpy(np.flatnonzero(self._dirty))
        for name, column in self._rows.items():
            if incremental:
                state.patches["windows." + name] = Patch(changed, torch.from_numpy(column[changed.numpy()]))
            else:
                state.shared["windows." + name] = torch.from_numpy(column.copy())
        state.shared["windows.head"] = torch.tensor([self._head])
        state.shared["windows.open"] = torch.tensor(sorted(self.open.items()), dtype=torch.int64).reshape(-1, 2)

    def mark_clean(self) -> None:
        """Note that everything so far stands in a snapshot."""
        self._dirty[:] = False

    def load(self, state: State) -> None:
        """Replace everything by a full ``state`` of a table of the same capacity."""
        for name, column in self._rows.items():
            column[:] = state.shared["windows." + name].numpy()
        self._head = int(state.shared["windows.head"][0])
        self._dirty[:] = False
        self.open = dict(state.shared["windows.open"].tolist())
        held_B = np.flatnonzero(self._rows["held"])
        self._index.clear()
        self._index.put(self._rows["id"][held_B], held_B)
