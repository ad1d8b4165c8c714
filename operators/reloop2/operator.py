"""The streaming operator ``reloop2``: impressions in, corrected click probabilities out, labels as control rows.

Ties the base model, the memory, the table of waiting impressions and event time together. Impressions number m·k to m·k+m-1
of a slot (m = ``micro_batch``) read the memory as of number m·k; what labels and timeouts write is applied between two
micro-batches, when the next one opens. So the output depends on the one order of impressions and labels, not on how they are
cut into calls; m = 1 is the serial algorithm.
"""

# B rows of a call, S slots, L slots of a call, N slots of a snapshot

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from connectors import records
from connectors.errors import CheckpointMismatch, RecoveryError, StreambankError
from connectors.records import NEVER_US, encode_streams
from models.reloop2 import checkpoint
from models.reloop2.base import CtrModel
from models.reloop2.features import Encoded, encode
from models.uploads import upload_values
from operators.banks import stream_seed
from operators.base import Context
from operators.counters import STREAM_COUNTERS, Counters
from operators.deferred import Deferred
from operators.event_time import EventTime, earlier, event_times, microseconds
from operators.output import OutputRows
from operators.reloop2.config import ReLoop2Options
from operators.reloop2.declaration import ReLoop2Declaration, fingerprint
from operators.reloop2.ids import BAD_ID, Bools, Ints, row_ids
from operators.reloop2.join import EarlyLabels, JoinTable, RowState, Waiting
from operators.reloop2.memory import make_memory
from operators.reloop2.rules import compensate
from operators.reloop2.schemas import (
    CONTROL,
    DUPLICATE,
    STATUSES,
    Flag,
    Predictions,
    bad_label,
    model_paths,
    prediction_schema,
)
from operators.reloop2.weights import Scored, Scorer, load_model, require_same_setup, setup_of
from operators.rounds import rank_within
from operators.state import State, from_shared, to_shared
from operators.streams import EVICTED, Stream, StreamTable, require_full

__all__ = ["ReLoop2Operator"]

_log = logging.getLogger(__name__)

_VERSION = 2
"""Of snapshots."""

_COUNTERS = (
    "impressions",
    "base_only",
    "duplicate_impressions",
    "labels",
    "early_labels",
    "early_expired",
    "early_refused",
    "duplicate_labels",
    "invalid_labels",
    "timeouts",
    "corrections",
    "waiting_dropped",
    "stale",
    "clock_jumps",
    "model_swaps",
)
"""Besides those of every operator; ``late`` counts labels that came too late."""


