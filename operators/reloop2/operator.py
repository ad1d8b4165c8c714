"""The streaming operator ``reloop2``: impressions in, corrected click probabilities out, labels as control rows.

Ties the base model, the memory, the table of waiting impressions and event time together. Impressions number m·k to m·k+m-1
of a lane (m = ``micro_batch``) read the memory as of number m·k; what labels and timeouts write is applied between two
micro-batches. So the output depends on the one order of impressions and labels, not on how they are cut into calls; m = 1 is
the serial algorithm.
"""

# B rows of a call, L lanes of a call, N lanes of a snapshot

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from connectors import records
from connectors.errors import CheckpointMismatch, RecoveryError, SchemaError, StreambankError
from models.reloop2 import checkpoint
from models.reloop2.features import encode
from operators.base import Context, Operator
from operators.reloop2.compensation import compensate
from operators.reloop2.config import ReLoop2Options
from operators.reloop2.early import EarlyLabels
from operators.reloop2.ids import Bools, Ints, rank_within
from operators.reloop2.join import JoinTable, RowState, Waiting
from operators.reloop2.lanes import Lanes
from operators.reloop2.memory import make_memory
from operators.reloop2.results import Predictions, answers
from operators.reloop2.rows import BAD_ID, Faults, bad_label, event_times, model_paths, row_ids
from operators.reloop2.schemas import CONTROL, IMPRESSION, Flag, prediction_schema
from operators.reloop2.scorer import Scored, Scorer
from operators.reloop2.setup import check_memory, fingerprint, hidden_dim, load_model, require_same_setup, setup_of
from operators.reloop2.shared_state import from_shared, to_shared
from operators.reloop2.watermark import NEVER, Watermarks
from operators.state import State

__all__ = ["ReLoop2Operator"]

_log = logging.getLogger(__name__)

_COUNTERS = (
    "impressions",
    "labels",
    "timeouts",
    "corrections",
    "late_labels",
    "duplicate_labels",
    "duplicate_impressions",
    "early_labels",
    "early_expired",
    "early_refused",
    "pending_dropped",
    "stale",
    "clock_jumps",
    "model_swaps",
)
"""Of the whole life of a run: they are part of snapshots."""


