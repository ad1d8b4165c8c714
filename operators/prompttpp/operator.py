"""The streaming operator ``prompttpp``: events in, their likelihood and the next event of their key out, learning in between.

Ties the network over its banks, the prompts, the learner and the streams together. Rows are taken in the one order in which
they come: a step of learning lies between two rows, after ``learn_batch`` scored ones or a time, wherever batches are cut.
Between two steps keys do not touch each other, so the rows of a batch go in rounds, one event of each key, blocks at a time.
"""

# B rows of a batch, P rows of a part, n rows of a block

from __future__ import annotations

import logging
from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from connectors import records
from connectors.records import NEVER_US
from models.prompttpp import checkpoint
from models.prompttpp.process import KeyState
from models.uploads import upload
from operators.base import Context, Emitted
from operators.counters import STREAM_COUNTERS, Counters
from operators.deferred import Deferred
from operators.event_time import event_times, microseconds
from operators.output import OutputRows
from operators.prompttpp.config import PromptTPPOptions
from operators.prompttpp.declaration import PromptTPPDeclaration
from operators.prompttpp.learning import Learner
from operators.prompttpp.network import KeyNetwork, blocks, padded
from operators.prompttpp.prompts import PromptBank
from operators.prompttpp.rules import foresee, long_pause, scale_of, score, score_long
from operators.prompttpp.schemas import QUANTILES, STATUSES, Scores, event_schema, score_schema
from operators.prompttpp.weights import load_model, settings_of
from operators.rounds import rank_within, rounds
from operators.state import State
from operators.streams import EVICTED, Stream, StreamTable