class ReLoop2Operator(ReLoop2Declaration):
    """The operator at work; what can be known of it before stands in its declaration."""

    def __init__(self, options: ReLoop2Options, context: Context) -> None:
        super().__init__(options, context)
        self.options: ReLoop2Options = options
        name, slots = context.name, options.max_streams
        model = load_model(options.checkpoint, options, name)
        self._setup = setup_of(options, model)
        self._first_model = self._model_id = checkpoint.model_id(model)
        self._model_path: str | None = None  # of a model that a control row has brought
        self._model_number = 0
        self.output_schema = prediction_schema(options.id_type, fingerprint(options, self._first_model))
        self._memory = make_memory(options, model, slots, context.device)
        self._scorer = Scorer(model, context.device, self._memory.keys)
        self._join = JoinTable(
            slots,
            options.pending_capacity,
            options.micro_batch,
            key_width=self._memory.key_width,
            key_dtype=self._memory.key_dtype,
            device=context.device,
            known_base=self._memory.needs_base,
        )
        self._early = EarlyLabels(slots, options.early_capacity)
        self._times = EventTime(
            name, slots, aligned=context.aligned, lateness_s=options.allowed_lateness_s, max_jump_s=options.max_jump_s
        )
        self._counters = Counters(*STREAM_COUNTERS, *_COUNTERS)
        self._streams: StreamTable[Stream] | None = None  # None: one nameless memory, in slot 0
        if self.keyed(options):
            self._streams = StreamTable(
                name,
                lambda stream_id, slot: Stream(slot),
                options,
                kind=Stream,
                counters=self._counters,
                ended=lambda stream_id, stream: self._release(np.array([stream.slot])),
            )
        self._deferred = Deferred()
        self._impressions_S = np.zeros(slots, np.int64)
        """Impressions of a slot so far; a micro-batch ends at every multiple of its size."""
        self._version_S = np.zeros(slots, np.int64)
        """Times that the slot's memory has changed."""
        self._period_S = np.zeros(slots, np.int64)
        """The span of ``reset_every_s`` that the slot's memory belongs to."""
        self._returned_S = np.zeros(slots, np.bool_)
        """The stream had been evicted before, and no impression of it has come since."""

    # Impressions

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Predict every impression and remember it for its label. One row out per row in."""
        records.require(batch, self.input_schema, self.context.name)
        if not batch.num_rows:
            return []
        ids_B, no_id_B = self._ids(batch)
        encoded = encode(batch, self._scorer.model.feature_map, self.context.name)
        scored = self._scorer.score(encoded.columns)
        out, made = OutputRows(batch, self.output_schema, STATUSES), Predictions(batch.num_rows)
        good_B = self._admit(batch, encoded, scored, no_id_B, out, made)
        self._tell_base(made, good_B, scored)
        times_B = event_times(batch)
        for rows_B, slots_B in self._parts(batch.column("stream_id"), good_B, out):
            for wave_B, opening_L in self._waves(slots_B):
                if len(opening_L):
                    self._turn(slots_B[opening_L], times_B[rows_B[opening_L]])
                rows = rows_B[wave_B]
                self._predict(rows, slots_B[wave_B], ids_B[rows], times_B[rows], scored, out, made)
        self._deferred.take()
        for name, statuses in (
            ("rejected", ("rejected_corrupt", "rejected_full")),
            ("base_only", ("base_only",)),
            ("duplicate_impressions", ("duplicate",)),
            ("reset", ("reset",)),
        ):
            self._counters.add(name, out.count(*statuses))
        return out.batches(self._common(batch) | made.columns())

    def _ids(self, batch: pa.RecordBatch) -> tuple[Ints, Bools]:
        """Return the ids as keys, of different streams apart where each has its memory, and which rows have none."""
        salt_B = None
        if self._streams is not None:
            names, codes_B = encode_streams(batch.column("stream_id"))
            salt_B = np.array([stream_seed(0, name) for name in names], np.int64)[codes_B]
        return row_ids(batch, self.options.id_type, salt_B, self.context.name)

    def _common(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """Return the columns that predictions and answers to control rows have in common."""
        return {
            "impression_id": batch.column("impression_id").cast(self.output_schema.field("impression_id").type),
            "model_version": pa.array([self._model_id], pa.string()).take(pa.array(np.zeros(batch.num_rows, np.int32))),
        }

    def _admit(
        self,
        batch: pa.RecordBatch,
        encoded: Encoded,
        scored: Scored,
        no_id_B: Bools,
        out: OutputRows,
        made: Predictions,
    ) -> Ints:
        """Return the rows that are remembered; the others get their status, and the base prediction where there is one."""
        error_B = out.refuse_errors()
        bad_B = encoded.bad_B.numpy()
        wild_B = ~bad_B & ~scored.sound_B
        useless_B = no_id_B | ~scored.finite_B
        good_B = ~(error_B | bad_B | wild_B | useless_B)
        full_B = np.zeros_like(good_B)
        if self._streams is not None:
            full_B = self._streams.no_room_rows(batch.column("stream_id"), good_B) & ~error_B
            good_B &= ~full_B
        refused = np.flatnonzero(~good_B & ~error_B)
        for row in refused.tolist():
            has_base = not (bad_B[row] or wild_B[row])
            if full_B[row] and self._streams is not None:
                out.set(row, *self._streams.no_slot)
            elif has_base:
                out.set(row, "base_only", BAD_ID if no_id_B[row] else "the model's output is not finite")
            else:
                out.set(row, "rejected_corrupt", encoded.reasons[row] or "the model's output is not finite")
        with_base = refused[~(bad_B | wild_B)[refused]]
        self._tell_base(made, with_base, scored)
        return np.flatnonzero(good_B)

    def _tell_base(self, made: Predictions, rows_B: Ints, scored: Scored) -> None:
        if len(rows_B):
            self._deferred.add(made.base, rows_B, scored.base_B[upload_values(rows_B, scored.base_B.device)])

    def _parts(self, streams: pa.Array, rows_B: Ints, out: OutputRows) -> Iterator[tuple[Ints, Ints]]:
        """Yield rows with their slots, in order, in as many parts as it takes for every stream to have a slot."""
        if self._streams is None:
            if len(rows_B):
                yield rows_B, np.zeros(len(rows_B), np.int64)
            return
        for part_B, slots_B, returned in self._streams.assign(streams, rows_B):
            self._note_returned(returned)
            if self._returned_S.any():
                slots, first = np.unique(slots_B, return_index=True)
                back = self._returned_S[slots]
                out.set_rows(part_B[first[back]], "reset", [EVICTED] * int(back.sum()))
                self._returned_S[slots] = False
            yield part_B, slots_B

    def _note_returned(self, names: list[str]) -> None:
        for name in names:
            stream = self._streams.get(name) if self._streams is not None else None
            if stream is not None:
                self._returned_S[stream.slot] = True

    def _waves(self, slots_B: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Cut rows where a slot's micro-batch ends; yield the rows of each piece, and those of them that open a micro-batch."""
        size = self.options.micro_batch
        number_B = self._impressions_S[slots_B] + rank_within(slots_B)
        wave_B = number_B // size - self._impressions_S[slots_B] // size
        for wave in range(int(wave_B.max()) + 1):
            rows = np.flatnonzero(wave_B == wave)
            yield rows, rows[number_B[rows] % size == 0]

    def _predict(
        self, rows_B: Ints, slots_B: Ints, ids_B: Ints, times_B: Ints, scored: Scored, out: OutputRows, made: Predictions
    ) -> None:
        """Predict rows that see the same memory, and put them into the table."""
        there_B = upload_values(rows_B, self.context.device)
        keys_BW, base_B = scored.keys_BW[there_B], scored.base_B[there_B]
        read = self._memory.read(keys_BW, slots_B)
        options = self.options
        found = compensate(read, base_B, gamma=options.gamma, strength=options.strength, prior_rows=options.prior_rows)
        self._deferred.add(made.corrected, rows_B, torch.stack([column_B.double() for column_B in found], dim=1))
        made.memory(rows_B, self._memory.written()[slots_B], self._version_S[slots_B])
        made.flag(rows_B[self._memory.folded()[slots_B]], Flag.TABLE_FOLDED)

        time_us_B, jumped_B = self._times.note(slots_B, times_B)
        made.flag(rows_B[jumped_B], Flag.CLOCK_JUMP)
        deadline_us_B = time_us_B + microseconds(options.label_timeout_s)
        placed_B, duplicate_B = self._join.add(Waiting(slots_B, ids_B, deadline_us_B, base_B, self._model_number, keys_BW))
        if duplicate_B.any():
            out.set_rows(rows_B[duplicate_B], "duplicate", [DUPLICATE] * int(duplicate_B.sum()))
            made.flag(rows_B[duplicate_B], Flag.DUPLICATE)
        if self._memory.needs_base:  # comes to the host with the predictions, before most labels do
            self._deferred.add(self._join.note_base, placed_B, base_B)
        fresh_B = np.flatnonzero(~duplicate_B)
        early_B, label_B = self._early.take(ids_B[fresh_B])
        if early_B.any():
            self._join.stage(placed_B[fresh_B[early_B]], label_B)
            made.flag(rows_B[fresh_B[early_B]], Flag.EARLY_LABEL)
        np.add.at(self._impressions_S, slots_B, 1)
        self._counters.add("impressions", len(rows_B))
        self._counters.add("clock_jumps", int(jumped_B.sum()))

    # Between two micro-batches

    def _turn(self, slots_L: Ints, opening_us_L: Ints) -> None:
        """Write what has become known about impressions of slots where rows of these times open the next micro-batch."""
        options, count = self.options, self._counters.add
        reached_us_L = self._times.at_row(slots_L, opening_us_L)
        due_us_L = self._times.due(reached_us_L)
        self._forget_by_time(slots_L, reached_us_L)
        staged_B = self._join.take_staged(slots_L)
        due_B = self._join.due(slots_L, due_us_L)
        known_B = staged_B[self._join.state[staged_B] == RowState.STAGED]
        late_B = staged_B[self._join.state[staged_B] == RowState.CORRECTING]
        count("timeouts", len(due_B))
        negative = options.on_timeout == "negative"

        rows_B = np.concatenate([known_B, due_B]) if negative else known_B
        after = RowState.NEGATIVE if options.late_correction_s else RowState.EXPIRED
        current_B = self._join.model[rows_B] == self._model_number
        count("stale", int(np.count_nonzero(~current_B)))
        written_B = np.zeros(len(rows_B), np.int64)
        if current_B.any():
            written_B[current_B] = self._write(rows_B[current_B])
        self._join.settle(known_B, RowState.DONE, written_B[: len(known_B)])
        self._join.settle(due_B, after if negative else RowState.EXPIRED, written_B[len(known_B) :] if negative else 0)
        if len(late_B):
            self._correct(late_B)
        count("waiting_dropped", self._join.free(slots_L))
        count("early_expired", self._early.expire(slots_L, earlier(due_us_L, microseconds(options.early_label_s))))

    def _write(self, rows_B: Ints) -> Ints:
        """Write rows of the table into the memory; return their places."""
        join = self._join
        slots_B = rows_B // join.rows
        there_B = upload_values(rows_B, join.keys_RW.device)
        keys_BW, base_B = join.keys_RW[there_B], join.base_R[there_B]
        label_B = torch.from_numpy(join.label[rows_B])
        self._version_S[np.unique(slots_B)] += 1
        known_B = join.known_base_R[rows_B] if self._memory.needs_base else None
        return self._memory.write(keys_BW, label_B, base_B, slots_B, known_B)

    def _correct(self, rows_B: Ints) -> None:
        """Make rows that were written as negatives what their late labels say."""
        join = self._join
        slots_B = rows_B // join.rows
        current_B = join.model[rows_B] == self._model_number
        current_B &= self._memory.holds(join.written[rows_B], slots_B)
        self._counters.add("corrections", int(current_B.sum()))
        self._counters.add("late", int(np.count_nonzero(~current_B)))
        join.settle(rows_B, RowState.DONE)
        rows_B, slots_B = rows_B[current_B], slots_B[current_B]
        if len(rows_B):
            keys_BW = join.keys_RW[upload_values(rows_B, join.keys_RW.device)]
            self._memory.correct(keys_BW, torch.from_numpy(join.label[rows_B]), slots_B)
            self._version_S[np.unique(slots_B)] += 1

    def _forget_by_time(self, slots_L: Ints, reached_us_L: Ints) -> None:
        """Clear the memories of slots whose event time has entered another span of ``reset_every_s``."""
        if self.options.reset_every_s is None:
            return
        period_L = np.where(reached_us_L == NEVER_US, 0, reached_us_L // microseconds(self.options.reset_every_s))
        over_L = slots_L[period_L > self._period_S[slots_L]]
        self._period_S[slots_L] = np.maximum(period_L, self._period_S[slots_L])
        self._clear_memory(over_L)

    def _clear_memory(self, slots_L: Ints) -> None:
        if len(slots_L):
            self._memory.clear(slots_L)
            self._version_S[slots_L] += 1

    # Labels and models

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take labels, and models to go on with. Answers rows that cannot be used, and every row that brings a model."""
        records.require(batch, CONTROL, self.context.name)
        if not batch.num_rows:
            return []
        ids_B, no_id_B = self._ids(batch)
        out = OutputRows(batch, self.output_schema, STATUSES)
        usable_B = ~out.refuse_errors()
        rows_B, start = np.arange(batch.num_rows), 0
        for row, path in model_paths(batch, usable_B).items():
            self._labels(batch, rows_B[start:row][usable_B[start:row]], ids_B, no_id_B, out)
            problem = self._swap(path)
            out.set(row, "swap_failed" if problem else "model_swapped", problem)
            start = row + 1
        self._labels(batch, rows_B[start:][usable_B[start:]], ids_B, no_id_B, out)
        self._counters.add("rejected", out.count("rejected_corrupt"))
        self._counters.add("invalid_labels", out.count("invalid_label"))
        if out.count("ok") == batch.num_rows:
            return []
        out.drop_rest()
        return out.batches(self._common(batch))

    def _labels(self, batch: pa.RecordBatch, rows_B: Ints, ids_B: Ints, no_id_B: Bools, out: OutputRows) -> None:
        """Take the labels of these rows; those that are none get their status."""
        if not len(rows_B):
            return
        column = batch.column("label")
        null_B = column.is_null().to_numpy(zero_copy_only=False)[rows_B]
        label_B = pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False)[rows_B]
        soft = self.options.soft_labels
        fine_B = (label_B >= 0) & (label_B <= 1) if soft else (label_B == 0) | (label_B == 1)
        good_B = fine_B & ~null_B & ~no_id_B[rows_B]
        for b in np.flatnonzero(~good_B).tolist():
            row, value = int(rows_B[b]), None if null_B[b] else float(label_B[b])
            out.set(row, "invalid_label", BAD_ID if no_id_B[row] else bad_label(value, soft=soft))
        rows_B, label_B = rows_B[good_B], label_B[good_B]
        if len(rows_B):
            slots_B = np.zeros(len(rows_B), np.int64)
            if self._streams is not None:
                slots_B, returned = self._streams.find(batch.column("stream_id").take(pa.array(rows_B)))
                self._note_returned(returned)
            self._join_labels(slots_B, ids_B[rows_B], label_B, event_times(batch)[rows_B])

    def _join_labels(self, slots_B: Ints, ids_B: Ints, label_B: np.ndarray, times_B: Ints) -> None:
        join, count = self._join, self._counters.add
        count("labels", len(ids_B))
        place_B = join.find(ids_B)
        found_B = place_B >= 0
        state_B = np.where(found_B, join.state[place_B], np.uint8(RowState.EMPTY))
        pending_B, negative_B = state_B == RowState.PENDING, state_B == RowState.NEGATIVE
        deadline_us_B = join.deadline_us[place_B]
        # Where all inputs are in one order the label's own time says whether it is in time; else what impressions have reached.
        known_us_B = times_B if self._times.aligned else self._times.due(self._times.latest_S[slots_B])
        correctable_B = (label_B > 0) & (known_us_B <= deadline_us_B + microseconds(self.options.late_correction_s))
        usable_B = negative_B & correctable_B | pending_B
        if self._times.aligned:
            # A positive that corrects what has not been written as a negative yet is written as it is.
            usable_B &= (known_us_B < deadline_us_B) | (correctable_B & (self.options.late_correction_s > 0))
        first_B = np.zeros(len(ids_B), np.bool_)
        usable_rows = np.flatnonzero(usable_B)
        first_B[usable_rows[np.unique(place_B[usable_rows], return_index=True)[1]]] = True
        join.stage(place_B[first_B], label_B[first_B])
        late_B = ~usable_B & (pending_B | negative_B | (state_B == RowState.EXPIRED))
        count("late", int(late_B.sum()))
        count("duplicate_labels", int((found_B & ~first_B & ~late_B).sum()))
        early_B = ~found_B & (slots_B >= 0)
        count("early_refused", int((~found_B & (slots_B < 0)).sum()))
        if early_B.any():
            slots_B, ids_B, label_B, times_B = (part[early_B] for part in (slots_B, ids_B, label_B, times_B))
            # Without alignment a label waits from the time that its impressions have reached: its own clock does not matter.
            latest_B = self._times.latest_S[slots_B]
            since_B = times_B if self._times.aligned else np.where(latest_B == NEVER_US, times_B, latest_B)
            known, refused = self._early.add(slots_B, ids_B, label_B, since_B)
            count("early_labels", len(ids_B) - known - refused)
            count("duplicate_labels", known)
            count("early_refused", refused)

    def _swap(self, path: str) -> str | None:
        """Go on with the model in ``path``, by default with an empty memory; return what is wrong if that cannot be."""
        try:
            model = load_model(path, self.options, self.context.name)
            what = f"{self.context.name}: model {path!r}"
            require_same_setup(setup_of(self.options, model), self._setup, what, CheckpointMismatch)
        except StreambankError as error:
            _log.warning("operator=%s model swap failed path=%r error=%s", self.context.name, path, error)
            return f"the model stays {self._model_id}: {error}"
        self._adopt(model, path)
        self._counters.add("model_swaps")
        if self.options.on_swap == "clear":
            self._model_number += 1
            self._clear_memory(np.arange(self.options.max_streams))
        if self._streams is not None:
            self._streams.all_changed()
        _log.info("operator=%s model swapped path=%r model=%s", self.context.name, path, self._model_id)
        return None

    def _adopt(self, model: CtrModel, path: str | None) -> None:
        self._memory.adopt(model)
        self._scorer = Scorer(model, self.context.device, self._memory.keys)
        self._model_path, self._model_id = path, checkpoint.model_id(model)

    # Streams

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream and its memory. A memory for all rows stays."""
        if self._streams is not None:
            self._streams.close(stream_id)

    def _release(self, slots_N: Ints) -> None:
        self._memory.release(slots_N)
        self._times.clear(slots_N)
        for slot in slots_N.tolist():
            self._join.clear(slot)
            self._early.clear(slot)
        for name, column_S in self._columns().items():
            if name != "latest_us":
                column_S[slots_N] = 0

    def metrics(self) -> dict[str, float]:
        """Return bytes, what waits, and counts of the whole run."""
        tiers = self._memory.bytes()
        return {
            "bank_bytes": float(sum(tiers.values())),
            **{f"bank_bytes_{tier}": float(size) for tier, size in tiers.items() if len(tiers) > 1},
            "bank_rows": float(self._memory.written().sum()),
            "streams": float(1 if self._streams is None else len(self._streams)),
            "waiting": float(self._join.waiting()),
            "early": float(len(self._early)),
            **self._counters.gauges(),
        }

    def close(self) -> None:
        """Close the files of a memory on disk."""
        self._memory.close()

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of everything, or of what changed since the last call."""
        if self._streams is None:
            state = State(incremental=incremental)
            self._counters.export(state)
            self._export(np.zeros(1, np.int64), state, incremental=incremental)
            to_shared(state)
        else:
            with self._streams.snapshot(incremental=incremental) as (state, streams):
                slots_N = np.array([stream.slot for stream in streams], np.int64)
                self._export(slots_N, state, incremental=incremental)
        state.meta |= {
            "version": _VERSION,
            "setup": self._setup,
            "first_model": self._first_model,
            "model": self._model_id,
            "model_path": self._model_path,
            "model_number": self._model_number,
        }
        return state

    def _export(self, slots_N: Ints, state: State, *, incremental: bool) -> None:
        for name, column_S in self._columns().items():
            state.dense[name] = torch.from_numpy(column_S[slots_N])
        self._early.export(slots_N, state)
        for part in (self._join, self._memory):
            part.export(slots_N, state, incremental=incremental)
            part.mark_clean()

    def restore(self, state: State) -> None:
        """Replace everything by a full ``state``. Raise ``RecoveryError`` where it is of another model or of other options."""
        name = self.context.name
        require_full(state, name)
        if state.meta.get("version") != _VERSION:
            raise RecoveryError(
                f"{name}: the snapshot was written by an earlier version of this operator, which counted other things and kept "
                "event time by partition; finish the run with that version, or start in a new state folder"
            )
        require_same_setup(state.meta["setup"], self._setup, f"{name}: the snapshot", RecoveryError)
        if state.meta["first_model"] != self._first_model:
            raise RecoveryError(
                f"{name}: the snapshot was made with model {state.meta['first_model']}, {self.options.checkpoint!r} is "
                f"{self._first_model}; resume with the same file, and bring a new model by a control row"
            )
        path, wanted = state.meta["model_path"], state.meta["model"]
        model = None if wanted == self._model_id else load_model(path or self.options.checkpoint, self.options, name)
        if model is not None and checkpoint.model_id(model) != wanted:
            raise RecoveryError(
                f"{name}: the snapshot was made with model {wanted} from {path!r}, which now holds "
                f"{checkpoint.model_id(model)}; put the old file back"
            )
        if self._streams is None:
            self._counters.load(state, name)
            state, slots_N = from_shared(state), np.zeros(1, np.int64)
        else:
            state, streams = self._streams.restore(state, hint="")
            slots_N = np.array([stream.slot for stream in streams], np.int64)
        if model is not None:
            self._adopt(model, path)
        self._model_path, self._model_number = path, state.meta["model_number"]
        self._release(np.arange(self.options.max_streams))
        if len(slots_N):
            for column, column_S in self._columns().items():
                column_S[slots_N] = state.dense[column].numpy()
            for part in (self._join, self._early, self._memory):
                part.load(slots_N, state)
        self._join.mark_clean()
        self._memory.mark_clean()

    def _columns(self) -> dict[str, np.ndarray]:
        """Return what there is to know of each slot besides its rows, by name."""
        return {
            "impressions": self._impressions_S,
            "version": self._version_S,
            "period": self._period_S,
            "returned": self._returned_S,
            "latest_us": self._times.latest_S,
        }
