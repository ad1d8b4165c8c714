"""The operator against a serial reference in plain Python; cuts, snapshots and the order of labels change nothing.

Spec §4.2, §11.10 and §11.11.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reloop2_streams import Events, drifting, make

from models.reloop2 import checkpoint
from models.reloop2.features import encode
from operators.reloop2 import ReLoop2Operator
from operators.state import State
from pipelines.testing._compare import clone_state, state_difference

pytestmark = pytest.mark.heavy

TIMES = {"label_timeout_s": 30.0, "allowed_lateness_s": 1.0}


class Serial:
    """ReLoop2 with a sketch, one event at a time, in dicts (micro_batch = 1). Slow and obvious."""

    def __init__(
        self, model: str, operator: ReLoop2Operator, *, timeout: float, lateness: float, correction: float = 0.0
    ) -> None:
        self.model, self.operator = checkpoint.load(model), operator
        self.timeout, self.lateness, self.correction = timeout, lateness, correction
        self.sketch: dict[tuple[int, int], list[float]] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.early: dict[int, float] = {}
        self.total, self.latest = 0, -1e18

    def add(self, buckets: list[int], label: float, base: float) -> None:
        self.total += 1
        for cell in enumerate(buckets):
            count, labels, bases = self.sketch.get(cell, [0, 0.0, 0.0])
            self.sketch[cell] = [count + 1, labels + label, bases + base]

    def time_out(self) -> None:
        for row in self.rows.values():
            if row["state"] == "pending" and row["time"] + self.timeout <= self.latest - self.lateness:
                self.add(row["buckets"], 0.0, row["base"])
                row["state"] = "negative"

    @torch.inference_mode()
    def predict(self, batch: Any) -> float:
        self.time_out()
        output = self.model(encode(batch, self.model.feature_map, "reference").columns)
        base = float(output.logit_B.sigmoid())
        buckets = self.operator._memory.keys(output.hidden_BD)[0].tolist()
        read = [self.sketch[cell] for cell in enumerate(buckets) if cell in self.sketch]
        weights = np.exp(np.array([count / self.total / 0.1 for count, _, _ in read]))
        mean = (
            sum(w * labels / count for w, (count, labels, _) in zip(weights / weights.sum(), read, strict=True))
            if read
            else base
        )
        key, time = batch.column("impression_id")[0].as_py(), batch.column("event_time")[0].value / 1e6
        self.latest = max(self.latest, time)
        if key not in self.rows:
            self.rows[key] = {"state": "pending", "time": time, "buckets": buckets, "base": base}
            if key in self.early:
                self.label(key, self.early.pop(key))
        return min(1.0, max(0.0, base + 0.4 * (mean - base)))

    def label(self, key: int, label: float) -> None:
        row = self.rows.get(key)
        if row is None:
            self.early.setdefault(key, label)
        elif row["state"] == "pending":
            self.add(row["buckets"], label, row["base"])
            row["state"] = "done"
        elif (
            row["state"] == "negative" and label and self.latest - self.lateness <= row["time"] + self.timeout + self.correction
        ):
            for cell in enumerate(row["buckets"]):
                self.sketch[cell][1] += label
            row["state"] = "done"

    def run(self, events: Events) -> list[float]:
        predictions = []
        for is_label, row in events.order:
            if is_label:
                control = events.labels
                self.label(control.column("impression_id")[row].as_py(), control.column("label")[row].as_py())
            else:
                predictions.append(self.predict(events.impressions.slice(row, 1)))
        return predictions


@pytest.mark.parametrize("correction", [0.0, 40.0])
def test_micro_batch_of_one_is_the_serial_algorithm(ctr_model: str, correction: float):
    events = drifting(110, duplicates=0.1, delay=25)
    operator = make(ctr_model, micro_batch=1, late_correction_s=correction, **TIMES)
    serial = Serial(ctr_model, operator, timeout=30.0, lateness=1.0, correction=correction)
    wanted = serial.run(events)
    got = events.run(operator, np.random.default_rng(0)).column("y_pred").to_pylist()
    assert max(abs(a - b) for a, b in zip(wanted, got, strict=True)) < 1e-5
    assert len(set(np.round(wanted, 4))) > 50
    assert operator.metrics()["timeouts"] > 10
    assert (operator.metrics()["corrections"] > 3) == (correction > 0)


MODES: dict[str, dict[str, Any]] = {
    "sketch": {"late_correction_s": 20.0},
    "sketch, half-life": {"forgetting": "half_life", "forget_rows": 50},
    "sketch, slices": {"forgetting": "slices", "forget_rows": 40},
    "sketch, reset": {"forgetting": "reset", "forget_rows": 30, "reset_every_s": 77.0},
    "sketch per key": {"scope": "per_key", "max_streams": 3, "pending_capacity": 20},
    "sketch, small table": {"pending_capacity": 9, "early_capacity": 2},
    "knn": {"mode": "knn", "capacity": 40, "top_k": 5, "sigma": 0.3, "keep_rate": 0.8},
    "lsh_table": {"mode": "lsh_table", "capacity": 40, "top_k": 5, "bits": 3},
}


EVERY_MODE = [pytest.param(mode, marks=() if mode in ("sketch per key", "knn") else pytest.mark.slow) for mode in MODES]


def final(operator: ReLoop2Operator) -> State:
    return operator.snapshot()


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_cuts_change_neither_output_nor_state(ctr_model: str, mode: str):
    events = drifting(90, duplicates=0.1, streams=5)
    options = MODES[mode] | TIMES
    whole = make(ctr_model, **options)
    wanted = events.run(whole)
    for seed in range(2):
        operator = make(ctr_model, **options)
        got = events.run(operator, np.random.default_rng(seed))
        assert got.equals(wanted)
        assert state_difference(final(whole), final(operator)) is None


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_snapshot_and_restore_go_on_to_the_bit(ctr_model: str, mode: str):
    events = drifting(90, duplicates=0.1, streams=5)
    options = MODES[mode] | TIMES
    undisturbed = make(ctr_model, **options)
    wanted = events.run(undisturbed)
    rng = np.random.default_rng(1)
    for stop in (58, 97):
        first = make(ctr_model, **options)
        before = events.run(first, stop=stop)
        taken = first.snapshot()
        kept = clone_state(taken)
        second = make(ctr_model, **options)
        second.restore(taken)
        assert state_difference(taken, second.snapshot()) is None
        after = events.run(second, rng, start=stop)
        assert before.num_rows + after.num_rows == wanted.num_rows
        assert after.equals(wanted.slice(before.num_rows))
        assert state_difference(final(undisturbed), second.snapshot()) is None
        assert state_difference(kept, taken) is None


@pytest.mark.parametrize("mode", EVERY_MODE)
def test_increments_add_up_to_a_full_snapshot(ctr_model: str, mode: str):
    events = drifting(90, duplicates=0.1, streams=5)
    operator = make(ctr_model, **MODES[mode], **TIMES)
    state = clone_state(operator.snapshot())
    for start in range(0, len(events.order), 23):
        events.run(operator, start=start, stop=start + 23)
        state = state.apply(operator.snapshot(incremental=True))
        assert state_difference(operator.snapshot(), state) is None
        state = clone_state(state)


def test_increment_is_small(ctr_model: str):
    operator = make(ctr_model, bits=12, arrays=20, micro_batch=16, pending_capacity=5000, **TIMES)
    events = drifting(120)
    events.run(operator, stop=180)
    full = operator.snapshot().bytes()
    events.run(operator, start=180, stop=200)
    assert operator.snapshot(incremental=True).bytes() < full / 50


@pytest.mark.parametrize("order", ["labels at once", "labels at the end", "labels first"])
def test_any_interleaving_within_the_timeout_gives_the_same_memory(ctr_model: str, order: str):
    events = drifting(50)
    shown = [event for event in events.order if not event[0]]
    given = [event for event in events.order if event[0]]
    interleaved = {
        "labels at once": events.order,
        "labels at the end": shown + given,
        "labels first": given[::-1] + shown,
    }[order]
    # One impression more, far later: everything that waits gets written.
    operator = make(ctr_model, label_timeout_s=1e6, early_label_s=1e6)
    Events(events.impressions, events.labels, interleaved).run(operator)
    operator._turn(np.array([0]), np.array([0]))
    reference = make(ctr_model, label_timeout_s=1e6, early_label_s=1e6)
    events.run(reference)
    reference._turn(np.array([0]), np.array([0]))
    assert memory_bits(operator) == memory_bits(reference)


def memory_bits(operator: ReLoop2Operator) -> list[bytes]:
    state = State()
    operator._memory.export(np.array([0]), state, incremental=False)
    parts = [*state.dense.values(), *state.shared.values(), *state.additive.values()]
    return [part.contiguous().view(torch.uint8).numpy().tobytes() for part in parts if part.numel()]


def test_replayed_labels_change_nothing(ctr_model: str):
    events = drifting(60)
    twice = Events(
        events.impressions, events.labels, [e for event in events.order for e in ([event] * 2 if event[0] else [event])]
    )
    once, again = make(ctr_model, **TIMES), make(ctr_model, **TIMES)
    assert twice.run(again).equals(events.run(once))
    assert memory_bits(once) == memory_bits(again)
    assert again.metrics()["duplicate_labels"] + again.metrics()["late"] > 40


def test_late_positive_equals_a_plain_positive(ctr_model: str):
    events = drifting(60)
    positives = events.labels.filter(events.labels.column("label").to_numpy() == 1.0)
    shown = [(False, i) for i in range(60)]
    plain = make(ctr_model, micro_batch=1, label_timeout_s=20.0, late_correction_s=1e6, allowed_lateness_s=0.0)
    late = make(ctr_model, micro_batch=1, label_timeout_s=20.0, late_correction_s=1e6, allowed_lateness_s=0.0)
    everything = [(True, i) for i in range(positives.num_rows)]
    # All labels early enough, or all after every timeout (of the rows that have timed out by then).
    Events(events.impressions, positives, everything + shown).run(plain)
    Events(events.impressions, positives, shown + everything).run(late)
    for operator in (plain, late):
        operator._times.note(np.array([0]), np.array([10**9]))
        operator._turn(np.array([0]), np.array([0]))
    assert late.metrics()["corrections"] > 5
    assert plain.metrics()["corrections"] == 0
    assert memory_bits(plain) == memory_bits(late)