class ReLoop2Operator(Operator):
    """A frozen CTR model and an error memory that follows what the model has not seen (ReLoop2, KDD 2023)."""

    Options = ReLoop2Options
    input_schema = IMPRESSION
    control_schema = CONTROL
    output_schema = prediction_schema("int64", "")  # of an instance: with its id_type and its fingerprint

    def __init__(self, options: ReLoop2Options, context: Context) -> None:
        super().__init__(options, context)
        self.options: ReLoop2Options = options
        name, per_key = context.name, options.scope == "per_key"
        model = load_model(options.checkpoint, options, name)
        self._setup = setup_of(options, model)
        self._first_model = self._model_id = checkpoint.model_id(model)
        self._model_path: str | None = None  # of a model that a control row has brought
        self._model_number = 0
        self.output_schema = prediction_schema(options.id_type, fingerprint(options, self._first_model))
        number = options.max_streams
        self._memory = make_memory(options, model, number, context.device)
        self._scorer = Scorer(model, context.device, self._memory.keys)
        self._join = JoinTable(
            number,
            options.pending_capacity,
            options.micro_batch,
            key_width=self._memory.key_width,
            key_dtype=self._memory.key_dtype,
            device=context.device,
        )
        self._early = EarlyLabels(number, options.early_capacity)
        self._times = Watermarks(
            number,
            lateness_us=_us(options.allowed_lateness_s),
            idle_us=_us(options.idle_timeout_s),
            jump_us=_us(options.max_jump_s),
        )
        self._lanes = Lanes(number, per_key=per_key, ended=self._forget_lane)
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._refused = {"rejected": 0, "invalid_labels": 0}  # bad rows leave no trace in the state

    @classmethod
    def examine(cls, options: ReLoop2Options, name: str) -> pa.Schema:
        """Check the checkpoint's header and the memory budget; return the output schema."""
        header = checkpoint.read_header(options.checkpoint)
        check_memory(options, name, hidden_dim(header))
        return prediction_schema(options.id_type, fingerprint(options, header.model_id))

    # Impressions

    def process(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Predict every impression and remember it for its label. One row out per row in."""
        records.require(batch, self.input_schema, self.context.name)
        if not batch.num_rows:
            return []
        ids_B, no_id_B = self._ids(batch)
        faults, partitions = Faults(batch), self._partitions(batch)
        encoded = encode(batch, self._scorer.model.feature_map, self.context.name)
        scored = self._scorer.score(encoded.columns)
        bad_B = encoded.bad_B.numpy() | faults.rows_B
        not_finite_B = ~bad_B & ~np.isfinite(scored.base_B)
        rejected_B = bad_B | not_finite_B
        base_only_B = ~rejected_B & (no_id_B | ~scored.finite_B)

        out = Predictions(batch, self._model_id)
        out.base(np.flatnonzero(base_only_B), scored.base_B[base_only_B], "base_only")
        good_B = np.flatnonzero(~rejected_B & ~base_only_B)
        out.base(good_B, scored.base_B[good_B], "ok")
        times_B = event_times(batch)
        for rows_B, lanes_B in self._lanes.parts(batch.column("stream_id"), good_B):
            for wave_B, starts_L in self._waves(lanes_B):
                if len(starts_L):
                    self._turn(starts_L)
                rows = rows_B[wave_B]
                times_us = self._impressions(rows, lanes_B[wave_B], ids_B[rows], times_B[rows], scored, out)
                if partitions is not None:
                    self._times.note_partitions(partitions[0], partitions[1][rows], times_us)

        self._refused["rejected"] += int(rejected_B.sum() + base_only_B.sum())
        errors: list[str | None] | None = None
        if rejected_B.any() or base_only_B.any():
            errors = faults.merge(encoded.reasons)
            for row in np.flatnonzero(not_finite_B | base_only_B).tolist():
                errors[row] = BAD_ID if base_only_B[row] and no_id_B[row] else "the model's output is not finite"
        return [out.batch(self.output_schema, errors)]

    def _ids(self, batch: pa.RecordBatch) -> tuple[Ints, Bools]:
        return row_ids(batch, self.options.id_type, self._lanes.salts(batch.column("stream_id")), self.context.name)

    def _waves(self, lanes_B: Ints) -> Sequence[tuple[Ints, Ints]]:
        """Cut rows where a lane's micro-batch ends; return the rows of each piece, and the lanes for which one begins there."""
        size = self.options.micro_batch
        number_B = self._lanes.impressions_S[lanes_B] + rank_within(lanes_B)
        wave_B = number_B // size - self._lanes.impressions_S[lanes_B] // size
        waves = []
        for wave in range(int(wave_B.max()) + 1):
            rows = np.flatnonzero(wave_B == wave)
            waves.append((rows, lanes_B[rows[number_B[rows] % size == 0]]))
        return waves

    def _impressions(self, rows_B: Ints, lanes_B: Ints, ids_B: Ints, times_B: Ints, scored: Scored, out: Predictions) -> Ints:
        """Predict rows that see the same memory, and put them into the table; return their event times, jumps cut short."""
        keys_BW = scored.keys_BW[torch.from_numpy(rows_B).to(scored.keys_BW.device)]
        base_B = torch.from_numpy(scored.base_B[rows_B]).to(self.context.device)
        read = self._memory.read(keys_BW, lanes_B)
        options = self.options
        found = compensate(read, base_B, gamma=options.gamma, strength=options.strength, prior_rows=options.prior_rows)
        out.corrected(rows_B, found, self._memory.written()[lanes_B], self._lanes.version_S[lanes_B])
        out.flag(rows_B[self._memory.folded()[lanes_B]], Flag.TABLE_FOLDED)

        time_us_B, jumped_B = self._times.advance(lanes_B, times_B)
        out.flag(rows_B[jumped_B], Flag.CLOCK_JUMP)
        deadline_us_B = time_us_B + _us(options.label_timeout_s)
        placed_B, duplicate_B = self._join.add(
            Waiting(lanes_B, ids_B, deadline_us_B, scored.base_B[rows_B], self._model_number, keys_BW)
        )
        out.flag(rows_B[duplicate_B], Flag.DUPLICATE)
        fresh_B = np.flatnonzero(~duplicate_B)
        early_B, label_B = self._early.take(ids_B[fresh_B])
        if early_B.any():
            self._join.stage(placed_B[fresh_B[early_B]], label_B)
            out.flag(rows_B[fresh_B[early_B]], Flag.EARLY_LABEL)
        np.add.at(self._lanes.impressions_S, lanes_B, 1)
        self._counts["impressions"] += len(rows_B)
        self._counts["duplicate_impressions"] += int(duplicate_B.sum())
        self._counts["clock_jumps"] += int(jumped_B.sum())
        return time_us_B

    def _partitions(self, batch: pa.RecordBatch) -> tuple[list[str], Ints] | None:
        """Return the partitions that rows come from, and which of them each row does; None without partitions."""
        if self.options.partition is None:
            return None
        index = batch.schema.get_field_index(self.options.partition)
        if index < 0:
            raise SchemaError(
                f"{self.context.name}: partition={self.options.partition!r}, but there is no such column; got "
                f"{batch.schema.names}"
            )
        encoded = pc.fill_null(batch.column(index).cast(pa.string()), "").dictionary_encode()
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)

    # Between two micro-batches

    def _turn(self, lanes_L: Ints) -> None:
        """Write what has become known about the impressions of these lanes."""
        options = self.options
        mark_us_L = self._times.of(lanes_L)
        self._forget_by_time(lanes_L)
        staged_B = self._join.take_staged(lanes_L)
        due_B = self._join.due(lanes_L, mark_us_L)
        known_B = staged_B[self._join.state[staged_B] == RowState.STAGED]
        late_B = staged_B[self._join.state[staged_B] == RowState.CORRECTING]
        self._counts["timeouts"] += len(due_B)
        negative = options.on_timeout == "negative"

        rows_B = np.concatenate([known_B, due_B]) if negative else known_B
        after = RowState.NEGATIVE if options.late_correction_s else RowState.EXPIRED
        current_B = self._join.model[rows_B] == self._model_number
        self._counts["stale"] += int(np.count_nonzero(~current_B))
        written_B = np.zeros(len(rows_B), np.int64)
        if current_B.any():
            written_B[current_B] = self._write(rows_B[current_B])
        self._join.settle(known_B, RowState.DONE, written_B[: len(known_B)])
        self._join.settle(due_B, after if negative else RowState.EXPIRED, written_B[len(known_B) :] if negative else 0)
        if len(late_B):
            self._correct(late_B)
        self._counts["pending_dropped"] += self._join.free(lanes_L)
        self._counts["early_expired"] += self._early.expire(lanes_L, mark_us_L - _us(options.early_label_s))

    def _write(self, rows_B: Ints) -> Ints:
        """Write rows of the table into the memory; return where they stand there."""
        join = self._join
        lanes_B = rows_B // join.rows
        keys_BW = join.keys_RW[torch.from_numpy(rows_B).to(join.keys_RW.device)]
        label_B, base_B = (torch.from_numpy(column[rows_B]).to(self.context.device) for column in (join.label, join.base))
        self._lanes.version_S[np.unique(lanes_B)] += 1
        return self._memory.write(keys_BW, label_B, base_B, lanes_B)

    def _correct(self, rows_B: Ints) -> None:
        """Make rows that were written as negatives what their late labels say."""
        join = self._join
        lanes_B = rows_B // join.rows
        current_B = join.model[rows_B] == self._model_number
        current_B &= self._memory.holds(join.written[rows_B], lanes_B)
        self._counts["corrections"] += int(current_B.sum())
        self._counts["late_labels"] += int(np.count_nonzero(~current_B))
        join.settle(rows_B, RowState.DONE)
        rows_B, lanes_B = rows_B[current_B], lanes_B[current_B]
        if len(rows_B):
            keys_BW = join.keys_RW[torch.from_numpy(rows_B).to(join.keys_RW.device)]
            self._memory.correct(keys_BW, torch.from_numpy(join.label[rows_B]).to(self.context.device), lanes_B)
            self._lanes.version_S[np.unique(lanes_B)] += 1

    def _forget_by_time(self, lanes_L: Ints) -> None:
        """Clear the memories of lanes whose event time has entered another span of ``reset_every_s``."""
        if self.options.reset_every_s is None:
            return
        latest_L = self._times.latest_S[lanes_L]
        period_L = np.where(latest_L == NEVER, 0, latest_L // _us(self.options.reset_every_s))
        over_L = lanes_L[period_L > self._lanes.period_S[lanes_L]]
        self._lanes.period_S[lanes_L] = np.maximum(period_L, self._lanes.period_S[lanes_L])
        self._clear_memory(over_L)

    def _clear_memory(self, lanes_L: Ints) -> None:
        if len(lanes_L):
            self._memory.clear(lanes_L)
            self._lanes.version_S[lanes_L] += 1

    # Labels and models

    def control(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Take labels, and models to go on with. Answers rows that cannot be used, and every row that brings a model."""
        records.require(batch, CONTROL, self.context.name)
        if not batch.num_rows:
            return []
        answered: dict[int, tuple[str, str | None]] = {}
        paths = model_paths(batch)
        rows_B = np.arange(batch.num_rows)
        ids_B, no_id_B = self._ids(batch)
        faults = Faults(batch)
        start = 0
        for row, path in paths.items():
            answered |= self._labels(batch, rows_B[start:row], ids_B, no_id_B, faults)
            problem = self._swap(path)
            answered[row] = ("swap_failed", problem) if problem else ("model_swapped", None)
            start = row + 1
        answered |= self._labels(batch, rows_B[start:], ids_B, no_id_B, faults)
        if not answered:
            return []
        statuses, errors = zip(*answered.values(), strict=True)
        return [answers(batch, list(answered), statuses, errors, self.output_schema, self._model_id)]

    def _labels(
        self, batch: pa.RecordBatch, rows_B: Ints, ids_B: Ints, no_id_B: Bools, faults: Faults
    ) -> dict[int, tuple[str, str | None]]:
        """Take the labels of these rows; return answers to the ones that are none."""
        if not len(rows_B):
            return {}
        column = batch.column("label")
        null_B = column.is_null().to_numpy(zero_copy_only=False)[rows_B]
        label_B = pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False)[rows_B]
        fine_B = (label_B >= 0) & (label_B <= 1) if self.options.soft_labels else (label_B == 0) | (label_B == 1)
        bad_B = null_B | ~fine_B | no_id_B[rows_B] | faults.rows_B[rows_B]
        answered: dict[int, tuple[str, str | None]] = {}
        for b in np.flatnonzero(bad_B).tolist():
            row, value = int(rows_B[b]), None if null_B[b] else float(label_B[b])
            reason = faults.reason(row) or (BAD_ID if no_id_B[row] else bad_label(value, soft=self.options.soft_labels))
            answered[row] = ("invalid_label", reason)
        self._refused["invalid_labels"] += len(answered)
        rows_B, label_B = rows_B[~bad_B], label_B[~bad_B]
        if len(rows_B):
            lanes_B = self._lanes.lookup(batch.column("stream_id").take(pa.array(rows_B)))
            self._join_labels(lanes_B, ids_B[rows_B], label_B, event_times(batch)[rows_B])
        return answered

    def _join_labels(self, lanes_B: Ints, ids_B: Ints, label_B: np.ndarray, times_B: Ints) -> None:
        join, counts = self._join, self._counts
        counts["labels"] += len(ids_B)
        place_B = join.find(ids_B)
        found_B = place_B >= 0
        state_B = np.where(found_B, join.state[place_B], np.uint8(RowState.EMPTY))
        negative_B = state_B == RowState.NEGATIVE
        usable_B = state_B == RowState.PENDING
        if negative_B.any():
            correctable_us = join.deadline_us[place_B] + _us(self.options.late_correction_s)
            in_time_B = negative_B & (label_B > 0)
            in_time_B[in_time_B] = self._times.of(lanes_B[in_time_B]) <= correctable_us[in_time_B]
            usable_B |= in_time_B
        first_B = np.zeros(len(ids_B), np.bool_)
        usable_rows = np.flatnonzero(usable_B)
        first_B[usable_rows[np.unique(place_B[usable_rows], return_index=True)[1]]] = True
        join.stage(place_B[first_B], label_B[first_B])
        late_B = ~usable_B & (negative_B | (state_B == RowState.EXPIRED))
        counts["late_labels"] += int(late_B.sum())
        counts["duplicate_labels"] += int((found_B & ~first_B & ~late_B).sum())
        early_B = ~found_B & (lanes_B >= 0)
        counts["early_refused"] += int((~found_B & (lanes_B < 0)).sum())
        if early_B.any():
            lanes_B, ids_B, label_B = lanes_B[early_B], ids_B[early_B], label_B[early_B]
            # A label waits from the time that its impressions have reached, so that its own clock does not matter.
            latest_B = self._times.latest_S[lanes_B]
            since_B = np.where(latest_B == NEVER, times_B[early_B], latest_B)
            known, refused = self._early.add(lanes_B, ids_B, label_B, since_B)
            counts["early_labels"] += len(ids_B) - known - refused
            counts["duplicate_labels"] += known
            counts["early_refused"] += refused

    def _swap(self, path: str) -> str | None:
        """Go on with the model in ``path``, by default with an empty memory; return what is wrong if that cannot be."""
        try:
            self._adopt(path)
        except StreambankError as error:
            _log.warning("operator=%s model swap failed path=%r error=%s", self.context.name, path, error)
            return f"the model stays {self._model_id}: {error}"
        self._counts["model_swaps"] += 1
        if self.options.on_swap == "clear":
            self._model_number += 1
            self._clear_memory(np.arange(self._lanes.number))
        self._lanes.touch_all()
        _log.info("operator=%s model swapped path=%r model=%s", self.context.name, path, self._model_id)
        return None

    def _adopt(self, path: str) -> None:
        model = load_model(path, self.options, self.context.name)
        require_same_setup(
            setup_of(self.options, model), self._setup, f"{self.context.name}: model {path!r}", CheckpointMismatch
        )
        self._memory.adopt(model)
        self._scorer = Scorer(model, self.context.device, self._memory.keys)
        self._model_path, self._model_id = path, checkpoint.model_id(model)

    # Streams

    def close_stream(self, stream_id: str) -> None:
        """Forget a stream and its memory. A memory for all rows stays; only the watermark no longer waits for the stream."""
        if self._lanes.per_key:
            self._lanes.close(stream_id)
        elif self.options.partition == "stream_id":
            self._times.partitions.pop(stream_id, None)

    def _forget_lane(self, stream_id: str, lane: int) -> None:
        _log.debug("operator=%s stream=%r gives up its lane", self.context.name, stream_id)
        self._memory.close(lane)
        self._join.clear(lane)
        self._early.clear(lane)
        self._times.clear(lane)

    def metrics(self) -> dict[str, float]:
        """Return bytes, rows waiting, and counts since the start of the run (of bad rows: of this process)."""
        return {
            "bank_bytes": float(self._memory.bytes()["device"]),
            "slots_used": float(len(self._lanes)),
            "evictions": float(self._lanes.evictions),
            "bank_rows": float(self._memory.written().sum()),
            "pending": float(self._join.waiting()),
            "early": float(len(self._early)),
            **{name: float(count) for name, count in (self._counts | self._refused).items()},
        }

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of everything, or of what changed since the last call."""
        state = State(incremental=incremental)
        lanes_N = self._lanes.export(state, incremental=incremental)
        state.dense["times.latest"] = torch.from_numpy(self._times.latest_S[lanes_N])
        self._join.export(lanes_N, state, incremental=incremental)
        self._early.export(lanes_N, state)
        self._memory.export(lanes_N, state, incremental=incremental)
        self._join.mark_clean()
        self._memory.mark_clean()
        partitions = self._times.partitions
        if not self._lanes.per_key:
            to_shared(state)
            state.shared["times.partitions"] = torch.tensor(list(partitions.values()), dtype=torch.int64)
        state.additive["counts"] = torch.tensor(list(self._counts.values()))
        state.additive["shards"] = torch.ones(1, dtype=torch.int64)
        state.meta |= {
            "setup": self._setup,
            "first_model": self._first_model,
            "model": self._model_id,
            "model_path": self._model_path,
            "model_number": self._model_number,
            "partitions": list(partitions),
        }
        return state

    def restore(self, state: State) -> None:
        """Replace everything by a full ``state``. Raise ``RecoveryError`` where it is of another model or of other options."""
        name = self.context.name
        if state.incremental:
            raise RecoveryError(f"{name}: an incremental snapshot cannot be restored; apply it to a full one first")
        require_same_setup(state.meta["setup"], self._setup, f"{name}: the snapshot", RecoveryError)
        if state.meta["first_model"] != self._first_model:
            raise RecoveryError(
                f"{name}: the snapshot was made with model {state.meta['first_model']}, {self.options.checkpoint!r} is "
                f"{self._first_model}; resume with the same file, and bring a new model by a control row"
            )
        if not self._lanes.per_key and int(state.additive["shards"][0]) != 1:
            raise RecoveryError(
                f"{name}: with scope='global' every shard has a memory of its own, which cannot be cut or joined; resume with "
                "the number of shards of the first run"
            )
        if self._lanes.per_key and len(state.streams) > self.options.max_streams:
            raise RecoveryError(
                f"{name}: the snapshot holds {len(state.streams)} streams, max_streams is {self.options.max_streams}; raise "
                "it, or resume with more shards"
            )
        self._restore_model(state)
        if not self._lanes.per_key:
            state = from_shared(state)
        for lane in range(self._lanes.number):
            self._forget_lane("", lane)
        lanes_N = self._lanes.load(state)
        if len(lanes_N):
            self._times.latest_S[lanes_N] = state.dense["times.latest"].numpy()
            self._join.load(lanes_N, state)
            self._early.load(lanes_N, state)
            self._memory.load(lanes_N, state)
        times = state.shared["times.partitions"].tolist() if not self._lanes.per_key else []
        self._times.partitions = dict(zip(state.meta["partitions"], times, strict=True))
        self._counts = dict(zip(_COUNTERS, state.additive["counts"].tolist(), strict=True))
        self._join.mark_clean()
        self._memory.mark_clean()

    def _restore_model(self, state: State) -> None:
        path, wanted = state.meta["model_path"], state.meta["model"]
        if wanted != self._model_id:
            self._adopt(path if path is not None else self.options.checkpoint)
        if wanted != self._model_id:
            raise RecoveryError(
                f"{self.context.name}: the snapshot was made with model {wanted} from {path!r}, which now holds "
                f"{self._model_id}; put the old file back"
            )
        self._model_path, self._model_number = path, state.meta["model_number"]


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