__all__ = ["PromptTPPOperator"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_log = logging.getLogger(__name__)

_COUNTERS = ("scored", "late_applied", "late_dropped", "unknown_types", "ahead", "learned", "unlearned", "skipped_steps")
_WARM = 3  # events of a key that count as its beginning
_DEAD_AFTER = 10_000  # reads of a pool, after which a prompt that was never among them counts as dead
_ODD_UNIT = (1e-3, 1e3)  # mean gaps in model units that are plausible


DUPLICATE = "sequence was taken already; it is the last of this key"
OLD = "sequence does not follow the key's last one"


class _Kind(IntEnum):
    NORMAL = 0
    LATE = 1
    TOO_LATE = 2
    AHEAD = 3
    DUPLICATE = 4
    OLD_SEQUENCE = 5


class PromptTPPOperator(PromptTPPDeclaration):
    """The operator at work; what can be known of it before stands in its declaration."""

    def __init__(self, options: PromptTPPOptions, context: Context) -> None:
        super().__init__(options, context)
        self.options: PromptTPPOptions = options
        model = load_model(options, context.name, context.device)
        self.model_id = checkpoint.model_id(model)
        self.input_schema = event_schema(options.types)
        self.output_schema = score_schema(model.config, self.model_id)
        self._config = model.config
        prompts = PromptBank(model, context.device) if model.prompts is not None else None
        self._network = KeyNetwork(model, prompts, slots=options.max_streams, window=options.window, device=context.device)
        self._learner: Learner | None = None
        if options.learn != "off":
            self._learner = Learner(
                model,
                prompts,
                scope=options.learn,
                rate=options.learning_rate,
                network_rate=options.network_rate,
                alpha=options.alpha,
                points=options.points,
                steps=options.learn_steps,
                common_share=options.common_share,
                novelty=options.novelty,
            )
        self._scored = 0
        """Events scored so far, late ones not among them."""
        self._stepped = 0
        """Those before the last step of learning."""
        self._since_us = NEVER_US
        """Event time of the first one behind it, where steps go by time, too."""
        self._name_of: dict[int, str] = {}
        """Slot → key."""
        self._gone: list[int] = []
        self._fresh: list[int] = []
        """Slots given back and handed out, which the network does not know of yet (``_settle``)."""
        self._warned = False
        self._deferred = Deferred()
        self._counters = Counters(*STREAM_COUNTERS, *_COUNTERS)
        self._streams = StreamTable(
            context.name,
            lambda stream_id, slot: Stream(slot),
            options,
            kind=Stream,
            counters=self._counters,
            opened=self._opened,
            ended=self._ended,
        )

    def _opened(self, stream_id: str, stream: Stream) -> None:
        self._fresh.append(stream.slot)
        self._name_of[stream.slot] = stream_id

    def _ended(self, stream_id: str, stream: Stream) -> None:
        self._counters.add("unlearned", int(self._network.keys.pending_S[stream.slot]))
        self._gone.append(stream.slot)

    def _settle(self) -> None:
        """Empty the slots that were given back and those of new keys, all at once: many keys come once only."""
        if self._gone:
            self._network.release(np.array(self._gone))
        if self._fresh:
            self._network.open(np.array(self._fresh))
        self._gone, self._fresh = [], []

    # Rows

    def process(self, batch: pa.RecordBatch) -> list[Emitted]:
        """Score every event and predict the next one of its key. One row out per row in."""
        records.require(batch, self.input_schema, self.context.name)
        out, scores = OutputRows(batch, self.output_schema, STATUSES), Scores(batch.num_rows, self._config)
        refused_B = out.refuse_errors()
        type_B, bad = self._types(batch)
        sequence_B = batch.column("sequence").to_numpy(zero_copy_only=False)
        time_us_B = event_times(batch)
        good_B = ~refused_B
        good_B[list(bad)] = False
        full_B = self._streams.no_room_rows(batch.column("stream_id"), good_B) & ~refused_B
        for row in np.flatnonzero(full_B).tolist():
            out.set(row, *self._streams.no_slot)
        good_B &= ~full_B
        waiting = [row for row in sorted(bad) if not refused_B[row] and not full_B[row]]
        names = batch.column("stream_id")
        for rows_P, slots_P, returned in self._streams.assign(names, np.flatnonzero(good_B)):
            self._settle()
            self._say_returned(names, rows_P, returned, out)
            inside = [row for row in waiting if row < rows_P[-1]]
            waiting = waiting[len(inside) :]
            kind_P = self._admit(rows_P, slots_P, sequence_B, time_us_B, inside, names, bad, out)
            self._say_refused(rows_P, kind_P, out)
            used = np.flatnonzero(kind_P <= _Kind.LATE)
            for part, ends_step in self._segments(slots_P[used], kind_P[used], time_us_B[rows_P[used]]):
                mine = used[part]
                self._take(rows_P[mine], slots_P[mine], kind_P[mine] == _Kind.LATE, time_us_B, type_B, out, scores)
                if ends_step:
                    self._learn()
        for row in waiting:
            stream = self._streams.get(names[row].as_py())
            newest = NEVER_US if stream is None else int(self._network.keys.sequence_S[stream.slot])
            self._refuse(row, int(sequence_B[row]), newest, names, bad, out)
        self._count(out)
        scores.type_B[:] = np.where(type_B < self._config.types, type_B, -1)
        self._download(scores)
        return out.batches(scores.columns())

    def _types(self, batch: pa.RecordBatch) -> tuple[Ints, dict[int, tuple[str, str]]]:
        """Return the id of each row's type (-1: none), and status and reason of rows whose type cannot be used."""
        column = batch.column("type")
        names, types = self._config.type_names, self._config.types
        if self.options.types == "name":
            found = pc.index_in(column, pa.array(names, pa.string()))
            type_B = found.fill_null(types).cast(pa.int64()).to_numpy(zero_copy_only=False)
        else:
            type_B = column.cast(pa.int64()).fill_null(types).to_numpy(zero_copy_only=False)
        type_B = np.where((type_B < 0) | (type_B > types), types, type_B)
        bad: dict[int, tuple[str, str]] = {}
        null_B = column.is_null().to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(type_B == types).tolist():
            if null_B[row]:
                bad[row] = "rejected_corrupt", "type is null"
                type_B[row] = -1
            elif self.options.unknown_type == "other":
                type_B[row] = names.index("other")
            else:
                known = list(names) if names else f"0 to {types - 1}"
                bad[row] = "unknown_type", f"type is {column[row].as_py()!r}; the network knows {known}"
                type_B[row] = -1
        return type_B, bad

    def _say_returned(self, names: pa.Array, rows_P: Ints, returned: list[str], out: OutputRows) -> None:
        """Mark the first row of keys whose memory had been evicted."""
        if returned:
            own = names.take(pa.array(rows_P))
            for name in returned:
                out.set(int(rows_P[pc.index(own, name).as_py()]), "reset", EVICTED)

    # Admission

    def _admit(
        self,
        rows_P: Ints,
        slots_P: Ints,
        sequence_B: Ints,
        time_us_B: Ints,
        inside: list[int],
        names: pa.Array,
        bad: dict[int, tuple[str, str]],
        out: OutputRows,
    ) -> npt.NDArray[np.int8]:
        """Return what becomes of each row of a part, by sequence and time; refuse the bad rows that stand between them."""
        keys, lateness_us = self._network.keys, microseconds(self.options.allowed_lateness_s)
        skew_us = None if self.options.max_skew_s is None else microseconds(self.options.max_skew_s)
        slots, inverse_P = np.unique(slots_P, return_inverse=True)
        sequence, last_us = keys.sequence_S[slots], keys.last_us_S[slots]
        kind_P = np.zeros(len(rows_P), np.int8)
        newest_P = np.empty(len(rows_P), np.int64)  # highest sequence of the key up to and with a row
        for members in rounds(inverse_P):
            own = inverse_P[members]
            new, now_us = sequence_B[rows_P[members]], time_us_B[rows_P[members]]
            old, then_us = sequence[own], last_us[own]
            known = then_us != NEVER_US
            since_us = np.where(known, now_us - np.where(known, then_us, 0), 0)
            kind = np.where(since_us < 0, np.where(-since_us > lateness_us, _Kind.TOO_LATE, _Kind.LATE), _Kind.NORMAL)
            if skew_us is not None:
                kind = np.where(since_us > skew_us, _Kind.AHEAD, kind)
            kind = np.where(new == old, _Kind.DUPLICATE, np.where(new < old, _Kind.OLD_SEQUENCE, kind))
            kind_P[members] = kind
            taken = kind <= _Kind.LATE
            sequence[own[taken]] = new[taken]
            last_us[own[kind == _Kind.NORMAL]] = now_us[kind == _Kind.NORMAL]
            newest_P[members] = sequence[own]
        for row in inside:
            stream = self._streams.get(names[row].as_py())
            newest = NEVER_US
            if stream is not None:
                mine = np.flatnonzero((slots_P == stream.slot) & (rows_P < row))
                newest = int(newest_P[mine[-1]]) if len(mine) else int(keys.sequence_S[stream.slot])
            self._refuse(row, int(sequence_B[row]), newest, names, bad, out)
        keys.sequence_S[slots] = sequence
        return kind_P

    def _refuse(
        self, row: int, sequence: int, newest: int, names: pa.Array, bad: dict[int, tuple[str, str]], out: OutputRows
    ) -> None:
        """Give a row that cannot be used its status: late ones are told as such whatever else is wrong with them."""
        if sequence == newest:
            out.set(row, "duplicate", DUPLICATE)
        elif sequence < newest:
            out.set(row, "late", OLD)
        elif (refusal := self._streams.no_room(names[row].as_py())) is not None:
            out.set(row, *refusal)
        else:
            out.set(row, *bad[row])

    def _say_refused(self, rows_P: Ints, kind_P: npt.NDArray[np.int8], out: OutputRows) -> None:
        options = self.options
        reasons = {
            _Kind.TOO_LATE: (
                "late_dropped",
                f"event_time is before the key's latest event by more than allowed_lateness_s={options.allowed_lateness_s:g}",
            ),
            _Kind.AHEAD: (
                "ahead",
                f"event_time is ahead of the key's latest event by more than max_skew_s={options.max_skew_s}",
            ),
            _Kind.DUPLICATE: ("duplicate", DUPLICATE),
            _Kind.OLD_SEQUENCE: ("late", OLD),
        }
        for kind, (status, reason) in reasons.items():
            rows = rows_P[kind_P == kind]
            if len(rows):
                out.set_rows(rows, status, [reason] * len(rows))

    # Events

    def _segments(self, slots_P: Ints, kind_P: npt.NDArray[np.int8], time_us_P: Ints) -> Iterator[tuple[slice, bool]]:
        """Cut the rows of a part behind those that end a step of learning."""
        if self._learner is None:
            yield slice(0, len(slots_P)), False
            return
        opens_P = (self._network.keys.events_S[slots_P] == 0) & (rank_within(slots_P) == 0)
        scored_P = (kind_P == _Kind.NORMAL) & ~opens_P
        count_P, start = np.cumsum(scored_P), 0
        while start < len(slots_P):
            before = int(count_P[start - 1]) if start else 0
            stop = int(np.searchsorted(count_P, before + self.options.learn_batch - (self._scored - self._stepped))) + 1
            if self.options.learn_interval_s is not None:
                stop = min(stop, start + self._overdue(time_us_P[start:][scored_P[start:]], np.flatnonzero(scored_P[start:])))
            yield slice(start, min(stop, len(slots_P))), stop <= len(slots_P)
            if stop <= len(slots_P):
                self._stepped, self._since_us = self._scored, NEVER_US
            start = stop

    def _overdue(self, time_us_C: Ints, place_C: Ints) -> int:
        """Return how many rows there are up to the first of these scored ones that comes ``learn_interval_s`` after a step."""
        assert self.options.learn_interval_s is not None
        if len(time_us_C) and self._since_us == NEVER_US:
            self._since_us = int(time_us_C[0])
        over = place_C[time_us_C >= self._since_us + microseconds(self.options.learn_interval_s)]
        return int(over[0]) + 1 if len(over) else int(np.iinfo(np.int64).max >> 1)

    def _take(
        self, rows_P: Ints, slots_P: Ints, late_P: Bools, time_us_B: Ints, type_B: Ints, out: OutputRows, scores: Scores
    ) -> None:
        """Take rows of one segment, in rounds."""
        keys = self._network.keys
        opens_P = (keys.events_S[slots_P] == 0) & (rank_within(slots_P) == 0)
        number_P = self._scored + np.cumsum(~late_P & ~opens_P)
        for members in rounds(slots_P):
            on_time = members[~late_P[members]]
            for part in blocks(len(on_time)):
                chosen = on_time[part]
                rows = rows_P[chosen]
                self._event(rows, slots_P[chosen], time_us_B[rows], type_B[rows], number_P[chosen], out, scores)
            for place in members[late_P[members]].tolist():
                row = int(rows_P[place])
                self._late_event(row, int(slots_P[place]), int(time_us_B[row]), int(type_B[row]), out, scores)
        self._scored = int(number_P[-1]) if len(number_P) else self._scored

    @torch.inference_mode()
    def _event(
        self, rows: Ints, slots: Ints, time_us: Ints, types: Ints, number: Ints, out: OutputRows, scores: Scores
    ) -> None:
        """Score one event of each of a block of keys, take it, and predict the next."""
        network, options, keys, count = self._network, self.options, self._network.keys, len(rows)
        model, prompts = network.model, network.prompts
        self._renew(slots)
        before = keys.events_S[slots]
        key = network.load(slots)
        time_n, (last_n, events_n) = network.model_time(slots, time_us), network.times(slots)
        time_B, type_B = (upload(padded(part_n), network.device) for part_n in (time_n, types))
        gap_B, scale_B = (time_B - key.time_B).clamp_min(0.0), scale_of(key.time_B, key.ordinal_B)
        scored = before > 0
        if scored.any():
            found = score(lambda lag: model.rates(key, lag, prompts), gap_B, type_B, options.points)
            # By the host's numbers, since it must know whether there are any; they are those of the device.
            gap_n = torch.from_numpy(time_n - last_n).clamp_min(0.0)
            long = long_pause(gap_n, scale_of(torch.from_numpy(last_n), torch.from_numpy(events_n))).numpy() & scored
            if long.any():
                long_B = long_pause(gap_B, scale_B) & (key.ordinal_B > 0)
                pieces = score_long(
                    lambda lag: model.rates(key, lag, prompts), gap_B, scale_B, type_B, options.points, options.grid
                )
                found = found._replace(integral_B=torch.where(long_B, pieces.integral_B, found.integral_B))
                self._mark(rows[long], "long_gap", out)
            self._deferred.add(scores.note_score, rows, *(part[:count] for part in found))
            scores.scored_B[rows] = scored
            self._counters.add("scored", int(scored.sum()))
            if self._learner is not None:
                keys.order_S[slots] = np.where(scored & (keys.pending_S[slots] == 0), number, keys.order_S[slots])
                keys.pending_S[slots] += scored
        keys.version_S[slots] = np.where(scored, keys.version_S[slots], self.version)
        made = model.step(key, time_B, type_B, prompts)
        network.store(slots, key, time_us, types, made)
        self._mark(rows[before < _WARM], "warmup", out)
        self._foresee(key, slots, rows, time_us, before + 1, scores)

    def _foresee(self, key: KeyState, slots: Ints, rows: Ints, time_us: Ints, events: Ints, scores: Scores) -> None:
        """Predict the next event of each of a block of keys."""
        network, count = self._network, len(rows)
        scores.used_B[rows] = True
        scores.history_B[rows] = events
        scores.version_B[rows] = self.version
        scores.latest_us_B[rows] = time_us
        scale_B = scale_of(key.time_B, key.ordinal_B)
        self._check_unit(slots, events)
        if self.options.predict:
            found = foresee(lambda lag: network.model.rates(key, lag, network.prompts), scale_B, self.options.grid, QUANTILES)
            next_BX = torch.cat([found.mean_B[:, None], found.quantile_BZ], dim=1)
            self._deferred.add(scores.note_next, rows, *(part[:count] for part in (next_BX, found.type_BK, found.survival_B)))
            scores.predicted_B[rows] = True
        scores.read_B[rows] = bool(key.chosen)
        if key.chosen:
            index_BJN = torch.stack([read.index.view(-1, self._config.top_k)[:count] for read in key.chosen], dim=1)
            self._deferred.add(scores.note_prompts, rows, index_BJN)

    def _download(self, scores: Scores) -> None:
        """Bring what was found to the host: the only moment at which it waits for the device."""
        self._deferred.take()
        for index_nJN in scores.chosen_nJN:
            assert self._network.prompts is not None
            self._network.prompts.count(index_nJN)

    def _late_event(self, row: int, slot: int, time_us: int, kind: int, out: OutputRows, scores: Scores) -> None:
        """Put a late event where it belongs, and predict from there."""
        network, keys = self._network, self._network.keys
        slots = np.array([slot])
        time_W, _, count = network.ring(slots)
        if keys.events_S[slot] > count[0] and time_us < time_W[0, 0]:
            out.set(row, "late_dropped", f"the event is older than the {network.window} latest ones of its key, which are kept")
            return
        self._counters.add("unlearned", int(keys.pending_S[slot]))
        keys.pending_S[slot] = 0
        network.insert(slot, time_us, kind)
        keys.version_S[slot] = self.version
        self._mark(np.array([row]), "late_applied", out)
        with torch.inference_mode():
            self._foresee(network.load(slots), slots, np.array([row]), keys.last_us_S[slots], keys.events_S[slots], scores)

    def _mark(self, rows: Ints, status: str, out: OutputRows) -> None:
        """Set a status of rows that have none yet, or one that says less."""
        plain = [row for row in rows.tolist() if out.is_ok(row)]
        if plain:
            out.set_rows(plain, status)

    def _check_unit(self, slots: Ints, events: Ints) -> None:
        """Warn once where the unit of time cannot be meant."""
        if self._warned or not (events > _WARM).any():
            return
        own = scale_of(*(torch.from_numpy(part) for part in self._network.times(slots))).numpy()[events > _WARM]
        if (own < _ODD_UNIT[0]).any() or (own > _ODD_UNIT[1]).any():
            self._warned = True
            gap = own[(own < _ODD_UNIT[0]) | (own > _ODD_UNIT[1])][0]
            _log.warning(
                "operator=%s a key's mean gap is %.3g of the network's time_scale (%g s); is event_time in the unit of its "
                "training? Train with the stream's own time_scale, or ignore this for keys that are that fast or slow",
                *(self.context.name, gap, self._config.time_scale),
            )

    # Learning

    @property
    def version(self) -> int:
        """Steps of learning so far."""
        return 0 if self._learner is None else self._learner.version

    def _learn(self) -> None:
        """Learn from what was scored since the last step, then forget it."""
        assert self._learner is not None
        keys = self._network.keys
        slots = np.flatnonzero(keys.pending_S)
        if not len(slots):
            return
        slots = slots[np.argsort(keys.order_S[slots])]
        windows, unlearned = self._network.windows(slots, self.options.learn_history)
        self._counters.add("unlearned", unlearned)
        self._counters.add("learned", int(windows.real_BC.sum()))
        self._counters.add("skipped_steps", self._learner.learn(windows))
        keys.pending_S[slots] = 0
        for slot in slots.tolist():
            self._streams.changed(self._name_of[slot])

    def _renew(self, slots: Ints) -> None:
        """Make the states of keys anew whose weights are too old."""
        if self._learner is None or self.options.refresh_lag is None:
            return
        keys = self._network.keys
        stale = slots[(self.version - keys.version_S[slots] > self.options.refresh_lag) & (keys.events_S[slots] > 0)]
        if len(stale):
            self._network.refresh(stale)
            keys.version_S[stale] = self.version

    # Streams

    def _count(self, out: OutputRows) -> None:
        self._counters.note(out)
        for name, status in (("late_applied",) * 2, ("late_dropped",) * 2, ("unknown_types", "unknown_type"), ("ahead",) * 2):
            self._counters.add(name, out.count(status))

    def close_stream(self, stream_id: str) -> None:
        """Forget a key and free its slot."""
        self._streams.close(stream_id)
        self._settle()

    def metrics(self) -> dict[str, float]:
        """Return bytes, keys with a slot, steps, dead prompts and counters of the whole run."""
        prompts = self._network.prompts
        return {
            "bank_bytes": float(self._network.bytes()),
            "streams": float(len(self._streams)),
            "model_version": float(self.version),
            **({} if prompts is None else {"dead_prompts": float(prompts.dead(_DEAD_AFTER))}),
            **self._counters.gauges(),
        }

    # Snapshots

    def snapshot(self, *, incremental: bool = False) -> State:
        """Return a copy of all state, or of the keys that changed since the last call with the events that changed."""
        meta = {"weights": self.model_id, "settings": settings_of(self.options)}
        with self._streams.snapshot(incremental=incremental, **meta) as (state, streams):
            slots = np.array([stream.slot for stream in streams], np.int64)
            self._network.export(slots, state, incremental=incremental)
        if self._network.prompts is not None:
            self._network.prompts.export(state, learned=self._learner is not None, incremental=incremental)
        if self._learner is not None:
            self._learner.export(state)
            state.shared["scored"] = torch.tensor([self._scored])
            state.shared["stepped"] = torch.tensor([self._stepped, self._since_us])
        return state

    def restore(self, state: State) -> None:
        """Replace all state by a full ``state``."""
        meta = {"weights": self.model_id, "settings": settings_of(self.options)}
        hint = "states are what these weights and options made of events, so resume with the same ones"
        live, streams = self._streams.restore(state, hint=hint, **meta)
        self._network.load_state(np.array([stream.slot for stream in streams], np.int64), live)
        self._name_of = {stream.slot: name for stream, name in zip(streams, live.streams, strict=True)}
        if self._network.prompts is not None:
            self._network.prompts.load(state, learned=self._learner is not None, share=self.options.common_share)
        if self._learner is not None:
            self._learner.load(state, self.context.name)
            self._scored = int(state.shared["scored"][0])
            self._stepped, self._since_us = self._scored - self._scored % self.options.learn_batch, NEVER_US
            if "stepped" in state.shared:  # snapshots of the first version have steps by numbers of events only
                self._stepped, self._since_us = (int(number) for number in state.shared["stepped"])
